//! Endpoints made by hand, and what becomes of their slices.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::k8s::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Event, Service, ServicePort, ServiceSpec,
};
use rkube_api::k8s::discovery::v1::EndpointSlice;

use super::ENDPOINTSLICE_MIRRORING;
use super::plan::plan;
use crate::testing::{World, events, labels, metadata, survives_any_crash};

fn service() -> Service {
    let ports = vec![ServicePort { port: 80, ..ServicePort::default() }];
    let spec = ServiceSpec { ports: Some(ports), ..ServiceSpec::default() };
    Service { metadata: metadata("ns", "db"), spec: Some(spec), status: None }
}

fn subset(ready: &[&str], not_ready: &[&str], ports: &[i32]) -> EndpointSubset {
    let addresses = |ips: &[&str]| {
        let all = ips.iter().map(|ip| EndpointAddress { ip: (*ip).to_owned(), ..EndpointAddress::default() });
        Some(all.collect::<Vec<_>>()).filter(|all| !all.is_empty())
    };
    let ports = ports.iter().map(|port| EndpointPort { port: *port, ..EndpointPort::default() });
    EndpointSubset {
        addresses: addresses(ready),
        not_ready_addresses: addresses(not_ready),
        ports: Some(ports.collect()),
    }
}

fn endpoints(subsets: Vec<EndpointSubset>) -> Endpoints {
    Endpoints { metadata: metadata("ns", "db"), subsets: Some(subsets) }
}

fn arrange(subsets: Vec<EndpointSubset>) -> World {
    let world = World::new(&[ENDPOINTSLICE_MIRRORING]);
    world.api.put(&service());
    world.api.put(&endpoints(subsets));
    world
}

fn describe(slice: &EndpointSlice) -> String {
    let mut ports: Vec<_> = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
    ports.sort_unstable();
    let endpoints = slice.endpoints.iter().flatten().map(|endpoint| {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true);
        format!("{}{}", endpoint.addresses.join(","), if ready { "" } else { " (not ready)" })
    });
    format!("{} {ports:?}: {}", slice.address_type, endpoints.collect::<Vec<_>>().join(" "))
}

