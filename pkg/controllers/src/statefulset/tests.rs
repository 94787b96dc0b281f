//! StatefulSets in order and in parallel, with storage.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::k8s::apps::v1::{
    ControllerRevision, RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetOrdinals,
    StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use rkube_api::k8s::core::v1::{PersistentVolumeClaim, Pod};
use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;

use super::STATEFULSET;
use super::pods::revision_of;
use crate::testing::{World, labels, metadata, names, survives_any_crash, template};

fn stateful_set(replicas: i32) -> StatefulSet {
    let data = PersistentVolumeClaim {
        metadata: rkube_api::meta::pkg::apis::meta::v1::ObjectMeta {
            name: Some("data".to_owned()),
            ..Default::default()
        },
        ..Default::default()
    };
    StatefulSet {
        metadata: metadata("ns", "db"),
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas),
            service_name: Some("db".to_owned()),
            selector: LabelSelector { match_labels: Some(labels(&[("app", "db")])), ..LabelSelector::default() },
            template: template("db", "image:1"),
            volume_claim_templates: Some(vec![data]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

fn world(set: &StatefulSet) -> World {
    let world = World::with_nodes(&[STATEFULSET]);
    world.api.put(set);
    world
}

fn edit(world: &World, edit: impl FnOnce(&mut StatefulSetSpec)) {
    world.api.edit::<StatefulSet>("ns", "db", |set| {
        edit(set.spec.get_or_insert_default());
        set.metadata.generation = set.metadata.generation.map(|generation| generation + 1);
    });
}

fn outcome(world: &World) -> String {
    let image = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default();
    let pods: Vec<_> = world
        .api
        .list::<Pod>("ns")
        .iter()
        .map(|pod| format!("{}={}", pod.metadata.name.clone().unwrap_or_default(), image(pod)))
        .collect();
    let set = world.api.get::<StatefulSet>("ns", "db").expect("it was put");
    let status = set.status.clone().unwrap_or_default();
    format!(
        "{} claims {} revisions {} status {} ready {} available {} current {} updated {} {}",
        pods.join(" "),
        names::<PersistentVolumeClaim>(world, "ns").join(" "),
        world.api.list::<ControllerRevision>("ns").len(),
        status.replicas,
        status.ready_replicas.unwrap_or(0),
        status.available_replicas.unwrap_or(0),
        status.current_replicas.unwrap_or(0),
        status.updated_replicas.unwrap_or(0),
        if status.current_revision == status.update_revision { "done" } else { "rolling" },
    )
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

#[tokio::test]
async fn pods_start_in_order_one_after_the_other() {
    let mut world = world(&stateful_set(3));
    world.nodes = false;
    world.start();
    world.settle().await;
    check(
        &world,
        expect!["db-0=image:1 claims data-db-0 revisions 1 status 1 ready 0 available 0 current 1 updated 1 done"],
    );
    world.nodes = true;
    world.settle().await;
    check(
        &world,
        expect![
            "db-0=image:1 db-1=image:1 db-2=image:1 claims data-db-0 data-db-1 data-db-2 revisions 1 status 3 ready 3 available 3 current 3 updated 3 done"
        ],
    );
    let pod = world.api.get::<Pod>("ns", "db-1").expect("it was created");
    let label = |name: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(name)).cloned();
    assert_eq!(label("statefulset.kubernetes.io/pod-name").as_deref(), Some("db-1"));
    assert_eq!(label("apps.kubernetes.io/pod-index").as_deref(), Some("1"));
    let spec = pod.spec.clone().unwrap_or_default();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-1"), Some("db")));

    world.stays_idle(Duration::from_secs(3600)).await;
}

#[tokio::test]
async fn parallel_sets_start_all_at_once_from_their_first_ordinal() {
    let mut set = stateful_set(3);
    let spec = set.spec.get_or_insert_default();
    spec.pod_management_policy = Some("Parallel".to_owned());
    spec.ordinals = Some(StatefulSetOrdinals { start: Some(5) });
    let mut world = world(&set);
    world.nodes = false;
    world.start();
    world.settle().await;
    assert_eq!(names::<Pod>(&world, "ns"), ["db-5", "db-6", "db-7"]);
}

#[tokio::test]
async fn scaling_down_keeps_claims_and_takes_the_highest_first() {
    let mut world = world(&stateful_set(3));
    world.start();
    world.settle().await;
    edit(&world, |spec| spec.replicas = Some(1));
    world.settle().await;
    check(
        &world,
        expect![
            "db-0=image:1 claims data-db-0 data-db-1 data-db-2 revisions 1 status 1 ready 1 available 1 current 1 updated 1 done"
        ],
    );
}

#[tokio::test]
async fn claims_follow_the_retention_policy() {
    let mut set = stateful_set(2);
    set.spec.get_or_insert_default().persistent_volume_claim_retention_policy =
        Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some("Delete".to_owned()),
            when_scaled: Some("Delete".to_owned()),
        });
    let mut world = world(&set);
    world.start();
    world.settle().await;
    let owners = |name: &str| {
        let claim = world.api.get::<PersistentVolumeClaim>("ns", name).expect("it was created");
        claim.metadata.owner_references.iter().flatten().map(|owner| owner.kind.clone()).collect::<Vec<_>>()
    };
    assert_eq!(owners("data-db-0"), ["StatefulSet"]);
    world.nodes = false;
    edit(&world, |spec| spec.replicas = Some(1));
    world.settle().await;
    let owners = |name: &str| {
        let claim = world.api.get::<PersistentVolumeClaim>("ns", name).expect("it was created");
        claim.metadata.owner_references.iter().flatten().map(|owner| owner.kind.clone()).collect::<Vec<_>>()
    };
    assert_eq!((owners("data-db-0"), owners("data-db-1")), (vec!["StatefulSet".to_owned()], vec!["Pod".to_owned()]));
}

