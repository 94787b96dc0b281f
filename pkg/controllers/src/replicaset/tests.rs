//! ReplicaSets and ReplicationControllers on nodes that run everything.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::k8s::apps::v1::{ReplicaSet, ReplicaSetSpec};
use rkube_api::k8s::core::v1::{Pod, ReplicationController, ReplicationControllerSpec};
use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;
use rkube_apimachinery::status::ApiStatus;
use rkube_client::owner::{controller_of, new_controller_ref};

use super::{REPLICASET, REPLICATIONCONTROLLER};
use crate::testing::{World, events, labels, metadata, survives_any_crash, template};

fn replica_set(name: &str, replicas: i32) -> ReplicaSet {
    ReplicaSet {
        metadata: metadata("ns", name),
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector { match_labels: Some(labels(&[("app", name)])), ..LabelSelector::default() },
            template: Some(template(name, "image:1")),
            ..ReplicaSetSpec::default()
        }),
        status: None,
    }
}

fn pod(name: &str, app: &str) -> Pod {
    let mut metadata = metadata("ns", name);
    metadata.labels = Some(labels(&[("app", app)]));
    Pod { metadata, ..Pod::default() }
}

/// The pods by owner, and the status.
fn outcome(world: &World) -> String {
    let mut lines = Vec::new();
    for set in world.api.list::<ReplicaSet>("ns") {
        let pods = world.api.list::<Pod>("ns");
        let owned = pods.iter().filter(|pod| {
            controller_of(&pod.metadata).is_some_and(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
        });
        let status = set.status.clone().unwrap_or_default();
        lines.push(format!(
            "{}: {} pods, replicas {} labeled {} ready {} available {} terminating {:?} observed {:?} conditions {:?}",
            set.metadata.name.as_deref().unwrap_or_default(),
            owned.count(),
            status.replicas,
            status.fully_labeled_replicas.unwrap_or(0),
            status.ready_replicas.unwrap_or(0),
            status.available_replicas.unwrap_or(0),
            status.terminating_replicas,
            status.observed_generation,
            status
                .conditions
                .iter()
                .flatten()
                .map(|c| format!("{} {}", c.type_, c.message.as_deref().unwrap_or_default()))
                .collect::<Vec<_>>(),
        ));
    }
    lines.join("\n")
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

#[tokio::test]
async fn creates_counts_and_says_so() {
    let mut world = World::with_nodes(&[REPLICASET]);
    world.api.put(&replica_set("web", 2));
    world.start();
    world.settle().await;
    check(
        &world,
        expect![[
            "web: 2 pods, replicas 2 labeled 2 ready 2 available 2 terminating Some(0) observed Some(1) conditions []"
        ]],
    );
    let events = events(&world, "ns");
    assert_eq!(events.lines().filter(|line| line.starts_with("Normal SuccessfulCreate: Created pod: web-")).count(), 2);

    // A settled ReplicaSet costs nothing.
    world.stays_idle(Duration::from_secs(3600)).await;
}

#[tokio::test]
async fn scales_down_what_is_least_useful() {
    let mut world = World::with_nodes(&[REPLICASET]);
    world.api.put(&replica_set("web", 3));
    world.start();
    world.settle().await;
    let keep = world.api.list::<Pod>("ns").iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>();
    world.api.edit::<Pod>("ns", &keep[1], |pod| {
        pod.metadata.annotations = Some(labels(&[("controller.kubernetes.io/pod-deletion-cost", "-5")]));
    });
    world.api.edit::<ReplicaSet>("ns", "web", |set| set.spec.get_or_insert_default().replicas = Some(2));
    world.settle().await;
    let left = world.api.list::<Pod>("ns").iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>();
    assert_eq!(left, [keep[0].clone(), keep[2].clone()]);
    check(
        &world,
        expect![[
            "web: 2 pods, replicas 2 labeled 2 ready 2 available 2 terminating Some(0) observed Some(1) conditions []"
        ]],
    );
}

#[tokio::test]
async fn adopts_orphans_and_releases_strays() {
    let mut world = World::with_nodes(&[REPLICASET]);
    world.api.put(&pod("orphan", "web"));
    world.api.put(&replica_set("web", 1));
    let owner = world.api.get::<ReplicaSet>("ns", "web").expect("it was put");
    let mut stray = pod("stray", "db");
    stray.metadata.owner_references = Some(vec![new_controller_ref(&*owner)]);
    world.api.put(&stray);
    world.start();
    world.settle().await;
    check(
        &world,
        expect![[
            "web: 1 pods, replicas 1 labeled 1 ready 1 available 1 terminating Some(0) observed Some(1) conditions []"
        ]],
    );
    let stray = world.api.get::<Pod>("ns", "stray").expect("a released pod stays");
    assert!(controller_of(&stray.metadata).is_none());
}

#[tokio::test]
async fn a_refused_creation_is_a_condition_and_is_retried() {
    let mut world = World::with_nodes(&[REPLICASET]);
    world.api.react(|action| {
        let quota = action.verb == "create" && action.resource == "pods";
        let pods = rkube_apimachinery::gvk::GroupResource::new("", "pods");
        quota.then(|| ApiStatus::forbidden(&pods, "", "exceeded quota"))
    });
    world.api.put(&replica_set("web", 3));
    world.start();
    world.settle().await;
    check(
        &world,
        expect![[
            r#"web: 0 pods, replicas 0 labeled 0 ready 0 available 0 terminating Some(0) observed Some(1) conditions ["ReplicaFailure pods is forbidden: exceeded quota"]"#
        ]],
    );
    world.api.clear_reactions();
    world.run_for(Duration::from_secs(10)).await;
    check(
        &world,
        expect![[
            "web: 3 pods, replicas 3 labeled 3 ready 3 available 3 terminating Some(0) observed Some(1) conditions []"
        ]],
    );
}

#[tokio::test]
async fn available_means_ready_for_long_enough() {
    let mut world = World::with_nodes(&[REPLICASET]);
    let mut set = replica_set("web", 1);
    set.spec.get_or_insert_default().min_ready_seconds = Some(30);
    world.api.put(&set);
    world.start();
    world.run_for(Duration::from_secs(29)).await;
    check(
        &world,
        expect![[
            "web: 1 pods, replicas 1 labeled 1 ready 1 available 0 terminating Some(0) observed Some(1) conditions []"
        ]],
    );
    world.run_for(Duration::from_secs(2)).await;
    check(
        &world,
        expect![[
            "web: 1 pods, replicas 1 labeled 1 ready 1 available 1 terminating Some(0) observed Some(1) conditions []"
        ]],
    );
}

#[tokio::test]
async fn a_finished_pod_is_replaced() {
    let mut world = World::with_nodes(&[REPLICASET]);
    world.api.put(&replica_set("web", 1));
    world.start();
    world.settle().await;
    let name = world.api.list::<Pod>("ns")[0].metadata.name.clone().unwrap_or_default();
    world.api.edit::<Pod>("ns", &name, |pod| pod.status.get_or_insert_default().phase = Some("Failed".to_owned()));
    world.settle().await;
    // The failed one stays, for its logs.
    check(
        &world,
        expect![[
            "web: 2 pods, replicas 1 labeled 1 ready 1 available 1 terminating Some(0) observed Some(1) conditions []"
        ]],
    );
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let arrange = || {
        let world = World::with_nodes(&[REPLICASET]);
        world.api.put(&pod("orphan", "web"));
        world.api.put(&replica_set("web", 5));
        world
    };
    let drive = async |world: &mut World| {
        world.run_for(Duration::from_secs(30)).await;
        world.api.edit::<ReplicaSet>("ns", "web", |set| set.spec.get_or_insert_default().replicas = Some(2));
        world.run_for(Duration::from_secs(30)).await;
    };
    survives_any_crash(arrange, drive, outcome).await;
}

fn replication_controller() -> World {
    let world = World::with_nodes(&[REPLICATIONCONTROLLER]);
    let template = template("web", "image:1");
    world.api.put(&ReplicationController {
        metadata: metadata("ns", "web"),
        spec: Some(ReplicationControllerSpec {
            replicas: Some(2),
            selector: Some(labels(&[("app", "web")])),
            template: Some(template),
            ..ReplicationControllerSpec::default()
        }),
        status: None,
    });
    world
}

#[tokio::test]
async fn a_replication_controller_converges_after_a_crash_at_any_write() {
    let arrange = || {
        let world = replication_controller();
        world.api.put(&pod("orphan", "web"));
        world
    };
    let drive = async |world: &mut World| {
        world.run_for(Duration::from_secs(30)).await;
        world.api.edit::<ReplicationController>("ns", "web", |controller| {
            controller.spec.get_or_insert_default().replicas = Some(4);
        });
        world.run_for(Duration::from_secs(30)).await;
    };
    let outcome = |world: &World| {
        let controller = world.api.get::<ReplicationController>("ns", "web").expect("it was put");
        format!("{:?} {} pods", controller.status, world.api.list::<Pod>("ns").len())
    };
    survives_any_crash(arrange, drive, outcome).await;
}

#[tokio::test]
async fn replication_controllers_are_the_same() {
    let mut world = replication_controller();
    world.start();
    world.settle().await;
    let controller = world.api.get::<ReplicationController>("ns", "web").expect("it was put");
    let status = controller.status.clone().unwrap_or_default();
    assert_eq!((status.replicas, status.available_replicas), (2, Some(2)));
    assert_eq!(world.api.list::<Pod>("ns").len(), 2);
}
