//! Writes to ReplicaSets: finding or creating that of the current template, scaling, cleaning up.

use std::sync::Arc;

use rkube_api::k8s::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use rkube_api::meta::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use rkube_client::owner::{is_controlled_by, new_controller_ref, uid_of};
use rkube_client::{ClientError, DeleteOptions, SyncError};
use tracing::{debug, info};

use super::annotations::{
    REVISION, annotation, max_revision, set_deployment_revision, set_new_replica_set_annotations,
    set_replicas_annotations,
};
use super::controller::{DeploymentController, Work};
use super::plan::{HASH_LABEL, Scaling, equal_ignoring_hash, new_size, size, to_clean_up, total};
use super::status::{PROGRESSING, condition, has_progress_deadline, new_condition, set_condition};
use crate::common::errors::{ignore_not_found, namespace_terminating};
use crate::common::hash::pod_template_hash;

/// Longest part of a Deployment's name in that of a ReplicaSet: pods add a dash and five letters to it.
const NAME_MAX: usize = 253;
const REPLICA_SET_CREATE_ERROR: &str = "ReplicaSetCreateError";

impl DeploymentController {
    /// Brings the new ReplicaSet's annotations and the Deployment's revision in line; creates it if `create`.
    pub(super) async fn sync_new_replica_set(&self, work: &mut Work, create: bool) -> Result<(), SyncError> {
        let new_revision = max_revision(work.sets.old.iter().map(|old| &**old)).saturating_add(1);
        match work.sets.new.clone() {
            Some(existing) => {
                let updated = self.refresh_new_replica_set(work, &existing, new_revision).await?;
                let revision = annotation(&updated.metadata, REVISION).unwrap_or_default().to_owned();
                set_deployment_revision(&mut work.deployment, &revision);
                let status = work.deployment.status.get_or_insert_default();
                if has_progress_deadline(&work.original) && condition(status, PROGRESSING).is_none() {
                    let text = format!("Found new replica set {:?}", name_of(&updated));
                    let found = new_condition(PROGRESSING, "True", "FoundNewReplicaSet", text, work.now);
                    set_condition(status, found);
                }
                work.sets.new = Some(updated);
                Ok(())
            }
            None if create => self.create_new_replica_set(work, new_revision).await,
            None => Ok(()),
        }
    }

    async fn refresh_new_replica_set(
        &self,
        work: &Work,
        existing: &Arc<ReplicaSet>,
        new_revision: i64,
    ) -> Result<Arc<ReplicaSet>, SyncError> {
        let mut updated = (**existing).clone();
        let mut changed = set_new_replica_set_annotations(&work.deployment, &mut updated, new_revision, true);
        let min_ready = |seconds: Option<i32>| seconds.unwrap_or(0);
        if let (Some(own), Some(wanted)) = (&mut updated.spec, &work.deployment.spec)
            && min_ready(own.min_ready_seconds) != min_ready(wanted.min_ready_seconds)
        {
            own.min_ready_seconds = wanted.min_ready_seconds;
            changed = true;
        }
        if !changed {
            return Ok(Arc::clone(existing));
        }
        let api = self.client.namespaced::<ReplicaSet>(work.namespace());
        Ok(Arc::new(api.update(&updated).await.map_err(SyncError::during("annotating the new replica set"))?))
    }

    async fn create_new_replica_set(&self, work: &mut Work, new_revision: i64) -> Result<(), SyncError> {
        let Some(mut wanted) = new_replica_set(&work.deployment) else { return Ok(()) };
        let start = new_size(&work.deployment, 0, total(work.sets.all(), size));
        if let Some(spec) = &mut wanted.spec {
            spec.replicas = Some(start);
        }
        set_new_replica_set_annotations(&work.deployment, &mut wanted, new_revision, false);
        let name = name_of(&wanted).to_owned();
        let api = self.client.namespaced::<ReplicaSet>(work.namespace());
        let created = match api.create(&wanted).await {
            Ok(created) => {
                info!(replica_set = name, replicas = start, "Created replica set");
                if start > 0 {
                    let text = format!("Scaled up replica set {name} from 0 to {start}");
                    self.recorder.normal(&*work.original, "ScalingReplicaSet", text);
                }
                if has_progress_deadline(&work.original) {
                    let text = format!("Created new replica set {name:?}");
                    let condition = new_condition(PROGRESSING, "True", "NewReplicaSetCreated", text, work.now);
                    set_condition(work.deployment.status.get_or_insert_default(), condition);
                }
                created
            }
            // The cache may lag behind what an earlier sync created, so the API is asked.
            Err(error) if error.is_already_exists() => self.existing_or_collision(work, &name, error).await?,
            Err(error) => return self.creation_failed(work, &name, error).await,
        };
        set_deployment_revision(&mut work.deployment, &new_revision.to_string());
        work.sets.new = Some(Arc::new(created));
        Ok(())
    }

