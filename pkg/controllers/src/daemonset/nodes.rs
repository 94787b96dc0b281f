//! Which nodes a DaemonSet's pods belong on.
//!
//! Behaves as `NodeShouldRunDaemonPod` of pkg/controller/daemon/daemon_controller.go, v1.36.

use rkube_api::k8s::apps::v1::DaemonSetSpec;
use rkube_api::k8s::core::v1::{Node, PodSpec};
use rkube_api::node_affinity::{NodeLabels, required_matches};
use rkube_api::taints::is_tolerated;

use super::pods::add_tolerations;
use crate::common::nodes::taints;

/// What a node means to a DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Gets a pod.
    Runs,
    /// Keeps a pod that it has.
    Keeps,
    /// Loses its pod.
    Refuses,
}

/// A DaemonSet's requirements of nodes, prepared once for all of them.
pub(super) struct Requirements(PodSpec);

impl Requirements {
    pub(super) fn new(spec: &DaemonSetSpec) -> Self {
        let mut spec = spec.template.spec.clone().unwrap_or_default();
        add_tolerations(&mut spec);
        Self(spec)
    }

    pub(super) fn fit(&self, node: &Node) -> Fit {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let wanted = self.0.node_name.as_deref().unwrap_or_default();
        let labels = NodeLabels { name, labels: node.metadata.labels.as_ref() };
        if !(wanted.is_empty() || wanted == name) || !required_matches(&self.0, labels) {
            return Fit::Refuses;
        }
        let tolerations = self.0.tolerations.as_deref().unwrap_or_default();
        let bears = |effects: &[&str]| {
            let mut relevant = taints(node).iter().filter(|taint| effects.contains(&taint.effect.as_str()));
            relevant.all(|taint| is_tolerated(tolerations, taint))
        };
        if bears(&["NoSchedule", "NoExecute"]) {
            Fit::Runs
        } else if bears(&["NoExecute"]) {
            Fit::Keeps
        } else {
            Fit::Refuses
        }
    }
}
