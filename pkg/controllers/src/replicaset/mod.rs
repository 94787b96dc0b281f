//! ReplicaSet controller: keeps `spec.replicas` pods running for every ReplicaSet, and in the same way for
//! every ReplicationController.
//!
//! Watches  apps/v1 ReplicaSet or v1 ReplicationController (primary); v1 Pod (mapped to its owner by controllerRef)
//! Writes   v1 Pod (create, delete, adopt, release); the status of the primary
//! Behaves as  pkg/controller/replicaset/replica_set.go and pkg/controller/replication, v1.36
//!
//! Invariant: at most one controller owns a pod. `ControllerRefManager` re-reads the owner from the API
//! before it adopts, because the cache may not yet show that the owner is being deleted.
//!
//! Invariant: while expectations for a key are unmet, `sync` neither creates nor deletes. Without
//! this a slow watch would make us create the same replicas twice.

mod controller;
mod kinds;
mod plan;
mod status;
#[cfg(test)]
mod tests;

use rkube_api::k8s::apps::v1::ReplicaSet;
use rkube_api::k8s::core::v1::ReplicationController;

use crate::context::Descriptor;

pub(crate) const REPLICASET: Descriptor =
    Descriptor::new("replicaset-controller", "replicaset", controller::start::<ReplicaSet>);

pub(crate) const REPLICATIONCONTROLLER: Descriptor = Descriptor::new(
    "replicationcontroller-controller",
    "replicationcontroller",
    controller::start::<ReplicationController>,
);
