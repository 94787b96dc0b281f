//! Taint eviction controller: deletes pods that do not tolerate the `NoExecute` taints of their node, when their
//! toleration's time is up.
//!
//! Watches  v1 Pod (primary); v1 Node (taints)
//! Writes   v1 Pod condition DisruptionTarget, then the pod's deletion
//! Behaves as  pkg/controller/tainteviction/taint_eviction.go, v1.36

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::k8s::core::v1::{Node, ObjectReference, Pod, PodCondition, Taint, Toleration};
use rkube_api::taints::tolerates;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{object_key, uid_of};
use rkube_client::{
    Client, DeleteOptions, Delta, EventRecorder, EventType, Lister, Reconciler, Requeue, SyncError, WorkQueue,
};

use crate::common::errors::ignore_not_found;
use crate::common::nodes::{index_by_node, pods_on, taints};
use crate::common::pods;
use crate::context::{ControllerContext, Descriptor, Running};
use crate::metrics::metrics;

const NAME: &str = "taint-eviction-controller";

pub(crate) const TAINTEVICTION: Descriptor = Descriptor::new(NAME, "taint-eviction-controller", start);

struct TaintEviction {
    client: Client,
    recorder: EventRecorder,
    clock: SharedClock,
    pods: Lister<Pod>,
    nodes: Lister<Node>,
    /// Since when a pod's time runs.
    running: Mutex<HashMap<ObjectKey, Duration>>,
}

fn start(context: &ControllerContext) -> Running {
    let pods = context.informers.informer::<Pod>();
    let nodes = context.informers.informer::<Node>();
    index_by_node(&pods);
    let queue: WorkQueue<ObjectKey> = context.queue("noexec_taint_pod");
    let controller = Arc::new(TaintEviction {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component(NAME),
        clock: context.clock().clone(),
        pods: pods.lister(),
        nodes: nodes.lister(),
        running: Mutex::default(),
    });
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    pods.add_handler(move |delta| {
        if observer.pod_matters(&delta) {
            keys.add(object_key(&**delta.object()));
        }
    });
    let (lister, keys) = (pods.lister(), queue.clone());
    nodes.add_handler(move |delta| {
        let node = delta.object();
        if delta.old().map_or_else(|| !no_execute(node).is_empty(), |old| no_execute(old) != no_execute(node)) {
            let on_node = pods_on(&lister, node.metadata.name.as_deref().unwrap_or_default());
            on_node.iter().for_each(|pod| keys.add(object_key(&**pod)));
        }
    });
    context.run(NAME, &queue, &controller, 8)
}

fn no_execute(node: &Node) -> Vec<Taint> {
    taints(node).iter().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

/// How long a pod may stay.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    Forever,
    For(Duration),
}

/// A taint that nothing tolerates ends the stay at once; of limited tolerations the shortest counts.
fn stay(taints: &[Taint], tolerations: &[Toleration]) -> Stay {
    let mut shortest: Option<i64> = None;
    for taint in taints {
        let Some(toleration) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
            return Stay::For(Duration::ZERO);
        };
        if let Some(seconds) = toleration.toleration_seconds {
            shortest = Some(shortest.map_or(seconds, |known| known.min(seconds)));
        }
    }
    match shortest {
        None => Stay::Forever,
        Some(seconds) => Stay::For(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
    }
}

impl TaintEviction {
    fn pod_matters(&self, delta: &Delta<Arc<Pod>>) -> bool {
        let pod = delta.object();
        let changed = delta
            .old()
            .is_none_or(|old| pods::node_name(old) != pods::node_name(pod) || tolerations(old) != tolerations(pod));
        let tainted =
            || self.nodes.get_named("", pods::node_name(pod)).is_some_and(|node| !no_execute(&node).is_empty());
        changed && (self.running.lock().contains_key(&object_key(&**pod)) || tainted())
    }

    fn say(&self, key: &ObjectKey, text: &str) {
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            ..ObjectReference::default()
        };
        self.recorder.event_about(reference, EventType::Normal, "TaintManagerEviction", format!("{text} Pod {key}"));
    }

    /// The pod's time no longer runs.
    fn cancel(&self, key: &ObjectKey) {
        if self.running.lock().remove(key).is_some() {
            self.say(key, "Cancelling deletion of");
        }
    }

    async fn evict(&self, key: &ObjectKey, pod: &Pod) -> Result<(), SyncError> {
        let wanted = PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("DeletionByTaintManager".to_owned()),
            message: Some("Taint manager: deleting due to NoExecute taint".to_owned()),
            ..PodCondition::default()
        };
        self.say(key, "Marking for deletion");
        let marked = pods::patch_condition(&self.client, pod, wanted, self.clock.now()).await;
        ignore_not_found(marked).map_err(SyncError::during("marking a pod for eviction"))?;
        let api = self.client.namespaced::<Pod>(&key.namespace);
        let deleted = api.delete(&key.name, &DeleteOptions::uid(uid_of(pod))).await;
        ignore_not_found(deleted).map_err(SyncError::during("evicting a pod"))?;
        self.running.lock().remove(key);
        Ok(())
    }
}

impl Reconciler for TaintEviction {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let pod = self.pods.get(key).filter(|pod| !pods::is_terminating(pod));
        let node = pod.as_ref().and_then(|pod| self.nodes.get_named("", pods::node_name(pod)));
        let taints = node.map(|node| no_execute(&node)).unwrap_or_default();
        let Some(pod) = pod.filter(|_| !taints.is_empty()) else {
            self.cancel(key);
            return Ok(Requeue::Never);
        };
        let Stay::For(time) = stay(&taints, tolerations(&pod)) else {
            self.cancel(key);
            return Ok(Requeue::Never);
        };
        let now = self.clock.monotonic();
        let since = *self.running.lock().entry(key.clone()).or_insert(now);
        let left = (since + time).saturating_sub(now);
        if left.is_zero() {
            self.evict(key, &pod).await?;
            metrics().taint_evicted(self.clock.monotonic().saturating_sub(since + time));
            return Ok(Requeue::Never);
        }
        Ok(Requeue::After(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_toleration_counts_and_all_taints_must_be_tolerated() {
        let taint = |key: &str| Taint { key: key.to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() };
        let toleration = |key: &str, seconds: Option<i64>| Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        let taints = [taint("a"), taint("b")];
        assert_eq!(stay(&taints, &[toleration("a", None)]), Stay::For(Duration::ZERO));
        assert_eq!(stay(&taints, &[toleration("a", None), toleration("b", None)]), Stay::Forever);
        let limited = [toleration("a", Some(30)), toleration("b", Some(20))];
        assert_eq!(stay(&taints, &limited), Stay::For(Duration::from_secs(20)));
        assert_eq!(
            stay(&taints, &[Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() }]),
            Stay::Forever
        );
    }
}
