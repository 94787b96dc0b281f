//! Slices of Services whose pods come and go.

use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{ContainerPort, Node, Pod, PodIP, Service, ServicePort, ServiceSpec};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_api::meta::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::ENDPOINTSLICE;
use super::endpoints::ZonedPod;
use super::plan::{Inputs, Style};
use crate::testing::{World, events, labels, metadata, run_pod, survives_any_crash, template};

fn service(port: IntOrString) -> Service {
    Service {
        metadata: metadata("ns", "web"),
        spec: Some(ServiceSpec {
            cluster_ip: Some("10.43.0.9".to_owned()),
            ip_families: Some(vec!["IPv4".to_owned()]),
            selector: Some(labels(&[("app", "web")])),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                port: 80,
                target_port: Some(port),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn pod(world: &World, name: &str, address: &str) -> Pod {
    let template = template("web", "image:1");
    let mut metadata = metadata("ns", name);
    metadata.labels = template.metadata.and_then(|metadata| metadata.labels);
    let mut pod = Pod { metadata, spec: template.spec, status: None };
    run_pod(&mut pod, "node-1", world.now());
    let status = pod.status.get_or_insert_default();
    status.pod_ip = Some(address.to_owned());
    status.pod_ips = Some(vec![PodIP { ip: address.to_owned() }]);
    pod
}

fn arrange() -> World {
    let world = World::new(&[ENDPOINTSLICE]);
    let mut node = Node { metadata: metadata("", "node-1"), ..Node::default() };
    node.metadata.labels = Some(labels(&[("topology.kubernetes.io/zone", "z1")]));
    world.api.put(&node);
    world.api.put(&service(IntOrString::Int(8080)));
    world
}

fn describe(slice: &EndpointSlice) -> String {
    let ports: Vec<_> = slice.ports.iter().flatten().map(|port| port.port.unwrap_or(0).to_string()).collect();
    let endpoints: Vec<_> = slice
        .endpoints
        .iter()
        .flatten()
        .map(|endpoint| {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let flags =
                [("ready", conditions.ready), ("serving", conditions.serving), ("terminating", conditions.terminating)];
            let flags: Vec<_> = flags.iter().filter(|(_, on)| *on == Some(true)).map(|(name, _)| *name).collect();
            let zones: Vec<_> = endpoint
                .hints
                .iter()
                .flat_map(|hints| hints.for_zones.iter().flatten())
                .map(|zone| zone.name.clone())
                .collect();
            format!(
                "{} {} {} hints {zones:?}",
                endpoint.addresses.join(","),
                flags.join("+"),
                endpoint.zone.as_deref().unwrap_or("-")
            )
        })
        .collect();
    format!("{} ports [{}]: {}", slice.address_type, ports.join(" "), endpoints.join("; "))
}

fn outcome(world: &World) -> String {
    world.api.list::<EndpointSlice>("ns").iter().map(|slice| describe(slice)).collect::<Vec<_>>().join("\n")
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

#[tokio::test]
async fn endpoints_follow_pods() {
    let mut world = arrange();
    world.start();
    world.settle().await;
    check(&world, expect!["IPv4 ports []: "]);
    world.api.put(&pod(&world, "a", "10.42.0.1"));
    world.api.put(&pod(&world, "b", "10.42.0.2"));
    world.settle().await;
    check(
        &world,
        expect!["IPv4 ports [8080]: 10.42.0.1 ready+serving z1 hints []; 10.42.0.2 ready+serving z1 hints []"],
    );
    world.api.edit::<Pod>("ns", "a", |pod| {
        pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
    });
    world.api.edit::<Pod>("ns", "b", |pod| {
        pod.status.get_or_insert_default().conditions = None;
    });
    world.settle().await;
    check(&world, expect!["IPv4 ports [8080]: 10.42.0.1 serving+terminating z1 hints []; 10.42.0.2  z1 hints []"]);
    world.api.remove::<Pod>("ns", "a");
    world.api.remove::<Pod>("ns", "b");
    world.settle().await;
    check(&world, expect!["IPv4 ports []: "]);

    world.api.take_actions();
    world.run_for(Duration::from_secs(3600)).await;
    assert_eq!(world.api.take_writes(), "");
}

/// Those of a StatefulSet find each other before they are ready, and while they end.
#[tokio::test]
async fn pods_that_are_not_ready_are_published_where_the_service_says_so() {
    let mut world = arrange();
    let mut early = service(IntOrString::Int(8080));
    early.spec.get_or_insert_default().publish_not_ready_addresses = Some(true);
    world.api.put(&early);
    for (name, address) in [("a", "10.42.0.1"), ("b", "10.42.0.2")] {
        let mut pod = pod(&world, name, address);
        pod.status.get_or_insert_default().conditions = None;
        world.api.put(&pod);
    }
    world.start();
    world.settle().await;
    check(&world, expect!["IPv4 ports [8080]: 10.42.0.1 ready z1 hints []; 10.42.0.2 ready z1 hints []"]);
    world.api.edit::<Pod>("ns", "a", |pod| {
        pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
    });
    world.settle().await;
    check(&world, expect!["IPv4 ports [8080]: 10.42.0.1 ready+terminating z1 hints []; 10.42.0.2 ready z1 hints []"]);
    world.api.put(&service(IntOrString::Int(8080)));
    world.settle().await;
    check(&world, expect!["IPv4 ports [8080]: 10.42.0.1 terminating z1 hints []; 10.42.0.2  z1 hints []"]);
}

#[tokio::test]
async fn named_ports_that_differ_make_two_slices() {
    let mut world = arrange();
    world.api.put(&service(IntOrString::String("web".to_owned())));
    for (name, address, port) in [("a", "10.42.0.1", 8080), ("b", "10.42.0.2", 9090)] {
        let mut pod = pod(&world, name, address);
        let container = &mut pod.spec.get_or_insert_default().containers[0];
        container.ports = Some(vec![ContainerPort {
            name: Some("web".to_owned()),
            container_port: port,
            ..ContainerPort::default()
        }]);
        world.api.put(&pod);
    }
    world.start();
    world.settle().await;
    check(
        &world,
        expect![[r#"
        IPv4 ports [8080]: 10.42.0.1 ready+serving z1 hints []
        IPv4 ports [9090]: 10.42.0.2 ready+serving z1 hints []"#]],
    );
}

#[tokio::test]
async fn a_slice_changed_by_hand_is_put_right() {
    let mut world = arrange();
    world.api.put(&pod(&world, "a", "10.42.0.1"));
    world.start();
    world.settle().await;
    let name = world.api.list::<EndpointSlice>("ns")[0].metadata.name.clone().unwrap_or_default();
    world.api.edit::<EndpointSlice>("ns", &name, |slice| slice.endpoints = Some(Vec::new()));
    world.settle().await;
    check(&world, expect!["IPv4 ports [8080]: 10.42.0.1 ready+serving z1 hints []"]);
    world.api.remove::<EndpointSlice>("ns", &name);
    world.settle().await;
    check(&world, expect!["IPv4 ports [8080]: 10.42.0.1 ready+serving z1 hints []"]);
}

#[tokio::test]
async fn a_pod_waits_for_its_node_and_traffic_distribution_gives_hints() {
    let mut world = arrange();
    world.api.remove::<Node>("", "node-1");
    world.api.edit::<Service>("ns", "web", |service| {
        service.spec.get_or_insert_default().traffic_distribution = Some("PreferClose".to_owned());
    });
    world.api.put(&pod(&world, "a", "10.42.0.1"));
    world.start();
    world.settle().await;
    check(&world, expect!["IPv4 ports []: "]);
    let mut node = Node { metadata: metadata("", "node-1"), ..Node::default() };
    node.metadata.labels = Some(labels(&[("topology.kubernetes.io/zone", "z1")]));
    world.api.put(&node);
    world.settle().await;
    check(&world, expect![[r#"IPv4 ports [8080]: 10.42.0.1 ready+serving z1 hints ["z1"]"#]]);
}

#[test]
fn large_services_fill_slices_and_change_few() {
    let world = World::new(&[]);
    let service = service(IntOrString::Int(8080));
    let style = Style { managed_by: "test", endpoints_max: 10 };
    let pods: Vec<_> =
        (0..25).map(|index| (Arc::new(pod(&world, &format!("p{index}"), &format!("10.42.0.{index}"))), None)).collect();
    let sizes = |slices: &[EndpointSlice]| {
        slices.iter().map(|slice| slice.endpoints.iter().flatten().count()).collect::<Vec<_>>()
    };
    let plan = |pods: &[ZonedPod], existing: &[Arc<EndpointSlice>]| {
        super::plan::plan(Inputs { service: &service, pods, existing, shares: None, style: &style }).0
    };
    let first = plan(&pods, &[]);
    assert_eq!(sizes(&first.create), [10, 10, 5]);

    let existing: Vec<_> = first
        .create
        .into_iter()
        .enumerate()
        .map(|(index, mut slice)| {
            slice.metadata.name = Some(format!("s{index}"));
            Arc::new(slice)
        })
        .collect();
    assert!(plan(&pods, &existing).update.is_empty());
    // Three more fit into the last slice; one that goes costs one slice.
    let more: Vec<_> = pods
        .iter()
        .cloned()
        .chain((30..33).map(|index| (Arc::new(pod(&world, &format!("p{index}"), &format!("10.42.0.{index}"))), None)))
        .collect();
    let grown = plan(&more, &existing);
    assert_eq!((sizes(&grown.create), sizes(&grown.update)), (vec![], vec![8]));
    let shrunk = plan(&pods[1..], &existing);
    assert_eq!((sizes(&shrunk.create), sizes(&shrunk.update), shrunk.delete.len()), (vec![], vec![9], 0));
}

#[tokio::test]
async fn topology_mode_deals_endpoints_out_while_the_nodes_are_ready() {
    let mut world = arrange();
    for (name, zone) in [("node-1", "z1"), ("node-2", "z2")] {
        world.api.put(&ready_node(name, zone));
    }
    world.api.edit::<Service>("ns", "web", |service| {
        service.metadata.annotations = Some(labels(&[("service.kubernetes.io/topology-mode", "Auto")]));
    });
    world.api.put(&pod(&world, "a", "10.42.0.1"));
    world.api.put(&pod(&world, "b", "10.42.0.2"));
    world.start();
    world.settle().await;
    check(
        &world,
        expect![[
            r#"IPv4 ports [8080]: 10.42.0.1 ready+serving z1 hints ["z2"]; 10.42.0.2 ready+serving z1 hints ["z1"]"#
        ]],
    );
    // With one zone left there is nothing to share.
    world.api.edit::<Node>("", "node-2", |node| node.status = None);
    world.settle().await;
    check(
        &world,
        expect!["IPv4 ports [8080]: 10.42.0.1 ready+serving z1 hints []; 10.42.0.2 ready+serving z1 hints []"],
    );
    expect![[r#"
        Normal TopologyAwareHintsEnabled: Topology Aware Hints has been enabled, addressType: IPv4
        Warning TopologyAwareHintsDisabled: Insufficient Node information: allocatable CPU or zone not specified on one or more nodes, addressType: IPv4"#]].assert_eq(&events(&world, "ns"));
}

fn ready_node(name: &str, zone: &str) -> Node {
    let labels = json!({"topology.kubernetes.io/zone": zone});
    let status = json!({"allocatable": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]});
    Node::from_value(json!({"metadata": {"name": name, "labels": labels}, "status": status})).expect("a node")
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let world = || {
        let mut world = arrange();
        world.config.endpoints_per_slice_max = 2;
        for index in 1..=5 {
            world.api.put(&pod(&world, &format!("p{index}"), &format!("10.42.0.{index}")));
        }
        world
    };
    let drive = async |world: &mut World| {
        world.run_for(Duration::from_secs(5)).await;
        world.api.remove::<Pod>("ns", "p1");
        world.run_for(Duration::from_secs(5)).await;
    };
    let addresses = |world: &World| {
        let slices = world.api.list::<EndpointSlice>("ns");
        let mut all: Vec<_> = slices
            .iter()
            .flat_map(|slice| slice.endpoints.clone().unwrap_or_default())
            .flat_map(|endpoint| endpoint.addresses)
            .collect();
        all.sort();
        format!("{all:?} in {} slices", slices.len())
    };
    survives_any_crash(world, drive, addresses).await;
}
