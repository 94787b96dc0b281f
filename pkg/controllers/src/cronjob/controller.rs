//! Carries out the plan for one CronJob at a time.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rkube_api::k8s::batch::v1::{CronJob, Job};
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::events::reference_to;
use rkube_client::owner::{controller_of, is_controlled_by, object_key, uid_of};
use rkube_client::{
    Client, ClientError, DeleteOptions, Delta, EventRecorder, Lister, Propagation, Reconciler, Requeue, SyncError,
    WorkQueue,
};
use tracing::info;

use super::NAME;
use super::active::{Remark, is_active, missing, name_of, note_finished, remove, surplus};
use super::plan::{Plan, Step, new_job, plan, schedule_of};
use super::timing::until_next;
use crate::common::enqueue::owners_of;
use crate::common::errors::namespace_terminating;
use crate::common::written::Written;
use crate::context::{ControllerContext, Running};
use crate::metrics::metrics;

/// Jobs by the uid of their controller.
const CONTROLLER_INDEX: &str = "controllerUid";

struct CronJobController {
    client: Client,
    clock: SharedClock,
    recorder: EventRecorder,
    cron_jobs: Lister<CronJob>,
    jobs: Lister<Job>,
    queue: WorkQueue<ObjectKey>,
    /// Status writes that the cache does not show yet.
    written: Written,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let cron_jobs = context.informers.informer::<CronJob>();
    let jobs = context.informers.informer::<Job>();
    jobs.add_index(CONTROLLER_INDEX, |job| {
        controller_of(&job.metadata).map(|reference| reference.uid.clone()).into_iter().collect()
    });
    let queue: WorkQueue<ObjectKey> = context.queue("cronjob");
    let controller = Arc::new(CronJobController {
        client: context.client_for(NAME),
        clock: context.clock().clone(),
        recorder: context.recorder.for_component(NAME),
        cron_jobs: cron_jobs.lister(),
        jobs: jobs.lister(),
        queue: queue.clone(),
        written: Written::new(context.clock().clone(), Arc::clone(cron_jobs.core())),
    });
    let observer = Arc::clone(&controller);
    cron_jobs.add_handler(move |delta| observer.cron_job_changed(&delta));
    let observer = Arc::clone(&controller);
    jobs.add_handler(move |delta| {
        let owners = owners_of(&observer.cron_jobs, &delta);
        owners.current.into_iter().chain(owners.former).for_each(|owner| observer.queue.add(owner));
    });
    context.run(NAME, &queue, &controller, context.config.concurrent_syncs)
}

impl CronJobController {
    fn cron_job_changed(&self, delta: &Delta<Arc<CronJob>>) {
        let cron_job = delta.object();
        self.written.observe(&cron_job.metadata, matches!(delta, Delta::Deleted(_)));
        let key = object_key(&**cron_job);
        let same_times = |old: &Arc<CronJob>| {
            old.spec.schedule == cron_job.spec.schedule && old.spec.time_zone == cron_job.spec.time_zone
        };
        if delta.old().is_none_or(same_times) {
            return self.queue.add(key);
        }
        // A new schedule is for the future; looked at now it would seem to have missed times already.
        match schedule_of(cron_job) {
            Ok(schedule) => {
                let next = until_next(cron_job, &schedule, self.clock.now());
                next.into_iter().for_each(|next| self.queue.add_after(key.clone(), next));
            }
            Err(_) => {
                let text = format!("unparseable schedule for cronjob: {}", cron_job.spec.schedule);
                self.recorder.warning(&**cron_job, "UnParseableCronJobSchedule", text);
            }
        }
    }

    fn say(&self, cron_job: &CronJob, remarks: Vec<Remark>) {
        for (event_type, reason, text) in remarks {
            self.recorder.event(cron_job, event_type, reason, text);
        }
    }

    /// Deletes a Job with its pods and takes it off the list.
    async fn delete_job(&self, cron_job: &mut CronJob, job: &Job) -> Result<(), ClientError> {
        let api = self.client.namespaced::<Job>(job.metadata.namespace.as_deref().unwrap_or_default());
        let options = DeleteOptions::uid(uid_of(job)).propagation(Propagation::Background);
        if let Err(error) = api.delete(name_of(job), &options).await {
            self.recorder.warning(cron_job, "FailedDelete", format!("Deleted job: {error}"));
            return Err(error);
        }
        remove(cron_job.status.get_or_insert_default(), uid_of(job));
        self.recorder.normal(cron_job, "SuccessfulDelete", format!("Deleted job {}", name_of(job)));
        Ok(())
    }

    /// Takes Jobs off the list that are gone. Asks the API: the cache may be late.
    async fn drop_missing(
        &self,
        key: &ObjectKey,
        cron_job: &mut CronJob,
        jobs: &[Arc<Job>],
    ) -> Result<bool, SyncError> {
        let status = cron_job.status.get_or_insert_default();
        let api = self.client.namespaced::<Job>(&key.namespace);
        let mut changed = false;
        for reference in missing(status, jobs) {
            let name = reference.name.as_deref().unwrap_or_default();
            match api.get(name).await {
                Ok(found) if reference.uid == found.metadata.uid => {}
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {
                    remove(cron_job.status.get_or_insert_default(), reference.uid.as_deref().unwrap_or_default());
                    let text = format!("Active job went missing: {name}");
                    self.recorder.normal(cron_job, "MissingJob", text);
                    changed = true;
                }
            }
        }
        Ok(changed)
    }

