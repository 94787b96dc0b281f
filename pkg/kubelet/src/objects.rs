//! Secrets, config maps and other objects that pods refer to, read on demand and kept for a while.
//!
//! An object is read anew when it is older than [`TTL`] or when its pod was changed since, so a new pod
//! never starts with stale configuration. While the server is away the last known object serves: a
//! restarted container finds the configuration it had. What pods cannot start without is also kept on disk, for a node
//! that starts while its server is away; Secrets are not: they never touch the disk.
//!
//! Behaves as pkg/kubelet/util/manager/cache_based_manager.go, v1.36.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::Service;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::Client;
use rkube_client::transport::ClientError;
use tokio::sync::watch;

use crate::folder::write_private;

/// A change reaches a pod's volumes within this and the 60 s between two syncs: the 90 s that upstream's sync period and
/// its jitter allow.
///
/// Differs from upstream: an object is read when it is due and not watched. A watch for each would be as many streams
/// as a node has namespaces, for what changes once in a while.
const TTL: Duration = Duration::from_secs(30);
/// Objects nobody asked for in this time are forgotten.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// Kinds that are kept on disk.
const KEPT: [&str; 4] = ["ConfigMap", "PersistentVolume", "PersistentVolumeClaim", "RuntimeClass"];
const SERVICES: &str = "services";
/// A server that was not reached so long after the start is away.
const AWAY_AFTER: Duration = Duration::from_secs(10);

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
    /// Where objects are kept.
    directory: PathBuf,
    started: Duration,
    /// Whether the server was ever reached.
    reached: watch::Sender<bool>,
}

impl Objects {
    pub fn new(client: Client, clock: SharedClock, directory: PathBuf) -> Self {
        let (entries, reached) = (Mutex::default(), watch::channel(false).0);
        Self { client, started: clock.monotonic(), clock, entries, directory, reached }
    }

    /// The server has said which pods are this node's.
    pub fn set_reached(&self) {
        self.reached.send_if_modified(|reached| !std::mem::replace(reached, true));
    }

    /// Whether the node started without its server and goes by what it kept. Right after the start the server is given
    /// the time to be reached.
    pub async fn is_on_its_own(&self) -> bool {
        let mut reached = self.reached.subscribe();
        let left = (self.started + AWAY_AFTER).saturating_sub(self.clock.monotonic());
        tokio::select! {
            biased;
            // The sender lives in `self`.
            _ = reached.wait_for(|reached| *reached) => false,
            () = self.clock.sleep(left) => true,
        }
    }

    /// The object, or `None` when the server says there is none.
    pub async fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, ClientError> {
        let key = (K::KIND, ObjectKey::new(namespace, name));
        let now = self.clock.monotonic();
        if let Some(fresh) = self.cached::<K>(&key, now, Some(TTL)) {
            return Ok(Some(fresh));
        }
        if self.is_on_its_own().await
            && let Some(kept) = self.kept(&key)
        {
            return Ok(Some(kept));
        }
        match self.client.namespaced::<K>(namespace).get(name).await {
            Ok(object) => {
                let object = Arc::new(object);
                self.keep(&key, &object);
                let entry = Entry { object: object.clone(), read_at: now, used_at: now };
                self.entries.lock().insert(key, entry);
                Ok(Some(object))
            }
            Err(error) if error.is_not_found() => {
                self.entries.lock().remove(&key);
                // It may never have been kept.
                let _ = std::fs::remove_file(self.directory.join(file_name(&key)));
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

    /// Writes an object that is another one than it was.
    fn keep<K: Kind>(&self, key: &Key, object: &Arc<K>) {
        let known = self.entries.lock().get(key).and_then(|entry| Arc::clone(&entry.object).downcast::<K>().ok());
        let version = |object: &K| object.metadata().resource_version.clone();
        if !KEPT.contains(&K::KIND) || known.is_some_and(|known| version(&known) == version(object)) {
            return;
        }
        self.write(&file_name(key), &object.encode());
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        if let Err(error) = write_private(&self.directory, name, bytes, false) {
            tracing::warn!(name, %error, "Object was not kept for a start without the server");
        }
    }

    fn kept<K: Kind>(&self, key: &Key) -> Option<Arc<K>> {
        if !KEPT.contains(&K::KIND) {
            return None;
        }
        K::decode(&std::fs::read(self.directory.join(file_name(key))).ok()?).ok().map(Arc::new)
    }

    /// Keeps what containers are told of services.
    pub fn keep_services(&self, services: &[Arc<Service>]) {
        let stripped = services.iter().map(|service| {
            let mut stripped = Service::default();
            stripped.metadata.name.clone_from(&service.metadata.name);
            stripped.metadata.namespace.clone_from(&service.metadata.namespace);
            stripped.spec.clone_from(&service.spec);
            stripped
        });
        match serde_json::to_vec(&stripped.collect::<Vec<_>>()) {
            Ok(bytes) => self.write(SERVICES, &bytes),
            Err(error) => tracing::warn!(%error, "Services were not kept for a start without the server"),
        }
    }

    /// The services as they were last kept.
    pub fn kept_services(&self) -> Vec<Arc<Service>> {
        let read = || serde_json::from_slice::<Vec<Service>>(&std::fs::read(self.directory.join(SERVICES)).ok()?).ok();
        read().unwrap_or_default().into_iter().map(Arc::new).collect()
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
        let used: HashSet<String> = {
            let mut entries = self.entries.lock();
            entries.retain(|_, entry| now.saturating_sub(entry.used_at) < IDLE_MAX);
            entries.keys().map(file_name).chain([SERVICES.to_owned()]).collect()
        };
        if now.saturating_sub(self.started) < IDLE_MAX || !*self.reached.borrow() {
            // What nobody asked for yet may still be asked for.
            return;
        }
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(|name| used.contains(name)) {
                // Found again by the next round if it stays.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Neither part has an underscore.
fn file_name(key: &Key) -> String {
    format!("{}_{}_{}", key.0, key.1.namespace, key.1.name)
}
