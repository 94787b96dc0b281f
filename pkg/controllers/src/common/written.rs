//! What a controller wrote and its cache does not show yet, by version.
//!
//! Expectations count; this remembers exact objects. It is for controllers that update what they make.
//! Behaves as `EndpointSliceTracker` of staging/endpointslice and `pkg/controller/util/consistency`, v1.36.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::informer::SharedInformer;
use rkube_client::owner::meta_key;

/// A watch that lags longer than this is broken, or someone deleted the object before the cache had it; better
/// to act on an old cache than never again.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Writes of one kind that were not seen yet, each made for an owner.
pub(crate) struct Written {
    clock: SharedClock,
    cache: Arc<SharedInformer>,
    pending: Mutex<HashMap<ObjectKey, Pending>>,
}

struct Pending {
    owner: ObjectKey,
    /// `None` until the object is gone.
    revision: Option<u64>,
    since: Duration,
}

impl Written {
    /// `cache` is where the writes are waited for; its handler calls `observe`.
    pub(crate) fn new(clock: SharedClock, cache: Arc<SharedInformer>) -> Self {
        Self { clock, cache, pending: Mutex::new(HashMap::new()) }
    }

    /// `stored` is what a write for `owner` returned.
    pub(crate) fn stored(&self, owner: &ObjectKey, stored: &ObjectMeta) {
        self.note(owner, stored, Some(revision_of(stored)));
    }

    /// The object was deleted for `owner`.
    pub(crate) fn deleted(&self, owner: &ObjectKey, object: &ObjectMeta) {
        self.note(owner, object, None);
    }

    fn note(&self, owner: &ObjectKey, object: &ObjectMeta, revision: Option<u64>) {
        let pending = Pending { owner: owner.clone(), revision, since: self.clock.monotonic() };
        let key = meta_key(object);
        self.pending.lock().insert(key.clone(), pending);
        // The event may have been faster than the answer. Events after the insertion are observed.
        let cached = self.cache.get(&key);
        let seen = match (revision, cached) {
            (Some(revision), Some(cached)) => cached.revision >= revision,
            (None, cached) => cached.is_none(),
            (Some(_), None) => false,
        };
        if seen {
            self.pending.lock().remove(&key);
        }
    }

    /// The cache shows the object at this version, or gone.
    pub(crate) fn observe(&self, object: &ObjectMeta, gone: bool) {
        let mut pending = self.pending.lock();
        let key = meta_key(object);
        let seen = pending
            .get(&key)
            .is_some_and(|waiting| gone || waiting.revision.is_some_and(|revision| revision_of(object) >= revision));
        if seen {
            pending.remove(&key);
        }
    }

    /// How long to wait at most for the cache to show what was written for `owner`; `None` if it does.
    pub(crate) fn unsettled(&self, owner: &ObjectKey) -> Option<Duration> {
        let now = self.clock.monotonic();
        let left = |pending: &Pending| TIMEOUT.checked_sub(now.saturating_sub(pending.since));
        let pending = self.pending.lock();
        let waits = pending.values().filter(|pending| pending.owner == *owner).filter_map(left);
        waits.max().filter(|left| !left.is_zero())
    }
}

pub(crate) fn revision_of(object: &ObjectMeta) -> u64 {
    object.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}
