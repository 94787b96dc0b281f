//! Which events may make a refused pod schedulable, by the plugin that refused it.
//!
//! A wrong yes costs one more try; a wrong no leaves a pod waiting for five minutes, so doubt means yes.
//! Behaves as the queueing hints of pkg/scheduler/framework/plugins, v1.36.

use rkube_api::k8s::core::v1::Node;
use rkube_api::pod_resources;

use crate::cluster::Cluster;
use crate::model::node_affinity::{self, NodeLabels};
use crate::model::pod::{Namespaces, PodInfo, node_name};
use crate::model::resources::Resources;
use crate::model::selector::{LabelsOf, compile};
use crate::model::taints;
use crate::plugins::Plugin;

/// Something that happened in the cluster.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    NodeAdded(&'a Node),
    NodeUpdated {
        old: &'a Node,
        new: &'a Node,
    },
    NodeRemoved,
    /// A pod came to a node, left it, or changed there.
    PodAdded(&'a PodInfo, &'a Namespaces),
    /// With what is left.
    PodRemoved(&'a PodInfo, &'a Cluster),
    PodUpdated {
        old: &'a PodInfo,
        new: &'a PodInfo,
    },
    NamespaceLabels,
    /// Claims, volumes, classes and what drivers say of nodes; by what it is called.
    Storage(&'static str),
}

impl Event<'_> {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NodeAdded(_) => "NodeAdd",
            Self::NodeUpdated { .. } => "NodeUpdate",
            Self::NodeRemoved => "NodeDelete",
            Self::PodAdded(..) => "AssignedPodAdd",
            Self::PodRemoved(..) => "AssignedPodDelete",
            Self::PodUpdated { .. } => "AssignedPodUpdate",
            Self::NamespaceLabels => "NamespaceUpdate",
            Self::Storage(name) => name,
        }
    }
}

/// Whether the event may change the plugin's mind about the pod.
pub(crate) fn may_help(plugin: Plugin, event: &Event<'_>, pod: &PodInfo) -> bool {
    match plugin {
        Plugin::NodeUnschedulable => {
            node_turned(event, |node| !unschedulable(node) || taints::tolerates_unschedulable(pod.tolerations()))
        }
        Plugin::NodeName => matches!(event, Event::NodeAdded(node) if node.metadata.name.as_deref() == pod.node_name()),
        Plugin::TaintToleration => node_turned(event, |node| !taints::is_repelled(pod.tolerations(), taints_of(node))),
        Plugin::NodeAffinity => node_turned(event, |node| node_affinity::required_matches(pod.spec(), labels(node))),
        Plugin::NodePorts => match event {
            Event::NodeAdded(_) => true,
            Event::PodRemoved(gone, _) => {
                gone.ports.iter().any(|held| pod.ports.iter().any(|wanted| wanted.conflicts(held)))
            }
            _ => false,
        },
        Plugin::NodeResourcesFit => fit(event, pod),
        Plugin::PodTopologySpread => spread(event, pod),
        Plugin::InterPodAffinity => affinity(event, pod),
        Plugin::VolumeBinding | Plugin::VolumeZone => {
            matches!(event, Event::Storage(_) | Event::NodeAdded(_))
                || matches!(event, Event::NodeUpdated { old, new } if old.metadata.labels != new.metadata.labels)
        }
        Plugin::VolumeRestrictions | Plugin::NodeVolumeLimits => {
            matches!(event, Event::Storage(_) | Event::NodeAdded(_) | Event::PodRemoved(..))
        }
        // Not plugins that refuse nodes.
        _ => true,
    }
}

fn labels(node: &Node) -> NodeLabels<'_> {
    NodeLabels { name: node.metadata.name.as_deref().unwrap_or_default(), labels: node.metadata.labels.as_ref() }
}

