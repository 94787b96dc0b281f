//! Ends pods in order when the machine goes down: ordinary ones first, critical ones last, each group within
//! its part of the time there is.
//!
//! Behaves as pkg/kubelet/nodeshutdown, v1.36.
//!
//! Differs from upstream: logind is not asked over D-Bus to hold the shutdown back. The service manager stops
//! rkube with a signal when the machine goes down, and [`MachineStops`] tells that from a restart of rkube,
//! which must not touch pods. The unit's stop timeout has to cover the grace period, and the unit has to be
//! ordered after the container runtime, so that it is stopped before it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::Pod;

use crate::config::KubeletConfig;
use crate::events::Type;
use crate::kubelet::Inner;
use crate::kubelet::workers::Worker;
use crate::pod::PodExt;
use crate::status::Verdict;
use crate::worker::{Input, Phase};

pub(crate) const NOT_ADMITTED_REASON: &str = "NodeShutdown";
pub(crate) const NOT_ADMITTED_MESSAGE: &str = "Pod was rejected as the node is shutting down.";
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Whether the machine is going down, asked when rkube is told to stop.
pub type MachineStops = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// The pods that end together, and the time they have.
#[derive(Debug, PartialEq, Eq)]
pub struct Group<P> {
    pub seconds: i64,
    pub pods: Vec<P>,
}

/// The groups in the order they end. Empty when there is no time to give. Pure.
pub fn groups<P>(config: &KubeletConfig, pods: Vec<P>, priority: impl Fn(&P) -> i32) -> Vec<Group<P>> {
    if config.shutdown_grace_period.is_zero() {
        return vec![];
    }
    let seconds = |period: Duration| i64::try_from(period.as_secs()).unwrap_or(i64::MAX);
    let critical_period = config.shutdown_grace_period_critical.min(config.shutdown_grace_period);
    let (critical, ordinary) = pods.into_iter().partition(|pod| priority(pod) >= SYSTEM_CRITICAL_PRIORITY);
    let ordinary = Group { seconds: seconds(config.shutdown_grace_period - critical_period), pods: ordinary };
    let critical = Group { seconds: seconds(critical_period), pods: critical };
    // Nobody waits for a group without pods.
    [ordinary, critical].into_iter().filter(|group| !group.pods.is_empty()).collect()
}

/// The grace a pod gets out of its group's time.
fn grace(pod: &Pod, group_seconds: i64) -> i64 {
    pod.pod_spec().termination_grace_period_seconds.map_or(group_seconds, |own| own.min(group_seconds))
}

impl Inner {
    /// Ends all pods if the machine goes down and has time for it. Returns when they have ended or their time
    /// is over.
    pub(crate) async fn shut_down(&self, machine_stops: &MachineStops) {
        if self.config.shutdown_grace_period.is_zero() || !machine_stops().await {
            return;
        }
        tracing::info!("Machine is shutting down, ending pods");
        self.events.node(Type::Normal, "NodeShutdown", "Shutdown manager detected shutdown event");
        self.node.set_shutting_down();
        let workers = self.workers.all().into_iter().filter(|worker| worker.phase() != Phase::Finished).collect();
        let of = |worker: &Arc<Worker>| worker.pod().pod_spec().priority.unwrap_or(0);
        for group in groups(&self.config, workers, of) {
            for worker in &group.pods {
                let verdict = Verdict::disruption(REASON, MESSAGE);
                let grace_seconds = Some(grace(&worker.pod(), group.seconds));
                worker.apply(Input::Evicted { verdict, grace_seconds });
            }
            let ended = futures_util::future::join_all(group.pods.iter().map(|worker| worker.finished()));
            let limit = self.clock.sleep(Duration::from_secs(group.seconds.unsigned_abs()));
            tokio::select! {
                _ = ended => {}
                () = limit => tracing::warn!(seconds = group.seconds, "Pods did not end in the time they had"),
            }
        }
        self.statuses.flushed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(total: u64, critical: u64, priorities: &[i32], expected: &[(i64, &[i32])]) {
        let mut config = KubeletConfig::new("n", vec![], "v");
        config.shutdown_grace_period = Duration::from_secs(total);
        config.shutdown_grace_period_critical = Duration::from_secs(critical);
        let groups = groups(&config, priorities.to_vec(), |priority| *priority);
        let found: Vec<(i64, &[i32])> = groups.iter().map(|group| (group.seconds, &*group.pods)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn critical_pods_end_last_in_their_own_time() {
        let node_critical = 2_000_001_000;
        check(30, 10, &[0, node_critical, -5, 2_000_000_000], &[(20, &[0, -5]), (10, &[node_critical, 2_000_000_000])]);
        check(30, 10, &[node_critical], &[(10, &[node_critical])]);
        check(30, 0, &[0], &[(30, &[0])]);
        check(0, 0, &[0], &[]);
    }
}
