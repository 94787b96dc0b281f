//! Whether a pod may run here: pressure, sysctls, what the node is, what is left of it. Pure.
//!
//! Behaves as pkg/kubelet/lifecycle/{predicate,handlers}.go, pkg/kubelet/sysctl and the eviction manager's Admit,
//! v1.36.

mod preemption;
mod sysctls;

use std::sync::Arc;

use rkube_api::host_ports::host_ports_of;
use rkube_api::k8s::core::v1::{Node, Pod, Taint};
use rkube_api::node_affinity::{NodeLabels, required_matches};
use rkube_api::pod_resources::{ResourceList, Side, of_pod, parse};
use rkube_api::taints::is_tolerated;
use rkube_apimachinery::quantity::Quantity;

use crate::pod::{PodExt, QosClass, all_containers};
use crate::shutdown::{NOT_ADMITTED_MESSAGE, NOT_ADMITTED_REASON};

const MEMORY_PRESSURE_TAINT: &str = "node.kubernetes.io/memory-pressure";

/// Why a pod may not run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

#[derive(Debug)]
pub enum Decision {
    Admitted,
    /// It may run once these have ended.
    Preempts(Vec<Arc<Pod>>),
    Refused(Refusal),
}

/// What the node is at the moment of the question.
pub struct NodeView<'a> {
    /// The object as last seen, or as it would be registered.
    pub node: &'a Node,
    /// The kubelet's own figure: the object may not show it yet.
    pub pods_max: u32,
    pub pressure: &'a [&'static str],
    pub is_shutting_down: bool,
    pub allowed_unsafe_sysctls: &'a [String],
    pub apparmor_enabled: bool,
}

/// What a pod does not find on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Lack {
    Resource { name: String, requested: i64, used: i64, capacity: i64 },
    Predicate { name: &'static str, text: &'static str },
}

impl Lack {
    fn refusal(self) -> Refusal {
        match self {
            Self::Resource { name, requested, used, capacity } => Refusal {
                message: format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
                ),
                reason: format!("OutOf{name}"),
            },
            Self::Predicate { name, text } => {
                Refusal { reason: name.to_owned(), message: format!("Predicate {name} failed: {text}") }
            }
        }
    }
}

const NODE_AFFINITY: Lack =
    Lack::Predicate { name: "NodeAffinity", text: "node(s) didn't match Pod's node affinity/selector" };

/// `others` are the pods that take part of the node already.
pub fn admit(view: &NodeView<'_>, pod: &Arc<Pod>, others: &[Arc<Pod>]) -> Decision {
    let early = check_pressure(view, pod).and_then(|()| sysctls::check(pod, view.allowed_unsafe_sysctls));
    if let Err(refusal) = early.and_then(|()| check_os(pod)) {
        return Decision::Refused(refusal);
    }
    let preempted = match settle(pod, lacks(view, pod, others), others) {
        Ok(preempted) => preempted,
        Err(refusal) => return Decision::Refused(refusal),
    };
    if let Err(refusal) = check_apparmor(view, pod).and_then(|()| check_shutdown(view)) {
        return Decision::Refused(refusal);
    }
    if preempted.is_empty() { Decision::Admitted } else { Decision::Preempts(preempted) }
}

/// Whether it was only the node's labels that spoke against the pod: they may have just changed.
pub fn depends_on_labels(refusal: &Refusal) -> bool {
    *refusal == NODE_AFFINITY.refusal()
}

fn refuse(reason: &str, message: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal { reason: reason.to_owned(), message: message.into() })
}

fn check_pressure(view: &NodeView<'_>, pod: &Pod) -> Result<(), Refusal> {
    if pod.is_critical() || view.pressure.is_empty() {
        return Ok(());
    }
    if view.pressure == ["MemoryPressure"] {
        // It spares pods that reserved their memory, and those that say they can live with it.
        let taint =
            Taint { key: MEMORY_PRESSURE_TAINT.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        let tolerations = pod.pod_spec().tolerations.as_deref().unwrap_or_default();
        if pod.qos() != QosClass::BestEffort || is_tolerated(tolerations, &taint) {
            return Ok(());
        }
    }
    refuse("Evicted", format!("The node had condition: [{}]. ", view.pressure.join(" ")))
}

fn check_os(pod: &Pod) -> Result<(), Refusal> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|label| label != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return refuse("PodOSSelectorNodeLabelDoesNotMatch", message);
    }
    if pod.pod_spec().os.as_ref().is_some_and(|os| os.name != "linux") {
        return refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
    }
    Ok(())
}

