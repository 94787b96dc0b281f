//! What an administrator does with `rkube` beside running it: tokens, certificates, kubeconfigs, checking a machine,
//! and leaving it.

pub mod certificates;
pub mod check;
mod connect;
pub mod kubeconfig;
pub mod tokens;
pub mod uninstall;

use std::path::PathBuf;

/// Signed, as clocks compare.
pub use jiff::SignedDuration as Duration;
use rkube_client::ClientError;
use rkube_http::tls::TlsError;
use rkube_network::node::NodeNetworkError;
use rkube_pki::PkiError;

/// Why a command failed; each says what to do where that is not plain.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{server} is not a URL of a server")]
    Url { server: String },
    #[error("{action} at {server}: is the server running, and is this its address?")]
    Unreachable {
        action: &'static str,
        server: String,
        #[source]
        source: ClientError,
    },
    #[error("{action}")]
    Refused {
        action: &'static str,
        #[source]
        source: ClientError,
    },
    #[error("{0}")]
    Invalid(String),
    #[error("looking at the node's network")]
    Network(#[source] Box<NodeNetworkError>),
    #[error("there is no bootstrap token {id}")]
    NoToken { id: String },
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("there are no certificates in {path}: is this the --data-dir of a server or an agent?")]
    NoCertificates { path: PathBuf },
}

impl AdminError {
    /// What a request's failure means: an answer of the server, or no server.
    fn request(action: &'static str, server: &str) -> impl FnOnce(ClientError) -> Self {
        let server = server.to_owned();
        move |source| match source.status() {
            Some(_) => Self::Refused { action, source },
            None => Self::Unreachable { action, server, source },
        }
    }
}
