//! Metrics of the client machinery, under upstream's names.
//!
//! Behaves as `k8s.io/component-base/metrics/prometheus/workqueue`, v1.36.

use std::sync::LazyLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The queue's name; there is one queue per controller, so cardinality is bounded by code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueName {
    name: &'static str,
}

type HistogramFamily = Family<QueueName, Histogram, fn() -> Histogram>;

/// All work queues of the process.
pub(crate) struct WorkQueueMetrics {
    depth: Family<QueueName, Gauge>,
    adds: Family<QueueName, Counter>,
    retries: Family<QueueName, Counter>,
    queue_duration: HistogramFamily,
    work_duration: HistogramFamily,
}

/// One queue's.
pub(crate) struct QueueMetrics {
    pub(crate) depth: Gauge,
    pub(crate) adds: Counter,
    pub(crate) retries: Counter,
    pub(crate) queue_duration: Histogram,
    pub(crate) work_duration: Histogram,
}

/// 10 ns to 10 s in powers of ten.
fn duration_histogram() -> Histogram {
    Histogram::new(exponential_buckets(1e-8, 10.0, 10))
}

pub(crate) fn workqueue() -> &'static WorkQueueMetrics {
    static METRICS: LazyLock<WorkQueueMetrics> = LazyLock::new(|| WorkQueueMetrics {
        depth: Family::default(),
        adds: Family::default(),
        retries: Family::default(),
        queue_duration: Family::new_with_constructor(duration_histogram),
        work_duration: Family::new_with_constructor(duration_histogram),
    });
    &METRICS
}

impl WorkQueueMetrics {
    pub(crate) fn queue(&self, name: &'static str) -> QueueMetrics {
        let label = QueueName { name };
        QueueMetrics {
            depth: self.depth.get_or_create(&label).clone(),
            adds: self.adds.get_or_create(&label).clone(),
            retries: self.retries.get_or_create(&label).clone(),
            queue_duration: self.queue_duration.get_or_create(&label).clone(),
            work_duration: self.work_duration.get_or_create(&label).clone(),
        }
    }
}

/// Makes the metrics of this crate visible in `registry`.
pub fn register(registry: &mut Registry) {
    let queues = workqueue();
    registry.register("workqueue_depth", "Current depth of workqueue", queues.depth.clone());
    registry.register("workqueue_adds", "Total number of adds handled by workqueue", queues.adds.clone());
    registry.register("workqueue_retries", "Total number of retries handled by workqueue", queues.retries.clone());
    registry.register(
        "workqueue_queue_duration_seconds",
        "How long in seconds an item stays in workqueue before being requested",
        queues.queue_duration.clone(),
    );
    registry.register(
        "workqueue_work_duration_seconds",
        "How long in seconds processing an item from workqueue takes",
        queues.work_duration.clone(),
    );
}
