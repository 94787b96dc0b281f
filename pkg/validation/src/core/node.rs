//! core/v1 Node.
//!
//! Behaves as ValidateNode of pkg/apis/core/validation/validation.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::core::v1::{ConfigMapNodeConfigSource, Node, NodeConfigSource, NodeSpec, NodeStatus, Taint};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;
use serde_json::Value;

use super::resources::validate_quantity_value;
use super::scheduling::validate_taints;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_label, dns_subdomain, is_dual_stack, validate_cidr};
use crate::common::report::{OptList, OptMap, OptText, Report, shown};

const TAINTS: &str = "scheduler.alpha.kubernetes.io/taints";
const PREFER_AVOID_PODS: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";

pub fn set_defaults(node: &mut Node) {
    let spec = node.spec.get_or_insert_default();
    // The single and the plural field say the same. Where they differ, the single one decides: older clients know no other.
    if spec.pod_cidr.is_blank() {
        spec.pod_cidr = spec.pod_cidrs.items().first().cloned();
    } else if spec.pod_cidrs.items().first() != spec.pod_cidr.as_ref() {
        spec.pod_cidrs = spec.pod_cidr.clone().map(|cidr| vec![cidr]);
    }
    let status = node.status.get_or_insert_default();
    if status.allocatable.is_none() {
        status.allocatable.clone_from(&status.capacity);
    }
}

pub fn validate(node: &Node) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("metadata");
    let (default_spec, default_status) = (NodeSpec::default(), NodeStatus::default());
    let spec = node.spec.as_ref().unwrap_or(&default_spec);
    let status = node.status.as_ref().unwrap_or(&default_status);
    validate_object_meta(&node.metadata, false, dns_subdomain, &path, &mut errors);
    validate_node_annotations(node, &path.child("annotations"), &mut errors);
    // The path is upstream's.
    validate_taints(spec.taints.items(), &path.child("taints"), &mut errors);
    validate_node_resources(status, &mut errors);
    let swap = status.node_info.as_ref().and_then(|info| info.swap.as_ref()).and_then(|swap| swap.capacity);
    if let Some(capacity) = swap {
        errors.positive(path.child("nodeSwapStatus").child("capacity"), capacity);
    }
    validate_declared_features(status.declared_features.items(), &mut errors);
    let cidrs = spec.pod_cidrs.items();
    let cidrs_path = Path::new("spec").child("podCIDRs");
    for (index, cidr) in cidrs.iter().enumerate() {
        validate_cidr(cidr, &[], cidrs_path.index(index), &mut errors);
    }
    if cidrs.len() > 1 && (cidrs.len() > 2 || !is_dual_stack(cidrs.iter().map(String::as_str))) {
        errors.invalid(cidrs_path, cidrs.to_vec(), "may specify no more than one CIDR for each IP family");
    }
    errors
}

fn validate_node_annotations(node: &Node, path: &Path, errors: &mut ErrorList) {
    let annotations = &node.metadata.annotations;
    if let Some(text) = annotations.value(TAINTS).filter(|text| !text.is_empty()) {
        match serde_json::from_str::<Vec<Taint>>(text) {
            Ok(taints) => validate_taints(&taints, &path.child(TAINTS), errors),
            Err(error) => errors.invalid(path, TAINTS, error.to_string()),
        }
    }
    if let Some(text) = annotations.value(PREFER_AVOID_PODS).filter(|text| !text.is_empty()) {
        match serde_json::from_str::<Value>(text) {
            Ok(avoid) => validate_avoid_pods(&avoid, &path.child(PREFER_AVOID_PODS), errors),
            Err(error) => errors.invalid(path.child("AvoidPods"), PREFER_AVOID_PODS, error.to_string()),
        }
    }
}

/// `{"preferAvoidPods": [{"podSignature": {"podController": {...}}}]}`
fn validate_avoid_pods(avoid: &Value, path: &Path, errors: &mut ErrorList) {
    let entries = avoid.get("preferAvoidPods").and_then(Value::as_array).into_iter().flatten();
    for (index, entry) in entries.enumerate() {
        let path = path.index(index).child("PodSignature");
        match entry.pointer("/podSignature/podController") {
            None | Some(Value::Null) => errors.required(path, ""),
            Some(controller) if controller.get("controller") != Some(&Value::Bool(true)) => {
                let path = path.child("PodController").child("Controller");
                errors.invalid(path, false, "must point to a controller");
            }
            Some(_) => {}
        }
    }
}

fn validate_node_resources(status: &NodeStatus, errors: &mut ErrorList) {
    for (field, list) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
        for (name, value) in list.pairs() {
            validate_quantity_value(name, value, &Path::new("status").child(field).child(name), errors);
        }
    }
}

