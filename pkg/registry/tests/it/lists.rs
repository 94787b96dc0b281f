//! Lists: pages, versions, continue tokens, selectors.

use std::time::Duration;

use base64::Engine as _;
use expect_test::expect;
use rkube_storage::{Revision, Storage};
use serde_json::{Value, json};

use crate::cluster::{Cluster, at, keys, map, map_with, pod};

async fn with_maps(count: usize) -> Cluster {
    let cluster = Cluster::new().await;
    for index in 0..count {
        cluster.create("configmaps", map(&format!("m{index:03}"))).await.expect("creates");
    }
    cluster
}

async fn refused(cluster: &Cluster, options: Value) -> String {
    let status = cluster.list("configmaps", "ns", options).await.expect_err("is refused");
    format!("{} {}", status.code(), status.message())
}

#[tokio::test]
async fn pages_show_one_state_whatever_happens_between_them() {
    let cluster = with_maps(10).await;
    let first = cluster.list("configmaps", "ns", json!({"limit": 4})).await.expect("lists");
    assert_eq!(keys(&first), ["ns/m000", "ns/m001", "ns/m002", "ns/m003"]);
    assert_eq!(first.remaining_item_count, Some(6));

    cluster.create("configmaps", map("m0035")).await.expect("creates");
    cluster.delete("configmaps", "m005", json!({})).await.expect("deletes");
    let second = cluster.list("configmaps", "ns", json!({"limit": 4, "continue": first.continue_token})).await;
    let second = second.expect("goes on");
    assert_eq!(keys(&second), ["ns/m004", "ns/m005", "ns/m006", "ns/m007"]);
    assert_eq!((second.revision, second.remaining_item_count), (first.revision, Some(2)));
    let third = cluster.list("configmaps", "", json!({"continue": second.continue_token})).await;
    assert!(third.is_ok(), "a token names a position, not a scope");
    let third = cluster.list("configmaps", "ns", json!({"limit": 4, "continue": second.continue_token})).await;
    let third = third.expect("ends");
    assert_eq!(keys(&third), ["ns/m008", "ns/m009"]);
    assert_eq!((third.continue_token.as_str(), third.remaining_item_count), ("", None));
}

#[tokio::test]
async fn a_page_is_read_from_history_when_its_snapshot_is_gone() {
    let cluster = with_maps(10).await;
    let first = cluster.list("configmaps", "ns", json!({"limit": 4})).await.expect("lists");
    cluster.delete("configmaps", "m005", json!({})).await.expect("deletes");
    // Another registry over the same storage has no snapshots.
    let other = Cluster::over(cluster.storage.clone()).await;
    let second = other.list("configmaps", "ns", json!({"limit": 4, "continue": first.continue_token})).await;
    let second = second.expect("goes on");
    assert_eq!(keys(&second), ["ns/m004", "ns/m005", "ns/m006", "ns/m007"]);
    assert_eq!((second.revision, second.remaining_item_count), (first.revision, Some(2)));
    let exact = other.list(
        "configmaps",
        "",
        json!({"resourceVersion": first.revision.to_string(), "resourceVersionMatch": "Exact"}),
    );
    assert_eq!(exact.await.expect("lists").items.len(), 10);

    other.storage.compact(Revision(first.revision + 1)).await.expect("compacts");
    let status = other.list("configmaps", "ns", json!({"limit": 4, "continue": first.continue_token})).await;
    let status = status.expect_err("expired");
    assert_eq!((status.code(), status.status().reason.as_str()), (410, "Expired"));
    let token = status.status().metadata.continue_token.clone();
    let rest = other.list("configmaps", "ns", json!({"limit": 4, "continue": token})).await.expect("goes on, newer");
    assert_eq!(keys(&rest), ["ns/m004", "ns/m006", "ns/m007", "ns/m008"]);
    let status = other.list(
        "configmaps",
        "",
        json!({"resourceVersion": first.revision.to_string(), "resourceVersionMatch": "Exact"}),
    );
    assert_eq!(status.await.expect_err("expired").message(), "The resourceVersion for the provided list is too old.");
}

#[tokio::test]
async fn continue_tokens_have_the_form_of_kube_apiserver() {
    let cluster = with_maps(3).await;
    let page = cluster.list("configmaps", "ns", json!({"limit": 1})).await.expect("lists");
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&page.continue_token).expect("base64");
    let token: Value = serde_json::from_slice(&token).expect("JSON");
    assert_eq!(token, json!({"v": "meta.k8s.io/v1", "rv": page.revision, "start": "m000\u{0}"}));
}

