//! Updates of a Job's status. Only what an update changes is held against it.
//!
//! Behaves as ValidateJobUpdateStatus of pkg/apis/batch/validation/validation.go and
//! getStatusValidationOptions of pkg/registry/batch/job/strategy.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::batch::v1::{Job, JobSpec, JobStatus};
use rkube_apimachinery::field::{ErrorList, Path};

use super::indexes;
use super::job::invalid_without_value;
use crate::common::meta::validate_object_meta_update;
use crate::common::report::{OptList, OptText, Report, semantic_eq, shown};

pub(crate) fn is_true(status: &JobStatus, condition: &str) -> bool {
    has(status, condition, "True")
}

fn has(status: &JobStatus, condition: &str, value: &str) -> bool {
    status.conditions.items().iter().any(|known| known.type_ == condition && known.status == value)
}

/// `PUT jobs/x/status`.
pub fn validate_status_update(new: &Job, old: &Job) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let spec = new.spec.clone().unwrap_or_default();
    let (status, old_status) = (new.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
    let path = Path::new("status");
    validate_counters(&status, &path, &mut errors);
    validate_finish(&spec, &status, &old_status, &path, &mut errors);
    validate_indexes(&spec, &status, &old_status, &path, &mut errors);
    validate_success_criteria(&spec, &status, &path, &mut errors);
    validate_transition(&spec, &status, &old_status, &path, &mut errors);
    errors
}

fn validate_counters(status: &JobStatus, path: &Path, errors: &mut ErrorList) {
    for (field, count) in [
        ("active", status.active),
        ("succeeded", status.succeeded),
        ("failed", status.failed),
        ("ready", status.ready),
        ("terminating", status.terminating),
    ] {
        errors.not_negative(path.child(field), count.unwrap_or(0));
    }
    let Some(uncounted) = &status.uncounted_terminated_pods else { return };
    let path = path.child("uncountedTerminatedPods");
    let mut seen = BTreeSet::new();
    for (field, pods) in [("succeeded", uncounted.succeeded.items()), ("failed", uncounted.failed.items())] {
        for (index, uid) in pods.iter().enumerate() {
            let path = path.child(field).index(index);
            if uid.is_empty() {
                errors.invalid(path, "", "must not be empty");
            } else if !seen.insert(uid) {
                errors.duplicate(path, uid.as_str());
            }
        }
    }
}

/// What must hold when the job is finished, checked where this update touches it.
fn validate_finish(spec: &JobSpec, status: &JobStatus, old: &JobStatus, path: &Path, errors: &mut ErrorList) {
    let changed = |condition: &str| is_true(status, condition) != is_true(old, condition);
    let (complete, failed) = (is_true(status, "Complete"), is_true(status, "Failed"));
    let target = is_true(status, "FailureTarget");
    let criteria_met = is_true(status, "SuccessCriteriaMet");
    let finished = complete || failed;
    let finished_changed = finished != (is_true(old, "Complete") || is_true(old, "Failed"));
    let (complete_changed, failed_changed) = (changed("Complete"), changed("Failed"));
    let completion_changed = status.completion_time != old.completion_time;
    let start_changed = status.start_time != old.start_time;
    let active_changed = status.active.unwrap_or(0) != old.active.unwrap_or(0);
    let conditions = path.child("conditions");
    let mut refuse = |detail: &str| errors.push(invalid_without_value(&conditions, detail));

    if (complete_changed || failed_changed) && complete && failed {
        refuse("cannot set Complete=True and Failed=true conditions");
    }
    if (complete_changed || changed("FailureTarget")) && complete && target {
        refuse("cannot set Complete=True and FailureTarget=true conditions");
    }
    let time_path = path.child("completionTime");
    if complete_changed || completion_changed {
        if status.completion_time.is_some() && !complete {
            let detail = "cannot set completionTime when there is no Complete=True condition";
            errors.invalid(&time_path, shown(&status.completion_time), detail);
        }
        if status.completion_time.is_none() && complete {
            errors.required(&time_path, "completionTime is required for Complete jobs");
        }
    }
    if (start_changed || completion_changed)
        && let (Some(start), Some(end)) = (&status.start_time, &status.completion_time)
        && end < start
    {
        errors.invalid(&time_path, shown(&status.completion_time), "must be equal to or after `startTime`");
    }
    let mut refuse = |detail: &str| errors.push(invalid_without_value(&conditions, detail));
    if (failed_changed || status.failed_indexes != old.failed_indexes) && failed && !target {
        refuse("cannot set Failed=True condition without the FailureTarget=true condition");
    }
    if (complete_changed || changed("SuccessCriteriaMet")) && complete && !criteria_met {
        refuse("cannot set Complete=True condition without the SuccessCriteriaMet=true condition");
    }
    if !finished {
        return;
    }
    let active = status.active.unwrap_or(0);
    if (finished_changed || active_changed) && active > 0 {
        errors.invalid(path.child("active"), active, "active>0 is invalid for finished job");
    }
    let suspended_without_work = spec.suspend == Some(true) && spec.completions == Some(0);
    if (finished_changed || start_changed) && !suspended_without_work && status.start_time.is_none() {
        errors.required(path.child("startTime"), "startTime is required for finished job");
    }
    let uncounted = &status.uncounted_terminated_pods;
    let left = uncounted.as_ref().map_or(0, |pods| pods.failed.items().len() + pods.succeeded.items().len());
    if left > 0 && (finished_changed || !semantic_eq(uncounted, &old.uncounted_terminated_pods)) {
        let detail = "must be empty for finished job";
        errors.invalid(path.child("uncountedTerminatedPods"), shown(uncounted), detail);
    }
}

