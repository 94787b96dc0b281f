//! The watch cache of one resource: its objects, its recent history and its watchers.
//!
//! The feed (one task for all caches) applies changes in storage order; everybody else reads. Readers
//! clone a snapshot and walk it without a lock.
//!
//! **Invariant:** the tree holds exactly the changes up to `Objects::revision`, and the feed's progress is
//! published only after every cache has them. So a snapshot taken after reading progress P is the state
//! at `max(P, revision)`.
//! **Invariant:** objects change before watchers are told. A watch that starts from a snapshot ignores
//! events up to the snapshot's revision, so it sees each change once.
//! Lock order: `dispatch` before `objects`.
//!
//! Behaves as `apiserver/pkg/storage/cacher`, v1.36.

mod announced;
pub(crate) mod dispatch;
pub(crate) mod feed;
pub(crate) mod tree;

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rkube_api::StoredObject;
use rkube_api::object::Parts;
use rkube_api::resource::SelectableField;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::status::ApiStatus;
use rkube_storage::{Change, ChangeKind};
use serde_json::Value;

use crate::encode::{self, EncodeError, Encoded, Picker};
pub(crate) use announced::Announcement;
use announced::Announcements;
use dispatch::{Amount, Dispatch, Event, EventKind, Subscription};
use tree::Tree;

/// History is kept this long, as kube-apiserver's (`eventFreshDuration`), ...
const HISTORY_AGE_MAX: Duration = Duration::from_secs(75);
/// ... and at most this many events and bytes per resource, ...
const HISTORY_MAX: Amount = Amount { events: 64 * 1024, bytes: 32 * 1024 * 1024 };
/// ... but never mind how old it is when there is no more of it, so that who watches what rarely changes need not
/// list again.
const HISTORY_MIN: Amount = Amount { events: 100, bytes: 256 * 1024 };

/// Snapshots kept for the next pages of lists that were begun. Older ones are read from storage.
const SNAPSHOTS_MAX: usize = 16;
const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(120);
/// A snapshot goes once this many bytes of objects were replaced since, which it may be the last to hold: a namespace
/// that is emptied would otherwise stay in memory as it was before.
const SNAPSHOT_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// See the module.
pub(crate) struct Cache {
    /// `/registry/pods/`.
    prefix: String,
    namespaced: bool,
    fields: Vec<SelectableField>,
    picker: Picker,
    clock: SharedClock,
    objects: RwLock<Objects>,
    dispatch: Mutex<Dispatch>,
    snapshots: Mutex<VecDeque<Kept>>,
    announcements: Announcements,
    /// Bytes of the objects' JSON.
    bytes: AtomicUsize,
    /// Changes that came from storage.
    received: AtomicU64,
    /// Bytes of JSON of all objects that were ever replaced or deleted.
    replaced: AtomicU64,
}

#[derive(Default)]
struct Objects {
    tree: Tree,
    revision: u64,
    /// Namespaces seen, so that objects share their text.
    namespaces: HashSet<Arc<str>>,
}

/// The state of a resource at one revision.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) tree: Tree,
    pub(crate) revision: u64,
}

struct Kept {
    snapshot: Snapshot,
    at: Duration,
    /// `Cache::replaced` when it was taken, or a little later.
    replaced: u64,
}

impl Cache {
    pub(crate) fn new(prefix: String, namespaced: bool, fields: &[SelectableField], clock: SharedClock) -> Self {
        Self {
            prefix,
            namespaced,
            fields: fields.to_vec(),
            picker: Picker::new(fields),
            clock,
            objects: RwLock::default(),
            dispatch: Mutex::default(),
            snapshots: Mutex::default(),
            announcements: Announcements::default(),
            bytes: AtomicUsize::new(0),
            received: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
        }
    }

