//! Storage goes when the last user lets go of it.

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use rkube_api::k8s::storage::v1::VolumeAttributesClass;
use rkube_client::DeleteOptions;
use serde_json::{Value, json};

use super::{PERSISTENTVOLUME_PROTECTION, PERSISTENTVOLUMECLAIM_PROTECTION, VOLUMEATTRIBUTESCLASS_PROTECTION};
use crate::testing::{World, metadata, names, survives_any_crash};

fn world() -> World {
    let world =
        World::new(&[PERSISTENTVOLUME_PROTECTION, PERSISTENTVOLUMECLAIM_PROTECTION, VOLUMEATTRIBUTESCLASS_PROTECTION]);
    world.api.put(&PersistentVolumeClaim { metadata: metadata("ns", "data"), ..Default::default() });
    world
}

fn pod(name: &str, node: Option<&str>, volume: Value) -> Pod {
    let spec = json!({"containers": [], "nodeName": node, "volumes": [volume]});
    Pod::from_value(json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec})).expect("a pod")
}

fn named_claim() -> Value {
    json!({"name": "data", "persistentVolumeClaim": {"claimName": "data"}})
}

/// A volume in use, of a class.
fn add_volume(world: &World) {
    let volume = json!({
        "metadata": {"name": "v"}, "spec": {"volumeAttributesClassName": "fast"}, "status": {"phase": "Bound"},
    });
    world.api.put(&PersistentVolume::from_value(volume).expect("a volume"));
    world.api.put(&VolumeAttributesClass { metadata: metadata("", "fast"), ..Default::default() });
}

/// The volume and its class are to go.
async fn delete_volume(world: &World) {
    let client = world.client();
    client.all::<PersistentVolume>().delete("v", &DeleteOptions::default()).await.expect("it is there");
    client.all::<VolumeAttributesClass>().delete("fast", &DeleteOptions::default()).await.expect("it is there");
}

async fn delete_claim(world: &World, name: &str) {
    let api = world.client().namespaced::<PersistentVolumeClaim>("ns");
    api.delete(name, &DeleteOptions::default()).await.expect("the claim is there");
}

#[tokio::test]
async fn a_claim_stays_until_the_last_pod_on_a_node_is_gone() {
    let mut world = world();
    world.api.put(&pod("runs", Some("node"), named_claim()));
    let mut finished = pod("finished", Some("node"), named_claim());
    finished.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
    world.api.put(&finished);
    world.api.put(&pod("waits", None, named_claim()));
    world.start();
    world.settle().await;
    delete_claim(&world, "data").await;
    for name in ["runs", "finished"] {
        world.settle().await;
        assert_eq!(names::<PersistentVolumeClaim>(&world, "ns"), ["data"], "before {name} goes");
        world.api.remove::<Pod>("ns", name);
    }
    world.settle().await;
    assert!(world.api.list::<PersistentVolumeClaim>("ns").is_empty());
}

#[tokio::test]
async fn an_ephemeral_claim_is_used_by_its_own_pod_alone() {
    let mut world = world();
    let ephemeral = || json!({"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
    world.api.put(&pod("owner", Some("node"), ephemeral()));
    let owner = world.api.get::<Pod>("ns", "owner").expect("it was put");
    let mut own = PersistentVolumeClaim { metadata: metadata("ns", "owner-scratch"), ..Default::default() };
    own.metadata.owner_references = Some(vec![rkube_client::owner::new_controller_ref(&*owner)]);
    world.api.put(&own);
    world.api.put(&pod("other", Some("node"), ephemeral()));
    world.api.put(&PersistentVolumeClaim { metadata: metadata("ns", "other-scratch"), ..Default::default() });
    world.start();
    world.settle().await;
    delete_claim(&world, "owner-scratch").await;
    delete_claim(&world, "other-scratch").await;
    world.settle().await;
    assert_eq!(names::<PersistentVolumeClaim>(&world, "ns"), ["data", "owner-scratch"]);
    // The kubelet has stopped the pod and only waits for its volumes to go.
    world.api.edit::<Pod>("ns", "owner", |pod| {
        pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
        pod.metadata.deletion_grace_period_seconds = Some(0);
    });
    world.settle().await;
    assert_eq!(names::<PersistentVolumeClaim>(&world, "ns"), ["data"]);
}

#[tokio::test]
async fn bound_volumes_and_named_classes_stay() {
    let mut world = world();
    add_volume(&world);
    world.start();
    world.settle().await;
    delete_volume(&world).await;
    world.settle().await;
    assert_eq!(names::<PersistentVolume>(&world, ""), ["v"]);
    assert_eq!(names::<VolumeAttributesClass>(&world, ""), ["fast"]);
    world.api.edit::<PersistentVolume>("", "v", |volume| {
        volume.status.get_or_insert_default().phase = Some("Released".to_owned());
    });
    world.settle().await;
    assert!(world.api.list::<PersistentVolume>("").is_empty());
    assert!(world.api.list::<VolumeAttributesClass>("").is_empty());
}

#[tokio::test]
async fn foreign_finalizers_stay() {
    let mut world = world();
    world.api.edit::<PersistentVolumeClaim>("ns", "data", |claim| {
        claim.metadata.finalizers = Some(vec!["example.com/backup".to_owned()]);
    });
    world.start();
    world.settle().await;
    delete_claim(&world, "data").await;
    world.settle().await;
    let claim = world.api.get::<PersistentVolumeClaim>("ns", "data").expect("it is held");
    assert_eq!(claim.metadata.finalizers.as_deref(), Some(&["example.com/backup".to_owned()][..]));
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let fresh = || {
        let world = world();
        world.api.put(&pod("runs", Some("node"), named_claim()));
        add_volume(&world);
        world
    };
    let drive = async |world: &mut World| {
        world.settle().await;
        delete_claim(world, "data").await;
        delete_volume(world).await;
        world.settle().await;
        world.api.remove::<Pod>("ns", "runs");
        world.api.edit::<PersistentVolume>("", "v", |volume| {
            volume.status.get_or_insert_default().phase = Some("Released".to_owned());
        });
        world.run_for(std::time::Duration::from_secs(10)).await;
    };
    let left = |world: &World| {
        let mut left = names::<PersistentVolumeClaim>(world, "ns");
        left.extend(names::<PersistentVolume>(world, ""));
        left.extend(names::<VolumeAttributesClass>(world, ""));
        left.join(" ")
    };
    survives_any_crash(fresh, drive, left).await;
}