fn validate_indexes(spec: &JobSpec, status: &JobStatus, old: &JobStatus, path: &Path, errors: &mut ErrorList) {
    let completed = status.completed_indexes.text();
    let completed_changed = completed != old.completed_indexes.text();
    let failed_changed = status.failed_indexes != old.failed_indexes;
    let (completed_path, failed_path) = (path.child("completedIndexes"), path.child("failedIndexes"));
    if completed_changed
        && let Some(completions) = spec.completions
        && let Err(reason) = indexes::total(completed, completions)
    {
        errors.invalid(&completed_path, completed, format!("error parsing completedIndexes: {reason}"));
    }
    let failed = status.failed_indexes.as_deref();
    if failed_changed
        && let (Some(completions), Some(_), Some(failed)) = (spec.completions, spec.backoff_limit_per_index, failed)
        && let Err(reason) = indexes::total(failed, completions)
    {
        errors.invalid(&failed_path, failed, format!("error parsing failedIndexes: {reason}"));
    }
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    if completed_changed && !completed.is_empty() && !indexed {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&completed_path, completed, detail);
    }
    if let Some(failed) = failed {
        if failed_changed && spec.backoff_limit_per_index.is_none() {
            let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
            errors.invalid(&failed_path, failed, detail);
        }
        if (failed_changed || completed_changed)
            && let Some(completions) = spec.completions
            && let Some(index) = indexes::overlap(completed, failed, completions)
        {
            let detail = format!("failedIndexes and completedIndexes overlap at index: {index}");
            errors.invalid(&failed_path, failed, detail);
        }
    }
    let finished = is_true(status, "Complete") || is_true(status, "Failed");
    let finished_changed = finished != (is_true(old, "Complete") || is_true(old, "Failed"));
    if let Some(terminating) = status.terminating.filter(|terminating| *terminating > 0 && finished)
        && (finished_changed || status.terminating != old.terminating)
    {
        errors.invalid(path.child("terminating"), terminating, "terminating>0 is invalid for finished job");
    }
    let active = status.active.unwrap_or(0);
    if let Some(ready) = status.ready.filter(|ready| *ready > active)
        && (status.ready != old.ready || active != old.active.unwrap_or(0))
    {
        errors.invalid(path.child("ready"), ready, "cannot set more ready pods than active");
    }
}

fn validate_success_criteria(spec: &JobSpec, status: &JobStatus, path: &Path, errors: &mut ErrorList) {
    let met = is_true(status, "SuccessCriteriaMet");
    let conditions = path.child("conditions");
    for (condition, text) in [("Failed", "Failed=true"), ("FailureTarget", "FailureTarget=true")] {
        if met && is_true(status, condition) {
            let detail = format!("cannot set SuccessCriteriaMet=True and {text} conditions");
            errors.push(invalid_without_value(&conditions, &detail));
        }
    }
    if spec.success_policy.is_some() && !met && is_true(status, "Complete") {
        let detail = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        errors.push(invalid_without_value(&conditions, detail));
    }
}

fn validate_transition(spec: &JobSpec, status: &JobStatus, old: &JobStatus, path: &Path, errors: &mut ErrorList) {
    let conditions = path.child("conditions");
    for condition in ["Failed", "Complete", "FailureTarget"] {
        if is_true(old, condition) && !is_true(status, condition) {
            let detail = format!("cannot disable the terminal {condition}=True condition");
            errors.push(invalid_without_value(&conditions, &detail));
        }
    }
    let elastic = spec.completion_mode.as_deref() == Some("Indexed") && spec.completions == spec.parallelism;
    for (field, new, old, checked) in [
        ("failed", status.failed.unwrap_or(0), old.failed.unwrap_or(0), true),
        ("succeeded", status.succeeded.unwrap_or(0), old.succeeded.unwrap_or(0), !elastic),
    ] {
        if checked && new < old {
            errors.invalid(path.child(field), new, format!("cannot decrease the {field} counter"));
        }
    }
    if status.completion_time.is_some()
        && old.completion_time.is_some()
        && status.completion_time != old.completion_time
    {
        errors.invalid(path.child("completionTime"), shown(&status.completion_time), "field is immutable");
    }
    let resuming = is_true(old, "Suspended") && has(status, "Suspended", "False");
    if old.start_time.is_some() && status.start_time != old.start_time && spec.suspend != Some(true) && !resuming {
        let detail = "field is immutable for unsuspended job once set";
        errors.invalid(path.child("startTime"), shown(&status.start_time), detail);
    }
    let (met, was_met) = (is_true(status, "SuccessCriteriaMet"), is_true(old, "SuccessCriteriaMet"));
    if was_met && !met {
        let detail = "cannot disable the SuccessCriteriaMet=True condition";
        errors.push(invalid_without_value(&conditions, detail));
    }
    if is_true(old, "Complete") && !was_met && met {
        let detail = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.push(invalid_without_value(&conditions, detail));
    }
}
