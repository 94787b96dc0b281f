//! Quotas over pods, Services, plain counts and custom resources.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Pod, ResourceQuota, Secret};
use rkube_api::meta::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::RESOURCEQUOTA;
use crate::testing::{World, metadata, survives_any_crash};

fn quota(spec: Value) -> ResourceQuota {
    let mut quota = ResourceQuota::from_value(json!({"spec": spec})).expect("a quota");
    quota.metadata = metadata("ns", "quota");
    quota
}

fn pod(name: &str, cpu: &str) -> Pod {
    let resources = json!({"requests": {"cpu": cpu}});
    let spec = json!({"containers": [{"name": "main", "resources": resources}]});
    let mut pod = Pod::from_value(json!({"spec": spec, "status": {"phase": "Running"}})).expect("a pod");
    pod.metadata = metadata("ns", name);
    pod
}

fn secret(name: &str) -> Secret {
    Secret { metadata: metadata("ns", name), ..Secret::default() }
}

fn world(spec: Value) -> World {
    let world = World::new(&[RESOURCEQUOTA]);
    world.api.put(&quota(spec));
    world
}

fn outcome(world: &World) -> String {
    let quota = world.api.get::<ResourceQuota>("ns", "quota").expect("it was put");
    let status = quota.status.clone().unwrap_or_default();
    let used = status.used.unwrap_or_default();
    let hard = status.hard.unwrap_or_default();
    let amounts = hard.iter().map(|(name, hard)| {
        let used = used.get(name).map_or("?", |used| used.0.as_str());
        format!("{name} {used}/{}", hard.0)
    });
    amounts.collect::<Vec<_>>().join(", ")
}

async fn check(world: &mut World, expected: Expect) {
    world.settle().await;
    expected.assert_eq(&outcome(world));
}

#[tokio::test]
async fn deletions_and_finished_pods_give_back_what_they_used() {
    let mut world = world(json!({"hard": {"pods": "10", "requests.cpu": "4", "count/secrets": "5", "secrets": "5"}}));
    for (name, cpu) in [("a", "500m"), ("b", "1"), ("c", "2")] {
        world.api.put(&pod(name, cpu));
    }
    world.api.put(&secret("s"));
    let mut elsewhere = pod("elsewhere", "1");
    elsewhere.metadata = metadata("other", "elsewhere");
    world.api.put(&elsewhere);
    world.start();
    check(&mut world, expect!["count/secrets 1/5, pods 3/10, requests.cpu 3500m/4, secrets 1/5"]).await;
    world.api.remove::<Pod>("ns", "b");
    check(&mut world, expect!["count/secrets 1/5, pods 2/10, requests.cpu 2500m/4, secrets 1/5"]).await;
    world.api.edit::<Pod>("ns", "c", |pod| pod.status.get_or_insert_default().phase = Some("Succeeded".to_owned()));
    check(&mut world, expect!["count/secrets 1/5, pods 1/10, requests.cpu 500m/4, secrets 1/5"]).await;
    world.api.remove::<Secret>("ns", "s");
    check(&mut world, expect!["count/secrets 0/5, pods 1/10, requests.cpu 500m/4, secrets 0/5"]).await;

    world.run_for(Duration::from_secs(120)).await;
    world.api.take_actions();
    world.run_for(Duration::from_secs(3600)).await;
    assert!(world.api.take_actions().is_empty());
}

#[tokio::test]
async fn what_slipped_past_admission_is_found_without_an_event_of_the_quota() {
    let mut world = world(json!({"hard": {"pods": "10"}}));
    world.start();
    check(&mut world, expect!["pods 0/10"]).await;
    world.api.put(&pod("a", "1"));
    check(&mut world, expect!["pods 0/10"]).await;
    world.run_for(Duration::from_secs(31)).await;
    check(&mut world, expect!["pods 1/10"]).await;
}

#[tokio::test]
async fn a_pod_past_its_grace_period_holds_nothing() {
    let mut world = world(json!({"hard": {"pods": "10", "count/pods": "10"}}));
    world.api.put(&pod("a", "1"));
    world.start();
    check(&mut world, expect!["count/pods 1/10, pods 1/10"]).await;
    let now = world.now();
    world.api.edit::<Pod>("ns", "a", |pod| {
        pod.metadata.deletion_timestamp = Some(Time(now));
        pod.metadata.deletion_grace_period_seconds = Some(30);
    });
    check(&mut world, expect!["count/pods 1/10, pods 1/10"]).await;
    world.run_for(Duration::from_secs(31)).await;
    check(&mut world, expect!["count/pods 1/10, pods 0/10"]).await;
}

#[tokio::test]
async fn scopes_leave_other_pods_and_kinds_out() {
    let mut world = world(json!({"hard": {"pods": "10", "services": "3"}, "scopes": ["NotBestEffort"]}));
    world.api.put(&pod("a", "1"));
    let mut idle = pod("idle", "1");
    idle.spec.get_or_insert_default().containers[0].resources = None;
    world.api.put(&idle);
    world.api.put(&rkube_api::k8s::core::v1::Service { metadata: metadata("ns", "svc"), ..Default::default() });
    world.start();
    check(&mut world, expect!["pods 1/10, services 0/3"]).await;
}

#[tokio::test]
async fn new_limits_are_counted_and_old_ones_go() {
    let mut world = world(json!({"hard": {"pods": "10"}}));
    world.api.put(&pod("a", "1"));
    world.start();
    check(&mut world, expect!["pods 1/10"]).await;
    world.api.edit::<ResourceQuota>("ns", "quota", |current| {
        current.spec = quota(json!({"hard": {"cpu": "2", "example.com/unknown": "1"}})).spec;
    });
    check(&mut world, expect!["cpu 1/2, example.com/unknown ?/1"]).await;
}

#[tokio::test]
async fn custom_resources_are_counted_from_their_definition_on() {
    let mut world = world(json!({"hard": {"count/apps.example.com": "3"}}));
    let app = |name: &str| json!({"apiVersion": "example.com/v1", "kind": "App", "metadata": {"namespace": "ns", "name": name}});
    world.api.put_value("apps", app("a"));
    world.start();
    check(&mut world, expect!["count/apps.example.com ?/3"]).await;
    let verbs = ["create", "delete", "get", "list", "watch"];
    world.api.set_raw(
        "/apis",
        json!({"items": [{"metadata": {"name": "example.com"}, "versions": [{"version": "v1", "resources": [{
            "resource": "apps", "scope": "Namespaced", "verbs": verbs,
            "responseKind": {"group": "example.com", "version": "v1", "kind": "App"},
        }]}]}]}),
    );
    world.api.put_value(
        "customresourcedefinitions",
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "apps.example.com"}}),
    );
    world.run_for(Duration::from_secs(5)).await;
    check(&mut world, expect!["count/apps.example.com 1/3"]).await;
    world.api.put_value("apps", app("b"));
    world.run_for(Duration::from_secs(40)).await;
    check(&mut world, expect!["count/apps.example.com 2/3"]).await;
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let fresh = || {
        let world = world(json!({"hard": {"pods": "10", "requests.cpu": "4", "count/secrets": "5"}}));
        world.api.put(&pod("a", "1"));
        world
    };
    let drive = async |world: &mut World| {
        world.settle().await;
        world.api.put(&pod("b", "1"));
        world.run_for(Duration::from_secs(40)).await;
        world.api.remove::<Pod>("ns", "a");
        world.api.put(&secret("s"));
        world.run_for(Duration::from_secs(40)).await;
    };
    survives_any_crash(fresh, drive, outcome).await;
}
