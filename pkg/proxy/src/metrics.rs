//! kube-proxy's metric names, for the dashboards that know them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) sync_duration_seconds: Histogram,
    pub(crate) sync_failures: Counter,
    pub(crate) full_syncs: Counter,
    pub(crate) services: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            // 1 ms to 16 s, as upstream.
            sync_duration_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            sync_failures: Counter::default(),
            full_syncs: Counter::default(),
            services: Gauge::default(),
        }
    }
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        let duration = self.sync_duration_seconds.clone();
        registry.register("kubeproxy_sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", duration);
        let failures = self.sync_failures.clone();
        registry.register(
            "kubeproxy_sync_proxy_rules_nftables_sync_failures",
            "Cumulative proxy nftables sync failures",
            failures,
        );
        let full = self.full_syncs.clone();
        registry.register("rkube_proxy_full_syncs", "Times that the whole table was written", full);
        registry.register("rkube_proxy_services", "Services that are served by this node", self.services.clone());
    }
}
