//! The status of a Deployment, from its ReplicaSets.
//!
//! Behaves as pkg/controller/deployment/progress.go and `calculateStatus` of sync.go, v1.36.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rkube_api::k8s::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::time::whole_seconds;

use super::plan::{ReplicaSets, actual, available, max_unavailable, replicas_of, size, total};
use crate::common::numbers::{nonempty, nonzero};

pub(super) const AVAILABLE: &str = "Available";
pub(super) const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

pub(super) const NEW_REPLICA_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";

pub(super) fn new_condition(
    condition_type: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> DeploymentCondition {
    let now = Time(whole_seconds(now));
    DeploymentCondition {
        type_: condition_type.to_owned(),
        status: status.to_owned(),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
    }
}

pub(super) fn condition<'a>(status: &'a DeploymentStatus, condition_type: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == condition_type)
}

/// Replaces a condition unless status and reason are what they were; times move only with the status.
pub(super) fn set_condition(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    let conditions = status.conditions.get_or_insert_default();
    if let Some(current) = conditions.iter().find(|current| current.type_ == condition.type_) {
        if current.status == condition.status && current.reason == condition.reason {
            return;
        }
        if current.status == condition.status {
            condition.last_transition_time.clone_from(&current.last_transition_time);
        }
    }
    conditions.retain(|current| current.type_ != condition.type_);
    conditions.push(condition);
}

fn remove_condition(status: &mut DeploymentStatus, condition_type: &str) {
    let conditions = status.conditions.take().unwrap_or_default();
    status.conditions =
        nonempty(conditions.into_iter().filter(|condition| condition.type_ != condition_type).collect());
}

/// Seconds, unless the Deployment may take for ever.
fn progress_deadline(deployment: &Deployment) -> Option<i64> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| seconds.into())
}

pub(super) fn has_progress_deadline(deployment: &Deployment) -> bool {
    progress_deadline(deployment).is_some()
}

fn ready(replica_set: &ReplicaSet) -> i32 {
    replica_set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}

/// `None` if a ReplicaSet does not say. One that was not synced yet has none.
fn terminating(sets: &ReplicaSets) -> Option<i32> {
    let mut sum = 0;
    for replica_set in sets.all() {
        let status = replica_set.status.as_ref();
        match status.and_then(|status| status.terminating_replicas) {
            Some(count) => sum += count,
            None if status.is_none_or(|status| status.observed_generation.unwrap_or(0) == 0) => {}
            None => return None,
        }
    }
    Some(sum)
}

/// Counts and the `Available` condition.
pub(super) fn calculate(deployment: &Deployment, sets: &ReplicaSets, now: Timestamp) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let available_replicas = total(sets.all(), available);
    let unavailable = total(sets.all(), size).saturating_sub(available_replicas).max(0);
    let mut status = DeploymentStatus {
        observed_generation: nonzero(deployment.metadata.generation.unwrap_or(0)),
        replicas: nonzero(total(sets.all(), actual)),
        updated_replicas: nonzero(sets.new.as_deref().map_or(0, actual)),
        ready_replicas: nonzero(total(sets.all(), ready)),
        available_replicas: nonzero(available_replicas),
        unavailable_replicas: nonzero(unavailable),
        terminating_replicas: terminating(sets),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let minimum = replicas_of(deployment) - max_unavailable(deployment);
    let available = if available_replicas >= minimum {
        let text = "Deployment has minimum availability.";
        new_condition(AVAILABLE, "True", "MinimumReplicasAvailable", text, now)
    } else {
        let text = "Deployment does not have minimum availability.";
        new_condition(AVAILABLE, "False", "MinimumReplicasUnavailable", text, now)
    };
    set_condition(&mut status, available);
    status
}

