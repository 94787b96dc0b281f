//! Deletion: preconditions, finalizers, grace periods, collections.

use std::time::Duration;

use rkube_apimachinery::meta::Meta;
use rkube_registry::options::DeleteOptions;
use rkube_registry::store::{Answer, Deleted, WatchEvent};
use serde_json::{Value, json};

use crate::cluster::{Cluster, at, map, pod, value};

fn object(deleted: &Deleted) -> Value {
    match &deleted.answer {
        Answer::Object(object) => value(object),
        Answer::Status(status) => serde_json::to_value(status).expect("encodes"),
    }
}

#[tokio::test]
async fn a_plain_object_goes_at_once_and_the_answer_names_it() {
    let cluster = Cluster::new().await;
    let created = cluster.create("configmaps", map("a")).await.expect("creates");
    let deleted = cluster.delete("configmaps", "a", json!({})).await.expect("deletes");
    assert!(deleted.immediate);
    assert_eq!(
        object(&deleted),
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {"name": "a", "kind": "configmaps", "uid": created.uid()},
        })
    );
    let status = cluster.delete("configmaps", "a", json!({})).await.expect_err("is gone");
    assert_eq!(status.message(), "configmaps \"a\" not found");
}

#[tokio::test]
async fn preconditions_protect_another_object_of_the_same_name() {
    let cluster = Cluster::new().await;
    let created = cluster.create("configmaps", map("a")).await.expect("creates");
    let status = cluster.delete("configmaps", "a", json!({"preconditions": {"uid": "x"}})).await.expect_err("refused");
    let expected = format!(
        "Operation cannot be fulfilled on configmaps \"a\": Precondition failed: UID in precondition: x, UID in object meta: {}",
        created.uid()
    );
    assert_eq!((status.code(), status.message()), (409, expected.as_str()));
    let version = json!({"preconditions": {"uid": created.uid(), "resourceVersion": created.resource_version()}});
    cluster.delete("configmaps", "a", version).await.expect("deletes");
}

#[tokio::test]
async fn finalizers_keep_an_object_until_the_last_is_removed() {
    let cluster = Cluster::new().await;
    let mut body = map("a");
    body["metadata"]["finalizers"] = json!(["example.com/x"]);
    cluster.create("configmaps", body).await.expect("creates");

    let deleted = cluster.delete("configmaps", "a", json!({"propagationPolicy": "Foreground"})).await.expect("marks");
    assert!(!deleted.immediate);
    let marked = object(&deleted);
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-02T03:04:05Z");
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
    assert_eq!(marked["metadata"]["finalizers"], json!(["example.com/x", "foregroundDeletion"]));

    cluster.clock.advance(Duration::from_secs(10));
    let again = cluster.delete("configmaps", "a", json!({"propagationPolicy": "Orphan"})).await.expect("marks again");
    let again = object(&again);
    assert_eq!(again["metadata"]["deletionTimestamp"], "2026-01-02T03:04:05Z");
    assert_eq!(again["metadata"]["finalizers"], json!(["example.com/x", "orphan"]));

    let added = cluster.merge("configmaps", &at("a"), json!({"metadata": {"finalizers": ["example.com/y"]}})).await;
    assert_eq!(
        added.expect_err("is refused").message(),
        "ConfigMap \"a\" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object \
         is being deleted, found new finalizers []string{\"example.com/y\"}"
    );
    let last = cluster.merge("configmaps", &at("a"), json!({"metadata": {"finalizers": null}})).await.expect("ends");
    assert!(last.meta_field("finalizers").is_none());
    assert!(cluster.get("configmaps", "a").await.is_err_and(|status| status.is_not_found()));
}

