//! Whether this node's Services are in step, and what is counted: for load balancers, scrapers and people.
//!
//! Outputs  `/healthz` and `/livez` for others (port 10256 on a node); `/healthz`, `/proxyMode` and `/metrics` for the
//!          node itself (port 10249)
//! Behaves as  pkg/proxy/healthcheck/proxy_health.go and the metrics server of cmd/kube-proxy, v1.36

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rkube_api::k8s::core::v1::Node;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::{task, time};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::info_span;

use crate::http::{Respond, Response, serve};
use crate::metrics::Metrics;

/// A change that is not in the kernel after this time is a fault. Twice upstream's sync period.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// A node with this taint is about to go, and gets no more traffic from outside.
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// How the proxy is; clones share it.
#[derive(Clone)]
pub struct ProxyHealth {
    clock: SharedClock,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    updated: Option<Timestamp>,
    /// Since when a change waits.
    pending: Option<Duration>,
    is_node_eligible: bool,
}

impl ProxyHealth {
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, state: Arc::default() }
    }

    /// There is a change to bring to the kernel.
    pub fn changed(&self) {
        let now = self.clock.monotonic();
        self.state.lock().pending.get_or_insert(now);
    }

    /// The kernel is in step with all that was known when the work began.
    pub fn updated(&self) {
        let mut state = self.state.lock();
        state.updated = Some(self.clock.now());
        state.pending = None;
    }

    /// Takes in what the Node says.
    pub fn see_node(&self, node: Option<&Node>) {
        let is_leaving = |node: &Node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            node.metadata.deletion_timestamp.is_some()
                || taints.into_iter().flatten().any(|taint| taint.key == TO_BE_DELETED_TAINT)
        };
        self.state.lock().is_node_eligible = node.is_some_and(|node| !is_leaving(node));
    }

    /// Nothing waits for too long. Also while starting, as upstream.
    pub fn is_healthy(&self) -> bool {
        let state = self.state.lock();
        let waited = state.pending.map(|since| self.clock.monotonic().saturating_sub(since));
        state.updated.is_none() || waited.is_none_or(|waited| waited < CHANGE_TIMEOUT)
    }

    fn page(&self, with_node: bool) -> (bool, Value) {
        let is_healthy = self.is_healthy();
        let state = self.state.lock();
        let now = time::format_micro(self.clock.now());
        let updated = state.updated.map(time::format_micro);
        let is_well = is_healthy && (state.is_node_eligible || !with_node);
        // Upstream's zero time, and while all is well the present: nothing to do is as good as just done.
        let shown =
            if is_well { now.clone() } else { updated.clone().unwrap_or_else(|| "0001-01-01T00:00:00Z".into()) };
        let mut page = json!({"lastUpdated": shown, "currentTime": now, "healthy": is_healthy});
        if let Some(updated) = updated {
            page["status"] = json!({"IPv4": {"lastUpdated": updated, "healthy": is_healthy}});
        }
        if with_node {
            page["nodeEligible"] = state.is_node_eligible.into();
        }
        (is_well, page)
    }
}

/// Where the pages are.
#[derive(Clone, Debug, Default)]
pub struct StatusConfig {
    /// For load balancers outside; none if not given.
    pub healthz: Option<SocketAddr>,
    /// For this node itself; none if not given.
    pub metrics: Option<SocketAddr>,
}

/// Serves the pages until it is dropped.
pub struct StatusServer {
    _stop: DropGuard,
}

impl StatusServer {
    pub fn start(config: &StatusConfig, health: &ProxyHealth, metrics: &Metrics) -> Self {
        let stop = CancellationToken::new();
        let start = |name: &'static str, address: Option<SocketAddr>, respond: Arc<Respond>| {
            let Some(address) = address else { return };
            let (stop, clock) = (stop.clone(), health.clock.clone());
            task::spawn(info_span!("status", port = name), async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = serve(name, address, clock, respond) => {}
                }
            });
        };
        let (own, counted) = (health.clone(), metrics.clone());
        let healthz: Arc<Respond> = Arc::new(move |path| {
            let with_node = match path {
                "/healthz" => true,
                "/livez" => false,
                _ => return Response::not_found(),
            };
            let (is_well, page) = own.page(with_node);
            let response = Response::health(is_well, &page);
            counted.asked(with_node, response.status);
            response
        });
        start("healthz", config.healthz, healthz);
        let metrics = metrics.clone();
        let own: Arc<Respond> = Arc::new(move |path| match path {
            "/healthz" => Response::text("ok"),
            "/proxyMode" => Response::text("nftables"),
            "/metrics" => exposition(&metrics),
            _ => Response::not_found(),
        });
        start("metrics", config.metrics, own);
        Self { _stop: stop.drop_guard() }
    }
}

fn exposition(metrics: &Metrics) -> Response {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    // A string takes all that is written to it.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    Response { content_type: "text/plain; version=0.0.4; charset=utf-8", ..Response::text(text) }
}

#[cfg(test)]
mod tests {
    use rkube_api::Kind;
    use rkube_apimachinery::clock::FakeClock;

    use super::*;

    #[test]
    fn a_change_that_waits_too_long_is_told_and_a_node_that_goes_too() {
        let clock = FakeClock::new("2026-01-02T03:04:05Z".parse().unwrap());
        let health = ProxyHealth::new(clock.shared());
        let node = |spec: Value| Node::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap();
        let page = |with_node| {
            let (is_well, page) = health.page(with_node);
            format!("{is_well} {page}")
        };
        // While it starts there is nothing to complain of, but no traffic to send either.
        health.changed();
        clock.advance(CHANGE_TIMEOUT * 2);
        assert_eq!((health.page(true).0, health.page(false).0), (false, true));
        health.see_node(Some(&node(json!({}))));
        health.updated();
        assert_eq!(
            page(true),
            r#"true {"currentTime":"2026-01-02T03:06:05.000000Z","healthy":true,"lastUpdated":"2026-01-02T03:06:05.000000Z","nodeEligible":true,"status":{"IPv4":{"healthy":true,"lastUpdated":"2026-01-02T03:06:05.000000Z"}}}"#
        );
        // Idle is well for ever. A change that waits is for a while.
        clock.advance(CHANGE_TIMEOUT * 10);
        assert!(health.page(true).0);
        health.changed();
        clock.advance(CHANGE_TIMEOUT / 2);
        health.changed();
        assert!(health.page(true).0);
        clock.advance(CHANGE_TIMEOUT / 2);
        assert_eq!((health.page(true).0, health.page(false).0, health.is_healthy()), (false, false, false));
        health.updated();
        health.see_node(Some(&node(json!({"taints": [{"key": TO_BE_DELETED_TAINT, "effect": "NoSchedule"}]}))));
        assert_eq!((health.page(true).0, health.page(false).0), (false, true));
        health.see_node(None);
        assert_eq!((health.page(true).0, health.page(false).0), (false, true));
    }
}