fn outcome(world: &World) -> String {
    let mut slices: Vec<_> = world.api.list::<EndpointSlice>("ns").iter().map(|slice| describe(slice)).collect();
    slices.sort();
    slices.join("\n")
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

#[tokio::test]
async fn slices_follow_endpoints_and_their_service() {
    let mut world = arrange(vec![subset(&["192.0.2.1", "2001:db8::1"], &["192.0.2.2"], &[5432])]);
    world.api.edit::<Endpoints>("ns", "db", |endpoints| {
        endpoints.metadata.labels = Some(labels(&[("team", "data")]));
        endpoints.metadata.annotations = Some(labels(&[
            ("note", "kept"),
            ("endpoints.kubernetes.io/last-change-trigger-time", "2030-01-01T00:00:00Z"),
        ]));
    });
    world.start();
    world.settle().await;
    check(
        &world,
        expect![[r#"
        IPv4 [5432]: 192.0.2.1 192.0.2.2 (not ready)
        IPv6 [5432]: 2001:db8::1"#]],
    );
    let slice = world.api.list::<EndpointSlice>("ns").remove(0);
    expect![[r#"{"endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io", "kubernetes.io/service-name": "db", "team": "data"} {"note": "kept"}"#]]
        .assert_eq(&format!(
            "{:?} {:?}",
            slice.metadata.labels.clone().unwrap_or_default(),
            slice.metadata.annotations.clone().unwrap_or_default()
        ));

    world.api.take_actions();
    world.run_for(Duration::from_secs(3600)).await;
    assert_eq!(world.api.take_writes(), "");

    world.api.edit::<Endpoints>("ns", "db", |endpoints| {
        endpoints.subsets = Some(vec![subset(&["192.0.2.2"], &[], &[5433])]);
    });
    world.settle().await;
    check(&world, expect!["IPv4 [5433]: 192.0.2.2"]);

    // With a selector the slices are the EndpointSlice controller's.
    world.api.edit::<Service>("ns", "db", |service| {
        service.spec.get_or_insert_default().selector = Some(labels(&[("app", "db")]));
    });
    world.settle().await;
    check(&world, expect![""]);
    world.api.edit::<Service>("ns", "db", |service| service.spec.get_or_insert_default().selector = None);
    world.settle().await;
    check(&world, expect!["IPv4 [5433]: 192.0.2.2"]);
    world.api.remove::<Endpoints>("ns", "db");
    world.settle().await;
    check(&world, expect![""]);
}

#[tokio::test]
async fn marked_endpoints_and_locks_are_not_mirrored() {
    let mut world = arrange(vec![subset(&["192.0.2.1"], &[], &[80])]);
    world.start();
    world.settle().await;
    check(&world, expect!["IPv4 [80]: 192.0.2.1"]);
    world.api.edit::<Endpoints>("ns", "db", |endpoints| {
        endpoints.metadata.labels = Some(labels(&[("endpointslice.kubernetes.io/skip-mirror", "true")]));
    });
    world.settle().await;
    check(&world, expect![""]);
    world.api.edit::<Endpoints>("ns", "db", |endpoints| {
        endpoints.metadata.labels = None;
        endpoints.metadata.annotations = Some(labels(&[("control-plane.alpha.kubernetes.io/leader", "{}")]));
    });
    world.settle().await;
    check(&world, expect![""]);
}

#[tokio::test]
async fn subsets_are_put_in_one_form_and_bad_addresses_are_told() {
    let mut world = arrange(vec![
        subset(&["192.0.2.1", "192.0.2.2"], &[], &[80]),
        subset(&["192.0.2.1"], &["192.0.2.2"], &[443, 80]),
        subset(&["not-an-address"], &[], &[99]),
    ]);
    world.start();
    world.settle().await;
    // Port 80 is ready at the second address in one subset and not in the other: not ready.
    check(&world, expect!["IPv4 [80, 443]: 192.0.2.1 192.0.2.2 (not ready)"]);
    expect!["Warning InvalidIPAddress: Skipped 1 invalid IP addresses when mirroring to EndpointSlices"]
        .assert_eq(&events(&world, "ns"));
    assert_eq!(world.api.list::<Event>("ns").len(), 1);
}

#[tokio::test]
async fn a_slice_changed_by_hand_or_of_an_earlier_object_is_put_right() {
    let mut world = arrange(vec![subset(&["192.0.2.1"], &[], &[80])]);
    world.start();
    world.settle().await;
    let name = world.api.list::<EndpointSlice>("ns")[0].metadata.name.clone().unwrap_or_default();
    world.api.edit::<EndpointSlice>("ns", &name, |slice| {
        slice.endpoints = Some(Vec::new());
        slice.metadata.owner_references.iter_mut().flatten().for_each(|owner| owner.uid = "another".to_owned());
    });
    world.settle().await;
    check(&world, expect!["IPv4 [80]: 192.0.2.1"]);
    let slice = world.api.get::<EndpointSlice>("ns", &name).expect("it was kept");
    let owner = slice.metadata.owner_references.iter().flatten().map(|owner| owner.uid.clone()).next();
    assert_eq!(owner, world.api.get::<Endpoints>("ns", "db").and_then(|endpoints| endpoints.metadata.uid.clone()));
}

#[test]
fn no_more_than_one_slice_holds_is_mirrored_and_ready_ones_first() {
    let plan = plan(&endpoints(vec![subset(&["192.0.2.9"], &["192.0.2.1", "192.0.2.2"], &[80])]), &[], 2);
    assert_eq!(describe(&plan.changes.create[0]), "IPv4 [80]: 192.0.2.1 (not ready) 192.0.2.9");
    assert_eq!((plan.invalid, plan.skipped), (0, 1));
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let world = || arrange(vec![subset(&["192.0.2.1"], &[], &[80]), subset(&["192.0.2.2"], &[], &[81])]);
    let drive = async |world: &mut World| {
        world.run_for(Duration::from_secs(60)).await;
        world.api.edit::<Endpoints>("ns", "db", |endpoints| {
            endpoints.subsets = Some(vec![subset(&["192.0.2.3", "2001:db8::1"], &[], &[82])]);
        });
        world.run_for(Duration::from_secs(60)).await;
    };
    survives_any_crash(world, drive, outcome).await;
}
