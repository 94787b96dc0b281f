//! Metrics of the client machinery, under upstream's names, and the shapes in which components declare theirs.
//!
//! Behaves as `k8s.io/component-base/metrics/prometheus/workqueue` and `.../metrics/opts.go`, v1.36.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::sync::{LazyLock, Weak};

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

/// A gauge of something that is no whole number.
pub type FloatGauge = Gauge<f64, AtomicU64>;
/// Label values, by the label's name. They come from code or from sets that code bounds.
pub type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
pub type Counters<const N: usize> = Family<Labels<N>, Counter>;
pub type Gauges<const N: usize> = Family<Labels<N>, Gauge>;
pub type FloatGauges<const N: usize> = Family<Labels<N>, FloatGauge>;
pub type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// What upstream promises of a metric, as its help text begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    Alpha,
    Beta,
    Stable,
}

/// Makes a metric visible. Counters are named without `_total`, help texts are written without full stop: both are
/// added when the registry is encoded.
pub fn declare(registry: &mut Registry, name: &str, stability: Stability, help: &str, metric: impl Metric) {
    let stability = match stability {
        Stability::Alpha => "ALPHA",
        Stability::Beta => "BETA",
        Stability::Stable => "STABLE",
    };
    registry.register(name, format!("[{stability}] {help}"), metric);
}

/// As [`declare`] for a component whose metrics share the beginning of their names.
pub struct Declarations<'a> {
    registry: &'a mut Registry,
    subsystem: &'static str,
}

impl<'a> Declarations<'a> {
    pub fn new(registry: &'a mut Registry, subsystem: &'static str) -> Self {
        Self { registry, subsystem }
    }

    pub fn alpha(&mut self, name: &str, help: &str, metric: &(impl Metric + Clone)) -> &mut Self {
        self.add(name, Stability::Alpha, help, metric)
    }

    pub fn beta(&mut self, name: &str, help: &str, metric: &(impl Metric + Clone)) -> &mut Self {
        self.add(name, Stability::Beta, help, metric)
    }

    pub fn stable(&mut self, name: &str, help: &str, metric: &(impl Metric + Clone)) -> &mut Self {
        self.add(name, Stability::Stable, help, metric)
    }

    fn add(&mut self, name: &str, stability: Stability, help: &str, metric: &(impl Metric + Clone)) -> &mut Self {
        declare(self.registry, &format!("{}_{name}", self.subsystem), stability, help, metric.clone());
        self
    }
}

/// What a queue's workers are at.
pub(crate) trait Progress: Send + Sync {
    /// The seconds since the work on each item began: all of them together, and the longest.
    fn unfinished(&self) -> (f64, f64);
}

/// All work queues of the process. There is one queue per controller, so cardinality is bounded by code.
pub(crate) struct WorkQueueMetrics {
    depth: Gauges<1>,
    adds: Counters<1>,
    retries: Counters<1>,
    queue_duration: Histograms<1>,
    work_duration: Histograms<1>,
    /// Asked when somebody scrapes.
    progress: Mutex<Vec<(&'static str, Weak<dyn Progress>)>>,
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
        queue_duration: histograms(duration_histogram),
        work_duration: histograms(duration_histogram),
        progress: Mutex::default(),
    });
    &METRICS
}

fn queue_label(name: &'static str) -> Labels<1> {
    [("name", Cow::Borrowed(name))]
}

impl WorkQueueMetrics {
    pub(crate) fn queue(&self, name: &'static str) -> QueueMetrics {
        let label = queue_label(name);
        QueueMetrics {
            depth: self.depth.get_or_create(&label).clone(),
            adds: self.adds.get_or_create(&label).clone(),
            retries: self.retries.get_or_create(&label).clone(),
            queue_duration: self.queue_duration.get_or_create(&label).clone(),
            work_duration: self.work_duration.get_or_create(&label).clone(),
        }
    }

    /// Asks the queue about its workers for as long as it lives.
    pub(crate) fn watch(&self, name: &'static str, queue: Weak<dyn Progress>) {
        let mut known = self.progress.lock();
        known.retain(|(_, queue)| queue.strong_count() > 0);
        known.push((name, queue));
    }

    fn unfinished(&self) -> BTreeMap<&'static str, (f64, f64)> {
        // Asked without the lock: a queue that ends meanwhile may end here.
        let known: Vec<_> =
            self.progress.lock().iter().filter_map(|(name, queue)| Some((*name, queue.upgrade()?))).collect();
        let mut queues = BTreeMap::new();
        for (name, queue) in known {
            let (sum, longest) = queue.unfinished();
            let entry: &mut (f64, f64) = queues.entry(name).or_default();
            *entry = (entry.0 + sum, entry.1.max(longest));
        }
        queues
    }
}

/// Gauges that a collector computes when somebody scrapes. The help text is written as it is shown.
pub fn encode_gauges<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    values: impl IntoIterator<Item = (Labels<N>, f64)>,
) -> Result<(), std::fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// What is known of work that is not finished.
#[derive(Debug)]
struct Unfinished;

impl Collector for Unfinished {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        const SUM: (&str, &str) = (
            "workqueue_unfinished_work_seconds",
            "[BETA] How many seconds of work has done that is in progress and hasn't been observed by work_duration. Large values indicate stuck threads. One can deduce the number of stuck threads by observing the rate at which this increases.",
        );
        const LONGEST: (&str, &str) = (
            "workqueue_longest_running_processor_seconds",
            "[BETA] How many seconds has the longest running processor for workqueue been running.",
        );
        let queues = workqueue().unfinished();
        encode_gauges(&mut encoder, SUM, queues.iter().map(|(name, (sum, _))| (queue_label(name), *sum)))?;
        encode_gauges(&mut encoder, LONGEST, queues.iter().map(|(name, (_, longest))| (queue_label(name), *longest)))
    }
}

/// A family of histograms with the buckets of `make`.
pub fn histograms<L: Clone + Eq + Hash>(make: fn() -> Histogram) -> Family<L, Histogram, fn() -> Histogram> {
    Family::new_with_constructor(make)
}

/// Makes the metrics of this crate visible in `registry`.
pub fn register(registry: &mut Registry) {
    let queues = workqueue();
    Declarations::new(registry, "workqueue")
        .beta("depth", "Current depth of workqueue", &queues.depth)
        .beta("adds", "Total number of adds handled by workqueue", &queues.adds)
        .beta("retries", "Total number of retries handled by workqueue", &queues.retries)
        .beta(
            "queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested",
            &queues.queue_duration,
        )
        .beta(
            "work_duration_seconds",
            "How long in seconds processing an item from workqueue takes",
            &queues.work_duration,
        );
    registry.register_collector(Box::new(Unfinished));
    crate::request_metrics::register(registry);
}
