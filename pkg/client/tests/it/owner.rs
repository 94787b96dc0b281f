//! Adoption and release.

use expect_test::expect;
use rkube_api::k8s::apps::v1::ReplicaSet;
use rkube_api::k8s::core::v1::Pod;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::labels::Selector;
use rkube_client::owner::{ControllerRefManager, new_controller_ref};

use crate::{World, pod, world};

fn replica_set(world: &World, name: &str) -> ReplicaSet {
    let metadata =
        ObjectMeta { name: Some(name.to_owned()), namespace: Some("ns".to_owned()), ..ObjectMeta::default() };
    world.api.put(&ReplicaSet { metadata, ..ReplicaSet::default() });
    (*world.api.get::<ReplicaSet>("ns", name).expect("it was put")).clone()
}

async fn claim(world: &World, owner: &ReplicaSet) -> String {
    let selector = Selector::parse("app=web").expect("a selector");
    let manager = ControllerRefManager::new(&world.client, owner, &selector);
    match manager.claim(world.api.list::<Pod>("ns"), |_| true).await {
        Ok(pods) => pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>().join(" "),
        Err(error) => format!("error: {error}"),
    }
}

#[tokio::test]
async fn claims_its_own_adopts_orphans_releases_strays_and_leaves_others_alone() {
    let world = world();
    let (mine, other) = (replica_set(&world, "mine"), replica_set(&world, "other"));
    let owned = |name: &str, app: &str, owner: &ReplicaSet| {
        let mut pod = pod(name, &[("app", app)]);
        pod.metadata.owner_references = Some(vec![new_controller_ref(owner)]);
        world.api.put(&pod);
    };
    owned("own", "web", &mine);
    owned("stray", "db", &mine);
    owned("foreign", "web", &other);
    world.api.put(&pod("orphan", &[("app", "web")]));
    world.api.put(&pod("unrelated", &[("app", "db")]));
    world.api.take_actions();

    expect!["orphan own"].assert_eq(&claim(&world, &mine).await);
    expect![[r#"
        patch pods ns/orphan
        patch pods ns/stray"#]]
    .assert_eq(&world.api.take_writes());
    let references = |name: &str| {
        let pod = world.api.get::<Pod>("ns", name).expect("it is there");
        pod.metadata.owner_references.iter().flatten().map(|reference| reference.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(references("orphan"), ["mine"]);
    assert!(references("stray").is_empty());
    assert_eq!(references("foreign"), ["other"]);
    // Nothing is left to do.
    claim(&world, &mine).await;
    expect![""].assert_eq(&world.api.take_writes());
}

#[tokio::test]
async fn an_owner_deleted_behind_the_cache_adopts_nothing() {
    let world = world();
    let stale = replica_set(&world, "mine");
    world.api.put(&pod("orphan", &[("app", "web")]));
    world.api.remove::<ReplicaSet>("ns", "mine");
    replica_set(&world, "mine");
    world.api.take_actions();
    expect!["error: original ReplicaSet ns/mine is gone"].assert_eq(&claim(&world, &stale).await);
    expect![""].assert_eq(&world.api.take_writes());
}
