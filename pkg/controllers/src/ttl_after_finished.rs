//! TTL-after-finished controller: deletes Jobs some time after they have finished, with their pods.
//!
//! Watches  batch/v1 Job
//! Writes   batch/v1 Job (delete)
//! Behaves as  pkg/controller/ttlafterfinished/ttlafterfinished_controller.go, v1.36

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rkube_api::k8s::batch::v1::Job;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{object_key, uid_of};
use rkube_client::{Client, DeleteOptions, Lister, Propagation, Reconciler, Requeue, SyncError, WorkQueue};
use tracing::info;

use crate::common::errors::ignore_not_found;
use crate::context::{ControllerContext, Descriptor, Running};
use crate::job::finished_condition;
use crate::metrics::metrics;

const NAME: &str = "ttl-after-finished-controller";

pub(crate) const TTL_AFTER_FINISHED: Descriptor = Descriptor::new(NAME, "ttl-after-finished", start);

struct TtlAfterFinished {
    client: Client,
    clock: SharedClock,
    jobs: Lister<Job>,
}

fn start(context: &ControllerContext) -> Running {
    let jobs = context.informers.informer::<Job>();
    let queue: WorkQueue<ObjectKey> = context.queue("ttl_jobs_to_delete");
    let (client, clock) = (context.client_for(NAME), context.clock().clone());
    let controller = Arc::new(TtlAfterFinished { client, clock, jobs: jobs.lister() });
    let keys = queue.clone();
    jobs.add_handler(move |delta| {
        let job = delta.object();
        if expiry(job).is_some() {
            keys.add(object_key(&**job));
        }
    });
    context.run(NAME, &queue, &controller, context.config.concurrent_syncs)
}

/// When the job is to be deleted: it has finished, has a time to live, and nobody deletes it already.
fn expiry(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let finished = finished_condition(job).filter(|_| job.metadata.deletion_timestamp.is_none())?;
    finished.last_transition_time.as_ref()?.0.checked_add(SignedDuration::from_secs(seconds.into())).ok()
}

/// How long ago the job's time was up.
fn expired_for(job: &Job, now: Timestamp) -> Duration {
    expiry(job).and_then(|end| Duration::try_from(now.duration_since(end)).ok()).unwrap_or_default()
}

/// What is left of a job's time, if it is to be deleted at all; zero if nothing is.
fn time_left(job: &Job, now: Timestamp) -> Option<Duration> {
    let left = expiry(job)?.duration_since(now);
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
}

impl Reconciler for TtlAfterFinished {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let now = self.clock.now();
        match self.jobs.get(key).and_then(|job| time_left(&job, now)) {
            None => return Ok(Requeue::Never),
            Some(left) if !left.is_zero() => return Ok(Requeue::After(left)),
            Some(_) => {}
        }
        // The time to live may have been made longer, which the cache need not show yet.
        let api = self.client.namespaced::<Job>(&key.namespace);
        let fresh = match api.get(&key.name).await {
            Err(error) if error.is_not_found() => return Ok(Requeue::Never),
            fresh => fresh.map_err(SyncError::during("reading a job before its deletion"))?,
        };
        match time_left(&fresh, now) {
            None => Ok(Requeue::Never),
            Some(left) if !left.is_zero() => Ok(Requeue::After(left)),
            Some(_) => {
                info!(key = %key, "Deleting a finished job");
                let version = fresh.metadata.resource_version.as_deref().unwrap_or_default();
                let options = DeleteOptions::uid(uid_of(&fresh)).resource_version(version);
                let deleted = api.delete(&key.name, &options.propagation(Propagation::Foreground)).await;
                ignore_not_found(deleted).map_err(SyncError::during("deleting a finished job"))?;
                metrics().finished_job_deleted(expired_for(&fresh, self.clock.now()));
                Ok(Requeue::Never)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rkube_api::Kind;
    use rkube_apimachinery::status::{ApiStatus, Reason};
    use serde_json::json;

    use super::*;
    use crate::testing::{World, names, survives_any_crash};

    fn finished(name: &str, ttl: Option<i32>) -> Job {
        let end = json!({"type": "Complete", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"});
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"namespace": "ns", "name": name},
            "spec": {"ttlSecondsAfterFinished": ttl, "template": {}}, "status": {"conditions": [end]},
        });
        Job::from_value(job).expect("a job")
    }

    fn world(jobs: &[Job]) -> World {
        let world = World::new(&[TTL_AFTER_FINISHED]);
        jobs.iter().for_each(|job| world.api.put(job));
        world
    }

    /// Jobs that nobody has begun to delete.
    fn left(world: &World) -> Vec<String> {
        let jobs = world.api.list::<Job>("ns");
        let alive = jobs.iter().filter(|job| job.metadata.deletion_timestamp.is_none());
        alive.filter_map(|job| job.metadata.name.clone()).collect()
    }

    #[tokio::test]
    async fn jobs_go_when_their_time_is_up() {
        let mut running = finished("running", Some(10));
        running.status = None;
        let mut world = world(&[finished("a", Some(0)), finished("b", Some(60)), finished("c", None), running]);
        world.start();
        world.settle().await;
        assert_eq!(left(&world), ["b", "c", "running"]);
        // Foreground: the job stays until its pods are gone, which is the garbage collector's to see to.
        assert_eq!(names::<Job>(&world, "ns"), ["a", "b", "c", "running"]);
        world.run_for(Duration::from_secs(59)).await;
        assert_eq!(left(&world), ["b", "c", "running"]);
        world.run_for(Duration::from_secs(2)).await;
        assert_eq!(left(&world), ["c", "running"]);
    }

    #[tokio::test]
    async fn a_longer_time_counts_when_it_comes_in_time() {
        let mut world = world(&[finished("a", Some(60))]);
        world.start();
        world.run_for(Duration::from_secs(30)).await;
        world.api.edit::<Job>("ns", "a", |job| {
            job.spec.get_or_insert_default().ttl_seconds_after_finished = Some(600);
        });
        world.run_for(Duration::from_secs(500)).await;
        assert_eq!(left(&world), ["a"]);
        world.run_for(Duration::from_secs(100)).await;
        assert_eq!(left(&world), [] as [&str; 0]);
    }

    #[tokio::test]
    async fn a_job_of_the_future_waits_for_the_clock() {
        let mut world = world(&[finished("a", Some(60))]);
        world.clock.set_wall("2029-12-31T23:00:00Z".parse().expect("a timestamp"));
        world.start();
        world.run_for(Duration::from_secs(3600)).await;
        assert_eq!(left(&world), ["a"]);
        world.run_for(Duration::from_secs(61)).await;
        assert_eq!(left(&world), [] as [&str; 0]);
    }

    #[tokio::test]
    async fn a_refused_deletion_is_tried_again() {
        let mut world = world(&[finished("a", Some(0))]);
        world.api.react(|action| (action.verb == "delete").then(|| ApiStatus::failure(Reason::InternalError, "no")));
        world.start();
        world.settle().await;
        assert_eq!(left(&world), ["a"]);
        world.api.clear_reactions();
        world.run_for(Duration::from_secs(60)).await;
        assert_eq!(left(&world), [] as [&str; 0]);
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let arrange = || world(&[finished("a", Some(0)), finished("b", Some(60)), finished("c", None)]);
        let drive = async |world: &mut World| world.run_for(Duration::from_secs(100)).await;
        survives_any_crash(arrange, drive, |world| left(world).join(" ")).await;
    }
}
