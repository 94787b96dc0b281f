//! Watches every deletable resource and feeds the graph; knows which kinds exist.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rkube_api::resource::SharedResource;
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_client::{Client, Delta, InformerFactory, Reconciler, Requeue, SyncError, WorkQueue};
use tracing::debug;

use super::graph::{Graph, Uid, Work};
use crate::common::discovery::discover;
use crate::metrics::metrics;

/// Discovery follows a definition a moment after its event.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// An extension server that does not answer is asked again.
const RETRY_STALE: Duration = Duration::from_secs(30);

/// Queues that events fill.
#[derive(Clone)]
pub(super) struct Queues {
    pub(super) delete: WorkQueue<Uid>,
    pub(super) orphan: WorkQueue<Uid>,
}

impl Queues {
    pub(super) fn add(&self, work: Work) {
        work.delete.into_iter().for_each(|uid| self.delete.add(uid));
        work.orphan.into_iter().for_each(|uid| self.orphan.add(uid));
    }
}

/// The one key of the discovery queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Rediscover;

pub(super) struct Monitors {
    client: Client,
    informers: InformerFactory,
    queues: Queues,
    pub(super) graph: Arc<Mutex<Graph>>,
    watched: Mutex<BTreeMap<GroupVersionResource, SharedResource>>,
    /// Group and kind to resource.
    kinds: RwLock<HashMap<(String, String), SharedResource>>,
}

impl Monitors {
    pub(super) fn new(client: Client, informers: InformerFactory, queues: Queues) -> Self {
        Self { client, informers, queues, graph: Arc::default(), watched: Mutex::default(), kinds: RwLock::default() }
    }

    pub(super) fn resource_of(&self, group: &str, kind: &str) -> Option<SharedResource> {
        self.kinds.read().get(&(group.to_owned(), kind.to_owned())).cloned()
    }

    /// Starts to watch what is new and stops what is gone.
    async fn refresh(&self) -> Result<Requeue, SyncError> {
        let discovered = discover(&self.client).await.map_err(|error| {
            metrics().gc_errors.inc();
            SyncError::during("reading discovery")(error)
        })?;
        let mut wanted = BTreeMap::new();
        for resource in discovered.resources.iter().filter(|resource| is_collectable(resource)) {
            wanted.insert(resource.gvr(), Arc::clone(resource));
        }
        let kinds = discovered.resources.into_iter().filter(|resource| resource.has_verb("get"));
        let mut by_kind = HashMap::new();
        for resource in kinds {
            by_kind.entry((resource.group.to_string(), resource.kind.to_string())).or_insert(resource);
        }
        *self.kinds.write() = by_kind;

        let mut watched = self.watched.lock();
        let gone: Vec<GroupVersionResource> =
            watched.keys().filter(|known| !wanted.contains_key(*known)).cloned().collect();
        let stale = !discovered.stale.is_empty();
        for gvr in gone {
            // A group that does not answer is not gone.
            if stale && discovered.stale.contains(&format!("{}/{}", gvr.group, gvr.version)) {
                continue;
            }
            if let Some(resource) = watched.remove(&gvr) {
                debug!(resource = %gvr, "Stopped watching a resource that is no longer served");
                if rkube_api::resource_named(&gvr.group, &gvr.version, &gvr.resource).is_none() {
                    self.informers.remove(&gvr);
                }
                self.graph.lock().forget(&resource);
            }
        }
        for (gvr, resource) in wanted {
            if watched.contains_key(&gvr) {
                continue;
            }
            self.watch(&resource);
            watched.insert(gvr, resource);
        }
        drop(watched);
        self.informers.start();
        Ok(if stale { Requeue::After(RETRY_STALE) } else { Requeue::Never })
    }

    fn watch(&self, resource: &SharedResource) {
        let informer = self.informers.dynamic(Arc::clone(resource));
        let (graph, queues, resource) = (Arc::clone(&self.graph), self.queues.clone(), Arc::clone(resource));
        informer.add_handler(move |delta| {
            let work = match delta {
                Delta::Added(object) | Delta::Updated { new: object, .. } => graph.lock().upsert(&resource, object),
                Delta::Deleted(object) => graph.lock().remove(&object.selection.uid.as_str().into()),
            };
            queues.add(work);
        });
    }
}

impl Reconciler<Rediscover> for Monitors {
    async fn sync(&self, _: &Rediscover) -> Result<Requeue, SyncError> {
        self.refresh().await
    }
}

/// Events own nothing, are owned by nothing, and are most of what changes.
fn is_collectable(resource: &SharedResource) -> bool {
    let events = resource.plural == "events" && matches!(resource.group.as_ref(), "" | "events.k8s.io");
    !events && ["delete", "list", "watch"].iter().all(|verb| resource.has_verb(verb))
}
