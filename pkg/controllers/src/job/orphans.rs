//! Removes the tracking finalizer from pods that no job counts: their job is gone or finished, or gave them up.
//!
//! Behaves as `syncOrphanPod` of pkg/controller/job/job_controller.go, v1.36.
//!
//! // Differs from upstream: pods of a job that is gone are found by its uid, not by its selector, which would be a
//! walk over all pods of the namespace.

use std::sync::Arc;

use rkube_api::k8s::batch::v1::Job;
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{controller_of, controller_of_kind};
use rkube_client::{Client, ClientError, Lister, Patch, Reconciler, Requeue, SyncError};
use serde_json::json;

use super::conditions::finished_condition;
use super::pods::{TRACKING_FINALIZER, is_tracked};
use super::spec::external_manager;
use crate::common::enqueue::resolve;
use crate::common::errors::ignore_not_found;
use crate::common::pods;

/// Pods to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Orphan {
    Pod(ObjectKey),
    /// All of the job with this uid.
    OfJob(String),
}

pub(super) struct Orphans {
    pub(super) client: Client,
    pub(super) jobs: Lister<Job>,
    pub(super) pods: Lister<Pod>,
}

impl Orphans {
    /// Whether nobody counts this pod. Pods of other controllers are theirs, whatever finalizer they have.
    fn is_orphan(&self, pod: &Pod) -> bool {
        if controller_of(&pod.metadata).is_none() {
            return true;
        }
        let Some(reference) = controller_of_kind::<Job>(&pod.metadata) else { return false };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let job = resolve(&self.jobs, namespace, reference);
        job.is_none_or(|job| external_manager(&job).is_none() && finished_condition(&job).is_some())
    }
}

/// Removes the finalizer from this very pod.
pub(super) async fn release(client: &Client, pod: &Pod) -> Result<(), ClientError> {
    let api = client.namespaced::<Pod>(pod.metadata.namespace.as_deref().unwrap_or_default());
    let patch = json!({"metadata": {
        "uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [TRACKING_FINALIZER],
    }});
    api.patch(pod.metadata.name.as_deref().unwrap_or_default(), &Patch::Strategic(patch)).await.map(drop)
}

impl Reconciler<Orphan> for Orphans {
    async fn sync(&self, key: &Orphan) -> Result<Requeue, SyncError> {
        let candidates: Vec<Arc<Pod>> = match key {
            Orphan::Pod(key) => self.pods.get(key).into_iter().collect(),
            Orphan::OfJob(uid) => self.pods.by_index(pods::CONTROLLER_INDEX, uid),
        };
        let mut errors = Vec::new();
        for pod in candidates.iter().filter(|pod| is_tracked(pod) && self.is_orphan(pod)) {
            let released = ignore_not_found(release(&self.client, pod).await);
            errors.extend(released.map_err(SyncError::during("removing the tracking finalizer")).err());
        }
        SyncError::all(errors).map(|()| Requeue::Never)
    }
}
