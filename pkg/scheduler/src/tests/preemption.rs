//! Important pods get room, and nobody leaves who need not.

use std::time::Duration;

use expect_test::expect;
use rkube_api::k8s::core::v1::Pod;
use serde_json::{Value, json};

use crate::testing::World;

fn running(node: &str, priority: i32) -> impl FnOnce(&mut Value) {
    move |pod| {
        pod["spec"]["nodeName"] = node.into();
        pod["spec"]["priority"] = priority.into();
        pod["status"]["phase"] = "Running".into();
    }
}

fn important(pod: &mut Value) {
    pod["spec"]["priority"] = 100.into();
}

fn pods(world: &World) -> Vec<String> {
    let name = |pod: &std::sync::Arc<Pod>| pod.metadata.name.clone().unwrap_or_default();
    let alive = world.api.list::<Pod>("default").into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    alive.map(|pod| name(&pod)).collect()
}

#[tokio::test]
async fn the_fewest_and_lowest_leave_and_only_they() {
    let mut world = World::new();
    world.node("a", "4", |_| {});
    world.node("b", "4", |_| {});
    world.pod("a-low", "3", running("a", 1));
    world.pod("a-tiny", "1", running("a", 5));
    world.pod("b-low-1", "2", running("b", 1));
    world.pod("b-low-2", "2", running("b", 1));
    world.start();
    world.settle().await;
    world.pod("big", "3", important);
    world.run_for(Duration::from_secs(15)).await;
    // On `a` one pod of priority 1 is enough; on `b` both would have to go.
    assert_eq!(world.node_of("big").as_deref(), Some("a"));
    assert_eq!(pods(&world), ["a-tiny", "b-low-1", "b-low-2", "big"]);
    let events = world.events();
    assert!(events.contains("Normal Preempted: Preempted by pod uid-5 on node a"), "{events}");
}

#[tokio::test]
async fn room_is_kept_while_victims_end() {
    let mut world = World::new();
    world.api.keep_terminating_pods();
    world.node("a", "4", |_| {});
    world.pod("victim", "4", running("a", 1));
    world.start();
    world.settle().await;
    world.pod("big", "4", important);
    world.settle().await;
    let big = world.api.get::<Pod>("default", "big").expect("the pod");
    assert_eq!(big.status.as_ref().and_then(|status| status.nominated_node_name.as_deref()), Some("a"));
    let victim = world.api.get::<Pod>("default", "victim").expect("still ending");
    let conditions = victim.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    assert!(conditions.iter().any(|condition| condition.reason.as_deref() == Some("PreemptionByScheduler")));
    // A less important pod that would fit when the victim is gone does not get in between.
    world.pod("small", "1", |_| {});
    world.api.take_actions();
    world.api.finish_deletions();
    world.run_for(Duration::from_secs(15)).await;
    assert_eq!(world.node_of("big").as_deref(), Some("a"));
    assert_eq!(world.node_of("small"), None);
    expect!["Unschedulable: 0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."]
        .assert_eq(&world.why("small"));
}

#[tokio::test]
async fn budgets_and_policy_are_respected() {
    let mut world = World::new();
    world.node("a", "2", |_| {});
    world.node("b", "2", |_| {});
    world.pod("guarded", "2", |pod| {
        running("a", 1)(pod);
        pod["metadata"]["labels"] = json!({"app": "db"});
    });
    world.pod("free", "2", running("b", 50));
    world.api.put_value(
        "poddisruptionbudgets",
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "db", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "db"}}}, "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1},
        }),
    );
    world.start();
    world.settle().await;
    world.pod("polite", "2", |pod| {
        important(pod);
        pod["spec"]["preemptionPolicy"] = "Never".into();
    });
    world.settle().await;
    expect!["Unschedulable: 0/2 nodes are available: 2 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."]
        .assert_eq(&world.why("polite"));
    world.api.remove::<Pod>("default", "polite");
    world.pod("big", "2", important);
    world.run_for(Duration::from_secs(15)).await;
    // The budget weighs more than the priority.
    assert_eq!(world.node_of("big").as_deref(), Some("b"));
    assert_eq!(pods(&world), ["big", "guarded"]);
}

#[tokio::test]
async fn many_preemptors_at_once_wait_each_for_its_own_victims() {
    const NODES: usize = 20;
    let mut world = World::new();
    world.api.keep_terminating_pods();
    for index in 0..NODES {
        world.node(&format!("node-{index}"), "4", |_| {});
        for victim in 0..2 {
            world.pod(&format!("victim-{index}-{victim}"), "2", running(&format!("node-{index}"), 1));
        }
    }
    world.start();
    world.settle().await;
    for index in 0..NODES {
        world.pod(&format!("big-{index}"), "4", important);
    }
    world.settle().await;
    // A promise each, and a mark and an end for each victim: nobody was asked to leave twice.
    let writes = |world: &World| {
        let writes = world.api.take_writes();
        writes.lines().filter(|write| !write.contains(" events ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let asked = writes(&world);
    assert_eq!(asked.len(), NODES + NODES * 2 * 2, "{asked:?}");
    world.api.finish_deletions();
    world.settle().await;
    // No pod waits for its back-off, and none was tried before its room was there.
    let (binds, others): (Vec<_>, Vec<_>) =
        writes(&world).into_iter().partition(|write| write.contains("pods/binding"));
    assert_eq!((binds.len(), others), (NODES, Vec::new()));
}
