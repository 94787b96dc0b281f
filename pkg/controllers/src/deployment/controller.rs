//! Carries out one Deployment's rollout, a step at a time.

use std::sync::Arc;

use jiff::Timestamp;
use rkube_api::k8s::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{ControllerRefManager, object_key, selector_of, uid_of};
use rkube_client::{Client, Delta, EventRecorder, Lister, Reconciler, Requeue, SyncError, WorkQueue};

use super::NAME;
use super::annotations::{ROLLBACK_TO, last_revision, revision, rollback_to, take_annotations_from};
use super::plan::{
    HASH_LABEL, ReplicaSets, actual, equal_ignoring_hash, is_recreate, is_scaling_event, replicas_of, rolling_step,
    scaling, size, total,
};
use super::status::{
    PROGRESSING, TIMED_OUT, calculate, calculate_rollout, condition, has_progress_deadline, is_complete, new_condition,
    next_progress_check, set_condition,
};
use crate::common::enqueue::{enqueue_all, owners_of, resolve_controller};
use crate::common::pods;
use crate::context::{ControllerContext, Running};

pub(super) struct DeploymentController {
    pub(super) client: Client,
    pub(super) recorder: EventRecorder,
    clock: SharedClock,
    deployments: Lister<Deployment>,
    replica_sets: Lister<ReplicaSet>,
    pods: Lister<Pod>,
}

/// One sync: the Deployment as it is and as it will be written, and its ReplicaSets.
pub(super) struct Work {
    pub(super) original: Arc<Deployment>,
    pub(super) deployment: Deployment,
    pub(super) sets: ReplicaSets,
    pub(super) now: Timestamp,
}

impl Work {
    pub(super) fn namespace(&self) -> &str {
        self.original.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Puts what a write returned in place of what it changed.
    pub(super) fn replace(&mut self, updated: ReplicaSet) {
        let updated = Arc::new(updated);
        for known in self.sets.old.iter_mut().chain(&mut self.sets.new) {
            if known.metadata.uid == updated.metadata.uid {
                *known = Arc::clone(&updated);
            }
        }
    }

    fn paused(&self) -> bool {
        self.original.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false)
    }
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let deployments = context.informers.informer::<Deployment>();
    let replica_sets = context.informers.informer::<ReplicaSet>();
    let pods = context.informers.informer::<Pod>();
    pods::index_by_controller(&pods);
    let queue: WorkQueue<ObjectKey> = context.queue("deployment");
    let controller = Arc::new(DeploymentController {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component(NAME),
        clock: context.clock().clone(),
        deployments: deployments.lister(),
        replica_sets: replica_sets.lister(),
        pods: pods.lister(),
    });

    enqueue_all(&deployments, &queue);
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    replica_sets.add_handler(move |delta| observer.replica_set_changed(&delta, &keys));
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    pods.add_handler(move |delta| observer.pod_changed(&delta, &keys));
    context.run(NAME, &queue, &controller, context.config.concurrent_syncs)
}

impl DeploymentController {
    fn replica_set_changed(&self, delta: &Delta<Arc<ReplicaSet>>, queue: &WorkQueue<ObjectKey>) {
        let owners = owners_of(&self.deployments, delta);
        for owner in owners.current.into_iter().chain(owners.former) {
            queue.add(owner);
        }
        if owners.adoptable {
            let metadata = &delta.object().metadata;
            for deployment in self.deployments.list_all(metadata.namespace.as_deref().unwrap_or_default()) {
                let selector = selector_of(deployment.spec.as_ref().map(|spec| &spec.selector));
                if selector.is_ok_and(|selector| !selector.is_everything() && selector.matches(&metadata.labels)) {
                    queue.add(object_key(&*deployment));
                }
            }
        }
    }

    /// A Recreate rollout goes on when the last pod is gone or finished.
    fn pod_changed(&self, delta: &Delta<Arc<Pod>>, queue: &WorkQueue<ObjectKey>) {
        let pod = delta.object();
        if !matches!(delta, Delta::Deleted(_)) && !pods::is_terminal(pod) {
            return;
        }
        let replica_set = resolve_controller(&self.replica_sets, &pod.metadata);
        let owner = replica_set.and_then(|set| resolve_controller(&self.deployments, &set.metadata));
        if let Some(deployment) = owner.filter(|deployment| is_recreate(deployment)) {
            queue.add(object_key(&*deployment));
        }
    }

