//! Which pods are to go.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{Node, Pod};

use crate::common::nodes::{ready_status, taints};
use crate::common::pods;

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The node's machine is known to be off: its pods will not stop by themselves.
pub(super) fn is_out_of_service(node: &Node) -> bool {
    ready_status(node) != Some("True") && taints(node).iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Whether a pod is to be finished here because no kubelet does it. `node` is the one it is bound to, if that exists.
pub(super) fn is_abandoned(pod: &Pod, node: Option<&Node>) -> bool {
    pods::is_terminating(pod)
        && !is_finished_here(pod)
        && (pods::node_name(pod).is_empty() || node.is_some_and(is_out_of_service))
}

/// Failed or succeeded, and deleted without grace: it only waits for its finalizers.
pub(super) fn is_finished_here(pod: &Pod) -> bool {
    pods::is_terminal(pod) && pods::is_terminating(pod) && pod.metadata.deletion_grace_period_seconds == Some(0)
}

/// Those of the finished pods that are more than `threshold`: evicted ones first, then the oldest.
pub(super) fn surplus(mut finished: Vec<Arc<Pod>>, threshold: usize) -> Vec<Arc<Pod>> {
    let count = finished.len().saturating_sub(threshold);
    if count == 0 {
        return Vec::new();
    }
    let evicted = |pod: &Pod| {
        let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
        pods::phase(pod) == "Failed" && reason == Some("Evicted")
    };
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    finished.sort_by_cached_key(|pod| (!evicted(pod), created(pod), pod.metadata.name.clone()));
    finished.truncate(count);
    finished
}
