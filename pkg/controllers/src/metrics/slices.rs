//! What the two controllers that write EndpointSlices count.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::metrics::{Declarations, Gauges, Histograms, histograms};

use super::{labels, milliseconds};
use crate::common::slices::Changes;

/// Of one of the two.
pub(crate) struct SliceMetrics {
    added: Histogram,
    updated: Histogram,
    removed: Histogram,
    skipped: Histogram,
    duration: Histogram,
    desired: Gauge,
    slices: Gauge,
    desired_slices: Gauge,
    /// These two have no `_total` upstream, which a counter would get.
    changes: Gauges<1>,
    syncs: Gauges<1>,
    changed_per_sync: Histograms<2>,
    distributions: Gauges<1>,
    services: Mutex<HashMap<ObjectKey, Share>>,
}

/// What one Service has in the sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Share {
    endpoints: i64,
    slices: i64,
    desired_slices: i64,
    distribution: Option<String>,
}

/// 2 and its powers.
fn counts() -> Histogram {
    Histogram::new(exponential_buckets(2.0, 2.0, 15))
}

fn changed() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
}

impl Default for SliceMetrics {
    fn default() -> Self {
        Self {
            added: counts(),
            updated: counts(),
            removed: counts(),
            skipped: counts(),
            duration: milliseconds(),
            desired: Gauge::default(),
            slices: Gauge::default(),
            desired_slices: Gauge::default(),
            changes: Gauges::default(),
            syncs: Gauges::default(),
            changed_per_sync: histograms(changed),
            distributions: Gauges::default(),
            services: Mutex::default(),
        }
    }
}

/// A Service's slices before and what is to change, counted before that is done.
pub(crate) struct Outlook {
    added: usize,
    updated: usize,
    removed: usize,
    create: usize,
    update: usize,
    delete: usize,
    share: Share,
}

impl Outlook {
    pub(crate) fn new(existing: &[Arc<EndpointSlice>], changes: &Changes, per_slice: usize) -> Self {
        let is_changed = |slice: &&Arc<EndpointSlice>| {
            let mut changed = changes.update.iter().chain(changes.delete.iter().map(|slice| &**slice));
            changed.any(|other| other.metadata.name == slice.metadata.name)
        };
        let before: BTreeSet<&str> = addresses(existing.iter().filter(is_changed).map(|slice| &**slice));
        let after: BTreeSet<&str> = addresses(changes.create.iter().chain(&changes.update));
        let kept = existing.iter().filter(|slice| !is_changed(slice));
        let slices = kept.clone().count() + changes.create.len() + changes.update.len();
        let sizes = kept.map(|slice| &**slice).chain(&changes.create).chain(&changes.update);
        let endpoints: usize = sizes.map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len)).sum();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        Self {
            added: after.difference(&before).count(),
            updated: after.intersection(&before).count(),
            removed: before.difference(&after).count(),
            create: changes.create.len(),
            update: changes.update.len(),
            delete: changes.delete.len(),
            share: Share {
                endpoints: number(endpoints),
                slices: number(slices),
                desired_slices: number(endpoints.div_ceil(per_slice.max(1)).max(usize::from(slices > 0))),
                distribution: None,
            },
        }
    }

    /// The Service asks for its traffic to be distributed in some way.
    pub(crate) fn distributed(mut self, how: Option<&str>) -> Self {
        self.share.distribution = how.map(str::to_owned);
        self
    }
}

fn addresses<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> BTreeSet<&'a str> {
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints.filter_map(|endpoint| endpoint.addresses.first()).map(String::as_str).collect()
}

