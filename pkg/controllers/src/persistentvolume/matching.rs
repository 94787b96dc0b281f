//! The volume that fits a claim best.
//!
//! Behaves as `findByClaim` of index.go and `FindMatchingVolume` of component-helpers/storage/volume, v1.36.

use std::collections::BTreeSet;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_api::volumes::{
    capacity, claim_class, has_access_modes, is_reserved_for, requested_size, same_attributes_class, same_mode,
    volume_class,
};
use rkube_apimachinery::labels::Selector;
use rkube_client::owner::selector_of;

/// The best of `volumes` for the claim: with the fewest superfluous access modes, among these one that is reserved for
/// it, among the others the smallest. With `delayed` only a reserved one: the scheduler chooses.
pub(super) fn best_match(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    delayed: bool,
) -> Option<Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let wanted = requested_size(claim);
    let selector = match &spec.selector {
        None => Selector::everything(),
        // Validation refuses selectors that do not compile; one that got in selects nothing.
        Some(selector) => selector_of(Some(selector)).unwrap_or_else(|_| Selector::nothing()),
    };
    let fits = |volume: &&Arc<PersistentVolume>| {
        has_access_modes(claim, volume)
            && capacity(volume) >= wanted
            && same_mode(claim, volume)
            && same_attributes_class(claim, volume)
            && volume.metadata.deletion_timestamp.is_none()
            && (is_reserved_for(volume, claim) || (!delayed && is_free(volume) && matches(claim, volume, &selector)))
    };
    let rank = |volume: &Arc<PersistentVolume>| {
        let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
        let modes: BTreeSet<&String> = modes.iter().collect();
        (modes.len(), !is_reserved_for(volume, claim), capacity(volume), volume.metadata.name.clone())
    };
    volumes.iter().filter(fits).min_by_key(|volume| rank(volume)).cloned()
}

fn is_free(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
        && volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available")
}

fn matches(claim: &PersistentVolumeClaim, volume: &PersistentVolume, selector: &Selector) -> bool {
    selector.matches(&volume.metadata.labels) && volume_class(volume) == claim_class(claim)
}

/// Why a volume that a claim asks for by name cannot be its volume.
pub(super) fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let why = if volume.metadata.deletion_timestamp.is_some() {
        return Some(format!("the volume is marked for deletion {name:?}"));
    } else if capacity(volume) < requested_size(claim) {
        "requested PV is too small"
    } else if volume_class(volume) != claim_class(claim) {
        "storageClassName does not match"
    } else if !same_attributes_class(claim, volume) {
        "volumeAttributesClassName does not match"
    } else if !same_mode(claim, volume) {
        "incompatible volumeMode"
    } else if !has_access_modes(claim, volume) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}