/// `MyFeature` or `MyFeature/mySubFeature`, sorted.
fn validate_declared_features(features: &[String], errors: &mut ErrorList) {
    let path = Path::new("status").child("declaredFeatures");
    for (index, feature) in features.iter().enumerate() {
        let maximum = names::DNS1123_SUBDOMAIN_MAX_LENGTH;
        let mut segments = feature.split('/');
        let alphanumeric = |segment: &str| segment.chars().all(|character| character.is_ascii_alphanumeric());
        let valid = segments
            .next()
            .is_some_and(|first| first.starts_with(|first: char| first.is_ascii_uppercase()) && alphanumeric(first))
            && segments.all(|rest| rest.starts_with(|first: char| first.is_ascii_alphabetic()) && alphanumeric(rest));
        if feature.len() > maximum {
            let detail = format!("invalid feature name {feature:?}: must be no more than {maximum} characters");
            errors.invalid(path.index(index), feature.as_str(), detail);
        } else if !valid {
            let detail = format!(
                "invalid feature name {feature:?}: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes"
            );
            errors.invalid(path.index(index), feature.as_str(), detail);
        }
        if let Some(next) = features.get(index + 1) {
            if feature == next {
                errors.duplicate(path.index(index + 1), next.as_str());
            } else if feature > next {
                errors.invalid(path.index(index + 1), next.as_str(), "list must be sorted alphabetically");
            }
        }
    }
}

pub fn validate_update(new: &Node, old: &Node) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("metadata");
    let (spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let status = new.status.clone().unwrap_or_default();
    validate_object_meta_update(&new.metadata, &old.metadata, &path, &mut errors);
    validate_node_annotations(new, &path.child("annotations"), &mut errors);
    validate_node_resources(&status, &mut errors);
    validate_declared_features(status.declared_features.items(), &mut errors);
    let mut addresses = BTreeSet::new();
    for (index, address) in status.addresses.items().iter().enumerate() {
        if !addresses.insert((&address.type_, &address.address)) {
            errors.duplicate(Path::new("status").child("addresses").index(index), shown(address));
        }
    }
    let spec_path = Path::new("spec");
    let (cidrs, old_cidrs) = (spec.pod_cidrs.items(), old_spec.pod_cidrs.items());
    if !old_cidrs.is_empty() {
        let changes = if cidrs.len() == old_cidrs.len() {
            cidrs.iter().zip(old_cidrs).filter(|(new, old)| new != old).count()
        } else {
            1
        };
        for _ in 0..changes {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.forbidden(spec_path.child("podCIDRs"), detail);
        }
    }
    if !old_spec.provider_id.is_blank() && old_spec.provider_id.text() != spec.provider_id.text() {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.forbidden(spec_path.child("providerID"), detail);
    }
    if let Some(source) = &spec.config_source {
        validate_config_source(source, true, &spec_path.child("configSource"), &mut errors);
    }
    if let Some(config) = &status.config {
        let path = Path::new("status").child("config");
        for (field, source) in
            [("assigned", &config.assigned), ("active", &config.active), ("lastKnownGood", &config.last_known_good)]
        {
            if let Some(source) = source {
                validate_config_source(source, false, &path.child(field), &mut errors);
            }
        }
    }
    validate_taints(spec.taints.items(), &path.child("taints"), &mut errors);
    if spec.external_id.text() != old_spec.external_id.text() {
        errors.forbidden(spec_path.child("externalID"), "may not be updated");
    }
    errors
}

fn validate_config_source(source: &NodeConfigSource, in_spec: bool, path: &Path, errors: &mut ErrorList) {
    match &source.config_map {
        Some(config_map) => validate_config_map_source(config_map, in_spec, &path.child("configMap"), errors),
        None => errors.invalid(path, shown(source), "exactly one reference subfield must be non-nil"),
    }
}

fn validate_config_map_source(source: &ConfigMapNodeConfigSource, in_spec: bool, path: &Path, errors: &mut ErrorList) {
    for (field, value) in [("uid", source.uid.text()), ("resourceVersion", source.resource_version.text())] {
        if in_spec && !value.is_empty() {
            errors.forbidden(path.child(field), format!("{field} must not be set in spec"));
        } else if !in_spec && value.is_empty() {
            errors.required(path.child(field), "");
        }
    }
    for (field, value, messages) in [
        ("namespace", &source.namespace, dns_label(&source.namespace, false)),
        ("name", &source.name, dns_subdomain(&source.name, false)),
        ("kubeletConfigKey", &source.kubelet_config_key, names::is_config_map_key(&source.kubelet_config_key)),
    ] {
        if value.is_empty() {
            errors.required(path.child(field), "");
        } else {
            errors.invalid_each(path.child(field), value, messages);
        }
    }
}
