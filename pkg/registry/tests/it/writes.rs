//! Creates, updates and patches: what is filled in, refused, merged and left alone.

use expect_test::expect;
use rkube_apimachinery::meta::{Meta, MetaMut};
use rkube_registry::options::{CreateOptions, PatchOptions, UpdateOptions};
use rkube_registry::store::{Answer, Patch, Target};
use serde_json::json;

use crate::cluster::{Cluster, at, map, map_with, pod, value};

#[tokio::test]
async fn a_created_object_has_what_only_the_server_sets() {
    let cluster = Cluster::new().await;
    let mut body = map_with("a", "x");
    body["metadata"]["uid"] = json!("mine");
    body["metadata"]["creationTimestamp"] = json!("1999-01-01T00:00:00Z");
    body["metadata"]["deletionTimestamp"] = json!("1999-01-01T00:00:00Z");
    let created = cluster.create("configmaps", body).await.expect("creates");
    assert_eq!(created.namespace(), "ns");
    assert_eq!(created["metadata"]["creationTimestamp"], "2026-01-02T03:04:05Z");
    assert_eq!(created.uid().len(), 36);
    assert!(!created.is_terminating());
    assert_eq!(cluster.get("configmaps", "a").await.expect("reads"), created);
}

#[tokio::test]
async fn creating_again_or_wrongly_is_refused() {
    let cluster = Cluster::new().await;
    cluster.create("configmaps", map("a")).await.expect("creates");
    let refuse = async |body| {
        let status = cluster.create("configmaps", body).await.expect_err("is refused");
        format!("{} {}", status.code(), status.message())
    };
    expect![[r#"409 configmaps "a" already exists"#]].assert_eq(&refuse(map("a")).await);
    expect![[r#"422 ConfigMap "b" is invalid: data[a b]: Invalid value: "a b": no spaces"#]]
        .assert_eq(&refuse(json!({"metadata": {"name": "b"}, "data": {"a b": "x"}})).await);
    expect![[r#"422 ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required"#]]
        .assert_eq(&refuse(json!({"metadata": {}})).await);
    expect![[r#"400 the namespace of the provided object does not match the namespace sent on the request"#]]
        .assert_eq(&refuse(json!({"metadata": {"name": "b", "namespace": "other"}})).await);
    expect!["500 resourceVersion should not be set on objects to be created"]
        .assert_eq(&refuse(json!({"metadata": {"name": "b", "resourceVersion": "5"}})).await);
    expect![[r#"422 ConfigMap "a/b" is invalid: metadata.name: Invalid value: "a/b": may not contain '/'"#]]
        .assert_eq(&refuse(map("a/b")).await);
}

#[tokio::test]
async fn generated_names_are_tried_until_one_is_free() {
    let cluster = Cluster::new().await;
    let mut names = Vec::new();
    for _ in 0..20 {
        let created =
            cluster.create("configmaps", json!({"metadata": {"generateName": "gen-"}})).await.expect("creates");
        assert!(created.name().starts_with("gen-") && created.name().len() == 9, "{}", created.name());
        names.push(created.name().to_owned());
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 20);
}

#[tokio::test]
async fn a_dry_run_answers_and_changes_nothing() {
    let cluster = Cluster::new().await;
    let options = CreateOptions { dry_run: vec!["All".to_owned()], ..CreateOptions::default() };
    let store = cluster.store("configmaps");
    let answer = store.create(&cluster.context, &Target::new("ns", ""), map("a"), &options).await.expect("pretends");
    let Answer::Object(object) = answer else { panic!("an object") };
    assert_eq!(value(&object).resource_version(), "");
    assert!(cluster.get("configmaps", "a").await.is_err_and(|status| status.is_not_found()));

    let created = cluster.create("configmaps", map("a")).await.expect("creates");
    let options = UpdateOptions { dry_run: vec!["All".to_owned()], ..UpdateOptions::default() };
    let written = store.update(&cluster.context, &at("a"), map_with("a", "new"), &options).await.expect("pretends");
    assert_eq!(value(&written.object)["data"]["k"], "new");
    assert_eq!(value(&written.object).resource_version(), created.resource_version());
    assert_eq!(cluster.get("configmaps", "a").await.expect("reads"), created);
    let options = CreateOptions { dry_run: vec!["All".to_owned()], ..CreateOptions::default() };
    let again = store.create(&cluster.context, &Target::new("ns", ""), map("a"), &options).await;
    assert!(again.is_err_and(|status| status.is_already_exists()));
}

#[tokio::test]
async fn an_update_of_an_older_version_conflicts() {
    let cluster = Cluster::new().await;
    let first = cluster.create("configmaps", map("a")).await.expect("creates");
    let mut body = first.clone();
    body["data"] = json!({"k": "1"});
    cluster.update("configmaps", &at("a"), body.clone()).await.expect("updates");
    let status = cluster.update("configmaps", &at("a"), body.clone()).await.expect_err("is stale");
    expect![[r#"Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again"#]]
    .assert_eq(status.message());
    body.set_resource_version("");
    cluster.update("configmaps", &at("a"), body.clone()).await.expect("updates unconditionally");
    body.set_uid("another");
    let status = cluster.update("configmaps", &at("a"), body.clone()).await.expect_err("is another object");
    let expected = format!(
        "Operation cannot be fulfilled on configmaps \"a\": Precondition failed: UID in precondition: another, UID in object meta: {}",
        first.uid()
    );
    assert_eq!(status.message(), expected);
}

#[tokio::test]
async fn a_kind_may_insist_on_a_version_and_allow_creation_by_put() {
    let cluster = Cluster::new().await;
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}});
    let written = cluster.update("leases", &at("l"), lease.clone()).await.expect("creates");
    assert!(written.created);
    let status = cluster.update("leases", &at("l"), lease).await.expect_err("lacks a version");
    expect![[r#"422 leases.coordination.k8s.io "l" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"#]]
        .assert_eq(&format!("{} {}", status.code(), status.message()));
    let status = cluster.update("configmaps", &at("none"), map("none")).await.expect_err("does not exist");
    expect![[r#"configmaps "none" not found"#]].assert_eq(status.message());
    let status = cluster.update("configmaps", &at("a"), map("b")).await.expect_err("is another name");
    expect!["the name of the object (b) does not match the name on the URL (a)"].assert_eq(status.message());
}

#[tokio::test]
async fn a_write_that_changes_nothing_writes_nothing() {
    let cluster = Cluster::new().await;
    let created = cluster.create("pods", pod("p", "")).await.expect("creates");
    let written = cluster.update("pods", &at("p"), created.clone()).await.expect("updates");
    assert_eq!(value(&written.object), created);
    let patched = cluster.merge("pods", &at("p"), json!({"spec": {"terminationGracePeriodSeconds": 30}})).await;
    assert_eq!(patched.expect("patches"), created);
}

#[tokio::test]
async fn spec_and_status_are_written_apart() {
    let cluster = Cluster::new().await;
    let mut body = pod("p", "");
    body["status"] = json!({"phase": "Running"});
    let created = cluster.create("pods", body).await.expect("creates");
    assert_eq!(created["status"], json!({}));
    assert_eq!(created.generation(), 1);

    let status = Target::new("ns", "p").subresource("status");
    let patch = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
    let patched = cluster.merge("pods", &status, patch.clone()).await.expect("patches status");
    assert_eq!(patched["status"]["phase"], "Running");
    assert_eq!(patched.label("a"), Some("b"));
    assert!(patched["spec"].get("nodeName").is_none());
    assert_eq!(patched.generation(), 1);

    let patched = cluster.merge("pods", &at("p"), json!({"spec": {"nodeName": "n"}, "status": null})).await;
    let patched = patched.expect("patches spec");
    assert_eq!(patched["spec"]["nodeName"], "n");
    assert_eq!(patched["status"]["phase"], "Running");
    assert_eq!(patched.generation(), 2);
}

#[tokio::test]
async fn a_json_patch_that_fails_a_test_changes_nothing() {
    let cluster = Cluster::new().await;
    let created = cluster.create("configmaps", map_with("a", "x")).await.expect("creates");
    let patch = |operations: serde_json::Value| Patch::Json(operations.to_string().into());
    let store = cluster.store("configmaps");
    let failing = patch(json!([
        {"op": "replace", "path": "/data/k", "value": "y"},
        {"op": "test", "path": "/data/k", "value": "z"},
    ]));
    let status = store.patch(&cluster.context, &at("a"), failing, &Default::default()).await.expect_err("fails");
    assert_eq!(status.code(), 422);
    assert_eq!(cluster.get("configmaps", "a").await.expect("reads"), created);
    let working = patch(json!([{"op": "test", "path": "/data/k", "value": "x"}, {"op": "remove", "path": "/data/k"}]));
    let written = store.patch(&cluster.context, &at("a"), working, &Default::default()).await.expect("patches");
    assert!(value(&written.object)["data"].get("k").is_none());
}

#[tokio::test]
async fn concurrent_patches_all_take_effect() {
    let cluster = Cluster::new().await;
    cluster.create("configmaps", map("a")).await.expect("creates");
    let patches = (0..50).map(|index| {
        let patch = json!({"data": {(format!("k{index}")): "v"}});
        let cluster = &cluster;
        async move { cluster.merge("configmaps", &at("a"), patch).await.expect("patches") }
    });
    futures_util::future::join_all(patches).await;
    let read = cluster.get("configmaps", "a").await.expect("reads");
    assert_eq!(read["data"].as_object().map(serde_json::Map::len), Some(50));
}

#[tokio::test]
async fn an_object_that_is_too_large_is_refused() {
    let cluster = Cluster::new().await;
    let status = cluster.create("configmaps", map_with("a", &"x".repeat(1_600_000))).await.expect_err("is too large");
    expect!["500 etcdserver: request is too large"].assert_eq(&format!("{} {}", status.code(), status.message()));
}

#[tokio::test]
async fn a_patch_is_checked_against_the_schema() {
    let cluster = Cluster::new().await;
    cluster.create("configmaps", map_with("a", "x")).await.expect("creates");
    let store = cluster.store("configmaps");
    let patch = async |body: &str, validation: &str| {
        let options = PatchOptions { field_validation: validation.to_owned(), ..PatchOptions::default() };
        let patched = store.patch(&cluster.context, &at("a"), Patch::Merge(body.to_owned().into()), &options).await;
        let result = match patched {
            Ok(written) => value(&written.object)["data"].to_string(),
            Err(status) => format!("{} {}", status.code(), status.message()),
        };
        format!("{result} {:?}", cluster.context.take_warnings())
    };
    let unknown = r#"{"data":{"k":"y"},"spec":{"foo":1}}"#;
    expect![[r#"{"k":"y"} ["unknown field \"spec\""]"#]].assert_eq(&patch(unknown, "").await);
    expect![[r#"{"k":"y"} []"#]].assert_eq(&patch(unknown, "Ignore").await);
    let strict = patch(unknown, "Strict").await;
    assert!(strict.starts_with("422  \"\" is invalid: patch: Invalid value:"), "{strict}");
    assert!(strict.ends_with("strict decoding error: unknown field \"spec\" []"), "{strict}");
    expect![[r#"{"k":"z"} ["duplicate field \"data\""]"#]]
        .assert_eq(&patch(r#"{"data":{"k":"y"},"data":{"k":"z"}}"#, "").await);
    let wrong = patch(r#"{"data":{"k":1}}"#, "").await;
    assert!(wrong.starts_with("422 "), "{wrong}");
    let operations = r#"[{"op":"add","path":"/data/k","value":"y","path":"/data/j","extra":1}]"#;
    let options = PatchOptions { field_validation: "Strict".to_owned(), ..PatchOptions::default() };
    let json = store.patch(&cluster.context, &at("a"), Patch::Json(operations.into()), &options).await;
    let json = json.expect_err("is refused").message().to_owned();
    let found =
        "strict decoding error: json patch duplicate field \"[0].path\", json patch unknown field \"[0].extra\"";
    assert!(json.ends_with(found), "{json}");
    let kind = patch(r#"{"kind":"Secret"}"#, "").await;
    assert!(kind.contains("converting (v1.Secret) to (v1.ConfigMap): unknown conversion"), "{kind}");
    let broken = patch("{", "").await;
    assert!(broken.starts_with("400 error decoding patch: "), "{broken}");
}
