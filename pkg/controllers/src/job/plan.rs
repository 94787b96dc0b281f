//! What a Job needs next, from its status and its pods.
//!
//! Behaves as `syncJob` and `manageJob` of pkg/controller/job/job_controller.go, v1.36.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use rkube_api::k8s::batch::v1::{JobCondition, JobSpec, JobStatus};
use rkube_api::k8s::core::v1::Pod;
use rkube_client::owner::uid_of;

use super::backoff::{Backoff, Moment, finished_at, remaining_for_index};
use super::conditions::{self, FAILED, FAILURE_TARGET, SUCCESS_CRITERIA_MET, find_true, retyped};
use super::indexes::Indexes;
use super::pods::{index_failures, index_of, is_countable, is_failed, is_stopping, is_tracked, valid_index};
use super::policy::{Verdict, judge, success};
use super::spec::{backoff_limit, index_count, is_indexed, is_suspended, parallelism, replaces_only_failed};
use crate::common::numbers::count;
use crate::common::pods;

/// Pods created or deleted in one sync. The rest follows when these were seen.
pub(super) const BURST: usize = 500;

/// What a sync looks at.
pub(super) struct Found<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) status: &'a JobStatus,
    /// All that the job owns.
    pub(super) pods: &'a [Arc<Pod>],
    /// Uids of pods whose finalizer is gone although the cache still shows it.
    pub(super) releasing: &'a HashSet<String>,
    /// As it was after the last sync.
    pub(super) backoff: Backoff,
    /// Uids of failed pods with the monotonic time when they were first seen failed. Only with a limit per index.
    pub(super) failures_seen: &'a HashMap<String, Duration>,
    pub(super) now: Moment,
}

/// The state of the job as its pods tell it, counted or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Assessment {
    pub(super) active: Vec<Arc<Pod>>,
    pub(super) ready: i32,
    pub(super) terminating: i32,
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    /// The indexes that the status already has, and all that succeeded. Empty for jobs without indexes.
    pub(super) known_indexes: Indexes,
    pub(super) succeeded_indexes: Indexes,
    /// Only with a limit per index.
    pub(super) failed_indexes: Option<Indexes>,
    /// The last failed pod of each index that waits for its successor, which is to inherit its failure count.
    pub(super) predecessors: HashMap<i32, Arc<Pod>>,
    pub(super) backoff: Backoff,
    /// Why the job is over, if it is.
    pub(super) finished: Option<JobCondition>,
    /// When the job will have been active for too long.
    pub(super) deadline_in: Option<Duration>,
}

/// What to do about the pods of a job that goes on.
#[derive(Debug)]
pub(super) enum Step {
    Nothing,
    /// Gives these pods up: they are not counted.
    Delete(Vec<Arc<Pod>>),
    /// Creates a pod for each: with this index, or without one.
    Create(Vec<Option<i32>>),
    /// A failed pod must not be replaced yet.
    Wait(Duration),
}

impl Found<'_> {
    /// Holds the finalizer, as far as we know: its end is not finally counted.
    pub(super) fn is_held(&self, pod: &Pod) -> bool {
        is_tracked(pod) && !self.releasing.contains(uid_of(pod))
    }

    /// Pods whose end is neither in the counters nor on the way there.
    fn uncounted(&self, known: &HashSet<&str>, ended: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let fresh = |pod: &Pod| self.is_held(pod) && !known.contains(uid_of(pod)) && is_countable(self.spec, pod);
        self.pods.iter().filter(|pod| fresh(pod) && ended(pod)).cloned().collect()
    }
}

/// The uids of pods that are counted next: succeeded and failed.
pub(super) fn uncounted_uids(status: &JobStatus) -> (HashSet<&str>, HashSet<&str>) {
    fn set(uids: Option<&[String]>) -> HashSet<&str> {
        uids.unwrap_or_default().iter().map(String::as_str).collect()
    }
    let uncounted = status.uncounted_terminated_pods.as_ref();
    let (succeeded, failed) =
        uncounted.map_or((None, None), |both| (both.succeeded.as_deref(), both.failed.as_deref()));
    (set(succeeded), set(failed))
}

/// Takes stock, and decides whether the job is over.
pub(super) fn assess(found: &Found<'_>) -> Assessment {
    let (spec, status) = (found.spec, found.status);
    let (succeeding, failing) = uncounted_uids(status);
    let succeeded = found.uncounted(&succeeding, |pod| pods::phase(pod) == "Succeeded");
    let failed = found.uncounted(&failing, |pod| is_failed(spec, pod));
    let counted_failures = failed.iter().filter(|pod| judge(spec, pod).counts()).count();
    let active: Vec<_> = found.pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
    let mut assessment = Assessment {
        ready: count(active.iter().filter(|pod| pods::is_ready(pod)).count()),
        terminating: count(found.pods.iter().filter(|pod| is_stopping(pod)).count()),
        active,
        succeeded: status.succeeded.unwrap_or(0) + count(succeeded.len() + succeeding.len()),
        failed: status.failed.unwrap_or(0) + count(counted_failures + failing.len()),
        backoff: found.backoff.after(&succeeded, &failed, found.now),
        ..Assessment::default()
    };
    assessment.finished = known_end(found).or_else(|| policy_failure(found));
    if assessment.finished.is_none() {
        judge_limits(found, &mut assessment);
    }
    if is_indexed(spec) {
        assess_indexes(found, &mut assessment);
    }
    assessment
}

