//! The status of a DaemonSet, from its nodes and pods.
//!
//! Behaves as `updateDaemonSetStatus` of pkg/controller/daemon/daemon_controller.go, v1.36.

use rkube_api::k8s::apps::v1::DaemonSetStatus;

use super::nodes::Fit;
use super::plan::Found;
use crate::common::numbers::nonzero;
use crate::common::pods;

/// The counts; what is not counted is taken from `old`.
pub(super) fn calculate(found: &Found<'_>, old: &DaemonSetStatus) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: old.observed_generation,
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated) = (0, 0);
    for (node, fit) in &found.nodes {
        let oldest = found.by_node.get(node).and_then(|members| members.first());
        if *fit != Fit::Runs {
            status.number_misscheduled += i32::from(oldest.is_some());
            continue;
        }
        status.desired_number_scheduled += 1;
        let Some(pod) = oldest else { continue };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(pods::is_ready(pod));
        available += i32::from(found.is_available(pod));
        updated += i32::from(found.is_updated(pod));
    }
    status.number_available = nonzero(available);
    status.number_unavailable = nonzero(status.desired_number_scheduled - available);
    status.updated_number_scheduled = nonzero(updated);
    status
}