    /// The ReplicaSet of the wanted name, if it is ours and of this template. Otherwise two templates have the same
    /// hash: the next one is another, because the collision count enters it.
    async fn existing_or_collision(
        &self,
        work: &mut Work,
        name: &str,
        error: ClientError,
    ) -> Result<ReplicaSet, SyncError> {
        let existing = self.client.namespaced::<ReplicaSet>(work.namespace()).get(name).await?;
        let same = match (&existing.spec, &work.deployment.spec) {
            (Some(own), Some(wanted)) => {
                own.template.as_ref().is_some_and(|own| equal_ignoring_hash(own, &wanted.template))
            }
            _ => false,
        };
        if is_controlled_by(&existing.metadata, &*work.original) && same {
            return Ok(existing);
        }
        let status = work.deployment.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
        debug!(replica_set = name, count = status.collision_count, "Found a hash collision");
        self.write_deployment(work).await?;
        Err(error.into())
    }

    async fn creation_failed(&self, work: &mut Work, name: &str, error: ClientError) -> Result<(), SyncError> {
        if namespace_terminating(&error) {
            return Err(error.into());
        }
        let text = format!("Failed to create new replica set {name:?}: {error}");
        if has_progress_deadline(&work.original) {
            let condition = new_condition(PROGRESSING, "False", REPLICA_SET_CREATE_ERROR, text.clone(), work.now);
            set_condition(work.deployment.status.get_or_insert_default(), condition);
            // The creation's error is the one to report.
            if let Err(error) = self.write_deployment(work).await {
                debug!(error = %error, "Could not report the failed creation");
            }
        }
        self.recorder.warning(&*work.original, REPLICA_SET_CREATE_ERROR, text);
        Err(error.into())
    }

    /// Gives a ReplicaSet another size. With `refresh` its annotations are written even if the size is right.
    /// Whether the size changed.
    pub(super) async fn scale(
        &self,
        work: &mut Work,
        (replica_set, wanted): Scaling,
        refresh: bool,
    ) -> Result<bool, SyncError> {
        let current = size(&replica_set);
        if current == wanted && !refresh {
            return Ok(false);
        }
        let mut updated = (*replica_set).clone();
        let annotated = set_replicas_annotations(&mut updated, &work.deployment);
        if current == wanted && !annotated {
            return Ok(false);
        }
        if let Some(spec) = &mut updated.spec {
            spec.replicas = Some(wanted);
        }
        let api = self.client.namespaced::<ReplicaSet>(work.namespace());
        let updated = api.update(&updated).await.map_err(SyncError::during("scaling a replica set"))?;
        if current != wanted {
            let direction = if current < wanted { "up" } else { "down" };
            let name = name_of(&updated);
            let text = format!("Scaled {direction} replica set {name} from {current} to {wanted}");
            self.recorder.normal(&*work.original, "ScalingReplicaSet", text);
        }
        work.replace(updated);
        Ok(current != wanted)
    }

    /// Deletes ReplicaSets beyond the history limit.
    pub(super) async fn clean_up(&self, work: &Work) -> Result<(), SyncError> {
        for old in to_clean_up(&work.deployment, &work.sets.old) {
            let api = self.client.namespaced::<ReplicaSet>(work.namespace());
            let options = DeleteOptions::uid(uid_of(&*old));
            ignore_not_found(api.delete(name_of(&old), &options).await)
                .map_err(SyncError::during("deleting an old replica set"))?;
        }
        Ok(())
    }
}

pub(super) fn name_of(replica_set: &ReplicaSet) -> &str {
    replica_set.metadata.name.as_deref().unwrap_or_default()
}

/// The ReplicaSet of the Deployment's template, without a size.
fn new_replica_set(deployment: &Deployment) -> Option<ReplicaSet> {
    let spec = deployment.spec.as_ref()?;
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = pod_template_hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut match_labels = spec.selector.match_labels.clone().unwrap_or_default();
    match_labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let selector = LabelSelector { match_labels: Some(match_labels), ..spec.selector.clone() };
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    Some(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(replica_set_name(name, &hash)),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![new_controller_ref(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    })
}

fn replica_set_name(deployment: &str, hash: &str) -> String {
    let keep = NAME_MAX - hash.len() - 1;
    let base = deployment.get(..keep).unwrap_or(deployment);
    format!("{base}-{hash}")
}