    async fn claim_replica_sets(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, SyncError> {
        let selector = match selector_of(deployment.spec.as_ref().map(|spec| &spec.selector)) {
            Ok(selector) => selector,
            Err(error) => return Err(SyncError::other(format!("invalid label selector: {error}"))),
        };
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let all = self.replica_sets.list_all(namespace);
        ControllerRefManager::new(&self.client, deployment, &selector).claim(all, |_| true).await
    }

    /// Pauses stop the progress deadline's clock.
    fn note_pause(work: &mut Work) {
        if !has_progress_deadline(&work.original) {
            return;
        }
        let status = work.deployment.status.get_or_insert_default();
        let reason = condition(status, PROGRESSING).and_then(|condition| condition.reason.as_deref());
        if reason == Some(TIMED_OUT) {
            return;
        }
        let was_paused = reason == Some("DeploymentPaused");
        let paused = work.original.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
        let (reason, text) = match (paused, was_paused) {
            (true, false) => ("DeploymentPaused", "Deployment is paused"),
            (false, true) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return,
        };
        set_condition(status, new_condition(PROGRESSING, "Unknown", reason, text, work.now));
    }

    /// One step of whatever the Deployment needs.
    async fn step(&self, work: &mut Work) -> Result<(), SyncError> {
        if work.original.metadata.deletion_timestamp.is_some() {
            self.sync_new_replica_set(work, false).await?;
            work.deployment.status = Some(calculate(&work.deployment, &work.sets, work.now));
            return Ok(());
        }
        Self::note_pause(work);
        if !work.paused() && rollback_to(&work.original).is_some() {
            return self.roll_back(work).await;
        }
        self.sync_new_replica_set(work, false).await?;
        if work.paused() || is_scaling_event(&work.deployment, &work.sets) {
            for (step, refresh) in scaling(&work.deployment, &work.sets) {
                self.scale(work, step, refresh).await?;
            }
            if work.paused() && rollback_to(&work.original).is_none() {
                self.clean_up(work).await?;
            }
            work.deployment.status = Some(calculate(&work.deployment, &work.sets, work.now));
            return Ok(());
        }
        if is_recreate(&work.original) {
            self.recreate(work).await?;
        } else {
            self.roll(work).await?;
        }
        let before = work.original.status.clone().unwrap_or_default();
        work.deployment.status = Some(calculate_rollout(&work.deployment, &before, &work.sets, work.now));
        Ok(())
    }

    async fn roll(&self, work: &mut Work) -> Result<(), SyncError> {
        self.sync_new_replica_set(work, true).await?;
        let steps = rolling_step(&work.deployment, &work.sets);
        let done = steps.is_empty();
        for step in steps {
            self.scale(work, step, false).await?;
        }
        if done && is_complete(&work.original, &work.original.status.clone().unwrap_or_default()) {
            self.clean_up(work).await?;
        }
        Ok(())
    }

    /// All old pods are gone before a new one is made.
    async fn recreate(&self, work: &mut Work) -> Result<(), SyncError> {
        let running: Vec<_> = work.sets.old.iter().filter(|old| size(old) > 0).cloned().collect();
        let scaled_down = !running.is_empty();
        for old in running {
            self.scale(work, (old, 0), false).await?;
        }
        if scaled_down || self.old_pods_run(work) {
            return Ok(());
        }
        self.sync_new_replica_set(work, true).await?;
        if let Some(new) = work.sets.new.clone() {
            let replicas = replicas_of(&work.deployment);
            self.scale(work, (new, replicas), false).await?;
        }
        if is_complete(&work.original, &work.original.status.clone().unwrap_or_default()) {
            self.clean_up(work).await?;
        }
        Ok(())
    }

    fn old_pods_run(&self, work: &Work) -> bool {
        let counted = total(work.sets.old.iter().map(|old| &**old), actual) > 0;
        counted
            || work.sets.old.iter().any(|old| {
                let pods = self.pods.by_index(pods::CONTROLLER_INDEX, uid_of(&**old));
                pods.iter().any(|pod| !pods::is_terminal(pod))
            })
    }

    /// The deprecated rollback by annotation; kubectl changes the template itself.
    async fn roll_back(&self, work: &mut Work) -> Result<(), SyncError> {
        self.sync_new_replica_set(work, true).await?;
        let wanted = match rollback_to(&work.original) {
            Some(0) | None => last_revision(work.sets.all()),
            Some(revision) => revision,
        };
        let target = work.sets.all().find(|set| wanted != 0 && revision(set) == Some(wanted)).cloned();
        let name = work.original.metadata.name.clone().unwrap_or_default();
        let mut rolled_back = false;
        match target {
            None if wanted == 0 => self.recorder.warning(
                &*work.original,
                "DeploymentRollbackRevisionNotFound",
                "Unable to find last revision.",
            ),
            None => self.recorder.warning(
                &*work.original,
                "DeploymentRollbackRevisionNotFound",
                "Unable to find the revision to rollback to.",
            ),
            Some(target) => {
                let template = target.spec.as_ref().and_then(|spec| spec.template.clone());
                if let (Some(mut template), Some(spec)) = (template, &mut work.deployment.spec) {
                    if equal_ignoring_hash(&spec.template, &template) {
                        let text =
                            format!("The rollback revision contains the same template as current deployment {name:?}");
                        self.recorder.warning(&*work.original, "DeploymentRollbackTemplateUnchanged", text);
                    } else {
                        if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
                            labels.remove(HASH_LABEL);
                        }
                        spec.template = template;
                        take_annotations_from(&mut work.deployment, &target);
                        rolled_back = true;
                    }
                }
            }
        }
        if let Some(annotations) = &mut work.deployment.metadata.annotations {
            annotations.remove(ROLLBACK_TO);
        }
        let api = self.client.namespaced::<Deployment>(work.namespace());
        let stored = api.update(&work.deployment).await.map_err(SyncError::during("rolling back"))?;
        if rolled_back {
            let text = format!("Rolled back deployment {name:?} to revision {wanted}");
            self.recorder.normal(&*work.original, "DeploymentRollback", text);
        }
        // The next sync sees the new template; nothing collected here is of it.
        work.original = Arc::new(stored.clone());
        work.deployment = stored;
        Ok(())
    }

