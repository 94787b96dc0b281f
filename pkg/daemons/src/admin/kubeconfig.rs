//! A kubeconfig for a user, with a certificate of the cluster's authority.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use rkube_pki::kubeconfig::{self, User};
use rkube_pki::tree::Tree;
use rkube_pki::{KubeconfigFile, Leaf};

use super::AdminError;
use crate::config::Paths;

/// As upstream's signer: shorter ones are of no use to anybody.
const TTL_MIN: SignedDuration = SignedDuration::from_mins(10);

#[derive(Clone, Debug)]
pub struct NewKubeconfig {
    /// Of the server; its authority signs.
    pub data_dir: PathBuf,
    pub user: String,
    pub groups: Vec<String>,
    pub ttl: SignedDuration,
    /// `None` for what the administrator's kubeconfig says.
    pub server: Option<String>,
    pub admin_kubeconfig: PathBuf,
}

/// The kubeconfig as text; it holds a private key.
pub fn create(wanted: &NewKubeconfig, now: Timestamp) -> Result<String, AdminError> {
    if wanted.user.is_empty() || wanted.groups.iter().any(String::is_empty) {
        return Err(AdminError::Invalid("--user and --group must not be empty".to_owned()));
    }
    if let Some(reserved) = [&wanted.user].into_iter().find(|user| user.starts_with("system:")) {
        let text = format!("--user {reserved:?}: names that begin with system: are the cluster's own");
        return Err(AdminError::Invalid(text));
    }
    if wanted.ttl < TTL_MIN {
        return Err(AdminError::Invalid("--ttl must be at least 10m".to_owned()));
    }
    let folder = Paths::new(&wanted.data_dir).tls();
    if !folder.join("ca.crt").exists() {
        return Err(AdminError::NoCertificates { path: folder });
    }
    let server = match &wanted.server {
        Some(server) if server.starts_with("https://") => server.clone(),
        Some(server) => return Err(AdminError::Invalid(format!("--server {server:?} is not an https:// URL"))),
        None => KubeconfigFile::load(&wanted.admin_kubeconfig)?.server,
    };
    let tree = Tree::open(&folder, now)?;
    let groups: Vec<&str> = wanted.groups.iter().map(String::as_str).collect();
    let lifetime = wanted.ttl.unsigned_abs();
    let pair = tree.cluster.issue(&Leaf { lifetime, ..Leaf::client(&wanted.user, &groups) }, now)?;
    Ok(kubeconfig::render("rkube", &server, tree.cluster.certificate_pem(), &wanted.user, &User::Certificate(pair)))
}
