//! apps/v1 Deployment and ReplicaSet.
//!
//! Behaves as ValidateDeployment and ValidateReplicaSet of pkg/apis/apps/validation/validation.go and
//! pkg/apis/apps/v1/defaults.go, v1.36.

use rkube_api::k8s::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, ReplicaSet, ReplicaSetSpec, RollingUpdateDeployment,
};
use rkube_api::k8s::core::v1::PodTemplateSpec;
use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;
use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_apimachinery::field::{ErrorList, Path};

use super::workload::{
    INVALID_SELECTOR, validate_collision_count, validate_counts, validate_runs_forever, validate_selector,
    validate_selects_template,
};
use crate::common::defaults::{default_to, text_default};
use crate::common::int_or_percent;
use crate::common::meta::{selector_error, validate_object_meta, validate_object_meta_update};
use crate::common::names::dns_subdomain;
use crate::common::report::{OptText, Report, immutable, shown};
use crate::core::pod::validate_template;
use crate::core::pod_defaults::set_template_defaults;
use crate::core::pod_options::PodOptions;
use crate::core::replication_controller::{ReplicaCounts, validate_replica_counts};

pub fn set_defaults(deployment: &mut Deployment) {
    let spec = deployment.spec.get_or_insert_default();
    default_to(&mut spec.replicas, 1);
    let strategy = spec.strategy.get_or_insert_default();
    text_default(&mut strategy.type_, "RollingUpdate");
    if strategy.type_.text() == "RollingUpdate" {
        let update = strategy.rolling_update.get_or_insert_default();
        default_to(&mut update.max_unavailable, IntOrString::String("25%".to_owned()));
        default_to(&mut update.max_surge, IntOrString::String("25%".to_owned()));
    }
    default_to(&mut spec.revision_history_limit, 10);
    default_to(&mut spec.progress_deadline_seconds, 600);
    set_template_defaults(&mut spec.template);
    deployment.status.get_or_insert_default();
}

pub fn validate(deployment: &Deployment) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&deployment.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_spec(&deployment.spec.clone().unwrap_or_default(), &PodOptions::strict(), &mut errors);
    errors
}

pub fn validate_update(new: &Deployment, old: &Deployment) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (new, old) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    validate_spec(&new, &PodOptions::for_template(Some(&old.template)), &mut errors);
    immutable(&new.selector, &old.selector, Path::new("spec").child("selector"), &mut errors);
    errors
}

fn validate_spec(spec: &DeploymentSpec, options: &PodOptions, errors: &mut ErrorList) {
    let path = Path::new("spec");
    errors.not_negative(path.child("replicas"), spec.replicas.unwrap_or(0));
    validate_selected_template(&spec.selector, &spec.template, options, &path, errors);
    validate_strategy(&spec.strategy.clone().unwrap_or_default(), &path.child("strategy"), errors);
    let ready = spec.min_ready_seconds.unwrap_or(0);
    errors.not_negative(path.child("minReadySeconds"), ready);
    validate_counts(&[("revisionHistoryLimit", spec.revision_history_limit.map(i64::from))], &path, errors);
    if let Some(deadline) = spec.progress_deadline_seconds {
        let path = path.child("progressDeadlineSeconds");
        errors.not_negative(&path, deadline);
        if deadline <= ready {
            errors.invalid(path, deadline, "must be greater than minReadySeconds");
        }
    }
}

/// The selector and the template, as Deployments and ReplicaSets check them.
fn validate_selected_template(
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    options: &PodOptions,
    path: &Path,
    errors: &mut ErrorList,
) {
    validate_selector(selector, "deployment", &path.child("selector"), errors);
    if selector_error(selector).is_some() {
        errors.invalid(path.child("selector"), shown(selector), INVALID_SELECTOR);
        return;
    }
    let path = path.child("template");
    validate_selects_template(selector, template, &path, errors);
    validate_template(template, &path, options, errors);
    validate_runs_forever(template, "ReplicaSet", &path, errors);
}

fn validate_strategy(strategy: &DeploymentStrategy, path: &Path, errors: &mut ErrorList) {
    match (strategy.type_.text(), &strategy.rolling_update) {
        ("Recreate", Some(_)) => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.forbidden(path.child("rollingUpdate"), detail);
        }
        ("Recreate", None) => {}
        ("RollingUpdate", None) => {
            errors.required(path.child("rollingUpdate"), "this should be defaulted and never be nil");
        }
        ("RollingUpdate", Some(update)) => validate_rolling_update(update, &path.child("rollingUpdate"), errors),
        _ => errors.not_supported(path, shown(strategy), &["Recreate", "RollingUpdate"]),
    }
}

