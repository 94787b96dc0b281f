//! The writes that bind and unbind, each of them safe to repeat.
//!
//! Behaves as `bind`, `unbindVolume` and the status updates of pv_controller.go, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_api::meta::pkg::api::resource::Quantity as Text;
use rkube_api::pod_resources::parse;
use rkube_api::volumes::{BIND_COMPLETED, BOUND_BY_CONTROLLER, capacity, is_reserved_for, volume_name};
use rkube_apimachinery::quantity::Quantity;
use rkube_client::SyncError;
use rkube_client::events::reference_to;

use super::controller::Binder;
use super::volumes::{annotation, phase};
use crate::common::numbers::nonempty;

/// On a volume that was enlarged and whose file system was not yet: the size that users see.
const PRE_RESIZE_CAPACITY: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";

type Volume = Arc<PersistentVolume>;
type Claim = Arc<PersistentVolumeClaim>;

fn annotate(annotations: &mut Option<BTreeMap<String, String>>, name: &str, value: &str) {
    annotations.get_or_insert_default().insert(name.to_owned(), value.to_owned());
}

impl Binder {
    /// Binds both to each other, from whatever state of it.
    pub(super) async fn bind(&self, volume: Volume, claim: Claim) -> Result<(), SyncError> {
        let volume = self.bind_volume(volume, &claim).await?;
        let volume = self.set_volume_phase(volume, "Bound", "").await?;
        let claim = self.bind_claim(claim, &volume).await?;
        self.set_claim_phase(claim, "Bound", Some(&volume)).await?;
        Ok(())
    }

    async fn bind_volume(&self, volume: Volume, claim: &Claim) -> Result<Volume, SyncError> {
        let mut updated = (*volume).clone();
        if !is_reserved_for(&volume, claim) {
            annotate(&mut updated.metadata.annotations, BOUND_BY_CONTROLLER, "yes");
        }
        let spec = updated.spec.get_or_insert_default();
        let complete = is_reserved_for(&volume, claim)
            && spec.claim_ref.as_ref().is_some_and(|reference| reference.uid == claim.metadata.uid);
        if !complete {
            spec.claim_ref = Some(reference_to(&**claim));
        }
        if updated == *volume {
            return Ok(volume);
        }
        self.update_volume(&updated, "binding a volume").await
    }

    async fn bind_claim(&self, claim: Claim, volume: &Volume) -> Result<Claim, SyncError> {
        let mut updated = (*claim).clone();
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        if volume_name(&claim) != name {
            updated.spec.get_or_insert_default().volume_name = Some(name.to_owned());
            annotate(&mut updated.metadata.annotations, BOUND_BY_CONTROLLER, "yes");
        }
        let annotations = updated.metadata.annotations.get_or_insert_default();
        annotations.entry(BIND_COMPLETED.to_owned()).or_insert_with(|| "yes".to_owned());
        if updated == *claim {
            return Ok(claim);
        }
        self.update_claim(&updated, "binding a claim").await
    }

    /// Takes the volume from its claim. What a user reserved stays reserved.
    pub(super) async fn unbind(&self, volume: &Volume) -> Result<(), SyncError> {
        let mut updated = (**volume).clone();
        let spec = updated.spec.get_or_insert_default();
        if annotation(volume, BOUND_BY_CONTROLLER).is_some() {
            spec.claim_ref = None;
            let mut annotations = updated.metadata.annotations.take().unwrap_or_default();
            annotations.remove(BOUND_BY_CONTROLLER);
            updated.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
        } else if let Some(reference) = &mut spec.claim_ref {
            reference.uid = None;
        }
        let volume = self.update_volume(&updated, "unbinding a volume").await?;
        self.set_volume_phase(volume, "Available", "").await.map(drop)
    }

    /// Says who is to make a volume for the claim.
    pub(super) async fn set_provisioner(&self, claim: &Claim, provisioner: &str) -> Result<(), SyncError> {
        const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
        const OLD_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
        let current = claim.metadata.annotations.as_ref().and_then(|annotations| annotations.get(PROVISIONER));
        if current.is_some_and(|current| current == provisioner) {
            return Ok(());
        }
        let mut updated = (**claim).clone();
        annotate(&mut updated.metadata.annotations, OLD_PROVISIONER, provisioner);
        annotate(&mut updated.metadata.annotations, PROVISIONER, provisioner);
        self.update_claim(&updated, "naming the provisioner").await.map(drop)
    }

