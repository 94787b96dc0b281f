//! Health check node ports: tells load balancers whether this node has endpoints of a Service.
//!
//! Behaves as  pkg/proxy/healthcheck/service_health.go, v1.36

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::task;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{info_span, warn};

/// A balancer asks once in some seconds; more at once wait.
const CONNECTIONS_MAX: usize = 64;
const REQUEST_BYTES_MAX: usize = 8 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

struct Check {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// The ports that are listened on.
pub struct HealthServer {
    clock: SharedClock,
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
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, checks: BTreeMap::new() }
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
        let (count, stop, clock) = (Arc::clone(&check.local_endpoints), check.stop.clone(), self.clock.clone());
        let name = service.clone();
        task::spawn(info_span!("health-check", service = %service, port), async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = listen(name, port, count, clock) => {}
            }
        });
        self.checks.insert(service.clone(), check);
    }
}

async fn listen(service: ObjectKey, port: u16, count: Arc<AtomicUsize>, clock: SharedClock) {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            // Whoever has the port may give it up, as the same Service under an earlier name.
            Err(error) => warn!(%error, port, "Failed to start healthcheck, retrying"),
        }
        clock.sleep(REQUEST_TIMEOUT).await;
    };
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (service, count, clock) = (service.clone(), Arc::clone(&count), clock.clone());
        task::spawn(info_span!("health-check-connection"), async move {
            let _permit = permit;
            tokio::select! {
                // A balancer that goes away is no news.
                _ = answer(stream, &service, &count) => {}
                () = clock.sleep(REQUEST_TIMEOUT) => {}
            }
        });
    }
}

async fn answer(mut stream: TcpStream, service: &ObjectKey, count: &AtomicUsize) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        let read = stream.read_buf(&mut request).await?;
        if read == 0 || request.len() > REQUEST_BYTES_MAX {
            return Ok(());
        }
    }
    let count = count.load(Ordering::Relaxed);
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": count,
        "serviceProxyHealthy": true,
    })
    .to_string();
    let status = if count > 0 { "200 OK" } else { "503 Service Unavailable" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {count}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