#[tokio::test]
async fn updates_roll_from_the_highest_and_stop_at_the_partition() {
    let mut world = world(&stateful_set(3));
    world.start();
    world.settle().await;
    edit(&world, |spec| {
        spec.template = template("db", "image:2");
        spec.update_strategy = Some(StatefulSetUpdateStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(RollingUpdateStatefulSetStrategy { partition: Some(2), max_unavailable: None }),
        });
    });
    world.settle().await;
    check(
        &world,
        expect![
            "db-0=image:1 db-1=image:1 db-2=image:2 claims data-db-0 data-db-1 data-db-2 revisions 2 status 3 ready 3 available 3 current 2 updated 1 rolling"
        ],
    );
    // A pod below the partition comes back as it was.
    let uid = world.api.get::<Pod>("ns", "db-0").and_then(|pod| pod.metadata.uid.clone());
    world.api.remove::<Pod>("ns", "db-0");
    world.settle().await;
    assert_ne!(world.api.get::<Pod>("ns", "db-0").and_then(|pod| pod.metadata.uid.clone()), uid);
    assert!(outcome(&world).starts_with("db-0=image:1 db-1=image:1 db-2=image:2"), "{}", outcome(&world));
    edit(&world, |spec| spec.update_strategy = None);
    world.settle().await;
    check(
        &world,
        expect![
            "db-0=image:2 db-1=image:2 db-2=image:2 claims data-db-0 data-db-1 data-db-2 revisions 2 status 3 ready 3 available 3 current 3 updated 3 done"
        ],
    );
}

#[tokio::test]
async fn a_broken_update_stops_and_going_back_reuses_the_revision() {
    let mut world = world(&stateful_set(3));
    world.start();
    world.settle().await;
    let old = world.api.get::<Pod>("ns", "db-0").map(|pod| revision_of(&pod).to_owned());
    edit(&world, |spec| spec.template = template("db", "image:2"));
    world.api.settle().await;
    world.api.finish_deletions();
    world.api.settle().await;
    // The new pod is there and never becomes ready; nothing else is touched.
    assert!(outcome(&world).starts_with("db-0=image:1 db-1=image:1 db-2=image:2"), "{}", outcome(&world));
    edit(&world, |spec| spec.template = template("db", "image:1"));
    world.settle().await;
    check(
        &world,
        expect![
            "db-0=image:1 db-1=image:1 db-2=image:1 claims data-db-0 data-db-1 data-db-2 revisions 2 status 3 ready 3 available 3 current 3 updated 3 done"
        ],
    );
    assert_eq!(world.api.get::<Pod>("ns", "db-2").map(|pod| revision_of(&pod).to_owned()), old);
}

#[tokio::test]
async fn a_failed_pod_is_replaced_under_its_name() {
    let mut world = world(&stateful_set(2));
    world.start();
    world.settle().await;
    world.api.edit::<Pod>("ns", "db-0", |pod| pod.status.get_or_insert_default().phase = Some("Failed".to_owned()));
    world.settle().await;
    check(
        &world,
        expect![
            "db-0=image:1 db-1=image:1 claims data-db-0 data-db-1 revisions 1 status 2 ready 2 available 2 current 2 updated 2 done"
        ],
    );
}

#[tokio::test]
async fn history_is_limited() {
    let mut set = stateful_set(1);
    set.spec.get_or_insert_default().revision_history_limit = Some(1);
    let mut world = world(&set);
    world.start();
    for image in ["image:2", "image:3", "image:4"] {
        world.settle().await;
        edit(&world, |spec| spec.template = template("db", image));
    }
    world.settle().await;
    assert_eq!(world.api.list::<ControllerRevision>("ns").len(), 2);
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let drive = async |world: &mut World| {
        world.run_for(Duration::from_secs(40)).await;
        edit(world, |spec| spec.template = template("db", "image:2"));
        world.run_for(Duration::from_secs(60)).await;
        edit(world, |spec| spec.replicas = Some(1));
        world.run_for(Duration::from_secs(60)).await;
    };
    survives_any_crash(|| world(&stateful_set(3)), drive, outcome).await;
}
