//! Measures cluster DNS over loopback: `measure_names [seconds] [clients] [services]`.
//!
//! Prints how many questions a second are answered, asked by clients that keep many under way and share the machine
//! with the server, and how long after a Service is stored its name is answered, fed by an API server in memory.

#![allow(clippy::print_stdout, reason = "prints figures")]
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "small numbers, for people")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Namespace, Service};
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::random::SeededRandom;
use rkube_apimachinery::task;
use rkube_client::fake::FakeApi;
use rkube_client::{Client, InformerFactory};
use rkube_dns::zone::Zone;
use rkube_dns::{DnsConfig, DnsServer};
use serde_json::json;
use tokio_util::sync::CancellationToken;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Questions a client has under way.
const WINDOW: u16 = 64;

fn query(id: u16, service: u64) -> Vec<u8> {
    let mut query = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in [&format!("s{service}"), "default", "svc", "cluster", "local"] {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}

fn service(number: u64) -> Outcome<Service> {
    let address = format!("10.43.{}.{}", number / 250 % 250, number % 250 + 1);
    Ok(Service::from_value(json!({
        "metadata": {"name": format!("s{number}"), "namespace": "default"},
        "spec": {"clusterIP": address, "ports": [{"port": 80, "protocol": "TCP"}]},
    }))?)
}

fn client(server: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

/// Keeps a window of questions under way until told to stop. Those that are lost are asked again.
fn ask_on(server: SocketAddr, services: u64, stop: &AtomicBool, answered: &AtomicU64) -> std::io::Result<u64> {
    let socket = client(server)?;
    let (mut next, mut lost) = (0, 0);
    let mut buffer = [0; 512];
    let mut send = |count: u16| -> std::io::Result<()> {
        for _ in 0..count {
            next += 1;
            socket.send(&query(next as u16, next % services))?;
        }
        Ok(())
    };
    send(WINDOW)?;
    while !stop.load(Ordering::Relaxed) {
        if socket.recv(&mut buffer).is_ok() {
            answered.fetch_add(1, Ordering::Relaxed);
            send(1)?;
        } else {
            lost += u64::from(WINDOW);
            send(WINDOW)?;
        }
    }
    Ok(lost)
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (seconds, clients, services) = (number(0, 5).max(1), number(1, 2).max(1), number(2, 10_000).max(1));
    let clock = SystemClock::shared();
    let api = FakeApi::new(clock.clone());
    api.put(&Namespace::from_value(json!({"metadata": {"name": "default"}}))?);
    for number in 0..services {
        api.put(&service(number)?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stop = CancellationToken::new();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (token, server_api, server_clock) = (stop.clone(), api.clone(), clock.clone());
    let running = {
        let _entered = runtime.enter();
        task::spawn(tracing::Span::none(), async move {
            let client = Client::new(server_api.connect(), server_clock.clone(), SeededRandom::shared(1));
            let informers = InformerFactory::new(client, token.clone());
            let zone = Arc::new(Zone::default());
            zone.follow(&informers);
            informers.start();
            informers.wait_for_sync().await.map_err(|error| error.to_string())?;
            let config = DnsConfig {
                listen: vec![([127, 0, 0, 1], 0).into()],
                cluster_domain: "cluster.local".to_owned(),
                resolv_conf: "/nonexistent".into(),
                stub_domains: std::collections::BTreeMap::new(),
            };
            let server = DnsServer::new(config, zone, server_clock).map_err(|error| error.to_string())?;
            let tell = move |bound: &[SocketAddr]| ready.send(bound.first().copied()).unwrap_or_default();
            server.run(tell, token).await.map_err(|error| error.to_string())
        })
    };
    let server = is_ready.recv()?.ok_or("the server listens nowhere")?;

    let (done, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = clock.monotonic();
    let lost = std::thread::scope(|scope| -> std::io::Result<u64> {
        let asking: Vec<_> = (0..clients).map(|_| scope.spawn(|| ask_on(server, services, &done, &answered))).collect();
        #[expect(clippy::disallowed_methods, reason = "the time that is measured has to pass")]
        std::thread::sleep(Duration::from_secs(seconds));
        done.store(true, Ordering::Relaxed);
        asking.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).sum()
    })?;
    let took = clock.monotonic().saturating_sub(began).as_secs_f64();
    let answered = answered.load(Ordering::Relaxed);
    println!("{:.0} questions/s of {clients} clients, {services} names, {lost} lost", answered as f64 / took);

    let socket = client(server)?;
    let mut times = Vec::new();
    for number in services..services + 500 {
        let (object, question) = (service(number)?, query(7, number));
        let began = clock.monotonic();
        api.put(&object);
        let mut reply = [0; 512];
        loop {
            socket.send(&question)?;
            socket.recv(&mut reply)?;
            // No error, and one answer.
            if reply[3] & 0xf == 0 && reply[7] == 1 {
                break;
            }
        }
        times.push(clock.monotonic().saturating_sub(began));
    }
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default().as_secs_f64() * 1e3;
    println!("name answered after its Service is stored: p50 {:.3} ms, p99 {:.3} ms", at(50), at(99));
    stop.cancel();
    runtime.block_on(running)??;
    Ok(())
}