#[tokio::test]
async fn a_bound_pod_gets_its_grace_period_which_only_gets_shorter() {
    let cluster = Cluster::new().await;
    cluster.create("pods", pod("p", "node")).await.expect("creates");
    let marked = object(&cluster.delete("pods", "p", json!({})).await.expect("marks"));
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-02T03:04:35Z");
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(marked.generation(), 2);

    let longer =
        object(&cluster.delete("pods", "p", json!({"gracePeriodSeconds": 60})).await.expect("changes nothing"));
    assert_eq!(longer, marked);
    let shorter = object(&cluster.delete("pods", "p", json!({"gracePeriodSeconds": 10})).await.expect("shortens"));
    assert_eq!(shorter["metadata"]["deletionTimestamp"], "2026-01-02T03:04:15Z");
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 10);

    cluster.clock.advance(Duration::from_secs(60));
    let past = object(&cluster.delete("pods", "p", json!({"gracePeriodSeconds": 5})).await.expect("shortens"));
    assert_eq!(past["metadata"]["deletionTimestamp"], "2026-01-02T03:05:05Z");
    assert_eq!(past["metadata"]["deletionGracePeriodSeconds"], 1);

    let deleted = cluster.delete("pods", "p", json!({"gracePeriodSeconds": 0})).await.expect("deletes");
    assert!(deleted.immediate);
    assert!(cluster.get("pods", "p").await.is_err_and(|status| status.is_not_found()));
}

#[tokio::test]
async fn a_pod_without_a_node_goes_at_once() {
    let cluster = Cluster::new().await;
    cluster.create("pods", pod("p", "")).await.expect("creates");
    let deleted = cluster.delete("pods", "p", json!({})).await.expect("deletes");
    assert!(deleted.immediate);
    assert_eq!(object(&deleted).name(), "p");
}

#[tokio::test]
async fn watchers_see_the_mark_before_an_object_goes_without_grace() {
    let cluster = Cluster::new().await;
    let created = cluster.create("pods", pod("p", "node")).await.expect("creates");
    let from = json!({"resourceVersion": created.resource_version()});
    let mut watch = cluster.watch("pods", "ns", from).await.expect("watches");
    let exact = json!({
        "gracePeriodSeconds": 0,
        "preconditions": {"uid": created.uid(), "resourceVersion": created.resource_version()},
    });
    let deleted = cluster.delete("pods", "p", exact).await.expect("deletes");
    assert!(deleted.immediate);
    let Some(WatchEvent::Modified(marked)) = watch.event().await else { panic!("the mark comes first") };
    let marked = value(&marked);
    assert_eq!(marked.deletion_grace_period_seconds(), Some(0));
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-02T03:04:05Z");
    let Some(WatchEvent::Deleted(gone)) = watch.event().await else { panic!("then it goes") };
    assert_eq!(value(&gone).deletion_grace_period_seconds(), Some(0));
}

#[tokio::test]
async fn a_dry_run_deletes_nothing() {
    let cluster = Cluster::new().await;
    let created = cluster.create("configmaps", map("a")).await.expect("creates");
    let deleted = cluster.delete("configmaps", "a", json!({"dryRun": ["All"]})).await.expect("pretends");
    assert!(deleted.immediate);
    assert_eq!(cluster.get("configmaps", "a").await.expect("reads"), created);
}

#[tokio::test]
async fn a_collection_goes_as_selected() {
    let cluster = Cluster::new().await;
    for index in 0..20 {
        let mut body = map(&format!("m{index:02}"));
        body["metadata"]["labels"] = json!({"even": (index % 2 == 0).to_string()});
        cluster.create("configmaps", body).await.expect("creates");
    }
    let store = cluster.store("configmaps");
    let list = serde_json::from_value(json!({"labelSelector": "even=true"})).expect("options");
    let gone = store.delete_collection(&cluster.context, "ns", DeleteOptions::default(), &list).await.expect("deletes");
    assert_eq!(gone.items.len(), 10);
    let left = cluster.list("configmaps", "ns", json!({})).await.expect("lists");
    assert_eq!(left.items.len(), 10);
    assert!(left.items.iter().all(|item| item.selection.labels == [("even".to_owned(), "false".to_owned())]));
}

#[tokio::test]
async fn two_policies_at_once_are_invalid() {
    let cluster = Cluster::new().await;
    cluster.create("configmaps", map("a")).await.expect("creates");
    let both = json!({"orphanDependents": true, "propagationPolicy": "Orphan"});
    let status = cluster.delete("configmaps", "a", both).await.expect_err("is invalid");
    assert_eq!(status.code(), 422);
    assert_eq!(
        status.message(),
        "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: \"Orphan\": \
         orphanDependents and deletionPropagation cannot be both set"
    );
}
