//! Which endpoints clients get by hints, by traffic policy and by what endpoints say of themselves; and what no
//! Service gets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rkube_api::Kind;
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::key::ObjectKey;
use rkube_network::address::assign_local;
use rkube_network::nft::{TCP, UDP};
use rkube_proxy::endpoints::{Place, collect};
use rkube_proxy::ruleset::ServiceView;
use rkube_proxy::service::{Frontend, ServicePort};
use serde_json::{Value, json};

use crate::host::Space;
use crate::world::{OWN_ADDRESS, SERVICE, World, nft_command, port, until};

/// The node is `n1` in zone `z1`; so are the pods `a` and `b`. `far` is on `n2` in `z2`.
fn world() -> World {
    let mut world = World::new();
    world.place = Place { node: "n1".to_owned(), zone: "z1".to_owned(), ..world.place };
    world
}

/// Serves `port` with endpoints of one slice: a pod's name and what the slice says of it.
fn publish(world: &mut World, port: ServicePort, endpoints: &[(&str, Value)]) {
    let endpoints = endpoints.iter().map(|(name, said)| {
        let node = if *name == "far" { "n2" } else { "n1" };
        let mut endpoint = json!({"addresses": [world.pods[name].1.0.to_string()], "nodeName": node});
        endpoint.as_object_mut().unwrap().extend(said.as_object().cloned().unwrap_or_default());
        endpoint
    });
    let protocol = if port.frontend.protocol == UDP { "UDP" } else { "TCP" };
    let slice = json!({
        "metadata": {"name": "s-1"}, "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "", "port": 8080, "protocol": protocol}],
    });
    let slices = [Arc::new(EndpointSlice::from_value(slice).unwrap())];
    let view = ServiceView { ports: vec![port], endpoints: collect(&slices, &world.place) };
    world.set(&view);
}

fn zones(zone: &str) -> Value {
    json!({"hints": {"forZones": [{"name": zone}]}})
}

fn hints(zone: &str, node: &str) -> Value {
    json!({"hints": {"forZones": [{"name": zone}], "forNodes": [{"name": node}]}})
}

fn leaving(serving: bool) -> Value {
    json!({"conditions": {"ready": false, "serving": serving, "terminating": true}})
}

#[test]
fn clients_go_where_hints_say_if_all_endpoints_have_them() {
    let mut world = world();
    let all = BTreeSet::from(["a", "b", "far"]);
    let mut check = |endpoints: &[(&str, Value)], expected: &[&'static str]| {
        publish(&mut world, port(TCP), endpoints);
        assert_eq!(world.answers(&world.client, SERVICE), expected.iter().copied().collect(), "{endpoints:?}");
    };
    check(&[("a", zones("z1")), ("b", zones("z1")), ("far", zones("z2"))], &["a", "b"]);
    check(&[("a", hints("z1", "n1")), ("b", hints("z1", "n3")), ("far", hints("z2", "n2"))], &["a"]);
    // No node of the hints is this one: the zones count.
    check(&[("a", hints("z1", "n4")), ("b", hints("z1", "n3")), ("far", hints("z2", "n2"))], &["a", "b"]);
    // Hints that are missing or for other zones only are no hints.
    check(&[("a", zones("z1")), ("b", json!({})), ("far", zones("z2"))], &["a", "b", "far"]);
    check(&[("a", zones("z3")), ("b", zones("z3")), ("far", zones("z2"))], &["a", "b", "far"]);
    // Those of endpoints that are not ready do not matter.
    check(&[("a", zones("z1")), ("b", leaving(true)), ("far", zones("z2"))], &["a"]);
    // From outside with policy `Cluster` hints count, with `Local` the node does.
    let outside = ServicePort { node_port: Some(30_080), ..port(TCP) };
    publish(&mut world, outside.clone(), &[("a", zones("z2")), ("b", zones("z2")), ("far", zones("z1"))]);
    assert_eq!(world.answers(&world.other.space, "192.0.2.1:30080"), BTreeSet::from(["far"]));
    let local = ServicePort { external_local: true, ..outside };
    publish(&mut world, local, &[("a", zones("z2")), ("b", zones("z2")), ("far", zones("z1"))]);
    assert_eq!(world.answers(&world.other.space, "192.0.2.1:30080"), BTreeSet::from(["a", "b"]));
    publish(&mut world, port(TCP), &[("a", json!({})), ("b", json!({})), ("far", json!({}))]);
    assert_eq!(world.answers(&world.client, SERVICE), all);
}

