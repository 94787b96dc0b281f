//! What the registry does by itself: events end, history is forgotten.

use std::time::Duration;

use rkube_storage::{ListRange, Revision, Storage, StorageError};
use serde_json::{Value, json};

use crate::cluster::{Cluster, PATIENCE, at, keys, map, map_with};

fn event(name: &str) -> Value {
    json!({
        "metadata": {"name": name}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "ns"},
        "source": {"component": "kubelet"}, "reason": "Started",
    })
}

/// Advances the clock until the events are these: the expiry arms its timer in its own time.
async fn events_become(cluster: &Cluster, expected: &[&str]) {
    let wait = async {
        while keys(&cluster.list("events", "ns", json!({})).await.expect("lists")) != expected {
            cluster.clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waiting for the events {expected:?}"));
}

#[tokio::test]
async fn events_go_an_hour_after_they_were_last_written() {
    let cluster = Cluster::new().await;
    cluster.create("events", event("old")).await.expect("creates");
    cluster.create("events", event("renewed")).await.expect("creates");
    cluster.list("events", "", json!({})).await.expect("lists");
    cluster.clock.advance(Duration::from_secs(3000));
    cluster.merge("events", &at("renewed"), json!({"count": 2})).await.expect("patches");
    cluster.create("events", event("new")).await.expect("creates");
    cluster.clock.advance(Duration::from_secs(500));
    assert_eq!(cluster.list("events", "ns", json!({})).await.expect("lists").items.len(), 3);
    events_become(&cluster, &["ns/new", "ns/renewed"]).await;
    events_become(&cluster, &[]).await;
}

#[tokio::test]
async fn events_of_before_a_restart_go_in_time() {
    let first = Cluster::new().await;
    first.create("events", event("old")).await.expect("creates");
    let again = Cluster::over(first.storage.clone()).await;
    again.clock.advance(Duration::from_secs(3500));
    assert_eq!(again.list("events", "ns", json!({})).await.expect("lists").items.len(), 1);
    events_become(&again, &[]).await;
}

#[tokio::test]
async fn events_are_seen_in_both_their_groups() {
    let cluster = Cluster::new().await;
    cluster.create("events", event("e")).await.expect("creates");
    let resource = rkube_apimachinery::gvk::GroupVersionResource::new("events.k8s.io", "v1", "events");
    let store = cluster.registry.store(&resource).expect("is served");
    let read = store.get(&cluster.context, &at("e"), &Default::default()).await.expect("reads");
    let read = read.value().expect("JSON");
    assert_eq!((&read["apiVersion"], &read["regarding"]["name"]), (&json!("events.k8s.io/v1"), &json!("p")));
    let select = |selector: &str| serde_json::from_value(json!({"fieldSelector": selector})).expect("options");
    let page = store.list(&cluster.context, "ns", &select("regarding.kind=Pod,reason=Started")).await.expect("lists");
    assert_eq!(page.items.len(), 1);
    let page =
        cluster.list("events", "ns", json!({"fieldSelector": "involvedObject.name=other"})).await.expect("lists");
    assert_eq!(page.items.len(), 0);
}

#[tokio::test]
async fn history_is_forgotten_after_two_intervals() {
    let cluster = Cluster::new().await;
    cluster.create("configmaps", map("a")).await.expect("creates");
    cluster.create("configmaps", map("b")).await.expect("creates");
    let begun = cluster.list("configmaps", "", json!({"limit": 1})).await.expect("lists");
    let next = || cluster.list("configmaps", "", json!({"limit": 1, "continue": begun.continue_token}));
    assert_eq!(next().await.expect("goes on").items.len(), 1);
    for index in 0..10 {
        cluster.update("configmaps", &at("a"), map_with("a", &index.to_string())).await.expect("updates");
    }
    let old = || cluster.storage.list(ListRange { at: Some(Revision(5)), ..ListRange::default() });
    assert!(old().await.is_ok());
    let wait = async {
        while !matches!(old().await, Err(StorageError::Compacted { .. })) {
            cluster.clock.advance(Duration::from_secs(60));
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("old revisions are compacted in time");
    assert_eq!(cluster.list("configmaps", "", json!({})).await.expect("lists").items.len(), 2);
    // Though its snapshot is kept, a list that was begun before ends as it would with etcd.
    assert_eq!(next().await.expect_err("expired").code(), 410);
}
