//! The conditions of a Job.

use jiff::Timestamp;
use rkube_api::k8s::batch::v1::{Job, JobCondition, JobStatus};
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::time::whole_seconds;

pub(super) const COMPLETE: &str = "Complete";
pub(super) const FAILED: &str = "Failed";
/// Interim: the job will be `Failed` when all its pods are gone.
pub(super) const FAILURE_TARGET: &str = "FailureTarget";
/// Interim: the job will be `Complete` when all its pods are gone.
pub(super) const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";
pub(super) const SUSPENDED: &str = "Suspended";

pub(super) fn new(
    condition_type: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> JobCondition {
    let now = Time(whole_seconds(now));
    JobCondition {
        type_: condition_type.to_owned(),
        status: status.to_owned(),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
    }
}

/// The same reason and message under another type.
pub(super) fn retyped(condition: &JobCondition, condition_type: &str, now: Timestamp) -> JobCondition {
    let now = Time(whole_seconds(now));
    JobCondition {
        type_: condition_type.to_owned(),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now),
        ..condition.clone()
    }
}

/// The condition of this type, if it is true.
pub(super) fn find_true<'a>(status: &'a JobStatus, condition_type: &str) -> Option<&'a JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == condition_type && condition.status == "True")
}

/// Sets a condition if that says something new. One that is not there is not added to say `False`.
pub(super) fn ensure(status: &mut JobStatus, wanted: JobCondition) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|condition| condition.type_ == wanted.type_) {
        Some(known) => {
            let content = |condition: &JobCondition| {
                (condition.status.clone(), condition.reason.clone(), condition.message.clone())
            };
            let changes = content(known) != content(&wanted);
            if changes {
                *known = wanted;
            }
            changes
        }
        None if wanted.status == "False" => false,
        None => {
            conditions.push(wanted);
            true
        }
    }
}

/// The condition that says the job is over, for better or worse.
pub(crate) fn finished_condition(job: &Job) -> Option<&JobCondition> {
    let mut conditions = job.status.as_ref()?.conditions.iter().flatten();
    conditions.find(|condition| matches!(condition.type_.as_str(), COMPLETE | FAILED) && condition.status == "True")
}
