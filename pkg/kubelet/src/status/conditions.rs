//! The kubelet's conditions of a pod. Pure.
//!
//! Behaves as pkg/kubelet/status/generate.go, v1.36.

use rkube_api::k8s::core::v1::{ContainerStatus, Pod, PodCondition};

use crate::allocation::conditions::{IN_PROGRESS, PENDING};
use crate::pod::{PodExt, init_containers, is_sidecar};

/// Conditions that only the kubelet writes.
pub(crate) const OWNED: [&str; 7] =
    ["PodScheduled", "Ready", "Initialized", "ContainersReady", "PodReadyToStartContainers", PENDING, IN_PROGRESS];

fn condition(pod: &Pod, kind: &str, status: bool, reason: &str, message: String) -> PodCondition {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    PodCondition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: some(reason),
        message: some(&message),
        observed_generation: pod.generation(),
        ..PodCondition::default()
    }
}

/// `[a b]`, as Go prints a list.
fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn find<'a>(statuses: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|status| status.name == name)
}

pub(crate) fn scheduled(pod: &Pod) -> PodCondition {
    condition(pod, "PodScheduled", true, "", String::new())
}

pub(crate) fn ready_to_start(pod: &Pod, sandbox_is_up: bool) -> PodCondition {
    condition(pod, "PodReadyToStartContainers", sandbox_is_up, "", String::new())
}

pub(crate) fn initialized(pod: &Pod, statuses: &[ContainerStatus], phase: &str) -> PodCondition {
    const KIND: &str = "Initialized";
    let mut unknown = Vec::new();
    let mut incomplete = Vec::new();
    for container in init_containers(pod.pod_spec()) {
        match find(statuses, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) => {
                let done = if is_sidecar(container) { status.started == Some(true) } else { status.ready };
                if !done {
                    incomplete.push(container.name.as_str());
                }
            }
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return condition(pod, KIND, true, "PodCompleted", String::new());
    }
    // A regular container that ran proves initialization, whatever became of its containers since.
    if any_regular_started(pod, statuses) {
        return condition(pod, KIND, true, "", String::new());
    }
    let message = messages(&unknown, &incomplete, "incomplete");
    let reason = if message.is_empty() { "" } else { "ContainersNotInitialized" };
    condition(pod, KIND, message.is_empty(), reason, message)
}

/// Whether any regular container runs or has run.
pub(crate) fn any_regular_started(pod: &Pod, statuses: &[ContainerStatus]) -> bool {
    pod.pod_spec().containers.iter().filter_map(|container| find(statuses, &container.name)).any(|status| {
        let ran = |state: &Option<rkube_api::k8s::core::v1::ContainerState>| {
            state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
        };
        ran(&status.state) || ran(&status.last_state)
    })
}

fn messages(unknown: &[&str], other: &[&str], what: &str) -> String {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", list(unknown)));
    }
    if !other.is_empty() {
        parts.push(format!("containers with {what} status: {}", list(other)));
    }
    parts.join(", ")
}

pub(crate) fn containers_ready(pod: &Pod, statuses: &[ContainerStatus], phase: &str) -> PodCondition {
    const KIND: &str = "ContainersReady";
    let spec = pod.pod_spec();
    let counted = init_containers(spec).iter().filter(|container| is_sidecar(container)).chain(&spec.containers);
    let mut unknown = Vec::new();
    let mut unready = Vec::new();
    for container in counted {
        match find(statuses, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) if !status.ready => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    match phase {
        "Succeeded" if unknown.is_empty() => return condition(pod, KIND, false, "PodCompleted", String::new()),
        "Failed" => return condition(pod, KIND, false, "PodFailed", String::new()),
        _ => {}
    }
    let message = messages(&unknown, &unready, "unready");
    let reason = if message.is_empty() { "" } else { "ContainersNotReady" };
    condition(pod, KIND, message.is_empty(), reason, message)
}

/// Ready are the containers and the pod's gates, which are conditions that others write.
pub(crate) fn ready(pod: &Pod, containers_ready: &PodCondition, foreign: &[PodCondition]) -> PodCondition {
    const KIND: &str = "Ready";
    if containers_ready.status != "True" {
        return PodCondition { type_: KIND.to_owned(), ..containers_ready.clone() };
    }
    let gates = pod.pod_spec().readiness_gates.as_deref().unwrap_or_default();
    let closed: Vec<String> = gates
        .iter()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match foreign.iter().find(|condition| condition.type_ == *name) {
                None => Some(format!("corresponding condition of pod readiness gate {name:?} does not exist.")),
                Some(condition) if condition.status != "True" => {
                    Some(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", condition.status))
                }
                Some(_) => None,
            }
        })
        .collect();
    let reason = if closed.is_empty() { "" } else { "ReadinessGatesNotReady" };
    condition(pod, KIND, closed.is_empty(), reason, closed.join(", "))
}
