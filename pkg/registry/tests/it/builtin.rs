//! The built-in resources with their own strategies.

use std::sync::Arc;

use expect_test::expect;
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_apimachinery::meta::Meta;
use rkube_registry::Config;
use rkube_registry::options::{CreateOptions, PatchOptions};
use rkube_registry::store::{Answer, Patch, Target};
use rkube_storage::memory::MemoryStorage;
use serde_json::{Value, json};

use crate::cluster::{Cluster, at, value};

async fn cluster() -> Cluster {
    let service_cidrs = vec!["10.43.0.0/24".parse().expect("a range")];
    Cluster::configured(Arc::new(MemoryStorage::new()), Config { service_cidrs, ..Config::default() }).await
}

#[tokio::test]
async fn a_namespace_goes_when_its_content_is_gone() {
    let cluster = cluster().await;
    let store = cluster.store("namespaces");
    let target = Target::new("", "team");
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    let answer =
        store.create(&cluster.context, &Target::new("", ""), body, &Default::default()).await.expect("creates");
    let Answer::Object(object) = answer else { panic!("an object") };
    let created = value(&object);
    assert_eq!(
        (&created["spec"]["finalizers"], &created["status"]["phase"]),
        (&json!(["kubernetes"]), &json!("Active"))
    );

    let deleted = store.delete(&cluster.context, &target, Default::default()).await.expect("begins");
    let Answer::Object(object) = deleted.answer else { panic!("an object") };
    assert!(!deleted.immediate);
    let mut ending = value(&object);
    assert_eq!(ending["status"]["phase"], "Terminating");
    assert!(ending.is_terminating());
    let again = store.delete(&cluster.context, &target, Default::default()).await.expect("is on its way");
    assert!(!again.immediate);

    ending["spec"]["finalizers"] = json!([]);
    let finalize = target.clone().subresource("finalize");
    store.update(&cluster.context, &finalize, ending, &Default::default()).await.expect("finalizes");
    let gone = store.get(&cluster.context, &target, &Default::default()).await;
    assert!(gone.is_err_and(|status| status.is_not_found()));
}

/// Fields are owned in the version that their manager speaks, and known in the others.
#[tokio::test]
async fn owners_are_recorded_in_the_version_they_speak() {
    let cluster = cluster().await;
    let store = |version: &str| {
        let resource = GroupVersionResource::new("autoscaling", version, "horizontalpodautoscalers");
        cluster.registry.store(&resource).expect("is served")
    };
    let config = |version: &str, spec: Value| {
        let mut object = json!({
            "apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}},
        });
        object["spec"].as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
        object
    };
    let entries = |object: &Value| -> Vec<String> {
        let entries = object.managed_fields().iter();
        entries.map(|entry| format!("{} {}", entry["apiVersion"], entry["fieldsV1"]["f:spec"])).collect()
    };
    let body = config("v1", json!({"targetCPUUtilizationPercentage": 50}));
    let options = CreateOptions { field_manager: "old".to_owned(), ..CreateOptions::default() };
    let created = store("v1").create(&cluster.context, &Target::new("ns", ""), body, &options).await.expect("creates");
    let Answer::Object(created) = created else { panic!("an object") };
    expect![[r#"
        [
            "\"autoscaling/v1\" {\"f:maxReplicas\":{},\"f:minReplicas\":{},\"f:scaleTargetRef\":{},\"f:targetCPUUtilizationPercentage\":{}}",
        ]
    "#]]
    .assert_debug_eq(&entries(&value(&created)));

    let apply = |version: &str, spec: Value, force: bool| {
        let options = PatchOptions { field_manager: "new".to_owned(), force: Some(force), ..PatchOptions::default() };
        let patch = Patch::Apply(config(version, spec).to_string().into());
        let (store, context) = (store(version), cluster.context.clone());
        async move { store.patch(&context, &at("a"), patch, &options).await }
    };
    let conflict = apply("v2", json!({"maxReplicas": 9}), false).await.expect_err("conflicts");
    expect![[r#"Apply failed with 1 conflict: conflict with "old" using autoscaling/v1: .spec.maxReplicas"#]]
        .assert_eq(conflict.message());
    let applied = apply("v2", json!({"maxReplicas": 9}), true).await.expect("forces");
    expect![[r#"
        "autoscaling/v2" {"f:maxReplicas":{},"f:scaleTargetRef":{"f:apiVersion":{},"f:kind":{},"f:name":{}}}
        "autoscaling/v1" {"f:minReplicas":{},"f:scaleTargetRef":{},"f:targetCPUUtilizationPercentage":{}}"#]]
    .assert_eq(&entries(&value(&applied.object)).join("\n"));
}

#[tokio::test]
async fn an_applied_deployment_reads_back_the_same_when_applied_again() {
    let cluster = cluster().await;
    let config: Value = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "c", "image": "nginx:1.27", "ports": [{"containerPort": 80}],
                    "resources": {"requests": {"cpu": "0.5", "memory": "1024Mi"}},
                }]},
            },
        },
    });
    let options = serde_json::from_value(json!({"fieldManager": "m"})).expect("options");
    let apply = async || {
        let patch = rkube_registry::store::Patch::Apply(config.to_string().into());
        let store = cluster.store("deployments");
        let written = store.patch(&cluster.context, &at("web"), patch, &options).await.expect("applies");
        value(&written.object)
    };
    let first = apply().await;
    assert_eq!(
        first["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"],
        json!({"cpu": "500m", "memory": "1Gi"})
    );
    assert_eq!(first["spec"]["strategy"]["rollingUpdate"], json!({"maxSurge": "25%", "maxUnavailable": "25%"}));
    assert_eq!(first["spec"]["template"]["spec"]["restartPolicy"], "Always");
    assert_eq!(apply().await, first);
    let scaled = cluster.merge("deployments", &at("web").subresource("scale"), json!({"spec": {"replicas": 4}})).await;
    assert_eq!(scaled.expect("scales")["status"]["selector"], "app=web");
    let status =
        cluster.merge("deployments", &at("web"), json!({"spec": {"selector": {"matchLabels": {"app": "x"}}}})).await;
    let status = status.expect_err("is immutable");
    assert!(status.message().contains("field is immutable"), "{}", status.message());
}

