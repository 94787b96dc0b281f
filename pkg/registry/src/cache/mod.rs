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

pub(crate) mod dispatch;
pub(crate) mod feed;
pub(crate) mod tree;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rkube_api::StoredObject;
use rkube_api::resource::SelectableField;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::status::ApiStatus;
use rkube_storage::{Change, ChangeKind};
use serde_json::Value;

use crate::encode::{self, EncodeError, Encoded, Picker};
use dispatch::{Dispatch, Event, EventKind, Subscription};
use tree::Tree;

/// History is kept this long, as long as etcd's is by kube-apiserver's compaction, ...
const HISTORY_AGE_MAX: Duration = Duration::from_secs(300);
/// ... and at most this many events and bytes of objects per resource.
const HISTORY_EVENTS_MAX: usize = 64 * 1024;
const HISTORY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Snapshots kept for the next pages of lists that were begun. Older ones are read from storage.
const SNAPSHOTS_MAX: usize = 16;
const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(120);

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
    /// Bytes of the objects' JSON.
    bytes: AtomicUsize,
    /// Changes that came from storage.
    received: AtomicU64,
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
            bytes: AtomicUsize::new(0),
            received: AtomicU64::new(0),
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
        let bytes = encode::encode(value)?;
        Ok(Encoded { bytes, selection: self.picker.pick_tree(value) })
    }

    /// An object that was just written.
    pub(crate) fn written(&self, key: ObjectKey, revision: u64, stored: Encoded) -> Result<StoredObject, EncodeError> {
        let json = encode::with_revision(&stored.bytes, revision)?;
        Ok(StoredObject::new(key, revision, json, stored.selection))
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
        let now = self.clock.monotonic();
        let mut kept = self.snapshots.lock();
        kept.retain(|kept| kept.at + SNAPSHOT_AGE_MAX > now && kept.snapshot.revision != snapshot.revision);
        if kept.len() == SNAPSHOTS_MAX {
            kept.pop_front();
        }
        kept.push_back(Kept { snapshot: snapshot.clone(), at: now });
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
        dispatch.forget(now.saturating_sub(HISTORY_AGE_MAX), HISTORY_EVENTS_MAX, HISTORY_BYTES_MAX);
    }

    fn prepare(&self, change: &Change) -> Option<Prepared> {
        let key = self.object_key(&change.key)?;
        let revision = change.revision.0;
        let object = match &change.kind {
            ChangeKind::Put(stored) => match self.decode(key.clone(), revision, stored) {
                Ok(object) => Some(Arc::new(object)),
                Err(error) => {
                    tracing::error!(key = change.key, revision, error = %chain(&error), "Ignored an unreadable object");
                    return None;
                }
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
        let (kind, object, previous) = match (change.object, previous) {
            (Some(object), None) => (EventKind::Added, object, None),
            (Some(object), Some(previous)) => (EventKind::Modified, object, Some(previous)),
            (None, Some(previous)) => (EventKind::Deleted, at_revision(&previous, change.revision)?, Some(previous)),
            // The deletion of a value that could not be read.
            (None, None) => return None,
        };
        Some(Arc::new(Event::new(change.revision, kind, object, previous, at)))
    }

    /// Drops history that is too old. For resources that no longer change.
    pub(crate) fn expire(&self) {
        let now = self.clock.monotonic();
        let oldest = now.saturating_sub(HISTORY_AGE_MAX);
        self.dispatch.lock().forget(oldest, HISTORY_EVENTS_MAX, HISTORY_BYTES_MAX);
        self.snapshots.lock().retain(|kept| kept.at + SNAPSHOT_AGE_MAX > now);
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
