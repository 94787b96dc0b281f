//! Reading claims and volumes: class, size, mode, and whether one is meant for the other. The volume binder, the
//! scheduler and quota must agree on it.
//!
//! Behaves as `component-helpers/storage/volume`, v1.36.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_apimachinery::quantity::Quantity;

use crate::pod_resources::parse;

/// Names the class of old claims and volumes. It beats the field.
pub const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// On a claim: its volume is bound to it from both sides.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On either: the binding was not asked for by a user, and may be undone.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim that waits for its first consumer: the node that was chosen for it.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The class the claim asks for; `None` if it leaves that open, which is not the same as asking for none.
pub fn requested_class(claim: &PersistentVolumeClaim) -> Option<&str> {
    let annotated = claim.metadata.annotations.as_ref().and_then(|annotations| annotations.get(CLASS_ANNOTATION));
    let field = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    annotated.or(field).map(String::as_str)
}

/// The class of the claim, empty for none.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    requested_class(claim).unwrap_or_default()
}

/// The class of the volume, empty for none.
pub fn volume_class(volume: &PersistentVolume) -> &str {
    let annotated = volume.metadata.annotations.as_ref().and_then(|annotations| annotations.get(CLASS_ANNOTATION));
    let field = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    annotated.or(field).map_or("", String::as_str)
}

/// The volume the claim names, empty for none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// Bytes the claim asks for.
pub fn requested_size(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    parse(resources.and_then(|resources| resources.requests.as_ref())).remove("storage").unwrap_or_default()
}

/// Bytes the volume has.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    parse(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref())).remove("storage").unwrap_or_default()
}

/// Whether claim and volume agree on being a file system or a block device.
pub fn same_mode(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let claim = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    let volume = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    claim.unwrap_or("Filesystem") == volume.unwrap_or("Filesystem")
}

/// Whether claim and volume are of one class of volume attributes, or both of none.
pub fn same_attributes_class(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let claim = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let volume = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    claim.unwrap_or_default() == volume.unwrap_or_default()
}

/// Whether the volume offers every way of access that the claim wants.
pub fn has_access_modes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    let offered = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    wanted.iter().all(|mode| offered.contains(mode))
}

/// Whether the volume names this claim: of this uid, or of none yet.
pub fn is_reserved_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        let uid = reference.uid.as_deref().unwrap_or_default();
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
    })
}

/// The classes of volume attributes that the claim has, wants or is moving to.
pub fn attributes_classes(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &String> {
    let status = claim.status.as_ref();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref());
    let current = status.and_then(|status| status.current_volume_attributes_class_name.as_ref());
    let target = status.and_then(|status| status.modify_volume_status.as_ref());
    let target = target.and_then(|modification| modification.target_volume_attributes_class_name.as_ref());
    [wanted, current, target].into_iter().flatten().filter(|class| !class.is_empty())
}
