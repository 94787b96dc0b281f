//! Opens the datastore the configuration names.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rkube_apimachinery::clock::SharedClock;
use rkube_storage::embedded::{EmbeddedOptions, EmbeddedStorage};
use rkube_storage::etcd::{ClientIdentity, EtcdOptions, EtcdStorage};
use rkube_storage::{Storage, StorageError};

use crate::config::Datastore;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DatastoreError {
    #[error("opening the datastore in {folder}")]
    Embedded {
        folder: PathBuf,
        #[source]
        source: StorageError,
    },
    #[error("the datastore in {folder} is damaged: restore the folder from a backup; nothing in it was changed")]
    Damaged {
        folder: PathBuf,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("etcd at {endpoints} cannot be used: start it, or correct --datastore-endpoint and its certificates")]
    Etcd {
        endpoints: String,
        #[source]
        source: StorageError,
    },
    #[error("reading {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What it is, for a person.
pub(crate) fn name(datastore: &Datastore) -> String {
    match datastore {
        Datastore::Embedded => "embedded".to_owned(),
        Datastore::Etcd { endpoints, .. } => format!("etcd at {}", endpoints.join(",")),
    }
}

pub(crate) async fn open(
    datastore: &Datastore,
    folder: &Path,
    clock: &SharedClock,
) -> Result<Arc<dyn Storage>, DatastoreError> {
    match datastore {
        Datastore::Embedded => {
            let store = EmbeddedStorage::open(folder, EmbeddedOptions::default()).await;
            let failed = |source| match source {
                StorageError::Corrupt { .. } => {
                    DatastoreError::Damaged { folder: folder.to_owned(), source: Box::new(source) }
                }
                source => DatastoreError::Embedded { folder: folder.to_owned(), source },
            };
            Ok(Arc::new(store.map_err(failed)?))
        }
        Datastore::Etcd { endpoints, ca_file, cert_file, key_file } => {
            let identity = match (read(cert_file)?, read(key_file)?) {
                (Some(certificate), Some(key)) => Some(ClientIdentity { certificate, key }),
                _ => None,
            };
            let options =
                EtcdOptions { endpoints: endpoints.clone(), ca: read(ca_file)?, identity, clock: clock.clone() };
            let failed = |source| DatastoreError::Etcd { endpoints: endpoints.join(","), source };
            let store = EtcdStorage::connect(options).await.map_err(failed)?;
            // The connection is made by the first question.
            store.current_revision().await.map_err(failed)?;
            Ok(Arc::new(store))
        }
    }
}

/// Whether what is stored is at fault, rather than the way to it.
pub(crate) fn is_damage(error: &(dyn Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.filter_map(|cause| cause.downcast_ref()).any(|cause| matches!(cause, StorageError::Corrupt { .. }))
}

fn read(path: &Option<PathBuf>) -> Result<Option<Vec<u8>>, DatastoreError> {
    let Some(path) = path else { return Ok(None) };
    std::fs::read(path).map(Some).map_err(|source| DatastoreError::File { path: path.clone(), source })
}
