//! What to do about one volume.
//!
//! Behaves as `syncVolume` of pv_controller.go, v1.36.

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_api::volumes::{same_mode, volume_name};

const DYNAMICALLY_PROVISIONED: &str = "pv.kubernetes.io/provisioned-by";
const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";

/// What is to happen with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Available,
    Bound,
    /// Its claim has another volume or is gone.
    Release,
    /// Its claim has another volume, and this one can be had by others.
    Unbind,
    /// It waits for its claim to take it.
    WakeClaim,
    /// It is reserved for a claim that cannot use it.
    Mismatch,
}

pub(super) fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(super) fn reclaim_policy(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or_default()
}

pub(super) fn annotation<'a>(volume: &'a PersistentVolume, name: &str) -> Option<&'a str> {
    volume.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The plugin or driver that made the volume.
pub(super) fn provisioned_by(volume: &PersistentVolume) -> Option<&str> {
    annotation(volume, DYNAMICALLY_PROVISIONED)
}

/// An external driver took the volume over.
pub(super) fn is_migrated(volume: &PersistentVolume) -> bool {
    annotation(volume, MIGRATED_TO).is_some_and(|driver| !driver.is_empty())
}

/// Whether a volume is reserved for a claim that was seen, as told by its uid.
pub(super) fn is_claimed(volume: &PersistentVolume) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| reference.uid.as_ref().is_some_and(|uid| !uid.is_empty()))
}

/// `claim` is the one the volume refers to, by uid; `None` if there is no such claim.
pub(super) fn plan(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Step {
    if !is_claimed(volume) {
        return Step::Available;
    }
    let Some(claim) = claim else { return Step::Release };
    if volume_name(claim).is_empty() {
        return if same_mode(claim, volume) { Step::WakeClaim } else { Step::Mismatch };
    }
    if Some(volume_name(claim)) == volume.metadata.name.as_deref() {
        return Step::Bound;
    }
    // A volume made for the claim that came second is of no use to anybody.
    if provisioned_by(volume).is_some() && reclaim_policy(volume) == "Delete" { Step::Release } else { Step::Unbind }
}
