//! The embedded store on a disk that fails: crashes at every operation, lost and torn writes, errors, a full
//! disk, flipped bits. What it answers is compared with a model.

mod faults;
mod sim;
mod space;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::sim::SimDisk;
use super::{EmbeddedOptions, EmbeddedStorage};
use crate::{ChangeKind, ListRange, Precondition, Revision, Storage, StorageError, WatchItem, WriteOutcome};

/// Small files, so that a short workload rolls over, checkpoints, cleans and removes.
fn small() -> EmbeddedOptions {
    EmbeddedOptions { segment_bytes: Some(4096), history_changes: 40, ..EmbeddedOptions::default() }
}

fn open(disk: &SimDisk, options: EmbeddedOptions) -> Result<EmbeddedStorage, StorageError> {
    EmbeddedStorage::open_on(Arc::new(disk.clone()), options)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operation {
    Put(String, Bytes),
    Delete(String),
    Compact,
}

/// A workload: the same for a seed each time.
fn operations(seed: u64, count: usize) -> Vec<Operation> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|n| {
            let key = format!("/registry/things/{}", rng.random_range(0..10));
            match rng.random_range(0..10) {
                0..7 => {
                    let value = vec![b'a' + (n % 26) as u8; rng.random_range(1..900)];
                    Operation::Put(key, value.into())
                }
                7 | 8 => Operation::Delete(key),
                _ => Operation::Compact,
            }
        })
        .collect()
}

/// What the store must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    values: BTreeMap<String, (Revision, Bytes)>,
    changes: Vec<(Revision, String, Option<Bytes>)>,
    revision: Revision,
}

impl Model {
    fn apply(&mut self, operation: &Operation, revision: Revision) {
        let (key, value) = match operation {
            Operation::Put(key, value) => (key.clone(), Some(value.clone())),
            Operation::Delete(key) => (key.clone(), None),
            Operation::Compact => return,
        };
        match &value {
            Some(value) => self.values.insert(key.clone(), (revision, value.clone())),
            None => self.values.remove(&key),
        };
        self.changes.push((revision, key, value));
        self.revision = revision;
    }

    /// Does the operation; the model changes only when the store says that it is done.
    async fn run(&mut self, storage: &EmbeddedStorage, operation: &Operation) -> Result<(), StorageError> {
        let outcome = match operation {
            Operation::Put(key, value) => {
                let precondition = match self.values.get(key) {
                    Some((revision, _)) => Precondition::Unchanged(*revision),
                    None => Precondition::Absent,
                };
                storage.put(key.clone(), value.clone(), precondition).await?
            }
            Operation::Delete(key) => {
                let Some((revision, _)) = self.values.get(key) else { return Ok(()) };
                storage.delete(key.clone(), *revision).await?
            }
            Operation::Compact => return storage.compact(Revision(self.revision.0.saturating_sub(5))).await,
        };
        let WriteOutcome::Done(revision) = outcome else {
            panic!("{operation:?} on {:?}: {outcome:?}", self.values.keys())
        };
        assert!(revision > self.revision, "{revision:?} after {:?}", self.revision);
        self.apply(operation, revision);
        Ok(())
    }

    /// What the model would be had the operation happened.
    fn with(&self, operation: &Operation) -> Self {
        let mut other = self.clone();
        other.apply(operation, other.revision.next());
        other
    }

    /// Reads everything and compares. `Err` only where the store itself said that it cannot tell.
    async fn compare(&self, storage: &EmbeddedStorage) -> Result<bool, StorageError> {
        let page = storage.list(ListRange::default()).await?;
        let found: BTreeMap<_, _> =
            page.items.into_iter().map(|item| (item.key, (item.mod_revision, item.value))).collect();
        if found != self.values || page.revision < self.revision {
            return Ok(false);
        }
        let from = match storage.watch(String::new(), Revision(0)).await {
            Err(StorageError::Compacted { oldest, .. }) => oldest,
            Err(error) => return Err(error),
            Ok(_) => Revision(0),
        };
        let expected: Vec<_> = self.changes.iter().filter(|(revision, ..)| *revision > from).cloned().collect();
        Ok(history(storage, from).await? == expected)
    }
}

/// All changes since `from`.
async fn history(
    storage: &EmbeddedStorage,
    from: Revision,
) -> Result<Vec<(Revision, String, Option<Bytes>)>, StorageError> {
    let mut watch = storage.watch(String::new(), from).await?;
    storage.request_progress().await?;
    let mut changes = Vec::new();
    while let Some(item) = watch.next().await {
        match item? {
            WatchItem::Progress(_) => break,
            WatchItem::Changes(batch) => changes.extend(batch.into_iter().map(|change| {
                let value = match change.kind {
                    ChangeKind::Put(value) => Some(value),
                    ChangeKind::Delete => None,
                };
                (change.revision, change.key, value)
            })),
        }
    }
    Ok(changes)
}
