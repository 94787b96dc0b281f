//! The cache, with what this controller wrote since on top.
//!
//! For a controller whose next decision must not repeat the last one: a volume given to one claim is not free for
//! another, although the watch has not said so yet.
//! Behaves as `storeObjectUpdate` of pkg/controller/volume/persistentvolume, v1.36.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rkube_api::Kind;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::object_key;
use rkube_client::{Delta, Informer, Lister};

use super::written::revision_of;

pub(crate) struct Latest<K> {
    cache: Lister<K>,
    /// Answers to writes, until the cache has the same or a later revision.
    newer: Arc<Mutex<HashMap<ObjectKey, Arc<K>>>>,
}

impl<K: Kind> Latest<K> {
    pub(crate) fn new(informer: &Informer<K>) -> Self {
        let newer: Arc<Mutex<HashMap<ObjectKey, Arc<K>>>> = Arc::default();
        let seen = Arc::clone(&newer);
        informer.add_handler(move |delta| {
            let object = delta.object();
            let mut newer = seen.lock();
            let key = object_key(&**object);
            let caught_up = newer.get(&key).is_some_and(|known| revision(&**known) <= revision(&**object));
            if caught_up || matches!(delta, Delta::Deleted(_)) {
                newer.remove(&key);
            }
        });
        Self { cache: informer.lister(), newer }
    }

    /// Remembers what a write answered.
    pub(crate) fn stored(&self, object: K) -> Arc<K> {
        let object = Arc::new(object);
        let key = object_key(&*object);
        let mut newer = self.newer.lock();
        // The event may have been faster than the answer.
        if self.cache.get(&key).is_none_or(|cached| revision(&*cached) < revision(&*object)) {
            newer.insert(key, Arc::clone(&object));
        }
        object
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        let newer = self.newer.lock().get(key).cloned();
        // What is not in the cache is gone, or was never written here: nothing is created through this.
        let cached = self.cache.get(key)?;
        Some(newer.filter(|newer| revision(&**newer) > revision(&*cached)).unwrap_or(cached))
    }

    /// From the cache alone: an index does not follow what was written since.
    pub(crate) fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        self.cache.by_index(index, value)
    }
}

fn revision<K: Kind>(object: &K) -> u64 {
    revision_of(object.metadata())
}
