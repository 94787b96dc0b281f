//! What a node's conditions mean for its taints, labels and conditions.

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{Node, NodeCondition, Taint};
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::time::whole_seconds;

use crate::common::nodes::{condition, ready_status, taints};

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, its status, and the taint that goes with it.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// Labels that old clients read, and those they repeat.
const LEGACY_LABELS: [(&str, &str); 2] =
    [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")];

/// What to do about a node's `NoExecute` taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoExecute {
    /// As it is.
    Keep,
    Remove,
    /// The node has the other one: changing it evicts nobody new.
    Swap(&'static str),
    /// Pods will have to go: not too many nodes at once.
    Add(&'static str),
}

pub(super) fn no_execute(node: &Node) -> NoExecute {
    let has = |key: &str| taints(node).iter().any(|taint| taint.key == key && taint.effect == "NoExecute");
    let (wanted, other) = match ready_status(node) {
        Some("True") => {
            return if has(NOT_READY) || has(UNREACHABLE) { NoExecute::Remove } else { NoExecute::Keep };
        }
        Some("False") => (NOT_READY, UNREACHABLE),
        Some("Unknown") => (UNREACHABLE, NOT_READY),
        _ => return NoExecute::Keep,
    };
    match (has(wanted), has(other)) {
        (true, false) => NoExecute::Keep,
        (_, true) => NoExecute::Swap(wanted),
        (false, false) => NoExecute::Add(wanted),
    }
}

/// The taints a node is to have: `NoSchedule` by its conditions, and `execute` where that is decided.
pub(super) fn wanted_taints(node: &Node, execute: Option<NoExecute>, now: Timestamp) -> Vec<Taint> {
    let managed = |taint: &Taint| match taint.effect.as_str() {
        "NoSchedule" => taint.key == UNSCHEDULABLE || CONDITION_TAINTS.iter().any(|(_, _, key)| taint.key == *key),
        "NoExecute" => {
            execute.is_some_and(|execute| execute != NoExecute::Keep)
                && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str())
        }
        _ => false,
    };
    let mut keys: Vec<&str> = CONDITION_TAINTS
        .iter()
        .filter(|(name, status, _)| condition(node, name).is_some_and(|condition| condition.status == *status))
        .map(|(_, _, key)| *key)
        .collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false) {
        keys.push(UNSCHEDULABLE);
    }
    let present = taints(node);
    let mut wanted: Vec<Taint> = present.iter().filter(|taint| !managed(taint)).cloned().collect();
    for key in keys {
        // What is there stays as it is, with its time.
        let known = present.iter().find(|taint| taint.key == key && taint.effect == "NoSchedule").cloned();
        wanted.push(
            known.unwrap_or_else(|| Taint { time_added: Some(Time(whole_seconds(now))), ..taint(key, "NoSchedule") }),
        );
    }
    if let Some(NoExecute::Swap(key) | NoExecute::Add(key)) = execute {
        wanted.push(Taint { time_added: Some(Time(whole_seconds(now))), ..taint(key, "NoExecute") });
    }
    wanted
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.to_owned(), effect: effect.to_owned(), ..Taint::default() }
}

/// Whether two lists have the same taints, in any order.
pub(super) fn same_taints(a: &[Taint], b: &[Taint]) -> bool {
    a.len() == b.len() && a.iter().all(|taint| b.contains(taint))
}

/// Labels to set.
pub(super) fn missing_labels(node: &Node) -> Vec<(&'static str, String)> {
    let label = |name: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let missing = LEGACY_LABELS.iter().filter_map(|(name, legacy)| {
        let value = label(name)?;
        (label(legacy) != Some(value)).then(|| (*legacy, value.clone()))
    });
    missing.collect()
}

/// The conditions of a node that was silent for too long.
pub(super) fn silent_conditions(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let mut conditions = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    for name in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|condition| condition.type_ == name) {
            None => conditions.push(NodeCondition {
                type_: name.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(whole_seconds(now))),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(whole_seconds(now)));
            }
            Some(_) => {}
        }
    }
    conditions
}

/// How a zone is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZoneState {
    Normal,
    /// Many nodes are down, and not all.
    Partial,
    Full,
}

pub(super) fn zone_state(ready: usize, not_ready: usize, threshold: f32) -> ZoneState {
    #[allow(clippy::cast_precision_loss, reason = "counts of nodes are far below 2^24")]
    let share = not_ready as f32 / (ready + not_ready).max(1) as f32;
    match (ready, not_ready) {
        (0, 1..) => ZoneState::Full,
        (_, 3..) if share >= threshold => ZoneState::Partial,
        _ => ZoneState::Normal,
    }
}
