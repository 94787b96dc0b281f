//! A store in memory, for tests and for simulations: everything the others do, but nothing survives.
//!
//! The reference for the conformance suite: each operation is one critical section.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::RwLock;

use crate::index::{Index, Past, Visible};
use crate::types::check_limits;
use crate::watch::{History, Hub, Watcher};
use crate::{
    Change, ChangeKind, KeyValue, ListRange, Page, Precondition, Revision, Size, Storage, StorageError, WatchStream,
    WriteOutcome,
};

/// How many changes a watcher that catches up reads at once.
const REPLAY_BUDGET: usize = 4 * 1024;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    index: RwLock<Index<Bytes>>,
    hub: Arc<Hub>,
}

impl MemoryStorage {
    pub fn new() -> Self {
        Self::default()
    }

    fn write(&self, key: &str, value: Option<Bytes>, precondition: Precondition) -> Result<WriteOutcome, StorageError> {
        check_limits(key, value.as_ref().map_or(0, Bytes::len))?;
        let mut index = self.shared.index.write();
        let existing = index.get(key);
        if !precondition.holds(existing.map(|(revision, _)| revision)) {
            let existing = existing.map(|(mod_revision, value)| KeyValue {
                key: key.to_owned(),
                value: value.clone(),
                mod_revision,
            });
            return Ok(WriteOutcome::Failed(existing));
        }
        let revision = index.current().next();
        index.apply(Arc::from(key), revision, value.clone());
        self.shared.hub.publish(&change(key, revision, value));
        Ok(WriteOutcome::Done(revision))
    }
}

impl Storage for MemoryStorage {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<KeyValue>, Revision), StorageError>> {
        let index = self.shared.index.read();
        let found = index.get(key).map(|(mod_revision, value)| KeyValue {
            key: key.to_owned(),
            value: value.clone(),
            mod_revision,
        });
        ready(Ok((found, index.current()))).boxed()
    }

    fn list(&self, range: ListRange) -> BoxFuture<'_, Result<Page, StorageError>> {
        let read = self.shared.index.read().page(&range);
        let page = read.map(|(items, revision, remaining)| Page {
            items: items.into_iter().map(key_value).collect(),
            revision,
            remaining,
        });
        ready(page).boxed()
    }

    fn put(
        &self,
        key: String,
        value: Bytes,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        async move { self.write(&key, Some(value), precondition) }.boxed()
    }

    fn delete(&self, key: String, unchanged: Revision) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        async move { self.write(&key, None, Precondition::Unchanged(unchanged)) }.boxed()
    }

    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<WatchStream, StorageError>> {
        let readable = self.shared.index.read().check_readable(from);
        let stream = readable.map(|()| self.shared.hub.watch(prefix, from, self.shared.clone()));
        ready(stream).boxed()
    }

    fn request_progress(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        let index = self.shared.index.read();
        self.shared.hub.request_progress(index.current());
        ready(Ok(())).boxed()
    }

    fn current_revision(&self) -> BoxFuture<'_, Result<Revision, StorageError>> {
        ready(Ok(self.shared.index.read().current())).boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StorageError>> {
        let mut index = self.shared.index.write();
        let compacted = index.compact(revision);
        index.drop_history(usize::MAX);
        ready(compacted).boxed()
    }

    fn size(&self) -> BoxFuture<'_, Result<Size, StorageError>> {
        ready(Ok(Size::default())).boxed()
    }
}

impl History for Shared {
    fn replay(
        self: Arc<Self>,
        watcher: Arc<Watcher>,
        after: Revision,
    ) -> BoxFuture<'static, Result<(Vec<Change>, Revision), StorageError>> {
        let index = self.index.read();
        let replayed = index.replay(watcher.prefix(), after, REPLAY_BUDGET).map(|replay| {
            if replay.through == index.current() {
                watcher.caught_up();
            }
            let changes = replay.changes.into_iter().map(|Past { key, revision, value }| change(&key, revision, value));
            (changes.collect(), replay.through)
        });
        ready(replayed).boxed()
    }
}

fn key_value(visible: Visible<Bytes>) -> KeyValue {
    KeyValue { key: visible.key.as_ref().to_owned(), value: visible.value, mod_revision: visible.revision }
}

fn change(key: &str, revision: Revision, value: Option<Bytes>) -> Change {
    Change { key: key.to_owned(), revision, kind: value.map_or(ChangeKind::Delete, ChangeKind::Put) }
}