/// The end that an earlier sync decided on.
fn known_end(found: &Found<'_>) -> Option<JobCondition> {
    let met = find_true(found.status, SUCCESS_CRITERIA_MET).cloned();
    met.or_else(|| find_true(found.status, FAILURE_TARGET).map(|target| retyped(target, FAILED, found.now.wall)))
}

fn failure(found: &Found<'_>, reason: &str, message: impl Into<String>) -> Option<JobCondition> {
    Some(conditions::new(FAILURE_TARGET, "True", reason, message, found.now.wall))
}

fn policy_failure(found: &Found<'_>) -> Option<JobCondition> {
    found.spec.pod_failure_policy.as_ref()?;
    let mut failed = found.pods.iter().filter(|pod| is_failed(found.spec, pod));
    let message = failed.find_map(|pod| match judge(found.spec, pod) {
        Verdict::FailJob(message) => Some(message),
        _ => None,
    })?;
    failure(found, "PodFailurePolicy", message)
}

/// The limits on failures and on time.
fn judge_limits(found: &Found<'_>, assessment: &mut Assessment) {
    let spec = found.spec;
    if assessment.failed > backoff_limit(spec) || too_many_restarts(spec, found.pods) {
        assessment.finished = failure(found, "BackoffLimitExceeded", "Job has reached the specified backoff limit");
        return;
    }
    let start = found.status.start_time.as_ref().filter(|_| !is_suspended(spec));
    if let (Some(seconds), Some(start)) = (spec.active_deadline_seconds, start) {
        let passed = found.now.wall.duration_since(start.0);
        match Duration::try_from(SignedDuration::from_secs(seconds) - passed) {
            Ok(left) if !left.is_zero() => assessment.deadline_in = Some(left),
            _ => {
                let text = "Job was active longer than specified deadline";
                assessment.finished = failure(found, "DeadlineExceeded", text);
            }
        }
    }
}

/// Containers that restart in their pod count, too, where they may.
fn too_many_restarts(spec: &JobSpec, pods: &[Arc<Pod>]) -> bool {
    if spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let running = pods.iter().filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"));
    let statuses = running.filter_map(|pod| pod.status.as_ref()).flat_map(|status| {
        [&status.init_container_statuses, &status.container_statuses].into_iter().flat_map(|list| list.iter().flatten())
    });
    let restarts = statuses.fold(0i32, |sum, container| sum.saturating_add(container.restart_count));
    restarts >= backoff_limit(spec).max(1)
}

fn assess_indexes(found: &Found<'_>, assessment: &mut Assessment) {
    let (spec, completions) = (found.spec, index_count(found.spec));
    let indexes = |ended: &dyn Fn(&Pod) -> bool| -> Indexes {
        let ended = found.pods.iter().filter(|pod| is_tracked(pod) && ended(pod));
        ended.filter_map(|pod| valid_index(spec, pod)).collect()
    };
    let known = |text: &Option<String>| Indexes::parse(text.as_deref().unwrap_or_default(), completions);
    assessment.known_indexes = known(&found.status.completed_indexes);
    let succeeded = indexes(&|pod| pods::phase(pod) == "Succeeded");
    assessment.succeeded_indexes = assessment.known_indexes.union(&succeeded);
    assessment.succeeded = assessment.succeeded_indexes.total();

    if let Some(limit) = spec.backoff_limit_per_index {
        let failed = known(&found.status.failed_indexes).union(&indexes(&|pod| fails_index(spec, pod, limit)));
        if assessment.finished.is_none() {
            let done = failed.total().saturating_add(assessment.succeeded);
            if spec.max_failed_indexes.is_some_and(|max| failed.total() > max) {
                let text = "Job has exceeded the specified maximal number of failed indexes";
                assessment.finished = failure(found, "MaxFailedIndexesExceeded", text);
            } else if !failed.is_empty() && done >= completions {
                assessment.finished = failure(found, "FailedIndexes", "Job has failed indexes");
            }
        }
        assessment.predecessors = predecessors(found, assessment, &failed);
        assessment.failed_indexes = Some(failed);
    }
    if assessment.finished.is_none()
        && let Some(message) = success(spec, completions, &assessment.succeeded_indexes)
    {
        assessment.finished =
            Some(conditions::new(SUCCESS_CRITERIA_MET, "True", "SuccessPolicy", message, found.now.wall));
    }
}

fn fails_index(spec: &JobSpec, pod: &Pod, limit: i32) -> bool {
    is_failed(spec, pod)
        && match judge(spec, pod) {
            Verdict::FailIndex => true,
            verdict => verdict.counts() && index_failures(pod).0 >= limit,
        }
}

