//! Disruption controller: how many pods each PodDisruptionBudget can spare, and what evictions left behind.
//!
//! Watches  policy/v1 PodDisruptionBudget (primary); v1 Pod (by selector); the controllers of pods, for their scale
//! Writes   policy/v1 PodDisruptionBudget status; v1 Pod condition DisruptionTarget (set to False when stale)
//! Behaves as  pkg/controller/disruption/disruption.go, v1.36
//!
//! Invariant: a budget whose count failed allows nothing. The eviction subresource reads the status and nothing else.
//!
//! Invariant: a pod the API server promised to delete does not count as healthy before it is gone or its time is up.

mod controller;
mod plan;
mod scale;
#[cfg(test)]
mod tests;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "disruption-controller";

pub(crate) const DISRUPTION: Descriptor = Descriptor::new(NAME, "disruption", controller::start);
