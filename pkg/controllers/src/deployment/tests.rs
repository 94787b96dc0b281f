//! Rollouts, together with the ReplicaSet controller, on nodes that run everything.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::k8s::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, ReplicaSet, RollingUpdateDeployment};
use rkube_api::k8s::core::v1::Pod;
use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;
use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_client::DeleteOptions;

use super::DEPLOYMENT;
use crate::replicaset::REPLICASET;
use crate::testing::{World, events, labels, metadata, names, survives_any_crash, template};

fn deployment(replicas: i32) -> Deployment {
    let quarter = || Some(IntOrString::String("25%".to_owned()));
    Deployment {
        metadata: metadata("ns", "web"),
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            progress_deadline_seconds: Some(600),
            revision_history_limit: Some(10),
            selector: LabelSelector { match_labels: Some(labels(&[("app", "web")])), ..LabelSelector::default() },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment { max_surge: quarter(), max_unavailable: quarter() }),
            }),
            template: template("web", "image:1"),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn world(deployment: &Deployment) -> World {
    let world = World::with_nodes(&[DEPLOYMENT, REPLICASET]);
    world.api.put(deployment);
    world
}

/// A Deployment whose first pods are there.
async fn running(replicas: i32) -> World {
    let mut world = world(&deployment(replicas));
    world.start();
    world.settle().await;
    world
}

fn image(set: &ReplicaSet) -> String {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    template.and_then(|template| template.spec.as_ref()?.containers[0].image.clone()).unwrap_or_default()
}

