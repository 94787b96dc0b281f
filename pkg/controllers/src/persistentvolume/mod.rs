//! Persistent volume binder: gives every claim a volume, an existing one or one that a provisioner makes, and takes
//! care of volumes whose claim is gone.
//!
//! Watches  v1 PersistentVolumeClaim, PersistentVolume (primary, a queue each); storage.k8s.io/v1 StorageClass; v1 Pod
//! Writes   v1 PersistentVolumeClaim and PersistentVolume (binding, annotations, status, deletion); v1 Pod (recyclers)
//! Behaves as  pkg/controller/volume/persistentvolume, v1.36
//!
//! A binding is two references, written volume first, then claim:
//!
//! ```text
//! volume.spec.claimRef = claim ─► volume Bound ─► claim.spec.volumeName = volume, bind-completed ─► claim Bound
//! ```
//!
//! Invariant: the writer of `claimRef` wins. It is written at the version it was read at, so a volume has one claim.
//!
//! Invariant: a claim that was once bound is never bound to another volume. It is `Lost` if its volume is gone.
//!
//! Invariant: a volume is reclaimed only when the API itself says that its claim is gone.
//!
//! Differs from upstream: claims and volumes are looked at again by the events they wait for, not every 15 seconds; and
//! there is no provisioner in the process, so every class is provisioned by another one.

mod claims;
mod controller;
mod matching;
mod reclaim;
#[cfg(test)]
mod tests;
mod volumes;
mod writes;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "persistentvolume-binder-controller";

pub(crate) const PERSISTENTVOLUME_BINDER: Descriptor =
    Descriptor::new(NAME, "persistentvolume-binder", controller::start);
