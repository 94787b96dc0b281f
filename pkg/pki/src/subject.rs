//! Whom a client certificate names.

use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::PkiError;

/// The part of a certificate's subject that Kubernetes reads: the user with its uid, and the groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// Values of Kubernetes' own attribute for the uid of a user; more than one is for the reader to refuse.
    pub uids: Vec<String>,
}

/// The attribute, in the arc of the CNCF.
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);

/// Reads the subject of a certificate. Whether the certificate is good is not looked at.
pub fn subject(certificate: &CertificateDer<'_>) -> Result<Subject, PkiError> {
    let what = "the client certificate";
    let bad = |detail: String| PkiError::Certificate { what: what.to_owned(), detail };
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| bad(error.to_string()))?;
    subject_of(&parsed, what)
}

/// The same of a certificate that was read; `what` names it in errors.
pub(crate) fn subject_of(certificate: &X509Certificate<'_>, what: &str) -> Result<Subject, PkiError> {
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        let bad = || PkiError::Certificate { what: what.to_owned(), detail: "its subject is not text".to_owned() };
        attribute.as_str().map(str::to_owned).map_err(|_| bad())
    };
    let subject = certificate.subject();
    Ok(Subject {
        common_name: subject.iter_common_name().last().map(text).transpose()?.unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect::<Result<_, _>>()?,
        uids: subject.iter_by_oid(&UID).map(text).collect::<Result<_, _>>()?,
    })
}
