//! Reading pods: phase, readiness, availability, and which to delete first.
//!
//! Behaves as `pkg/api/v1/pod/util.go` and `ActivePodsWithRanks` of `pkg/controller/controller_utils.go`, v1.36.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{Pod, PodCondition};
use rkube_client::owner::{controller_of, uid_of};
use rkube_client::{Informer, Lister};

/// Pods by the uid of their controller; those without one by [`orphans_of`] their namespace.
pub(crate) const CONTROLLER_INDEX: &str = "controllerUid";

/// The index value of pods in a namespace that no controller manages.
pub(crate) fn orphans_of(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

pub(crate) fn index_by_controller(pods: &Informer<Pod>) {
    pods.add_index(CONTROLLER_INDEX, |pod| match controller_of(&pod.metadata) {
        Some(reference) => vec![reference.uid.clone()],
        None => vec![orphans_of(pod.metadata.namespace.as_deref().unwrap_or_default())],
    });
}

/// The pods a controller manages and those it might adopt.
pub(crate) fn owned_and_orphans(pods: &Lister<Pod>, uid: &str, namespace: &str) -> Vec<Arc<Pod>> {
    let mut found = pods.by_index(CONTROLLER_INDEX, uid);
    found.extend(pods.by_index(CONTROLLER_INDEX, &orphans_of(namespace)));
    found
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Finished: no container of it will ever run again.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Counts towards replicas: neither finished nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_terminating(pod)
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

pub(crate) fn condition<'a>(pod: &'a Pod, condition_type: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().find(|condition| condition.type_ == condition_type)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when the pod is ready, if it is.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    condition.last_transition_time.as_ref().map(|time| time.0)
}

/// Ready for at least `min_ready_seconds`.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod) && (min_ready_seconds <= 0 || until_available(pod, min_ready_seconds, now) == Some(Duration::ZERO))
}

