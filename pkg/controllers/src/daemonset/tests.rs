//! DaemonSets on nodes that run everything.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::Kind;
use rkube_api::k8s::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use rkube_api::k8s::core::v1::{Node, Pod, Taint};
use serde_json::{Value, json};

use super::DAEMONSET;
use super::pods::{HASH_LABEL, hash_of, target_node};
use crate::testing::{World, events, metadata, survives_any_crash, template};

const MINUTE: Duration = Duration::from_secs(60);

fn set(strategy: Value) -> DaemonSet {
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"namespace": "ns", "name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "updateStrategy": strategy},
    });
    set["spec"]["template"] = json!({
        "metadata": {"labels": {"app": "agent"}},
        "spec": {"containers": [{"name": "main", "image": "image:1"}]},
    });
    DaemonSet::from_value(set).expect("a DaemonSet")
}

fn rolling(unavailable: i32, surge: i32) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}})
}

fn add_node(world: &World, name: &str) {
    world.api.put(&Node { metadata: metadata("", name), ..Node::default() });
}

fn world(strategy: Value, nodes: &[&str]) -> World {
    let world = World::with_nodes(&[DAEMONSET]);
    nodes.iter().for_each(|name| add_node(&world, name));
    world.api.put(&set(strategy));
    world
}

async fn started(strategy: Value, nodes: &[&str]) -> World {
    let mut world = world(strategy, nodes);
    world.start();
    world.run_for(Duration::from_secs(5)).await;
    world
}

fn edit(world: &World, edit: impl FnOnce(&mut DaemonSetSpec)) {
    world.api.edit::<DaemonSet>("ns", "agent", |set| {
        edit(set.spec.get_or_insert_default());
        set.metadata.generation = set.metadata.generation.map(|generation| generation + 1);
    });
}

fn taint(world: &World, node: &str, effect: &str) {
    world.api.edit::<Node>("", node, |node| {
        let taint = Taint { key: "gpu".to_owned(), effect: effect.to_owned(), ..Taint::default() };
        node.spec.get_or_insert_default().taints = Some(vec![taint]);
    });
}

/// The pods by node, and the status.
fn outcome(world: &World) -> String {
    let image = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default();
    let pods = world.api.list::<Pod>("ns");
    let mut pods: Vec<_> =
        pods.iter().map(|pod| format!("{}={}", target_node(pod).unwrap_or("?"), image(pod))).collect();
    pods.sort();
    let set = world.api.get::<DaemonSet>("ns", "agent").expect("it was put");
    let status = set.status.clone().unwrap_or_default();
    format!(
        "{} revisions {} {}{}",
        pods.join(" "),
        world.api.list::<ControllerRevision>("ns").len(),
        counts(&status),
        if status.observed_generation == set.metadata.generation { "" } else { " not observed" },
    )
}

pub(super) fn counts(status: &DaemonSetStatus) -> String {
    format!(
        "desired {} current {} misscheduled {} ready {} updated {} available {} unavailable {}",
        status.desired_number_scheduled,
        status.current_number_scheduled,
        status.number_misscheduled,
        status.number_ready,
        status.updated_number_scheduled.unwrap_or(0),
        status.number_available.unwrap_or(0),
        status.number_unavailable.unwrap_or(0),
    )
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

#[tokio::test]
async fn every_node_has_its_pod_and_costs_nothing_then() {
    let mut world = started(rolling(1, 0), &["a", "b"]).await;
    check(
        &world,
        expect![
            "a=image:1 b=image:1 revisions 1 desired 2 current 2 misscheduled 0 ready 2 updated 2 available 2 unavailable 0"
        ],
    );
    let pod = world.api.list::<Pod>("ns")[0].clone();
    let spec = serde_json::to_value(&pod.spec).expect("JSON");
    let tolerations: Vec<String> = spec["tolerations"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|toleration| {
            let text = |name: &str| toleration[name].as_str().unwrap_or_default();
            format!("{} {} {}", text("key"), text("operator"), text("effect"))
        })
        .collect();
    expect![[r#"
        {"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchFields":[{"key":"metadata.name","operator":"In","values":["a"]}]}]}}}
        node.kubernetes.io/not-ready Exists NoExecute
        node.kubernetes.io/unreachable Exists NoExecute
        node.kubernetes.io/disk-pressure Exists NoSchedule
        node.kubernetes.io/memory-pressure Exists NoSchedule
        node.kubernetes.io/pid-pressure Exists NoSchedule
        node.kubernetes.io/unschedulable Exists NoSchedule"#]].assert_eq(&format!("{}\n{}", spec["affinity"], tolerations.join("\n")));
    assert!(!hash_of(&pod).is_empty());
    assert!(events(&world, "ns").contains("Normal SuccessfulCreate: Created pod: agent-"));

    world.stays_idle(Duration::from_secs(7200)).await;
}

