//! A certificate authority: loads or makes its key pair and signs leaves.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber, SigningKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;

use crate::csr::SigningRequest;
use crate::{PkiError, der, files};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// As kubeadm: an authority lasts ten years, a leaf one.
pub const AUTHORITY_LIFETIME: Duration = DAY.saturating_mul(3650);
pub const LEAF_LIFETIME: Duration = DAY.saturating_mul(365);
/// Clocks of nodes differ; a certificate is valid a little before it was made.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// What a leaf certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The user name, for clients.
    pub common_name: String,
    /// The groups, for clients.
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<IpAddr>,
    pub server: bool,
    pub client: bool,
    pub lifetime: Duration,
}

impl Leaf {
    pub fn client(common_name: &str, organizations: &[&str]) -> Self {
        Self {
            common_name: common_name.to_owned(),
            organizations: organizations.iter().map(|&name| name.to_owned()).collect(),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            server: false,
            client: true,
            lifetime: LEAF_LIFETIME,
        }
    }

    pub fn server(common_name: &str, dns_names: Vec<String>, ip_addresses: Vec<IpAddr>) -> Self {
        Self { dns_names, ip_addresses, server: true, client: false, ..Self::client(common_name, &[]) }
    }
}

/// A certificate (with its chain) and its private key, as PEM.
#[derive(Clone)]
pub struct CertifiedKey {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for CertifiedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertifiedKey").finish_non_exhaustive()
    }
}

impl CertifiedKey {
    /// The chain, leaf first.
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>, PkiError> {
        certificates(&self.certificate_pem, "certificate")
    }

    pub fn key(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| PkiError::Key { what: "private key".to_owned(), detail: error.to_string() })
    }
}

/// All certificates in a PEM text; none is an error.
pub fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let bad = |detail: String| PkiError::Certificate { what: what.to_owned(), detail };
    let all = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(error.to_string()))?;
    if all.is_empty() {
        return Err(bad("it holds no PEM certificate".to_owned()));
    }
    Ok(all)
}

/// Signs certificates, if its key is here. Cheap to clone.
///
/// An authority without a key is an administrator's who signs elsewhere: what it signed is verified and used.
#[derive(Clone)]
pub struct CertificateAuthority {
    certificate_pem: Arc<str>,
    signer: Option<Arc<Signer>>,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Makes a self-signed authority.
    pub fn generate(common_name: &str, now: Timestamp) -> Result<(Self, CertifiedKey), PkiError> {
        let bad = |error: rcgen::Error| PkiError::Generate { what: "certificate authority", detail: error.to_string() };
        let key = KeyPair::generate().map_err(bad)?;
        let certificate_pem = self_signed(common_name, &key, now)?;
        let pair = CertifiedKey { certificate_pem, key_pem: key.serialize_pem() };
        Ok((Self::from_pem(&pair, common_name)?, pair))
    }

