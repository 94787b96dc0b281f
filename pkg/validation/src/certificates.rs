//! certificates.k8s.io/v1 CertificateSigningRequest.
//!
//! Requests must be what they say: readable, and signed by the key they are for. What they ask for is judged by signers.
//!
//! Behaves as pkg/apis/certificates/validation/validation.go, v1.36.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rkube_api::k8s::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::common::diff::diff;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::report::{OptList, Report};

const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const EXPIRATION_SECONDS_MIN: i32 = 600;
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// What an old request may keep.
#[derive(Clone, Copy, Default)]
struct Options {
    set_approval: bool,
    set_certificate: bool,
    approved_and_denied: bool,
    legacy_signer: bool,
    duplicate_conditions: bool,
    empty_condition_type: bool,
    arbitrary_certificate: bool,
    duplicate_usages: bool,
    unknown_usages: bool,
}

impl Options {
    fn of(new: &CertificateSigningRequest, old: &CertificateSigningRequest) -> Self {
        let conditions = conditions(old);
        let is = |kind: &str| conditions.iter().any(|condition| condition.type_ == kind);
        let usages = old.spec.usages.items();
        Self {
            set_approval: false,
            set_certificate: false,
            approved_and_denied: is("Approved") && is("Denied"),
            legacy_signer: old.spec.signer_name == LEGACY_SIGNER,
            duplicate_conditions: repeats(conditions.iter().map(|condition| condition.type_.as_str())),
            empty_condition_type: is(""),
            arbitrary_certificate: certificate(new) == certificate(old)
                || certificate_error(certificate(old)).is_some(),
            duplicate_usages: repeats(usages.iter().map(String::as_str)),
            unknown_usages: usages.iter().any(|usage| !USAGES.contains(&usage.as_str())),
        }
    }
}

fn repeats<'a>(mut values: impl Iterator<Item = &'a str>) -> bool {
    let mut seen = BTreeSet::new();
    values.any(|value| !seen.insert(value))
}

fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    request.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

fn certificate(request: &CertificateSigningRequest) -> &[u8] {
    let certificate = request.status.as_ref().and_then(|status| status.certificate.as_ref());
    certificate.map_or(&[], |bytes| bytes.0.as_slice())
}

pub fn set_defaults(request: &mut CertificateSigningRequest) {
    request.status.get_or_insert_default();
}

pub fn validate(request: &CertificateSigningRequest) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_with(request, Options::default(), &mut errors);
    errors
}

pub fn validate_update(new: &CertificateSigningRequest, old: &CertificateSigningRequest) -> ErrorList {
    validate_update_with(new, old, Options::of(new, old))
}

/// Signers set the certificate, once.
pub fn validate_status_update(new: &CertificateSigningRequest, old: &CertificateSigningRequest) -> ErrorList {
    validate_update_with(new, old, Options { set_certificate: true, ..Options::of(new, old) })
}

/// `PUT x/approval`: only there conditions of approval can be set.
pub fn validate_approval_update(new: &CertificateSigningRequest, old: &CertificateSigningRequest) -> ErrorList {
    validate_update_with(new, old, Options { set_approval: true, ..Options::of(new, old) })
}

fn any_name(_: &str, _: bool) -> Vec<String> {
    Vec::new()
}

