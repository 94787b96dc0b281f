//! Health check node ports: tells load balancers whether this node has endpoints of a Service.
//!
//! Behaves as  pkg/proxy/healthcheck/service_health.go, v1.36

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::task;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::info_span;

use crate::http::{Respond, Response, serve};
use crate::status::ProxyHealth;

struct Check {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// The ports that are listened on.
pub struct HealthServer {
    clock: SharedClock,
    proxy: ProxyHealth,
    checks: BTreeMap<ObjectKey, Check>,
}

impl Drop for HealthServer {
    fn drop(&mut self) {
        for check in self.checks.values() {
            check.stop.cancel();
        }
    }
}

impl HealthServer {
    pub fn new(clock: SharedClock, proxy: ProxyHealth) -> Self {
        Self { clock, proxy, checks: BTreeMap::new() }
    }

    /// Listens for a Service on `port`, or no longer.
    pub fn set(&mut self, service: &ObjectKey, port: Option<u16>, local_endpoints: usize) {
        if let Some(check) = self.checks.get(service) {
            if Some(check.port) == port {
                return check.local_endpoints.store(local_endpoints, Ordering::Relaxed);
            }
            check.stop.cancel();
            self.checks.remove(service);
        }
        let Some(port) = port else { return };
        let check = Check { port, local_endpoints: Arc::new(local_endpoints.into()), stop: CancellationToken::new() };
        let (stop, clock) = (check.stop.clone(), self.clock.clone());
        let (name, count, proxy) = (service.clone(), Arc::clone(&check.local_endpoints), self.proxy.clone());
        let respond: Arc<Respond> = Arc::new(move |_| answer(&name, count.load(Ordering::Relaxed), proxy.is_healthy()));
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        task::spawn(info_span!("health-check", service = %service, port), async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = serve("healthcheck", address, clock, respond) => {}
            }
        });
        self.checks.insert(service.clone(), check);
    }
}

fn answer(service: &ObjectKey, count: usize, is_healthy: bool) -> Response {
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": count,
        "serviceProxyHealthy": is_healthy,
    });
    let headers = format!("X-Load-Balancing-Endpoint-Weight: {count}\r\n");
    Response { headers, ..Response::health(count > 0 && is_healthy, &body) }
}
