//! The status of pods: what it is, and getting it to the API server.
//!
//! [`generate`] is pure; [`manager`] writes.
//! Behaves as generateAPIPodStatus in pkg/kubelet/kubelet_pods.go and pkg/kubelet/status, v1.36.

mod conditions;
pub mod convert;
pub mod manager;
mod phase;
mod whole;

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{HostIP, Pod, PodCondition, PodIP, PodStatus};
use rkube_api::meta::pkg::apis::meta::v1::Time;

use crate::admission::Refusal;
use crate::cm::Limits;
use crate::pod::{ContainerKind, PodExt};
use crate::runtime::state::{RuntimePod, sandbox_changed};
use crate::runtime::sync::Waiting;
use crate::status::convert::{Converter, ProbeState};

/// A phase that something other than the containers decided: eviction, deadline, refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
    /// A DisruptionTarget condition's reason, where the pod was pushed out.
    pub disruption: Option<String>,
    /// The condition's message, where it is another one.
    pub disruption_message: Option<String>,
    /// The pod never ran here, so there is nothing else to tell of it.
    pub is_refusal: bool,
}

impl Verdict {
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
            disruption: None,
            disruption_message: None,
            is_refusal: false,
        }
    }

    /// The kubelet ends a pod that could have gone on.
    pub fn disruption(reason: &str, message: impl Into<String>) -> Self {
        Self { disruption: Some("TerminationByKubelet".to_owned()), ..Self::new(reason, message) }
    }

    pub fn refusal(refusal: &Refusal) -> Self {
        let message = format!("Pod was rejected: {}", refusal.message);
        Self { is_refusal: true, ..Self::new(&refusal.reason, message) }
    }
}

/// Everything a status is made from.
pub struct StatusInputs<'a> {
    pub pod: &'a Pod,
    pub runtime: &'a RuntimePod,
    /// The status last generated, or the API's.
    pub old: &'a PodStatus,
    pub waiting: &'a [Waiting],
    pub probes: &'a dyn ProbeState,
    /// No container will be started any more.
    pub is_terminal: bool,
    pub verdict: Option<&'a Verdict>,
    pub host_ips: &'a [String],
    pub runtime_name: &'a str,
    pub now: Timestamp,
    /// What is told of its resize.
    pub resize: &'a [PodCondition],
    /// What its cgroup is limited to.
    pub limits: Option<Limits>,
}

pub(crate) fn is_terminal_phase(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// Whether only the kubelet writes a condition.
pub(crate) fn is_own_condition(kind: &str) -> bool {
    conditions::OWNED.contains(&kind)
}

/// The pod's status.
pub fn generate(inputs: &StatusInputs<'_>) -> PodStatus {
    let StatusInputs { pod, runtime, old, .. } = *inputs;
    if let Some(verdict) = inputs.verdict.filter(|verdict| verdict.is_refusal) {
        return refused(inputs, verdict);
    }
    let converter =
        Converter { pod, runtime, waiting: inputs.waiting, probes: inputs.probes, runtime_name: inputs.runtime_name };
    let regular = converter.convert(ContainerKind::Regular, old.container_statuses.as_deref().unwrap_or_default());
    let init = converter.convert(ContainerKind::Init, old.init_container_statuses.as_deref().unwrap_or_default());
    let ephemeral =
        converter.convert(ContainerKind::Ephemeral, old.ephemeral_container_statuses.as_deref().unwrap_or_default());
    let all: Vec<_> = init.iter().chain(&regular).cloned().collect();

    let mut status = PodStatus {
        qos_class: Some(pod.qos().as_str().to_owned()),
        start_time: start_time(inputs),
        observed_generation: pod.generation(),
        resize: old.resize.clone(),
        nominated_node_name: old.nominated_node_name.clone(),
        resource_claim_statuses: old.resource_claim_statuses.clone(),
        ..PodStatus::default()
    };
    set_phase(inputs, &all, &mut status);
    let phase = status.phase.clone().unwrap_or_default();

    let api_conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let mut conditions: Vec<PodCondition> = api_conditions
        .iter()
        .filter(|condition| !conditions::OWNED.contains(&condition.type_.as_str()))
        .cloned()
        .collect();
    add_disruption(inputs, &mut conditions);
    let (sandbox_needed, ..) = sandbox_changed(pod, runtime);
    let containers_ready = conditions::containers_ready(pod, &all, &phase);
    let ready = conditions::ready(pod, &containers_ready, &conditions);
    conditions.extend([
        conditions::ready_to_start(pod, !sandbox_needed),
        conditions::initialized(pod, &all, &phase),
        ready,
        containers_ready,
        conditions::scheduled(pod),
    ]);
    if !is_terminal_phase(&phase) {
        conditions.extend(inputs.resize.iter().cloned());
    }
    status.conditions = Some(conditions);

    let ips = if pod.is_host_network() && !all.is_empty() { inputs.host_ips.to_vec() } else { pod_ips(inputs) };
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
    status.host_ip = inputs.host_ips.first().cloned();
    let host_ips: Vec<HostIP> = inputs.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect();
    status.host_ips = (!host_ips.is_empty()).then_some(host_ips);

    (status.allocated_resources, status.resources) = whole::resources(inputs);
    let optional = |list: Vec<_>| (!list.is_empty()).then_some(list);
    status.container_statuses = Some(regular);
    status.init_container_statuses = optional(init);
    status.ephemeral_container_statuses = optional(ephemeral);
    status
}

/// All there is to tell of a pod that was not let in.
fn refused(inputs: &StatusInputs<'_>, verdict: &Verdict) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(verdict.reason.clone()),
        message: Some(verdict.message.clone()),
        qos_class: Some(inputs.pod.qos().as_str().to_owned()),
        start_time: start_time(inputs),
        observed_generation: inputs.pod.generation(),
        ..PodStatus::default()
    }
}