    /// An authority that exists: ours or the administrator's. A chain is allowed; its first certificate signs.
    pub fn from_pem(pair: &CertifiedKey, what: &str) -> Result<Self, PkiError> {
        let bad = |detail: String| PkiError::Certificate { what: what.to_owned(), detail };
        let chain = certificates(&pair.certificate_pem, what)?;
        let parsed = authority_certificate(&chain, what)?;
        let bad_key = |detail: String| PkiError::Key { what: what.to_owned(), detail };
        let key = KeyPair::from_pem(&pair.key_pem).map_err(|error| bad_key(error.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(bad("it does not belong to the private key".to_owned()));
        }
        let algorithm =
            algorithm_of(&key).ok_or_else(|| bad_key("only ECDSA P-256/P-384, Ed25519 and RSA sign".to_owned()))?;
        let key_id = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let signer = Signer {
            algorithm,
            subject: parsed.subject().as_raw().to_vec(),
            key_id,
            not_after: parsed.validity().not_after.to_datetime(),
            key,
        };
        Ok(Self { certificate_pem: pair.certificate_pem.as_str().into(), signer: Some(Arc::new(signer)) })
    }

    /// An authority whose key is elsewhere.
    pub fn external(certificate_pem: &str, what: &str) -> Result<Self, PkiError> {
        authority_certificate(&certificates(certificate_pem, what)?, what)?;
        Ok(Self { certificate_pem: certificate_pem.into(), signer: None })
    }

    /// Whether its key is here.
    pub fn can_sign(&self) -> bool {
        self.signer.is_some()
    }

    /// Loads the authority at `certificate` and `key`, or makes one there if there is neither. A certificate alone
    /// is an authority whose key is elsewhere.
    pub fn load_or_generate(
        certificate: &Path,
        key: &Path,
        common_name: &str,
        now: Timestamp,
    ) -> Result<Self, PkiError> {
        let what = certificate.display().to_string();
        match (files::read(certificate)?, files::read(key)?) {
            (Some(certificate_pem), Some(key_pem)) => Self::from_pem(&CertifiedKey { certificate_pem, key_pem }, &what),
            (None, None) => {
                let (authority, pair) = Self::generate(common_name, now)?;
                // The key first: it is what cannot be made again (see the next arm).
                files::write(key, pair.key_pem.as_bytes(), files::PRIVATE)?;
                files::write(certificate, pair.certificate_pem.as_bytes(), files::PUBLIC)?;
                Ok(authority)
            }
            // A crash between the two writes left a key alone: certify it.
            (None, Some(key_pem)) => {
                let bad =
                    |error: rcgen::Error| PkiError::Key { what: key.display().to_string(), detail: error.to_string() };
                let pair = KeyPair::from_pem(&key_pem).map_err(bad)?;
                let certificate_pem = self_signed(common_name, &pair, now)?;
                files::write(certificate, certificate_pem.as_bytes(), files::PUBLIC)?;
                Self::from_pem(&CertifiedKey { certificate_pem, key_pem }, &what)
            }
            (Some(certificate_pem), None) => Self::external(&certificate_pem, &what),
        }
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Makes a key and a certificate for it.
    pub fn issue(&self, leaf: &Leaf, now: Timestamp) -> Result<CertifiedKey, PkiError> {
        let bad = |error: rcgen::Error| PkiError::Generate { what: "certificate", detail: error.to_string() };
        let key = KeyPair::generate().map_err(bad)?;
        let content = Content {
            subject: der::name(&leaf.common_name, &leaf.organizations),
            public_key_info: key.subject_public_key_info(),
            subject_alt_names: der::general_names(&leaf.dns_names, &leaf.ip_addresses),
            usages: Usages {
                digital_signature: true,
                key_encipherment: true,
                server: leaf.server,
                client: leaf.client,
            },
        };
        let certificate_pem = self.sign_content(&content, now, leaf.lifetime)?;
        Ok(CertifiedKey { certificate_pem, key_pem: key.serialize_pem() })
    }

    /// Signs a request. The subject and the names are the request's, all else is given here.
    pub fn sign(
        &self,
        request: &SigningRequest,
        usages: Usages,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        let content = Content {
            subject: request.subject.clone(),
            public_key_info: request.public_key_info.clone(),
            subject_alt_names: request.subject_alt_names.clone(),
            usages,
        };
        self.sign_content(&content, now, lifetime)
    }

    fn sign_content(&self, content: &Content, now: Timestamp, lifetime: Duration) -> Result<String, PkiError> {
        let signer = self.signer.as_ref().ok_or(PkiError::NoSigningKey)?;
        let (not_before, not_after) = validity(now, lifetime)?;
        // A leaf that outlives its authority is one nobody can verify.
        let not_after = not_after.min(signer.not_after);
        let serial = serial_number()?;
        let algorithm = signer.algorithm;
        let to_be_signed = der::ToBeSigned {
            serial: &serial,
            algorithm,
            issuer: &signer.subject,
            not_before,
            not_after,
            subject: &content.subject,
            public_key_info: &content.public_key_info,
            extensions: der::Extensions {
                digital_signature: content.usages.digital_signature,
                key_encipherment: content.usages.key_encipherment,
                server: content.usages.server,
                client: content.usages.client,
                authority_key_id: signer.key_id.as_deref(),
                subject_alt_names: content.subject_alt_names.clone(),
            },
        }
        .encode();
        let signature = signer
            .key
            .sign(&to_be_signed)
            .map_err(|error| PkiError::Generate { what: "certificate", detail: error.to_string() })?;
        let certificate = der::certificate(&to_be_signed, algorithm, &signature);
        Ok(pem("CERTIFICATE", &certificate))
    }
}

/// The first certificate of a chain, if it is one that may sign.
fn authority_certificate<'a>(
    chain: &'a [CertificateDer<'static>],
    what: &str,
) -> Result<X509Certificate<'a>, PkiError> {
    let bad = |detail: String| PkiError::Certificate { what: what.to_owned(), detail };
    let certificate = chain.first().ok_or_else(|| bad("it is empty".to_owned()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| bad(error.to_string()))?;
    if !parsed.is_ca() {
        return Err(bad("it is not a certificate authority".to_owned()));
    }
    Ok(parsed)
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usages {
    pub digital_signature: bool,
    pub key_encipherment: bool,
    pub server: bool,
    pub client: bool,
}

struct Content {
    subject: Vec<u8>,
    public_key_info: Vec<u8>,
    subject_alt_names: Option<Vec<u8>>,
    usages: Usages,
}

/// The authority's key with what of its certificate goes into each leaf.
struct Signer {
    key: KeyPair,
    algorithm: &'static [u8],
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_after: OffsetDateTime,
}

fn algorithm_of(key: &KeyPair) -> Option<&'static [u8]> {
    let known = key.algorithm();
    if known == &rcgen::PKCS_ECDSA_P256_SHA256 {
        Some(der::algorithm::ECDSA_P256_SHA256)
    } else if known == &rcgen::PKCS_ECDSA_P384_SHA384 {
        Some(der::algorithm::ECDSA_P384_SHA384)
    } else if known == &rcgen::PKCS_ED25519 {
        Some(der::algorithm::ED25519)
    } else if known == &rcgen::PKCS_RSA_SHA256 {
        Some(der::algorithm::RSA_SHA256)
    } else {
        None
    }
}

