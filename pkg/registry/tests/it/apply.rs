//! Field ownership through the stores. The algorithm has its own tests; these are about its place.

use std::time::Duration;

use expect_test::expect;
use rkube_apimachinery::meta::{Meta, MetaMut};
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::options::PatchOptions;
use rkube_registry::store::{Patch, Target};
use serde_json::{Value, json};

use crate::cluster::{Cluster, at, map_with, pod, value};

async fn apply(
    cluster: &Cluster,
    plural: &str,
    target: &Target,
    manager: &str,
    force: bool,
    config: Value,
) -> Result<Value, ApiStatus> {
    let options = PatchOptions { field_manager: manager.to_owned(), force: Some(force), ..PatchOptions::default() };
    let patch = Patch::Apply(config.to_string().into());
    let written = cluster.store(plural).patch(&cluster.context, target, patch, &options).await?;
    Ok(value(&written.object))
}

fn owners(object: &Value) -> Vec<String> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    object
        .managed_fields()
        .iter()
        .map(|entry| {
            let subresource = text(entry, "subresource");
            let subresource = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
            format!("{} {}{} {}", text(entry, "manager"), text(entry, "operation"), subresource, entry["fieldsV1"])
        })
        .collect()
}

#[tokio::test]
async fn applying_creates_then_changes_nothing_then_conflicts() {
    let cluster = Cluster::new().await;
    let created = apply(&cluster, "configmaps", &at("a"), "one", false, map_with("a", "x")).await.expect("creates");
    expect![[r#"["one Apply {\"f:data\":{\"f:k\":{}}}"]"#]].assert_eq(&format!("{:?}", owners(&created)));

    cluster.clock.advance(Duration::from_secs(100));
    let again = apply(&cluster, "configmaps", &at("a"), "one", false, map_with("a", "x")).await.expect("applies");
    assert_eq!(again, created, "not even a time changes");

    let status =
        apply(&cluster, "configmaps", &at("a"), "two", false, map_with("a", "y")).await.expect_err("conflicts");
    expect![[r#"409 Apply failed with 1 conflict: conflict with "one": .data.k"#]].assert_eq(&format!(
        "{} {}",
        status.code(),
        status.message()
    ));
    let forced = apply(&cluster, "configmaps", &at("a"), "two", true, map_with("a", "y")).await.expect("forces");
    assert_eq!(forced["data"]["k"], "y");
    expect![[r#"["two Apply {\"f:data\":{\"f:k\":{}}}"]"#]].assert_eq(&format!("{:?}", owners(&forced)));

    let gone = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let removed = apply(&cluster, "configmaps", &at("a"), "two", false, gone).await.expect("applies");
    assert!(removed.get("data").is_none());
}

#[tokio::test]
async fn updates_are_recorded_by_manager_and_subresource() {
    let cluster = Cluster::new().await;
    let created = cluster.create("pods", pod("p", "")).await.expect("creates");
    assert_eq!(created.managed_fields().len(), 1);
    cluster
        .merge("pods", &at("p").subresource("status"), json!({"status": {"phase": "Running"}}))
        .await
        .expect("patches");
    let read = cluster.get("pods", "p").await.expect("reads");
    expect![[r#"
        kube-apiserver Update {"f:spec":{"f:containers":{},"f:terminationGracePeriodSeconds":{}}}
        kube-apiserver Update/status {"f:status":{"f:phase":{}}}"#]]
    .assert_eq(&owners(&read).join("\n"));

    let mut body = read.clone();
    body.set_meta_field("managedFields", json!([{}]));
    let written = cluster.update("pods", &at("p"), body).await.expect("wipes the owners");
    assert!(value(&written.object).managed_fields().is_empty());
}

#[tokio::test]
async fn who_scales_owns_the_replicas() {
    let cluster = Cluster::new().await;
    let config = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {}},
    });
    apply(&cluster, "deployments", &at("web"), "one", false, config).await.expect("creates");
    let scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web", "namespace": "ns"},
        "spec": {"replicas": 5},
    });
    let target = at("web").subresource("scale");
    let status = apply(&cluster, "deployments", &target, "two", false, scale.clone()).await.expect_err("conflicts");
    assert!(status.is_conflict());
    let scaled = apply(&cluster, "deployments", &target, "two", true, scale).await.expect("forces");
    assert_eq!(scaled["spec"]["replicas"], 5);
    let read = cluster.get("deployments", "web").await.expect("reads");
    expect![[r#"
        one Apply {"f:spec":{"f:selector":{},"f:template":{}}}
        two Apply/scale {"f:spec":{"f:replicas":{}}}"#]]
    .assert_eq(&owners(&read).join("\n"));
}

#[tokio::test]
async fn what_cannot_be_applied_is_refused() {
    let cluster = Cluster::new().await;
    let refuse = async |manager: &str, config: Value| {
        let status = apply(&cluster, "configmaps", &at("a"), manager, false, config).await.expect_err("is refused");
        format!("{} {}", status.code(), status.message())
    };
    expect![[
        r#"422 PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#
    ]]
    .assert_eq(&refuse("", map_with("a", "x")).await);
    expect!["400 invalid object type: /v1, Kind=Secret"]
        .assert_eq(&refuse("m", json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}})).await);
    let mut config = map_with("a", "x");
    config.set_meta_field("managedFields", json!([]));
    expect!["400 metadata.managedFields must be nil"].assert_eq(&refuse("m", config).await);
    let mut config = map_with("a", "x");
    config.set_uid("u");
    expect![[r#"409 Operation cannot be fulfilled on configmaps "a": uid mismatch: the provided object specified uid u, and no existing object was found"#]]
        .assert_eq(&refuse("m", config).await);
}
