//! apps/v1 DaemonSet.
//!
//! Behaves as ValidateDaemonSet of pkg/apis/apps/validation/validation.go and pkg/apis/apps/v1/defaults.go, v1.36.

use rkube_api::k8s::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_apimachinery::field::{ErrorList, Path};

use super::workload::{validate_collision_count, validate_counts, validate_runs_forever, validate_selects_template};
use crate::common::defaults::{default_to, text_default};
use crate::common::int_or_percent;
use crate::common::meta::{
    SelectorOptions, selector_error, selects_all, validate_label_selector, validate_object_meta,
    validate_object_meta_update,
};
use crate::common::names::dns_subdomain;
use crate::common::report::{OptText, Report, immutable, shown};
use crate::core::pod::validate_template;
use crate::core::pod_defaults::set_template_defaults;
use crate::core::pod_options::PodOptions;

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub fn set_defaults(daemon_set: &mut DaemonSet) {
    let spec = daemon_set.spec.get_or_insert_default();
    let strategy = spec.update_strategy.get_or_insert_default();
    text_default(&mut strategy.type_, "RollingUpdate");
    if strategy.type_.text() == "RollingUpdate" {
        let update = strategy.rolling_update.get_or_insert_default();
        default_to(&mut update.max_unavailable, IntOrString::Int(1));
        default_to(&mut update.max_surge, IntOrString::Int(0));
    }
    default_to(&mut spec.revision_history_limit, 10);
    set_template_defaults(&mut spec.template);
    daemon_set.status.get_or_insert_default();
}

/// The number of the template, in an annotation as v1 has no field for it. A client chooses the first; each change of
/// the template adds one. The controller gives it to pods as a label.
pub fn number_template(new: &mut DaemonSet, old: Option<&DaemonSet>) {
    let given = |set: &DaemonSet| -> Option<i64> {
        set.metadata.annotations.as_ref()?.get(TEMPLATE_GENERATION)?.parse().ok().filter(|number| *number >= 1)
    };
    let number = match old {
        None => given(new).unwrap_or(1),
        Some(old) => {
            let template = |set: &DaemonSet| set.spec.as_ref().map(|spec| spec.template.clone());
            given(old).unwrap_or(1).saturating_add(i64::from(template(new) != template(old)))
        }
    };
    let annotations = new.metadata.annotations.get_or_insert_default();
    annotations.insert(TEMPLATE_GENERATION.to_owned(), number.to_string());
}

pub fn validate(daemon_set: &DaemonSet) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&daemon_set.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_spec(&daemon_set.spec.clone().unwrap_or_default(), &PodOptions::strict(), &mut errors);
    errors
}

pub fn validate_update(new: &DaemonSet, old: &DaemonSet) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (new, old) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    immutable(&new.selector, &old.selector, Path::new("spec").child("selector"), &mut errors);
    validate_spec(&new, &PodOptions::for_template(Some(&old.template)), &mut errors);
    errors
}

fn validate_spec(spec: &DaemonSetSpec, options: &PodOptions, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let selector_options = SelectorOptions {
        allow_invalid_label_value: options.allow_invalid_label_value_in_selector,
        ..SelectorOptions::default()
    };
    validate_label_selector(Some(&spec.selector), selector_options, &path.child("selector"), errors);
    let template_path = path.child("template");
    if selector_error(&spec.selector).is_none() {
        validate_selects_template(&spec.selector, &spec.template, &template_path, errors);
    }
    let given = spec.selector.match_labels.is_some() || spec.selector.match_expressions.is_some();
    if given && selects_all(&spec.selector) {
        errors.invalid(path.child("selector"), shown(&spec.selector), "empty selector is invalid for daemonset");
    }
    validate_template(&spec.template, &template_path, options, errors);
    validate_runs_forever(&spec.template, "DaemonSet", &template_path, errors);
    errors.not_negative(path.child("minReadySeconds"), spec.min_ready_seconds.unwrap_or(0));
    validate_strategy(&spec.update_strategy.clone().unwrap_or_default(), &path.child("updateStrategy"), errors);
    validate_counts(&[("revisionHistoryLimit", spec.revision_history_limit.map(i64::from))], &path, errors);
}

fn validate_strategy(strategy: &DaemonSetUpdateStrategy, path: &Path, errors: &mut ErrorList) {
    match (strategy.type_.text(), &strategy.rolling_update) {
        ("OnDelete", _) => {}
        ("RollingUpdate", None) => errors.required(path.child("rollingUpdate"), ""),
        ("RollingUpdate", Some(update)) => validate_rolling_update(update, &path.child("rollingUpdate"), errors),
        _ => errors.not_supported(path, shown(strategy), &["RollingUpdate", "OnDelete"]),
    }
}

fn validate_rolling_update(update: &RollingUpdateDaemonSet, path: &Path, errors: &mut ErrorList) {
    let unavailable = update.max_unavailable.clone().unwrap_or_default();
    let surge = update.max_surge.clone().unwrap_or_default();
    let (unavailable_path, surge_path) = (path.child("maxUnavailable"), path.child("maxSurge"));
    int_or_percent::validate_positive(&unavailable, &unavailable_path, errors);
    int_or_percent::validate_positive(&surge, &surge_path, errors);
    int_or_percent::validate_at_most_100_percent(&unavailable, &unavailable_path, errors);
    int_or_percent::validate_at_most_100_percent(&surge, &surge_path, errors);
    match (int_or_percent::number(&unavailable) != 0, int_or_percent::number(&surge) != 0) {
        (true, true) => {
            let detail = "may not be set when maxUnavailable is non-zero";
            errors.invalid(surge_path, int_or_percent::shown(&surge), detail);
        }
        (false, false) => errors.required(unavailable_path, "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

/// `PUT daemonsets/x/status`.
pub fn validate_status_update(new: &DaemonSet, old: &DaemonSet) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (status, old_status) = (new.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
    let counts = [
        ("currentNumberScheduled", Some(i64::from(status.current_number_scheduled))),
        ("numberMisscheduled", Some(i64::from(status.number_misscheduled))),
        ("desiredNumberScheduled", Some(i64::from(status.desired_number_scheduled))),
        ("numberReady", Some(i64::from(status.number_ready))),
        ("observedGeneration", status.observed_generation),
        ("updatedNumberScheduled", status.updated_number_scheduled.map(i64::from)),
        ("numberAvailable", status.number_available.map(i64::from)),
        ("numberUnavailable", status.number_unavailable.map(i64::from)),
        ("collisionCount", status.collision_count.map(i64::from)),
    ];
    validate_counts(&counts, &Path::new("status"), &mut errors);
    validate_collision_count(status.collision_count, old_status.collision_count, &mut errors);
    errors
}
