//! Certificate signing requests: what they ask for, and making them.

use std::net::IpAddr;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::{Leaf, PkiError};

/// Bytes of PEM a request may have; a request with hundreds of names fits.
const REQUEST_SIZE_MAX: usize = 64 * 1024;

/// What a request asks for, its signature verified. Signing copies the subject and the names; usages,
/// lifetime and constraints come from the signer, never from the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningRequest {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<IpAddr>,
    pub email_addresses: Vec<String>,
    pub uris: Vec<String>,
    pub(crate) subject: Vec<u8>,
    pub(crate) public_key_info: Vec<u8>,
    /// The content of the subject alternative name extension, byte for byte.
    pub(crate) subject_alt_names: Option<Vec<u8>>,
}

impl SigningRequest {
    /// Reads and verifies a PEM `CERTIFICATE REQUEST`.
    pub fn parse(pem: &[u8]) -> Result<Self, PkiError> {
        let bad = |detail: &str| PkiError::Request { detail: detail.to_owned() };
        if pem.len() > REQUEST_SIZE_MAX {
            return Err(bad("it is too large"));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem)
            .map_err(|_| bad("PEM block type must be CERTIFICATE REQUEST"))?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|error| bad(&error.to_string()))?;
        if !rest.is_empty() {
            return Err(bad("it has trailing data"));
        }
        request.verify_signature().map_err(|_| bad("its signature does not fit its key"))?;
        let info = &request.certification_request_info;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().map(str::to_owned).map_err(|_| bad("its subject is not text"))
        };
        let mut parsed = Self {
            common_name: info.subject.iter_common_name().last().map(text).transpose()?.unwrap_or_default(),
            organizations: info.subject.iter_organization().map(text).collect::<Result<_, _>>()?,
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            email_addresses: Vec::new(),
            uris: Vec::new(),
            subject: info.subject.as_raw().to_vec(),
            public_key_info: info.subject_pki.raw.to_vec(),
            subject_alt_names: None,
        };
        for extension in requested_extensions(&request) {
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
            parsed.subject_alt_names = Some(extension.value.to_vec());
            for name in &names.general_names {
                parsed.add_name(name)?;
            }
        }
        Ok(parsed)
    }

    fn add_name(&mut self, name: &GeneralName<'_>) -> Result<(), PkiError> {
        let bad = |detail: &str| PkiError::Request { detail: detail.to_owned() };
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::RFC822Name(name) => self.email_addresses.push((*name).to_owned()),
            GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let address = <[u8; 4]>::try_from(*bytes)
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                    .map_err(|_| bad("an IP address has a wrong length"))?;
                self.ip_addresses.push(address);
            }
            _ => return Err(bad("it asks for a name of an unsupported type")),
        }
        Ok(())
    }
}

fn requested_extensions<'a>(
    request: &'a X509CertificationRequest<'a>,
) -> impl Iterator<Item = &'a x509_parser::extensions::X509Extension<'a>> {
    use x509_parser::cri_attributes::ParsedCriAttribute;
    request.certification_request_info.iter_attributes().flat_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(requested) => requested.extensions.as_slice(),
        _ => &[],
    })
}

/// A new key and a request for a certificate over it.
pub struct NewRequest {
    pub request_pem: String,
    pub key_pem: String,
}

/// Makes a key and a request. `leaf` gives names; usages and lifetime are the signer's business.
pub fn request(leaf: &Leaf) -> Result<NewRequest, PkiError> {
    let bad = |error: rcgen::Error| PkiError::Generate { what: "signing request", detail: error.to_string() };
    let key = KeyPair::generate().map_err(bad)?;
    request_for(leaf, key)
}

/// Makes a request over a key that exists: renewal after a crash keeps what was asked for.
pub fn request_with_key(leaf: &Leaf, key_pem: &str) -> Result<NewRequest, PkiError> {
    let key = KeyPair::from_pem(key_pem)
        .map_err(|error| PkiError::Key { what: "private key".to_owned(), detail: error.to_string() })?;
    request_for(leaf, key)
}

fn request_for(leaf: &Leaf, key: KeyPair) -> Result<NewRequest, PkiError> {
    let bad = |error: rcgen::Error| PkiError::Generate { what: "signing request", detail: error.to_string() };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if leaf.organizations.len() > 1 {
        let detail = "a request of ours names at most one organization".to_owned();
        return Err(PkiError::Request { detail });
    }
    for organization in &leaf.organizations {
        params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
    }
    params.distinguished_name.push(DnType::CommonName, leaf.common_name.as_str());
    for name in &leaf.dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(bad)?));
    }
    params.subject_alt_names.extend(leaf.ip_addresses.iter().copied().map(SanType::IpAddress));
    let request_pem = params.serialize_request(&key).and_then(|request| request.pem()).map_err(bad)?;
    Ok(NewRequest { request_pem, key_pem: key.serialize_pem() })
}