fn validate_with(request: &CertificateSigningRequest, options: Options, errors: &mut ErrorList) {
    validate_object_meta(&request.metadata, false, any_name, &Path::new("metadata"), errors);
    let (spec, path) = (&request.spec, Path::new("spec"));
    if let Some(reason) = request_error(&spec.request.0) {
        errors.invalid(path.child("request"), STANDARD.encode(&spec.request.0), reason);
    }
    let usages_path = path.child("usages");
    let usages = spec.usages.items();
    if usages.is_empty() {
        errors.required(&usages_path, "");
    }
    if !options.unknown_usages {
        for (index, usage) in usages.iter().enumerate() {
            errors.one_of(usages_path.index(index), usage, &USAGES);
        }
    }
    if !options.duplicate_usages {
        let mut seen = BTreeSet::new();
        for (index, usage) in usages.iter().enumerate() {
            if !seen.insert(usage) {
                errors.duplicate(usages_path.index(index), usage.as_str());
            }
        }
    }
    let signer = spec.signer_name.as_str();
    if !options.legacy_signer && signer == LEGACY_SIGNER {
        errors.invalid(path.child("signerName"), signer, "the legacy signerName is not allowed via this API version");
    } else {
        validate_signer_name(signer, &path.child("signerName"), errors);
    }
    if let Some(seconds) = spec.expiration_seconds.filter(|seconds| *seconds < EXPIRATION_SECONDS_MIN) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid(path.child("expirationSeconds"), seconds, detail);
    }
    validate_conditions(conditions(request), options, errors);
    if !options.arbitrary_certificate
        && let Some(reason) = certificate_error(certificate(request))
    {
        errors.invalid(Path::new("status").child("certificate"), "<certificate data>", reason);
    }
}

fn validate_conditions(conditions: &[CertificateSigningRequestCondition], options: Options, errors: &mut ErrorList) {
    let path = Path::new("status").child("conditions");
    let (mut seen, mut approved, mut denied) = (BTreeSet::new(), false, false);
    for (index, condition) in conditions.iter().enumerate() {
        let item = path.index(index);
        let kind = condition.type_.as_str();
        if !options.empty_condition_type {
            errors.not_empty(item.child("type"), kind);
        }
        let statuses: &[&str] =
            if matches!(kind, "Approved" | "Denied" | "Failed") { &["True"] } else { &["False", "True", "Unknown"] };
        errors.required_one_of(item.child("status"), &condition.status, statuses);
        if !options.approved_and_denied && matches!(kind, "Approved" | "Denied") {
            approved |= kind == "Approved";
            denied |= kind == "Denied";
            if approved && denied {
                errors.invalid(&path, kind, "Approved and Denied conditions are mutually exclusive");
            }
        }
        if !options.duplicate_conditions && !seen.insert(kind) {
            errors.duplicate(item.child("type"), kind);
        }
    }
}

fn validate_update_with(
    new: &CertificateSigningRequest,
    old: &CertificateSigningRequest,
    options: Options,
) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_with(new, options, &mut errors);
    let path = Path::new("status").child("conditions");
    let of = |request, kind: &str| -> Vec<CertificateSigningRequestCondition> {
        conditions(request).iter().filter(|condition| condition.type_ == kind).cloned().collect()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if of(new, kind).len() < of(old, kind).len() {
            errors.forbidden(&path, format!("updates may not remove a condition of type \"{kind}\""));
        }
    }
    for kind in ["Approved", "Denied"].into_iter().filter(|_| !options.set_approval) {
        let (new, old) = (of(new, kind), of(old, kind));
        if new.len() > old.len() {
            errors.forbidden(&path, format!("updates may not add a condition of type \"{kind}\""));
        } else if new.len() == old.len() && new != old {
            let changes = diff(&old, &new);
            errors.forbidden(&path, format!("updates may not modify a condition of type \"{kind}\"\n{changes}"));
        }
    }
    if certificate(new) != certificate(old) {
        let path = Path::new("status").child("certificate");
        if !options.set_certificate {
            errors.forbidden(path, "updates may not set certificate content");
        } else if !certificate(old).is_empty() {
            errors.forbidden(path, "updates may not modify existing certificate content");
        }
    }
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors
}

fn validate_signer_name(name: &str, path: &Path, errors: &mut ErrorList) {
    const DOMAIN_MAX: usize = 253;
    /// A domain, a slash, and a name with its namespace.
    const LENGTH_MAX: usize = DOMAIN_MAX + 1 + (253 + 63 + 1);
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, signer] = parts.as_slice() else {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.invalid(path, name, detail);
        return;
    };
    if domain.len() > DOMAIN_MAX {
        errors.too_long(path, DOMAIN_MAX);
    }
    let labels: Vec<&str> = domain.split('.').collect();
    validate_labels(&labels, domain, names::is_dns1123_label, path, errors);
    if labels.len() < 2 {
        errors.invalid(path, *domain, "should be a domain with at least two segments separated by dots");
    }
    let labels: Vec<&str> = signer.split('.').collect();
    validate_labels(&labels, signer, names::is_dns1123_subdomain, path, errors);
    if name.len() > LENGTH_MAX {
        errors.too_long(path, LENGTH_MAX);
    }
}