/// How long a ready pod still has to be ready to be available; zero if it is.
pub(crate) fn until_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let available = ready_since(pod)?.checked_add(jiff::SignedDuration::from_secs(min_ready_seconds.into())).ok()?;
    Some(Duration::try_from(available.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// When the next of `pods` becomes available, if one is waiting to.
pub(crate) fn next_availability_check(pods: &[Arc<Pod>], min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if min_ready_seconds <= 0 {
        return None;
    }
    let waits = pods.iter().filter_map(|pod| until_available(pod, min_ready_seconds, now));
    waits.filter(|wait| !wait.is_zero()).min()
}

/// The most restarts of a container of the pod: of regular ones and of sidecars.
fn restarts(pod: &Pod) -> (i32, i32) {
    let Some(status) = &pod.status else { return (0, 0) };
    let regular = status.container_statuses.iter().flatten().map(|container| container.restart_count);
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .map(|container| container.name.as_str())
        .collect();
    let init = status.init_container_statuses.iter().flatten();
    let init = init.filter(|container| sidecars.contains(&container.name.as_str()));
    (regular.max().unwrap_or(0), init.map(|container| container.restart_count).max().unwrap_or(0))
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    let cost = annotations.and_then(|annotations| annotations.get("controller.kubernetes.io/pod-deletion-cost"));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// The base-2 logarithm of an age, so that pods of similar age count as equally old; none for the future.
fn rank_of_age(time: Timestamp, now: Timestamp) -> i64 {
    let nanos = now.duration_since(time).as_nanos();
    if nanos > 0 { i64::from(nanos.ilog2()) } else { -1 }
}

/// Unassigned before assigned, pending before running, unready before ready.
fn progress(pod: &Pod) -> (bool, u8, bool) {
    let phase = match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    (!node_name(pod).is_empty(), phase, is_ready(pod))
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// The pods that have come the least far, restarted the most or are the youngest come first.
pub(crate) fn sort_least_useful_first(pods: &mut [Arc<Pod>]) {
    // Of two times the later comes first, and before both one that is not known.
    let latest_first = |time: Option<Timestamp>| time.map(Reverse);
    pods.sort_by(|a, b| {
        progress(a)
            .cmp(&progress(b))
            .then_with(|| latest_first(ready_since(a)).cmp(&latest_first(ready_since(b))))
            .then_with(|| restarts(b).cmp(&restarts(a)))
            .then_with(|| latest_first(created(a)).cmp(&latest_first(created(b))))
    });
}

/// Which `count` of `pods` to delete when there are too many: the least useful. `related` are pods of the
/// same application; a node that has more of them gives its pods up first.
pub(crate) fn choose_for_deletion(
    pods: &[Arc<Pod>],
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    if count >= pods.len() {
        return pods.to_vec();
    }
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| is_active(pod)) {
        *on_node.entry(node_name(pod)).or_default() += 1;
    }
    // Differs from upstream: there, pods ready since about the same time are ordered by uid if the times differ at all
    // and by restarts if they do not, which is no order when three pods meet. Here restarts count in both cases.
    let key = |pod: &Arc<Pod>| {
        let age = |time: Option<Timestamp>| time.map(|time| rank_of_age(time, now));
        let ready_age = if is_ready(pod) { age(ready_since(pod)) } else { None };
        let rank = on_node.get(node_name(pod)).copied().unwrap_or(0);
        let usefulness = (progress(pod), deletion_cost(pod), Reverse(rank), ready_age);
        (usefulness, Reverse(restarts(pod)), age(created(pod)), uid_of(&**pod).to_owned())
    };
    let mut sorted = pods.to_vec();
    sorted.sort_by_cached_key(key);
    sorted.truncate(count);
    sorted
}

/// A condition as it goes into a patch of the pod's status: its time moves only with its status.
pub(crate) fn condition_fields(pod: &Pod, wanted: PodCondition, now: Timestamp) -> serde_json::Value {
    use rkube_apimachinery::time;

    let current = condition(pod, &wanted.type_).filter(|current| current.status == wanted.status);
    let since = current.and_then(|current| current.last_transition_time.as_ref()).map_or(now, |time| time.0);
    let mut fields = serde_json::json!({
        "type": wanted.type_, "status": wanted.status, "lastTransitionTime": time::format(since),
        "observedGeneration": pod.metadata.generation,
    });
    for (name, text) in [("reason", wanted.reason), ("message", wanted.message)] {
        if let Some(text) = text {
            fields[name] = text.into();
        }
    }
    fields
}

/// Writes one condition of a pod's status, if its status or reason changes. Whether it did.
pub(crate) async fn patch_condition(
    client: &rkube_client::Client,
    pod: &Pod,
    wanted: PodCondition,
    now: Timestamp,
) -> Result<bool, rkube_client::ClientError> {
    let current = condition(pod, &wanted.type_);
    if current.is_some_and(|current| {
        current.status == wanted.status && current.reason == wanted.reason && current.message == wanted.message
    }) {
        return Ok(false);
    }
    let fields = condition_fields(pod, wanted, now);
    let patch = serde_json::json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [fields]}});
    let api = client.namespaced::<Pod>(pod.metadata.namespace.as_deref().unwrap_or_default());
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    api.patch_status(name, &rkube_client::Patch::Strategic(patch)).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use rkube_api::Kind;
    use serde_json::json;

    use super::*;

    /// Ready pods whose times, restarts and names are all in different orders.
    fn ready_pods(count: usize) -> Vec<Arc<Pod>> {
        let pod = |index: usize| {
            let second = |step: usize| format!("2026-01-01T00:00:{:02}Z", index * step % 60);
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": format!("p{index}"), "uid": format!("{:03}", index * 37 % 101),
                    "creationTimestamp": second(11),
                },
                "spec": {"nodeName": "n", "containers": []},
                "status": {
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": second(7)}],
                    "containerStatuses": [{
                        "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": index % 3,
                    }],
                },
            })
        };
        (0..count).map(|index| Arc::new(Pod::from_value(pod(index)).unwrap())).collect()
    }

    #[test]
    fn the_same_pods_go_in_whatever_order_they_are_listed() {
        let mut pods = ready_pods(100);
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let chosen = choose_for_deletion(&pods, &pods, 40, now);
        assert_eq!(chosen.len(), 40);
        pods.reverse();
        assert_eq!(choose_for_deletion(&pods, &pods, 40, now), chosen);
    }
}
