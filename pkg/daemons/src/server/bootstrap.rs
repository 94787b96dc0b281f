//! What servers on one datastore have in common from their first moment: authorities and keys, and the settings they
//! must agree on. The first server puts them into the datastore, sealed by the cluster's token; each further one that
//! knows the token takes them from there.
//!
//! Inputs: the datastore, the token, `server/tls`. Outputs: the files of the authorities and keys; one key of the datastore.
//! Behaves as k3s' `pkg/cluster/bootstrap.go`, but that the key's name tells nothing of the token.
//!
//! Invariant: nothing goes into the datastore unsealed, or sealed by a secret that this machine has not kept.
//! Invariant: a file that exists is never changed. One that differs from the cluster's is an error, before any file is
//! written: two servers with different authorities would each refuse what the other signed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rkube_pki::tree::Tree;
use rkube_pki::{PkiError, files, sealed};
use rkube_storage::{Precondition, Storage, StorageError, WriteOutcome};
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::config::ServerConfig;

/// Outside of what the API server keeps, which is below `/registry/`.
const KEY: &str = "/rkube/bootstrap";
/// Keys first, as they cannot be made again. The public keys of service accounts come last and are not compared: an
/// administrator adds old ones while keys change.
const FILES: [&str; 8] = [
    "ca.key",
    "ca.crt",
    "front-proxy-ca.key",
    "front-proxy-ca.crt",
    "etcd/ca.key",
    "etcd/ca.crt",
    "sa.key",
    PUBLIC_KEYS,
];
const PUBLIC_KEYS: &str = "sa.pub";

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootstrapError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("asking the datastore for the cluster's authorities")]
    Storage(#[source] StorageError),
    #[error("the datastore holds a cluster already: give this server the token of another one with --token-file")]
    NoToken,
    #[error(
        "the token is not that of the cluster in the datastore: give this server the token of another one with --token-file"
    )]
    WrongToken,
    #[error("what the datastore holds under {KEY} cannot be read: {detail}")]
    Unreadable { detail: String },
    #[error(
        "{path} is not the cluster's: remove it to have it from the datastore. To give the cluster this one, stop all servers, \
         delete the key {KEY} in etcd and start this server first"
    )]
    Differs { path: PathBuf },
    #[error("{name} is {here} here and {there} on the cluster's other servers: they must agree")]
    Disagrees { name: String, here: String, there: String },
    #[error("removing {path}")]
    Discard {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What is sealed.
#[derive(Deserialize, Serialize)]
struct Common {
    /// Contents by name.
    files: BTreeMap<String, String>,
    /// Settings as text, by name.
    settings: BTreeMap<String, String>,
}

/// Makes `folder` hold the cluster's authorities and keys. Without a `secret`, only where no cluster is yet: then
/// `make_secret` makes one, and keeps it before anything depends on it.
pub(super) async fn share(
    storage: &dyn Storage,
    config: &ServerConfig,
    folder: &Path,
    secret: Option<String>,
    make_secret: impl FnOnce() -> Result<String, PkiError>,
    now: Timestamp,
) -> Result<(), BootstrapError> {
    let settings = settings(config);
    let draft = folder.with_extension("draft");
    discard(&draft)?;
    if let Some(sealed) = read(storage).await? {
        let secret = secret.ok_or(BootstrapError::NoToken)?;
        return adopt(&secret, &sealed, folder, &settings);
    }
    let (secret, is_ours) = match secret {
        Some(secret) => (secret, false),
        None => (make_secret()?, true),
    };
    // Authorities that nobody knows yet are made beside their place, so that another server may still be first.
    let is_new = present(folder)?.is_empty();
    let place = if is_new { draft.as_path() } else { folder };
    Tree::open(place, now)?;
    let common = Common { files: present(place)?, settings: settings.clone() };
    let text = serde_json::to_vec(&common).map_err(|error| BootstrapError::Unreadable { detail: error.to_string() })?;
    let sealed = sealed::seal(&secret, &text)?;
    let written = storage.put(KEY.to_owned(), sealed.into(), Precondition::Absent).await;
    match written {
        Ok(WriteOutcome::Done(_)) => info!("Put the cluster's authorities into the datastore, sealed by the token"),
        // Another server was first; or it was this one, and the answer was lost.
        Ok(WriteOutcome::Failed(_)) | Err(StorageError::Unknown(_)) => {
            let sealed =
                read(storage).await?.ok_or_else(|| BootstrapError::Unreadable { detail: "it is gone".to_owned() })?;
            discard(&draft)?;
            return match adopt(&secret, &sealed, folder, &settings) {
                Err(BootstrapError::WrongToken) if is_ours => Err(BootstrapError::NoToken),
                outcome => outcome,
            };
        }
        Err(error) => return Err(BootstrapError::Storage(error)),
    }
    write(folder, &common.files)?;
    discard(&draft)
}

/// What a start that was broken off left, or what another server was faster with.
fn discard(draft: &Path) -> Result<(), BootstrapError> {
    match std::fs::remove_dir_all(draft) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(BootstrapError::Discard { path: draft.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// What servers of one cluster cannot have different.
fn settings(config: &ServerConfig) -> BTreeMap<String, String> {
    [
        ("cluster-cidr", config.cluster_cidr.to_string()),
        ("service-cidr", config.service_cidr.to_string()),
        ("cluster-dns", config.cluster_dns.to_string()),
        ("cluster-domain", config.cluster_domain.clone()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

async fn read(storage: &dyn Storage) -> Result<Option<String>, BootstrapError> {
    let (found, _) = storage.get(KEY).await.map_err(BootstrapError::Storage)?;
    let text = found.map(|found| String::from_utf8(found.value.to_vec())).transpose();
    text.map_err(|_| BootstrapError::Unreadable { detail: "it is not text".to_owned() })
}

/// The files that are in `folder`, by name.
fn present(folder: &Path) -> Result<BTreeMap<String, String>, PkiError> {
    let mut all = BTreeMap::new();
    for name in FILES {
        if let Some(content) = files::read(&folder.join(name))? {
            all.insert(name.to_owned(), content);
        }
    }
    Ok(all)
}

fn adopt(secret: &str, sealed: &str, folder: &Path, settings: &BTreeMap<String, String>) -> Result<(), BootstrapError> {
    let unreadable = |detail: String| BootstrapError::Unreadable { detail };
    let text = sealed::unseal(secret, sealed).map_err(|error| unreadable(error.to_string()))?;
    let text = text.ok_or(BootstrapError::WrongToken)?;
    let common: Common = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
    let here = present(folder)?;
    for (name, content) in here.iter().filter(|(name, _)| *name != PUBLIC_KEYS) {
        // A key that the others do not have is the administrator's to keep where it is.
        if common.files.get(name).is_some_and(|there| there != content) {
            return Err(BootstrapError::Differs { path: folder.join(name) });
        }
    }
    let missing = |name: &&str| common.files.contains_key(*name) && !here.contains_key(*name);
    if FILES.iter().any(missing) {
        // Later, an administrator may change settings on one server after the other.
        for (name, value) in settings {
            let there = common.settings.get(name).filter(|there| *there != value);
            if let Some(there) = there {
                return Err(BootstrapError::Disagrees {
                    name: name.clone(),
                    here: value.clone(),
                    there: there.clone(),
                });
            }
        }
        write(folder, &common.files)?;
        info!("Took the cluster's authorities from the datastore");
    }
    Ok(())
}

/// Writes what is not there.
fn write(folder: &Path, contents: &BTreeMap<String, String>) -> Result<(), PkiError> {
    for name in FILES {
        let path = folder.join(name);
        if let Some(content) = contents.get(name)
            && files::read(&path)?.is_none()
        {
            let mode = if name.ends_with(".key") { files::PRIVATE } else { files::PUBLIC };
            files::write(&path, content.as_bytes(), mode)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
