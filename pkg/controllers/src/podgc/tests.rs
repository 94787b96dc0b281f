//! Pods nobody will finish, and too many finished ones.

use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::k8s::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus, Pod, Taint};
use rkube_api::meta::pkg::apis::meta::v1::Time;

use super::PODGC;
use super::plan::surplus;
use crate::testing::{World, metadata, names, survives_any_crash};

fn pod(name: &str, node: &str, phase: &str) -> Pod {
    let mut pod = Pod { metadata: metadata("ns", name), ..Pod::default() };
    pod.spec.get_or_insert_default().node_name = Some(node.to_owned()).filter(|node| !node.is_empty());
    pod.status.get_or_insert_default().phase = Some(phase.to_owned());
    pod
}

fn terminating(mut pod: Pod) -> Pod {
    pod.metadata.deletion_timestamp = Some(Time("2030-01-01T00:00:00Z".parse().expect("a timestamp")));
    pod.metadata.deletion_grace_period_seconds = Some(30);
    pod
}

fn node(name: &str, ready: &str, taint: Option<&str>) -> Node {
    let ready = NodeCondition { type_: "Ready".to_owned(), status: ready.to_owned(), ..NodeCondition::default() };
    let taint = taint.map(|key| Taint { key: key.to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() });
    Node {
        metadata: metadata("", name),
        spec: Some(NodeSpec { taints: taint.map(|taint| vec![taint]), ..NodeSpec::default() }),
        status: Some(NodeStatus { conditions: Some(vec![ready]), ..NodeStatus::default() }),
    }
}

fn world(objects: &[Pod], nodes: &[Node]) -> World {
    let world = World::new(&[PODGC]);
    world.api.keep_terminating_pods();
    objects.iter().for_each(|pod| world.api.put(pod));
    nodes.iter().for_each(|node| world.api.put(node));
    world
}

async fn check(mut world: World, duration: Duration, expected: Expect) {
    world.start();
    world.run_for(duration).await;
    world.stop();
    expected.assert_eq(&world.api.take_writes());
}

#[tokio::test]
async fn pods_of_a_node_that_is_gone_fail_and_go_after_the_quarantine() {
    let pods = [pod("orphan", "gone", "Running"), pod("fine", "here", "Running"), pod("pending", "", "Pending")];
    let mut world = world(&pods, &[node("here", "True", None)]);
    world.start();
    world.run_for(Duration::from_secs(39)).await;
    assert_eq!(world.api.take_writes(), "");
    world.run_for(Duration::from_secs(2)).await;
    let actions = world.api.take_actions();
    let status = actions.iter().find(|action| action.verb == "patch").map(|action| action.body["status"].clone());
    expect![[r#"
        {
          "conditions": [
            {
              "lastTransitionTime": "2030-01-01T00:00:40Z",
              "message": "PodGC: node no longer exists",
              "observedGeneration": 1,
              "reason": "DeletionByPodGC",
              "status": "True",
              "type": "DisruptionTarget"
            }
          ],
          "observedGeneration": 1,
          "phase": "Failed"
        }"#]]
    .assert_eq(&format!("{:#}", status.unwrap_or_default()));
    assert_eq!(names::<Pod>(&world, "ns"), ["fine", "pending"]);

    world.api.take_actions();
    world.run_for(Duration::from_secs(600)).await;
    assert!(world.api.take_actions().is_empty(), "nothing is asked while nothing changes");
}

#[tokio::test]
async fn a_node_that_comes_back_within_the_quarantine_keeps_its_pods() {
    let mut world = world(&[pod("a", "node", "Running")], &[node("node", "True", None)]);
    world.start();
    world.settle().await;
    world.api.remove::<Node>("", "node");
    world.run_for(Duration::from_secs(20)).await;
    world.api.put(&node("node", "True", None));
    world.run_for(Duration::from_secs(60)).await;
    assert_eq!(world.api.take_writes(), "");
}

#[tokio::test]
async fn only_terminating_pods_that_nobody_stops_are_finished() {
    let pods = [
        terminating(pod("out-of-service", "off", "Running")),
        terminating(pod("on-ready-node", "tainted-but-ready", "Running")),
        terminating(pod("on-fine-node", "fine", "Running")),
        terminating(pod("unscheduled", "", "Pending")),
        pod("stays", "off", "Running"),
    ];
    let out_of_service = Some("node.kubernetes.io/out-of-service");
    let nodes = [
        node("off", "Unknown", out_of_service),
        node("tainted-but-ready", "True", out_of_service),
        node("fine", "True", None),
    ];
    check(
        world(&pods, &nodes),
        Duration::from_secs(100),
        expect![[r#"
            patch pods/status ns/out-of-service
            delete pods ns/out-of-service
            patch pods/status ns/unscheduled
            delete pods ns/unscheduled"#]],
    )
    .await;
}

#[tokio::test]
async fn a_foreign_finalizer_holds_a_pod_and_causes_no_loop() {
    let mut held = terminating(pod("held", "", "Pending"));
    held.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    let mut world = world(&[held], &[]);
    world.start();
    world.run_for(Duration::from_secs(100)).await;
    let writes = world.api.take_writes();
    assert!(writes.lines().count() <= 3, "{writes}");
    assert_eq!(names::<Pod>(&world, "ns"), ["held"]);
}

#[tokio::test]
async fn finished_pods_over_the_threshold_go() {
    let pods: Vec<Pod> = (0..5).map(|index| pod(&format!("done-{index}"), "", "Succeeded")).collect();
    let mut world = world(&pods, &[]);
    world.config.terminated_pod_gc_threshold = 3;
    check(
        world,
        Duration::from_secs(30),
        expect![[r#"
        delete pods ns/done-0
        delete pods ns/done-1"#]],
    )
    .await;
}

#[test]
fn evicted_pods_go_first_then_the_oldest() {
    let aged = |name: &str, phase: &str, reason: Option<&str>, age: i64| {
        let mut pod = pod(name, "", phase);
        let created = jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(1000 - age);
        pod.metadata.creation_timestamp = Some(Time(created));
        pod.status.get_or_insert_default().reason = reason.map(str::to_owned);
        Arc::new(pod)
    };
    let pods = vec![
        aged("young", "Succeeded", None, 1),
        aged("old", "Failed", None, 9),
        aged("evicted", "Failed", Some("Evicted"), 0),
        aged("as-old", "Failed", None, 9),
    ];
    let chosen = |threshold: usize| {
        let names = surplus(pods.clone(), threshold).into_iter().filter_map(|pod| pod.metadata.name.clone());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(chosen(4), "");
    assert_eq!(chosen(2), "evicted as-old");
    assert_eq!(chosen(0), "evicted as-old old young");
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let remaining = |world: &World| names::<Pod>(world, "ns").join(" ");
    let drive = async |world: &mut World| world.run_for(Duration::from_secs(120)).await;
    let abandoned = [
        pod("orphan", "gone", "Running"),
        terminating(pod("unscheduled", "", "Pending")),
        pod("fine", "here", "Running"),
    ];
    survives_any_crash(|| world(&abandoned, &[node("here", "True", None)]), drive, remaining).await;
    let finished: Vec<Pod> = (0..5).map(|index| pod(&format!("done-{index}"), "", "Succeeded")).collect();
    let few = || {
        let mut world = world(&finished, &[]);
        world.config.terminated_pod_gc_threshold = 2;
        world
    };
    survives_any_crash(few, drive, remaining).await;
}
