//! scheduling.k8s.io/v1 PriorityClass and node.k8s.io/v1 RuntimeClass.
//!
//! Behaves as pkg/apis/scheduling/validation/validation.go and pkg/apis/node/validation/validation.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::core::v1::ResourceRequirements;
use rkube_api::k8s::node::v1::RuntimeClass;
use rkube_api::k8s::scheduling::v1::PriorityClass;
use rkube_apimachinery::field::{ErrorList, Path};

use crate::common::defaults::default_to;
use crate::common::meta::{validate_labels, validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_label, dns_subdomain};
use crate::common::report::{FIELD_IMMUTABLE, OptList, OptMap, OptText, Report, immutable, shown};
use crate::core::pod_options::PodOptions;
use crate::core::pod_warnings::deprecated_node_label;
use crate::core::resources::validate_container_resources;
use crate::core::scheduling::validate_tolerations;

/// A billion: above it are the classes of the system.
const USER_PRIORITY_MAX: i32 = 1_000_000_000;
/// `(name, value)` of the classes every cluster has; none of them is a default.
const SYSTEM_CLASSES: [(&str, i32); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

pub fn set_priority_class_defaults(class: &mut PriorityClass) {
    default_to(&mut class.preemption_policy, "PreemptLowerPriority".to_owned());
}

pub fn validate_priority_class(class: &PriorityClass) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&class.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    let (name, value) = (class.metadata.name.text(), class.value.unwrap_or(0));
    if name.starts_with("system-") {
        if let Some(reason) = system_class_error(name, value, class.global_default == Some(true)) {
            let detail =
                format!("priority class names with 'system-' prefix are reserved for system use only. error: {reason}");
            errors.forbidden(Path::new("metadata").child("name"), detail);
        }
    } else if value > USER_PRIORITY_MAX {
        let detail = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
        errors.forbidden(Path::new("value"), detail);
    }
    if let Some(policy) = &class.preemption_policy {
        errors.required_one_of(Path::new("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
    }
    errors
}

fn system_class_error(name: &str, value: i32, default: bool) -> Option<String> {
    let Some((_, known)) = SYSTEM_CLASSES.iter().find(|(known, _)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if value != *known {
        Some(format!("value of {name} PriorityClass must be {known}"))
    } else if default {
        Some(format!("globalDefault of {name} PriorityClass must be false"))
    } else {
        None
    }
}

pub fn validate_priority_class_update(new: &PriorityClass, old: &PriorityClass) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    if new.value.unwrap_or(0) != old.value.unwrap_or(0) {
        errors.forbidden(Path::new("value"), "may not be changed in an update.");
    }
    immutable(&new.preemption_policy, &old.preemption_policy, Path::new("preemptionPolicy"), &mut errors);
    errors
}

pub fn set_runtime_class_defaults(class: &mut RuntimeClass) {
    if let Some(overhead) = &mut class.overhead {
        crate::core::pod_defaults::round_up(&mut overhead.pod_fixed);
    }
}

pub fn validate_runtime_class(class: &RuntimeClass) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&class.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    if class.handler.is_empty() {
        errors.required(Path::new("handler"), "");
    } else {
        errors.invalid_each(Path::new("handler"), &class.handler, dns_label(&class.handler, false));
    }
    if let Some(overhead) = &class.overhead {
        let limits = ResourceRequirements { limits: overhead.pod_fixed.clone(), ..Default::default() };
        validate_container_resources(&limits, None, &Path::new("overhead"), &PodOptions::strict(), &mut errors);
    }
    if let Some(scheduling) = &class.scheduling {
        let path = Path::new("scheduling");
        validate_labels(scheduling.node_selector.as_ref(), &path.child("nodeSelector"), &mut errors);
        let path = path.child("tolerations");
        let tolerations = scheduling.tolerations.items();
        validate_tolerations(tolerations, &path, &mut errors);
        let mut taken = BTreeSet::new();
        for (index, toleration) in tolerations.iter().enumerate() {
            let key = [&toleration.key, &toleration.operator, &toleration.value, &toleration.effect].map(OptText::text);
            if !taken.insert(key) {
                errors.duplicate(path.index(index), shown(toleration));
            }
        }
    }
    errors
}

pub fn validate_runtime_class_update(new: &RuntimeClass, old: &RuntimeClass) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    if new.handler != old.handler {
        errors.invalid(Path::new("handler"), new.handler.as_str(), FIELD_IMMUTABLE);
    }
    errors
}

pub fn runtime_class_warnings(class: &RuntimeClass) -> Vec<String> {
    let selector = class.scheduling.as_ref().and_then(|scheduling| scheduling.node_selector.clone());
    let deprecated = selector.pairs().filter_map(|(key, _)| deprecated_node_label(key));
    deprecated.map(|message| format!("scheduling.nodeSelector: {message}")).collect()
}
