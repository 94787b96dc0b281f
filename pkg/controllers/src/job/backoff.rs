//! How long to wait before a failed pod is replaced: 10 s, doubled with every failure since the last success.
//!
//! Behaves as pkg/controller/job/backoff_utils.go, v1.36.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rkube_api::k8s::core::v1::{ContainerStatus, Pod};

use super::pods::index_failures;
use crate::common::pods;

const BASE: Duration = Duration::from_secs(10);
const MAX: Duration = Duration::from_secs(600);

/// One instant on both clocks.
///
/// // Differs from upstream: pods tell wall time, and where that is set back a job does not wait until it has caught up;
/// the other clock goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) wall: Timestamp,
    pub(super) monotonic: Duration,
}

impl Moment {
    /// How long ago something was that ended at `wall` and was seen at `seen`.
    fn since(self, wall: Timestamp, seen: Duration) -> Duration {
        let by_wall = Duration::try_from(self.wall.duration_since(wall)).unwrap_or(Duration::ZERO);
        by_wall.max(self.monotonic.saturating_sub(seen))
    }
}

/// The failures of a job since its last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    failures: u32,
    /// When the last one was, and when it was seen.
    last: Option<(Timestamp, Duration)>,
}

impl Backoff {
    /// The record when these pods have ended, too, which is seen now.
    pub(super) fn after(self, succeeded: &[Arc<Pod>], failed: &[Arc<Pod>], now: Moment) -> Self {
        let last_success = succeeded.iter().map(|pod| finished_at(pod)).max();
        let is_later = |time: &Timestamp| last_success.is_none_or(|last| *time > last);
        let failures: Vec<_> = failed.iter().map(|pod| finished_at(pod)).filter(is_later).collect();
        let before = if last_success.is_some() { Self::default() } else { self };
        let last = failures.iter().max().map(|time| (*time, now.monotonic));
        let count = u32::try_from(failures.len()).unwrap_or(u32::MAX);
        Self { failures: before.failures.saturating_add(count), last: last.or(before.last) }
    }

    pub(super) fn remaining(self, now: Moment) -> Duration {
        self.last.map_or(Duration::ZERO, |(wall, seen)| delay(self.failures).saturating_sub(now.since(wall, seen)))
    }
}

/// How long an index waits whose last pod is `failed`, which was first seen failed at `seen`.
pub(super) fn remaining_for_index(failed: &Pod, seen: Duration, now: Moment) -> Duration {
    let (counted, ignored) = index_failures(failed);
    let failures = counted.saturating_add(ignored).saturating_add(1);
    delay(failures.unsigned_abs()).saturating_sub(now.since(finished_at(failed), seen))
}

fn delay(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => BASE.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(MAX),
    }
}

/// When a pod ended: by its containers, by its readiness, by its deletion, or else when it began.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let by_readiness = || {
        let ready = pods::condition(pod, "Ready").filter(|condition| condition.status == "False")?;
        Some(ready.last_transition_time.as_ref()?.0)
    };
    let by_deletion = || {
        let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
        pod.metadata.deletion_timestamp.as_ref()?.0.checked_sub(grace).ok()
    };
    let created = || pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    by_containers(pod).or_else(by_readiness).or_else(by_deletion).or_else(created).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The latest end of its containers, if all have ended. Sidecars end last and count; init containers do not.
fn by_containers(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars: Vec<&str> = init
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .map(|container| container.name.as_str())
        .collect();
    let is_sidecar = |container: &&ContainerStatus| sidecars.contains(&container.name.as_str());
    let regular = status.container_statuses.iter().flatten();
    let all = regular.chain(status.init_container_statuses.iter().flatten().filter(is_sidecar));
    let ends = all.map(|container| Some(container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0));
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}
