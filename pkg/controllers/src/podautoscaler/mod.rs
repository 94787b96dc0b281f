//! Horizontal pod autoscaler: sets the replicas of what has a scale by what its pods, or anything else, measure.
//!
//! Watches  autoscaling/v2 HorizontalPodAutoscaler (primary); v1 Pod (readiness, requests)
//! Reads    metrics.k8s.io, custom.metrics.k8s.io, external.metrics.k8s.io; the scale of the target
//! Writes   the scale of the target; autoscaling/v2 HorizontalPodAutoscaler status
//! Behaves as  pkg/controller/podautoscaler, v1.36
//!
//! Metrics do not tell when they change, so every autoscaler is looked at once per sync period, and after a change of
//! it. What was recommended and done lately is kept in memory: it only ever delays.
//!
//! Invariant: a metric that cannot be read never scales down. Pods that are missing or not ready count so that they
//! lessen a change, and never turn its direction.

mod behavior;
mod controller;
mod metrics;
mod proposals;
mod replicas;
mod status;
#[cfg(test)]
mod tests;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "horizontal-pod-autoscaler-controller";

pub(crate) const HORIZONTAL_POD_AUTOSCALER: Descriptor =
    Descriptor::new(NAME, "horizontalpodautoscaling", controller::start);