    /// Whether this cache serves a resource with these fields as well.
    pub(crate) fn fits(&self, namespaced: bool, fields: &[SelectableField]) -> bool {
        self.namespaced == namespaced && self.fields == fields
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The storage key of an object.
    pub(crate) fn storage_key(&self, key: &ObjectKey) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The object key in a storage key, if it has the right form.
    fn object_key(&self, storage_key: &str) -> Option<ObjectKey> {
        let rest = storage_key.strip_prefix(self.prefix.as_str())?;
        let key = match (self.namespaced, rest.split_once('/')) {
            (true, Some((namespace, name))) => ObjectKey::new(self.namespace(namespace), name),
            (false, None) => ObjectKey::cluster(rest),
            _ => return None,
        };
        (!key.name.is_empty()).then_some(key)
    }

    fn namespace(&self, name: &str) -> Arc<str> {
        let known = self.objects.read().namespaces.get(name).cloned();
        known.unwrap_or_else(|| Arc::from(name))
    }

    /// Brings an object into stored form.
    pub(crate) fn encode(&self, value: &mut Value) -> Result<Encoded, EncodeError> {
        self.encode_with_owners(value, None)
    }

    /// As `encode`, of what `StoredObject::value_beside_owners` gave.
    pub(crate) fn encode_with_owners(&self, value: &mut Value, owners: Option<&[u8]>) -> Result<Encoded, EncodeError> {
        let bytes = encode::encode_with_owners(value, owners)?;
        Ok(Encoded { bytes, selection: self.picker.pick_tree(value) })
    }

    /// To be called before `stored` is written.
    pub(crate) fn announce(&self, key: &ObjectKey, stored: Encoded) -> Announcement<'_> {
        self.announcements.announce(key, stored)
    }

    /// An object that would be written.
    pub(crate) fn written(&self, key: ObjectKey, revision: u64, stored: Encoded) -> Result<StoredObject, EncodeError> {
        let json = encode::with_revision(&stored.bytes, revision)?;
        Ok(StoredObject::new(key, revision, json, stored.selection))
    }

    /// As `encode`, of an object of which nothing but the metadata changed, and of that nothing that is selected by.
    pub(crate) fn encode_parts(&self, existing: &StoredObject, parts: &mut Parts) -> Result<Encoded, EncodeError> {
        let metadata = parts.object.get_mut("metadata").and_then(Value::as_object_mut).ok_or(EncodeError::Shape)?;
        let mut metadata = std::mem::take(metadata);
        let bytes = encode::encode_parts(parts, &mut metadata)?;
        Ok(Encoded { bytes, selection: existing.selection.clone() })
    }

    /// An object as it is in storage.
    pub(crate) fn decode(&self, key: ObjectKey, revision: u64, stored: &Bytes) -> Result<StoredObject, EncodeError> {
        let json = encode::with_revision(stored, revision)?;
        let selection = self.picker.pick(&json)?;
        Ok(StoredObject::new(key, revision, json, selection))
    }

