//! A pod's claims: which are bound, which wait for the pod, and what makes the pod wait.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_api::volumes::{BIND_COMPLETED, claim_class, requested_size, volume_name};

use crate::cluster::Cluster;
use crate::config::Profile;
use crate::model::pod::{PodInfo, claim_names, is_ephemeral_claim};
use crate::plugins::Plugin;
use crate::volumes::{Plan, Refusal, Storage, ZONE_LABELS, claim_key};

/// Whether the volume controller has finished with the claim.
pub(super) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    !volume_name(claim).is_empty() && annotations.is_some_and(|annotations| annotations.contains_key(BIND_COMPLETED))
}

impl Storage {
    pub(super) fn plan_claims(
        &self,
        cluster: &Cluster,
        profile: &Profile,
        pod: &PodInfo,
        plan: &mut Plan,
    ) -> Result<(), Refusal> {
        let refuse = |message: String| (Plugin::VolumeBinding, message);
        let mut immediate = false;
        for name in claim_names(&pod.pod) {
            let Some(claim) = self.claims.get_named(pod.namespace(), &name) else {
                return Err(refuse(if is_ephemeral_claim(&pod.pod, &name) {
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\"")
                } else {
                    format!("persistentvolumeclaim \"{name}\" not found")
                }));
            };
            self.check_claim(pod, &claim, &name).map_err(refuse)?;
            if profile.filters(Plugin::VolumeRestrictions) {
                note_exclusive(cluster, &claim, pod.namespace(), &name, plan);
            }
            if is_bound(&claim) {
                let volume = self.volumes.get_named("", volume_name(&claim));
                if let Some(volume) = &volume {
                    note_zones(volume, plan);
                }
                plan.bound.push(volume);
            } else if volume_name(&claim).is_empty() && self.waits_for_consumer(&claim) {
                plan.delayed.push(claim);
            } else {
                immediate = true;
            }
        }
        if immediate && profile.filters(Plugin::VolumeBinding) {
            return Err(refuse("pod has unbound immediate PersistentVolumeClaims".to_owned()));
        }
        plan.delayed.sort_by_key(|claim| requested_size(claim));
        Ok(())
    }

    fn check_claim(&self, pod: &PodInfo, claim: &PersistentVolumeClaim, name: &str) -> Result<(), String> {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase == Some("Lost") {
            let volume = volume_name(claim);
            return Err(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        let owners = claim.metadata.owner_references.iter().flatten();
        let owned = || owners.clone().any(|owner| owner.controller == Some(true) && owner.uid == *pod.uid);
        if is_ephemeral_claim(&pod.pod, name) && !owned() {
            let namespace = pod.namespace();
            return Err(format!("PVC {namespace}/{name} was not created for pod {} (pod is not owner)", pod.key));
        }
        Ok(())
    }

    fn waits_for_consumer(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = Some(claim_class(claim)).filter(|class| !class.is_empty());
        let class = class.and_then(|class| self.classes.get_named("", class));
        class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
    }
}

fn note_exclusive(cluster: &Cluster, claim: &Arc<PersistentVolumeClaim>, namespace: &str, name: &str, plan: &mut Plan) {
    let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
    if modes.into_iter().flatten().any(|mode| mode == "ReadWriteOncePod") {
        let key = claim_key(namespace, name);
        plan.exclusive_users += i64::try_from(cluster.claim_users(&key)).unwrap_or(i64::MAX);
        plan.exclusive.push(key);
    }
}

fn note_zones(volume: &PersistentVolume, plan: &mut Plan) {
    for label in ZONE_LABELS {
        let value = volume.metadata.labels.as_ref().and_then(|labels| labels.get(label));
        if let Some(value) = value {
            // Several zones are joined by two underscores.
            plan.zones.push((label, value.split("__").map(str::to_owned).collect()));
        }
    }
}
