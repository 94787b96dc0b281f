//! Reading nodes: conditions, taints, zones, and the pods on them.
//!
//! Behaves as pkg/util/taints and component-helpers/node/topology, v1.36.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{Node, NodeCondition, ObjectReference, Pod, Taint};
use rkube_client::{Informer, Lister};

use super::pods;

/// Pods by the node they are bound to.
pub(crate) const NODE_INDEX: &str = "nodeName";

pub(crate) fn index_by_node(pods: &Informer<Pod>) {
    pods.add_index(NODE_INDEX, |pod| {
        let node = pods::node_name(pod);
        if node.is_empty() { Vec::new() } else { vec![node.to_owned()] }
    });
}

pub(crate) fn pods_on(pods: &Lister<Pod>, node: &str) -> Vec<Arc<Pod>> {
    pods.by_index(NODE_INDEX, node)
}

pub(crate) fn condition<'a>(node: &'a Node, condition_type: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().find(|condition| condition.type_ == condition_type)
}

/// `True`, `False`, `Unknown`, or nothing where the node never said.
pub(crate) fn ready_status(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|condition| condition.status.as_str())
}

pub(crate) fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Region and zone, joined so that no two pairs look alike; empty for neither.
pub(crate) fn zone_key(node: &Node) -> String {
    let label = |names: [&str; 2]| {
        let labels = node.metadata.labels.as_ref();
        names.iter().find_map(|name| labels?.get(*name)).cloned().unwrap_or_default()
    };
    let zone = label(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
    let region = label(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]);
    if zone.is_empty() && region.is_empty() { String::new() } else { format!("{region}:\0:{zone}") }
}

/// How events refer to a node, whether it exists or not.
pub(crate) fn node_reference(name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}