    /// As `decode`, for a storage key. Logs what cannot be read: one broken value must not hide the rest.
    pub(crate) fn decode_stored(&self, storage_key: &str, revision: u64, stored: &Bytes) -> Option<Arc<StoredObject>> {
        let key = self.object_key(storage_key)?;
        match self.decode(key, revision, stored) {
            Ok(object) => Some(Arc::new(object)),
            Err(error) => {
                tracing::error!(key = storage_key, revision, error = %chain(&error), "Ignored an unreadable object");
                None
            }
        }
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Arc<StoredObject>> {
        self.objects.read().tree.get(key).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.read().tree.len()
    }

    /// The state now. `progress` is the feed's, read before this call.
    pub(crate) fn snapshot(&self, progress: u64) -> Snapshot {
        let objects = self.objects.read();
        Snapshot { tree: objects.tree.clone(), revision: objects.revision.max(progress) }
    }

    /// Keeps a snapshot for the next pages of a list.
    pub(crate) fn keep(&self, snapshot: &Snapshot) {
        self.drop_snapshots();
        let (at, replaced) = (self.clock.monotonic(), self.replaced.load(Ordering::Relaxed));
        let mut kept = self.snapshots.lock();
        kept.retain(|kept| kept.snapshot.revision != snapshot.revision);
        if kept.len() == SNAPSHOTS_MAX {
            kept.pop_front();
        }
        kept.push_back(Kept { snapshot: snapshot.clone(), at, replaced });
    }

    /// Drops snapshots that are too old or hold too much. Whether there are any left.
    fn drop_snapshots(&self) -> bool {
        let (now, replaced) = (self.clock.monotonic(), self.replaced.load(Ordering::Relaxed));
        let mut snapshots = self.snapshots.lock();
        snapshots.retain(|kept| kept.at + SNAPSHOT_AGE_MAX > now && kept.replaced + SNAPSHOT_BYTES_MAX > replaced);
        !snapshots.is_empty()
    }

    /// The state at `revision`, if it was kept or is still the current one.
    pub(crate) fn snapshot_at(&self, revision: u64, progress: u64) -> Option<Snapshot> {
        let kept = self
            .snapshots
            .lock()
            .iter()
            .find(|kept| kept.snapshot.revision == revision)
            .map(|kept| kept.snapshot.clone());
        kept.or_else(|| {
            let objects = self.objects.read();
            let unchanged = objects.revision <= revision && revision <= objects.revision.max(progress);
            unchanged.then(|| Snapshot { tree: objects.tree.clone(), revision })
        })
    }

    /// Replaces everything by what was listed at `revision`. Watchers cannot be told what changed, so
    /// they are closed and history starts anew.
    pub(crate) fn load(&self, loaded: Vec<Arc<StoredObject>>, revision: u64) {
        let mut dispatch = self.dispatch.lock();
        dispatch.reset(revision);
        let mut objects = Objects { revision, ..Objects::default() };
        let mut bytes = 0;
        for object in loaded {
            bytes += object.json.len();
            objects.namespaces.insert(object.key.namespace.clone());
            objects.tree.insert(object);
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        *self.objects.write() = objects;
        self.snapshots.lock().clear();
        self.announcements.clear();
    }

    /// Applies changes of this resource, in storage order, and tells the watchers.
    pub(crate) fn apply(&self, changes: &[&Change]) {
        let loaded = self.objects.read().revision;
        let prepared: Vec<_> = changes
            .iter()
            .filter(|change| change.revision.0 > loaded)
            .filter_map(|change| self.prepare(change))
            .collect();
        let Some(last) = prepared.last().map(|change| change.revision) else {
            return;
        };
        self.received.fetch_add(prepared.len() as u64, Ordering::Relaxed);
        let mut applied = Vec::with_capacity(prepared.len());
        {
            let mut objects = self.objects.write();
            for change in prepared {
                let previous = match &change.object {
                    Some(object) => {
                        if !objects.namespaces.contains(&object.key.namespace) {
                            objects.namespaces.insert(object.key.namespace.clone());
                        }
                        objects.tree.insert(object.clone())
                    }
                    None => objects.tree.remove(&change.key),
                };
                applied.push((change, previous));
            }
            objects.revision = last;
        }
        let now = self.clock.monotonic();
        let events: Vec<Arc<Event>> =
            applied.into_iter().filter_map(|(change, previous)| self.event(change, previous, now)).collect();
        let mut dispatch = self.dispatch.lock();
        for event in events {
            dispatch.publish(event);
        }
        dispatch.forget(now.saturating_sub(HISTORY_AGE_MAX), HISTORY_MIN, HISTORY_MAX);
        drop(dispatch);
        self.drop_snapshots();
    }

    fn prepare(&self, change: &Change) -> Option<Prepared> {
        let key = self.object_key(&change.key)?;
        let revision = change.revision.0;
        let object = match &change.kind {
            ChangeKind::Put(stored) => match self.announcements.take(&key, revision, stored) {
                Some(object) => Some(object),
                None => Some(self.decode_stored(&change.key, revision, stored)?),
            },
            ChangeKind::Delete => None,
        };
        Some(Prepared { key, revision, object })
    }

    fn event(&self, change: Prepared, previous: Option<Arc<StoredObject>>, at: Duration) -> Option<Arc<Event>> {
        let gone = previous.as_ref().map_or(0, |object| object.json.len());
        let come = change.object.as_ref().map_or(0, |object| object.json.len());
        self.bytes.fetch_add(come, Ordering::Relaxed);
        self.bytes.fetch_sub(gone, Ordering::Relaxed);
        self.replaced.fetch_add(gone as u64, Ordering::Relaxed);
        let (kind, object, previous) = match (change.object, previous) {
            (Some(object), None) => (EventKind::Added, object, None),
            (Some(object), Some(previous)) => (EventKind::Modified, object, Some(previous)),
            (None, Some(previous)) => (EventKind::Deleted, at_revision(&previous, change.revision)?, Some(previous)),
            // The deletion of a value that could not be read.
            (None, None) => return None,
        };
        Some(Arc::new(Event::new(change.revision, kind, object, previous, at)))
    }

    /// Drops history and snapshots that are too old, and the forms of objects that are not in use. Whether there is
    /// something left that has to go later.
    pub(crate) fn tidy(&self) -> bool {
        let now = self.clock.monotonic();
        let past: Vec<Arc<Event>> = {
            let mut dispatch = self.dispatch.lock();
            dispatch.forget(now.saturating_sub(HISTORY_AGE_MAX), HISTORY_MIN, HISTORY_MAX);
            dispatch.history().cloned().collect()
        };
        let mut is_left = !HISTORY_MIN.holds(&past);
        for event in past {
            is_left |= event.forget_unused();
        }
        is_left |= self.drop_snapshots();
        let objects = self.objects.read().tree.clone();
        objects.walk(&[], &mut |object| {
            is_left |= object.forget_unused();
            ControlFlow::Continue(())
        });
        is_left
    }

    /// Subscribes to what happens after a snapshot that is taken here.
    pub(crate) fn subscribe_now(&self, subscription: &Arc<Subscription>, progress: u64) -> Snapshot {
        let mut dispatch = self.dispatch.lock();
        let snapshot = self.snapshot(progress);
        subscription.start_after(snapshot.revision);
        dispatch.add(subscription.clone());
        snapshot
    }

    /// Subscribes to what happens after `revision`, and returns the part that has happened already.
    pub(crate) fn subscribe_from(
        &self,
        subscription: &Arc<Subscription>,
        revision: u64,
    ) -> Result<Vec<Arc<Event>>, ApiStatus> {
        let mut dispatch = self.dispatch.lock();
        let replay = dispatch
            .since(revision)
            .map_err(|oldest| ApiStatus::expired(format!("too old resource version: {revision} ({oldest})")))?;
        let newest = replay.last().map_or(revision, |event| event.revision);
        subscription.start_after(newest.max(revision));
        dispatch.add(subscription.clone());
        Ok(replay)
    }

    pub(crate) fn unsubscribe(&self, subscription: &Arc<Subscription>) {
        self.dispatch.lock().remove(subscription);
    }

    /// Ends all watches.
    pub(crate) fn close(&self) {
        self.dispatch.lock().close_all();
    }

    pub(crate) fn counts(&self) -> Counts {
        let dispatch = self.dispatch.lock();
        Counts {
            objects: self.len(),
            bytes: self.bytes.load(Ordering::Relaxed),
            watchers: dispatch.len(),
            received: self.received.load(Ordering::Relaxed),
            dispatched: dispatch.dispatched(),
            terminated: dispatch.terminated(),
            history: dispatch.history_len(),
            revision: self.objects.read().revision,
        }
    }
}

/// What is counted of a cache.
pub(crate) struct Counts {
    pub(crate) objects: usize,
    pub(crate) bytes: usize,
    pub(crate) watchers: usize,
    pub(crate) received: u64,
    pub(crate) dispatched: u64,
    pub(crate) terminated: u64,
    pub(crate) history: usize,
    pub(crate) revision: u64,
}

struct Prepared {
    key: ObjectKey,
    revision: u64,
    object: Option<Arc<StoredObject>>,
}

/// The same object at a later revision: what a watcher is told when it goes.
pub(crate) fn at_revision(object: &StoredObject, revision: u64) -> Option<Arc<StoredObject>> {
    let json = encode::at_revision(&object.json, revision).ok()?;
    Some(Arc::new(StoredObject::new(object.key.clone(), revision, json, object.selection.clone())))
}