#[tokio::test]
async fn nodes_come_change_and_go() {
    let mut world = started(rolling(1, 0), &["a", "b"]).await;
    add_node(&world, "c");
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![
            "a=image:1 b=image:1 c=image:1 revisions 1 desired 3 current 3 misscheduled 0 ready 3 updated 3 available 3 unavailable 0"
        ],
    );
    taint(&world, "a", "NoSchedule");
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![
            "a=image:1 b=image:1 c=image:1 revisions 1 desired 2 current 2 misscheduled 1 ready 2 updated 2 available 2 unavailable 0"
        ],
    );
    taint(&world, "a", "NoExecute");
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![
            "b=image:1 c=image:1 revisions 1 desired 2 current 2 misscheduled 0 ready 2 updated 2 available 2 unavailable 0"
        ],
    );
    world.api.edit::<Node>("", "a", |node| node.spec = None);
    world.nodes = false;
    world.run_for(MINUTE).await;
    // A pod that waits for a node which is gone would wait forever.
    world.api.remove::<Node>("", "a");
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![
            "b=image:1 c=image:1 revisions 1 desired 2 current 2 misscheduled 0 ready 2 updated 2 available 2 unavailable 0"
        ],
    );
}

#[tokio::test]
async fn a_new_template_rolls_and_going_back_reuses_the_revision() {
    let mut world = started(rolling(1, 0), &["a", "b", "c"]).await;
    let old = hash_of(&world.api.list::<Pod>("ns")[0]).to_owned();
    edit(&world, |spec| spec.template = template("agent", "image:2"));
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![
            "a=image:2 b=image:2 c=image:2 revisions 2 desired 3 current 3 misscheduled 0 ready 3 updated 3 available 3 unavailable 0"
        ],
    );
    edit(&world, |spec| spec.template = template("agent", "image:1"));
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![
            "a=image:1 b=image:1 c=image:1 revisions 2 desired 3 current 3 misscheduled 0 ready 3 updated 3 available 3 unavailable 0"
        ],
    );
    assert_eq!(hash_of(&world.api.list::<Pod>("ns")[0]), old);
    let revisions: Vec<i64> = world.api.list::<ControllerRevision>("ns").iter().map(|known| known.revision).collect();
    assert_eq!(revisions.iter().max(), Some(&3));
}

#[tokio::test]
async fn a_broken_rollout_stops() {
    let mut world = started(rolling(1, 0), &["a", "b", "c"]).await;
    world.nodes = false;
    edit(&world, |spec| spec.template = template("agent", "broken:2"));
    world.run_for(Duration::from_secs(5)).await;
    world.api.finish_deletions();
    world.run_for(Duration::from_secs(600)).await;
    check(
        &world,
        expect![
            "a=broken:2 b=image:1 c=image:1 revisions 2 desired 3 current 3 misscheduled 0 ready 2 updated 1 available 2 unavailable 1"
        ],
    );
}

#[tokio::test]
async fn surging_never_leaves_a_node_without_a_pod() {
    let mut world = started(rolling(0, 1), &["a", "b"]).await;
    edit(&world, |spec| spec.template = template("agent", "image:2"));
    world.api.settle().await;
    check(
        &world,
        expect![
            "a=image:1 a=image:2 b=image:1 revisions 2 desired 2 current 2 misscheduled 0 ready 2 updated 0 available 2 unavailable 0"
        ],
    );
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![
            "a=image:2 b=image:2 revisions 2 desired 2 current 2 misscheduled 0 ready 2 updated 2 available 2 unavailable 0"
        ],
    );
}

#[tokio::test]
async fn on_delete_waits_for_hands() {
    let mut world = started(json!({"type": "OnDelete"}), &["a", "b"]).await;
    edit(&world, |spec| spec.template = template("agent", "image:2"));
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![
            "a=image:1 b=image:1 revisions 2 desired 2 current 2 misscheduled 0 ready 2 updated 0 available 2 unavailable 0"
        ],
    );
    let pods = world.api.list::<Pod>("ns");
    let name = pods.iter().find(|pod| target_node(pod) == Some("a")).and_then(|pod| pod.metadata.name.clone());
    world.api.remove::<Pod>("ns", &name.unwrap_or_default());
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![
            "a=image:2 b=image:1 revisions 2 desired 2 current 2 misscheduled 0 ready 2 updated 1 available 2 unavailable 0"
        ],
    );
}

