//! What Deployment, ReplicaSet, DaemonSet and StatefulSet have in common: a selector and a pod template that
//! runs forever.

use rkube_api::k8s::core::v1::PodTemplateSpec;
use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;
use rkube_apimachinery::field::{ErrorList, Path};

use crate::common::meta::{SelectorOptions, selects_all, validate_label_selector};
use crate::common::report::{OptMap, OptText, Report, shown};

pub(crate) const INVALID_SELECTOR: &str = "invalid label selector";

/// A selector is required and may not be empty. Absence and emptiness are the same here, since the typed field
/// is not optional; absence is what happens.
pub(crate) fn validate_selector(selector: &LabelSelector, what: &str, path: &Path, errors: &mut ErrorList) {
    if selector.match_labels.is_none() && selector.match_expressions.is_none() {
        errors.required(path, "");
        return;
    }
    validate_label_selector(Some(selector), SelectorOptions::default(), path, errors);
    if selects_all(selector) {
        errors.invalid(path, shown(selector), format!("empty selector is invalid for {what}"));
    }
}

/// The selector must select the pods of the template.
pub(crate) fn validate_selects_template(
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
    let missing = selector.match_labels.is_none() && selector.match_expressions.is_none();
    if missing || !crate::common::meta::selector_matches(selector, labels.as_ref()) {
        let value = if labels.count() == 0 { serde_json::Value::Null } else { shown(&labels) };
        let detail = "`selector` does not match template `labels`";
        errors.invalid(path.child("metadata").child("labels"), value, detail);
    }
}

/// Pods of workloads are restarted always and have no deadline.
pub(crate) fn validate_runs_forever(template: &PodTemplateSpec, what: &str, path: &Path, errors: &mut ErrorList) {
    let path = path.child("spec");
    let spec = template.spec.clone().unwrap_or_default();
    let restart = spec.restart_policy.text();
    if restart != "Always" {
        errors.not_supported(path.child("restartPolicy"), restart, &["Always"]);
    }
    if spec.active_deadline_seconds.is_some() {
        let detail = format!("activeDeadlineSeconds in {what} is not Supported");
        errors.forbidden(path.child("activeDeadlineSeconds"), detail);
    }
}

/// `status.collisionCount` only grows.
pub(crate) fn validate_collision_count(new: Option<i32>, old: Option<i32>, errors: &mut ErrorList) {
    if old.is_some_and(|old| new.is_none_or(|new| new < old)) {
        let path = Path::new("status").child("collisionCount");
        errors.invalid(path, new.unwrap_or(0), "cannot be decremented");
    }
}

/// Counts that may not be negative.
pub(crate) fn validate_counts(counts: &[(&str, Option<i64>)], path: &Path, errors: &mut ErrorList) {
    for (field, count) in counts {
        if let Some(count) = count {
            errors.not_negative(path.child(field), *count);
        }
    }
}
