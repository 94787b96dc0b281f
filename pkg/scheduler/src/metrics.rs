//! The scheduler's metrics, under upstream's names.
//!
//! Differs from upstream: a decision is one step, whose time is that of the extension point Filter; its plugins have
//! no times of their own. What is not there (waiting on Permit, pod groups, batches) has no metrics.
//! Behaves as pkg/scheduler/metrics/metrics.go, v1.36.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use rkube_client::Delta;
use rkube_client::metrics::{Counters, Declarations, Gauges, Histograms, histograms};

use crate::queue::Depths;

pub(crate) struct Metrics {
    attempts: Counters<2>,
    attempt_duration: Histograms<2>,
    pub(crate) algorithm_duration: Histogram,
    event_duration: Histograms<1>,
    sli_duration: Histograms<1>,
    attempts_per_pod: Histogram,
    pub(crate) after_flush: Counter,
    point_duration: Histograms<3>,
    pending: Gauges<1>,
    incoming: Counters<2>,
    tasks: Gauges<1>,
    cache: Gauges<1>,
    unschedulable: Gauges<2>,
    pub(crate) preemption_victims: Histogram,
    pub(crate) preemption_attempts: Counter,
    preemption_duration: Histograms<1>,
    preemptions: Counters<1>,
}

/// From 1 ms doubling.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// From 0.1 ms doubling.
fn short_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 12))
}

/// From 10 ms doubling.
fn long_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 20))
}

pub(crate) fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
        attempts: Counters::default(),
        attempt_duration: histograms(seconds),
        algorithm_duration: seconds(),
        event_duration: histograms(short_seconds),
        sli_duration: histograms(long_seconds),
        attempts_per_pod: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
        after_flush: Counter::default(),
        point_duration: histograms(short_seconds),
        pending: Gauges::default(),
        incoming: Counters::default(),
        tasks: Gauges::default(),
        cache: Gauges::default(),
        unschedulable: Gauges::default(),
        preemption_victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
        preemption_attempts: Counter::default(),
        preemption_duration: histograms(long_seconds),
        preemptions: Counters::default(),
    });
    &METRICS
}

fn label(name: &'static str, value: &'static str) -> (&'static str, Cow<'static, str>) {
    (name, Cow::Borrowed(value))
}

fn profile_label(profile: &str) -> (&'static str, Cow<'static, str>) {
    // The usual profile costs no allocation.
    let name = match profile {
        crate::config::DEFAULT_SCHEDULER_NAME => Cow::Borrowed(crate::config::DEFAULT_SCHEDULER_NAME),
        other => Cow::Owned(other.to_owned()),
    };
    ("profile", name)
}

/// One more, while it lives.
pub(crate) struct Counted(Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What a change of a resource is called: its resource and what was done.
pub(crate) fn event_name<K>(resource: &str, delta: &Delta<K>) -> &'static str {
    const NAMES: [(&str, [&str; 3]); 10] = [
        ("AssignedPod", ["AssignedPodAdd", "AssignedPodUpdate", "AssignedPodDelete"]),
        ("UnschedulablePod", ["UnschedulablePodAdd", "UnschedulablePodUpdate", "UnschedulablePodDelete"]),
        ("Node", ["NodeAdd", "NodeUpdate", "NodeDelete"]),
        ("Namespace", ["NamespaceAdd", "NamespaceUpdate", "NamespaceDelete"]),
        ("PersistentVolume", ["PersistentVolumeAdd", "PersistentVolumeUpdate", "PersistentVolumeDelete"]),
        (
            "PersistentVolumeClaim",
            ["PersistentVolumeClaimAdd", "PersistentVolumeClaimUpdate", "PersistentVolumeClaimDelete"],
        ),
        (
            "StorageClass",
            [
                "storage.k8s.io/StorageClassAdd",
                "storage.k8s.io/StorageClassUpdate",
                "storage.k8s.io/StorageClassDelete",
            ],
        ),
        ("CSINode", ["storage.k8s.io/CSINodeAdd", "storage.k8s.io/CSINodeUpdate", "storage.k8s.io/CSINodeDelete"]),
        (
            "CSIDriver",
            ["storage.k8s.io/CSIDriverAdd", "storage.k8s.io/CSIDriverUpdate", "storage.k8s.io/CSIDriverDelete"],
        ),
        (
            "CSIStorageCapacity",
            [
                "storage.k8s.io/CSIStorageCapacityAdd",
                "storage.k8s.io/CSIStorageCapacityUpdate",
                "storage.k8s.io/CSIStorageCapacityDelete",
            ],
        ),
    ];
    let names = NAMES.iter().find(|(name, _)| *name == resource).map_or(["Other"; 3], |(_, names)| *names);
    match delta {
        Delta::Added(_) => names[0],
        Delta::Updated { .. } => names[1],
        Delta::Deleted(_) => names[2],
    }
}