#[tokio::test]
async fn a_service_is_completed_and_kept() {
    let cluster = cluster().await;
    let body = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80}]},
    });
    let created = cluster.create("services", body.clone()).await.expect("creates");
    let port = &created["spec"]["ports"][0];
    assert_eq!((&port["protocol"], &port["targetPort"]), (&json!("TCP"), &json!(80)));
    assert!(port["nodePort"].as_i64().is_some_and(|port| (30_000..=32_767).contains(&port)));
    assert_eq!(created["spec"]["internalTrafficPolicy"], "Cluster");
    let again = value(&cluster.update("services", &at("web"), body).await.expect("updates").object);
    assert_eq!(again, created, "sending the same again writes nothing");
    let changed = cluster.merge("services", &at("web"), json!({"spec": {"clusterIP": "10.43.0.250"}})).await;
    let changed = changed.expect_err("is immutable");
    assert!(changed.message().contains("spec.clusterIPs[0]: Invalid value"), "{}", changed.message());
}

#[tokio::test]
async fn a_pod_is_bound_deleted_gracefully_and_gone() {
    let cluster = cluster().await;
    let body = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    });
    let created = cluster.create("pods", body).await.expect("creates");
    assert_eq!(created["status"]["phase"], "Pending");
    assert_eq!(created["status"]["qosClass"], "BestEffort");
    assert_eq!(created["spec"]["containers"][0]["imagePullPolicy"], "Always");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    cluster.post("pods", &at("p").subresource("binding"), binding).await.expect("binds");
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let running = cluster.merge("pods", &at("p").subresource("status"), status).await.expect("runs");
    assert_eq!(running["status"]["phase"], "Running");
    let moved =
        cluster.merge("pods", &at("p"), json!({"spec": {"nodeName": "other"}})).await.expect_err("is immutable");
    assert!(moved.message().contains("pod updates may not change fields other than"), "{}", moved.message());
    let deleted = cluster.delete("pods", "p", json!({})).await.expect("marks");
    assert!(!deleted.immediate);
    let deleted = cluster.delete("pods", "p", json!({"gracePeriodSeconds": 0})).await.expect("deletes");
    assert!(deleted.immediate);
}

#[tokio::test]
async fn an_autoscaler_is_read_in_both_versions() {
    let cluster = cluster().await;
    let resource = |version| {
        rkube_apimachinery::gvk::GroupVersionResource::new("autoscaling", version, "horizontalpodautoscalers")
    };
    let v1 = cluster.registry.store(&resource("v1")).expect("is served");
    let v2 = cluster.registry.store(&resource("v2")).expect("is served");
    let body = json!({
        "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {
            "maxReplicas": 5, "targetCPUUtilizationPercentage": 70,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
    });
    let answer = v1.create(&cluster.context, &Target::new("ns", ""), body, &Default::default()).await.expect("creates");
    let Answer::Object(created) = answer else { panic!("an object") };
    let created = value(&created);
    assert_eq!(
        (&created["apiVersion"], &created["spec"]["targetCPUUtilizationPercentage"]),
        (&json!("autoscaling/v1"), &json!(70))
    );
    let read = value(&v2.get(&cluster.context, &at("h"), &Default::default()).await.expect("reads"));
    expect![[
        r#"[{"resource":{"name":"cpu","target":{"averageUtilization":70,"type":"Utilization"}},"type":"Resource"}]"#
    ]]
    .assert_eq(&read["spec"]["metrics"].to_string());
    let patch = rkube_registry::store::Patch::Strategic(json!({"spec": {"maxReplicas": 9}}).to_string().into());
    let patched = v1.patch(&cluster.context, &at("h"), patch, &Default::default()).await.expect("patches");
    assert_eq!(value(&patched.object)["spec"]["maxReplicas"], 9);
}
