//! DaemonSet controller: one pod on every node that fits.
//!
//! Watches  apps/v1 DaemonSet (primary); v1 Pod, apps/v1 ControllerRevision (by controllerRef); v1 Node
//! Writes   v1 Pod (create, delete, adopt, release); apps/v1 ControllerRevision; apps/v1 DaemonSet status
//! Behaves as  pkg/controller/daemon, v1.36
//!
//! Invariant: a pod names its node in its affinity from the start, and only there: the scheduler binds it. So a pod
//! belongs to a node before it is bound, and a node never gets a second one while the first is pending.
//!
//! Invariant: while expectations for a key are unmet, `sync` neither creates nor deletes.

mod backoff;
mod controller;
mod history;
mod nodes;
mod plan;
#[cfg(test)]
mod plan_tests;
mod pods;
mod rollout;
mod status;
#[cfg(test)]
mod tests;

use crate::context::Descriptor;

#[cfg(test)]
pub(crate) use pods::target_node;

pub(crate) const NAME: &str = "daemonset-controller";

pub(crate) const DAEMONSET: Descriptor = Descriptor::new(NAME, "daemonset", controller::start);