/// Reports the first label that is wrong: more of the same would confuse.
fn validate_labels(labels: &[&str], part: &str, check: fn(&str) -> Vec<String>, path: &Path, errors: &mut ErrorList) {
    let Some((label, faults)) = labels.iter().map(|label| (label, check(label))).find(|(_, faults)| !faults.is_empty())
    else {
        return;
    };
    for fault in faults {
        errors.invalid(path, part, format!("validating label \"{label}\": {fault}"));
    }
}

struct PemBlock {
    kind: String,
    headers: bool,
    content: Vec<u8>,
}

/// The well-formed blocks of a PEM text, what is between them left out.
fn pem_blocks(text: &[u8]) -> Vec<PemBlock> {
    let text = String::from_utf8_lossy(text);
    let mut blocks = Vec::new();
    let mut open: Option<(String, Vec<&str>)> = None;
    for line in text.lines().map(str::trim_end) {
        if let Some(kind) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) {
            open = Some((kind.to_owned(), Vec::new()));
        } else if let Some(kind) = line.strip_prefix("-----END ").and_then(|rest| rest.strip_suffix("-----")) {
            if let Some((begun, lines)) = open.take().filter(|(begun, _)| begun == kind) {
                let (headers, body): (Vec<&str>, Vec<&str>) = lines.into_iter().partition(|line| line.contains(':'));
                if let Ok(content) = STANDARD.decode(body.concat()) {
                    blocks.push(PemBlock { kind: begun, headers: !headers.is_empty(), content });
                }
            }
        } else if let Some((_, lines)) = &mut open {
            lines.push(line);
        }
    }
    blocks
}

fn request_error(pem: &[u8]) -> Option<String> {
    let blocks = pem_blocks(pem);
    let Some(block) = blocks.first().filter(|block| block.kind == "CERTIFICATE REQUEST") else {
        return Some("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    let request = match X509CertificationRequest::from_der(&block.content) {
        Ok(([], request)) => request,
        Ok(_) => return Some("asn1: syntax error: trailing data".to_owned()),
        Err(error) => return Some(format!("asn1: structure error: {error}")),
    };
    match request.verify_signature() {
        // What cannot be verified here, a signer may know.
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => None,
        Err(_) => Some(match request.certification_request_info.subject_pki.parsed() {
            Ok(PublicKey::RSA(_)) => "crypto/rsa: verification error".to_owned(),
            Ok(PublicKey::EC(_)) => "x509: ECDSA verification failure".to_owned(),
            _ => "x509: Ed25519 verification failure".to_owned(),
        }),
    }
}

fn certificate_error(pem: &[u8]) -> Option<String> {
    // The tag of the sequence that a certificate is.
    const DER_SEQUENCE: u8 = 0x30;
    if pem.is_empty() {
        return None;
    }
    let blocks = pem_blocks(pem);
    if blocks.is_empty() {
        return Some("must contain at least one CERTIFICATE PEM block".to_owned());
    }
    blocks.iter().find_map(|block| {
        if block.kind != "CERTIFICATE" {
            Some(format!("only CERTIFICATE PEM blocks are allowed, found \"{}\"", block.kind))
        } else if block.headers {
            Some("no PEM block headers are permitted".to_owned())
        } else if block.content.is_empty() {
            Some("found CERTIFICATE PEM block containing 0 certificates".to_owned())
        } else if block.content.first() != Some(&DER_SEQUENCE) {
            Some("x509: malformed certificate".to_owned())
        } else {
            None
        }
    })
}