#[test]
fn endpoints_that_leave_serve_when_no_others_do() {
    let mut world = world();
    let open = ServicePort { node_port: Some(30_080), ..port(TCP) };
    publish(&mut world, open.clone(), &[("a", leaving(true)), ("b", json!({})), ("far", leaving(true))]);
    assert_eq!(world.answers(&world.client, SERVICE), BTreeSet::from(["b"]));
    publish(&mut world, open.clone(), &[("a", leaving(true)), ("b", leaving(false)), ("far", leaving(true))]);
    assert_eq!(world.answers(&world.client, SERVICE), BTreeSet::from(["a", "far"]));
    assert_eq!(world.answers(&world.other.space, "192.0.2.1:30080"), BTreeSet::from(["a", "far"]));
    publish(&mut world, open.clone(), &[("a", leaving(false)), ("far", leaving(false))]);
    assert_eq!(world.answer(&world.client, SERVICE).unwrap_err(), "connection refused");

    let local = ServicePort { external_local: true, internal_local: true, ..open };
    publish(&mut world, local.clone(), &[("a", leaving(true)), ("b", leaving(false)), ("far", json!({}))]);
    assert_eq!(world.answers(&world.client, SERVICE), BTreeSet::from(["a"]));
    assert_eq!(world.answers(&world.other.space, "192.0.2.1:30080"), BTreeSet::from(["a"]));
    // Endpoints elsewhere: what comes here is dropped, so that a balancer tries another node.
    publish(&mut world, local, &[("a", leaving(false)), ("far", json!({}))]);
    let silent = world.other.space.within(|| {
        let to = "192.0.2.1:30080".parse().unwrap();
        std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300))
    });
    assert_eq!(silent.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a_client_that_paused_long_enough_is_new() {
    let timeout = Duration::from_secs(1);
    let mut world = world();
    let sticky = ServicePort { affinity: Some(timeout), node_port: Some(30_080), ..port(TCP) };
    world.serve(sticky, &["a", "b", "far"]);
    let remembered = |world: &World| {
        let listing = world.node.space.within(|| nft_command("list map ip rkube affinity"));
        listing.matches("expires").count()
    };
    // Each connection begins the time anew; on a busy machine one client may be forgotten before the other is seen.
    until("both clients are remembered", || {
        world.answer(&world.client, SERVICE).unwrap();
        world.answer(&world.other.space, "192.0.2.1:30080").unwrap();
        remembered(&world) == 2
    });
    until("both are forgotten", || remembered(&world) == 0);
    assert_eq!(world.answers(&world.client, SERVICE).len(), 1);
}

#[test]
fn nobody_takes_the_addresses_of_others() {
    let mut world = world();
    let own = format!("{OWN_ADDRESS}:80");
    let dns = world.node.space.within(|| {
        assign_local(OWN_ADDRESS).unwrap();
        std::net::TcpListener::bind(&own).unwrap()
    });
    // A host port, a node port and an external address of the same number.
    let mapping = json!({"hostPort": 80, "containerPort": 8080, "protocol": "tcp"});
    let (_pod, _) = world.node.pod("greedy", json!({"runtimeConfig": {"portMappings": [mapping]}}));
    let victim = Ipv4Addr::new(10, 43, 0, 1);
    let frontend = Frontend { address: Ipv4Addr::new(10, 43, 0, 2), ..port(TCP).frontend };
    let greedy = ServicePort { frontend, external_ips: vec![OWN_ADDRESS, victim], node_port: Some(80), ..port(TCP) };
    world.serve(greedy, &["a"]);
    assert_eq!(world.answer(&world.client, SERVICE).unwrap().0, "a");
    for from in [&world.client, &world.node.space] {
        from.reach(&own, &dns, 1);
    }

    // Somebody's cluster IP is no longer to be had, even while nothing serves it.
    let unserved = ServiceView { ports: vec![port(TCP)], endpoints: world.endpoints(&[]) };
    world.worker.ruleset.set(&ObjectKey::new("default", "victim"), &unserved, &world.place);
    world.serve(ServicePort { frontend, external_ips: vec![OWN_ADDRESS, victim], ..port(TCP) }, &["a"]);
    assert_eq!(world.answer(&world.client, SERVICE).unwrap_err(), "connection refused");
    assert!(world.worker.ruleset.keeps(victim) && world.worker.ruleset.keeps(OWN_ADDRESS));
    assert_eq!(world.answer(&world.client, "10.43.0.2:80").unwrap().0, "a");
}

/// Who gets a datagram, if anybody does within the time that a test has.
fn receiver(sockets: &[(&'static str, UdpSocket)], client: &UdpSocket, to: &str) -> &'static str {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let payload = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes();
    client.send_to(&payload, to).unwrap();
    // The packet is where it goes when `send_to` returns, or soon after.
    for _ in 0..500 {
        for (name, socket) in sockets {
            let mut buffer = [0; 8];
            if let Ok((4, _)) = socket.recv_from(&mut buffer)
                && buffer[..4] == payload
            {
                return name;
            }
        }
        std::thread::yield_now();
    }
    panic!("nobody got the datagram to {to}");
}

#[test]
fn udp_flows_stay_with_an_endpoint_until_it_no_longer_serves() {
    let mut world = world();
    let sockets = ["a", "b"].map(|name| {
        let socket = world.pods[name].0.within(|| UdpSocket::bind("0.0.0.0:8080").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        (name, socket)
    });
    let bind = |space: &Space| space.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let ways = [(bind(&world.client), SERVICE), (bind(&world.other.space), "192.0.2.1:30080")];
    let open = ServicePort { node_port: Some(30_080), ..port(UDP) };
    // Another flow to the same port number of somebody else.
    let stranger = world.other.space.within(|| UdpSocket::bind("192.0.2.2:30080").unwrap());
    stranger.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    ways[0].0.send_to(b"?", "192.0.2.2:30080").unwrap();
    let (_, seen) = stranger.recv_from(&mut [0; 8]).unwrap();

    publish(&mut world, open.clone(), &[("a", json!({}))]);
    for (client, to) in &ways {
        assert_eq!(receiver(&sockets, client, to), "a");
    }
    // It leaves and still serves: what began there goes on there.
    publish(&mut world, open.clone(), &[("a", leaving(true)), ("b", json!({}))]);
    for (client, to) in &ways {
        assert_eq!(receiver(&sockets, client, to), "a");
    }
    publish(&mut world, open.clone(), &[("a", leaving(false)), ("b", json!({}))]);
    for (client, to) in &ways {
        assert_eq!(receiver(&sockets, client, to), "b");
    }
    stranger.send_to(b"!", seen).unwrap();
    ways[0].0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(ways[0].0.recv_from(&mut [0; 8]).unwrap().1, "192.0.2.2:30080".parse().unwrap());
}