impl SliceMetrics {
    /// The changes were written.
    pub(crate) fn written(&self, key: &ObjectKey, outlook: Outlook, topology: &str) {
        self.added.observe(outlook.added as f64);
        self.updated.observe(outlook.updated as f64);
        self.removed.observe(outlook.removed as f64);
        for (operation, count) in [("create", outlook.create), ("update", outlook.update), ("delete", outlook.delete)] {
            if count > 0 {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.changes.get_or_create(&labels(["operation"], [operation])).inc_by(count);
            }
        }
        let distribution = outlook.share.distribution.clone().unwrap_or_default();
        let changed = outlook.create + outlook.update + outlook.delete;
        let labels = labels(["topology", "traffic_distribution"], [topology, &distribution]);
        self.changed_per_sync.get_or_create(&labels).observe(changed as f64);
        self.set(key, Some(outlook.share));
    }

    /// The Service is gone.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.set(key, None);
    }

    fn set(&self, key: &ObjectKey, share: Option<Share>) {
        let mut services = self.services.lock();
        let before = services.remove(key).unwrap_or_default();
        let after = share.clone().unwrap_or_default();
        services.extend(share.map(|share| (key.clone(), share)));
        self.desired.inc_by(after.endpoints - before.endpoints);
        self.slices.inc_by(after.slices - before.slices);
        self.desired_slices.inc_by(after.desired_slices - before.desired_slices);
        for (distribution, change) in [(before.distribution, -1), (after.distribution, 1)] {
            if let Some(distribution) = distribution {
                self.distributions.get_or_create(&labels(["traffic_distribution"], [&distribution])).inc_by(change);
            }
        }
    }

    /// A sync ended: `success`, `stale` or `error`.
    pub(crate) fn synced(&self, result: &str) {
        self.syncs.get_or_create(&labels(["result"], [result])).inc();
    }

    pub(crate) fn took(&self, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
    }

    pub(crate) fn skipped(&self, addresses: usize) {
        self.skipped.observe(addresses as f64);
    }

    pub(super) fn register(&self, declare: &mut Declarations<'_>) {
        declare
            .beta("endpoints_added_per_sync", "Number of endpoints added on each Service sync", &self.added)
            .beta("endpoints_removed_per_sync", "Number of endpoints removed on each Service sync", &self.removed)
            .beta("endpoints_desired", "Number of endpoints desired", &self.desired)
            .beta("num_endpoint_slices", "Number of EndpointSlices", &self.slices)
            .beta(
                "desired_endpoint_slices",
                "Number of EndpointSlices that would exist with perfect endpoint allocation",
                &self.desired_slices,
            )
            .alpha("changes", "Number of EndpointSlice changes", &self.changes)
            .alpha(
                "endpointslices_changed_per_sync",
                "Number of EndpointSlices changed on each Service sync",
                &self.changed_per_sync,
            )
            .alpha("syncs", "Number of EndpointSlice syncs", &self.syncs)
            .beta(
                "services_count_by_traffic_distribution",
                "Number of Services using some specific trafficDistribution",
                &self.distributions,
            );
    }

    pub(super) fn register_mirroring(&self, declare: &mut Declarations<'_>) {
        declare
            .alpha("endpoints_added_per_sync", "Number of endpoints added on each Endpoints sync", &self.added)
            .alpha("endpoints_updated_per_sync", "Number of endpoints updated on each Endpoints sync", &self.updated)
            .alpha("endpoints_removed_per_sync", "Number of endpoints removed on each Endpoints sync", &self.removed)
            .alpha(
                "addresses_skipped_per_sync",
                "Number of addresses skipped on each Endpoints sync due to being invalid or exceeding MaxEndpointsPerSubset",
                &self.skipped,
            )
            .alpha("endpoints_sync_duration", "Duration of syncEndpoints() in seconds", &self.duration)
            .alpha("endpoints_desired", "Number of endpoints desired", &self.desired)
            .alpha("num_endpoint_slices", "Number of EndpointSlices", &self.slices)
            .alpha(
                "desired_endpoint_slices",
                "Number of EndpointSlices that would exist with perfect endpoint allocation",
                &self.desired_slices,
            )
            .alpha("changes", "Number of EndpointSlice changes", &self.changes);
    }
}
