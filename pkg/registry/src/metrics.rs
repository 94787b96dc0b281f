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

use crate::store::Store;

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

type Gauges<L> = Family<L, Gauge<i64, AtomicI64>>;
type Counters = Family<ResourceLabels, Counter>;

/// The registry's metrics. Clones share their values.
#[derive(Clone)]
pub(crate) struct RegistryMetrics {
    storage_duration: Family<StorageLabels, Histogram, fn() -> Histogram>,
    storage_requests: Family<StorageLabels, Counter>,
    storage_size: Gauge<i64, AtomicI64>,
    objects: Gauges<ResourceLabels>,
    bytes: Gauges<ResourceLabels>,
    watchers: Gauges<KindLabels>,
    capacity: Gauges<ResourceLabels>,
    revision: Gauges<ResourceLabels>,
    received: Counters,
    dispatched: Counters,
    terminated: Counters,
    lists: Counters,
    listed: Counters,
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
            storage_requests: Family::default(),
            storage_size: Gauge::default(),
            objects: Family::default(),
            bytes: Family::default(),
            watchers: Family::default(),
            capacity: Family::default(),
            revision: Family::default(),
            received: Family::default(),
            dispatched: Family::default(),
            terminated: Family::default(),
            lists: Family::default(),
            listed: Family::default(),
        }
    }
}

impl RegistryMetrics {
    /// Counters get their `_total` from the encoding.
    pub(crate) fn register(&self, to: &mut Metrics) {
        to.register("etcd_request_duration_seconds", "Datastore request latency", self.storage_duration.clone());
        to.register("etcd_requests", "Datastore requests", self.storage_requests.clone());
        to.register("apiserver_storage_size_bytes", "Size of the datastore on disk", self.storage_size.clone());
        to.register("apiserver_storage_objects", "Stored objects per resource", self.objects.clone());
        to.register("apiserver_resource_size_estimate_bytes", "Bytes of objects per resource", self.bytes.clone());
        to.register("apiserver_registered_watchers", "Open watches per kind", self.watchers.clone());
        to.register("watch_cache_capacity", "Events kept for watches to resume", self.capacity.clone());
        to.register("apiserver_watch_cache_resource_version", "Newest change per resource", self.revision.clone());
        to.register("apiserver_watch_cache_events_received", "Changes from the datastore", self.received.clone());
        to.register("apiserver_watch_cache_events_dispatched", "Events given to watchers", self.dispatched.clone());
        to.register("apiserver_terminated_watchers", "Watches closed as too slow", self.terminated.clone());
        to.register("apiserver_cache_list", "Lists answered from the cache", self.lists.clone());
        to.register("apiserver_cache_list_returned_objects", "Objects in those lists", self.listed.clone());
    }

    /// Brings the values up to date: called when metrics are read.
    pub(crate) fn update<'a>(&self, stores: impl Iterator<Item = &'a Store>) {
        for store in stores {
            let core = store.core();
            let counts = core.cache.counts();
            let labels = resource_labels(store.resource());
            self.objects.get_or_create(&labels).set(gauge(counts.objects));
            self.bytes.get_or_create(&labels).set(gauge(counts.bytes));
            self.capacity.get_or_create(&labels).set(gauge(counts.history));
            self.revision.get_or_create(&labels).set(i64::try_from(counts.revision).unwrap_or(i64::MAX));
            raise(&self.received, &labels, counts.received);
            raise(&self.dispatched, &labels, counts.dispatched);
            raise(&self.terminated, &labels, counts.terminated);
            let kind = KindLabels {
                group: core.stored.group.to_string(),
                version: core.stored.version.to_string(),
                kind: core.stored.kind.to_string(),
            };
            self.watchers.get_or_create(&kind).set(gauge(counts.watchers));
        }
    }

    pub(crate) fn set_storage_size(&self, bytes: u64) {
        self.storage_size.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(crate) fn listed(&self, row: &Resource, objects: usize) {
        let labels = resource_labels(row);
        self.lists.get_or_create(&labels).inc();
        self.listed.get_or_create(&labels).inc_by(objects as u64);
    }

    pub(crate) fn storage_timer(&self, clock: &SharedClock) -> StorageTimer {
        StorageTimer { metrics: self.clone(), clock: clock.clone(), begin: clock.monotonic() }
    }
}

/// A counter that somebody else counts. A cache that was replaced counts from zero again.
fn raise(counters: &Counters, labels: &ResourceLabels, to: u64) {
    let counter = counters.get_or_create(labels);
    counter.inc_by(to.saturating_sub(counter.get()));
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
        self.metrics.storage_requests.get_or_create(&labels).inc();
        self.metrics.storage_duration.get_or_create(&labels).observe(elapsed.as_secs_f64());
    }
}
