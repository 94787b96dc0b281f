//! Measures the proxy on this kernel: `measure_services [services] [endpoints] [changes]`. Needs root; works in a network
//! namespace of its own that vanishes with it.
//!
//! Prints how long the rules of all Services take to be computed and written to an empty kernel and written again as
//! by a restarted agent, how long the change of one endpoint takes, and, through the whole component fed by an API
//! server in memory, how long after an EndpointSlice is stored a connection through its Service is answered. A fourth
//! and a half of the Services are measured too, so that growth shows.

#![allow(clippy::print_stdout, reason = "prints figures")]
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "small numbers, for people")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Node, Service};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::clock::{Clock, SystemClock};
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::random::SeededRandom;
use rkube_apimachinery::task;
use rkube_client::fake::FakeApi;
use rkube_client::{Client, InformerFactory};
use rkube_network::netlink::Socket;
use rkube_network::netlink::route::Route;
use rkube_network::nft::TCP;
use rkube_network::table::{self, TableConfig};
use rkube_proxy::endpoints::{Endpoint, Place, Target};
use rkube_proxy::proxier::{Proxier, ProxierConfig, Worker};
use rkube_proxy::ruleset::{Ruleset, RulesetConfig, ServiceView};
use rkube_proxy::service::{Frontend, ServicePort};
use rkube_proxy::status::StatusConfig;
use serde_json::json;
use tokio_util::sync::CancellationToken;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What answers behind the Service that changes.
const BACKEND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 43, 0, 0)) + number + 1)
}

fn target(number: u32) -> Target {
    (Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number), 8080)
}

fn view(service: u32, targets: &[Target]) -> ServiceView {
    let port = ServicePort {
        name: String::new(),
        frontend: Frontend { address: cluster_ip(service), protocol: TCP, port: 80 },
        node_port: None,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        internal_local: false,
        external_local: false,
    };
    let ready = Endpoint { ready: true, serving: true, ..Endpoint::default() };
    let endpoints = targets.iter().map(|target| (*target, ready.clone())).collect();
    ServiceView { ports: vec![port], endpoints: BTreeMap::from([(String::new(), endpoints)]) }
}

fn name(service: u32) -> ObjectKey {
    ObjectKey::new("default", format!("s{service}"))
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

/// The middle, the 99th of a hundred, and the longest.
fn spread(mut all: Vec<Duration>) -> String {
    all.sort_unstable();
    let at = |share: usize| all.get((all.len() * share / 100).min(all.len().saturating_sub(1))).copied();
    let [p50, p99, max] = [at(50), at(99), all.last().copied()].map(|time| milliseconds(time.unwrap_or_default()));
    format!("p50 {p50}, p99 {p99}, max {max}")
}

/// A network namespace with a way to everywhere, as a node has.
fn prepare(cluster: Ipv4Net) -> Outcome<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut socket = Socket::route()?;
    let lo = socket.link("lo")?.ok_or("a namespace without lo")?.index;
    socket.set_up(lo)?;
    socket.add_address(lo, Ipv4Net::from(BACKEND))?;
    socket.add_address(lo, Ipv4Net::new(Ipv4Addr::new(192, 0, 2, 1), 24)?)?;
    socket.replace_route(&Route { link: Some(lo), protocol: 3, ..Route::new(Ipv4Net::default()) })?;
    table::ensure(&mut Socket::netfilter()?, &TableConfig { pods: None, cluster, bridge: "rkube0".to_owned() }, &[])?;
    Ok(())
}

fn rules(services: u32, endpoints: u32, changes: u32, cluster: Ipv4Net, clock: &SystemClock) -> Outcome<()> {
    table::remove(&mut Socket::netfilter()?)?;
    let place = Place::default();
    let targets = |service: u32| (0..endpoints).map(|n| target(service * endpoints + n)).collect::<Vec<_>>();
    let ruleset = Ruleset::new(RulesetConfig { cluster, own_addresses: BTreeSet::new() });
    let mut worker = Worker { nft: Box::new(Socket::netfilter()?), ruleset, needs_full: true };
    let began = clock.monotonic();
    for service in 0..services {
        worker.ruleset.set(&name(service), &view(service, &targets(service)), &place);
    }
    let computed = clock.monotonic();
    worker.sync()?;
    let written = clock.monotonic();
    worker.needs_full = true;
    worker.sync()?;
    let again = clock.monotonic();
    println!(
        "{services} Services of {endpoints} endpoints: computed {}, written {}, all written again {}",
        milliseconds(computed.saturating_sub(began)),
        milliseconds(written.saturating_sub(computed)),
        milliseconds(again.saturating_sub(written)),
    );
    let mut change = |what: &str, edit: &dyn Fn(u32, &mut Vec<Target>)| -> Outcome<()> {
        let mut times = Vec::new();
        for number in 0..changes {
            let service = number.wrapping_mul(7919) % services;
            let mut targets = targets(service);
            edit(number, &mut targets);
            let began = clock.monotonic();
            worker.ruleset.set(&name(service), &view(service, &targets), &place);
            worker.sync()?;
            times.push(clock.monotonic().saturating_sub(began));
        }
        println!("  one endpoint {what}: {}", spread(times));
        Ok(())
    };
    let fresh = services * endpoints;
    change("replaced", &|number, targets| {
        targets.pop();
        targets.push(target(fresh + number));
    })?;
    change("more", &|number, targets| targets.push(target(fresh + changes + number)))?;
    change("less", &|_, targets| targets.truncate(targets.len().saturating_sub(1)))
}

