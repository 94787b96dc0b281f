//! Nodes that fall silent and come back.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::k8s::coordination::v1::{Lease, LeaseSpec};
use rkube_api::k8s::core::v1::{Node, NodeCondition, Pod};
use rkube_api::meta::pkg::apis::meta::v1::{MicroTime, Time};
use rkube_apimachinery::clock::Clock;

use super::NODELIFECYCLE;
use crate::taint_eviction::TAINTEVICTION;
use crate::testing::{World, labels, metadata, run_pod, survives_any_crash};

fn heartbeat(world: &World, name: &str, ready: &str) {
    let now = world.now();
    let mut node = world
        .api
        .get::<Node>("", name)
        .map(|node| (*node).clone())
        .unwrap_or_else(|| Node { metadata: metadata("", name), ..Node::default() });
    node.metadata.labels = Some(labels(&[("kubernetes.io/os", "linux"), ("kubernetes.io/hostname", name)]));
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "Ready");
    conditions.push(NodeCondition {
        type_: "Ready".to_owned(),
        status: ready.to_owned(),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
        ..NodeCondition::default()
    });
    world.api.put(&node);
}

fn renew(world: &World, name: &str) {
    let spec = LeaseSpec { renew_time: Some(MicroTime(world.clock.now())), ..LeaseSpec::default() };
    world.api.put(&Lease { metadata: metadata("kube-node-lease", name), spec: Some(spec) });
}

async fn live(world: &mut World, seconds: u64, alive: &[&str]) {
    for _ in 0..seconds / 10 {
        alive.iter().for_each(|name| renew(world, name));
        world.run_for(Duration::from_secs(10)).await;
    }
}

fn outcome(world: &World) -> String {
    let node = |node: &Node| {
        let mut taints: Vec<_> = node
            .spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten())
            .map(|taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect))
            .collect();
        taints.sort();
        let ready = crate::common::nodes::ready_status(node).unwrap_or("-");
        format!("{} ready {ready} taints {taints:?}", node.metadata.name.as_deref().unwrap_or_default())
    };
    let pod = |pod: &Pod| {
        format!("pod {} ready {}", pod.metadata.name.as_deref().unwrap_or_default(), crate::common::pods::is_ready(pod))
    };
    let nodes = world.api.list::<Node>("");
    let pods = world.api.list::<Pod>("");
    nodes.iter().map(|n| node(n)).chain(pods.iter().map(|p| pod(p))).collect::<Vec<_>>().join("\n")
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

fn arrange() -> World {
    let world = World::new(&[NODELIFECYCLE, TAINTEVICTION]);
    for name in ["a", "b"] {
        heartbeat(&world, name, "True");
        renew(&world, name);
        let mut pod = Pod { metadata: metadata("ns", &format!("on-{name}")), ..Pod::default() };
        run_pod(&mut pod, name, world.now());
        let toleration = |key: &str| rkube_api::k8s::core::v1::Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            toleration_seconds: Some(300),
            ..Default::default()
        };
        pod.spec.get_or_insert_default().tolerations = Some(vec![toleration("not-ready"), toleration("unreachable")]);
        world.api.put(&pod);
    }
    world
}

#[tokio::test]
async fn a_renewed_lease_is_enough_and_costs_no_write() {
    let mut world = arrange();
    world.start();
    world.settle().await;
    world.api.take_actions();
    live(&mut world, 600, &["a", "b"]).await;
    assert_eq!(world.api.take_writes(), "");
    check(
        &world,
        expect![[r#"
        a ready True taints []
        b ready True taints []
        pod on-a ready true
        pod on-b ready true"#]],
    );
}

#[tokio::test]
async fn a_silent_node_is_tainted_and_its_pods_go_after_their_time() {
    let mut world = arrange();
    world.start();
    live(&mut world, 40, &["a"]).await;
    check(
        &world,
        expect![[r#"
        a ready True taints []
        b ready True taints []
        pod on-a ready true
        pod on-b ready true"#]],
    );
    live(&mut world, 30, &["a"]).await;
    check(
        &world,
        expect![[r#"
        a ready True taints []
        b ready Unknown taints ["unreachable:NoExecute", "unreachable:NoSchedule"]
        pod on-a ready true
        pod on-b ready false"#]],
    );
    live(&mut world, 310, &["a"]).await;
    check(
        &world,
        expect![[r#"
        a ready True taints []
        b ready Unknown taints ["unreachable:NoExecute", "unreachable:NoSchedule"]
        pod on-a ready true"#]],
    );
}

#[tokio::test]
async fn a_node_that_comes_back_keeps_its_pods() {
    let mut world = arrange();
    world.start();
    live(&mut world, 100, &["a"]).await;
    heartbeat(&world, "b", "True");
    world.settle().await;
    live(&mut world, 600, &["a", "b"]).await;
    check(
        &world,
        expect![[r#"
        a ready True taints []
        b ready True taints []
        pod on-a ready true
        pod on-b ready false"#]],
    );
}

#[tokio::test]
async fn when_all_are_silent_nobody_is_evicted() {
    let mut world = arrange();
    world.start();
    live(&mut world, 700, &[]).await;
    check(
        &world,
        expect![[r#"
        a ready Unknown taints ["unreachable:NoSchedule"]
        b ready Unknown taints ["unreachable:NoSchedule"]
        pod on-a ready false
        pod on-b ready false"#]],
    );
}

#[tokio::test]
async fn cordoned_nodes_and_labels() {
    let mut world = arrange();
    world.api.edit::<Node>("", "a", |node| node.spec.get_or_insert_default().unschedulable = Some(true));
    world.start();
    world.settle().await;
    let node = world.api.get::<Node>("", "a").expect("it was put");
    assert_eq!(
        node.metadata.labels.as_ref().and_then(|all| all.get("beta.kubernetes.io/os")).map(String::as_str),
        Some("linux")
    );
    expect![[r#"
        a ready True taints ["unschedulable:NoSchedule"]
        b ready True taints []
        pod on-a ready true
        pod on-b ready true"#]]
    .assert_eq(&outcome(&world));
    world.api.edit::<Node>("", "a", |node| node.spec.get_or_insert_default().unschedulable = None);
    world.settle().await;
    assert!(outcome(&world).starts_with("a ready True taints []"));
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let drive = async |world: &mut World| live(world, 900, &["a"]).await;
    survives_any_crash(arrange, drive, outcome).await;
}