/// When the kubelet first saw the pod.
fn start_time(inputs: &StatusInputs<'_>) -> Option<Time> {
    let now = || Time(rkube_apimachinery::time::whole_seconds(inputs.now));
    inputs.old.start_time.clone().or_else(|| Some(now()))
}

/// The addresses of the sandbox; those the pod had, once its sandbox is gone.
fn pod_ips(inputs: &StatusInputs<'_>) -> Vec<String> {
    let now = inputs.runtime.ips();
    if !now.is_empty() {
        return now.to_vec();
    }
    let terminal = inputs.old.phase.as_deref().is_some_and(is_terminal_phase);
    if !terminal && !inputs.is_terminal {
        return vec![];
    }
    inputs.old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
}

fn set_phase(inputs: &StatusInputs<'_>, all: &[rkube_api::k8s::core::v1::ContainerStatus], status: &mut PodStatus) {
    let StatusInputs { pod, old, .. } = *inputs;
    let initialized = conditions::any_regular_started(pod, all);
    let mut phase = phase::phase(pod, all, inputs.is_terminal, initialized).to_owned();
    // A phase that ended stays ended.
    for earlier in [old.phase.as_deref().unwrap_or_default(), pod.phase()] {
        if !is_terminal_phase(&phase) && is_terminal_phase(earlier) {
            earlier.clone_into(&mut phase);
        }
    }
    if is_terminal_phase(pod.phase()) {
        pod.phase().clone_into(&mut phase);
    }
    if Some(&phase) == old.phase.as_ref() {
        let api = pod.status.as_ref();
        status.reason = old.reason.clone().or_else(|| api.and_then(|status| status.reason.clone()));
        status.message = old.message.clone().or_else(|| api.and_then(|status| status.message.clone()));
    }
    if let Some(verdict) = inputs.verdict
        && !is_terminal_phase(pod.phase())
    {
        "Failed".clone_into(&mut phase);
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
    }
    status.phase = Some(phase);
}

fn add_disruption(inputs: &StatusInputs<'_>, conditions: &mut Vec<PodCondition>) {
    const KIND: &str = "DisruptionTarget";
    let fresh = inputs.verdict.and_then(|verdict| {
        Some(PodCondition {
            type_: KIND.to_owned(),
            status: "True".to_owned(),
            reason: Some(verdict.disruption.clone()?),
            message: verdict.disruption_message.clone().or_else(|| Some(verdict.message.clone())),
            observed_generation: inputs.pod.generation(),
            ..PodCondition::default()
        })
    });
    let known = inputs.old.conditions.iter().flatten().find(|condition| condition.type_ == KIND).cloned();
    if let Some(condition) = known.or(fresh) {
        conditions.retain(|condition| condition.type_ != KIND);
        conditions.push(condition);
    }
}

#[cfg(test)]
mod tests;
