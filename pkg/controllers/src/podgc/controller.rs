//! Finds pods to collect by their events, and collects them.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::{Node, Pod, PodCondition};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{object_key, uid_of};
use rkube_client::{
    Client, ClientError, DeleteOptions, Delta, Informer, Lister, Patch, Reconciler, Requeue, SyncError, WorkQueue,
};
use serde_json::json;
use tracing::info;

use super::NAME;
use super::plan::{is_abandoned, is_finished_here, surplus};
use crate::common::errors::ignore_not_found;
use crate::common::nodes::{index_by_node, pods_on};
use crate::common::pods;
use crate::context::{ControllerContext, Running};
use crate::metrics::metrics;

/// How often finished pods are counted at most.
const COUNT_PERIOD: Duration = Duration::from_secs(20);
/// How long a node may take to appear in the cache before the API is asked for it.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Pods that are finished, under the one value of this index.
const FINISHED_INDEX: &str = "finished";

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Work {
    /// Count the finished pods.
    Finished,
    /// The node of some pods is not there.
    MissingNode(Arc<str>),
    /// Nobody may be there to stop the pod.
    Terminating(ObjectKey),
}

struct PodGc {
    client: Client,
    clock: SharedClock,
    threshold: usize,
    pods: Informer<Pod>,
    lister: Lister<Pod>,
    nodes: Lister<Node>,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let pods = context.informers.informer::<Pod>();
    let nodes = context.informers.informer::<Node>();
    index_by_node(&pods);
    pods.add_index(FINISHED_INDEX, |pod| if pods::is_terminal(pod) { vec![String::new()] } else { Vec::new() });
    let queue: WorkQueue<Work> = context.queue("pod_garbage_collector");
    let controller = Arc::new(PodGc {
        client: context.client_for(NAME),
        clock: context.clock().clone(),
        threshold: context.config.terminated_pod_gc_threshold,
        pods: pods.clone(),
        lister: pods.lister(),
        nodes: nodes.lister(),
    });
    let (observer, work) = (Arc::clone(&controller), queue.clone());
    pods.add_handler(move |delta| observer.pod_changed(&delta, &work));
    let (observer, work) = (Arc::clone(&controller), queue.clone());
    nodes.add_handler(move |delta| observer.node_changed(&delta, &work));
    context.run(NAME, &queue, &controller, 1)
}

impl PodGc {
    fn pod_changed(&self, delta: &Delta<Arc<Pod>>, queue: &WorkQueue<Work>) {
        let pod = delta.object();
        if matches!(delta, Delta::Deleted(_)) {
            return;
        }
        let node = pods::node_name(pod);
        let known = self.nodes.get_named("", node);
        if is_abandoned(pod, known.as_deref()) {
            queue.add(Work::Terminating(object_key(&**pod)));
        }
        let was_finished = delta.old().is_some_and(|old| pods::is_terminal(old));
        if self.threshold > 0 && pods::is_terminal(pod) && !was_finished {
            queue.add_after(Work::Finished, COUNT_PERIOD);
        }
        // When the caches have just been filled, the nodes may come after the pods.
        if !node.is_empty() && known.is_none() {
            queue.add_after(Work::MissingNode(node.into()), QUARANTINE);
        }
    }

    fn node_changed(&self, delta: &Delta<Arc<Node>>, queue: &WorkQueue<Work>) {
        let node = delta.object();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if matches!(delta, Delta::Deleted(_)) {
            queue.add_after(Work::MissingNode(name.into()), QUARANTINE);
            return;
        }
        if super::plan::is_out_of_service(node) {
            for pod in pods_on(&self.lister, name).iter().filter(|pod| is_abandoned(pod, Some(node))) {
                queue.add(Work::Terminating(object_key(&**pod)));
            }
        }
    }

    async fn collect_orphans(&self, name: &str) -> Result<Requeue, SyncError> {
        let orphans = pods_on(&self.lister, name);
        if orphans.is_empty() || self.nodes.get_named("", name).is_some() {
            return Ok(Requeue::Never);
        }
        match self.client.all::<Node>().get(name).await {
            // The cache will have it in a moment.
            Ok(_) => return Ok(Requeue::After(QUARANTINE)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(SyncError::during("reading the node of orphaned pods")(error)),
        }
        let condition = PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("DeletionByPodGC".to_owned()),
            message: Some("PodGC: node no longer exists".to_owned()),
            ..PodCondition::default()
        };
        let orphans = orphans.iter().filter(|pod| !is_finished_here(pod));
        self.collect(orphans, Some(&condition), "orphaned").await
    }

    async fn collect(
        &self,
        pods: impl Iterator<Item = &Arc<Pod>>,
        condition: Option<&PodCondition>,
        reason: &'static str,
    ) -> Result<Requeue, SyncError> {
        let mut errors = Vec::new();
        for pod in pods {
            info!(pod = %object_key(&**pod), reason, "Force deleting a pod");
            let deleted = ignore_not_found(self.fail_and_delete(pod, condition.cloned()).await);
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            metrics().pod_collected(namespace, reason, deleted.is_err());
            errors.extend(deleted.map_err(SyncError::during("force deleting a pod")).err());
        }
        SyncError::all(errors).map(|()| Requeue::Never)
    }

    /// Marks the pod failed before it goes: whoever counts it must not take it for running.
    async fn fail_and_delete(&self, pod: &Pod, condition: Option<PodCondition>) -> Result<(), ClientError> {
        let api = self.client.namespaced::<Pod>(pod.metadata.namespace.as_deref().unwrap_or_default());
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if !pods::is_terminal(pod) {
            let mut status = json!({"phase": "Failed", "observedGeneration": pod.metadata.generation});
            if let Some(condition) = condition {
                status["conditions"] = json!([pods::condition_fields(pod, condition, self.clock.now())]);
            }
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
            api.patch_status(name, &Patch::Strategic(patch)).await?;
        }
        api.delete(name, &DeleteOptions::uid(uid_of(pod)).grace_period_seconds(0)).await
    }
}

impl Reconciler<Work> for PodGc {
    async fn sync(&self, work: &Work) -> Result<Requeue, SyncError> {
        match work {
            Work::Finished => {
                if self.pods.core().count_by_index(FINISHED_INDEX, "") <= self.threshold {
                    return Ok(Requeue::Never);
                }
                let surplus = surplus(self.lister.by_index(FINISHED_INDEX, ""), self.threshold);
                self.collect(surplus.iter().filter(|pod| !is_finished_here(pod)), None, "terminated").await
            }
            Work::MissingNode(name) => self.collect_orphans(name).await,
            Work::Terminating(key) => {
                let Some(pod) = self.lister.get(key) else { return Ok(Requeue::Never) };
                let node = self.nodes.get_named("", pods::node_name(&pod));
                if !is_abandoned(&pod, node.as_deref()) {
                    return Ok(Requeue::Never);
                }
                let reason = if pods::node_name(&pod).is_empty() { "unscheduled" } else { "out-of-service" };
                self.collect(std::iter::once(&pod), None, reason).await
            }
        }
    }
}
