//! Pods whose volumes decide where they go.

use std::time::Duration;

use expect_test::expect;
use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::{Value, json};

use crate::testing::World;

fn class(world: &World, provisioner: &str) {
    world.api.put_value(
        "storageclasses",
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local"},
            "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer",
        }),
    );
}

fn claim(world: &World, name: &str) {
    world.api.put_value(
        "persistentvolumeclaims",
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}},
        }),
    );
}

fn volume(world: &World, name: &str, node: &str, size: &str) {
    world.api.put_value(
        "persistentvolumes",
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "local", "capacity": {"storage": size},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
                ]}]}},
            },
            "status": {"phase": "Available"},
        }),
    );
}

fn uses(claim: &str) -> impl FnOnce(&mut Value) {
    move |pod| pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}])
}

/// What the volume controller does in the end.
fn complete(world: &World, claim: &str, volume: &str) {
    world.api.edit::<PersistentVolumeClaim>("default", claim, |object| {
        object.spec.get_or_insert_default().volume_name = Some(volume.to_owned());
        let annotations = object.metadata.annotations.get_or_insert_default();
        annotations.insert("pv.kubernetes.io/bind-completed".to_owned(), "yes".to_owned());
    });
}

#[tokio::test]
async fn a_pod_follows_the_volumes_that_fit_and_two_do_not_take_the_same() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.node(name, "4", |_| {});
    }
    class(&world, "kubernetes.io/no-provisioner");
    volume(&world, "on-b", "b", "5Gi");
    volume(&world, "on-c", "c", "2Gi");
    volume(&world, "tiny", "a", "1Mi");
    world.start();
    claim(&world, "first");
    claim(&world, "second");
    claim(&world, "third");
    world.pod("one", "1", uses("first"));
    world.pod("two", "1", uses("second"));
    world.pod("three", "1", uses("third"));
    world.settle().await;
    for volume in world.api.list::<PersistentVolume>("") {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
        if let Some(name) = reference.and_then(|reference| reference.name) {
            complete(&world, &name, volume.metadata.name.as_deref().unwrap_or_default());
        }
    }
    world.settle().await;
    let mut nodes: Vec<_> = ["one", "two", "three"].iter().filter_map(|pod| world.node_of(pod)).collect();
    nodes.sort();
    assert_eq!(nodes, ["b", "c"]);
    let waiting = ["one", "two", "three"].into_iter().find(|pod| world.node_of(pod).is_none()).expect("one is left");
    expect!["Unschedulable: 0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."]
        .assert_eq(&world.why(waiting));
}

#[tokio::test]
async fn a_claim_to_be_provisioned_is_told_its_node_and_the_pod_waits_for_the_volume() {
    let mut world = World::new();
    world.node("a", "4", |_| {});
    class(&world, "example.com/local-path");
    world.start();
    world.pod("pod", "1", uses("data"));
    world.settle().await;
    expect![[r#"Unschedulable: 0/1 nodes are available: persistentvolumeclaim "data" not found. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."#]]
        .assert_eq(&world.why("pod"));
    claim(&world, "data");
    world.run_for(Duration::from_secs(2)).await;
    let data = world.api.get::<PersistentVolumeClaim>("default", "data").expect("the claim");
    let annotations = data.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations.get("volume.kubernetes.io/selected-node").map(String::as_str), Some("a"));
    assert_eq!(world.node_of("pod"), None);
    volume(&world, "made", "a", "1Gi");
    complete(&world, "data", "made");
    world.settle().await;
    assert_eq!(world.node_of("pod").as_deref(), Some("a"));
    // Bound, but to another node's volume.
    claim(&world, "elsewhere");
    volume(&world, "far", "z", "1Gi");
    complete(&world, "elsewhere", "far");
    world.pod("stuck", "1", uses("elsewhere"));
    world.settle().await;
    expect!["Unschedulable: 0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."]
        .assert_eq(&world.why("stuck"));
}
