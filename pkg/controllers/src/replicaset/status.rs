//! The status of a ReplicaSet or ReplicationController, from its pods.

use std::sync::Arc;

use jiff::Timestamp;
use rkube_api::k8s::core::v1::Pod;
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::labels::Selector;
use rkube_apimachinery::time::whole_seconds;

use super::kinds::ReplicaOwner;
use crate::common::numbers::count;
use crate::common::pods;

const REPLICA_FAILURE: &str = "ReplicaFailure";

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    /// ReplicationControllers do not report it.
    pub(crate) terminating: Option<i32>,
    pub(crate) observed_generation: i64,
    pub(crate) conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Condition {
    pub(crate) condition_type: String,
    pub(crate) status: String,
    pub(crate) last_transition_time: Option<Time>,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
}

/// `active` and `terminating` are pods of `owner`; `failure` is why creating or deleting some failed.
pub(crate) fn calculate<O: ReplicaOwner>(
    owner: &O,
    active: &[Arc<Pod>],
    terminating: Option<usize>,
    failure: Option<String>,
    now: Timestamp,
) -> Counts {
    let old = owner.counts();
    let labels = owner.template().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let template = labels.map_or_else(Selector::everything, |labels| {
        Selector::from_set(labels.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    });
    let counting = |matches: &dyn Fn(&Pod) -> bool| count(active.iter().filter(|pod| matches(pod)).count());
    Counts {
        replicas: count(active.len()),
        fully_labeled: counting(&|pod| template.matches(&pod.metadata.labels)),
        ready: counting(&pods::is_ready),
        available: counting(&|pod| pods::is_available(pod, owner.min_ready_seconds(), now)),
        terminating: terminating.map(count),
        observed_generation: owner.metadata().generation.unwrap_or(0),
        conditions: conditions(old.conditions, failure, active.len(), owner.replicas(), now),
    }
}

/// Sets or removes `ReplicaFailure`; conditions of others stay.
fn conditions(
    mut conditions: Vec<Condition>,
    failure: Option<String>,
    active: usize,
    replicas: i32,
    now: Timestamp,
) -> Vec<Condition> {
    let present = conditions.iter().any(|condition| condition.condition_type == REPLICA_FAILURE);
    match failure {
        Some(message) if !present => {
            let reason = if count(active) < replicas { "FailedCreate" } else { "FailedDelete" };
            conditions.push(Condition {
                condition_type: REPLICA_FAILURE.to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(Time(whole_seconds(now))),
                reason: Some(reason.to_owned()),
                message: Some(message),
            });
        }
        None => conditions.retain(|condition| condition.condition_type != REPLICA_FAILURE),
        Some(_) => {}
    }
    conditions
}
