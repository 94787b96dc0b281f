//! StatefulSet controller: pods with names, and storage that stays with the name.
//!
//! Watches  apps/v1 StatefulSet (primary); v1 Pod (by controllerRef); v1 PersistentVolumeClaim, ControllerRevision
//! Writes   v1 Pod (create, update, delete, adopt, release); v1 PersistentVolumeClaim (create, owners);
//!          apps/v1 ControllerRevision; apps/v1 StatefulSet status
//! Behaves as  pkg/controller/statefulset, v1.36
//!
//! Invariant: of each name there is at most one pod. A pod is replaced only after its predecessor is gone from the API.
//!
//! Invariant: with ordered management at most one step is taken per sync, and none before the cache shows the last.

mod claims;
mod controller;
mod plan;
mod pods;
#[cfg(test)]
mod tests;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "statefulset-controller";

pub(crate) const STATEFULSET: Descriptor = Descriptor::new(NAME, "statefulset", controller::start);
