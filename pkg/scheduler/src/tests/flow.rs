//! From a pending pod to a bound one, or to the reason why not.

use std::time::Duration;

use expect_test::expect;
use rkube_api::k8s::core::v1::{Node, Pod};
use serde_json::json;

use crate::testing::World;

#[tokio::test]
async fn pods_spread_over_nodes_and_are_told() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.node(name, "4", |_| {});
    }
    world.start();
    for index in 0..6 {
        world.pod(&format!("pod-{index}"), "1", |_| {});
    }
    world.settle().await;
    let mut nodes: Vec<_> = (0..6).filter_map(|index| world.node_of(&format!("pod-{index}"))).collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "a", "b", "b", "c", "c"]);
    let events = world.events();
    assert!(events.contains("Normal Scheduled: Successfully assigned default/pod-0 to "), "{events}");
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_is_told_why_and_tried_when_that_changes() {
    let mut world = World::new();
    world.node("small", "1", |_| {});
    world.node("tainted", "8", |node| {
        node["spec"]["taints"] = json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]);
    });
    world.node("cordoned", "8", |node| node["spec"]["unschedulable"] = true.into());
    world.start();
    world.pod("pod", "2", |_| {});
    world.settle().await;
    expect!["Unschedulable: 0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."].assert_eq(&world.why("pod"));
    expect!["Warning FailedScheduling: 0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."].assert_eq(&world.events());
    world.node("cordoned", "8", |_| {});
    world.run_for(Duration::from_secs(2)).await;
    assert_eq!(world.node_of("pod").as_deref(), Some("cordoned"));
}

#[tokio::test]
async fn without_nodes_pods_wait_for_one() {
    let mut world = World::new();
    world.start();
    world.pod("pod", "1", |_| {});
    world.pod("foreign", "1", |pod| pod["spec"]["schedulerName"] = "other".into());
    world.pod("gated", "1", |pod| pod["spec"]["schedulingGates"] = json!([{"name": "wait"}]));
    world.settle().await;
    expect!["Unschedulable: no nodes available to schedule pods"].assert_eq(&world.why("pod"));
    world.node("a", "4", |_| {});
    world.run_for(Duration::from_secs(2)).await;
    assert_eq!(world.node_of("pod").as_deref(), Some("a"));
    assert_eq!((world.node_of("foreign"), world.node_of("gated")), (None, None));
    world.api.edit::<Pod>("default", "gated", |pod| {
        pod.spec.as_mut().expect("a spec").scheduling_gates = None;
    });
    world.settle().await;
    assert_eq!(world.node_of("gated").as_deref(), Some("a"));
}

#[tokio::test]
async fn a_crash_after_any_write_loses_nothing_and_books_nothing_twice() {
    for writes in 1..=8 {
        let mut world = World::new();
        world.node("a", "2", |_| {});
        world.node("b", "2", |_| {});
        for index in 0..5 {
            world.pod(&format!("pod-{index}"), "1", |_| {});
        }
        let (transport, dead) = world.api.connect_until_write(writes);
        world.start_with(transport);
        world.settle().await;
        if dead.is_cancelled() {
            world.stop();
            world.start();
        }
        world.run_for(Duration::from_secs(20)).await;
        let nodes: Vec<_> = (0..5).filter_map(|index| world.node_of(&format!("pod-{index}"))).collect();
        assert_eq!(nodes.len(), 4, "after {writes} writes");
        for name in ["a", "b"] {
            assert_eq!(nodes.iter().filter(|node| *node == name).count(), 2, "after {writes} writes");
        }
    }
}

#[tokio::test]
async fn many_pods_that_fit_nowhere_do_not_hold_up_those_that_do() {
    let mut world = World::new();
    world.node("a", "64", |node| node["status"]["allocatable"]["pods"] = "500".into());
    world.start();
    for index in 0..300 {
        world.pod(&format!("huge-{index}"), "100", |pod| pod["spec"]["priority"] = 10.into());
    }
    world.pod("small", "1", |_| {});
    world.settle().await;
    assert_eq!(world.node_of("small").as_deref(), Some("a"));
    // Time alone brings nobody back before five minutes, and a heartbeat is no reason either.
    world.api.take_actions();
    for _ in 0..5 {
        world.api.edit::<Node>("", "a", |node| {
            let status = node.status.get_or_insert_default();
            status.conditions = Some(Vec::new());
        });
        world.settle().await;
    }
    let tried =
        |world: &World| world.api.take_actions().iter().filter(|action| action.to_string().contains("huge")).count();
    assert_eq!(tried(&world), 0);
    // An extended resource appears; the pod that waits for it is tried, and only when it is there.
    world.pod("gpu", "1", |pod| {
        pod["spec"]["containers"][0]["resources"]["requests"]["example.com/gpu"] = "1".into();
    });
    world.settle().await;
    assert!(world.why("gpu").contains("1 Insufficient example.com/gpu"), "{}", world.why("gpu"));
    world.node("a", "64", |node| {
        node["status"]["allocatable"]["pods"] = "500".into();
        node["status"]["allocatable"]["example.com/gpu"] = "1".into();
    });
    world.run_for(Duration::from_secs(2)).await;
    assert_eq!(world.node_of("gpu").as_deref(), Some("a"));
}

