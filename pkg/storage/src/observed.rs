//! A store that remembers whether its last operation could be done, for health checks.
//!
//! Invariant: only failures of the store itself count. That a revision is compacted or a key too long says nothing
//! about its health.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use crate::{
    KeyValue, ListRange, Page, Precondition, Revision, Size, Storage, StorageError, WatchStream, WriteOutcome,
};

/// What the last operation said. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Option<String>>>);

impl Health {
    /// Why the last operation that could tell failed; `None` if it did not.
    pub fn failure(&self) -> Option<String> {
        self.0.lock().clone()
    }

    fn note<T>(&self, outcome: Result<T, StorageError>) -> Result<T, StorageError> {
        match &outcome {
            Ok(_) => *self.0.lock() = None,
            Err(
                error @ (StorageError::Full(_)
                | StorageError::Corrupt { .. }
                | StorageError::Unavailable(_)
                | StorageError::Unknown(_)
                | StorageError::Closed),
            ) => *self.0.lock() = Some(error.to_string()),
            Err(_) => {}
        }
        outcome
    }
}

/// Passes everything on to another store.
pub struct Observed {
    inner: Arc<dyn Storage>,
    health: Health,
}

impl Observed {
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, health: Health::default() }
    }

    pub fn health(&self) -> Health {
        self.health.clone()
    }

    fn noted<'a, T: 'a>(
        &'a self,
        operation: BoxFuture<'a, Result<T, StorageError>>,
    ) -> BoxFuture<'a, Result<T, StorageError>> {
        operation.map(|outcome| self.health.note(outcome)).boxed()
    }
}

impl Storage for Observed {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<KeyValue>, Revision), StorageError>> {
        self.noted(self.inner.get(key))
    }

    fn list(&self, range: ListRange) -> BoxFuture<'_, Result<Page, StorageError>> {
        self.noted(self.inner.list(range))
    }

    fn put(
        &self,
        key: String,
        value: Bytes,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        self.noted(self.inner.put(key, value, precondition))
    }

    fn delete(&self, key: String, unchanged: Revision) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        self.noted(self.inner.delete(key, unchanged))
    }

    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<WatchStream, StorageError>> {
        self.noted(self.inner.watch(prefix, from))
    }

    fn request_progress(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        self.noted(self.inner.request_progress())
    }

    fn current_revision(&self) -> BoxFuture<'_, Result<Revision, StorageError>> {
        self.noted(self.inner.current_revision())
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StorageError>> {
        self.noted(self.inner.compact(revision))
    }

    fn size(&self) -> BoxFuture<'_, Result<Size, StorageError>> {
        self.noted(self.inner.size())
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        self.inner.close()
    }
}