impl Metrics {
    pub(crate) fn attempt(&self, profile: &str, result: &'static str, took: Duration) {
        let labels = [label("result", result), profile_label(profile)];
        self.attempts.get_or_create(&labels).inc();
        self.attempt_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(crate) fn bound(&self, attempts: u32, took: Duration) {
        const NAMES: [&str; 16] =
            ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"];
        let name = NAMES.get(attempts as usize).copied().unwrap_or("15+");
        self.sli_duration.get_or_create(&[label("attempts", name)]).observe(took.as_secs_f64());
        self.attempts_per_pod.observe(f64::from(attempts));
    }

    /// All plugins of an extension point have run.
    pub(crate) fn ran(&self, point: &'static str, status: &'static str, profile: &str, took: Duration) {
        let labels = [label("extension_point", point), label("status", status), profile_label(profile)];
        self.point_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Another pod is, or with -1 is not any more, unschedulable because of the plugin.
    pub(crate) fn unschedulable(&self, plugin: &'static str, profile: &str, change: i64) {
        self.unschedulable.get_or_create(&[label("plugin", plugin), profile_label(profile)]).inc_by(change);
    }

    /// A pod came into a queue because of an event.
    pub(crate) fn incoming(&self, queue: &'static str, event: &'static str) {
        self.incoming.get_or_create(&[label("queue", queue), label("event", event)]).inc();
    }

    /// What the API reported has been taken in.
    pub(crate) fn handled(&self, event: &'static str, took: Duration) {
        self.event_duration.get_or_create(&[label("event", event)]).observe(took.as_secs_f64());
    }

    /// Counts a binding for as long as the answer lives.
    pub(crate) fn binding(&self) -> Counted {
        let gauge = self.tasks.get_or_create(&[label("operation", "binding")]).clone();
        gauge.inc();
        Counted(gauge)
    }

    pub(crate) fn preempted(&self, succeeded: bool, took: Duration) {
        let labels = [label("result", if succeeded { "success" } else { "error" })];
        self.preemption_duration.get_or_create(&labels).observe(took.as_secs_f64());
        self.preemptions.get_or_create(&labels).inc();
    }

    pub(crate) fn depths(&self, depths: Depths) {
        let set = |queue, depth: usize| {
            self.pending.get_or_create(&[label("queue", queue)]).set(i64::try_from(depth).unwrap_or(i64::MAX));
        };
        set("active", depths.active);
        set("backoff", depths.backoff);
        set("unschedulable", depths.unschedulable);
        set("gated", depths.gated);
    }

    pub(crate) fn cache(&self, nodes: usize, pods: usize, assumed: usize) {
        let set = |kind, size: usize| {
            self.cache.get_or_create(&[label("type", kind)]).set(i64::try_from(size).unwrap_or(i64::MAX));
        };
        set("nodes", nodes);
        set("pods", pods);
        set("assumed_pods", assumed);
    }
}

/// Makes the metrics of this crate visible in `registry`.
pub fn register(registry: &mut Registry) {
    let metrics = metrics();
    Declarations::new(registry, "scheduler")
        .stable(
            "schedule_attempts",
            "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem",
            &metrics.attempts,
        )
        .alpha("event_handling_duration_seconds", "Event handling latency in seconds", &metrics.event_duration)
        .stable(
            "scheduling_attempt_duration_seconds",
            "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
            &metrics.attempt_duration,
        )
        .alpha(
            "scheduling_algorithm_duration_seconds",
            "Scheduling algorithm latency in seconds",
            &metrics.algorithm_duration,
        )
        .stable("preemption_victims", "Number of selected preemption victims", &metrics.preemption_victims)
        .stable(
            "preemption_attempts",
            "Total preemption attempts in the cluster till now",
            &metrics.preemption_attempts,
        )
        .stable(
            "pending_pods",
            "Number of pending pods, by the queue type. 'active' means number of pods in activeQ; 'backoff' means number of pods in backoffQ; 'unschedulable' means number of pods in unschedulablePods that the scheduler attempted to schedule and failed; 'gated' is the number of unschedulable pods that the scheduler never attempted to schedule because they are gated",
            &metrics.pending,
        )
        .beta(
            "goroutines",
            "Number of running goroutines split by the work they do such as binding",
            &metrics.tasks,
        )
        .beta(
            "pod_scheduling_sli_duration_seconds",
            "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might involve multiple scheduling attempts",
            &metrics.sli_duration,
        )
        .stable(
            "pod_scheduling_attempts",
            "Number of attempts to successfully schedule a pod",
            &metrics.attempts_per_pod,
        )
        .alpha(
            "pod_scheduled_after_flush",
            "Number of pods that were successfully scheduled after being flushed from unschedulablePods due to timeout. This metric helps detect potential queueing hint misconfigurations or event handling issues",
            &metrics.after_flush,
        )
        .stable(
            "framework_extension_point_duration_seconds",
            "Latency for running all plugins of a specific extension point",
            &metrics.point_duration,
        )
        .stable(
            "queue_incoming_pods",
            "Number of pods added to scheduling queues by event and queue type",
            &metrics.incoming,
        )
        .alpha(
            "cache_size",
            "Number of nodes, pods, and assumed (bound) pods in the scheduler cache",
            &metrics.cache,
        )
        .beta(
            "unschedulable_pods",
            "The number of unschedulable pods broken down by plugin name. A pod will increment the gauge for all plugins that caused it to not schedule and so this metric have meaning only when broken down by plugin",
            &metrics.unschedulable,
        )
        .alpha(
            "preemption_goroutines_duration_seconds",
            "Duration in seconds for running goroutines for the preemption",
            &metrics.preemption_duration,
        )
        .alpha(
            "preemption_goroutines_execution",
            "Number of preemption goroutines executed",
            &metrics.preemptions,
        );
}