fn taints_of(node: &Node) -> &[rkube_api::k8s::core::v1::Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

fn unschedulable(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}

/// Whether a node is good now that was not.
fn node_turned(event: &Event<'_>, good: impl Fn(&Node) -> bool) -> bool {
    match event {
        Event::NodeAdded(node) => good(node),
        Event::NodeUpdated { old, new } => good(new) && !good(old),
        _ => false,
    }
}

fn allocatable(node: &Node) -> (Resources, i64) {
    let list = pod_resources::parse(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
    let pods = list.get("pods").map_or(0, rkube_apimachinery::quantity::Quantity::value);
    (Resources::from_list(&list), pods)
}

fn fits(wanted: &Resources, offered: &Resources) -> bool {
    wanted.milli_cpu <= offered.milli_cpu
        && wanted.memory <= offered.memory
        && wanted.ephemeral_storage <= offered.ephemeral_storage
        && wanted.scalars.iter().all(|(name, amount)| *amount <= offered.scalar(name))
}

/// Whether there is more of anything the pod wants.
fn increased(wanted: &Resources, old: &Resources, new: &Resources) -> bool {
    (wanted.milli_cpu > 0 && new.milli_cpu > old.milli_cpu)
        || (wanted.memory > 0 && new.memory > old.memory)
        || (wanted.ephemeral_storage > 0 && new.ephemeral_storage > old.ephemeral_storage)
        || wanted.scalars.iter().any(|(name, _)| new.scalar(name) > old.scalar(name))
}

/// Whether the node that `gone` left may have room for the pod now. Of extended resources nothing is said.
/// Differs from upstream, where every pod that leaves a node brings back all that are refused for want of room.
fn has_room(gone: &PodInfo, cluster: &Cluster, pod: &PodInfo) -> bool {
    // Who can take the place of others looks at more than free room: all there is may become free.
    let displaces = cluster.lowest_priority().is_some_and(|lowest| lowest < pod.priority);
    // Of a pod that was only meant for a node it is not known which.
    let Some(name) = node_name(&gone.pod) else { return true };
    // A node that has gone, too, leaves no room behind.
    cluster.slot_of(name).and_then(|slot| cluster.node(slot)).is_some_and(|node| {
        let (wanted, all) = (&pod.requests, &node.allocatable);
        if displaces {
            return fits_plain(wanted, (all.milli_cpu, all.memory, all.ephemeral_storage));
        }
        let used = &node.requested;
        let free = (
            all.milli_cpu.saturating_sub(used.milli_cpu),
            all.memory.saturating_sub(used.memory),
            all.ephemeral_storage.saturating_sub(used.ephemeral_storage),
        );
        fits_plain(wanted, free) && (node.pods.len() as i64) < node.pods_max
    })
}

/// Whether there is so much of what all nodes have; what is not wanted need not be there.
fn fits_plain(wanted: &Resources, (milli_cpu, memory, ephemeral_storage): (i64, i64, i64)) -> bool {
    let enough = |wanted: i64, offered: i64| wanted <= 0 || wanted <= offered;
    enough(wanted.milli_cpu, milli_cpu)
        && enough(wanted.memory, memory)
        && enough(wanted.ephemeral_storage, ephemeral_storage)
}

fn fit(event: &Event<'_>, pod: &PodInfo) -> bool {
    match event {
        Event::NodeAdded(node) => {
            let (offered, pods) = allocatable(node);
            pods > 0 && fits(&pod.requests, &offered)
        }
        Event::NodeUpdated { old, new } => {
            let status = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
            if status(old) == status(new) {
                return false;
            }
            let ((before, pods_before), (after, pods)) = (allocatable(old), allocatable(new));
            pods > 0 && fits(&pod.requests, &after) && (pods > pods_before || increased(&pod.requests, &before, &after))
        }
        Event::PodRemoved(gone, cluster) => has_room(gone, cluster, pod),
        Event::PodUpdated { old, new } => increased(&pod.requests, &new.requests, &old.requests),
        _ => false,
    }
}

fn spread(event: &Event<'_>, pod: &PodInfo) -> bool {
    let constraints = pod.spec().topology_spread_constraints.as_deref().unwrap_or_default();
    // Without constraints of its own the pod goes by defaults, whose selector is not known here.
    let concerns = |other: &PodInfo| {
        other.namespace() == pod.namespace()
            && (constraints.is_empty()
                || constraints
                    .iter()
                    .any(|constraint| compile(constraint.label_selector.as_ref()).matches(&LabelsOf(other.labels()))))
    };
    match event {
        Event::NodeAdded(_) | Event::NodeRemoved => true,
        Event::NodeUpdated { old, new } => {
            old.metadata.labels != new.metadata.labels || taints_of(old) != taints_of(new)
        }
        Event::PodAdded(other, _) => concerns(other),
        Event::PodRemoved(other, _) => concerns(other),
        Event::PodUpdated { old, new } => {
            concerns(old) != concerns(new) || old.is_terminating() != new.is_terminating()
        }
        _ => false,
    }
}

fn affinity(event: &Event<'_>, pod: &PodInfo) -> bool {
    let wanted = |other: &PodInfo, namespaces: &Namespaces| {
        let terms = pod.terms.iter().flat_map(|terms| &terms.required);
        terms.into_iter().any(|term| term.pods.contains(other.member(namespaces)))
    };
    match event {
        Event::NodeAdded(_) | Event::NamespaceLabels => true,
        Event::NodeUpdated { old, new } => old.metadata.labels != new.metadata.labels,
        Event::PodAdded(other, namespaces) => wanted(other, namespaces),
        Event::PodRemoved(other, cluster) => {
            let namespaces = &cluster.namespaces;
            let own = pod.terms.iter().flat_map(|terms| &terms.required_anti);
            let held = other.terms.iter().flat_map(|terms| &terms.required_anti);
            own.into_iter().any(|term| term.pods.contains(other.member(namespaces)))
                || held.into_iter().any(|term| term.pods.contains(pod.member(namespaces)))
        }
        Event::PodUpdated { old, new } => old.labels() != new.labels(),
        _ => false,
    }
}
