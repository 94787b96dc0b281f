//! Counting pods that have ended, so that each is counted once.
//!
//! Walk through one pod that failed: `count` puts its uid into `uncountedTerminatedPods.failed`, and that is written.
//! Then its finalizer is removed. `settle` finds that no pod holds a finalizer for that uid any more, takes it off the
//! list and adds one to `failed`; both are one write. A process that dies in between finds the uid on the list, or
//! the pod with its finalizer and the uid on the list, and goes on from there.
//!
//! Behaves as `trackJobStatusAndRemoveFinalizers` of pkg/controller/job/job_controller.go, v1.36.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use rkube_api::k8s::batch::v1::{JobCondition, JobStatus};
use rkube_api::k8s::core::v1::Pod;
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::time::whole_seconds;
use rkube_client::owner::uid_of;

use super::conditions::{self, COMPLETE, FAILED, FAILURE_TARGET, SUCCESS_CRITERIA_MET, ensure, find_true, retyped};
use super::indexes::Indexes;
use super::plan::{Assessment, Found, uncounted_uids};
use super::pods::{is_countable, is_failed, valid_index};
use super::policy::judge;
use super::spec::{is_indexed, is_suspended};
use crate::common::numbers::{count as number, nonempty, nonzero};
use crate::common::pods;

/// Uids the status lists at most, which keeps it below about 20 KB: 500 of 36 characters.
const UNCOUNTED_MAX: usize = 500;

/// The outcome of [`count`].
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// Their end is in the status: the finalizer may go when that is written.
    pub(super) release: Vec<Arc<Pod>>,
    /// Uids of the pods that hold the finalizer.
    pub(super) held: HashSet<String>,
    /// The status must be written before finalizers are removed.
    pub(super) changed: bool,
    /// More pods have ended than the status may list; they are for the next sync.
    pub(super) full: bool,
}

/// Writes ended pods into `status`. `terminating` says that the job itself is being deleted.
pub(super) fn count(found: &Found<'_>, assessment: &Assessment, status: &mut JobStatus, terminating: bool) -> Counted {
    let spec = found.spec;
    let indexed = is_indexed(spec);
    let mut sorted = found.pods.to_vec();
    if indexed {
        // So that the list of completed indexes grows in order when there are too many for one write.
        sorted.sort_by_key(|pod| super::pods::index_of(pod));
    }
    let held = sorted.iter().filter(|pod| found.is_held(pod)).map(|pod| uid_of(&**pod).to_owned()).collect();
    let mut counted = Counted { changed: settle(status, &held), held, ..Counted::default() };
    let (known_succeeded, known_failed) = uncounted_uids(found.status);
    let (mut succeeded, mut failed, mut indexes) = (Vec::new(), Vec::new(), Vec::new());
    let listed = status.uncounted_terminated_pods.as_ref().map_or(0, |uncounted| {
        uncounted.succeeded.as_ref().map_or(0, Vec::len) + uncounted.failed.as_ref().map_or(0, Vec::len)
    });
    let gave_up = assessment.finished.as_ref().is_some_and(|condition| condition.type_ != SUCCESS_CRITERIA_MET);
    for pod in sorted.iter().filter(|pod| found.is_held(pod)) {
        let (uid, has_failed) = (uid_of(&**pod), is_failed(spec, pod));
        if !may_release(found, assessment, pod, has_failed, terminating) {
            continue;
        }
        counted.release.push(Arc::clone(pod));
        if pods::phase(pod) == "Succeeded" && !known_failed.contains(uid) {
            if indexed {
                // The index says that it was counted; its uid is not needed.
                let index = valid_index(spec, pod).filter(|index| !assessment.known_indexes.contains(*index));
                indexes.extend(index);
            } else if !known_succeeded.contains(uid) {
                succeeded.push(uid.to_owned());
            }
        } else if (has_failed || gave_up) && !known_failed.contains(uid) && is_countable(spec, pod) {
            // What still runs when a job is given up counts as failed.
            if judge(spec, pod).counts() {
                failed.push(uid.to_owned());
            }
        }
        if listed + indexes.len() + succeeded.len() + failed.len() >= UNCOUNTED_MAX {
            counted.full = true;
            break;
        }
    }
    counted.changed |= !(indexes.is_empty() && succeeded.is_empty() && failed.is_empty());
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    append(&mut uncounted.succeeded, succeeded);
    append(&mut uncounted.failed, failed);
    if indexed {
        counted.changed |= write_indexes(assessment, indexes.into_iter().collect(), status);
    }
    counted
}

