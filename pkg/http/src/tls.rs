//! TLS configurations, swapped while running, and the check of client certificates.
//!
//! A server asks for a client certificate and lets the handshake succeed with any, or none, as long as
//! the client holds the key of the one it shows. Whether a certificate means anything is the
//! authenticator's question, so a stale one is answered `401`, not by a broken connection.
//! Behaves as `k8s.io/apiserver/pkg/server/secure_serving.go`, v1.36 (`tls.RequestClientCert`).

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

/// A server's TLS configuration. Connections made after a `store` use the new one.
pub type SharedServerConfig = Arc<ArcSwap<ServerConfig>>;
/// A client's TLS configuration. Connections made after a `store` use the new one.
pub type SharedClientConfig = Arc<ArcSwap<ClientConfig>>;

/// Why a TLS configuration or a peer's certificate is no good.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("using the certificate and its key")]
    Certificate(#[source] rustls::Error),
    #[error("no TLS version in common with the crypto provider")]
    Versions(#[source] rustls::Error),
    #[error("adding a certificate authority")]
    Authority(#[source] rustls::Error),
    #[error("building the client certificate verifier")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    #[error("verifying the client certificate")]
    Untrusted(#[source] rustls::Error),
    #[error("the client showed no certificate")]
    NoCertificate,
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

/// Certificate authorities as a root store.
pub fn roots<'a>(
    authorities: impl IntoIterator<Item = &'a CertificateDer<'static>>,
) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for authority in authorities {
        store.add(authority.clone()).map_err(TlsError::Authority)?;
    }
    Ok(store)
}

/// A server's configuration: HTTP/2 and HTTP/1.1, a client certificate asked for but not demanded.
/// `client_authorities` are only named to clients, so that they can choose a certificate.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_authorities: &RootCertStore,
) -> Result<ServerConfig, TlsError> {
    let verifier = AskForCertificate { hints: client_authorities.subjects() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)
        .map_err(TlsError::Certificate)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A client's configuration, with its own certificate where it has one.
pub fn client_config(
    authorities: RootCertStore,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?
        .with_root_certificates(authorities);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(TlsError::Certificate),
    }
}

/// A client's configuration that accepts any server certificate: for a backend whose certificate nobody
/// can vouch for, such as a pod reached through `https:` in a proxy path. It has no identity to give away.
pub fn unverified_client_config() -> Result<ClientConfig, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyServer))
        .with_no_client_auth();
    Ok(config)
}

/// Loads a certificate and key pair, checking that they belong together.
pub fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(TlsError::Certificate)
}

/// Checks the certificates clients show against certificate authorities.
#[derive(Clone, Debug)]
pub struct ClientVerifier(Arc<dyn ClientCertVerifier>);

impl ClientVerifier {
    pub fn new(authorities: RootCertStore) -> Result<Self, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider())
            .build()
            .map_err(TlsError::Verifier)?;
        Ok(Self(verifier))
    }

    /// Verifies a chain, leaf first, at `now` (seconds since 1970): signatures, validity, client usage.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now_unix_seconds: u64) -> Result<(), TlsError> {
        let (leaf, intermediates) = chain.split_first().ok_or(TlsError::NoCertificate)?;
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_unix_seconds));
        self.0.verify_client_cert(leaf, intermediates, now).map_err(TlsError::Untrusted)?;
        Ok(())
    }
}

#[derive(Debug)]
struct AskForCertificate {
    hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for AskForCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct AcceptAnyServer;

impl rustls::client::danger::ServerCertVerifier for AcceptAnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &rustls_pki_types::ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
