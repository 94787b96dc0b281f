//! policy/v1 PodDisruptionBudget.
//!
//! Behaves as pkg/apis/policy/validation/validation.go, v1.36.

use rkube_api::k8s::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use rkube_apimachinery::field::{ErrorList, Path};

use crate::common::int_or_percent;
use crate::common::meta::{SelectorOptions, has_invalid_label_value, validate_conditions, validate_label_selector};
use crate::common::report::{OptList, Report, shown};

pub fn set_defaults(budget: &mut PodDisruptionBudget) {
    budget.spec.get_or_insert_default();
    budget.status.get_or_insert_default();
}

pub fn validate(budget: &PodDisruptionBudget) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = budget.spec.clone().unwrap_or_default();
    validate_spec(&spec, SelectorOptions::default(), &mut errors);
    errors
}

pub fn validate_update(new: &PodDisruptionBudget, old: &PodDisruptionBudget) -> ErrorList {
    let mut errors = ErrorList::new();
    let old_selector = old.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let options = SelectorOptions {
        allow_invalid_label_value: has_invalid_label_value(old_selector),
        ..SelectorOptions::default()
    };
    validate_spec(&new.spec.clone().unwrap_or_default(), options, &mut errors);
    errors
}

fn validate_spec(spec: &PodDisruptionBudgetSpec, options: SelectorOptions, errors: &mut ErrorList) {
    let path = Path::new("spec");
    if spec.min_available.is_some() && spec.max_unavailable.is_some() {
        errors.invalid(&path, shown(spec), "minAvailable and maxUnavailable cannot be both set");
    }
    for (field, value) in [("minAvailable", &spec.min_available), ("maxUnavailable", &spec.max_unavailable)] {
        if let Some(value) = value {
            int_or_percent::validate_positive(value, path.child(field), errors);
            int_or_percent::validate_at_most_100_percent(value, path.child(field), errors);
        }
    }
    validate_label_selector(spec.selector.as_ref(), options, &path.child("selector"), errors);
    if let Some(policy) = &spec.unhealthy_pod_eviction_policy {
        errors.one_of(path.child("unhealthyPodEvictionPolicy"), policy, &["AlwaysAllow", "IfHealthyBudget"]);
    }
}

/// `PUT poddisruptionbudgets/x/status`.
pub fn validate_status_update(new: &PodDisruptionBudget, _old: &PodDisruptionBudget) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = new.status.clone().unwrap_or_default();
    let path = Path::new("status");
    validate_conditions(status.conditions.items(), &path.child("conditions"), &mut errors);
    for (field, count) in [
        ("disruptionsAllowed", status.disruptions_allowed),
        ("currentHealthy", status.current_healthy),
        ("desiredHealthy", status.desired_healthy),
        ("expectedPods", status.expected_pods),
    ] {
        errors.not_negative(path.child(field), count.unwrap_or(0));
    }
    errors
}
