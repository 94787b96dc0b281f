//! Where a pod may run: affinity, node selectors, tolerations, taints, topology spread.
//!
//! Behaves as validateAffinity, ValidateTolerations and validateTopologySpreadConstraints of
//! pkg/apis/core/validation/validation.go, v1.36.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::k8s::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, Taint, Toleration,
    TopologySelectorTerm, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::names;

use super::pod_options::PodOptions;
use crate::common::meta::{SelectorOptions, validate_label_name, validate_label_selector};
use crate::common::names::{dns_label, dns_subdomain};
use crate::common::report::{OptList, OptMap, OptText, Report, shown};

const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NOT_AN_OPERATOR: &str = "not a valid selector operator";

pub(crate) fn validate_affinity(
    affinity: Option<&Affinity>,
    options: &PodOptions,
    path: &Path,
    errors: &mut ErrorList,
) {
    let Some(affinity) = affinity else { return };
    if let Some(node) = &affinity.node_affinity {
        let path = path.child("nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            let lenient = options.allow_invalid_label_value_in_required_node_affinity;
            validate_node_selector(selector, lenient, &path.child(REQUIRED), errors);
        }
        let preferred = node.preferred_during_scheduling_ignored_during_execution.items();
        for (index, term) in preferred.iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            validate_weight(term.weight, &path, errors);
            validate_node_selector_term(&term.preference, true, &path.child("preference"), errors);
        }
    }
    let selector_options = SelectorOptions {
        allow_invalid_label_value: options.allow_invalid_label_value_in_selector,
        ..SelectorOptions::default()
    };
    if let Some(pod) = &affinity.pod_affinity {
        validate_pod_affinity_terms(
            pod.required_during_scheduling_ignored_during_execution.items(),
            pod.preferred_during_scheduling_ignored_during_execution.items(),
            selector_options,
            &path.child("podAffinity"),
            errors,
        );
    }
    if let Some(anti) = &affinity.pod_anti_affinity {
        validate_pod_affinity_terms(
            anti.required_during_scheduling_ignored_during_execution.items(),
            anti.preferred_during_scheduling_ignored_during_execution.items(),
            selector_options,
            &path.child("podAntiAffinity"),
            errors,
        );
    }
}

