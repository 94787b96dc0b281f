//! Bindings, scales, evictions and tokens.

use expect_test::expect;
use rkube_apimachinery::meta::Meta;
use rkube_registry::store::{Answer, Target};
use serde_json::{Value, json};

use crate::cluster::{Cluster, at, pod, value};

fn binding(pod: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod, "labels": {"zone": "z"}},
        "target": {"kind": "Node", "name": node},
    })
}

#[tokio::test]
async fn a_binding_gives_a_pod_its_node_once() {
    let cluster = Cluster::new().await;
    cluster.create("pods", pod("p", "")).await.expect("creates");
    let target = at("p").subresource("binding");
    let answer = cluster.post("pods", &target, binding("p", "n1")).await.expect("binds");
    assert!(matches!(answer, Answer::Status(status) if status.status == "Success"));
    let bound = cluster.get("pods", "p").await.expect("reads");
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound.label("zone"), Some("z"));
    assert_eq!(
        bound["status"]["conditions"],
        json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}])
    );
    let refuse = async |target: Target, body| {
        let status = cluster.post("pods", &target, body).await.expect_err("is refused");
        format!("{} {}", status.code(), status.message())
    };
    expect![[r#"409 Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "n1""#]]
        .assert_eq(&refuse(target.clone(), binding("p", "n2")).await);
    expect!["400 name in URL does not match name in Binding object"]
        .assert_eq(&refuse(target.clone(), binding("q", "n2")).await);
    expect![[r#"404 pods "q" not found"#]].assert_eq(&refuse(at("q").subresource("binding"), binding("q", "n2")).await);
    expect![[r#"422 Binding "p" is invalid: target.name: Required value"#]]
        .assert_eq(&refuse(target, binding("p", "")).await);
}

#[tokio::test]
async fn a_scale_is_read_and_written_as_part_of_its_workload() {
    let cluster = Cluster::new().await;
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {}},
    });
    let created = cluster.create("deployments", deployment).await.expect("creates");
    let scale = at("web").subresource("scale");
    let store = cluster.store("deployments");
    let read = store.get(&cluster.context, &scale, &Default::default()).await.expect("reads");
    assert_eq!(
        value(&read),
        json!({
            "apiVersion": "autoscaling/v1", "kind": "Scale",
            "metadata": {
                "name": "web", "namespace": "ns", "uid": created.uid(), "resourceVersion": created.resource_version(),
                "creationTimestamp": "2026-01-02T03:04:05Z",
            },
            "spec": {"replicas": 3}, "status": {"replicas": 0, "selector": "app=web"},
        })
    );
    let patched = cluster.merge("deployments", &scale, json!({"spec": {"replicas": 5}})).await.expect("scales");
    assert_eq!((patched.kind(), &patched["spec"]["replicas"]), ("Scale", &json!(5)));
    let deployment = cluster.get("deployments", "web").await.expect("reads");
    assert_eq!((&deployment["spec"]["replicas"], deployment.generation()), (&json!(5), 2));

    let stale = cluster.update("deployments", &scale, value(&read)).await.expect_err("is stale");
    assert!(stale.is_conflict());
    let negative =
        cluster.merge("deployments", &scale, json!({"spec": {"replicas": -1}})).await.expect_err("is invalid");
    expect![[
        r#"Scale.autoscaling "web" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"#
    ]]
    .assert_eq(negative.message());
    let none = cluster.merge("configmaps", &at("x").subresource("scale"), json!({})).await.expect_err("has none");
    assert_eq!(none.code(), 405);
}

fn eviction(pod: &str) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}})
}

async fn with_budget(status: Value) -> Cluster {
    let cluster = Cluster::new().await;
    for name in ["a", "b"] {
        let mut body = pod(name, "n1");
        body["metadata"]["labels"] = json!({"app": "web"});
        cluster.create("pods", body).await.expect("creates");
        let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        cluster.merge("pods", &at(name).subresource("status"), ready).await.expect("runs");
    }
    let budget = json!({"metadata": {"name": "pdb"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}});
    cluster.create("poddisruptionbudgets", budget).await.expect("creates");
    let target = at("pdb").subresource("status");
    cluster.merge("poddisruptionbudgets", &target, json!({"status": status})).await.expect("sets the status");
    cluster
}