fn slice(service: u32, targets: &[Target]) -> Outcome<EndpointSlice> {
    let of = |(address, _): &Target| json!({"addresses": [address.to_string()], "conditions": {"ready": true}});
    let value = json!({
        "metadata": {
            "name": format!("s{service}-x"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": format!("s{service}")},
        },
        "addressType": "IPv4", "endpoints": targets.iter().map(of).collect::<Vec<_>>(),
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    });
    Ok(EndpointSlice::from_value(value)?)
}

/// From a slice in the API to an answer through the Service.
fn component(services: u32, endpoints: u32, changes: u32, cluster: Ipv4Net) -> Outcome<()> {
    table::remove(&mut Socket::netfilter()?)?;
    table::ensure(&mut Socket::netfilter()?, &TableConfig { pods: None, cluster, bridge: "rkube0".to_owned() }, &[])?;
    let clock = SystemClock::shared();
    let api = FakeApi::new(clock.clone());
    let node = json!({
        "metadata": {"name": "node"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    });
    api.put(&Node::from_value(node)?);
    for service in 0..services {
        let ports = json!([{"port": 80, "protocol": "TCP"}]);
        api.put(&Service::from_value(json!({
            "metadata": {"name": format!("s{service}"), "namespace": "default"},
            "spec": {"clusterIP": cluster_ip(service).to_string(), "ports": ports},
        }))?);
        let targets: Vec<Target> = (0..endpoints).map(|n| target(service * endpoints + n)).collect();
        api.put(&slice(service, &targets)?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stop = CancellationToken::new();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let began = clock.monotonic();
    let running = {
        let _entered = runtime.enter();
        let informers =
            InformerFactory::new(Client::new(api.connect(), clock.clone(), SeededRandom::shared(1)), stop.clone());
        let config = ProxierConfig {
            node_name: "node".to_owned(),
            node_ip: None,
            cluster_cidr: cluster,
            own_addresses: BTreeSet::new(),
            status: StatusConfig::default(),
        };
        let proxier = Proxier::new(config, &informers);
        informers.start();
        let token = stop.clone();
        task::spawn(tracing::Span::none(), async move {
            // Nobody waits any more only if the measurement has failed.
            let tell = move || ready.send(()).unwrap_or_default();
            proxier.run(tell, token).await.map_err(|error| error.to_string())
        })
    };
    is_ready.recv()?;
    println!(
        "{services} Services of {endpoints} endpoints through the component: in step {} after its start",
        milliseconds(clock.monotonic().saturating_sub(began))
    );

    let listener = TcpListener::bind((BACKEND, 8080))?;
    listener.set_nonblocking(true)?;
    let address = (cluster_ip(0), 80).into();
    // Who is let in is taken in: a full queue would look like a refusal.
    let answers = || {
        let is_answered = TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        while listener.accept().is_ok() {}
        is_answered
    };
    let (mut coming, mut going) = (Vec::new(), Vec::new());
    for _ in 0..changes {
        for (targets, times) in [(&[][..], &mut going), (&[(BACKEND, 8080)], &mut coming)] {
            let changed = slice(0, targets)?;
            let began = clock.monotonic();
            api.put(&changed);
            while answers() == targets.is_empty() {}
            times.push(clock.monotonic().saturating_sub(began));
        }
    }
    println!("  slice stored to first answer: {}", spread(coming));
    // The first is the change from endpoints that are not there.
    println!("  slice stored to first refusal: {}", spread(going.split_off(1)));
    stop.cancel();
    runtime.block_on(running)??;
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u32| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (services, endpoints, changes) = (number(0, 10_000).max(4), number(1, 2).max(1), number(2, 500).max(2));
    let cluster = "10.128.0.0/9".parse()?;
    let clock = SystemClock::new();
    prepare(cluster)?;
    for part in [services / 4, services / 2, services] {
        rules(part, endpoints, changes, cluster, &clock)?;
    }
    component(services, endpoints, changes, cluster)
}
