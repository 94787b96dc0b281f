//! The scheduler's metrics, under upstream's names.
//!
//! Behaves as pkg/scheduler/metrics/metrics.go, v1.36.

use std::sync::LazyLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::queue::Depths;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Attempt {
    pub(crate) profile: String,
    pub(crate) result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueName {
    queue: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheItem {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempts {
    attempts: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    plugin: &'static str,
    profile: String,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

pub(crate) struct Metrics {
    pub(crate) attempts: Family<Attempt, Counter>,
    pub(crate) attempt_duration: Histograms<Attempt>,
    pub(crate) algorithm_duration: Histogram,
    sli_duration: Histograms<Attempts>,
    attempts_per_pod: Histogram,
    pending: Family<QueueName, Gauge>,
    cache: Family<CacheItem, Gauge>,
    refusals: Family<Refusal, Counter>,
    pub(crate) preemption_victims: Histogram,
    pub(crate) preemption_attempts: Counter,
}

/// From 1 ms (0.1 ms for the algorithm, which is faster here) doubling.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 20))
}

fn sli_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 20))
}

pub(crate) fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
        attempts: Family::default(),
        attempt_duration: Family::new_with_constructor(seconds),
        algorithm_duration: Histogram::new(exponential_buckets(0.000_005, 2.0, 20)),
        sli_duration: Family::new_with_constructor(sli_seconds),
        attempts_per_pod: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
        pending: Family::default(),
        cache: Family::default(),
        refusals: Family::default(),
        preemption_victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
        preemption_attempts: Counter::default(),
    });
    &METRICS
}

impl Metrics {
    pub(crate) fn attempt(&self, profile: &str, result: &'static str, seconds: f64) {
        let label = Attempt { profile: profile.to_owned(), result };
        self.attempts.get_or_create(&label).inc();
        self.attempt_duration.get_or_create(&label).observe(seconds);
    }

    pub(crate) fn bound(&self, attempts: u32, seconds: f64) {
        const NAMES: [&str; 16] =
            ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"];
        let name = NAMES.get(attempts as usize).copied().unwrap_or("15+");
        self.sli_duration.get_or_create(&Attempts { attempts: name }).observe(seconds);
        self.attempts_per_pod.observe(f64::from(attempts));
    }

    pub(crate) fn refused(&self, plugin: &'static str, profile: &str) {
        self.refusals.get_or_create(&Refusal { plugin, profile: profile.to_owned() }).inc();
    }

    pub(crate) fn depths(&self, depths: Depths) {
        let set = |queue, depth: usize| {
            self.pending.get_or_create(&QueueName { queue }).set(i64::try_from(depth).unwrap_or(i64::MAX));
        };
        set("active", depths.active);
        set("backoff", depths.backoff);
        set("unschedulable", depths.unschedulable);
        set("gated", depths.gated);
    }

    pub(crate) fn cache(&self, nodes: usize, pods: usize, assumed: usize) {
        let set = |r#type, size: usize| {
            self.cache.get_or_create(&CacheItem { r#type }).set(i64::try_from(size).unwrap_or(i64::MAX));
        };
        set("nodes", nodes);
        set("pods", pods);
        set("assumed_pods", assumed);
    }
}

/// Makes the metrics of this crate visible in `registry`.
pub fn register(registry: &mut Registry) {
    let metrics = metrics();
    registry.register(
        "scheduler_schedule_attempts",
        "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem",
        metrics.attempts.clone(),
    );
    registry.register(
        "scheduler_scheduling_attempt_duration_seconds",
        "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
        metrics.attempt_duration.clone(),
    );
    registry.register(
        "scheduler_scheduling_algorithm_duration_seconds",
        "Scheduling algorithm latency in seconds",
        metrics.algorithm_duration.clone(),
    );
    registry.register(
        "scheduler_pod_scheduling_sli_duration_seconds",
        "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue",
        metrics.sli_duration.clone(),
    );
    registry.register(
        "scheduler_pod_scheduling_attempts",
        "Number of attempts to successfully schedule a pod",
        metrics.attempts_per_pod.clone(),
    );
    registry.register("scheduler_pending_pods", "Number of pending pods, by the queue type", metrics.pending.clone());
    registry.register(
        "scheduler_cache_size",
        "Number of nodes, pods, and assumed pods in the cache",
        metrics.cache.clone(),
    );
    registry.register(
        "scheduler_unschedulable_pods",
        "Number of times a plugin refused all nodes it was asked about",
        metrics.refusals.clone(),
    );
    registry.register(
        "scheduler_preemption_victims",
        "Number of selected preemption victims",
        metrics.preemption_victims.clone(),
    );
    registry.register(
        "scheduler_preemption_attempts",
        "Total preemption attempts in the cluster till now",
        metrics.preemption_attempts.clone(),
    );
}