fn validate_rolling_update(update: &RollingUpdateDeployment, path: &Path, errors: &mut ErrorList) {
    let unavailable = update.max_unavailable.clone().unwrap_or_default();
    let surge = update.max_surge.clone().unwrap_or_default();
    let path_of_unavailable = path.child("maxUnavailable");
    int_or_percent::validate_positive(&unavailable, &path_of_unavailable, errors);
    int_or_percent::validate_positive(&surge, path.child("maxSurge"), errors);
    if int_or_percent::number(&unavailable) == 0 && int_or_percent::number(&surge) == 0 {
        let value = int_or_percent::shown(&unavailable);
        errors.invalid(&path_of_unavailable, value, "may not be 0 when `maxSurge` is 0");
    }
    int_or_percent::validate_at_most_100_percent(&unavailable, &path_of_unavailable, errors);
}

/// `PUT deployments/x/status`.
pub fn validate_status_update(new: &Deployment, old: &Deployment) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (status, old_status) = (new.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
    let path = Path::new("status");
    let counts = [
        ("observedGeneration", status.observed_generation),
        ("replicas", status.replicas.map(i64::from)),
        ("updatedReplicas", status.updated_replicas.map(i64::from)),
        ("readyReplicas", status.ready_replicas.map(i64::from)),
        ("availableReplicas", status.available_replicas.map(i64::from)),
        ("unavailableReplicas", status.unavailable_replicas.map(i64::from)),
        ("terminatingReplicas", status.terminating_replicas.map(i64::from)),
        ("collisionCount", status.collision_count.map(i64::from)),
    ];
    validate_counts(&counts, &path, &mut errors);
    let replicas = status.replicas.unwrap_or(0);
    let (ready, available) = (status.ready_replicas.unwrap_or(0), status.available_replicas.unwrap_or(0));
    let parts = [
        ("updatedReplicas", status.updated_replicas.unwrap_or(0)),
        ("readyReplicas", ready),
        ("availableReplicas", available),
    ];
    for (field, count) in parts.into_iter().filter(|(_, count)| *count > replicas) {
        errors.invalid(path.child(field), count, "cannot be greater than status.replicas");
    }
    if available > ready {
        errors.invalid(path.child("availableReplicas"), available, "cannot be greater than readyReplicas");
    }
    validate_collision_count(status.collision_count, old_status.collision_count, &mut errors);
    errors
}

pub fn set_replica_set_defaults(replica_set: &mut ReplicaSet) {
    let spec = replica_set.spec.get_or_insert_default();
    default_to(&mut spec.replicas, 1);
    set_template_defaults(spec.template.get_or_insert_default());
    replica_set.status.get_or_insert_default();
}

pub fn validate_replica_set(replica_set: &ReplicaSet) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&replica_set.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    let spec = replica_set.spec.clone().unwrap_or_default();
    validate_replica_set_spec(&spec, &PodOptions::strict(), &mut errors);
    errors
}

pub fn validate_replica_set_update(new: &ReplicaSet, old: &ReplicaSet) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (new, old) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    validate_replica_set_spec(&new, &PodOptions::for_template(old.template.as_ref()), &mut errors);
    immutable(&new.selector, &old.selector, Path::new("spec").child("selector"), &mut errors);
    errors
}

fn validate_replica_set_spec(spec: &ReplicaSetSpec, options: &PodOptions, errors: &mut ErrorList) {
    let path = Path::new("spec");
    errors.not_negative(path.child("replicas"), spec.replicas.unwrap_or(0));
    errors.not_negative(path.child("minReadySeconds"), spec.min_ready_seconds.unwrap_or(0));
    let template = spec.template.clone().unwrap_or_default();
    validate_selected_template(&spec.selector, &template, options, &path, errors);
}

/// `PUT replicasets/x/status`.
pub fn validate_replica_set_status_update(new: &ReplicaSet, old: &ReplicaSet) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let status = new.status.clone().unwrap_or_default();
    let path = Path::new("status");
    let counts = ReplicaCounts {
        replicas: status.replicas,
        fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
        ready: status.ready_replicas.unwrap_or(0),
        available: status.available_replicas.unwrap_or(0),
        observed_generation: status.observed_generation.unwrap_or(0),
    };
    validate_replica_counts(&counts, &path, &mut errors);
    validate_counts(&[("terminatingReplicas", status.terminating_replicas.map(i64::from))], &path, &mut errors);
    errors
}
