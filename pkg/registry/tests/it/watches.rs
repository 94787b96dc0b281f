//! The guarantees of a watch, as etcd's robustness suite names them: ordered, unique, atomic, reliable,
//! resumable, bookmarkable, and that filters, previous states and creations are told right.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rkube_registry::store::{Answer, WatchEvent};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Watching, at, map, map_with, pod};

async fn current(cluster: &Cluster) -> u64 {
    cluster.list("configmaps", "", json!({})).await.expect("lists").revision
}

fn from(revision: u64) -> Value {
    json!({"resourceVersion": revision.to_string()})
}

#[tokio::test]
async fn a_watch_tells_each_change_once_in_order() {
    let cluster = Cluster::new().await;
    let start = current(&cluster).await;
    let mut watching = cluster.watch("configmaps", "", from(start)).await.expect("watches");
    cluster.create("configmaps", map("a")).await.expect("creates");
    cluster.update("configmaps", &at("a"), map_with("a", "1")).await.expect("updates");
    cluster.create("pods", pod("p", "")).await.expect("creates");
    cluster.delete("configmaps", "a", json!({})).await.expect("deletes");
    cluster.create("configmaps", map("a")).await.expect("creates");
    let expected: Vec<String> = [(1, "ADDED"), (2, "MODIFIED"), (4, "DELETED"), (5, "ADDED")]
        .iter()
        .map(|(after, kind)| format!("{kind} ns/a@{}", start + after))
        .collect();
    assert_eq!(watching.take(4).await, expected);

    let mut resumed = cluster.watch("configmaps", "", from(start + 2)).await.expect("watches");
    assert_eq!(resumed.take(2).await, expected[2..]);
}

#[tokio::test]
async fn initial_events_end_with_an_annotated_bookmark() {
    let cluster = Cluster::new().await;
    for index in 0..1500 {
        cluster.create("configmaps", map(&format!("m{index:04}"))).await.expect("creates");
    }
    let options = json!({
        "sendInitialEvents": true, "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": true,
    });
    let mut watching = cluster.watch("configmaps", "ns", options).await.expect("watches");
    let start = current(&cluster).await;
    cluster.create("configmaps", map("later")).await.expect("creates");
    let events = watching.take(1502).await;
    assert!(events[..1500].iter().all(|event| event.starts_with("ADDED ns/m")));
    assert_eq!(events[1500], format!("BOOKMARK {start} initial"));
    assert_eq!(events[1501], format!("ADDED ns/later@{}", start + 1));
}

#[tokio::test]
async fn without_a_version_a_watch_begins_with_what_is_there() {
    let cluster = Cluster::new().await;
    cluster.create("configmaps", map("a")).await.expect("creates");
    for version in ["", "0"] {
        let mut watching = cluster.watch("configmaps", "", json!({"resourceVersion": version})).await.expect("watches");
        assert_eq!(watching.next().await, "ADDED ns/a@1");
    }
    let options = json!({"sendInitialEvents": false, "resourceVersionMatch": "NotOlderThan"});
    let mut watching = cluster.watch("configmaps", "", options).await.expect("watches");
    cluster.create("configmaps", map("b")).await.expect("creates");
    assert_eq!(watching.next().await, "ADDED ns/b@2");
}

#[tokio::test]
async fn an_object_that_enters_or_leaves_the_selection_is_added_or_deleted() {
    let cluster = Cluster::new().await;
    let start = current(&cluster).await;
    let watch = |options: Value| cluster.watch("pods", "", options);
    let version = start.to_string();
    let mut by_label = watch(json!({"labelSelector": "l=x", "resourceVersion": version})).await.expect("watches");
    let mut by_field =
        watch(json!({"fieldSelector": "spec.nodeName=n1", "resourceVersion": version})).await.expect("watches");
    let mut by_name =
        watch(json!({"fieldSelector": "metadata.name=q", "resourceVersion": version})).await.expect("watches");
    let mut other = cluster.watch("pods", "other", from(start)).await.expect("watches");
    let mut body = pod("p", "n1");
    body["metadata"]["labels"] = json!({"l": "x"});
    cluster.create("pods", body).await.expect("creates");
    cluster.merge("pods", &at("p"), json!({"metadata": {"labels": {"l": "y"}}})).await.expect("patches");
    cluster.merge("pods", &at("p"), json!({"metadata": {"labels": {"l": "x"}}})).await.expect("patches");
    cluster.merge("pods", &at("p"), json!({"spec": {"nodeName": "n2"}})).await.expect("patches");
    cluster.create("pods", pod("q", "")).await.expect("creates");
    let event = |kind: &str, after: u64| format!("{kind} ns/p@{}", start + after);
    assert_eq!(
        by_label.take(4).await,
        [event("ADDED", 1), event("DELETED", 2), event("ADDED", 3), event("MODIFIED", 4)]
    );
    assert_eq!(
        by_field.take(4).await,
        [event("ADDED", 1), event("MODIFIED", 2), event("MODIFIED", 3), event("DELETED", 4)]
    );
    assert_eq!(by_name.next().await, format!("ADDED ns/q@{}", start + 5));
    cluster.clock.advance(Duration::from_secs(4000));
    assert_eq!(other.next().await, "end");
}

