//! core/v1 ReplicationController.
//!
//! Behaves as ValidateReplicationController of pkg/apis/core/validation/validation.go, v1.36.

use rkube_api::k8s::core::v1::{ReplicationController, ReplicationControllerSpec};
use rkube_apimachinery::field::{ErrorList, Path};

use super::pod::validate_template;
use super::pod_defaults::set_template_defaults;
use super::pod_options::PodOptions;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::dns_subdomain;
use crate::common::report::{OptMap, OptText, Report, shown};

pub fn set_defaults(controller: &mut ReplicationController) {
    let spec = controller.spec.get_or_insert_default();
    // The selector and the labels default to the labels of the template.
    if let Some(labels) = spec.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.clone()) {
        if spec.selector.count() == 0 {
            spec.selector = Some(labels.clone());
        }
        if controller.metadata.labels.count() == 0 {
            controller.metadata.labels = Some(labels);
        }
    }
    spec.replicas.get_or_insert(1);
    if let Some(template) = &mut spec.template {
        set_template_defaults(template);
    }
    controller.status.get_or_insert_default();
}

pub fn validate(controller: &ReplicationController) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&controller.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    let spec = controller.spec.clone().unwrap_or_default();
    validate_spec(&spec, &PodOptions::strict(), &mut errors);
    errors
}

pub fn validate_update(new: &ReplicationController, old: &ReplicationController) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let options = PodOptions::for_template(old.spec.as_ref().and_then(|spec| spec.template.as_ref()));
    validate_spec(&new.spec.clone().unwrap_or_default(), &options, &mut errors);
    errors
}

fn validate_spec(spec: &ReplicationControllerSpec, options: &PodOptions, errors: &mut ErrorList) {
    let path = Path::new("spec");
    errors.not_negative(path.child("minReadySeconds"), spec.min_ready_seconds.unwrap_or(0));
    if spec.selector.count() == 0 {
        errors.required(path.child("selector"), "");
    }
    match spec.replicas {
        None => errors.required(path.child("replicas"), ""),
        Some(replicas) => errors.not_negative(path.child("replicas"), replicas),
    }
    let path = path.child("template");
    let Some(template) = &spec.template else {
        errors.required(path, "");
        return;
    };
    let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
    if !spec.selector.pairs().all(|(key, value)| labels.value(key) == Some(value)) {
        let detail = "`selector` does not match template `labels`";
        errors.invalid(path.child("metadata").child("labels"), shown(&labels), detail);
    }
    validate_template(template, &path, options, errors);
    let pod = template.spec.clone().unwrap_or_default();
    let restart = pod.restart_policy.text();
    if restart != "Always" {
        errors.not_supported(path.child("spec").child("restartPolicy"), restart, &["Always"]);
    }
    if pod.active_deadline_seconds.is_some() {
        errors.forbidden(
            path.child("spec").child("activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicationController is not Supported",
        );
    }
}

/// `PUT replicationcontrollers/x/status`.
pub fn validate_status_update(new: &ReplicationController, old: &ReplicationController) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let status = new.status.clone().unwrap_or_default();
    validate_replica_counts(
        &ReplicaCounts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            observed_generation: status.observed_generation.unwrap_or(0),
        },
        &Path::new("status"),
        &mut errors,
    );
    errors
}

/// The counts that ReplicationController and ReplicaSet report.
pub(crate) struct ReplicaCounts {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    pub(crate) observed_generation: i64,
}

pub(crate) fn validate_replica_counts(counts: &ReplicaCounts, path: &Path, errors: &mut ErrorList) {
    let parts = [
        ("fullyLabeledReplicas", counts.fully_labeled),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
    ];
    errors.not_negative(path.child("replicas"), counts.replicas);
    for (field, count) in parts {
        errors.not_negative(path.child(field), count);
    }
    errors.not_negative(path.child("observedGeneration"), counts.observed_generation);
    for (field, count) in parts.into_iter().filter(|(_, count)| *count > counts.replicas) {
        errors.invalid(path.child(field), count, "cannot be greater than status.replicas");
    }
    if counts.available > counts.ready {
        let detail = "cannot be greater than readyReplicas";
        errors.invalid(path.child("availableReplicas"), counts.available, detail);
    }
}
