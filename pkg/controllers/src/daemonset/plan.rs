//! The pods to create and to delete so that every node has what it should, whatever their template.
//!
//! Behaves as `manage` of pkg/controller/daemon/daemon_controller.go, v1.36.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rkube_api::k8s::apps::v1::{DaemonSet, DaemonSetSpec};
use rkube_api::k8s::core::v1::{Node, Pod};
use rkube_apimachinery::int_or_string::Rounding;

use super::nodes::{Fit, Requirements};
use super::pods::{hash_of, is_updated, oldest_first, target_node, template_generation};
use crate::common::numbers::scaled;
use crate::common::pods;

/// Pods created and pods deleted in one sync, at most. The rest follows when these were seen.
pub(super) const BURST: usize = 250;

/// What a sync looks at.
pub(super) struct Found<'a> {
    pub(super) spec: &'a DaemonSetSpec,
    /// By name.
    pub(super) nodes: BTreeMap<String, Fit>,
    /// The set's pods by the node they are on or for, the oldest first.
    pub(super) by_node: BTreeMap<String, Vec<Arc<Pod>>>,
    /// Of the current template.
    pub(super) hash: &'a str,
    pub(super) generation: Option<i64>,
    pub(super) now: Timestamp,
}

/// Something to say about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Remark {
    Failed { pod: String, node: String },
    Succeeded { pod: String, node: String },
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The nodes to create a pod for.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) remarks: Vec<Remark>,
    /// When a failed pod may be replaced that must stay now.
    pub(super) wait: Option<Duration>,
}

impl<'a> Found<'a> {
    pub(super) fn new(
        set: &DaemonSet,
        spec: &'a DaemonSetSpec,
        nodes: &[Arc<Node>],
        members: &[Arc<Pod>],
        hash: &'a str,
        now: Timestamp,
    ) -> Self {
        let requirements = Requirements::new(spec);
        let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
        let nodes = nodes.iter().map(|node| (name(node), requirements.fit(node))).collect();
        let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in members {
            // One that has ended and is deleted is the kubelet's, or of who holds a finalizer.
            let over = pods::is_terminal(pod) && pods::is_terminating(pod);
            if let Some(node) = target_node(pod).filter(|_| !over) {
                by_node.entry(node.to_owned()).or_default().push(Arc::clone(pod));
            }
        }
        by_node.values_mut().for_each(|pods| pods.sort_by(|a, b| oldest_first(a, b)));
        Self { spec, nodes, by_node, hash, generation: template_generation(set), now }
    }

    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    pub(super) fn is_updated(&self, pod: &Pod) -> bool {
        is_updated(pod, self.hash, self.generation)
    }

    pub(super) fn runs_on(&self, node: &str) -> bool {
        self.nodes.get(node) == Some(&Fit::Runs)
    }

    pub(super) fn desired(&self) -> usize {
        self.nodes.values().filter(|fit| **fit == Fit::Runs).count()
    }

    pub(super) fn is_rolling(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
        strategy.is_none_or(|strategy| strategy == "RollingUpdate")
    }

    /// How many nodes may have two pods, and how many none, of `desired`.
    pub(super) fn tolerance(&self, desired: usize) -> (usize, usize) {
        if !self.is_rolling() {
            return (0, 0);
        }
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let total = i32::try_from(desired).unwrap_or(i32::MAX);
        let part = |value| usize::try_from(scaled(value, total, Rounding::Up)).unwrap_or(0);
        let surge = rolling.map_or(0, |rolling| part(rolling.max_surge.as_ref()));
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let unavailable = unavailable.map_or(usize::from(rolling.is_none()), |value| part(Some(value)));
        // Neither would be a rollout that never moves.
        (surge, if surge == 0 { unavailable.max(1) } else { unavailable })
    }
}

/// `hold` says whether the failed pod of a node must stay for a while, and for how long.
pub(super) fn manage(found: &Found<'_>, hold: impl Fn(&str) -> Option<Duration>) -> Plan {
    let mut plan = Plan::default();
    let surges = found.tolerance(1).0 > 0;
    for (node, fit) in &found.nodes {
        let members = found.by_node.get(node).map(Vec::as_slice).unwrap_or_default();
        match fit {
            Fit::Runs if members.is_empty() => plan.create.push(node.clone()),
            Fit::Runs | Fit::Keeps => {
                let running = sort_out(node, members, &hold, &mut plan);
                if surges && running.is_empty() && *fit == Fit::Runs {
                    plan.create.push(node.clone());
                }
                let excess =
                    if surges { surplus(found, &running) } else { running.get(1..).unwrap_or_default().to_vec() };
                plan.delete.extend(excess);
            }
            Fit::Refuses => plan.delete.extend(members.iter().filter(|pod| !pods::is_terminating(pod)).cloned()),
        }
    }
    // The scheduler cannot bind a pod to a node that is gone, and nobody else would ever look at it.
    let lost = found.by_node.iter().filter(|(node, _)| !found.nodes.contains_key(*node));
    plan.delete.extend(lost.flat_map(|(_, pods)| pods).filter(|pod| pods::node_name(pod).is_empty()).cloned());
    plan
}

/// Condemns pods that have ended; returns those that live, the oldest first.
fn sort_out(
    node: &str,
    members: &[Arc<Pod>],
    hold: &impl Fn(&str) -> Option<Duration>,
    plan: &mut Plan,
) -> Vec<Arc<Pod>> {
    let mut running = Vec::new();
    for pod in members.iter().filter(|pod| !pods::is_terminating(pod)) {
        let (name, node_name) = (pod.metadata.name.clone().unwrap_or_default(), node.to_owned());
        match pods::phase(pod) {
            "Failed" => match hold(node) {
                Some(wait) => plan.wait = Some(plan.wait.map_or(wait, |known| known.min(wait))),
                None => {
                    plan.remarks.push(Remark::Failed { pod: name, node: node_name });
                    plan.delete.push(Arc::clone(pod));
                }
            },
            "Succeeded" => {
                plan.remarks.push(Remark::Succeeded { pod: name, node: node_name });
                plan.delete.push(Arc::clone(pod));
            }
            _ => running.push(Arc::clone(pod)),
        }
    }
    running
}

/// With surge a node has two pods only while the new one is not available and the old one is ready.
fn surplus(found: &Found<'_>, running: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    if running.len() < 2 {
        return Vec::new();
    }
    let (new, old): (Vec<_>, Vec<_>) = running.iter().cloned().partition(|pod| hash_of(pod) == found.hash);
    let mut excess: Vec<_> = new.iter().skip(1).chain(old.iter().skip(1)).cloned().collect();
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pods::is_ready(old) || found.is_available(new))
    {
        excess.push(Arc::clone(old));
    }
    excess
}

/// Keeps a plan within what one sync may do, and each pod in it once.
pub(super) fn bounded(mut plan: Plan) -> Plan {
    plan.create.truncate(BURST);
    let mut seen = HashSet::new();
    plan.delete.retain(|pod| seen.insert(pod.metadata.uid.clone()));
    plan.delete.truncate(BURST);
    plan
}
