//! Secrets, config maps and other objects that pods refer to, read on demand and kept for a while.
//!
//! An object is read anew when it is older than [`TTL`] or when its pod was changed since, so a new pod
//! never starts with stale configuration. While the server is away the last known object serves: a
//! restarted container finds the configuration it had.
//!
//! Behaves as pkg/kubelet/util/manager/cache_based_manager.go, v1.36.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::Kind;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::Client;
use rkube_client::transport::ClientError;

/// A change reaches a pod's volumes within this and the 60 s between two syncs: the 90 s that upstream's sync period and
/// its jitter allow.
///
/// Differs from upstream: an object is read when it is due and not watched. A watch for each would be as many streams
/// as a node has namespaces, for what changes once in a while.
const TTL: Duration = Duration::from_secs(30);
/// Objects nobody asked for in this time are forgotten.
const IDLE_MAX: Duration = Duration::from_secs(600);

type Key = (&'static str, ObjectKey);

struct Entry {
    object: Arc<dyn Any + Send + Sync>,
    read_at: Duration,
    used_at: Duration,
}

/// A cache of objects by kind and key.
pub struct Objects {
    client: Client,
    clock: SharedClock,
    entries: Mutex<HashMap<Key, Entry>>,
}

impl Objects {
    pub fn new(client: Client, clock: SharedClock) -> Self {
        Self { client, clock, entries: Mutex::new(HashMap::new()) }
    }

    /// The object, or `None` when the server says there is none.
    pub async fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, ClientError> {
        let key = (K::KIND, ObjectKey::new(namespace, name));
        let now = self.clock.monotonic();
        if let Some(fresh) = self.cached::<K>(&key, now, Some(TTL)) {
            return Ok(Some(fresh));
        }
        match self.client.namespaced::<K>(namespace).get(name).await {
            Ok(object) => {
                let object = Arc::new(object);
                let entry = Entry { object: object.clone(), read_at: now, used_at: now };
                self.entries.lock().insert(key, entry);
                Ok(Some(object))
            }
            Err(error) if error.is_not_found() => {
                self.entries.lock().remove(&key);
                Ok(None)
            }
            // No answer at all: what was known before is better than nothing.
            Err(error @ ClientError::Unreachable { .. }) => match self.cached::<K>(&key, now, None) {
                Some(stale) => Ok(Some(stale)),
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    fn cached<K: Kind>(&self, key: &Key, now: Duration, ttl: Option<Duration>) -> Option<Arc<K>> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(key)?;
        if ttl.is_some_and(|ttl| now.saturating_sub(entry.read_at) >= ttl) {
            return None;
        }
        entry.used_at = now;
        Arc::clone(&entry.object).downcast().ok()
    }

    /// A pod of this namespace came or changed: what it refers to is read anew.
    pub fn invalidate(&self, namespace: &str) {
        for (key, entry) in self.entries.lock().iter_mut() {
            if &*key.1.namespace == namespace {
                // Kept for when the server is away, but no longer fresh.
                entry.read_at = entry.read_at.saturating_sub(TTL);
            }
        }
    }

    pub fn collect(&self) {
        let now = self.clock.monotonic();
        self.entries.lock().retain(|_, entry| now.saturating_sub(entry.used_at) < IDLE_MAX);
    }
}
