//! Deployment controller: rolls pods from one template to the next through ReplicaSets.
//!
//! Watches  apps/v1 Deployment (primary); apps/v1 ReplicaSet (by controllerRef); v1 Pod (deletions, for Recreate)
//! Writes   apps/v1 ReplicaSet (create, scale, annotate, adopt, release, delete); apps/v1 Deployment status,
//!          and its revision annotation
//! Behaves as  pkg/controller/deployment, v1.36
//!
//! Invariant: a template has one ReplicaSet, whose name is a function of Deployment and template. A crash between
//! creating it and saying so is harmless: the next sync finds it.
//!
//! Invariant: ReplicaSets are changed only at the version the plan was made from. A stale cache loses by conflict.
//!
//! // Differs from upstream: status, conditions and the revision annotation are collected during a sync and written
//! once at its end, where upstream writes up to three times.

mod annotations;
mod controller;
mod plan;
mod replica_sets;
mod status;
#[cfg(test)]
mod tests;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "deployment-controller";

pub(crate) const DEPLOYMENT: Descriptor = Descriptor::new(NAME, "deployment", controller::start);