    pub(super) async fn update_claim(
        &self,
        claim: &PersistentVolumeClaim,
        action: &'static str,
    ) -> Result<Claim, SyncError> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let stored = self.client.namespaced::<PersistentVolumeClaim>(namespace).update(claim).await;
        Ok(self.claims.stored(stored.map_err(SyncError::during(action))?))
    }

    async fn update_volume(&self, volume: &PersistentVolume, action: &'static str) -> Result<Volume, SyncError> {
        let stored = self.client.all::<PersistentVolume>().update(volume).await;
        Ok(self.volumes.stored(stored.map_err(SyncError::during(action))?))
    }

    pub(super) async fn set_volume_phase(
        &self,
        volume: Volume,
        wanted: &str,
        message: &str,
    ) -> Result<Volume, SyncError> {
        if phase(&volume) == wanted {
            return Ok(volume);
        }
        let mut updated = (*volume).clone();
        let status = updated.status.get_or_insert_default();
        status.phase = Some(wanted.to_owned());
        status.message = Some(message.to_owned()).filter(|message| !message.is_empty());
        let stored = self.client.all::<PersistentVolume>().update_status(&updated).await;
        Ok(self.volumes.stored(stored.map_err(SyncError::during("writing the phase of a volume"))?))
    }

    /// Says in phase and event that a volume failed, once.
    pub(super) async fn fail_volume(&self, volume: &Volume, reason: &str, message: &str) -> Result<(), SyncError> {
        if phase(volume) == "Failed" {
            return Ok(());
        }
        let failed = self.set_volume_phase(Arc::clone(volume), "Failed", message).await?;
        self.recorder.warning(&*failed, reason, message);
        Ok(())
    }

    /// The claim's phase, with what it has of its volume.
    pub(super) async fn set_claim_phase(
        &self,
        claim: Claim,
        wanted: &str,
        volume: Option<&Volume>,
    ) -> Result<Claim, SyncError> {
        let old = claim.status.clone().unwrap_or_default();
        let mut status = old.clone();
        let was = old.phase.as_deref().unwrap_or_default();
        status.phase = Some(wanted.to_owned());
        match volume.and_then(|volume| volume.spec.as_ref().map(|spec| (volume, spec))) {
            None => {
                status.access_modes = None;
                status.capacity = None;
                status.current_volume_attributes_class_name = None;
            }
            Some((volume, spec)) => {
                status.access_modes = nonempty(spec.access_modes.clone().unwrap_or_default());
                if was != wanted {
                    if spec.capacity.as_ref().is_none_or(|capacity| !capacity.contains_key("storage")) {
                        let name = volume.metadata.name.as_deref().unwrap_or_default();
                        let text = format!("PersistentVolume {name:?} is without a storage capacity");
                        return Err(SyncError::other(text));
                    }
                    let before = annotation(volume, PRE_RESIZE_CAPACITY).filter(|text| Quantity::parse(text).is_ok());
                    if let Some(before) = before {
                        let capacity = status.capacity.get_or_insert_default();
                        capacity.insert("storage".to_owned(), Text(before.to_owned()));
                    } else if parse(status.capacity.as_ref()).get("storage") != Some(&capacity(volume)) {
                        status.capacity.clone_from(&spec.capacity);
                    }
                }
                if was == "Pending" && wanted == "Bound" {
                    status.current_volume_attributes_class_name.clone_from(&spec.volume_attributes_class_name);
                }
            }
        }
        if status == old {
            return Ok(claim);
        }
        let updated = PersistentVolumeClaim { status: Some(status), ..(*claim).clone() };
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let stored = self.client.namespaced::<PersistentVolumeClaim>(namespace).update_status(&updated).await;
        Ok(self.claims.stored(stored.map_err(SyncError::during("writing the status of a claim"))?))
    }

    /// Whether an object of this name is there by the word of the API itself.
    pub(super) async fn fetch<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<K>, SyncError> {
        match self.client.namespaced::<K>(namespace).get(name).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(SyncError::during("reading past the cache")(error)),
        }
    }
}