/// The failed pods that must stay until their index has a new pod: the count of failures is only on them.
fn predecessors(found: &Found<'_>, assessment: &Assessment, failed: &Indexes) -> HashMap<i32, Arc<Pod>> {
    let active: HashSet<i32> = assessment.active.iter().filter_map(|pod| index_of(pod)).collect();
    let mut last: HashMap<i32, Arc<Pod>> = HashMap::new();
    for pod in found.pods.iter().filter(|pod| found.is_held(pod) && is_failed(found.spec, pod)) {
        let Some(index) = valid_index(found.spec, pod) else { continue };
        if assessment.succeeded_indexes.contains(index) || failed.contains(index) || active.contains(&index) {
            continue;
        }
        let age = |pod: &Pod| {
            let (counted, ignored) = index_failures(pod);
            (counted.saturating_add(ignored), finished_at(pod))
        };
        let is_later = last.get(&index).is_none_or(|known| {
            let (known, this) = (age(known), age(pod));
            known.0 <= this.0 && known.1 <= this.1
        });
        if is_later {
            last.insert(index, Arc::clone(pod));
        }
    }
    last
}

/// The pods to create or delete for a job that is not over.
pub(super) fn plan(found: &Found<'_>, assessment: &Assessment) -> Step {
    let spec = found.spec;
    if is_suspended(spec) {
        return delete(surplus(spec, &assessment.active, assessment.active.len()));
    }
    let active = count(assessment.active.len());
    let wanted = match spec.completions {
        // The first success ends a job without a number of completions; what runs then may end.
        None if assessment.succeeded > 0 => active,
        None => parallelism(spec),
        Some(completions) => (completions - assessment.succeeded).min(parallelism(spec)).max(0),
    };
    let mut condemned = surplus(spec, &assessment.active, usize::try_from(active - wanted).unwrap_or(0));
    condemned.truncate(BURST);
    if !condemned.is_empty() {
        return Step::Delete(condemned);
    }
    let stopping = if replaces_only_failed(spec) { assessment.terminating } else { 0 };
    let missing = usize::try_from(wanted - stopping - active).unwrap_or(0);
    if missing == 0 {
        return Step::Nothing;
    }
    let limited_per_index = spec.backoff_limit_per_index.is_some();
    let wait = if limited_per_index { Duration::ZERO } else { assessment.backoff.remaining(found.now) };
    if !wait.is_zero() {
        return Step::Wait(wait);
    }
    let missing = missing.min(BURST);
    if !is_indexed(spec) {
        return Step::Create(vec![None; missing]);
    }
    let pending = pending_indexes(found, assessment, missing);
    let wait = |index: i32| match assessment.predecessors.get(&index) {
        Some(failed) => {
            let seen = found.failures_seen.get(uid_of(&**failed)).copied().unwrap_or(found.now.monotonic);
            remaining_for_index(failed, seen, found.now)
        }
        None => Duration::ZERO,
    };
    let (now, later): (Vec<i32>, Vec<i32>) = pending.into_iter().partition(|index| wait(*index).is_zero());
    match later.into_iter().map(wait).min() {
        _ if !now.is_empty() => Step::Create(now.into_iter().map(Some).collect()),
        Some(shortest) => Step::Wait(shortest),
        None => Step::Nothing,
    }
}

fn delete(condemned: Vec<Arc<Pod>>) -> Step {
    if condemned.is_empty() { Step::Nothing } else { Step::Delete(condemned) }
}

/// At least `least` active pods to delete: first those whose index is missing, too high or taken, then the least
/// useful.
fn surplus(spec: &JobSpec, active: &[Arc<Pod>], least: usize) -> Vec<Arc<Pod>> {
    let mut sorted = active.to_vec();
    pods::sort_least_useful_first(&mut sorted);
    let mut condemned = Vec::new();
    if is_indexed(spec) {
        // Of each index the most useful pod, which is the last, stays.
        let mut taken = HashSet::new();
        let mut left = Vec::new();
        for pod in sorted.into_iter().rev() {
            let keeps = valid_index(spec, &pod).is_some_and(|index| taken.insert(index));
            if keeps { left.push(pod) } else { condemned.push(pod) }
        }
        left.reverse();
        condemned.reverse();
        sorted = left;
    }
    let more = least.saturating_sub(condemned.len());
    condemned.extend(sorted.into_iter().take(more));
    condemned
}

/// The first indexes that have no pod, have not succeeded and have not failed for good.
fn pending_indexes(found: &Found<'_>, assessment: &Assessment, count: usize) -> Vec<i32> {
    let waits_for_end = replaces_only_failed(found.spec);
    let stopping = found.pods.iter().filter(|pod| waits_for_end && is_stopping(pod));
    let taken: Indexes = assessment.active.iter().chain(stopping).filter_map(|pod| index_of(pod)).collect();
    let mut taken = taken.union(&assessment.succeeded_indexes);
    if let Some(failed) = &assessment.failed_indexes {
        taken = taken.union(failed);
    }
    taken.first_missing(count, index_count(found.spec))
}

/// Whether the pods that there are complete the job: none is active, and enough have succeeded.
pub(super) fn is_complete(spec: &JobSpec, succeeded: i32, active: i32) -> bool {
    active == 0 && spec.completions.map_or(succeeded > 0, |completions| succeeded >= completions)
}