#[tokio::test]
async fn a_refused_binding_is_told_and_tried_again_and_its_room_is_free_meanwhile() {
    let mut world = World::new();
    world.node("a", "2", |_| {});
    world.api.react(|action| {
        let refused = action.resource == "pods/binding" && action.name == "unlucky";
        refused.then(|| rkube_apimachinery::status::ApiStatus::internal("no luck"))
    });
    world.start();
    world.pod("unlucky", "2", |_| {});
    world.settle().await;
    assert!(
        world.why("unlucky").starts_with("SchedulerError: running Bind plugin \"DefaultBinder\":"),
        "{}",
        world.why("unlucky")
    );
    world.pod("other", "1", |_| {});
    world.settle().await;
    assert_eq!(world.node_of("other").as_deref(), Some("a"));
    world.api.clear_reactions();
    world.api.remove::<Pod>("default", "other");
    world.run_for(Duration::from_secs(20)).await;
    assert_eq!(world.node_of("unlucky").as_deref(), Some("a"));
}

#[tokio::test]
async fn room_that_is_too_small_brings_nobody_back() {
    let mut world = World::new();
    world.node("a", "8", |_| {});
    for name in ["keeps", "leaves", "goes"] {
        world.pod(name, if name == "goes" { "4" } else { "2" }, |pod| {
            pod["spec"]["nodeName"] = "a".into();
            pod["status"]["phase"] = "Running".into();
        });
    }
    world.start();
    world.settle().await;
    world.pod("big", "6", |_| {});
    world.run_for(Duration::from_secs(30)).await;
    world.api.take_actions();
    world.api.remove::<Pod>("default", "leaves");
    world.run_for(Duration::from_secs(30)).await;
    assert_eq!(world.api.take_writes(), "");
    world.api.remove::<Pod>("default", "goes");
    world.run_for(Duration::from_secs(2)).await;
    assert_eq!(world.node_of("big").as_deref(), Some("a"));
}

#[tokio::test]
async fn nodes_that_come_and_go_take_nothing_with_them_and_wake_nobody_in_vain() {
    let mut world = World::new();
    world.node("stays", "4", |_| {});
    world.start();
    world.pod("keeps", "2", |_| {});
    world.settle().await;
    assert_eq!(world.node_of("keeps").as_deref(), Some("stays"));
    world.pod("huge", "100", |_| {});
    world.settle().await;
    world.api.take_actions();
    for round in 0..20 {
        world.node("flaps", "4", |_| {});
        world.settle().await;
        // The node goes and comes back under a pod that was just decided on, and with a taint now and then.
        world.pod(&format!("pod-{round}"), "1", |_| {});
        world.node("flaps", "4", |node| {
            if round % 2 == 0 {
                node["spec"]["taints"] = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
            }
        });
        world.settle().await;
        world.api.remove::<Node>("", "flaps");
        world.run_for(Duration::from_secs(1)).await;
        world.api.remove::<Pod>("default", &format!("pod-{round}"));
        world.settle().await;
    }
    // A node of 4 CPUs is nothing to a pod that wants 100: it was not tried again, nor told again.
    let actions = world.api.take_actions();
    assert_eq!(actions.iter().filter(|action| action.to_string().contains("huge")).count(), 0);
    world.pod("fits", "2", |_| {});
    world.settle().await;
    assert_eq!(world.node_of("fits").as_deref(), Some("stays"));
    // What the vanished node held is held nowhere: the one that is left is full, to the last core.
    world.pod("late", "1", |_| {});
    world.settle().await;
    expect!["Unschedulable: 0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."]
        .assert_eq(&world.why("late"));
}

#[tokio::test]
async fn an_extended_resource_that_disappears_takes_no_pod_with_it_and_gets_no_new_one() {
    let gpu = |pod: &mut serde_json::Value| {
        pod["spec"]["containers"][0]["resources"]["requests"]["example.com/gpu"] = "1".into();
    };
    let with = |amount: Option<&'static str>| {
        move |node: &mut serde_json::Value| {
            if let Some(amount) = amount {
                node["status"]["allocatable"]["example.com/gpu"] = amount.into();
            }
        }
    };
    let mut world = World::new();
    world.node("a", "8", with(Some("2")));
    world.start();
    world.pod("first", "1", gpu);
    world.settle().await;
    assert_eq!(world.node_of("first").as_deref(), Some("a"));
    world.node("a", "8", with(None));
    world.pod("second", "1", gpu);
    world.settle().await;
    expect!["Unschedulable: 0/1 nodes are available: 1 Insufficient example.com/gpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."]
        .assert_eq(&world.why("second"));
    // One is not enough beside the pod that holds one already; two are.
    world.node("a", "8", with(Some("1")));
    world.run_for(Duration::from_secs(5)).await;
    assert_eq!(world.node_of("second"), None);
    world.node("a", "8", with(Some("2")));
    world.run_for(Duration::from_secs(5)).await;
    assert_eq!(world.node_of("second").as_deref(), Some("a"));
}
