//! Certificate authorities, leaf certificates, service account keys, kubeconfig files and join tokens.
//!
//! kubeadm's model: a cluster CA, a front-proxy CA, an etcd CA and a service account key. Files that
//! exist are honoured and never overwritten, but for leaves of our own that are about to expire.
//!
//! **Invariant:** private keys are written with mode 0600 and never logged.

pub mod authority;
pub mod bundle;
pub mod csr;
mod der;
pub mod files;
pub mod join_token;
pub mod kubeconfig;
mod kubeconfig_file;
pub mod sealed;
pub mod service_account;
pub mod subject;
pub mod tree;

pub use authority::{CertificateAuthority, CertifiedKey, Leaf, Usages};
pub use kubeconfig_file::KubeconfigFile;
pub use subject::{Subject, subject};
pub use tree::not_after;

use std::path::PathBuf;

use jiff::Timestamp;

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
    #[error("restore the authority {path} and its key from a backup")]
    Authority {
        path: PathBuf,
        #[source]
        source: Box<PkiError>,
    },
    #[error("put a good certificate and key at {path}, or remove both to have new ones made")]
    Leaf {
        path: PathBuf,
        #[source]
        source: Box<PkiError>,
    },
    #[error("{path} expired on {at}: replace it and its key, or remove both to have new ones made")]
    Expired { path: PathBuf, at: Timestamp },
    #[error("{path} is not valid before {from} and the clock says {now}: set the clock")]
    NotYetValid { path: PathBuf, from: Timestamp, now: Timestamp },
    #[error(
        "{leaf} cannot be made, because the key of its authority is not here: put the key beside {authority}, or a \
         certificate and key that this authority signed at {leaf}"
    )]
    ExternalAuthority { leaf: PathBuf, authority: &'static str },
    #[error("the key of the certificate authority is not here")]
    NoSigningKey,
    #[error("{path} was signed by an authority whose key is not here; whoever made it must renew it")]
    NotOurs { path: PathBuf },
    #[error("there is no certificate {path}")]
    Missing { path: PathBuf },
    #[error("kubeconfig {path}: {detail}")]
    Kubeconfig { path: PathBuf, detail: String },
    #[error("certificate signing request: {detail}")]
    Request { detail: String },
    #[error("generating {what}: {detail}")]
    Generate { what: &'static str, detail: String },
    #[error("sealed text: {detail}")]
    Sealed { detail: String },
    #[error("{detail}")]
    Token { detail: String },
}
