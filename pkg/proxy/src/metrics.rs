//! kube-proxy's metric names, for the dashboards that know them.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// An HTTP status.
#[derive(Clone, Debug, EncodeLabelSet, PartialEq, Eq, Hash)]
pub(crate) struct Code {
    code: u16,
}

#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) sync_duration_seconds: Histogram,
    pub(crate) sync_failures: Counter,
    pub(crate) full_syncs: Counter,
    pub(crate) services: Gauge,
    healthz: Family<Code, Counter>,
    livez: Family<Code, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            // 1 ms to 16 s, as upstream.
            sync_duration_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            sync_failures: Counter::default(),
            full_syncs: Counter::default(),
            services: Gauge::default(),
            healthz: Family::default(),
            livez: Family::default(),
        }
    }
}

impl Metrics {
    /// `/healthz` was asked, or `/livez`.
    pub(crate) fn asked(&self, healthz: bool, code: u16) {
        let family = if healthz { &self.healthz } else { &self.livez };
        family.get_or_create(&Code { code }).inc();
    }

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
        let healthz = self.healthz.clone();
        registry.register("kubeproxy_proxy_healthz", "Cumulative proxy healthz HTTP status", healthz);
        let livez = self.livez.clone();
        registry.register("kubeproxy_proxy_livez", "Cumulative proxy livez HTTP status", livez);
        registry.register("rkube_proxy_services", "Services that are served by this node", self.services.clone());
    }
}
