//! The multi-version index behind the in-process stores: which key had which value at which revision.
//!
//! Inputs: writes in revision order. Outputs: values now and at past revisions, changes since a revision.
//! `V` is the value itself (memory) or the place where it lies (embedded).
//!
//! The life of one key, with puts at 3 and 5, a delete at 7 and a put at 9:
//!
//! ```text
//! versions of the key     [3 put] [5 put] [7 deleted] [9 put]
//! after compact(5)        [5 put] [7 deleted] [9 put]      what was overwritten by 5 is gone
//! after compact(7)        [9 put]                          a deletion leaves nothing once it is compacted
//! ```
//!
//! **Invariant:** `history` holds exactly the changes after `dropped`, in order of revision.
//! **Invariant:** of every key the versions needed to read it at any revision from `dropped` on are kept.
//! **Invariant:** `dropped <= compacted <= current`. Compaction is announced at once and carried out in
//! bounded steps.

use std::cmp::Ordering;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::{ListRange, Revision, StorageError};

#[derive(Clone, Debug)]
pub(crate) struct Version<V> {
    pub(crate) revision: Revision,
    /// `None` where the key was deleted.
    pub(crate) value: Option<V>,
}

/// The versions of one key: the newest in place, since most keys have no other.
#[derive(Clone, Debug)]
pub(crate) struct Versions<V> {
    pub(crate) newest: Version<V>,
    /// Oldest first.
    pub(crate) older: Vec<Version<V>>,
}

impl<V> Versions<V> {
    fn at(&self, revision: Revision) -> Option<&Version<V>> {
        if self.newest.revision <= revision {
            return Some(&self.newest);
        }
        let upto = self.older.partition_point(|version| version.revision <= revision);
        upto.checked_sub(1).and_then(|last| self.older.get(last))
    }

    fn at_mut(&mut self, revision: Revision) -> Option<&mut V> {
        if self.newest.revision == revision {
            return self.newest.value.as_mut();
        }
        let at = self.older.binary_search_by_key(&revision, |version| version.revision).ok()?;
        self.older.get_mut(at)?.value.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Version<V>> {
        self.older.iter().chain(std::iter::once(&self.newest))
    }
}

/// A key as it is visible at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Visible<V> {
    pub(crate) key: Arc<str>,
    pub(crate) revision: Revision,
    pub(crate) value: V,
}

/// A change found in history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Past<V> {
    pub(crate) key: Arc<str>,
    pub(crate) revision: Revision,
    pub(crate) value: Option<V>,
}

/// What a bounded walk over history found.
#[derive(Debug)]
pub(crate) struct Replay<V> {
    pub(crate) changes: Vec<Past<V>>,
    /// Everything up to here was looked at.
    pub(crate) through: Revision,
}

#[derive(Debug)]
pub(crate) struct Index<V> {
    keys: BTreeMap<Arc<str>, Versions<V>>,
    history: VecDeque<(Revision, Arc<str>)>,
    current: Revision,
    compacted: Revision,
    dropped: Revision,
    /// Revisions that someone is reading at in several steps, and how many do.
    pins: BTreeMap<Revision, usize>,
}

impl<V> Default for Index<V> {
    fn default() -> Self {
        Self {
            keys: BTreeMap::new(),
            history: VecDeque::new(),
            current: Revision(0),
            compacted: Revision(0),
            dropped: Revision(0),
            pins: BTreeMap::new(),
        }
    }
}

