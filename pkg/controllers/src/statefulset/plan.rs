//! The next steps of a StatefulSet, from its pods and revisions.
//!
//! Behaves as pkg/controller/statefulset/stateful_set_control.go, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use rkube_api::k8s::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use rkube_api::k8s::core::v1::{Pod, PodTemplateSpec};
use rkube_apimachinery::int_or_string::Rounding;

use super::pods::{
    identity_matches, in_range, new_pod, ordinal, replicas, revision_of, start_ordinal, storage_matches,
};
use crate::common::history::name_of;
use crate::common::numbers::{count, nonzero, scaled};
use crate::common::pods;

/// One thing to do.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// With its claims.
    Create(Box<Pod>),
    /// Of a pod that exists and is pending.
    EnsureClaims(Arc<Pod>),
    /// Identity, volumes and owners of claims.
    Fix(Arc<Pod>),
    /// Owners of the claims of a pod that is scaled away.
    FixClaims(Arc<Pod>),
    Delete(Arc<Pod>),
}

/// Both revisions with their templates.
pub(super) struct Revisions {
    pub(super) current: Arc<ControllerRevision>,
    pub(super) current_template: PodTemplateSpec,
    pub(super) update: Arc<ControllerRevision>,
    pub(super) update_template: PodTemplateSpec,
}

/// What is known of claims without looking at them here.
pub(super) trait Claims {
    /// Owners are as the retention policy says.
    fn match_policy(&self, pod: &Pod) -> bool;
    /// A claim of this name is about to be collected with an earlier pod.
    fn are_stale(&self, pod: &Pod) -> bool;
}

fn min_ready_seconds(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
}

pub(super) fn is_ordered(set: &StatefulSet) -> bool {
    set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref()) != Some("Parallel")
}

fn strategy(set: &StatefulSet) -> &str {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()).unwrap_or("RollingUpdate")
}

fn partition(set: &StatefulSet) -> Option<i32> {
    let strategy = set.spec.as_ref()?.update_strategy.as_ref()?;
    Some(strategy.rolling_update.as_ref()?.partition.unwrap_or(0))
}

fn max_unavailable(set: &StatefulSet) -> i32 {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    let wanted = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.max_unavailable.as_ref());
    wanted.map_or(1, |wanted| scaled(Some(wanted), replicas(set), Rounding::Down)).max(1)
}

/// How many of the pods are not available, and how many may be during an update.
pub(super) fn disruption(set: &StatefulSet, members: &[Arc<Pod>], now: Timestamp) -> (i32, i32) {
    let available = |pod: &Pod| pods::is_available(pod, min_ready_seconds(set), now) && !pods::is_terminating(pod);
    (count(members.iter().filter(|pod| !available(pod)).count()), max_unavailable(set))
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

/// The template that a pod which does not exist is made from: below the partition the current one.
fn new_versioned(set: &StatefulSet, revisions: &Revisions, ordinal: i32) -> Pod {
    let current_replicas = set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0);
    let offset = match partition(set) {
        Some(partition) => partition,
        None if strategy(set) == "RollingUpdate" => current_replicas,
        None => 0,
    };
    if ordinal < start_ordinal(set).saturating_add(offset) {
        new_pod(set, &revisions.current_template, name_of(&revisions.current), ordinal)
    } else {
        new_pod(set, &revisions.update_template, name_of(&revisions.update), ordinal)
    }
}

/// The steps to take now, in order. With ordered management there is at most one that changes a pod's existence.
pub(super) fn plan(
    set: &StatefulSet,
    members: &[Arc<Pod>],
    revisions: &Revisions,
    claims: &dyn Claims,
    now: Timestamp,
) -> Vec<Step> {
    let mut by_ordinal: BTreeMap<i32, &Arc<Pod>> = BTreeMap::new();
    let mut condemned: BTreeMap<i32, &Arc<Pod>> = BTreeMap::new();
    for pod in members {
        match ordinal(pod) {
            Some(ordinal) if in_range(set, ordinal) => drop(by_ordinal.insert(ordinal, pod)),
            Some(ordinal) => drop(condemned.insert(ordinal, pod)),
            None => {}
        }
    }
    let mut steps = Vec::new();
    let ordered = is_ordered(set);
    let available = |pod: &Pod| pods::is_available(pod, min_ready_seconds(set), now);
    let start = start_ordinal(set);

    for number in start..start.saturating_add(replicas(set)) {
        let pod = by_ordinal.get(&number).copied();
        if replica_steps(set, pod, number, revisions, claims, &available, &mut steps) && ordered {
            return steps;
        }
    }

    // From the highest number down. The first that is not available may go although it is not ready.
    let unavailable = |pod: &Pod| !available(pod) || pods::is_terminating(pod);
    let first_unavailable = by_ordinal.values().chain(condemned.values()).find(|pod| unavailable(pod));
    for pod in condemned.values().rev().filter(|pod| !claims.match_policy(pod)) {
        steps.push(Step::FixClaims(Arc::clone(pod)));
    }
    for pod in condemned.values().rev() {
        if pods::is_terminating(pod) {
            if ordered {
                return steps;
            }
            continue;
        }
        let is_first = first_unavailable.is_some_and(|first| Arc::ptr_eq(first, pod));
        if ordered && !is_first && (!is_running_and_ready(pod) || !available(pod)) {
            return steps;
        }
        steps.push(Step::Delete(Arc::clone(pod)));
        if ordered {
            return steps;
        }
    }

    if strategy(set) == "OnDelete" {
        return steps;
    }
    update_steps(set, &by_ordinal, revisions, &unavailable, &mut steps);
    steps
}