fn validate_weight(weight: i32, path: &Path, errors: &mut ErrorList) {
    if !(1..=100).contains(&weight) {
        errors.invalid(path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn validate_pod_affinity_terms(
    required: &[PodAffinityTerm],
    preferred: &[WeightedPodAffinityTerm],
    options: SelectorOptions,
    path: &Path,
    errors: &mut ErrorList,
) {
    for (index, term) in required.iter().enumerate() {
        validate_pod_affinity_term(term, options, &path.child(REQUIRED).index(index), errors);
    }
    for (index, term) in preferred.iter().enumerate() {
        let path = path.child(PREFERRED).index(index);
        validate_weight(term.weight, &path, errors);
        validate_pod_affinity_term(&term.pod_affinity_term, options, &path.child("podAffinityTerm"), errors);
    }
}

pub(crate) fn validate_pod_affinity_term_selectors(
    term: &PodAffinityTerm,
    options: SelectorOptions,
    path: &Path,
    errors: &mut ErrorList,
) {
    validate_label_selector(term.label_selector.as_ref(), options, &path.child("labelSelector"), errors);
    validate_label_selector(term.namespace_selector.as_ref(), options, &path.child("namespaceSelector"), errors);
}

fn validate_pod_affinity_term(term: &PodAffinityTerm, options: SelectorOptions, path: &Path, errors: &mut ErrorList) {
    validate_pod_affinity_term_selectors(term, options, path, errors);
    for name in term.namespaces.items() {
        errors.invalid_each(path.child("namespace"), name, dns_label(name, false));
    }
    let (matching, mismatching) = (term.match_label_keys.items(), term.mismatch_label_keys.items());
    validate_match_label_keys(matching, mismatching, term.label_selector.as_ref(), path, errors);
    if term.topology_key.is_empty() {
        errors.required(path.child("topologyKey"), "can not be empty");
    }
    validate_label_name(&term.topology_key, &path.child("topologyKey"), errors);
}

pub(crate) fn validate_node_selector(selector: &NodeSelector, lenient: bool, path: &Path, errors: &mut ErrorList) {
    let path = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.required(path, "must have at least one node selector term");
        return;
    }
    for (index, term) in selector.node_selector_terms.iter().enumerate() {
        validate_node_selector_term(term, lenient, &path.index(index), errors);
    }
}

fn validate_node_selector_term(term: &NodeSelectorTerm, lenient: bool, path: &Path, errors: &mut ErrorList) {
    for (index, requirement) in term.match_expressions.items().iter().enumerate() {
        validate_node_requirement(requirement, lenient, &path.child("matchExpressions").index(index), errors);
    }
    for (index, requirement) in term.match_fields.items().iter().enumerate() {
        validate_node_field_requirement(requirement, &path.child("matchFields").index(index), errors);
    }
}

/// `lenient` leaves the values unchecked.
fn validate_node_requirement(
    requirement: &NodeSelectorRequirement,
    lenient: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let values = requirement.values.items();
    let values_path = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(&values_path, "must be specified when `operator` is 'In' or 'NotIn'");
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.forbidden(&values_path, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                errors.required(&values_path, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
        }
        other => errors.invalid(path.child("operator"), other, NOT_AN_OPERATOR),
    }
    validate_label_name(&requirement.key, &path.child("key"), errors);
    if !lenient {
        for (index, value) in values.iter().enumerate() {
            errors.invalid_each(values_path.index(index), value, names::is_label_value(value));
        }
    }
}

fn validate_node_field_requirement(requirement: &NodeSelectorRequirement, path: &Path, errors: &mut ErrorList) {
    let values = requirement.values.items();
    match requirement.operator.as_str() {
        "In" | "NotIn" => {
            if values.len() != 1 {
                let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.required(path.child("values"), detail);
            }
        }
        other => errors.invalid(path.child("operator"), other, NOT_AN_OPERATOR),
    }
    if requirement.key == "metadata.name" {
        for (index, value) in values.iter().enumerate() {
            errors.invalid_each(path.child("values").index(index), value, dns_subdomain(value, false));
        }
    } else {
        errors.invalid(path.child("key"), requirement.key.as_str(), "not a valid field selector key");
    }
}

pub(crate) fn has_invalid_label_value_in_terms(terms: &[NodeSelectorTerm]) -> bool {
    terms
        .iter()
        .flat_map(|term| term.match_expressions.items())
        .flat_map(|expression| expression.values.items())
        .any(|value| !names::is_label_value(value).is_empty())
}

/// A term of a StorageClass' `allowedTopologies`. Gives the values wanted per key.
pub(crate) fn validate_topology_selector_term<'a>(
    term: &'a TopologySelectorTerm,
    path: &Path,
    errors: &mut ErrorList,
) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let path = path.child("matchLabelExpressions");
    let mut expressions = BTreeMap::new();
    for (index, requirement) in term.match_label_expressions.items().iter().enumerate() {
        let path = path.index(index);
        let mut values = BTreeSet::new();
        if requirement.values.is_empty() {
            errors.required(path.child("values"), "");
        }
        for (index, value) in requirement.values.iter().enumerate() {
            if !values.insert(value.as_str()) {
                errors.duplicate(path.child("values").index(index), value.as_str());
            }
        }
        validate_label_name(&requirement.key, &path.child("key"), errors);
        if expressions.insert(requirement.key.as_str(), values).is_some() {
            errors.duplicate(path.child("key"), requirement.key.as_str());
        }
    }
    expressions
}

pub(crate) fn validate_taint_effect(effect: &str, path: &Path, errors: &mut ErrorList) {
    errors.required_one_of(path, effect, &TAINT_EFFECTS);
}