impl<V: Clone> Index<V> {
    pub(crate) fn current(&self) -> Revision {
        self.current
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(crate) fn get(&self, key: &str) -> Option<(Revision, &V)> {
        let newest = &self.keys.get(key)?.newest;
        newest.value.as_ref().map(|value| (newest.revision, value))
    }

    /// Checks that the store can be read at `revision`.
    pub(crate) fn check_readable(&self, revision: Revision) -> Result<(), StorageError> {
        if revision > self.current {
            return Err(StorageError::FutureRevision { requested: revision, current: self.current });
        }
        if revision < self.compacted {
            return Err(StorageError::Compacted { requested: revision, oldest: self.compacted });
        }
        Ok(())
    }

    /// Adds a change at a revision after `current`.
    pub(crate) fn apply(&mut self, key: Arc<str>, revision: Revision, value: Option<V>) {
        debug_assert!(revision > self.current, "changes come in order");
        self.current = revision;
        let version = Version { revision, value };
        match self.keys.entry(key) {
            Entry::Occupied(mut entry) => {
                self.history.push_back((revision, entry.key().clone()));
                let versions = entry.get_mut();
                versions.older.push(std::mem::replace(&mut versions.newest, version));
            }
            Entry::Vacant(entry) => {
                self.history.push_back((revision, entry.key().clone()));
                entry.insert(Versions { newest: version, older: Vec::new() });
            }
        }
    }

    /// The value that `key` got at `revision`, if that version is still kept.
    pub(crate) fn version(&self, key: &str, revision: Revision) -> Option<&V> {
        let version = self.keys.get(key)?.at(revision)?;
        version.value.as_ref().filter(|_| version.revision == revision)
    }

    /// The value that `key` got at `revision`, to be changed in place.
    pub(crate) fn version_mut(&mut self, key: &str, revision: Revision) -> Option<&mut V> {
        self.keys.get_mut(key)?.at_mut(revision)
    }

    /// Keeps `revision` readable until it is unpinned. The caller has checked that it is readable now.
    pub(crate) fn pin(&mut self, revision: Revision) {
        *self.pins.entry(revision).or_default() += 1;
    }

    pub(crate) fn unpin(&mut self, revision: Revision) {
        if let Some(count) = self.pins.get_mut(&revision) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&revision);
            }
        }
    }

    /// The keys after `after` with all their versions.
    pub(crate) fn versions_after(&self, after: Option<&str>) -> impl Iterator<Item = (&Arc<str>, &Versions<V>)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.keys.range::<str, _>((start, Bound::Unbounded))
    }

    /// The revision up to which history must be forgotten so that no more than `max` changes are left.
    pub(crate) fn excess(&self, max: usize) -> Option<Revision> {
        let excess = self.history.len().checked_sub(max)?.checked_sub(1)?;
        self.history.get(excess).map(|(revision, _)| *revision).filter(|revision| *revision > self.compacted)
    }

    /// The keys of `range` as they were at `at`, at most `max` of them.
    pub(crate) fn scan(&self, prefix: &str, after: Option<&str>, at: Revision, max: usize) -> Vec<Visible<V>> {
        self.visible(prefix, after, at)
            .take(max)
            .map(|(key, version, value)| Visible { key: key.clone(), revision: version.revision, value: value.clone() })
            .collect()
    }

    pub(crate) fn count(&self, prefix: &str, after: Option<&str>, at: Revision) -> u64 {
        self.visible(prefix, after, at).count() as u64
    }

    /// A whole page in one step.
    pub(crate) fn page(&self, range: &ListRange) -> Result<(Vec<Visible<V>>, Revision, u64), StorageError> {
        let at = range.at.unwrap_or(self.current);
        self.check_readable(at)?;
        let max = if range.limit == 0 { usize::MAX } else { range.limit };
        let items = self.scan(&range.prefix, range.after.as_deref(), at, max);
        let remaining = match items.last() {
            Some(last) if items.len() == max => self.count(&range.prefix, Some(&last.key), at),
            _ => 0,
        };
        Ok((items, at, remaining))
    }

    fn visible<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        at: Revision,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Version<V>, &'a V)> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.keys
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(move |(key, versions)| {
                let version = versions.at(at)?;
                version.value.as_ref().map(|value| (key, version, value))
            })
    }

    /// The changes after `after` under `prefix`. Looks at no more than `budget` changes.
    pub(crate) fn replay(&self, prefix: &str, after: Revision, budget: usize) -> Result<Replay<V>, StorageError> {
        self.check_readable(after)?;
        let start = self.history.partition_point(|(revision, _)| *revision <= after);
        let mut changes = Vec::new();
        let mut through = self.current;
        for (looked_at, (revision, key)) in self.history.range(start..).enumerate() {
            if looked_at >= budget {
                through = revision.before();
                break;
            }
            if !key.starts_with(prefix) {
                continue;
            }
            if let Some(past) = self.past(key, *revision) {
                changes.push(past);
            }
        }
        Ok(Replay { changes, through })
    }

    fn past(&self, key: &Arc<str>, revision: Revision) -> Option<Past<V>> {
        let version = self.keys.get(key)?.at(revision)?;
        debug_assert_eq!(version.revision, revision, "history and versions agree");
        Some(Past { key: key.clone(), revision, value: version.value.clone() })
    }

    /// Announces a compaction. `drop_history` carries it out.
    pub(crate) fn compact(&mut self, revision: Revision) -> Result<(), StorageError> {
        if revision > self.current {
            return Err(StorageError::FutureRevision { requested: revision, current: self.current });
        }
        self.compacted = self.compacted.max(revision);
        Ok(())
    }

    /// Drops what compaction has made unreachable, looking at no more than `budget` changes. Returns the
    /// values that were dropped and whether there is more to do.
    pub(crate) fn drop_history(&mut self, budget: usize) -> (Vec<V>, bool) {
        let limit = self.droppable();
        let mut dropped = Vec::new();
        for _ in 0..budget {
            match self.history.front() {
                Some((revision, _)) if *revision <= limit => {}
                _ => {
                    self.dropped = self.dropped.max(limit);
                    return (dropped, false);
                }
            }
            if let Some((revision, key)) = self.history.pop_front() {
                self.dropped = revision;
                self.forget_before(&key, revision, &mut dropped);
            }
        }
        (dropped, true)
    }

    /// Whether `drop_history` would find something.
    pub(crate) fn has_droppable(&self) -> bool {
        self.history.front().is_some_and(|(revision, _)| *revision <= self.droppable())
    }

    fn droppable(&self) -> Revision {
        self.pins.keys().next().map_or(self.compacted, |pinned| self.compacted.min(*pinned))
    }

    /// Forgets the versions of `key` that the change at `revision` replaced, and that change too where it
    /// was a deletion.
    fn forget_before(&mut self, key: &Arc<str>, revision: Revision, dropped: &mut Vec<V>) {
        let Some(versions) = self.keys.get_mut(key) else { return };
        if versions.newest.revision <= revision {
            dropped.extend(versions.older.drain(..).filter_map(|version| version.value));
            if versions.newest.value.is_none() {
                self.keys.remove(key);
            } else {
                versions.older.shrink_to_fit();
            }
            return;
        }
        let upto = versions.older.partition_point(|version| version.revision < revision);
        dropped.extend(versions.older.drain(..upto).filter_map(|version| version.value));
        if versions.older.first().is_some_and(|first| first.revision == revision && first.value.is_none()) {
            versions.older.remove(0);
        }
    }
}