#[tokio::test]
async fn what_left_the_selection_is_told_as_it_last_was_in_it() {
    let cluster = Cluster::new().await;
    let mut body = map("a");
    body["metadata"]["labels"] = json!({"l": "x"});
    cluster.create("configmaps", body).await.expect("creates");
    let mut watching = cluster
        .watch("configmaps", "", json!({"labelSelector": "l=x", "resourceVersion": "1"}))
        .await
        .expect("watches");
    cluster.merge("configmaps", &at("a"), json!({"metadata": {"labels": null}})).await.expect("patches");
    let Some(WatchEvent::Deleted(object)) = watching.event().await else { panic!("a deletion") };
    assert_eq!(object.revision, 2);
    assert_eq!(object.value().expect("JSON")["metadata"]["labels"], json!({"l": "x"}));
    assert_eq!(object.value().expect("JSON")["metadata"]["resourceVersion"], "2");
}

#[tokio::test]
async fn a_version_that_is_too_old_is_told_so() {
    let cluster = Cluster::new().await;
    for index in 0..3 {
        cluster.create("configmaps", map(&format!("m{index}"))).await.expect("creates");
    }
    let again = Cluster::over(cluster.storage.clone()).await;
    let mut watching = again.watch("configmaps", "", from(1)).await.expect("watches");
    assert_eq!(watching.take(2).await, ["ERROR 410 too old resource version: 1 (3)", "end"]);
    current(&cluster).await;
    cluster.clock.advance(Duration::from_secs(400));
    cluster.create("configmaps", map("new")).await.expect("creates");
    current(&cluster).await;
    // Old history is kept as long as it is little.
    let mut watching = cluster.watch("configmaps", "", from(1)).await.expect("watches");
    assert_eq!(watching.take(3).await, ["ADDED ns/m1@2", "ADDED ns/m2@3", "ADDED ns/new@4"]);
    for index in 0..99 {
        cluster.create("configmaps", map(&format!("n{index}"))).await.expect("creates");
    }
    current(&cluster).await;
    let mut watching = cluster.watch("configmaps", "", from(1)).await.expect("watches");
    assert_eq!(watching.take(2).await, ["ERROR 410 too old resource version: 1 (3)", "end"]);
}

/// One copy of an object's bytes serves everybody.
#[tokio::test]
async fn what_a_write_answers_is_what_watchers_are_told_and_readers_get() {
    let cluster = Cluster::new().await;
    let mut watching = cluster.watch("configmaps", "", json!({})).await.expect("watches");
    let Answer::Object(created) = cluster.post("configmaps", &at(""), map("a")).await.expect("creates") else {
        panic!("an object")
    };
    let Some(WatchEvent::Added(told)) = watching.event().await else { panic!("a creation") };
    assert!(Arc::ptr_eq(&created, &told));

    let written = cluster.update("configmaps", &at("a"), map_with("a", "1")).await.expect("updates");
    let Some(WatchEvent::Modified(told)) = watching.event().await else { panic!("a change") };
    assert!(Arc::ptr_eq(&written.object, &told));
    let listed = cluster.list("configmaps", "", json!({})).await.expect("lists");
    assert!(Arc::ptr_eq(&written.object, &listed.items[0]));
}

