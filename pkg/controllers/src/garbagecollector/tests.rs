//! Owners and dependents of all sorts.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::k8s::apps::v1::{Deployment, ReplicaSet};
use rkube_api::k8s::core::v1::{ConfigMap, Namespace, Pod};
use rkube_api::meta::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rkube_client::{DeleteOptions, Propagation};
use serde_json::json;

use super::GARBAGECOLLECTOR;
use crate::testing::{World, metadata, survives_any_crash};

fn owner(api_version: &str, kind: &str, metadata: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A Deployment that owns a ReplicaSet that owns two pods, and a pod that nobody owns.
fn arrange() -> World {
    let world = World::new(&[GARBAGECOLLECTOR]);
    world.api.put(&Deployment { metadata: metadata("ns", "d"), ..Deployment::default() });
    let deployment = world.api.get::<Deployment>("ns", "d").expect("it was put");
    let mut set = ReplicaSet { metadata: metadata("ns", "rs"), ..ReplicaSet::default() };
    set.metadata.owner_references = Some(vec![owner("apps/v1", "Deployment", &deployment.metadata)]);
    world.api.put(&set);
    let set = world.api.get::<ReplicaSet>("ns", "rs").expect("it was put");
    for name in ["p1", "p2"] {
        let mut pod = Pod { metadata: metadata("ns", name), ..Pod::default() };
        pod.metadata.owner_references = Some(vec![owner("apps/v1", "ReplicaSet", &set.metadata)]);
        world.api.put(&pod);
    }
    world.api.put(&Pod { metadata: metadata("ns", "free"), ..Pod::default() });
    world
}

async fn delete(world: &World, policy: Propagation) {
    let api = world.client().namespaced::<Deployment>("ns");
    api.delete("d", &DeleteOptions::default().propagation(policy)).await.expect("it is there");
}

fn outcome(world: &World) -> String {
    let mut lines = Vec::new();
    for (group, plural) in [("apps", "deployments"), ("apps", "replicasets"), ("", "pods"), ("", "configmaps")] {
        for object in world.api.list_values(group, plural) {
            let metadata = &object["metadata"];
            let owners: Vec<_> = metadata["ownerReferences"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|owner| owner["name"].as_str().unwrap_or_default())
                .collect();
            lines.push(format!(
                "{plural} {} owned by {owners:?} finalizers {}",
                metadata["name"].as_str().unwrap_or_default(),
                metadata["finalizers"]
            ));
        }
    }
    lines.join("\n")
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

#[tokio::test]
async fn what_is_owned_goes_with_its_owner() {
    for policy in [Propagation::Background, Propagation::Foreground] {
        let mut world = arrange();
        world.start();
        world.settle().await;
        delete(&world, policy).await;
        world.settle().await;
        check(&world, expect!["pods free owned by [] finalizers null"]);
    }
}

#[tokio::test]
async fn foreground_deletes_the_owner_last() {
    let mut world = arrange();
    world.api.edit::<Pod>("ns", "p1", |pod| pod.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]));
    world.start();
    world.settle().await;
    delete(&world, Propagation::Foreground).await;
    world.settle().await;
    check(
        &world,
        expect![[r#"
        deployments d owned by [] finalizers ["foregroundDeletion"]
        replicasets rs owned by ["d"] finalizers ["foregroundDeletion"]
        pods free owned by [] finalizers null
        pods p1 owned by ["rs"] finalizers ["example.com/hold"]"#]],
    );
    world.api.remove::<Pod>("ns", "p1");
    world.settle().await;
    check(&world, expect!["pods free owned by [] finalizers null"]);
}

#[tokio::test]
async fn orphans_stay() {
    let mut world = arrange();
    world.start();
    world.settle().await;
    delete(&world, Propagation::Orphan).await;
    world.settle().await;
    check(
        &world,
        expect![[r#"
        replicasets rs owned by [] finalizers null
        pods free owned by [] finalizers null
        pods p1 owned by ["rs"] finalizers null
        pods p2 owned by ["rs"] finalizers null"#]],
    );
}

#[tokio::test]
async fn an_idle_graph_asks_nothing() {
    let mut world = arrange();
    world.start();
    world.settle().await;
    world.api.take_actions();
    world.run_for(Duration::from_secs(7200)).await;
    let asked: Vec<_> = world.api.take_actions().iter().map(ToString::to_string).collect();
    assert!(asked.is_empty(), "{asked:?}");
}

#[tokio::test]
async fn references_that_resolve_to_nothing() {
    let mut world = World::new(&[GARBAGECOLLECTOR]);
    world.api.put(&ConfigMap { metadata: metadata("other", "owner"), ..ConfigMap::default() });
    world.api.put(&ConfigMap { metadata: metadata("ns", "owner"), ..ConfigMap::default() });
    let here = world.api.get::<ConfigMap>("ns", "owner").expect("it was put");
    let there = world.api.get::<ConfigMap>("other", "owner").expect("it was put");
    let reference = |owner_of: &ConfigMap| owner("v1", "ConfigMap", &owner_of.metadata);
    let put = |name: &str, references: Vec<OwnerReference>| {
        let mut pod = Pod { metadata: metadata("ns", name), ..Pod::default() };
        pod.metadata.owner_references = Some(references);
        world.api.put(&pod);
    };
    put("cross-namespace", vec![reference(&there)]);
    put("wrong-uid", vec![OwnerReference { uid: "none".to_owned(), ..reference(&here) }]);
    put(
        "half",
        vec![
            reference(&here),
            OwnerReference { name: "nobody".to_owned(), uid: "none".to_owned(), ..reference(&here) },
        ],
    );
    put("unknown-kind", vec![OwnerReference { kind: "Unknown".to_owned(), ..reference(&here) }]);
    let mut cluster_scoped = Namespace { metadata: metadata("", "n"), ..Namespace::default() };
    cluster_scoped.metadata.owner_references = Some(vec![reference(&here)]);
    world.api.put(&cluster_scoped);
    world.start();
    world.run_for(Duration::from_secs(2)).await;
    check(
        &world,
        expect![[r#"
        pods half owned by ["owner"] finalizers null
        pods unknown-kind owned by ["owner"] finalizers null
        configmaps owner owned by [] finalizers null
        configmaps owner owned by [] finalizers null"#]],
    );
    assert!(world.api.get::<Namespace>("", "n").is_some());
}

#[tokio::test]
async fn a_circle_in_foreground_deletion_comes_apart() {
    let mut world = World::new(&[GARBAGECOLLECTOR]);
    for name in ["a", "b"] {
        world.api.put(&ConfigMap { metadata: metadata("ns", name), ..ConfigMap::default() });
    }
    for (name, other) in [("a", "b"), ("b", "a")] {
        let other = world.api.get::<ConfigMap>("ns", other).expect("it was put");
        world.api.edit::<ConfigMap>("ns", name, |map| {
            map.metadata.owner_references = Some(vec![owner("v1", "ConfigMap", &other.metadata)])
        });
    }
    world.start();
    world.settle().await;
    let api = world.client().namespaced::<ConfigMap>("ns");
    api.delete("a", &DeleteOptions::default().propagation(Propagation::Foreground)).await.expect("it is there");
    world.run_for(Duration::from_secs(60)).await;
    check(&world, expect![""]);
}

#[tokio::test]
async fn custom_resources_are_collected_too() {
    let mut world = arrange();
    world.start();
    world.settle().await;
    let widgets = json!({"items": [{"metadata": {"name": "example.com"}, "versions": [{
    "version": "v1", "freshness": "Current", "resources": [{
        "resource": "widgets", "scope": "Namespaced", "responseKind": {"kind": "Widget"},
        "verbs": ["get", "list", "watch", "delete", "patch"],
    }]}]}]});
    world.api.set_raw("/apis", widgets);
    world.api.put_value("customresourcedefinitions", json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"}}));
    world.api.put_value(
        "widgets",
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {
            "name": "w", "namespace": "ns", "uid": "w-1",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "free", "uid": "none"}],
        }}),
    );
    world.run_for(Duration::from_secs(5)).await;
    assert!(world.api.list_values("example.com", "widgets").is_empty());
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    for policy in [Propagation::Background, Propagation::Foreground, Propagation::Orphan] {
        let drive = async |world: &mut World| {
            world.settle().await;
            delete(world, policy).await;
            world.run_for(Duration::from_secs(60)).await;
        };
        survives_any_crash(arrange, drive, outcome).await;
    }
}