    /// Writes status and annotations if they differ from what is stored.
    pub(super) async fn write_deployment(&self, work: &mut Work) -> Result<(), SyncError> {
        let unset = DeploymentStatus::default();
        let before = work.original.status.as_ref().unwrap_or(&unset);
        let after = work.deployment.status.as_ref().unwrap_or(&unset);
        let annotations = |deployment: &Deployment| deployment.metadata.annotations.clone().unwrap_or_default();
        if before == after && annotations(&work.original) == annotations(&work.deployment) {
            return Ok(());
        }
        let api = self.client.namespaced::<Deployment>(work.namespace());
        let stored = api.update_status(&work.deployment).await.map_err(SyncError::during("writing the status"))?;
        work.original = Arc::new(stored.clone());
        work.deployment = stored;
        Ok(())
    }
}

impl Reconciler for DeploymentController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(original) = self.deployments.get(key) else { return Ok(Requeue::Never) };
        let mut deployment = (*original).clone();
        let now = self.clock.now();

        let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
        if selector == Default::default() {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*original, "SelectingAll", text);
            deployment.status.get_or_insert_default().observed_generation = original.metadata.generation;
            let mut work = Work { original, deployment, sets: ReplicaSets::default(), now };
            self.write_deployment(&mut work).await?;
            return Ok(Requeue::Never);
        }

        let all = self.claim_replica_sets(&original).await?;
        let sets = ReplicaSets::sort(&deployment, all);
        let mut work = Work { original, deployment, sets, now };
        self.step(&mut work).await?;
        self.write_deployment(&mut work).await?;
        let status = work.deployment.status.clone().unwrap_or_default();
        let rolls = !work.paused() && work.original.metadata.deletion_timestamp.is_none();
        let check = rolls.then(|| next_progress_check(&work.deployment, &status, now)).flatten();
        Ok(Requeue::after(check))
    }
}
