//! Carries out the plan for one Job at a time, and counts its pods.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use rkube_api::k8s::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{ControllerRefManager, controller_of, object_key, selector_of, uid_of};
use rkube_client::workqueue::RateLimits;
use rkube_client::{
    Client, ClientError, Delta, EventRecorder, Expectations, Lister, Reconciler, Requeue, SyncError, WorkQueue,
};
use tracing::{info, warn};

use super::NAME;
use super::backoff::Moment;
use super::conditions::{self, COMPLETE, SUCCESS_CRITERIA_MET, finished_condition};
use super::indexes::Indexes;
use super::memory::Memory;
use super::orphans::{Orphan, Orphans, release};
use super::plan::{Assessment, BURST, Found, Step, assess, is_complete, plan};
use super::pods::{TRACKING_FINALIZER, is_failed, is_tracked, new_pod, tracked};
use super::policy;
use super::spec::{external_manager, has_known_mode, index_count, is_indexed, is_suspended, replaces_only_failed};
use super::tracking::{count, decide, finish, note_suspension, settle, started};
use crate::common::enqueue::{Owners, owners_of};
use crate::common::numbers::{count as number, nonzero};
use crate::common::pod_control::PodControl;
use crate::common::pods;
use crate::common::written::Written;
use crate::context::{ControllerContext, Running};
use crate::metrics::metrics;

/// Changes of pods are collected for this long, so that a job whose pods end together is written once.
const BATCH_PERIOD: Duration = Duration::from_secs(1);

/// Retries of one job are limited, those of all are not.
const RATE_LIMITS: RateLimits =
    RateLimits { base_delay: Duration::from_secs(1), delay_max: Duration::from_secs(60), rate: 1e9, burst: u32::MAX };

struct JobController {
    client: Client,
    clock: SharedClock,
    recorder: EventRecorder,
    pod_control: PodControl,
    jobs: Lister<Job>,
    pods: Lister<Pod>,
    queue: WorkQueue<ObjectKey>,
    orphans: WorkQueue<Orphan>,
    expectations: Expectations,
    memory: Memory,
    /// Status writes that the cache does not show yet.
    written: Written,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let jobs = context.informers.informer::<Job>();
    let pods = context.informers.informer::<Pod>();
    pods::index_by_controller(&pods);
    let client = context.client_for(NAME);
    let recorder = context.recorder.for_component(NAME);
    let queue = WorkQueue::with_limits("job", context.clock().clone(), RATE_LIMITS);
    let orphans = WorkQueue::with_limits("job_orphan_pod", context.clock().clone(), RATE_LIMITS);
    let orphan_pods = Arc::new(Orphans { client: client.clone(), jobs: jobs.lister(), pods: pods.lister() });
    let controller = Arc::new(JobController {
        clock: context.clock().clone(),
        pod_control: PodControl::new(client.clone(), recorder.clone()),
        jobs: jobs.lister(),
        pods: pods.lister(),
        queue: queue.clone(),
        orphans: orphans.clone(),
        expectations: Expectations::new(context.clock().clone()),
        memory: Memory::default(),
        written: Written::new(context.clock().clone(), Arc::clone(jobs.core())),
        client,
        recorder,
    });
    let observer = Arc::clone(&controller);
    jobs.add_handler(move |delta| observer.job_changed(&delta));
    let observer = Arc::clone(&controller);
    pods.add_handler(move |delta| observer.pod_changed(&delta));
    let workers = context.config.concurrent_syncs;
    let both =
        join(context.run(NAME, &queue, &controller, workers), context.run(NAME, &orphans, &orphan_pods, workers));
    Box::pin(async move {
        both.await;
    })
}

/// Pods deleted, and how many of them were ready.
#[derive(Default)]
struct Deleted {
    count: i32,
    ready: i32,
}

impl JobController {
    fn job_changed(&self, delta: &Delta<Arc<Job>>) {
        let job = delta.object();
        let key = object_key(&**job);
        self.written.observe(&job.metadata, matches!(delta, Delta::Deleted(_)));
        if matches!(delta, Delta::Deleted(_)) || finished_condition(job).is_some() {
            // Nobody counts its pods any more.
            self.memory.forget(&key);
            self.orphans.add(Orphan::OfJob(uid_of(&**job).to_owned()));
        }
        if let (Delta::Added(_), Some(manager)) = (delta, external_manager(job)) {
            metrics().job.external(manager);
        }
        match delta.old() {
            Some(_) if finished_condition(job).is_some() => {}
            // Its own status, mostly.
            Some(old) if old.metadata.generation == job.metadata.generation && !self.memory.is_hurried(&key) => {
                self.queue.add_after(key, BATCH_PERIOD);
            }
            _ => self.queue.add(key),
        }
    }

