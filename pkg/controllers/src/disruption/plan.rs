//! The status of a budget, from its pods and the scale of their controllers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rkube_api::k8s::core::v1::Pod;
use rkube_api::k8s::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use rkube_api::meta::pkg::apis::meta::v1::{Condition, Time};
use rkube_api::meta::pkg::util::intstr::IntOrString as ApiIntOrString;
use rkube_apimachinery::int_or_string::{IntOrString, Rounding, ScaleError};
use rkube_apimachinery::time::whole_seconds;

use crate::common::numbers::count;
use crate::common::pods;

/// How long an eviction the API server granted may take to show as a deletion timestamp.
pub(super) const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);
/// How long a pod may carry `DisruptionTarget` without being deleted.
pub(super) const STALE_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);

const ALLOWED: &str = "DisruptionAllowed";
pub(super) const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// What a budget asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) pods: i32,
    pub(super) healthy: i32,
}

/// Whether the budget counts in shares of what its pods' controllers want, and not of the pods that are there.
pub(super) fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.max_unavailable.is_some() || matches!(spec.min_available, Some(ApiIntOrString::String(_)))
    })
}

/// `scale` is the sum over the controllers of the pods, if that is [needed](needs_scale).
pub(super) fn expected(budget: &PodDisruptionBudget, pods: usize, scale: i32) -> Result<Expected, ScaleError> {
    let Some(spec) = budget.spec.as_ref() else { return Ok(Expected::default()) };
    if let Some(unavailable) = &spec.max_unavailable {
        let healthy = scale.saturating_sub(rounded_up(unavailable, scale)?).max(0);
        return Ok(Expected { pods: scale, healthy });
    }
    match &spec.min_available {
        Some(ApiIntOrString::Int(healthy)) => Ok(Expected { pods: count(pods), healthy: *healthy }),
        Some(share) => Ok(Expected { pods: scale, healthy: rounded_up(share, scale)? }),
        None => Ok(Expected::default()),
    }
}

fn rounded_up(value: &ApiIntOrString, total: i32) -> Result<i32, ScaleError> {
    let value = match value {
        ApiIntOrString::Int(number) => return Ok(*number),
        ApiIntOrString::String(text) => IntOrString::String(text.clone()),
    };
    let scaled = value.scaled(total.into(), Rounding::Up)?;
    Ok(i32::try_from(scaled).unwrap_or(i32::MAX))
}

/// The evictions that are still under way.
#[derive(Debug, Default)]
pub(super) struct Disrupted {
    /// Of the budget's pods those that are to be deleted and are not yet, by name.
    pub(super) waiting: BTreeMap<String, Time>,
    /// Those whose time is up: nobody deleted them.
    pub(super) forgotten: Vec<Arc<Pod>>,
    /// When the next one's time is up.
    pub(super) recheck: Option<Duration>,
}

pub(super) fn disrupted(budget: &PodDisruptionBudget, members: &[Arc<Pod>], now: Timestamp) -> Disrupted {
    let mut found = Disrupted::default();
    let Some(known) = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref()) else { return found };
    for pod in members.iter().filter(|pod| !pods::is_terminating(pod)) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(since) = known.get(name) else { continue };
        let left = left(since.0, DELETION_TIMEOUT, now);
        if left.is_zero() {
            found.forgotten.push(Arc::clone(pod));
        } else {
            found.recheck = Some(found.recheck.map_or(left, |known| known.min(left)));
            found.waiting.insert(name.to_owned(), since.clone());
        }
    }
    found
}

fn left(since: Timestamp, limit: SignedDuration, now: Timestamp) -> Duration {
    let end = since.checked_add(limit).unwrap_or(Timestamp::MAX);
    Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO)
}

fn healthy(members: &[Arc<Pod>], waiting: &BTreeMap<String, Time>) -> i32 {
    let is_waiting = |pod: &Pod| pod.metadata.name.as_ref().is_some_and(|name| waiting.contains_key(name));
    let counts = |pod: &&Arc<Pod>| !pods::is_terminating(pod) && !is_waiting(pod) && pods::is_ready(pod);
    count(members.iter().filter(counts).count())
}

/// The status the budget is to have.
pub(super) fn status(
    budget: &PodDisruptionBudget,
    members: &[Arc<Pod>],
    expected: Expected,
    waiting: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let healthy = healthy(members, &waiting);
    // A budget without pods allows nothing, so that the first of them are safe before they are counted.
    let allowed = if expected.pods <= 0 { 0 } else { healthy.saturating_sub(expected.healthy).max(0) };
    let old = budget.status.as_ref();
    let generation = budget.metadata.generation;
    let (status, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let conditions = old.and_then(|old| old.conditions.clone()).unwrap_or_default();
    PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(expected.healthy),
        expected_pods: Some(expected.pods),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(waiting).filter(|waiting| !waiting.is_empty()),
        observed_generation: generation,
        conditions: Some(with_condition(conditions, status, reason, "", generation, now)),
    }
}

/// The status of a budget that could not be counted: nothing may be evicted until it can.
pub(super) fn failed(budget: &PodDisruptionBudget, error: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    // The API wants the counts of a status even where nothing was counted.
    for count in [&mut status.current_healthy, &mut status.desired_healthy, &mut status.expected_pods] {
        count.get_or_insert(0);
    }
    let conditions = status.conditions.take().unwrap_or_default();
    let observed = status.observed_generation;
    status.conditions = Some(with_condition(conditions, "False", "SyncFailed", error, observed, now));
    status
}

/// The conditions with `DisruptionAllowed` as given; its time moves with its status.
fn with_condition(
    mut conditions: Vec<Condition>,
    status: &str,
    reason: &str,
    message: &str,
    observed_generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut wanted = Condition {
        type_: ALLOWED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation,
        last_transition_time: Time(whole_seconds(now)),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == ALLOWED) {
        Some(current) => {
            if current.status == wanted.status {
                wanted.last_transition_time = current.last_transition_time.clone();
            }
            *current = wanted;
        }
        None => conditions.push(wanted),
    }
    conditions
}

/// How long the pod's `DisruptionTarget` may stay although nobody deletes it; `None` if it has none to wait for.
///
/// A kubelet's own may stay: it takes as long as the pod takes to stop.
pub(super) fn stale_in(pod: &Pod, now: Timestamp) -> Option<Duration> {
    if pods::is_terminating(pod) || pods::is_terminal(pod) {
        return None;
    }
    let condition = pods::condition(pod, DISRUPTION_TARGET)?;
    if condition.status != "True" || condition.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    let since = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    Some(left(since, STALE_TIMEOUT, now))
}
