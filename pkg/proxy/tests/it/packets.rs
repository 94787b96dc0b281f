//! What clients of Services see.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use rkube_apimachinery::key::ObjectKey;
use rkube_network::netlink::Socket;
use rkube_network::netlink::route::Route;
use rkube_network::nft::{NftApplier, TCP, UDP};
use rkube_network::node::{Backend, Peer, View};
use rkube_proxy::endpoints::{Endpoint, EndpointsByPort, Place, Target};
use rkube_proxy::proxier::Worker;
use rkube_proxy::ruleset::{Ruleset, RulesetConfig, ServiceView};
use rkube_proxy::service::{Frontend, ServicePort};
use serde_json::json;

use crate::host::{Host, Space};

/// Two nodes: pods `a`, `b` and a client on the first, `far` on the second, which is also the outside.
struct World {
    node: Host,
    other: Host,
    client: Space,
    pods: BTreeMap<&'static str, (Space, Target, TcpListener)>,
    worker: Worker,
    place: Place,
}

const SERVICE: &str = "10.43.0.1:80";

fn port(protocol: u8) -> ServicePort {
    ServicePort {
        name: String::new(),
        frontend: Frontend { address: Ipv4Addr::new(10, 43, 0, 1), protocol, port: 80 },
        node_port: None,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        internal_local: false,
        external_local: false,
    }
}

/// What an agent has when it starts.
fn fresh_worker(node: &Host) -> Worker {
    let nft: Box<dyn NftApplier> = Box::new(node.space.within(|| Socket::netfilter().unwrap()));
    let config = RulesetConfig { cluster: "10.42.0.0/16".parse().unwrap(), own_addresses: BTreeSet::new() };
    Worker { nft, ruleset: Ruleset::new(config), needs_full: true }
}

impl World {
    fn new() -> Self {
        let (node, other) = (Host::new("10.42.0.0/24", "192.0.2.1"), Host::new("10.42.1.0/24", "192.0.2.2"));
        node.wire(&other);
        for (own, peer) in [(&node, &other), (&other, &node)] {
            let peers = vec![Peer { name: "peer".to_owned(), pods: peer.pods, address: peer.address }];
            let view = View { pods: Some(own.pods), address: Some(own.address), peers, problems: Vec::new() };
            own.ensure(Backend::HostGw, &view);
            own.space.within(|| {
                let default = Route { via: Some(peer.address), protocol: 3, ..Route::new(ipnet::Ipv4Net::default()) };
                Socket::route().unwrap().replace_route(&default).unwrap();
            });
        }
        let (client, _) = node.pod("client", json!({}));
        let pods = [("a", &node), ("b", &node), ("far", &other)].map(|(name, host)| {
            let (pod, address) = host.pod(name, json!({}));
            let listener = pod.listen("0.0.0.0:8080");
            listener.set_nonblocking(true).unwrap();
            (name, (pod, (address.parse().unwrap(), 8080), listener))
        });
        let worker = fresh_worker(&node);
        let place = Place { address: Some(node.address), ..Place::default() };
        // An administrator's own table, in use before, during and after.
        node.space.within(|| {
            nft_command("add table ip admin; add chain ip admin c { type filter hook forward priority 5; }; add rule ip admin c counter accept");
        });
        Self { node, other, client, pods: pods.into(), worker, place }
    }

    fn endpoints(&self, names: &[&str]) -> EndpointsByPort {
        let of = |name: &&str| {
            let endpoint = Endpoint { is_local: *name != "far", ready: true, serving: true, ..Endpoint::default() };
            (self.pods[name].1, endpoint)
        };
        BTreeMap::from([(String::new(), names.iter().map(of).collect())])
    }

    fn serve(&mut self, port: ServicePort, names: &[&str]) {
        let view = ServiceView { ports: vec![port], endpoints: self.endpoints(names) };
        self.set(&view);
    }

    fn set(&mut self, view: &ServiceView) {
        self.worker.ruleset.set(&ObjectKey::new("default", "s"), view, &self.place);
        let worker = &mut self.worker;
        self.node.space.within(|| worker.sync().unwrap());
    }

