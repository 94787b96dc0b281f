//! One server and several, that come, go and die.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::Kind;

use super::*;
use crate::testing::{World, names, survives_any_crash};

fn server(address: &str, port: u16, shares_datastore: bool) -> World {
    let mut world = World::new(&[KUBERNETES_SERVICE]);
    world.config.api_server = Some(ApiServer {
        service_ip: IpAddr::from([10, 43, 0, 1]),
        https_port: port,
        address: address.parse().ok(),
        shares_datastore,
    });
    world
}

/// Another server on the datastore of the first.
fn beside(first: &World, address: &str, port: u16) -> World {
    let mut second = server(address, port, true);
    (second.api, second.clock) = (first.api.clone(), first.clock.clone());
    second
}

fn outcome(world: &World) -> String {
    let service = world.api.get::<Service>(NAMESPACE, SERVICE);
    let service = service.and_then(|service| service.spec.clone()?.cluster_ip).unwrap_or_default();
    let endpoints = world.api.get::<Endpoints>(NAMESPACE, SERVICE);
    let subsets = endpoints.and_then(|endpoints| endpoints.subsets.clone()).unwrap_or_default();
    let subsets = subsets.iter().map(|subset| {
        let addresses = subset.addresses.iter().flatten().map(|address| address.ip.clone());
        let ports = subset.ports.iter().flatten().map(|port| port.port.to_string());
        format!("{}:{}", addresses.collect::<Vec<_>>().join(","), ports.collect::<Vec<_>>().join(","))
    });
    let subsets: Vec<_> = subsets.collect();
    let slice = world.api.get::<EndpointSlice>(NAMESPACE, SERVICE);
    let slice = slice.map(|slice| {
        let endpoints = slice.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.clone());
        let ports = slice.ports.iter().flatten().filter_map(|port| port.port);
        format!("{} {:?} {:?}", slice.address_type, endpoints.collect::<Vec<_>>(), ports.collect::<Vec<_>>())
    });
    format!("{service} [{}] {}", subsets.join(" "), slice.unwrap_or_default())
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

#[tokio::test]
async fn everything_comes_back_when_deleted_or_changed() {
    let mut world = server("192.0.2.1", 6443, false);
    world.start();
    world.settle().await;
    let whole = r#"10.43.0.1 [192.0.2.1:6443] IPv4 ["192.0.2.1"] [6443]"#;
    assert_eq!(outcome(&world), whole);
    for remove in [World::remove::<Service>, World::remove::<Endpoints>, World::remove::<EndpointSlice>] {
        remove(&world);
        world.settle().await;
        assert_eq!(outcome(&world), whole);
    }
    world.api.edit::<Endpoints>(NAMESPACE, SERVICE, |endpoints| endpoints.subsets = None);
    world.api.edit::<EndpointSlice>(NAMESPACE, SERVICE, |slice| slice.ports = None);
    world.settle().await;
    assert_eq!(outcome(&world), whole);
    // A server that is alone says nothing while nothing changes, and stays on the list for its restart.
    world.api.take_actions();
    world.run_for(Duration::from_secs(3600)).await;
    assert!(world.api.take_actions().is_empty());
    world.stop();
    world.settle().await;
    assert_eq!(outcome(&world), whole);
    assert!(names::<Lease>(&world, "").is_empty());
}

impl World {
    fn remove<K: Kind>(&self) {
        self.api.remove::<K>(NAMESPACE, SERVICE);
    }
}

#[tokio::test]
async fn a_server_that_moved_takes_its_old_address_away() {
    let mut world = server("192.0.2.1", 6443, false);
    world.start();
    world.settle().await;
    world.stop();
    if let Some(api_server) = &mut world.config.api_server {
        api_server.address = "2001:db8::7".parse().ok();
        api_server.https_port = 7443;
    }
    world.start();
    world.settle().await;
    check(&world, expect![[r#"10.43.0.1 [2001:db8::7:7443] IPv6 ["2001:db8::7"] [7443]"#]]);
}

#[tokio::test]
async fn several_servers_list_one_another_until_they_stop_or_die() {
    let mut first = server("192.0.2.1", 6443, true);
    let mut second = beside(&first, "192.0.2.2", 6443);
    let mut third = beside(&first, "192.0.2.3", 6443);
    for world in [&mut first, &mut second, &mut third] {
        world.start();
    }
    first.run_for(Duration::from_secs(1)).await;
    let all = r#"10.43.0.1 [192.0.2.1,192.0.2.2,192.0.2.3:6443] IPv4 ["192.0.2.1", "192.0.2.2", "192.0.2.3"] [6443]"#;
    assert_eq!(outcome(&first), all);
    // Each renews its lease, and none touches what is right.
    first.api.take_actions();
    first.run_for(Duration::from_secs(120)).await;
    let writes = first.api.take_writes();
    assert!(writes.lines().all(|write| write.contains("leases")), "{writes}");
    assert_eq!(outcome(&first), all);

    // One that stops goes at once.
    third.stop();
    first.settle().await;
    check(&first, expect![[r#"10.43.0.1 [192.0.2.1,192.0.2.2:6443] IPv4 ["192.0.2.1", "192.0.2.2"] [6443]"#]]);

    // One that dies goes when its lease is over, and no earlier.
    let (transport, dead) = second.api.connect_until_write(1);
    second.stop();
    first.settle().await;
    second.start_with(transport);
    first.settle().await;
    assert!(dead.is_cancelled());
    first.run_for(Duration::from_secs(14)).await;
    assert_eq!(names::<Lease>(&first, "").len(), 2);
    first.run_for(Duration::from_secs(10)).await;
    check(&first, expect![[r#"10.43.0.1 [192.0.2.1:6443] IPv4 ["192.0.2.1"] [6443]"#]]);
    assert_eq!(names::<Lease>(&first, "").len(), 1);
}

#[tokio::test]
async fn the_last_of_several_leaves_an_empty_list() {
    let mut world = server("192.0.2.1", 6443, true);
    world.start();
    world.settle().await;
    world.stop();
    world.settle().await;
    check(&world, expect!["10.43.0.1 [] IPv4 [] []"]);
    assert!(names::<Lease>(&world, "").is_empty());
}

#[tokio::test]
async fn a_server_nobody_can_reach_makes_the_service_only() {
    let mut world = server("", 6443, false);
    world.start();
    world.settle().await;
    check(&world, expect!["10.43.0.1 [] "]);
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    for shares_datastore in [false, true] {
        let drive = async |world: &mut World| {
            world.run_for(Duration::from_secs(5)).await;
            world.api.remove::<Service>(NAMESPACE, SERVICE);
            world.run_for(Duration::from_secs(60)).await;
        };
        survives_any_crash(|| server("192.0.2.1", 6443, shares_datastore), drive, outcome).await;
    }
}
