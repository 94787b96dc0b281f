//! What the registry counts, under upstream's names.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry as Metrics;
use rkube_api::resource::{Resource, StoredAs};
use rkube_apimachinery::clock::SharedClock;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StorageLabels {
    operation: &'static str,
    group: String,
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    group: String,
    resource: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    group: String,
    version: String,
    kind: String,
}

/// The registry's metrics. Clones share their values.
#[derive(Clone)]
pub(crate) struct RegistryMetrics {
    storage_duration: Family<StorageLabels, Histogram, fn() -> Histogram>,
    objects: Family<ResourceLabels, Gauge<i64, AtomicI64>>,
    bytes: Family<ResourceLabels, Gauge<i64, AtomicI64>>,
    watchers: Family<KindLabels, Gauge<i64, AtomicI64>>,
    watches_started: Family<ResourceLabels, Counter>,
}

/// Upstream's buckets for etcd requests, in seconds.
const BUCKETS: [f64; 22] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0,
];

impl Default for RegistryMetrics {
    fn default() -> Self {
        Self {
            storage_duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            objects: Family::default(),
            bytes: Family::default(),
            watchers: Family::default(),
            watches_started: Family::default(),
        }
    }
}

impl RegistryMetrics {
    pub(crate) fn register(&self, metrics: &mut Metrics) {
        let duration = self.storage_duration.clone();
        metrics.register(
            "etcd_request_duration_seconds",
            "Datastore request latency per operation and resource",
            duration,
        );
        metrics.register("apiserver_storage_objects", "Stored objects per resource", self.objects.clone());
        metrics.register("apiserver_resource_size_estimate_bytes", "Bytes of objects per resource", self.bytes.clone());
        metrics.register("apiserver_registered_watchers", "Open watches per kind", self.watchers.clone());
        metrics.register(
            "apiserver_watch_cache_watches_started",
            "Watches begun per resource",
            self.watches_started.clone(),
        );
    }

    /// Brings the gauges up to date: called when metrics are read.
    pub(crate) fn update<'a>(&self, stores: impl Iterator<Item = &'a crate::store::Store>) {
        for store in stores {
            let core = store.core();
            let labels = resource_labels(store.resource());
            self.objects.get_or_create(&labels).set(gauge(core.cache.len()));
            self.bytes.get_or_create(&labels).set(gauge(core.cache.bytes()));
            let kind = KindLabels {
                group: core.stored.group.to_string(),
                version: core.stored.version.to_string(),
                kind: core.stored.kind.to_string(),
            };
            self.watchers.get_or_create(&kind).set(gauge(core.cache.watchers()));
        }
    }

    pub(crate) fn storage_timer(&self, clock: &SharedClock) -> StorageTimer {
        StorageTimer { metrics: self.clone(), clock: clock.clone(), begin: clock.monotonic() }
    }

    pub(crate) fn watch_started(&self, row: &Resource) {
        self.watches_started.get_or_create(&resource_labels(row)).inc();
    }
}

fn resource_labels(row: &Resource) -> ResourceLabels {
    ResourceLabels { group: row.group.to_string(), resource: row.plural.to_string() }
}

fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Measures one request to storage.
pub(crate) struct StorageTimer {
    metrics: RegistryMetrics,
    clock: SharedClock,
    begin: Duration,
}

impl StorageTimer {
    pub(crate) fn observe(self, operation: &'static str, stored: &StoredAs) {
        let labels = StorageLabels {
            operation,
            group: stored.group.to_string(),
            resource: stored.prefix.rsplit('/').next().unwrap_or_default().to_owned(),
        };
        let elapsed = self.clock.monotonic().saturating_sub(self.begin);
        self.metrics.storage_duration.get_or_create(&labels).observe(elapsed.as_secs_f64());
    }
}
