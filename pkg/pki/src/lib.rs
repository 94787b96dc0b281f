//! Certificate authorities, leaf certificates, service account keys, kubeconfig files and join tokens.
//!
//! kubeadm's model: a cluster CA, a front-proxy CA, an etcd CA and a service account key. Files that
//! exist are honoured and never overwritten, but for leaves of our own that are about to expire.
//!
//! **Invariant:** private keys are written with mode 0600 and never logged.

pub mod authority;
pub mod csr;
mod der;
pub mod files;
pub mod join_token;
pub mod kubeconfig;
pub mod service_account;
pub mod subject;
pub mod tree;

pub use authority::{CertificateAuthority, CertifiedKey, Leaf, Usages};
pub use subject::{Subject, subject};
pub use tree::not_after;

use std::path::PathBuf;

/// Why a key or certificate could not be read, made or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("writing {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} is not a usable certificate: {detail}")]
    Certificate { what: String, detail: String },
    #[error("{what} is not a usable private key: {detail}")]
    Key { what: String, detail: String },
    #[error("{certificate} and {key} do not belong together")]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("certificate signing request: {detail}")]
    Request { detail: String },
    #[error("generating {what}: {detail}")]
    Generate { what: &'static str, detail: String },
    #[error("{detail}")]
    Token { detail: String },
}