#[tokio::test]
async fn pods_that_always_fail_are_replaced_less_and_less_often() {
    let mut world = world(rolling(1, 0), &["a"]);
    world.ending = |_| Some(("Failed", 1));
    world.start();
    world.api.take_actions();
    world.run_for(Duration::from_secs(100)).await;
    let writes = world.api.take_writes();
    let deletions = writes.lines().filter(|line| line.starts_with("delete pods ns/agent-")).count();
    // At 0, 1, 3, 7, 15, 31 and 63 seconds.
    assert_eq!(deletions, 7, "{writes}");
    let text = events(&world, "ns");
    assert!(text.contains("Warning FailedDaemonPod: Found failed daemon pod ns/agent-"), "{text}");
    assert!(text.contains(" on node a, will try to kill it"), "{text}");
}

#[tokio::test]
async fn history_is_limited_and_mends_itself() {
    let mut world = started(rolling(1, 0), &["a"]).await;
    edit(&world, |spec| spec.revision_history_limit = Some(1));
    for image in ["image:2", "image:3", "image:4"] {
        edit(&world, |spec| spec.template = template("agent", image));
        world.run_for(MINUTE).await;
    }
    check(
        &world,
        expect!["a=image:4 revisions 2 desired 1 current 1 misscheduled 0 ready 1 updated 1 available 1 unavailable 0"],
    );

    // Someone takes the hash off the revision and makes a second one of the same content.
    let current = world.api.list::<ControllerRevision>("ns").iter().max_by_key(|known| known.revision).cloned();
    let mut twin = (*current.expect("there is one")).clone();
    let name = twin.metadata.name.clone().unwrap_or_default();
    world.api.edit::<ControllerRevision>("ns", &name, |revision| {
        revision.metadata.labels.get_or_insert_default().remove(HASH_LABEL);
    });
    twin.metadata.name = Some("twin".to_owned());
    twin.metadata.uid = None;
    twin.revision += 1;
    world.api.put(&twin);
    world.run_for(MINUTE).await;
    check(
        &world,
        expect!["a=image:4 revisions 2 desired 1 current 1 misscheduled 0 ready 1 updated 1 available 1 unavailable 0"],
    );
}

#[tokio::test]
async fn a_selector_of_everything_is_refused() {
    let mut world = World::with_nodes(&[DAEMONSET]);
    add_node(&world, "a");
    let mut set = set(rolling(1, 0));
    set.spec.get_or_insert_default().selector = Default::default();
    world.api.put(&set);
    world.start();
    world.run_for(MINUTE).await;
    let expected = "Warning SelectingAll: This daemon set is selecting all pods. A non-empty selector is required.";
    assert_eq!(events(&world, "ns"), expected);
    assert!(world.api.list::<Pod>("ns").is_empty());
}

#[tokio::test]
async fn a_pod_of_the_same_labels_is_adopted_and_one_that_loses_them_is_released() {
    let mut world = world(rolling(1, 0), &["a"]);
    let mut stray = Pod { metadata: metadata("ns", "stray"), ..Pod::default() };
    stray.metadata.labels = Some(crate::testing::labels(&[("app", "agent")]));
    stray.spec.get_or_insert_default().node_name = Some("a".to_owned());
    stray.spec.get_or_insert_default().containers = template("agent", "image:0").spec.unwrap_or_default().containers;
    world.api.put(&stray);
    world.start();
    world.run_for(MINUTE).await;
    // It is of no known template, and so is replaced.
    check(
        &world,
        expect!["a=image:1 revisions 1 desired 1 current 1 misscheduled 0 ready 1 updated 1 available 1 unavailable 0"],
    );
    let name = world.api.list::<Pod>("ns")[0].metadata.name.clone().unwrap_or_default();
    world.api.edit::<Pod>("ns", &name, |pod| pod.metadata.labels = None);
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![
            "a=image:1 a=image:1 revisions 1 desired 1 current 1 misscheduled 0 ready 1 updated 1 available 1 unavailable 0"
        ],
    );
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    for strategy in [rolling(1, 0), rolling(0, 1)] {
        let drive = async |world: &mut World| {
            world.run_for(MINUTE).await;
            edit(world, |spec| spec.template = template("agent", "image:2"));
            world.run_for(2 * MINUTE).await;
            taint(world, "b", "NoExecute");
            world.run_for(MINUTE).await;
        };
        survives_any_crash(|| world(strategy.clone(), &["a", "b", "c"]), drive, outcome).await;
    }
}