fn append(list: &mut Option<Vec<String>>, more: Vec<String>) {
    if !more.is_empty() {
        list.get_or_insert_default().extend(more);
    }
}

/// Whether the pod's finalizer has done its service once its end is in the status.
fn may_release(found: &Found<'_>, assessment: &Assessment, pod: &Pod, has_failed: bool, terminating: bool) -> bool {
    if terminating || assessment.finished.is_some() || pods::phase(pod) == "Succeeded" {
        return true;
    }
    let waits_for_successor = || {
        let index = valid_index(found.spec, pod);
        let predecessor = index.and_then(|index| assessment.predecessors.get(&index));
        predecessor.is_some_and(|predecessor| uid_of(&**predecessor) == uid_of(pod))
    };
    has_failed && !waits_for_successor()
}

fn write_indexes(assessment: &Assessment, new: Indexes, status: &mut JobStatus) -> bool {
    let completed = assessment.succeeded_indexes.union(&new);
    let failed = assessment.failed_indexes.as_ref().map(ToString::to_string);
    let text = completed.to_string();
    let changed = status.completed_indexes.as_deref().unwrap_or_default() != text || status.failed_indexes != failed;
    status.succeeded = nonzero(completed.total());
    status.completed_indexes = nonzero(text);
    status.failed_indexes = failed;
    changed
}

/// Moves pods that no longer hold the finalizer from the lists to the counters.
pub(super) fn settle(status: &mut JobStatus, held: &HashSet<String>) -> bool {
    let Some(uncounted) = &mut status.uncounted_terminated_pods else { return false };
    let mut changed = false;
    let mut settle = |list: &mut Option<Vec<String>>, counter: &mut Option<i32>| {
        let uids = list.take().unwrap_or_default();
        let before = uids.len();
        let left: Vec<String> = uids.into_iter().filter(|uid| held.contains(uid)).collect();
        if left.len() < before {
            *counter = nonzero(counter.unwrap_or(0).saturating_add(number(before - left.len())));
            changed = true;
        }
        *list = nonempty(left);
    };
    settle(&mut uncounted.succeeded, &mut status.succeeded);
    settle(&mut uncounted.failed, &mut status.failed);
    changed
}

/// Writes the decision that the job is over, and returns the condition it will end with and whether that is news.
pub(super) fn decide(
    finished: Option<JobCondition>,
    status: &mut JobStatus,
    now: Timestamp,
) -> (Option<JobCondition>, bool) {
    let Some(condition) = finished else { return (None, false) };
    let end = match condition.type_.as_str() {
        FAILURE_TARGET => FAILED,
        SUCCESS_CRITERIA_MET => COMPLETE,
        // It was written by an earlier sync.
        _ => return (Some(condition), false),
    };
    let end = retyped(&condition, end, now);
    let news = find_true(status, &condition.type_).is_none() && ensure(status, condition);
    (Some(end), news)
}

/// Ends the job, unless pods are still to be counted or to stop. Whether it did.
pub(super) fn finish(status: &mut JobStatus, end: &JobCondition, terminating: i32) -> bool {
    let (succeeded, failed) = uncounted_uids(status);
    if !succeeded.is_empty() || !failed.is_empty() || terminating > 0 {
        return false;
    }
    if end.type_ == COMPLETE {
        status.completion_time.clone_from(&end.last_transition_time);
    }
    ensure(status, end.clone());
    true
}

/// Says that the job is suspended or goes on, if that is new; how, for an event.
pub(super) fn note_suspension(found: &Found<'_>, status: &mut JobStatus) -> Option<(&'static str, &'static str)> {
    let suspended = is_suspended(found.spec);
    let (value, reason, event, message) = if suspended {
        ("True", "JobSuspended", "Suspended", "Job suspended")
    } else {
        ("False", "JobResumed", "Resumed", "Job resumed")
    };
    if !ensure(status, conditions::new(conditions::SUSPENDED, value, reason, message, found.now.wall)) {
        return None;
    }
    // The deadline is for the time a job is active without a pause.
    status.start_time = (!suspended).then(|| started(found.now.wall));
    Some((event, message))
}

/// `startTime` of a job that starts now.
pub(super) fn started(now: Timestamp) -> Time {
    Time(whole_seconds(now))
}
