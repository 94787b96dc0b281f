//! The pods of a DaemonSet: where they belong, which template they are of, and making them.
//!
//! Behaves as pkg/controller/daemon/util/daemonset_util.go, v1.36.

use std::cmp::Ordering;

use rkube_api::k8s::apps::v1::DaemonSet;
use rkube_api::k8s::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Toleration,
};

use crate::common::pods::node_name;

/// On pods and on revisions: the hash of the template.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";
/// From before there were revisions.
const GENERATION_LABEL: &str = "pod-template-generation";
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
const NODE_NAME_FIELD: &str = "metadata.name";

/// Taints that nodes get by themselves. A daemon is part of its node and stays with it.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const TOLERATED_ON_HOST_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// The node a pod is on, or is for.
pub(crate) fn target_node(pod: &Pod) -> Option<&str> {
    let bound = node_name(pod);
    if !bound.is_empty() {
        return Some(bound);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let names = fields.find(|field| field.key == NODE_NAME_FIELD && field.operator == "In")?;
    match names.values.as_deref() {
        Some([name]) => Some(name),
        _ => None,
    }
}

pub(super) fn hash_of(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(HASH_LABEL)).map_or("", String::as_str)
}

/// The number of the template by the old way of counting, if the set has one.
pub(super) fn template_generation(set: &DaemonSet) -> Option<i64> {
    set.metadata.annotations.as_ref()?.get(GENERATION_ANNOTATION)?.parse().ok()
}

/// Whether the pod is of the current template.
pub(super) fn is_updated(pod: &Pod, hash: &str, generation: Option<i64>) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let numbered = labels.and_then(|labels| labels.get(GENERATION_LABEL));
    let by_number = generation.is_some_and(|generation| numbered.is_some_and(|text| *text == generation.to_string()));
    by_number || (!hash.is_empty() && hash_of(pod) == hash)
}

/// Bound pods first, then the oldest.
pub(super) fn oldest_first(a: &Pod, b: &Pod) -> Ordering {
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let unbound = |pod: &Pod| node_name(pod).is_empty();
    (unbound(a), created(a), &a.metadata.name).cmp(&(unbound(b), created(b), &b.metadata.name))
}

/// Adds a toleration for each taint that daemons bear, in place of one that is alike.
pub(super) fn add_tolerations(spec: &mut PodSpec) {
    let tolerations = spec.tolerations.get_or_insert_default();
    let on_host = spec.host_network == Some(true);
    for (key, effect) in TOLERATED.into_iter().chain(on_host.then_some(TOLERATED_ON_HOST_NETWORK)) {
        let wanted = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        let identity = |toleration: &Toleration| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let Toleration { key, effect, operator, value, .. } = toleration;
            (text(key), text(effect), text(operator), text(value))
        };
        match tolerations.iter_mut().find(|known| identity(known) == identity(&wanted)) {
            // Without a limit in time.
            Some(known) => *known = wanted,
            None => tolerations.push(wanted),
        }
    }
}

/// The template as pods of this set have it, for any node.
pub(super) fn daemon_template(template: &PodTemplateSpec, hash: &str, generation: Option<i64>) -> PodTemplateSpec {
    let mut template = template.clone();
    add_tolerations(template.spec.get_or_insert_default());
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    if let Some(generation) = generation {
        labels.insert(GENERATION_LABEL.to_owned(), generation.to_string());
    }
    if !hash.is_empty() {
        labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    }
    template
}

/// Makes the node the only one the scheduler may choose. What the template requires of nodes was checked before.
pub(super) fn pin_to_node(spec: &mut PodSpec, node: &str) {
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let required =
        &mut affinity.node_affinity.get_or_insert_default().required_during_scheduling_ignored_during_execution;
    let name = NodeSelectorRequirement {
        key: NODE_NAME_FIELD.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![name]), ..NodeSelectorTerm::default() };
    *required = Some(NodeSelector { node_selector_terms: vec![term] });
}