/// One PEM block, 64 characters a line.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

fn self_signed(common_name: &str, key: &KeyPair, now: Timestamp) -> Result<String, PkiError> {
    let bad = |error: rcgen::Error| PkiError::Generate { what: "certificate authority", detail: error.to_string() };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    (params.not_before, params.not_after) = validity(now, AUTHORITY_LIFETIME)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial_number()?));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
    // Go clients verify the name of whatever server they meet; kubeadm puts the authority's own name here.
    params.subject_alt_names = vec![SanType::DnsName(common_name.try_into().map_err(bad)?)];
    Ok(params.self_signed(key).map_err(bad)?.pem())
}

/// From a little before `now` for `lifetime`.
fn validity(now: Timestamp, lifetime: Duration) -> Result<(OffsetDateTime, OffsetDateTime), PkiError> {
    let bad = |_| PkiError::Generate { what: "certificate", detail: "the clock is out of range".to_owned() };
    let now = OffsetDateTime::from_unix_timestamp(now.as_second()).map_err(bad)?;
    Ok((now - BACKDATE, now + lifetime))
}

/// 126 random bits: unique without a counter, positive, and never with a leading zero.
fn serial_number() -> Result<[u8; 16], PkiError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| PkiError::Generate { what: "serial number", detail: "the system has no randomness".to_owned() })?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(bytes)
}
