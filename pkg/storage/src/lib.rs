//! A revisioned key-value store with watch and compaction: etcd's model behind one trait.
//!
//! **Invariant:** storage holds bytes and revisions. It knows no kinds, no JSON and no namespaces; a
//! key is a path.
//! **Invariant:** a watch started at revision R delivers every change after R exactly once and in order,
//! or ends with `Compacted`. It never skips.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

/// A point in the history of the whole store. 0 is before the first write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// A key and its value at the revision that last wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Bytes,
    pub mod_revision: Revision,
}

/// What must hold for a write to happen. All writes are conditional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The key does not exist.
    Absent,
    /// The key was last written at this revision.
    Unchanged(Revision),
}

/// The outcome of a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Durable at this revision.
    Done(Revision),
    /// The precondition did not hold: the key as it is now, or `None` if it does not exist.
    Failed(Option<KeyValue>),
}

/// One change, as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    pub revision: Revision,
    pub kind: ChangeKind,
    /// The value before the change, where there was one and it is not compacted.
    pub previous: Option<KeyValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Put(Bytes),
    Delete,
}

/// What a watch delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// The changes of one revision or more, in order; never empty. All changes of a revision come in one batch.
    Changes(Vec<Change>),
    /// Nothing changed up to and including this revision that was not delivered. Sent on request.
    Progress(Revision),
}

/// A page of keys in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub items: Vec<KeyValue>,
    /// The revision everything in `items` was read at.
    pub revision: Revision,
    /// Keys under the prefix after the last of `items`.
    pub remaining: u64,
}

/// Which part of the keys to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRange {
    pub prefix: String,
    /// List keys after this one.
    pub after: Option<String>,
    /// 0 for all.
    pub limit: usize,
    /// Read the store as it was at this revision; `None` for now.
    pub at: Option<Revision>,
}

/// How large the store is, for `/metrics` and for limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes of the database file or files on disk.
    pub on_disk: u64,
    /// Bytes of those that hold data.
    pub in_use: u64,
}

/// A revisioned key-value store.
///
/// # Guarantees
/// - A write is durable when its future resolves with `Done`, and every later read sees it.
/// - A failed precondition changes nothing and consumes no revision.
/// - Revisions increase by at least one per write, over restarts and crashes.
/// - `list` returns its items and the revision they were read at in one answer.
/// - `watch(prefix, from)` delivers each change after `from`, exactly once, in order; or the stream ends
///   with `StorageError::Compacted`. A watcher that cannot keep up gets `StorageError::SlowWatcher`
///   as its last item, never a gap.
/// - After an error no write was acknowledged; an `Unknown` outcome may or may not have happened.
///
/// # Assumptions
/// Keys are non-empty, UTF-8, at most 4 KiB, values at most 1.5 MiB (checked: `TooLarge`).
pub trait Storage: Send + Sync + 'static {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<KeyValue>, Revision), StorageError>>;

    fn list(&self, range: ListRange) -> BoxFuture<'_, Result<Page, StorageError>>;

    fn put(
        &self,
        key: String,
        value: Bytes,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<WriteOutcome, StorageError>>;

    fn delete(&self, key: String, unchanged: Revision) -> BoxFuture<'_, Result<WriteOutcome, StorageError>>;

    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<WatchStream, StorageError>>;

    /// The newest revision, read consistently.
    fn current_revision(&self) -> BoxFuture<'_, Result<Revision, StorageError>>;

    /// Forgets history up to and including `revision`: lists and watches from before it fail afterwards.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StorageError>>;

    fn size(&self) -> BoxFuture<'_, Result<Size, StorageError>>;
}

pub type WatchStream = BoxStream<'static, Result<WatchItem, StorageError>>;

/// Why a storage operation gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    #[error("revision {requested:?} is compacted, the oldest kept is {oldest:?}")]
    Compacted { requested: Revision, oldest: Revision },
    #[error("revision {requested:?} is in the future, the newest is {current:?}")]
    FutureRevision { requested: Revision, current: Revision },
    #[error("the watcher fell behind")]
    SlowWatcher,
    #[error("{what} of {size} bytes is over the limit of {limit}")]
    TooLarge { what: &'static str, size: usize, limit: usize },
    /// No space on disk, or over the configured size.
    #[error("the datastore is full")]
    Full(#[source] Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>),
    #[error("the datastore is corrupt: {detail}")]
    Corrupt { detail: String },
    #[error("the datastore is unavailable")]
    Unavailable(#[source] std::sync::Arc<dyn std::error::Error + Send + Sync>),
    /// The write may or may not have happened.
    #[error("the outcome of the write is unknown")]
    Unknown(#[source] std::sync::Arc<dyn std::error::Error + Send + Sync>),
    #[error("the datastore is closed")]
    Closed,
}
