//! What ReplicaSets and ReplicationControllers have in common.

use rkube_api::Kind;
use rkube_api::k8s::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use rkube_api::k8s::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use rkube_apimachinery::labels::{Selector, SelectorError};
use rkube_client::owner::{controller_of, selector_of};

use super::status::{Condition, Counts};
use crate::common::numbers::{nonempty, nonzero};

/// A kind that wants a number of pods of one template.
pub(crate) trait ReplicaOwner: Kind {
    /// The controller's name in logs and metrics.
    const CONTROLLER: &'static str;
    /// Names the queue in metrics.
    const QUEUE: &'static str;
    /// The component that events name.
    const EVENT_SOURCE: &'static str;

    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn selector(&self) -> Result<Selector, SelectorError>;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn counts(&self) -> Counts;
    fn set_counts(&mut self, counts: Counts);

    /// Whether the status has a count of terminating pods.
    fn reports_terminating(&self) -> bool;

    /// Whether `other` has pods of the same application: ReplicaSets of one Deployment do.
    fn is_related(&self, other: &Self) -> bool;
}

impl ReplicaOwner for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";
    const QUEUE: &'static str = "replicaset";
    const EVENT_SOURCE: &'static str = "replicaset-controller";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Result<Selector, SelectorError> {
        selector_of(self.spec.as_ref().map(|spec| &spec.selector))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn counts(&self) -> Counts {
        let status = self.status.clone().unwrap_or_default();
        let condition = |condition: ReplicaSetCondition| Condition {
            condition_type: condition.type_,
            status: condition.status,
            last_transition_time: condition.last_transition_time,
            reason: condition.reason,
            message: condition.message,
        };
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: status.terminating_replicas,
            observed_generation: status.observed_generation.unwrap_or(0),
            conditions: status.conditions.into_iter().flatten().map(condition).collect(),
        }
    }

    fn set_counts(&mut self, counts: Counts) {
        let condition = |condition: Condition| ReplicaSetCondition {
            type_: condition.condition_type,
            status: condition.status,
            last_transition_time: condition.last_transition_time,
            reason: condition.reason,
            message: condition.message,
        };
        self.status = Some(ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: nonzero(counts.fully_labeled),
            ready_replicas: nonzero(counts.ready),
            available_replicas: nonzero(counts.available),
            terminating_replicas: counts.terminating,
            observed_generation: nonzero(counts.observed_generation),
            conditions: nonempty(counts.conditions.into_iter().map(condition).collect()),
        });
    }

    fn reports_terminating(&self) -> bool {
        true
    }

    fn is_related(&self, other: &Self) -> bool {
        let uid = |set: &Self| controller_of(&set.metadata).map(|reference| reference.uid.clone());
        uid(self).is_some_and(|ours| uid(other) == Some(ours))
    }
}

impl ReplicaOwner for ReplicationController {
    const CONTROLLER: &'static str = "replicationcontroller-controller";
    const QUEUE: &'static str = "replicationmanager";
    const EVENT_SOURCE: &'static str = "replication-controller";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Result<Selector, SelectorError> {
        let labels = self.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        // A set selector without labels selects nothing, unlike an empty LabelSelector.
        match labels.filter(|labels| !labels.is_empty()) {
            None => Ok(Selector::nothing()),
            Some(labels) => Ok(Selector::from_set(labels.iter().map(|(key, value)| (key.as_str(), value.as_str())))),
        }
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn counts(&self) -> Counts {
        let status = self.status.clone().unwrap_or_default();
        let condition = |condition: ReplicationControllerCondition| Condition {
            condition_type: condition.type_,
            status: condition.status,
            last_transition_time: condition.last_transition_time,
            reason: condition.reason,
            message: condition.message,
        };
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: None,
            observed_generation: status.observed_generation.unwrap_or(0),
            conditions: status.conditions.into_iter().flatten().map(condition).collect(),
        }
    }

    fn set_counts(&mut self, counts: Counts) {
        let condition = |condition: Condition| ReplicationControllerCondition {
            type_: condition.condition_type,
            status: condition.status,
            last_transition_time: condition.last_transition_time,
            reason: condition.reason,
            message: condition.message,
        };
        self.status = Some(ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: nonzero(counts.fully_labeled),
            ready_replicas: nonzero(counts.ready),
            available_replicas: nonzero(counts.available),
            observed_generation: nonzero(counts.observed_generation),
            conditions: nonempty(counts.conditions.into_iter().map(condition).collect()),
        });
    }

    fn reports_terminating(&self) -> bool {
        false
    }

    fn is_related(&self, _: &Self) -> bool {
        false
    }
}
