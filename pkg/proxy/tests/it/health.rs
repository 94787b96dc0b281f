//! What a load balancer outside learns from a health check node port.

use std::io::{Read, Write};
use std::time::Duration;

use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_proxy::health::HealthServer;
use rkube_proxy::status::ProxyHealth;

use crate::host::{Host, Space};

const PORT: u16 = 32_000;

fn ask(space: &Space) -> std::io::Result<String> {
    let mut stream = space.connect("192.0.2.1:32000")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Asks while the server runs on this thread.
async fn asked(space: &Space) -> std::io::Result<String> {
    let space = Space::clone_of(space);
    tokio::task::spawn_blocking(move || ask(&space)).await.unwrap()
}

#[test]
fn balancers_are_told_how_many_endpoints_this_node_has() {
    let (node, outside) = (Host::new("10.42.0.0/24", "192.0.2.1"), Host::new("10.42.1.0/24", "192.0.2.2"));
    node.wire(&outside);
    let service = ObjectKey::new("default", "web");
    node.space.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let proxy = ProxyHealth::new(SystemClock::shared());
            let mut server = HealthServer::new(SystemClock::shared(), proxy);
            server.set(&service, Some(PORT), 2);
            tokio::task::yield_now().await;
            let answer = asked(&outside.space).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("\r\nX-Load-Balancing-Endpoint-Weight: 2\r\n"), "{answer}");
            let body: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
            let expected = serde_json::json!({
                "service": {"namespace": "default", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true,
            });
            assert_eq!(body, expected);

            server.set(&service, Some(PORT), 0);
            let answer = asked(&outside.space).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
            assert!(answer.contains("\"localEndpoints\":0"), "{answer}");

            server.set(&service, None, 0);
            tokio::task::yield_now().await;
            assert_eq!(asked(&outside.space).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        });
    });
}