    fn pod_changed(&self, delta: &Delta<Arc<Pod>>) {
        let pod = delta.object();
        let uid = uid_of(&**pod);
        let gone = matches!(delta, Delta::Deleted(_));
        let was_tracked_at_end = delta.old().is_some_and(|old| pods::is_terminal(old) && is_tracked(old));
        if pods::is_terminal(pod) && is_tracked(pod) && !gone && !was_tracked_at_end {
            metrics().job.tracked("add");
        }
        let is_released = gone || !is_tracked(pod);
        let Owners { current, former, adoptable } = owners_of(&self.jobs, delta);
        let job = current.as_ref().and_then(|key| self.jobs.get(key));
        let is_counted = job.is_some_and(|job| finished_condition(&job).is_none());
        // A job that is not in the cache may be one that is not there yet; that it is gone shows in its pods' deletion.
        let is_lost = controller_of(&pod.metadata).is_none() || (pods::is_terminating(pod) && !is_counted);
        if !is_released && is_lost {
            self.orphans.add(Orphan::Pod(object_key(&**pod)));
        }
        for key in current.iter().chain(&former) {
            if is_released {
                self.memory.release_observed(key, uid);
            }
            self.queue.add_after(key.clone(), BATCH_PERIOD);
        }
        if let Some(key) = &current {
            let is_awaited = !self.expectations.satisfied(key);
            if gone || pods::is_terminating(pod) {
                self.expectations.deletion_observed(key, uid);
            } else if matches!(delta, Delta::Added(_)) {
                self.expectations.creation_observed(key);
            }
            if is_awaited && self.memory.is_hurried(key) && self.expectations.satisfied(key) {
                self.queue.add(key.clone());
            }
        }
        if adoptable {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for job in self.jobs.list_all(namespace) {
                let selector = selector_of(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
                if selector.is_ok_and(|selector| selector.matches(&pod.metadata.labels)) {
                    self.queue.add_after(object_key(&*job), BATCH_PERIOD);
                }
            }
        }
    }

    /// The job's pods, finished ones included, after adoption and release.
    async fn claim_pods(&self, job: &Job) -> Result<Vec<Arc<Pod>>, SyncError> {
        let selector = selector_of(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
        let selector = selector.map_err(|error| SyncError::other(format!("the selector is not valid: {error}")))?;
        let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
        let candidates = pods::owned_and_orphans(&self.pods, uid_of(job), namespace);
        let manager = ControllerRefManager::new(&self.client, job, &selector).finalizers(&[TRACKING_FINALIZER]);
        let claimed = manager.claim(candidates, |_| true).await?;
        let is_adopted = |pod: &Pod| {
            let mut owners = pod.metadata.owner_references.iter().flatten();
            !owners.any(|owner| owner.uid == uid_of(job))
        };
        let as_claimed = |pod: Arc<Pod>| if is_adopted(&pod) && !is_tracked(&pod) { tracked(&pod) } else { pod };
        Ok(claimed.into_iter().map(as_claimed).collect())
    }

    /// Deletes what is active of a job that is over. The finalizers stay: these pods are to be counted.
    async fn stop(&self, job: &Job, active: &[Arc<Pod>]) -> (Deleted, Result<(), SyncError>) {
        let results = join_all(active.iter().map(|pod| self.pod_control.delete(job, pod))).await;
        self.sum_up(active, results, "deleting a pod of a finished job")
    }

    /// Deletes pods that are not to be counted.
    async fn delete(&self, key: &ObjectKey, job: &Job, condemned: &[Arc<Pod>]) -> (Deleted, Result<(), SyncError>) {
        info!(key = %key, deleting = condemned.len(), "Too many pods");
        self.expectations.expect_deletions(key, condemned.iter().map(|pod| uid_of(&**pod).to_owned()));
        let deletions = condemned.iter().map(|pod| async {
            let released = if is_tracked(pod) { release(&self.client, pod).await } else { Ok(()) };
            let deleted = match released {
                Ok(()) => self.pod_control.delete(job, pod).await,
                Err(error) => Err(error),
            };
            if deleted.is_err() {
                self.expectations.deletion_observed(key, uid_of(&**pod));
            }
            deleted
        });
        let results = join_all(deletions).await;
        self.sum_up(condemned, results, "deleting a pod")
    }

    fn sum_up(
        &self,
        pods: &[Arc<Pod>],
        results: Vec<Result<(), ClientError>>,
        action: &'static str,
    ) -> (Deleted, Result<(), SyncError>) {
        let mut deleted = Deleted::default();
        let mut errors = Vec::new();
        for (pod, result) in pods.iter().zip(results) {
            match result {
                Err(error) if !error.is_not_found() => errors.push(SyncError::during(action)(error)),
                _ => {
                    deleted.count += 1;
                    deleted.ready += i32::from(pods::is_ready(pod));
                }
            }
        }
        (deleted, SyncError::all(errors))
    }

    /// Creates pods; how many there are more.
    async fn create(
        &self,
        key: &ObjectKey,
        job: &Job,
        spec: &JobSpec,
        assessment: &Assessment,
        indexes: &[Option<i32>],
    ) -> (i32, Result<(), SyncError>) {
        info!(key = %key, creating = indexes.len(), "Too few pods");
        let make = |position: usize| {
            let index = indexes.get(position).copied().flatten();
            let replaced = index.and_then(|index| assessment.predecessors.get(&index));
            new_pod(job, spec, index, replaced.map(|pod| &**pod))
        };
        self.expectations.expect_creations(key, indexes.len());
        let outcome = self.pod_control.create_many(job, &self.expectations, indexes.len(), make).await;
        let replaces = spec.pod_replacement_policy.is_some() && assessment.terminating + assessment.failed > 0;
        let reason = match (replaces, replaces_only_failed(spec)) {
            (false, _) => "new",
            (true, true) => "recreate_failed",
            (true, false) => "recreate_terminating_or_failed",
        };
        let failed = indexes.len().saturating_sub(outcome.succeeded);
        metrics().job.created(reason, outcome.succeeded as u64, failed as u64);
        let result = outcome.error.map_or(Ok(()), |error| Err(SyncError::during("creating a pod")(error)));
        (number(outcome.succeeded), result)
    }

    /// `seen` is the status written last.
    async fn write_status(
        &self,
        key: &ObjectKey,
        job: &mut Job,
        seen: &mut JobStatus,
        action: &'static str,
    ) -> Result<(), SyncError> {
        let api = self.client.namespaced::<Job>(&key.namespace);
        let stored = api.update_status(job).await.map_err(SyncError::during(action))?;
        self.written.stored(key, &stored.metadata);
        *job = stored;
        if let (Some(spec), Some(status)) = (&job.spec, &job.status) {
            count_finished(spec, seen, status);
            seen.clone_from(status);
        }
        Ok(())
    }

    /// Removes the finalizer from pods that the status has. `held` loses those that no longer hold it.
    async fn release(&self, key: &ObjectKey, pods: &[Arc<Pod>], held: &mut HashSet<String>) -> Result<(), SyncError> {
        self.memory.expect_release(key, pods.iter().map(|pod| uid_of(&**pod).to_owned()));
        let released = join_all(pods.iter().map(|pod| release(&self.client, pod))).await;
        let mut errors = Vec::new();
        for (pod, released) in pods.iter().zip(released) {
            let uid = uid_of(&**pod);
            // An event that came before the expectation does not come again.
            let cached = self.pods.get(&object_key(&**pod)).filter(|cached| uid_of(&**cached) == uid);
            if released.is_err() || cached.is_none_or(|cached| !is_tracked(&cached)) {
                self.memory.release_observed(key, uid);
            }
            match released {
                Err(error) if !error.is_not_found() => {
                    errors.push(SyncError::during("removing the tracking finalizer")(error));
                }
                _ => {
                    metrics().job.tracked("delete");
                    held.remove(uid);
                }
            }
        }
        SyncError::all(errors)
    }

    /// Counts what has ended and ends the job if it is over. `changed` says that the status is to be written anyway.
    /// Returns whether more has ended than one write counts.
    async fn track(
        &self,
        key: &ObjectKey,
        found: &Found<'_>,
        assessment: &Assessment,
        mut job: Job,
        mut changed: bool,
    ) -> Result<bool, SyncError> {
        let terminating = job.metadata.deletion_timestamp.is_some();
        let mut seen = found.status.clone();
        let status = job.status.get_or_insert_default();
        let mut counted = count(found, assessment, status, terminating);
        let (end, news) = decide(assessment.finished.clone(), status, found.now.wall);
        changed |= counted.changed || news;
        if changed {
            self.write_status(key, &mut job, &mut seen, "adding ended pods to the status").await?;
            self.memory.set_backoff(key, assessment.backoff);
        }
        let failed = counted.release.iter().filter(|pod| is_failed(found.spec, pod));
        failed
            .filter_map(|pod| policy::action(found.spec, pod))
            .for_each(|action| metrics().job.failure_handled(action));
        let released = self.release(key, &counted.release, &mut counted.held).await;
        let status = job.status.get_or_insert_default();
        let settled = settle(status, &counted.held);
        if let Err(error) = released {
            if settled {
                self.write_status(key, &mut job, &mut seen, "counting released pods").await?;
            }
            return Err(error);
        }
        let end = end.filter(|end| !counted.full && finish(status, end, assessment.terminating));
        if settled || end.is_some() {
            self.write_status(key, &mut job, &mut seen, "counting ended pods").await?;
        }
        if let Some(end) = end {
            self.report_end(&job, &end);
        }
        Ok(counted.full)
    }

    fn report_end(&self, job: &Job, end: &JobCondition) {
        let reason = end.reason.as_deref().unwrap_or_default();
        metrics().job.finished(job.spec.as_ref().is_some_and(is_indexed), end.type_ == COMPLETE, reason);
        if end.type_ != COMPLETE {
            let message = end.message.clone().unwrap_or_default();
            return self.recorder.warning(job, end.reason.as_deref().unwrap_or_default(), message);
        }
        let succeeded = job.status.as_ref().and_then(|status| status.succeeded).unwrap_or(0);
        let completions = job.spec.as_ref().and_then(|spec| spec.completions);
        if completions.is_some_and(|completions| succeeded > completions) {
            let text = "Too many succeeded pods running after completion count reached";
            self.recorder.warning(job, "TooManySucceededPods", text);
        }
        self.recorder.normal(job, "Completed", "Job completed");
    }

    async fn sync_active(
        &self,
        key: &ObjectKey,
        shared: &Job,
        spec: &JobSpec,
        action: &mut &'static str,
    ) -> Result<Requeue, SyncError> {
        let satisfied = self.expectations.satisfied(key);
        let pods = self.claim_pods(shared).await?;
        let now = Moment { wall: self.clock.now(), monotonic: self.clock.monotonic() };
        let mut job = shared.clone();
        let status = job.status.get_or_insert_default();
        status.uncounted_terminated_pods.get_or_insert_default();
        if status.start_time.is_none() && !is_suspended(spec) {
            status.start_time = Some(started(now.wall));
        }
        let seen = status.clone();
        let releasing = self.memory.releasing(key);
        let backoff = self.memory.backoff(key);
        let failed = pods.iter().filter(|pod| spec.backoff_limit_per_index.is_some() && is_failed(spec, pod));
        let failed = failed.map(|pod| uid_of(&**pod).to_owned());
        let failures_seen = &self.memory.note_failures(key, failed, now.monotonic);
        let found = Found { spec, status: &seen, pods: &pods, releasing: &releasing, backoff, failures_seen, now };
        let mut assessment = assess(&found);
        let mut active = number(assessment.active.len());
        let mut requeue = Requeue::after(assessment.deadline_in);
        let mut acted = Ok(());
        let mut resumed_or_suspended = false;
        // The sync before this one wants to go on when the cache shows what it did.
        let hurried = self.memory.take_hurry(key) && !satisfied;
        let mut limited = false;

        if assessment.finished.is_some() {
            let (deleted, result) = self.stop(&job, &assessment.active).await;
            if deleted.count != active || !satisfied {
                // Pods may be left that the cache does not show yet.
                assessment.finished = None;
            }
            active -= deleted.count;
            assessment.terminating += deleted.count;
            assessment.ready -= deleted.ready;
            acted = result;
        } else {
            let manages = satisfied && job.metadata.deletion_timestamp.is_none();
            let step = if manages { plan(&found, &assessment) } else { Step::Nothing };
            match step {
                Step::Nothing if manages => *action = "tracking",
                Step::Nothing => {}
                Step::Delete(condemned) => {
                    *action = "pods_deleted";
                    limited = condemned.len() >= BURST;
                    let (deleted, result) = self.delete(key, &job, &condemned).await;
                    active -= deleted.count;
                    assessment.terminating += deleted.count;
                    assessment.ready -= deleted.ready;
                    acted = result;
                }
                Step::Create(indexes) => {
                    *action = "pods_created";
                    limited = indexes.len() >= BURST;
                    let (created, result) = self.create(key, &job, spec, &assessment, &indexes).await;
                    active += created;
                    acted = result;
                }
                // Differs from upstream: pods that run meanwhile stay in `active`, which upstream sets to zero here.
                Step::Wait(wait) => requeue = requeue.or_sooner(Requeue::After(wait.max(BATCH_PERIOD))),
            }
            if is_complete(spec, assessment.succeeded, active) {
                let text = "Reached expected number of succeeded pods";
                let condition = conditions::new(SUCCESS_CRITERIA_MET, "True", "CompletionsReached", text, now.wall);
                assessment.finished = Some(condition);
            } else if manages && let Some((reason, text)) = note_suspension(&found, job.status.get_or_insert_default())
            {
                self.recorder.normal(shared, reason, text);
                resumed_or_suspended = true;
            }
        }

        let status = job.status.get_or_insert_default();
        let changed = resumed_or_suspended | write_counts(status, active, &assessment);
        limited |= self.track(key, &found, &assessment, job, changed).await?;
        acted?;
        // Differs from upstream: what a limit left over is not put off for a batch period. The limits bound one sync.
        if limited || hurried {
            self.memory.hurry(key);
        }
        let is_due = limited || (hurried && self.expectations.satisfied(key));
        Ok(if is_due { Requeue::After(Duration::ZERO) } else { requeue })
    }
}

/// Whether the counts of living pods changed.
fn write_counts(status: &mut JobStatus, active: i32, assessment: &Assessment) -> bool {
    let counts = (nonzero(active), Some(assessment.ready), Some(assessment.terminating));
    let changed = counts != (status.active, status.ready, status.terminating);
    (status.active, status.ready, status.terminating) = counts;
    changed
}

impl Reconciler for JobController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(job) = self.jobs.get(key) else {
            self.expectations.forget(key);
            self.memory.forget(key);
            return Ok(Requeue::Never);
        };
        let Some(spec) = &job.spec else { return Ok(Requeue::Never) };
        if external_manager(&job).is_some() || finished_condition(&job).is_some() {
            return Ok(Requeue::Never);
        }
        if let Some(wait) = self.written.unsettled(key) {
            return Ok(Requeue::After(wait));
        }
        if !has_known_mode(spec) {
            warn!(key = %key, mode = ?spec.completion_mode, "Ignored a Job whose completion mode is unknown");
            let text = "Skipped Job sync because completion mode is unknown";
            self.recorder.warning(&*job, "UnknownCompletionMode", text);
            return Ok(Requeue::Never);
        }
        let mut action = "reconciling";
        let start = self.clock.monotonic();
        let result = self.sync_active(key, &job, spec, &mut action).await;
        let took = self.clock.monotonic().saturating_sub(start);
        metrics().job.synced(is_indexed(spec), result.is_ok(), action, took);
        result
    }
}

/// Counts what is in the status now that was not.
fn count_finished(spec: &JobSpec, old: &JobStatus, new: &JobStatus) {
    let indexed = is_indexed(spec);
    let more = |old: i32, new: i32| u64::try_from(new - old).unwrap_or(0);
    let indexes =
        |text: &Option<String>| Indexes::parse(text.as_deref().unwrap_or_default(), index_count(spec)).total();
    let job = &metrics().job;
    let succeeded = if indexed {
        let per_index = spec.backoff_limit_per_index.is_some();
        let failed = more(indexes(&old.failed_indexes), indexes(&new.failed_indexes));
        let succeeded = more(indexes(&old.completed_indexes), indexes(&new.completed_indexes));
        job.indexes_finished("succeeded", per_index, succeeded);
        job.indexes_finished("failed", per_index, failed);
        succeeded
    } else {
        more(old.succeeded.unwrap_or(0), new.succeeded.unwrap_or(0))
    };
    job.pods_finished(indexed, "succeeded", succeeded);
    job.pods_finished(indexed, "failed", more(old.failed.unwrap_or(0), new.failed.unwrap_or(0)));
}
