//! Node selectors and node affinity: which nodes a pod may be on. The scheduler and the DaemonSet controller must
//! agree on it.
//!
//! Behaves as component-helpers/scheduling/corev1/nodeaffinity/nodeaffinity.go, v1.36.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

/// What selectors see of a node.
#[derive(Clone, Copy)]
pub struct NodeLabels<'a> {
    pub name: &'a str,
    pub labels: Option<&'a BTreeMap<String, String>>,
}

impl<'a> NodeLabels<'a> {
    fn get(self, key: &str) -> Option<&'a str> {
        self.labels?.get(key).map(String::as_str)
    }
}

/// Whether a node satisfies one term. An empty term matches no node.
pub fn term_matches(term: &NodeSelectorTerm, node: NodeLabels<'_>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|requirement| requirement_matches(requirement, node.get(&requirement.key)))
        && fields.iter().all(|requirement| field_matches(requirement, node.name))
}

fn field_matches(requirement: &NodeSelectorRequirement, name: &str) -> bool {
    let [value] = requirement.values.as_deref().unwrap_or_default() else { return false };
    requirement.key == "metadata.name"
        && match requirement.operator.as_str() {
            "In" => value == name,
            "NotIn" => value != name,
            _ => false,
        }
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|known| known == value);
    match (requirement.operator.as_str(), value) {
        ("In", Some(value)) => listed(value),
        ("NotIn", Some(value)) => !listed(value),
        ("NotIn" | "DoesNotExist", None) | ("Exists", Some(_)) => true,
        (operator @ ("Gt" | "Lt"), Some(value)) => {
            let [limit] = values else { return false };
            let (Ok(value), Ok(limit)) = (value.parse::<i64>(), limit.parse::<i64>()) else { return false };
            if operator == "Gt" { value > limit } else { value < limit }
        }
        _ => false,
    }
}

/// Whether a node satisfies any term.
pub fn selector_matches(selector: &NodeSelector, node: NodeLabels<'_>) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// Whether a node satisfies what the pod requires of nodes: its node selector and its node affinity.
pub fn required_matches(spec: &PodSpec, node: NodeLabels<'_>) -> bool {
    let selected =
        spec.node_selector.iter().flatten().all(|(key, value)| node.get(key).is_some_and(|present| present == value));
    selected && required(spec).is_none_or(|selector| selector_matches(selector, node))
}

fn required(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

/// The sum of the weights of the preferences a node meets.
pub fn preference(spec: &PodSpec, node: NodeLabels<'_>) -> i64 {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let preferred =
        affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    let met = preferred.into_iter().flatten().filter(|term| term.weight != 0 && term_matches(&term.preference, node));
    met.map(|term| i64::from(term.weight)).sum()
}

/// The only nodes the pod's affinity names, when every term names some. `Err` when a term's names exclude
/// one another for all terms.
pub fn named_nodes(spec: &PodSpec) -> Result<Option<BTreeSet<String>>, ConflictingTerms> {
    let Some(selector) = required(spec) else { return Ok(None) };
    let mut all = BTreeSet::new();
    for term in &selector.node_selector_terms {
        let named = term.match_fields.iter().flatten();
        let named = named.filter(|requirement| requirement.key == "metadata.name" && requirement.operator == "In");
        let mut of_term: Option<BTreeSet<String>> = None;
        for requirement in named {
            let names: BTreeSet<String> = requirement.values.iter().flatten().cloned().collect();
            of_term = Some(match of_term {
                Some(known) => known.intersection(&names).cloned().collect(),
                None => names,
            });
        }
        match of_term {
            Some(names) => all.extend(names),
            // A term that names no node may match any.
            None => return Ok(None),
        }
    }
    if selector.node_selector_terms.is_empty() {
        return Ok(None);
    }
    if all.is_empty() { Err(ConflictingTerms) } else { Ok(Some(all)) }
}

/// No node can have all the names a term wants.
#[derive(Debug)]
pub struct ConflictingTerms;