pub(crate) fn validate_taints(taints: &[Taint], path: &Path, errors: &mut ErrorList) {
    let mut taken = BTreeSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let path = path.index(index);
        validate_label_name(&taint.key, &path.child("key"), errors);
        let value = taint.value.text();
        let messages = names::is_label_value(value);
        if !messages.is_empty() {
            errors.invalid(path.child("value"), value, messages.join(";"));
        }
        validate_taint_effect(&taint.effect, &path.child("effect"), errors);
        if !taken.insert((taint.effect.as_str(), taint.key.as_str())) {
            let mut error = Error::duplicate(&path, shown(taint));
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
}

/// Comparison operators are off by default.
pub(crate) fn validate_tolerations(tolerations: &[Toleration], path: &Path, errors: &mut ErrorList) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let (key, operator, value, effect) =
            (toleration.key.text(), toleration.operator.text(), toleration.value.text(), toleration.effect.text());
        if !key.is_empty() {
            validate_label_name(key, &path.child("key"), errors);
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(path.child("operator"), operator, detail);
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(path.child("effect"), effect, detail);
        }
        match operator {
            "Equal" | "" => {
                let messages = names::is_label_value(value);
                if !messages.is_empty() {
                    errors.invalid(path.child("operator"), value, messages.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    errors.invalid(path.child("operator"), value, detail);
                }
            }
            "Lt" | "Gt" => errors.not_supported(path.child("operator"), operator, &["Equal", "Exists", "Lt", "Gt"]),
            other => errors.not_supported(path.child("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            errors.one_of(path.child("effect"), effect, &TAINT_EFFECTS);
        }
    }
}

/// Running pods may only get more tolerations, or other seconds for the ones they have.
pub(crate) fn validate_only_added_tolerations(
    new: &[Toleration],
    old: &[Toleration],
    path: &Path,
    errors: &mut ErrorList,
) {
    let same = |one: &Toleration, other: &Toleration| {
        one.key.text() == other.key.text()
            && one.operator.text() == other.operator.text()
            && one.value.text() == other.value.text()
            && one.effect.text() == other.effect.text()
    };
    if old.iter().any(|old| !new.iter().any(|new| same(new, old))) {
        errors.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
        return;
    }
    validate_tolerations(new, path, errors);
}

pub(crate) fn validate_topology_spread_constraints(
    constraints: &[TopologySpreadConstraint],
    options: &PodOptions,
    path: &Path,
    errors: &mut ErrorList,
) {
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        errors.positive(path.child("maxSkew"), constraint.max_skew);
        if constraint.topology_key.is_empty() {
            errors.required(path.child("topologyKey"), "can not be empty");
        }
        let action = constraint.when_unsatisfiable.as_str();
        errors.one_of(path.child("whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
        let repeated = constraints.iter().skip(index + 1).any(|other| {
            other.topology_key == constraint.topology_key && other.when_unsatisfiable == constraint.when_unsatisfiable
        });
        if repeated {
            let pair = format!("{{{}, {action}}}", constraint.topology_key);
            errors.duplicate(path.child("{topologyKey, whenUnsatisfiable}"), pair);
        }
        if let Some(domains) = constraint.min_domains {
            let path = path.child("minDomains");
            errors.positive(&path, domains);
            if action != "DoNotSchedule" {
                let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(&path, domains, detail);
            }
        }
        for (field, policy) in [
            ("nodeAffinityPolicy", &constraint.node_affinity_policy),
            ("nodeTaintsPolicy", &constraint.node_taints_policy),
        ] {
            if let Some(policy) = policy {
                errors.one_of(path.child(field), policy, &["Honor", "Ignore"]);
            }
        }
        let (keys, selector) = (constraint.match_label_keys.items(), constraint.label_selector.as_ref());
        if options.old_pod_violates_match_label_keys_validation {
            validate_match_label_keys_of_old_spread(keys, selector, &path.child("matchLabelKeys"), errors);
        } else {
            validate_match_label_keys(keys, &[], selector, &path, errors);
        }
        if !options.allow_invalid_topology_spread_constraint_label_selector {
            validate_label_selector(selector, SelectorOptions::default(), &path.child("labelSelector"), errors);
        }
    }
}

pub(crate) fn validate_match_label_keys(
    matching: &[String],
    mismatching: &[String],
    selector: Option<&LabelSelector>,
    path: &Path,
    errors: &mut ErrorList,
) {
    for (field, keys) in [("matchLabelKeys", matching), ("mismatchLabelKeys", mismatching)] {
        if keys.is_empty() {
            continue;
        }
        let path = path.child(field);
        if selector.is_none() {
            errors.forbidden(path, "must not be specified when labelSelector is not set");
            continue;
        }
        for (index, key) in keys.iter().enumerate() {
            validate_label_name(key, &path.index(index), errors);
        }
    }
    if let Some(selector) = selector {
        let positions: BTreeMap<&str, usize> =
            matching.iter().enumerate().map(|(index, key)| (key.as_str(), index)).collect();
        let mut selected: BTreeSet<&str> = selector.match_labels.pairs().map(|(key, _)| key.as_str()).collect();
        for expression in selector.match_expressions.items() {
            let key = expression.key.as_str();
            // The keys are merged into the selector on creation, so one occurrence is expected.
            if !selected.insert(key)
                && let Some(index) = positions.get(key)
            {
                errors.invalid(path.index(*index), key, "exists in both matchLabelKeys and labelSelector");
            }
        }
    }
    for (index, key) in matching.iter().enumerate() {
        if mismatching.contains(key) {
            let path = path.child("matchLabelKeys").index(index);
            errors.invalid(path, key.as_str(), "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
}

/// For a pod that was stored before keys were merged into the selector.
fn validate_match_label_keys_of_old_spread(
    keys: &[String],
    selector: Option<&LabelSelector>,
    path: &Path,
    errors: &mut ErrorList,
) {
    if keys.is_empty() {
        return;
    }
    if selector.is_none() {
        errors.forbidden(path, "must not be specified when labelSelector is not set");
    }
    let selected = |key: &str| {
        selector.is_some_and(|selector| {
            selector.match_labels.value(key).is_some()
                || selector.match_expressions.items().iter().any(|expression| expression.key == key)
        })
    };
    for (index, key) in keys.iter().enumerate() {
        validate_label_name(key, &path.index(index), errors);
        if selected(key) {
            errors.invalid(path.index(index), key.as_str(), "exists in both matchLabelKeys and labelSelector");
        }
    }
}
