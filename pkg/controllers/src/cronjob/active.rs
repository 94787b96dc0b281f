//! The list of a CronJob's active Jobs, brought in line with the Jobs that there are.
//!
//! Behaves as the first half of `syncCronJob` and `cleanupFinishedJobs` of
//! pkg/controller/cronjob/cronjob_controllerv2.go, v1.36.

use std::collections::HashSet;
use std::sync::Arc;

use rkube_api::k8s::batch::v1::{CronJob, CronJobStatus, Job};
use rkube_api::k8s::core::v1::ObjectReference;
use rkube_client::EventType;
use rkube_client::owner::uid_of;

use crate::job::finished_condition;

/// An event to come: its type, reason and text.
pub(super) type Remark = (EventType, &'static str, String);

pub(super) fn is_active(status: &CronJobStatus, uid: &str) -> bool {
    status.active.iter().flatten().any(|reference| reference.uid.as_deref() == Some(uid))
}

pub(super) fn remove(status: &mut CronJobStatus, uid: &str) {
    if let Some(active) = &mut status.active {
        active.retain(|reference| reference.uid.as_deref() != Some(uid));
    }
    status.active = status.active.take().filter(|active| !active.is_empty());
}

pub(super) fn name_of(job: &Job) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

/// Takes finished Jobs off the list and notes the last success. Whether the status changed.
pub(super) fn note_finished(status: &mut CronJobStatus, jobs: &[Arc<Job>], remarks: &mut Vec<Remark>) -> bool {
    let mut changed = false;
    for job in jobs {
        let listed = is_active(status, uid_of(&**job));
        let Some(end) = finished_condition(job) else {
            if !listed {
                // Someone else's, started by hand, or ours from before a crash; the next try to make it finds it.
                let text = format!("Saw a job that the controller did not create or forgot: {}", name_of(job));
                remarks.push((EventType::Warning, "UnexpectedJob", text));
            }
            continue;
        };
        if listed {
            remove(status, uid_of(&**job));
            let text = format!("Saw completed job: {}, condition: {}", name_of(job), end.type_);
            remarks.push((EventType::Normal, "SawCompletedJob", text));
            changed = true;
        }
        let completed = job.status.as_ref().and_then(|status| status.completion_time.as_ref());
        if end.type_ == "Complete" && completed.is_some() && status.last_successful_time.as_ref() < completed {
            status.last_successful_time = completed.cloned();
            changed = true;
        }
    }
    changed
}

/// Entries of the list for which the cache has no Job.
pub(super) fn missing(status: &CronJobStatus, jobs: &[Arc<Job>]) -> Vec<ObjectReference> {
    let known: HashSet<&str> = jobs.iter().map(|job| uid_of(&**job)).collect();
    let active = status.active.iter().flatten();
    active.filter(|reference| !known.contains(reference.uid.as_deref().unwrap_or_default())).cloned().collect()
}

/// Finished Jobs beyond the limits, the oldest of each kind.
///
/// // Differs from upstream: a Job that is being deleted is not deleted again, with an event each time.
pub(super) fn surplus(cron_job: &CronJob, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let limits = [
        ("Complete", cron_job.spec.successful_jobs_history_limit),
        ("Failed", cron_job.spec.failed_jobs_history_limit),
    ];
    let beyond = |(end, limit): (&str, Option<i32>)| {
        let limit = usize::try_from(limit?).unwrap_or(0);
        let ended = |job: &Arc<Job>| finished_condition(job).is_some_and(|condition| condition.type_ == end);
        let mut ended: Vec<_> = jobs.iter().filter(|job| ended(job)).cloned().collect();
        // Those that never started are the youngest.
        ended.sort_by_key(|job| {
            let start = job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
            (start.is_none(), start, name_of(job).to_owned())
        });
        ended.truncate(ended.len().saturating_sub(limit));
        ended.retain(|job| job.metadata.deletion_timestamp.is_none());
        Some(ended)
    };
    limits.into_iter().filter_map(beyond).flatten().collect()
}