    /// Ends what runs from earlier times. Whether there was something.
    async fn replace_active(&self, key: &ObjectKey, cron_job: &mut CronJob) -> Result<bool, SyncError> {
        let api = self.client.namespaced::<Job>(&key.namespace);
        let active = cron_job.status.as_ref().and_then(|status| status.active.clone()).unwrap_or_default();
        for reference in &active {
            match api.get(reference.name.as_deref().unwrap_or_default()).await {
                Ok(job) if reference.uid == job.metadata.uid => {
                    self.delete_job(cron_job, &job).await.map_err(SyncError::during("replacing a job"))?;
                }
                Err(error) if !error.is_not_found() => {
                    self.recorder.warning(cron_job, "FailedGet", format!("Get job: {error}"));
                    return Err(error.into());
                }
                // It is gone, and another may have its name.
                _ => remove(cron_job.status.get_or_insert_default(), reference.uid.as_deref().unwrap_or_default()),
            }
        }
        Ok(!active.is_empty())
    }

    /// Makes the Job for a time and puts it on the list. Whether the status changed.
    async fn start_job(&self, key: &ObjectKey, cron_job: &mut CronJob, due: Timestamp) -> Result<bool, SyncError> {
        let api = self.client.namespaced::<Job>(&key.namespace);
        let wanted = new_job(cron_job, due);
        let job = match api.create(&wanted).await {
            Ok(job) => {
                info!(key = %key, job = name_of(&job), "Created job");
                self.recorder.normal(cron_job, "SuccessfulCreate", format!("Created job {}", name_of(&job)));
                let created = job.metadata.creation_timestamp.as_ref().map_or(due, |time| time.0);
                metrics().cron_job_started(Duration::try_from(created.duration_since(due)).unwrap_or_default());
                job
            }
            Err(error) if error.is_already_exists() => {
                let job = api.get(name_of(&wanted)).await.map_err(SyncError::during("reading a job of this name"))?;
                let listed = cron_job.status.as_ref().is_some_and(|status| is_active(status, uid_of(&job)));
                // Differs from upstream: another's job in the place of this time's costs this time, not all that follow.
                if !is_controlled_by(&job.metadata, cron_job) || listed {
                    return Ok(false);
                }
                job
            }
            Err(error) => {
                if !namespace_terminating(&error) {
                    self.recorder.warning(cron_job, "FailedCreate", format!("Error creating job: {error}"));
                }
                return Err(SyncError::during("creating a job")(error));
            }
        };
        let status = cron_job.status.get_or_insert_default();
        status.active.get_or_insert_default().push(reference_to(&job));
        status.last_schedule_time = Some(Time(due));
        Ok(true)
    }

    async fn carry_out(
        &self,
        key: &ObjectKey,
        cron_job: &mut CronJob,
        changed: &mut bool,
    ) -> Result<Requeue, SyncError> {
        let Plan { step, next, remarks } = plan(cron_job, self.clock.now());
        self.say(cron_job, remarks);
        match step {
            Step::Nothing => Ok(Requeue::Never),
            Step::Wait => Ok(Requeue::after(next)),
            Step::Start(due) => {
                if cron_job.spec.concurrency_policy.as_deref() == Some("Replace") {
                    *changed |= self.replace_active(key, cron_job).await?;
                }
                *changed |= self.start_job(key, cron_job, due).await?;
                Ok(Requeue::after(next))
            }
        }
    }

    async fn sync_all(
        &self,
        key: &ObjectKey,
        cron_job: &mut CronJob,
        jobs: &[Arc<Job>],
        changed: &mut bool,
    ) -> Result<Requeue, SyncError> {
        let mut remarks = Vec::new();
        *changed |= note_finished(cron_job.status.get_or_insert_default(), jobs, &mut remarks);
        self.say(cron_job, remarks);
        for job in surplus(cron_job, jobs) {
            // What cannot be deleted now is tried again next time, and an event says so. It does not hold up the rest.
            drop(self.delete_job(cron_job, &job).await);
        }
        *changed |= self.drop_missing(key, cron_job, jobs).await?;
        self.carry_out(key, cron_job, changed).await
    }
}

impl Reconciler for CronJobController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(shared) = self.cron_jobs.get(key) else { return Ok(Requeue::Never) };
        if let Some(wait) = self.written.unsettled(key) {
            return Ok(Requeue::After(wait));
        }
        // Differs from upstream: by the owner's uid, not its name. Jobs of an earlier CronJob are not deleted for this.
        let jobs = self.jobs.by_index(CONTROLLER_INDEX, uid_of(&*shared));
        let mut cron_job = (*shared).clone();
        let mut changed = false;
        let synced = self.sync_all(key, &mut cron_job, &jobs, &mut changed).await;
        if changed {
            let api = self.client.namespaced::<CronJob>(&key.namespace);
            let stored = api.update_status(&cron_job).await.map_err(SyncError::during("writing the status"))?;
            self.written.stored(key, &stored.metadata);
        }
        synced
    }
}
