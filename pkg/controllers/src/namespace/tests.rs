//! Namespaces on their way out.

use std::time::Duration;

use expect_test::expect;
use rkube_api::k8s::core::v1::{ConfigMap, Namespace, NamespaceSpec, Pod};
use rkube_client::DeleteOptions;
use serde_json::json;

use super::NAMESPACE;
use crate::testing::{World, metadata, run_pod, survives_any_crash};

fn arrange() -> World {
    let world = World::new(&[NAMESPACE]);
    for name in ["doomed", "other"] {
        let spec = NamespaceSpec { finalizers: Some(vec!["kubernetes".to_owned()]) };
        world.api.put(&Namespace { metadata: metadata("", name), spec: Some(spec), status: None });
        world.api.put(&ConfigMap { metadata: metadata(name, "settings"), ..ConfigMap::default() });
    }
    world
}

async fn delete(world: &World) {
    let api = world.client().all::<Namespace>();
    api.delete("doomed", &DeleteOptions::default()).await.expect("the namespace is there");
}

fn conditions(world: &World) -> String {
    let namespace = world.api.get::<Namespace>("", "doomed").expect("it is still there");
    let conditions = namespace.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let lines = conditions.filter(|condition| condition.status == "True");
    lines.map(|condition| condition.message.clone().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn outcome(world: &World) -> String {
    let names = |list: Vec<String>| list.join(" ");
    format!(
        "namespaces {} configmaps {} pods {}",
        names(crate::testing::names::<Namespace>(world, "")),
        names(world.api.list::<ConfigMap>("").iter().filter_map(|map| map.metadata.namespace.clone()).collect()),
        names(crate::testing::names::<Pod>(world, "")),
    )
}

#[tokio::test]
async fn everything_in_it_goes_and_nothing_else() {
    let mut world = arrange();
    world.start();
    delete(&world).await;
    world.settle().await;
    expect!["namespaces other configmaps other pods "].assert_eq(&outcome(&world));
}

#[tokio::test]
async fn pods_go_first_and_finalizers_are_waited_for() {
    let mut world = arrange();
    world.api.keep_terminating_pods();
    let mut pod = Pod { metadata: metadata("doomed", "p"), ..Pod::default() };
    run_pod(&mut pod, "node-1", world.now());
    pod.spec.get_or_insert_default().termination_grace_period_seconds = Some(30);
    world.api.put(&pod);
    world.api.edit::<ConfigMap>("doomed", "settings", |map| {
        map.metadata.finalizers = Some(vec!["example.com/hold".to_owned()])
    });
    world.start();
    delete(&world).await;
    world.settle().await;
    expect!["Some resources are remaining: pods. has 1 resource instances"].assert_eq(&conditions(&world));
    expect!["namespaces doomed other configmaps doomed other pods p"].assert_eq(&outcome(&world));

    world.api.finish_deletions();
    world.settle().await;
    expect![[r#"
        Some resources are remaining: configmaps. has 1 resource instances
        Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"#]]
    .assert_eq(&conditions(&world));
    world.api.remove::<ConfigMap>("doomed", "settings");
    world.run_for(Duration::from_secs(30)).await;
    expect!["namespaces other configmaps other pods "].assert_eq(&outcome(&world));
}

#[tokio::test]
async fn custom_resources_go_too() {
    let mut world = arrange();
    let verbs = ["list", "watch", "delete", "deletecollection", "get"];
    world.api.set_raw(
        "/apis",
        json!({"items": [{"metadata": {"name": "example.com"}, "versions": [{"version": "v1", "freshness": "Current", "resources": [{
            "resource": "widgets", "scope": "Namespaced", "verbs": verbs,
            "responseKind": {"group": "example.com", "version": "v1", "kind": "Widget"},
        }]}]}]}),
    );
    for namespace in ["doomed", "other"] {
        let metadata = json!({"name": "w", "namespace": namespace});
        let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": metadata});
        world.api.put_value("widgets", widget);
    }
    world.start();
    delete(&world).await;
    world.run_for(Duration::from_secs(30)).await;
    expect!["namespaces other configmaps other pods "].assert_eq(&outcome(&world));
    let left = world.api.list_values("example.com", "widgets");
    let left: Vec<_> = left.iter().map(|widget| widget["metadata"]["namespace"].clone()).collect();
    assert_eq!(left, ["other"]);
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let drive = async |world: &mut World| {
        world.settle().await;
        delete(world).await;
        world.run_for(Duration::from_secs(60)).await;
    };
    survives_any_crash(arrange, drive, outcome).await;
}
