//! Pod garbage collector: deletes the pods that no kubelet will ever finish, and the oldest of too many finished ones.
//!
//! Watches  v1 Pod (primary); v1 Node (gone, or out of service)
//! Writes   v1 Pod status (phase Failed, condition DisruptionTarget), then the pod's deletion without grace
//! Behaves as  pkg/controller/podgc/gc_controller.go, v1.36
//!
//! Invariant: a pod is only orphaned if the API says that its node does not exist. The cache may be behind.
//!
//! Differs from upstream: pods and nodes are looked at when they change, not all of them every 20 seconds.

mod controller;
mod plan;
#[cfg(test)]
mod tests;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "pod-garbage-collector-controller";

pub(crate) const PODGC: Descriptor = Descriptor::new(NAME, "podgc", controller::start);