#[tokio::test]
async fn bookmarks_come_each_minute_and_at_the_end_when_asked_for() {
    let cluster = Cluster::new().await;
    cluster.create("configmaps", map("a")).await.expect("creates");
    let options = json!({"resourceVersion": "1", "allowWatchBookmarks": true, "timeoutSeconds": 90});
    let mut asked = cluster.watch("configmaps", "", options).await.expect("watches");
    let mut silent =
        cluster.watch("configmaps", "", json!({"resourceVersion": "1", "timeoutSeconds": 90})).await.expect("watches");
    cluster.create("pods", pod("p", "")).await.expect("creates");
    current(&cluster).await;
    let advance = async |watching: &mut Watching, seconds: u64| {
        let mut next = Box::pin(watching.next());
        assert!(futures_util::poll!(&mut next).is_pending());
        cluster.clock.advance(Duration::from_secs(seconds));
        next.await
    };
    assert_eq!(advance(&mut asked, 60).await, "BOOKMARK 2");
    assert_eq!(advance(&mut asked, 30).await, "BOOKMARK 2");
    assert_eq!(asked.next().await, "end");
    assert_eq!(silent.next().await, "end");
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_closed_and_may_resume() {
    let cluster = Cluster::new().await;
    cluster.create("configmaps", map("a")).await.expect("creates");
    let mut slow = cluster.watch("configmaps", "", from(1)).await.expect("watches");
    let total = 20_000;
    for index in 0..total {
        cluster.update("configmaps", &at("a"), map_with("a", &index.to_string())).await.expect("updates");
    }
    current(&cluster).await;
    let mut seen = 1;
    while let Some(WatchEvent::Modified(object)) = slow.event().await {
        assert_eq!(object.revision, seen + 1, "no event is skipped");
        seen = object.revision;
    }
    assert!(seen > 1_000 && seen < total, "closed after {seen}");
    let mut resumed = cluster.watch("configmaps", "", from(seen)).await.expect("watches");
    while seen < total + 1 {
        let Some(WatchEvent::Modified(object)) = resumed.event().await else { panic!("an event") };
        assert_eq!(object.revision, seen + 1);
        seen = object.revision;
    }
}

/// Writers change objects while watchers come and go; each watcher's picture must in the end be the list,
/// each event must continue the one before, and a watch that resumes must miss nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_made_of_events_are_the_state() {
    let cluster = Cluster::new().await;
    let writers = (0..4_u64).map(|writer| {
        let cluster = &cluster;
        async move {
            for step in 0..300_u64 {
                let name = format!("m{}", (writer * 7 + step * 13) % 25);
                let body = map_with(&name, &format!("{writer}-{step}"));
                // Another writer may have been first; what matters is that watchers agree with the result.
                let _ = match step % 3 {
                    0 => cluster.create("configmaps", body).await.map(drop),
                    1 => cluster.update("configmaps", &at(&name), body).await.map(drop),
                    _ => cluster.delete("configmaps", &name, json!({})).await.map(drop),
                };
                tokio::task::yield_now().await;
            }
        }
    });
    let watchers = (0..6).map(|watcher| {
        let cluster = &cluster;
        async move {
            let mut picture: BTreeMap<String, (u64, Value)> = BTreeMap::new();
            let mut seen = 0;
            for round in 0.. {
                let options = if seen == 0 { json!({"allowWatchBookmarks": true}) } else { from(seen) };
                let mut watching = cluster.watch("configmaps", "", options).await.expect("watches");
                for _ in 0..if round < 5 { 20 + watcher } else { usize::MAX } {
                    let Some(event) = watching.event().await else { break };
                    let initial = seen == 0 || round == 0 && matches!(event, WatchEvent::Added(_));
                    match event {
                        WatchEvent::Added(object) => {
                            assert!(initial || object.revision > seen, "events are ordered and unique");
                            seen = seen.max(object.revision);
                            let old = picture
                                .insert(object.key.to_string(), (object.revision, object.value().expect("JSON")));
                            assert!(old.is_none(), "only what was not there is added");
                        }
                        WatchEvent::Modified(object) => {
                            assert!(object.revision > seen, "events are ordered and unique");
                            seen = object.revision;
                            let old = picture
                                .insert(object.key.to_string(), (object.revision, object.value().expect("JSON")));
                            assert!(old.is_some(), "only what was there is modified");
                        }
                        WatchEvent::Deleted(object) => {
                            assert!(object.revision > seen, "events are ordered and unique");
                            seen = object.revision;
                            let old = picture.remove(&object.key.to_string()).expect("only what was there is deleted");
                            let mut last = object.value().expect("JSON");
                            last["metadata"]["resourceVersion"] = json!(old.0.to_string());
                            assert_eq!(last, old.1, "a deletion tells the last state");
                        }
                        WatchEvent::Bookmark { revision, .. } => {
                            assert!(revision >= seen, "a bookmark is not older than what was told");
                            seen = revision;
                        }
                        WatchEvent::Error(status) => panic!("{status}"),
                    }
                    if picture.contains_key("ns/end") {
                        return picture;
                    }
                }
            }
            unreachable!("the loop ends by returning")
        }
    });
    let writing = async {
        futures_util::future::join_all(writers).await;
        cluster.create("configmaps", map("end")).await.expect("creates");
    };
    let ((), pictures) = tokio::join!(writing, futures_util::future::join_all(watchers));
    let page = cluster.list("configmaps", "", json!({})).await.expect("lists");
    let state: BTreeMap<String, (u64, Value)> =
        page.items.iter().map(|item| (item.key.to_string(), (item.revision, item.value().expect("JSON")))).collect();
    for picture in pictures {
        assert_eq!(picture, state);
    }
}