/// An index while it is put together from what was on disk. Adding the same change twice is adding it once.
#[derive(Debug, Default)]
pub(crate) struct Rebuild<V> {
    keys: BTreeMap<Arc<str>, Versions<V>>,
}

impl<V: Clone> Rebuild<V> {
    /// From keys in order.
    pub(crate) fn new(keys: Vec<(Arc<str>, Versions<V>)>) -> Self {
        Self { keys: keys.into_iter().collect() }
    }

    pub(crate) fn change(&mut self, key: &str, revision: Revision, value: Option<V>) {
        let version = Version { revision, value };
        let Some(versions) = self.keys.get_mut(key) else {
            self.keys.insert(Arc::from(key), Versions { newest: version, older: Vec::new() });
            return;
        };
        match revision.cmp(&versions.newest.revision) {
            Ordering::Greater => versions.older.push(std::mem::replace(&mut versions.newest, version)),
            Ordering::Equal => versions.newest = version,
            Ordering::Less => match versions.older.binary_search_by_key(&revision, |older| older.revision) {
                Ok(at) => {
                    if let Some(known) = versions.older.get_mut(at) {
                        *known = version;
                    }
                }
                Err(at) => versions.older.insert(at, version),
            },
        }
    }

    pub(crate) fn relocate(&mut self, key: &str, revision: Revision, value: V) {
        if let Some(known) = self.keys.get_mut(key).and_then(|versions| versions.at_mut(revision)) {
            *known = value;
        }
    }

    /// The index with what compaction has made unreachable taken out.
    pub(crate) fn finish(mut self, current: Revision, compacted: Revision) -> Index<V> {
        let mut history = Vec::new();
        self.keys.retain(|key, versions| {
            if versions.newest.revision <= compacted {
                versions.older = Vec::new();
                return versions.newest.value.is_some();
            }
            let after = versions.older.partition_point(|version| version.revision <= compacted);
            let readable_at_compacted =
                after.checked_sub(1).and_then(|at| versions.older.get(at)).is_some_and(|last| last.value.is_some());
            versions.older.drain(..if readable_at_compacted { after - 1 } else { after });
            let changes = versions.iter().filter(|version| version.revision > compacted);
            history.extend(changes.map(|version| (version.revision, key.clone())));
            true
        });
        history.sort_unstable_by_key(|(revision, _)| *revision);
        Index {
            keys: self.keys,
            history: history.into(),
            current,
            compacted,
            dropped: compacted,
            pins: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests;