fn check_apparmor(view: &NodeView<'_>, pod: &Pod) -> Result<(), Refusal> {
    let spec = pod.pod_spec();
    let of_pod = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let asks = all_containers(spec).any(|(_, container)| {
        let own = container.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
        own.or(of_pod).is_some_and(|profile| profile.type_ != "Unconfined")
    });
    if asks && !view.apparmor_enabled {
        return refuse("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host");
    }
    Ok(())
}

fn check_shutdown(view: &NodeView<'_>) -> Result<(), Refusal> {
    if view.is_shutting_down { refuse(NOT_ADMITTED_REASON, NOT_ADMITTED_MESSAGE) } else { Ok(()) }
}

/// Everything the pod does not find, in the order upstream looks for it.
fn lacks(view: &NodeView<'_>, pod: &Pod, others: &[Arc<Pod>]) -> Vec<Lack> {
    let spec = pod.pod_spec();
    let mut lacks = lacking_resources(view, pod, others);
    let name = view.node.metadata.name.as_deref().unwrap_or_default();
    if !required_matches(spec, NodeLabels { name, labels: view.node.metadata.labels.as_ref() }) {
        lacks.push(NODE_AFFINITY);
    }
    if spec.node_name.as_deref().is_some_and(|wanted| !wanted.is_empty() && wanted != name) {
        let text = "node(s) didn't match the requested node name";
        lacks.push(Lack::Predicate { name: "NodeName", text });
    }
    let wanted = host_ports_of(spec);
    let held = || others.iter().flat_map(|other| host_ports_of(other.pod_spec()));
    if !wanted.is_empty() && held().any(|held| wanted.iter().any(|port| port.conflicts(&held))) {
        let text = "node(s) didn't have free ports for the requested pod ports";
        lacks.push(Lack::Predicate { name: "NodePorts", text });
    }
    // A static pod is the machine's own, whatever the cluster thinks of the node.
    let taints = view.node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let repels = |taint: &Taint| taint.effect == "NoExecute" && !is_tolerated(tolerations, taint);
    if !pod.is_static() && taints.iter().any(repels) {
        let text = "node(s) had taints that the pod didn't tolerate";
        lacks.push(Lack::Predicate { name: "TaintToleration", text });
    }
    lacks
}

fn lacking_resources(view: &NodeView<'_>, pod: &Pod, others: &[Arc<Pod>]) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let pods = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if pods >= i64::from(view.pods_max) {
        let capacity = i64::from(view.pods_max);
        lacks.push(Lack::Resource { name: "pods".to_owned(), requested: 1, used: pods, capacity });
    }
    let allocatable = parse(view.node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
    let requests = of_pod(pod.pod_spec(), Side::Requests);
    let used: Vec<ResourceList> = others.iter().map(|other| of_pod(other.pod_spec(), Side::Requests)).collect();
    let ranked = |name: &str| ["cpu", "memory", "ephemeral-storage"].iter().position(|known| *known == name);
    let mut names: Vec<&String> = requests.keys().collect();
    names.sort_by_key(|name| (ranked(name).unwrap_or(usize::MAX), (*name).clone()));
    for name in names {
        let capacity = match allocatable.get(name) {
            Some(capacity) => units(name, capacity),
            // A resource that this node never heard of is the cluster's, and the scheduler has judged it.
            None if is_extended(name) => continue,
            None => 0,
        };
        let requested = units(name, &requests[name]);
        let used: i64 = used.iter().filter_map(|list| list.get(name)).map(|amount| units(name, amount)).sum();
        if requested > 0 && requested > capacity.saturating_sub(used) {
            lacks.push(Lack::Resource { name: name.clone(), requested, used, capacity });
        }
    }
    lacks
}

/// Processors count in thousandths.
fn units(name: &str, amount: &Quantity) -> i64 {
    if name == "cpu" { amount.milli_value() } else { amount.value() }
}

fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"))
}

/// A critical pod takes the room of others if room is all that it lacks.
fn settle(pod: &Arc<Pod>, lacks: Vec<Lack>, others: &[Arc<Pod>]) -> Result<Vec<Arc<Pod>>, Refusal> {
    if !pod.is_critical() {
        return lacks.into_iter().next().map_or(Ok(vec![]), |first| Err(first.refusal()));
    }
    let mut needs = Vec::new();
    for lack in lacks {
        match lack {
            Lack::Resource { name, requested, used, capacity } => {
                needs.push(preemption::Need { name, amount: requested - (capacity - used) });
            }
            predicate @ Lack::Predicate { .. } => return Err(predicate.refusal()),
        }
    }
    preemption::choose(pod, others, &needs).map_err(|error| Refusal {
        reason: "UnexpectedAdmissionError".to_owned(),
        message: format!(
            "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: {error}"
        ),
    })
}

#[cfg(test)]
mod tests;