#[tokio::test]
async fn versions_and_tokens_that_make_no_sense_are_refused() {
    let cluster = with_maps(3).await;
    let page = cluster.list("configmaps", "ns", json!({"limit": 1})).await.expect("lists");
    let token = page.continue_token;
    expect!["400 specifying resource version is not allowed when using continue"]
        .assert_eq(&refused(&cluster, json!({"continue": token, "resourceVersion": "1"})).await);
    expect![[r#"422 ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"#]]
        .assert_eq(&refused(&cluster, json!({"resourceVersionMatch": "Exact"})).await);
    expect![[r#"422 ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0""#]]
        .assert_eq(&refused(&cluster, json!({"resourceVersionMatch": "Exact", "resourceVersion": "0"})).await);
    expect![[r#"400 invalid resource version: resourceVersion: Invalid value: "x": strconv.ParseUint: parsing "x": invalid syntax"#]]
        .assert_eq(&refused(&cluster, json!({"resourceVersion": "x"})).await);
    assert!(
        refused(&cluster, json!({"continue": "!"}))
            .await
            .starts_with("400 invalid continue token: continue key is not valid")
    );
    let escape = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .encode(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"../secrets/x"}"#);
    expect!["400 invalid continue token: continue key is not valid: ../secrets/x"]
        .assert_eq(&refused(&cluster, json!({"continue": escape})).await);
    expect![[r#"400 "spec.x" is not a known field selector: only "metadata.name", "metadata.namespace""#]]
        .assert_eq(&refused(&cluster, json!({"fieldSelector": "spec.x=1"})).await);
    let status = cluster.list("pods", "ns", json!({"fieldSelector": "spec.x=1"})).await.expect_err("is refused");
    expect!["field label not supported: spec.x"].assert_eq(status.message());
}

#[tokio::test]
async fn a_version_from_the_future_is_waited_for_and_then_refused() {
    let cluster = with_maps(1).await;
    let newest = cluster.list("configmaps", "ns", json!({})).await.expect("lists").revision;
    let future = json!({"resourceVersion": (newest + 1).to_string()});
    let waiting = cluster.list("configmaps", "ns", future.clone());
    let (page, _) = tokio::join!(waiting, cluster.create("configmaps", map("new")));
    assert_eq!(page.expect("lists").items.len(), 2);

    let far = json!({"resourceVersion": (newest + 1000).to_string()});
    let mut waiting = Box::pin(cluster.list("configmaps", "ns", far));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    cluster.clock.advance(Duration::from_secs(4));
    let status = waiting.await.expect_err("too large");
    assert_eq!(status.code(), 504);
    assert_eq!(
        status.message(),
        format!("Timeout: Too large resource version: {}, current: {}", newest + 1000, newest + 1)
    );
    assert_eq!(status.status().details.as_ref().map(|details| details.causes.len()), Some(1));
}

#[tokio::test]
async fn selectors_select() {
    let cluster = Cluster::new().await;
    for (name, node, label) in [("a", "n1", "x"), ("b", "n2", "y"), ("c", "n1", "y"), ("d", "", "x")] {
        let mut body = pod(name, node);
        body["metadata"]["labels"] = json!({"l": label});
        cluster.create("pods", body).await.expect("creates");
    }
    let select = async |options: Value| keys(&cluster.list("pods", "", options).await.expect("lists"));
    assert_eq!(select(json!({"fieldSelector": "spec.nodeName=n1"})).await, ["ns/a", "ns/c"]);
    assert_eq!(select(json!({"fieldSelector": "spec.nodeName!=n1"})).await, ["ns/b", "ns/d"]);
    assert_eq!(select(json!({"fieldSelector": "spec.nodeName=", "labelSelector": "l=x"})).await, ["ns/d"]);
    assert_eq!(select(json!({"labelSelector": "l notin (x),!m"})).await, ["ns/b", "ns/c"]);
    assert_eq!(select(json!({"fieldSelector": "metadata.name=b"})).await, ["ns/b"]);
    assert_eq!(
        select(json!({"fieldSelector": "metadata.name=b,metadata.namespace=ns,spec.nodeName=n1"})).await,
        [""; 0]
    );
    assert_eq!(select(json!({"fieldSelector": "metadata.namespace=other"})).await, [""; 0]);
    let page = cluster.list("pods", "", json!({"labelSelector": "l=y", "limit": 1})).await.expect("lists");
    assert_eq!((keys(&page), page.remaining_item_count), (vec!["ns/b".to_owned()], None));
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let cluster = with_maps(100).await;
    cluster.update("configmaps", &at("m050"), map_with("m050", "x")).await.expect("updates");
    let before = cluster.list("configmaps", "", json!({})).await.expect("lists");
    let again = Cluster::over(cluster.storage.clone()).await;
    let after = again.list("configmaps", "", json!({})).await.expect("lists");
    assert_eq!(before.revision, after.revision);
    let json =
        |page: &rkube_registry::store::ListPage| page.items.iter().map(|item| item.json.clone()).collect::<Vec<_>>();
    assert_eq!(json(&before), json(&after));
}

#[tokio::test]
async fn a_consistent_read_does_not_wait_for_changes_of_others() {
    let cluster = with_maps(1).await;
    // Somebody else's key in the same datastore raises its revision, and no change of ours ever follows.
    let put = cluster.storage.put("/elsewhere".to_owned(), "x".into(), rkube_storage::Precondition::Absent);
    let rkube_storage::WriteOutcome::Done(revision) = put.await.expect("writes") else { panic!("is absent") };
    let list = cluster.list("configmaps", "", json!({}));
    let page =
        tokio::time::timeout(crate::cluster::PATIENCE, list).await.expect("the list does not wait").expect("lists");
    assert_eq!((page.items.len(), page.revision), (1, revision.0));
}
