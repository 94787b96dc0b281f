//! Watches everything quotas can be about, and knows which kinds exist.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rkube_api::StoredObject;
use rkube_api::resource::{Resource, SharedResource};
use rkube_client::informer::SharedInformer;
use rkube_client::{Client, Delta, InformerFactory, Reconciler, Requeue, SyncError};
use tracing::debug;

use super::plan::KindName;
use crate::common::discovery::discover;

/// Discovery follows a definition a moment after its event.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// An extension server that does not answer is asked again.
const RETRY_STALE: Duration = Duration::from_secs(30);

/// How long a count waits for a cache to fill.
const FILLING_MAX: Duration = Duration::from_secs(5);

/// The one key of the discovery queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Rediscover;

/// Told of every change of an object that a quota can be about.
pub(super) type Observer = Arc<dyn Fn(&Resource, &Delta<Arc<StoredObject>>) + Send + Sync>;

/// What is known of the objects of a kind.
pub(super) enum Found {
    Objects(Vec<Arc<StoredObject>>),
    /// The cache does not have them yet.
    Filling,
    /// Nothing serves the kind.
    Unknown,
}

pub(super) struct Monitors {
    client: Client,
    informers: InformerFactory,
    observer: Observer,
    /// Caches by kind. A cache belongs to the factory; ours is the same as the garbage collector's.
    watched: RwLock<BTreeMap<KindName, Monitor>>,
}

struct Monitor {
    resource: SharedResource,
    cache: Arc<SharedInformer>,
}

impl Monitors {
    pub(super) fn new(client: Client, informers: InformerFactory, observer: Observer) -> Self {
        Self { client, informers, observer, watched: RwLock::default() }
    }

    /// Watches the built-in kinds. Custom ones come with the first discovery.
    pub(super) fn watch_built_in(&self) {
        for resource in rkube_api::resources().iter().filter(|resource| is_quotable(resource)) {
            self.watch(resource);
        }
        self.informers.start();
    }

    /// The objects of a kind in a namespace, when the cache is filled.
    pub(super) async fn objects(&self, kind: &KindName, namespace: &str) -> Found {
        let Some(cache) = self.watched.read().get(kind).map(|monitor| Arc::clone(&monitor.cache)) else {
            return Found::Unknown;
        };
        tokio::select! {
            biased;
            () = cache.synced() => Found::Objects(cache.list(namespace, |_| true)),
            () = self.client.clock().sleep(FILLING_MAX) => Found::Filling,
        }
    }

    fn watch(&self, resource: &SharedResource) {
        let kind = (resource.group.to_string(), resource.plural.to_string());
        let mut watched = self.watched.write();
        let cache = match watched.get(&kind) {
            // Versions of a kind share their objects: the first, which the server prefers, is enough.
            Some(known) if known.resource.version != resource.version => return,
            Some(known) => {
                let cache = self.informers.dynamic(Arc::clone(resource));
                if Arc::ptr_eq(&cache, &known.cache) {
                    return;
                }
                cache
            }
            None => self.informers.dynamic(Arc::clone(resource)),
        };
        let (observer, about) = (Arc::clone(&self.observer), Arc::clone(resource));
        cache.add_handler(move |delta| observer(&about, delta));
        watched.insert(kind, Monitor { resource: Arc::clone(resource), cache });
    }

    /// Starts to watch what is new and forgets what is gone.
    async fn refresh(&self) -> Result<Requeue, SyncError> {
        let discovered = discover(&self.client).await.map_err(SyncError::during("reading discovery"))?;
        let quotable: Vec<_> = discovered.resources.iter().filter(|resource| is_quotable(resource)).collect();
        self.watched.write().retain(|(group, plural), monitor| {
            let version = &monitor.resource.version;
            // A group that does not answer is not gone.
            let keep = discovered.stale.contains(&format!("{group}/{version}"))
                || quotable.iter().any(|resource| {
                    resource.group == *group && resource.plural == *plural && resource.version == *version
                });
            if !keep {
                // The cache is the garbage collector's to end.
                debug!(group, plural, "Stopped counting a resource that is no longer served");
            }
            keep
        });
        for resource in quotable {
            self.watch(resource);
        }
        self.informers.start();
        Ok(if discovered.stale.is_empty() { Requeue::Never } else { Requeue::After(RETRY_STALE) })
    }
}

impl Reconciler<Rediscover> for Monitors {
    async fn sync(&self, _: &Rediscover) -> Result<Requeue, SyncError> {
        self.refresh().await
    }
}

/// What can be created, seen and deleted in a namespace. Events are not counted.
fn is_quotable(resource: &SharedResource) -> bool {
    let events = resource.plural == "events" && matches!(resource.group.as_ref(), "" | "events.k8s.io");
    let verbs = ["create", "list", "watch", "delete"];
    resource.namespaced && !events && verbs.iter().all(|verb| resource.has_verb(verb))
}
