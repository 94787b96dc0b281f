//! A revisioned key-value store with watch and compaction: etcd's model behind one trait.
//!
//! Backends: [`embedded`] (default), [`etcd`], and [`memory`] (tests). One conformance suite runs over all.
//!
//! **Invariant:** storage holds bytes and revisions. It knows no kinds, no JSON and no namespaces; a
//! key is a path.
//! **Invariant:** a watch started at revision R delivers every change after R exactly once and in order,
//! or ends with `Compacted` or `SlowWatcher`. It never skips.

pub mod embedded;
mod error;
pub mod etcd;
mod index;
pub mod memory;
pub mod observed;
mod types;
mod watch;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

pub use error::StorageError;
pub use types::{
    Change, ChangeKind, KeyValue, ListRange, MAX_KEY_BYTES, MAX_VALUE_BYTES, Page, Precondition, Revision, Size,
    WatchItem, WriteOutcome,
};

/// The items of a watch. Ends after the first error; dropping it ends the watch.
pub type WatchStream = BoxStream<'static, Result<WatchItem, StorageError>>;

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
/// - A write whose future is dropped may or may not happen; it never happens in part.
///
/// # Assumptions
/// Keys are non-empty, UTF-8, at most 4 KiB, values at most 1.5 MiB (checked: `EmptyKey`, `TooLarge`).
pub trait Storage: Send + Sync + 'static {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<KeyValue>, Revision), StorageError>>;

    /// Fails with `Compacted` before the compacted revision, with `FutureRevision` after the newest. Much is best
    /// read in pages of some hundred keys at one revision: memory for values is then used again.
    fn list(&self, range: ListRange) -> BoxFuture<'_, Result<Page, StorageError>>;

    fn put(
        &self,
        key: String,
        value: Bytes,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<WriteOutcome, StorageError>>;

    fn delete(&self, key: String, unchanged: Revision) -> BoxFuture<'_, Result<WriteOutcome, StorageError>>;

    /// Fails with `Compacted` before the compacted revision, with `FutureRevision` after the newest.
    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<WatchStream, StorageError>>;

    /// Makes every open watch say how far it has delivered: each sends `Progress` at this moment's newest
    /// revision or later, after the changes up to it. Requests that come close together are answered once.
    fn request_progress(&self) -> BoxFuture<'_, Result<(), StorageError>>;

    /// The newest revision, read consistently.
    fn current_revision(&self) -> BoxFuture<'_, Result<Revision, StorageError>>;

    /// Forgets history up to and including `revision`: lists at a revision before it and watches from a
    /// revision before it fail afterwards. A revision that is compacted already is no error.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StorageError>>;

    fn size(&self) -> BoxFuture<'_, Result<Size, StorageError>>;

    /// Finishes what waits and lets go of what the store holds on this machine; it fails with `Closed` afterwards.
    /// A store elsewhere needs no goodbye.
    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