#[tokio::test]
async fn a_budget_allows_as_many_evictions_as_it_says() {
    let allowed = json!({
        "observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2,
    });
    let cluster = with_budget(allowed).await;
    let evict = async |name: &str| cluster.post("pods", &at(name).subresource("eviction"), eviction(name)).await;
    let (first, second) = tokio::join!(evict("a"), evict("b"));
    let refused = [first, second].into_iter().filter_map(Result::err).collect::<Vec<_>>();
    let [refused] = refused.as_slice() else { panic!("one of two is refused: {refused:?}") };
    assert_eq!(
        (refused.code(), refused.message()),
        (429, "Cannot evict pod as it would violate the pod's disruption budget.")
    );
    let causes = refused.status().details.as_ref().map(|details| details.causes.clone()).unwrap_or_default();
    assert_eq!(causes[0].reason, "DisruptionBudget");
    let budget = cluster.get("poddisruptionbudgets", "pdb").await.expect("reads");
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert_eq!(budget["status"]["disruptedPods"].as_object().map(serde_json::Map::len), Some(1));
    assert_eq!(budget["status"]["conditions"][0]["reason"], "InsufficientPods");
    let pods = cluster.list("pods", "ns", json!({})).await.expect("lists");
    let evicted: Vec<Value> = pods.items.iter().map(|item| value(item)).filter(Meta::is_terminating).collect();
    assert_eq!(evicted.len(), 1);
    let conditions = evicted[0]["status"]["conditions"].as_array().expect("conditions");
    assert!(conditions.iter().any(|condition| condition["reason"] == "EvictionByEvictionAPI"));
}

#[tokio::test]
async fn a_budget_that_lags_or_is_exhausted_says_why() {
    let exhausted = json!({
        "observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 2, "desiredHealthy": 2, "expectedPods": 2,
    });
    let cluster = with_budget(exhausted).await;
    let refused = cluster.post("pods", &at("a").subresource("eviction"), eviction("a")).await.expect_err("is refused");
    let cause = |status: &rkube_apimachinery::status::ApiStatus| {
        status.status().details.as_ref().map(|details| details.causes[0].message.clone()).unwrap_or_default()
    };
    expect!["The disruption budget pdb needs 2 healthy pods and has 2 currently"].assert_eq(&cause(&refused));
    cluster
        .merge("poddisruptionbudgets", &at("pdb"), json!({"spec": {"minAvailable": 1}}))
        .await
        .expect("changes the intent");
    let refused = cluster.post("pods", &at("a").subresource("eviction"), eviction("a")).await.expect_err("is refused");
    expect!["The disruption budget pdb is still being processed by the server."].assert_eq(&cause(&refused));

    let over = json!({"status": {"phase": "Succeeded"}});
    cluster.merge("pods", &at("a").subresource("status"), over).await.expect("ends");
    cluster
        .post("pods", &at("a").subresource("eviction"), eviction("a"))
        .await
        .expect("a pod that is over is not disrupted");
}

#[tokio::test]
async fn tokens_are_signed_for_what_exists() {
    let cluster = Cluster::new().await;
    cluster.create("serviceaccounts", json!({"metadata": {"name": "robot"}})).await.expect("creates");
    let mut body = pod("p", "n1");
    body["spec"]["serviceAccountName"] = json!("robot");
    let pod = cluster.create("pods", body).await.expect("creates");
    let request = async |spec: Value| {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        match cluster.post("serviceaccounts", &at("robot").subresource("token"), body).await {
            Ok(Answer::Object(object)) => {
                let status = value(&object)["status"].clone();
                format!("{} until {}", status["token"].as_str().unwrap_or("?"), status["expirationTimestamp"])
            }
            Ok(Answer::Status(status)) => panic!("{status:?}"),
            Err(status) => format!("{} {}", status.code(), status.message()),
        }
    };
    let bound = |uid: &str| json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid});
    expect![[r#"robot pod=None node=None aud=["api"] exp=3600 warn=0 until "2026-01-02T04:04:05Z""#]]
        .assert_eq(&request(json!({})).await);
    expect![[r#"robot pod=Some("p") node=Some("n1") aud=["api"] exp=31536000 warn=3607 until "2026-01-02T04:04:12Z""#]]
        .assert_eq(&request(json!({"expirationSeconds": 3607, "boundObjectRef": bound(pod.uid())})).await);
    expect![[r#"robot pod=None node=None aud=["x"] exp=7200 warn=0 until "2026-01-02T05:04:05Z""#]]
        .assert_eq(&request(json!({"expirationSeconds": 100_000, "audiences": ["x"]})).await);
    assert_eq!(cluster.context.take_warnings(), ["requested expiration of 100000 seconds shortened to 7200 seconds"]);
    expect![[r#"422 TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes"#]]
        .assert_eq(&request(json!({"expirationSeconds": 60})).await);
    expect![[r#"409 Operation cannot be fulfilled on Pod "p": the UID in the bound object reference (other) does not match the UID in record. The object might have been deleted and then recreated"#]]
        .assert_eq(&request(json!({"boundObjectRef": bound("other")})).await);
    expect!["400 cannot bind token to object of type /v1, Kind=Service"]
        .assert_eq(&request(json!({"boundObjectRef": {"kind": "Service", "apiVersion": "v1", "name": "s"}})).await);
}
