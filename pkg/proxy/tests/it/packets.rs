//! What clients of Services see.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rkube_apimachinery::key::ObjectKey;
use rkube_network::nft::{TCP, UDP};
use rkube_proxy::ruleset::ServiceView;
use rkube_proxy::service::{Frontend, ServicePort};

use crate::host::Space;
use crate::world::{SERVICE, World, fresh_worker, port};

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
    // A pod to itself, whichever way.
    for to in ["192.0.2.1:30080", "203.0.113.7:80", SERVICE] {
        assert_eq!(world.answer(&world.pods["a"].0, to).unwrap().0, "a", "{to}");
    }

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
    let client = Space::clone_of(&world.client);
    let (count, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failures = std::thread::scope(|scope| {
        let connects = scope.spawn(|| {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                failures.extend(client.connect(SERVICE).err());
                count.fetch_add(1, Ordering::Relaxed);
            }
            failures
        });
        let sequence: [&[&str]; 5] = [&["a", "b"], &["b"], &["b", "far", "a"], &["far", "a"], &["a"]];
        for names in sequence.into_iter().cycle() {
            world.serve(port(TCP), names);
            for (_, _, listener) in world.pods.values() {
                while listener.accept().is_ok() {}
            }
            if count.load(Ordering::Relaxed) > 50 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        connects.join().unwrap()
    });
    assert!(failures.is_empty(), "{failures:?}");
}
