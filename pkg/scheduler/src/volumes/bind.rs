//! Writing a decision's volumes to the API, and waiting until they are bound.
//!
//! Behaves as pkg/scheduler/framework/plugins/volumebinding/binder.go (`BindPodVolumes`), v1.36.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_api::volumes::{BOUND_BY_CONTROLLER, SELECTED_NODE};
use rkube_apimachinery::chain::chain;
use rkube_client::{ClientError, Patch};
use serde_json::json;

use crate::scheduler::Scheduler;
use crate::volumes::claims::is_bound;

/// What goes with a node: volumes for claims, and claims to make volumes for.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    pub(super) volumes: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    pub(super) provisioned: Vec<Arc<PersistentVolumeClaim>>,
}

impl Scheduler {
    /// Why it failed, in the words of the failed attempt.
    pub(crate) async fn bind_volumes(&self, bindings: &Bindings, node: &str, profile: usize) -> Result<(), String> {
        let failed = |detail: &dyn std::fmt::Display| {
            format!("running PreBind plugin \"VolumeBinding\": binding volumes: {detail}")
        };
        for (volume, claim) in &bindings.volumes {
            self.give(volume, claim).await.map_err(|error| failed(&chain(&error)))?;
        }
        for claim in &bindings.provisioned {
            self.choose(claim, node).await.map_err(|error| failed(&chain(&error)))?;
        }
        let timeout = self.context.config.profiles.get(profile).map(|profile| profile.bind_timeout);
        let timeout = self.context.clock.sleep(timeout.unwrap_or_default());
        tokio::select! {
            result = self.all_bound(bindings, node) => result.map_err(|detail| failed(&detail)),
            () = timeout => Err(failed(&"context deadline exceeded")),
        }
    }

    async fn give(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), ClientError> {
        let patch = json!({
            "metadata": {
                "resourceVersion": volume.metadata.resource_version,
                "annotations": {BOUND_BY_CONTROLLER: "yes"},
            },
            "spec": {"claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.metadata.namespace,
                "name": claim.metadata.name,
                "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version,
            }},
        });
        let api = self.context.client.all::<PersistentVolume>();
        api.patch(volume.metadata.name.as_deref().unwrap_or_default(), &Patch::Merge(patch)).await.map(drop)
    }

    async fn choose(&self, claim: &PersistentVolumeClaim, node: &str) -> Result<(), ClientError> {
        let patch = json!({
            "metadata": {"uid": claim.metadata.uid, "annotations": {SELECTED_NODE: node}},
        });
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let api = self.context.client.namespaced::<PersistentVolumeClaim>(namespace);
        api.patch(claim.metadata.name.as_deref().unwrap_or_default(), &Patch::Merge(patch)).await.map(drop)
    }

    async fn all_bound(&self, bindings: &Bindings, node: &str) -> Result<(), String> {
        let informer = self.context.informers.informer::<PersistentVolumeClaim>();
        let lister = informer.lister();
        let claims = || {
            bindings
                .volumes
                .iter()
                .map(|(_, claim)| (claim, false))
                .chain(bindings.provisioned.iter().map(|claim| (claim, true)))
        };
        // The cache may still show a claim as it was before it was written to.
        let mut seen = vec![false; bindings.volumes.len() + bindings.provisioned.len()];
        loop {
            let changed = self.storage_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let mut all = true;
            for ((claim, provisioned), seen) in claims().zip(&mut seen) {
                let name = claim.metadata.name.as_deref().unwrap_or_default();
                let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
                let Some(current) = lister.get_named(namespace, name) else {
                    return Err(format!("failed to check binding: persistentvolumeclaim \"{name}\" not found"));
                };
                if provisioned {
                    let annotations = current.metadata.annotations.as_ref();
                    let selected = annotations.and_then(|annotations| annotations.get(SELECTED_NODE));
                    *seen |= selected.is_some_and(|selected| selected == node);
                    // A provisioner that gives up takes the annotation away.
                    if *seen && selected.is_none_or(|selected| selected != node) {
                        return Err(format!("provisioning failed for PVC \"{name}\""));
                    }
                }
                all &= is_bound(&current);
            }
            if all {
                return Ok(());
            }
            changed.await;
        }
    }
}