/// As `calculate`, and whether the rollout progresses. `before` is the status as stored.
pub(super) fn calculate_rollout(
    deployment: &Deployment,
    before: &DeploymentStatus,
    sets: &ReplicaSets,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = calculate(deployment, sets, now);
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let subject = sets.new.as_ref().map_or_else(
        || format!("Deployment {name:?}"),
        |new| format!("ReplicaSet {:?}", new.metadata.name.as_deref().unwrap_or_default()),
    );
    if !has_progress_deadline(deployment) {
        remove_condition(&mut status, PROGRESSING);
    }
    let current = condition(&status, PROGRESSING).cloned();
    let done_before = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|current| current.reason.as_deref() == Some(NEW_REPLICA_SET_AVAILABLE));
    if has_progress_deadline(deployment) && !done_before {
        if is_complete(deployment, &status) {
            let text = format!("{subject} has successfully progressed.");
            set_condition(&mut status, new_condition(PROGRESSING, "True", NEW_REPLICA_SET_AVAILABLE, text, now));
        } else if is_progressing(before, &status) {
            let text = format!("{subject} is progressing.");
            let mut progressing = new_condition(PROGRESSING, "True", "ReplicaSetUpdated", text, now);
            if let Some(current) = current {
                if current.status == "True" {
                    progressing.last_transition_time = current.last_transition_time;
                }
                // Removed first, so that the update time moves although status and reason may not.
                remove_condition(&mut status, PROGRESSING);
            }
            set_condition(&mut status, progressing);
        } else if has_timed_out(deployment, &status, now) {
            let text = format!("{subject} has timed out progressing.");
            set_condition(&mut status, new_condition(PROGRESSING, "False", TIMED_OUT, text, now));
        }
    }
    match replica_failure(sets) {
        Some(failure) => set_condition(&mut status, failure),
        None => remove_condition(&mut status, REPLICA_FAILURE),
    }
    status
}

/// Everything is of the new template, and available.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let desired = replicas_of(deployment);
    status.updated_replicas.unwrap_or(0) == desired
        && status.replicas.unwrap_or(0) == desired
        && status.available_replicas.unwrap_or(0) == desired
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let updated = |status: &DeploymentStatus| status.updated_replicas.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - updated(status);
    updated(new) > updated(old)
        || outdated(new) < outdated(old)
        || new.ready_replicas.unwrap_or(0) > old.ready_replicas.unwrap_or(0)
        || new.available_replicas.unwrap_or(0) > old.available_replicas.unwrap_or(0)
}

/// When the progress deadline ends, counted from the last progress.
fn deadline(deployment: &Deployment, status: &DeploymentStatus) -> Option<Timestamp> {
    let seconds = progress_deadline(deployment)?;
    let last = condition(status, PROGRESSING)?.last_update_time.as_ref()?;
    last.0.checked_add(SignedDuration::from_secs(seconds)).ok()
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    match condition(status, PROGRESSING).and_then(|condition| condition.reason.as_deref()) {
        Some(NEW_REPLICA_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => deadline(deployment, status).is_some_and(|deadline| deadline < now),
    }
}

/// When to look again whether a rollout that made no progress is over its deadline.
pub(super) fn next_progress_check(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let reason = condition(status, PROGRESSING)?.reason.as_deref();
    if is_complete(deployment, status) || reason == Some(TIMED_OUT) {
        return None;
    }
    let left = deadline(deployment, status)?.duration_since(now);
    // One second more, because times are stored in whole seconds.
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO) + Duration::from_secs(1))
}

/// The failure of the new ReplicaSet, or of any.
fn replica_failure(sets: &ReplicaSets) -> Option<DeploymentCondition> {
    let mut all = sets.new.iter().chain(&sets.old);
    all.find_map(|replica_set| {
        let conditions = replica_set.status.as_ref()?.conditions.as_ref()?;
        let failure = conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE)?.clone();
        Some(DeploymentCondition {
            type_: failure.type_,
            status: failure.status,
            last_update_time: failure.last_transition_time.clone(),
            last_transition_time: failure.last_transition_time,
            reason: failure.reason,
            message: failure.message,
        })
    })
}
