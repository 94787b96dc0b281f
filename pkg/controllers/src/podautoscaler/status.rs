//! The status of an autoscaler while it is being made.

use jiff::Timestamp;
use rkube_api::k8s::autoscaling::v2::{HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricStatus};
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::time::whole_seconds;

use crate::common::numbers::nonempty;

pub(super) const ABLE_TO_SCALE: &str = "AbleToScale";
pub(super) const SCALING_ACTIVE: &str = "ScalingActive";
pub(super) const SCALING_LIMITED: &str = "ScalingLimited";
/// Only with a feature that is off; left over from a server that had it on.
const SCALED_TO_ZERO: &str = "ScaledToZero";

/// The conditions, in the order they were first set.
pub(super) struct Conditions {
    list: Vec<HorizontalPodAutoscalerCondition>,
    now: Timestamp,
}

impl Conditions {
    pub(super) fn new(status: &HorizontalPodAutoscalerStatus, now: Timestamp) -> Self {
        Self { list: status.conditions.clone().unwrap_or_default(), now: whole_seconds(now) }
    }

    pub(super) fn set(&mut self, condition_type: &str, is_true: bool, reason: &str, message: impl Into<String>) {
        let index = match self.list.iter().position(|condition| condition.type_ == condition_type) {
            Some(index) => index,
            None => {
                let type_ = condition_type.to_owned();
                self.list.push(HorizontalPodAutoscalerCondition { type_, ..Default::default() });
                self.list.len() - 1
            }
        };
        let Some(condition) = self.list.get_mut(index) else { return };
        let status = if is_true { "True" } else { "False" };
        if condition.status != status {
            condition.last_transition_time = Some(Time(self.now));
        }
        status.clone_into(&mut condition.status);
        condition.reason = Some(reason.to_owned());
        condition.message = Some(message.into());
    }

    pub(super) fn remove_scaled_to_zero(&mut self) {
        self.list.retain(|condition| condition.type_ != SCALED_TO_ZERO);
    }

    /// The whole status.
    pub(super) fn into_status(
        self,
        old: &HorizontalPodAutoscalerStatus,
        current: i32,
        desired: i32,
        metrics: Vec<MetricStatus>,
        rescaled: bool,
    ) -> HorizontalPodAutoscalerStatus {
        HorizontalPodAutoscalerStatus {
            current_replicas: Some(current),
            desired_replicas: desired,
            last_scale_time: if rescaled { Some(Time(self.now)) } else { old.last_scale_time.clone() },
            current_metrics: nonempty(metrics),
            conditions: nonempty(self.list),
            observed_generation: None,
        }
    }

    /// The old status with these conditions.
    pub(super) fn onto(self, old: &HorizontalPodAutoscalerStatus) -> HorizontalPodAutoscalerStatus {
        HorizontalPodAutoscalerStatus { conditions: nonempty(self.list), ..old.clone() }
    }
}