/// The steps for one replica; whether ordered management has to wait for it.
fn replica_steps(
    set: &StatefulSet,
    pod: Option<&Arc<Pod>>,
    number: i32,
    revisions: &Revisions,
    claims: &dyn Claims,
    available: &dyn Fn(&Pod) -> bool,
    steps: &mut Vec<Step>,
) -> bool {
    let Some(pod) = pod else {
        let new = new_versioned(set, revisions, number);
        if !claims.are_stale(&new) {
            steps.push(Step::Create(Box::new(new)));
        }
        return true;
    };
    if pods::is_terminal(pod) {
        if !pods::is_terminating(pod) {
            steps.push(Step::Delete(Arc::clone(pod)));
        }
        return true;
    }
    if pods::phase(pod) == "Pending" {
        steps.push(Step::EnsureClaims(Arc::clone(pod)));
    }
    let waits = pods::is_terminating(pod) || !is_running_and_ready(pod) || !available(pod);
    if waits && is_ordered(set) {
        return true;
    }
    if !(identity_matches(set, pod) && storage_matches(set, pod) && claims.match_policy(pod)) {
        steps.push(Step::Fix(Arc::clone(pod)));
    }
    false
}

/// Deletes outdated pods from the highest number down, as many as may be unavailable.
fn update_steps(
    set: &StatefulSet,
    by_ordinal: &BTreeMap<i32, &Arc<Pod>>,
    revisions: &Revisions,
    unavailable: &dyn Fn(&Pod) -> bool,
    steps: &mut Vec<Step>,
) {
    let missing = replicas(set) - count(by_ordinal.len());
    let down = missing + count(by_ordinal.values().filter(|pod| unavailable(pod)).count());
    let mut room = max_unavailable(set) - down;
    let lowest = start_ordinal(set).saturating_add(partition(set).unwrap_or(0));
    for (_, pod) in by_ordinal.range(lowest..).rev() {
        if room <= 0 {
            return;
        }
        if revision_of(pod) != name_of(&revisions.update) && !pods::is_terminating(pod) {
            steps.push(Step::Delete(Arc::clone(pod)));
            room -= 1;
        }
    }
}

/// The status, from the pods as they are.
pub(super) fn status(
    set: &StatefulSet,
    members: &[Arc<Pod>],
    revisions: &Revisions,
    collisions: i32,
    now: Timestamp,
) -> StatefulSetStatus {
    let counting = |matches: &dyn Fn(&Pod) -> bool| count(members.iter().filter(|pod| matches(pod)).count());
    let created = |pod: &Pod| !pods::phase(pod).is_empty();
    let of = |pod: &Pod, revision: &ControllerRevision| {
        created(pod) && !pods::is_terminating(pod) && revision_of(pod) == name_of(revision)
    };
    let available = |pod: &Pod| is_running_and_ready(pod) && pods::is_available(pod, min_ready_seconds(set), now);
    let (total, ready) = (counting(&created), counting(&is_running_and_ready));
    let updated = counting(&|pod| of(pod, &revisions.update));
    let mut current = counting(&|pod| of(pod, &revisions.current));
    let mut current_revision = name_of(&revisions.current).to_owned();
    let done = [total, ready, updated].iter().all(|number| *number == replicas(set));
    if strategy(set) == "RollingUpdate" && done {
        current = updated;
        name_of(&revisions.update).clone_into(&mut current_revision);
    }
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: total,
        ready_replicas: nonzero(ready),
        available_replicas: Some(counting(&available)),
        current_replicas: nonzero(current),
        updated_replicas: nonzero(updated),
        current_revision: Some(current_revision),
        update_revision: Some(name_of(&revisions.update).to_owned()),
        collision_count: Some(collisions),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}

/// When to look again although nothing changes.
pub(super) fn next_check(set: &StatefulSet, members: &[Arc<Pod>], now: Timestamp) -> Option<std::time::Duration> {
    pods::next_availability_check(members, min_ready_seconds(set), now)
}
