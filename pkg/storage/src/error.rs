//! Why a storage operation gave no answer.

use std::error::Error;
use std::sync::Arc;

use crate::Revision;

/// Why a storage operation gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    #[error("revision {} is compacted, the oldest kept is {}", requested.0, oldest.0)]
    Compacted { requested: Revision, oldest: Revision },
    #[error("revision {} is in the future, the newest is {}", requested.0, current.0)]
    FutureRevision { requested: Revision, current: Revision },
    #[error("the watcher fell behind")]
    SlowWatcher,
    #[error("the key is empty")]
    EmptyKey,
    #[error("{what} of {size} bytes is over the limit of {limit}")]
    TooLarge { what: &'static str, size: usize, limit: usize },
    /// No space on disk, or over the configured size. The write did not happen.
    #[error("the datastore is full")]
    Full(#[source] Option<Arc<dyn Error + Send + Sync>>),
    #[error("the datastore is corrupt: {detail}")]
    Corrupt { detail: String },
    /// The write did not happen; a later one may.
    #[error("the datastore is unavailable")]
    Unavailable(#[source] Arc<dyn Error + Send + Sync>),
    /// The write may or may not have happened.
    #[error("the outcome of the write is unknown")]
    Unknown(#[source] Arc<dyn Error + Send + Sync>),
    /// Another process has the files open.
    #[error("the datastore in {path} is in use by process {holder}")]
    InUse { path: String, holder: String },
    #[error("the datastore is closed")]
    Closed,
}