    /// An administrator can list all rules, and their own are as they were.
    fn check_listing(&self) {
        self.node.space.within(|| {
            let listing = nft_command("list ruleset");
            assert!(listing.contains("table ip admin") && listing.contains("10.43.0.1"), "{listing}");
        });
    }

    /// Who answers, and whom it sees.
    fn answer(&self, from: &Space, to: &str) -> Result<(&'static str, String), String> {
        let _near = from.connect(to).map_err(|error| error.kind().to_string())?;
        for (name, (_, _, listener)) in &self.pods {
            if let Ok((_, seen)) = listener.accept() {
                return Ok((name, seen.ip().to_string()));
            }
        }
        Err("nobody accepted".to_owned())
    }

    /// Who answers in so many attempts that each of a few has been drawn: one of three is missed in 60
    /// with a chance of (2/3)^60 * 3 = 1e-10.
    fn answers(&self, from: &Space, to: &str) -> BTreeSet<&'static str> {
        (0..60).map(|_| self.answer(from, to).unwrap().0).collect()
    }
}

fn nft_command(text: &str) -> String {
    let output = std::process::Command::new("nft").arg(text).output().unwrap();
    assert!(output.status.success(), "nft {text}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn cluster_ip() {
    let mut world = World::new();
    world.serve(port(TCP), &["a", "b", "far"]);
    let client = world.client.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    client.connect("10.43.0.1:80").unwrap();
    let own = client.local_addr().unwrap().ip().to_string();
    assert_eq!(world.answers(&world.client, SERVICE), BTreeSet::from(["a", "b", "far"]));
    assert_eq!(world.answer(&world.client, SERVICE).unwrap().1, own);
    // From the node, and from a pod to itself.
    world.answer(&world.node.space, SERVICE).unwrap();
    world.serve(port(TCP), &["a"]);
    assert_eq!(world.answer(&world.pods["a"].0, SERVICE).unwrap().0, "a");
    assert_eq!(world.answer(&world.client, "10.43.0.1:81").unwrap_err(), "connection refused");
    world.serve(port(TCP), &[]);
    assert_eq!(world.answer(&world.client, SERVICE).unwrap_err(), "connection refused");
    assert_eq!(world.answer(&world.node.space, SERVICE).unwrap_err(), "connection refused");
    world.serve(port(TCP), &["far"]);
    assert_eq!(world.answer(&world.client, SERVICE).unwrap().0, "far");

    // An agent that restarts writes everything again.
    world.worker.needs_full = true;
    world.serve(port(TCP), &["far"]);
    assert_eq!(world.answer(&world.client, SERVICE).unwrap().0, "far");
    world.check_listing();
}

#[test]
fn node_ports_and_external_addresses_by_policy() {
    let mut world = World::new();
    let external = Ipv4Addr::new(203, 0, 113, 7);
    let open = ServicePort { node_port: Some(30_080), external_ips: vec![external], ..port(TCP) };
    world.serve(open.clone(), &["a", "far"]);
    let outside = &world.other.space;
    for to in ["192.0.2.1:30080", "203.0.113.7:80"] {
        assert_eq!(world.answers(outside, to), BTreeSet::from(["a", "far"]), "{to}");
        assert_eq!(world.answers(&world.client, to), BTreeSet::from(["a", "far"]), "{to}");
        assert_eq!(world.answers(&world.node.space, to), BTreeSet::from(["a", "far"]), "{to}");
        // The pod sees the node, not the client.
        assert_eq!(world.answer(outside, to).unwrap().1.rsplit('.').next(), Some("1"), "{to}");
    }
    world.serve(open.clone(), &["a"]);
    world.answer(&world.node.space, "127.0.0.1:30080").unwrap();

    let local = ServicePort { external_local: true, ..open };
    world.serve(local.clone(), &["a", "far"]);
    let outside = &world.other.space;
    for to in ["192.0.2.1:30080", "203.0.113.7:80"] {
        assert_eq!(world.answers(outside, to), BTreeSet::from(["a"]), "{to}");
        // The client's own address is kept.
        assert_eq!(world.answer(outside, to).unwrap().1, "192.0.2.2", "{to}");
        assert_eq!(world.answers(&world.client, to), BTreeSet::from(["a", "far"]), "{to}");
    }
    let inside = ServicePort { internal_local: true, ..local };
    world.serve(inside, &["a", "far"]);
    assert_eq!(world.answers(&world.client, SERVICE), BTreeSet::from(["a"]));
    world.check_listing();
}

#[test]
fn a_client_stays_with_its_endpoint_as_long_as_that_serves() {
    let mut world = World::new();
    let sticky = ServicePort { affinity: Some(Duration::from_secs(60)), ..port(TCP) };
    world.serve(sticky.clone(), &["a", "b", "far"]);
    let first = world.answers(&world.client, SERVICE);
    assert_eq!(first.len(), 1);
    let gone = *first.first().unwrap();
    let left: Vec<_> = ["a", "b", "far"].into_iter().filter(|name| *name != gone).collect();
    world.serve(sticky.clone(), &left);
    let second = world.answers(&world.client, SERVICE);
    assert_eq!(second.len(), 1);
    assert_ne!(second, first);
    // What is remembered outlives the agent, also when another has learned of more Services.
    world.worker = fresh_worker(&world.node);
    let frontend = Frontend { port: 81, ..sticky.frontend };
    let other = ServiceView { ports: vec![ServicePort { frontend, ..port(TCP) }], endpoints: world.endpoints(&["a"]) };
    world.worker.ruleset.set(&ObjectKey::new("default", "another"), &other, &world.place);
    world.serve(sticky, &["a", "b", "far"]);
    assert_eq!(world.answers(&world.client, SERVICE), second);
    world.check_listing();
    world.serve(port(TCP), &["a", "b", "far"]);
    assert_eq!(world.answers(&world.client, SERVICE).len(), 3);
}

#[test]
fn load_balancers_let_in_whom_they_should() {
    let mut world = World::new();
    let balancer = ServicePort { load_balancer_ips: vec![world.node.address], ..port(TCP) };
    world.serve(balancer.clone(), &["a"]);
    assert_eq!(world.answer(&world.other.space, "192.0.2.1:80").unwrap().0, "a");
    let only = |net: &str| ServicePort { source_ranges: vec![net.parse().unwrap()], ..balancer.clone() };
    world.serve(only("192.0.2.0/24"), &["a"]);
    assert_eq!(world.answer(&world.other.space, "192.0.2.1:80").unwrap().0, "a");
    world.serve(only("198.51.100.0/24"), &["a"]);
    let silent = world.other.space.within(|| {
        let to = "192.0.2.1:80".parse().unwrap();
        std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300))
    });
    assert_eq!(silent.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn udp_clients_are_sent_on_when_their_endpoint_goes() {
    let mut world = World::new();
    let sockets: BTreeMap<_, _> = ["a", "b"]
        .into_iter()
        .map(|name| {
            let socket = world.pods[name].0.within(|| UdpSocket::bind("0.0.0.0:8080").unwrap());
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            (name, socket)
        })
        .collect();
    // The same socket, so the kernel sees one flow.
    let client = world.client.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    for (endpoint, payload) in [("a", b"1"), ("b", b"2"), ("a", b"3")] {
        world.serve(port(UDP), &[endpoint]);
        client.send_to(payload, SERVICE).unwrap();
        let mut buffer = [0; 8];
        let (length, _) = sockets[endpoint].recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], payload);
    }
}

#[test]
fn no_connection_is_refused_while_endpoints_roll() {
    let mut world = World::new();
    world.serve(port(TCP), &["a"]);
    let (client, stop) = (Space::clone_of(&world.client), std::sync::atomic::AtomicBool::new(false));
    let failures = std::thread::scope(|scope| {
        let connects = scope.spawn(|| {
            let mut failures = Vec::new();
            let mut count = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                count += 1;
                failures.extend(client.connect(SERVICE).err());
            }
            (count, failures)
        });
        for round in 0..60 {
            let names: &[&str] = [&["a", "b"][..], &["b"], &["b", "far", "a"], &["far", "a"], &["a"]][round % 5];
            world.serve(port(TCP), names);
            for (_, _, listener) in world.pods.values() {
                while listener.accept().is_ok() {}
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        connects.join().unwrap()
    });
    assert!(failures.0 > 10 && failures.1.is_empty(), "{failures:?}");
}