/// What a user sees of a Deployment, without names and times.
fn outcome(world: &World) -> String {
    let deployment = world.api.get::<Deployment>("ns", "web").expect("it was put");
    let status = deployment.status.clone().unwrap_or_default();
    let annotation = |annotations: &Option<std::collections::BTreeMap<String, String>>, name: &str| {
        annotations
            .as_ref()
            .and_then(|all| all.get(&format!("deployment.kubernetes.io/{name}")).cloned())
            .unwrap_or("-".into())
    };
    let mut lines = vec![format!(
        "revision {} replicas {} updated {} ready {} available {} unavailable {}",
        annotation(&deployment.metadata.annotations, "revision"),
        status.replicas.unwrap_or(0),
        status.updated_replicas.unwrap_or(0),
        status.ready_replicas.unwrap_or(0),
        status.available_replicas.unwrap_or(0),
        status.unavailable_replicas.unwrap_or(0),
    )];
    let mut conditions: Vec<_> = status
        .conditions
        .iter()
        .flatten()
        .map(|condition| {
            format!("{} {} {}", condition.type_, condition.status, condition.reason.as_deref().unwrap_or_default())
        })
        .collect();
    conditions.sort();
    lines.push(conditions.join(", "));
    let mut sets: Vec<_> = world
        .api
        .list::<ReplicaSet>("ns")
        .iter()
        .map(|set| {
            format!(
                "{} {}/{} revision {} was {} of at most {}",
                image(set),
                set.status.as_ref().map_or(0, |status| status.replicas),
                set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(-1),
                annotation(&set.metadata.annotations, "revision"),
                annotation(&set.metadata.annotations, "desired-replicas"),
                annotation(&set.metadata.annotations, "max-replicas"),
            )
        })
        .collect();
    sets.sort();
    lines.extend(sets);
    lines.push(format!("{} pods", world.api.list::<Pod>("ns").len()));
    lines.join("\n")
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

/// The rollout is over, with this outcome besides the conditions that say so.
fn check_done(world: &World, expected: Expect) {
    let outcome = outcome(world);
    let done = "Available True MinimumReplicasAvailable, Progressing True NewReplicaSetAvailable\n";
    assert!(outcome.contains(done), "{outcome}");
    expected.assert_eq(&outcome.replace(done, ""));
}

fn set_image(world: &World, image: &str) {
    edit(world, |spec| spec.template = template("web", image));
}

fn edit(world: &World, edit: impl FnOnce(&mut DeploymentSpec)) {
    world.api.edit::<Deployment>("ns", "web", |deployment| {
        edit(deployment.spec.get_or_insert_default());
        deployment.metadata.generation = deployment.metadata.generation.map(|generation| generation + 1);
    });
}

#[tokio::test]
async fn a_new_deployment_becomes_available() {
    let mut world = running(3).await;
    check_done(
        &world,
        expect![[r#"
        revision 1 replicas 3 updated 3 ready 3 available 3 unavailable 0
        image:1 3/3 revision 1 was 3 of at most 4
        3 pods"#]],
    );
    assert!(events(&world, "ns").contains("Normal ScalingReplicaSet: Scaled up replica set web-"));

    world.stays_idle(Duration::from_secs(7200)).await;
}

#[tokio::test]
async fn a_new_template_rolls_and_undo_rolls_back() {
    let mut world = running(4).await;
    set_image(&world, "image:2");
    world.settle().await;
    check_done(
        &world,
        expect![[r#"
        revision 2 replicas 4 updated 4 ready 4 available 4 unavailable 0
        image:1 0/0 revision 1 was 4 of at most 5
        image:2 4/4 revision 2 was 4 of at most 5
        4 pods"#]],
    );
    // What kubectl rollout undo does: the old template, and with it the old ReplicaSet, is the new one again.
    set_image(&world, "image:1");
    world.settle().await;
    check_done(
        &world,
        expect![[r#"
        revision 3 replicas 4 updated 4 ready 4 available 4 unavailable 0
        image:1 4/4 revision 3 was 4 of at most 5
        image:2 0/0 revision 2 was 4 of at most 5
        4 pods"#]],
    );
}

#[tokio::test]
async fn the_deprecated_rollback_annotation_works() {
    let mut world = running(2).await;
    set_image(&world, "image:2");
    world.settle().await;
    world.api.edit::<Deployment>("ns", "web", |deployment| {
        let annotations = deployment.metadata.annotations.get_or_insert_default();
        annotations.insert("deprecated.deployment.rollback.to".to_owned(), "0".to_owned());
    });
    world.settle().await;
    check_done(
        &world,
        expect![[r#"
        revision 3 replicas 2 updated 2 ready 2 available 2 unavailable 0
        image:1 2/2 revision 3 was 2 of at most 3
        image:2 0/0 revision 2 was 2 of at most 3
        2 pods"#]],
    );
    assert!(events(&world, "ns").contains("Rolled back deployment \"web\" to revision 1"));
}

#[tokio::test]
async fn a_broken_rollout_keeps_most_pods_and_times_out() {
    let mut world = running(4).await;
    world.nodes = false;
    set_image(&world, "broken:2");
    world.run_for(Duration::from_secs(300)).await;
    check(
        &world,
        expect![[r#"
        revision 2 replicas 5 updated 2 ready 3 available 3 unavailable 2
        Available True MinimumReplicasAvailable, Progressing True ReplicaSetUpdated
        broken:2 2/2 revision 2 was 4 of at most 5
        image:1 3/3 revision 1 was 4 of at most 5
        6 pods"#]],
    );
    world.run_for(Duration::from_secs(302)).await;
    check(
        &world,
        expect![[r#"
        revision 2 replicas 5 updated 2 ready 3 available 3 unavailable 2
        Available True MinimumReplicasAvailable, Progressing False ProgressDeadlineExceeded
        broken:2 2/2 revision 2 was 4 of at most 5
        image:1 3/3 revision 1 was 4 of at most 5
        6 pods"#]],
    );
}

#[tokio::test]
async fn scaling_during_a_rollout_is_proportional() {
    let mut world = running(10).await;
    world.nodes = false;
    set_image(&world, "broken:2");
    world.run_for(Duration::from_secs(1)).await;
    edit(&world, |spec| spec.replicas = Some(20));
    world.run_for(Duration::from_secs(1)).await;
    check(
        &world,
        expect![[r#"
        revision 2 replicas 25 updated 10 ready 8 available 8 unavailable 17
        Available False MinimumReplicasUnavailable, Progressing True ReplicaSetUpdated
        broken:2 10/10 revision 2 was 20 of at most 25
        image:1 15/15 revision 1 was 20 of at most 25
        27 pods"#]],
    );
}

#[tokio::test]
async fn recreate_stops_everything_first() {
    let mut wanted = deployment(3);
    let spec = wanted.spec.get_or_insert_default();
    spec.strategy = Some(DeploymentStrategy { type_: Some("Recreate".to_owned()), rolling_update: None });
    let mut world = world(&wanted);
    world.start();
    world.settle().await;
    world.nodes = false;
    set_image(&world, "image:2");
    world.settle().await;
    // The old pods have not ended yet.
    assert_eq!(world.api.list::<ReplicaSet>("ns").len(), 1);
    world.nodes = true;
    world.settle().await;
    check_done(
        &world,
        expect![[r#"
        revision 2 replicas 3 updated 3 ready 3 available 3 unavailable 0
        image:1 0/0 revision 1 was 3 of at most 3
        image:2 3/3 revision 2 was 3 of at most 3
        3 pods"#]],
    );
}

#[tokio::test]
async fn a_paused_deployment_scales_and_does_not_roll() {
    let mut world = running(2).await;
    edit(&world, |spec| spec.paused = Some(true));
    world.settle().await;
    set_image(&world, "image:2");
    edit(&world, |spec| {
        spec.paused = Some(true);
        spec.replicas = Some(3);
    });
    world.settle().await;
    check(
        &world,
        expect![[r#"
        revision 1 replicas 3 updated 0 ready 3 available 3 unavailable 0
        Available True MinimumReplicasAvailable, Progressing Unknown DeploymentPaused
        image:1 3/3 revision 1 was 3 of at most 4
        3 pods"#]],
    );
    edit(&world, |spec| spec.paused = None);
    world.settle().await;
    check_done(
        &world,
        expect![[r#"
        revision 2 replicas 3 updated 3 ready 3 available 3 unavailable 0
        image:1 0/0 revision 1 was 3 of at most 4
        image:2 3/3 revision 2 was 3 of at most 4
        3 pods"#]],
    );
}

#[tokio::test]
async fn history_is_limited_and_change_causes_are_kept() {
    let mut wanted = deployment(1);
    wanted.spec.get_or_insert_default().revision_history_limit = Some(1);
    let mut world = world(&wanted);
    world.start();
    for revision in 1..=4 {
        let image = format!("image:{revision}");
        world.api.edit::<Deployment>("ns", "web", |deployment| {
            let annotations = deployment.metadata.annotations.get_or_insert_default();
            annotations.insert("kubernetes.io/change-cause".to_owned(), format!("to {image}"));
        });
        set_image(&world, &image);
        world.settle().await;
    }
    let sets = world.api.list::<ReplicaSet>("ns");
    let mut causes: Vec<_> = sets
        .iter()
        .filter_map(|set| {
            Some(format!("{} {}", image(set), set.metadata.annotations.as_ref()?.get("kubernetes.io/change-cause")?))
        })
        .collect();
    causes.sort();
    assert_eq!(causes, ["image:3 to image:3", "image:4 to image:4"]);
}

#[tokio::test]
async fn a_colliding_name_gets_another_hash() {
    let first = running(1).await;
    let taken = first.api.list::<ReplicaSet>("ns")[0].metadata.name.clone().unwrap_or_default();

    let mut world = world(&deployment(1));
    world.api.put(&ReplicaSet { metadata: metadata("ns", &taken), ..ReplicaSet::default() });
    world.start();
    world.run_for(Duration::from_secs(5)).await;
    let sets = world.api.list::<ReplicaSet>("ns");
    assert_eq!(sets.len(), 2);
    let deployment = world.api.get::<Deployment>("ns", "web").expect("it was put");
    assert_eq!(deployment.status.as_ref().and_then(|status| status.collision_count), Some(1));
    assert_eq!(deployment.status.as_ref().and_then(|status| status.available_replicas), Some(1));
}

/// Rolls to a new image and lets `hand` do something when the new pods are there and none of them runs yet.
async fn rolled(hand: impl AsyncFnOnce(&World)) -> String {
    let mut world = running(4).await;
    world.nodes = false;
    set_image(&world, "image:2");
    world.settle().await;
    hand(&world).await;
    world.settle().await;
    world.nodes = true;
    world.run_for(Duration::from_secs(60)).await;
    outcome(&world)
}

/// The name of the ReplicaSet of an image.
fn set_of(world: &World, wanted: &str) -> String {
    let sets = world.api.list::<ReplicaSet>("ns");
    let found = sets.iter().find(|set| image(set) == wanted).expect("there is one");
    found.metadata.name.clone().unwrap_or_default()
}

fn scale_set(world: &World, wanted: &str, replicas: i32) {
    world.api.edit::<ReplicaSet>("ns", &set_of(world, wanted), |set| {
        set.spec.get_or_insert_default().replicas = Some(replicas);
        set.metadata.generation = set.metadata.generation.map(|generation| generation + 1);
    });
}

#[tokio::test]
async fn hands_in_a_rollout_do_not_change_its_end() {
    let undisturbed = rolled(async |_| {}).await;
    assert!(undisturbed.contains("replicas 4 updated 4 ready 4 available 4"), "{undisturbed}");
    assert_eq!(rolled(async |world| scale_set(world, "image:2", 0)).await, undisturbed, "the new set was emptied");
    assert_eq!(rolled(async |world| scale_set(world, "image:1", 9)).await, undisturbed, "the old set was scaled up");
    assert_eq!(rolled(async |world| scale_set(world, "image:1", 0)).await, undisturbed, "the old set was emptied");
    let remove_pods = async |world: &World| {
        let pods = world.client().namespaced::<Pod>("ns");
        for name in names::<Pod>(world, "ns") {
            pods.delete(&name, &DeleteOptions::default()).await.expect("it is there");
        }
    };
    assert_eq!(rolled(remove_pods).await, undisturbed, "all pods were deleted");
    let forget_revision = async |world: &World| {
        world.api.edit::<ReplicaSet>("ns", &set_of(world, "image:2"), |set| set.metadata.annotations = None);
    };
    assert_eq!(rolled(forget_revision).await, undisturbed, "the new set's annotations were removed");
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let drive = async |world: &mut World| {
        world.run_for(Duration::from_secs(30)).await;
        set_image(world, "image:2");
        world.run_for(Duration::from_secs(30)).await;
        edit(world, |spec| spec.replicas = Some(5));
        world.run_for(Duration::from_secs(30)).await;
    };
    survives_any_crash(|| world(&deployment(3)), drive, outcome).await;
}
