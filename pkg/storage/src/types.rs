//! What goes into a store and comes out of it: keys, values, revisions, pages and changes.

use bytes::Bytes;

use crate::StorageError;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4 * 1024;
/// The longest value, in bytes; etcd's default limit for a request.
pub const MAX_VALUE_BYTES: usize = 3 * 512 * 1024;

/// A point in the history of the whole store. 0 is before the first write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

impl Revision {
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    pub(crate) fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

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

impl Precondition {
    /// Whether it holds for a key that was last written at `written`, `None` if it does not exist.
    pub(crate) fn holds(self, written: Option<Revision>) -> bool {
        match self {
            Self::Absent => written.is_none(),
            Self::Unchanged(revision) => written == Some(revision),
        }
    }
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
    /// Every change up to and including this revision has been delivered. Sent on request.
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

/// Refuses keys and values that no backend takes, so that all of them refuse the same.
pub(crate) fn check_limits(key: &str, value_bytes: usize) -> Result<(), StorageError> {
    if key.is_empty() {
        return Err(StorageError::EmptyKey);
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(StorageError::TooLarge { what: "key", size: key.len(), limit: MAX_KEY_BYTES });
    }
    if value_bytes > MAX_VALUE_BYTES {
        return Err(StorageError::TooLarge { what: "value", size: value_bytes, limit: MAX_VALUE_BYTES });
    }
    Ok(())
}
