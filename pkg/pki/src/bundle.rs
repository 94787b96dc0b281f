//! Bundles of certificates: the authorities of several servers as one text.
//!
//! Behaves as `combineCertLists` of `pkg/controlplane/controller/clusterauthenticationtrust`, v1.36.

use std::time::Duration;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use crate::{PkiError, authority};

/// Clocks of servers differ: a certificate is dropped this long after its end.
const EXPIRED_SLACK: Duration = Duration::from_secs(5 * 60);

/// All certificates of the texts, each once and in order, without those that have expired. Empty texts hold none.
pub fn combine(bundles: &[&str], now: Timestamp) -> Result<String, PkiError> {
    let mut kept: Vec<CertificateDer<'static>> = Vec::new();
    for bundle in bundles.iter().filter(|bundle| !bundle.is_empty()) {
        for certificate in authority::certificates(bundle, "the bundle")? {
            let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
                .map_err(|error| PkiError::Certificate { what: "the bundle".to_owned(), detail: error.to_string() })?;
            let end = parsed.validity().not_after.timestamp();
            let limit = (now - EXPIRED_SLACK).as_second();
            if end > limit && !kept.contains(&certificate) {
                kept.push(certificate);
            }
        }
    }
    Ok(kept.iter().map(|certificate| authority::pem("CERTIFICATE", certificate)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CertificateAuthority;

    #[test]
    fn each_certificate_is_kept_once_until_it_expires() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let year = Duration::from_secs(365 * 24 * 3600);
        let make = |name: &str, at: Timestamp| CertificateAuthority::generate(name, at).unwrap().1.certificate_pem;
        let (one, two, old) = (make("one", now), make("two", now), make("old", now - year * 11));
        let both = combine(&[&one, "", &two], now).unwrap();
        assert_eq!(both, format!("{one}{two}").replace("\r", ""));
        assert_eq!(combine(&[&both, &two, &old], now).unwrap(), both);
        assert_eq!(combine(&[&old], now).unwrap(), "");
        assert!(combine(&["garbage"], now).is_err());
    }
}
