//! Node lifecycle controller: notices nodes that stopped reporting and taints nodes by their conditions.
//!
//! Watches  v1 Node (primary); coordination.k8s.io/v1 Lease in kube-node-lease; v1 Pod (new on unready nodes)
//! Writes   v1 Node status (conditions become Unknown), taints and two legacy labels; v1 Pod condition Ready
//! Behaves as  pkg/controller/nodelifecycle/node_lifecycle_controller.go, v1.36
//!
//! Invariant: how long a node was silent is measured on this process's own monotonic clock, from when it saw the last
//! sign of life. Times that nodes write are compared with each other only.
//!
//! Invariant: when no node of the whole cluster is ready, none is tainted: it is more likely that we are cut off.
//!
//! // Differs from upstream: nodes are looked at when something happens or their time is up, not all of them every five
//! seconds; pods are marked unready by the state of their node, not on its change only.

mod controller;
mod plan;
#[cfg(test)]
mod tests;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "node-lifecycle-controller";

pub(crate) const NODELIFECYCLE: Descriptor = Descriptor::new(NAME, "nodelifecycle", controller::start);
