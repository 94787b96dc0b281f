//! The kubelet dies in every call it makes, and the next one goes on as if nothing had been.

use rkube_api::k8s::core::v1::Pod;
use rkube_client::api::DeleteOptions;

use crate::harness::{Node, PATIENCE, pod};

/// More than a pod's life takes; the loops below end where a life is through.
const CALLS_MAX: usize = 20;

/// A kubelet that dies in call `calls` of a pod's life up to its start. False when the start takes fewer calls.
async fn dies_while_starting(calls: usize, acts: bool) -> bool {
    let mut node = Node::start();
    let reached = node.runtime.crash_after(calls, acts);
    node.api.put(&pod("Always", &["a", "b"]));
    let died = tokio::select! {
        () = reached.notified() => true,
        () = node.wait_for_pod("p Running a=running/0 b=running/0") => false,
    };
    node.kill_kubelet().await;
    let ran = running(&node);
    node.runtime.answer_again();
    node.start_kubelet();
    // One that was made and not started counts as an attempt.
    node.wait("two running containers", |api| {
        let status = api.get::<Pod>("default", "p").and_then(|pod| pod.status.clone()).unwrap_or_default();
        let states = status.container_statuses.into_iter().flatten().filter_map(|status| status.state?.running);
        states.count() == 2
    })
    .await;
    let runs = running(&node);
    assert!(
        runs.len() == 2 && ran.iter().all(|id| runs.contains(id)),
        "died in call {calls}, acts {acts}: {ran:?}, then {runs:?}"
    );
    remove(&mut node, calls, acts).await;
    died
}

fn running(node: &Node) -> Vec<String> {
    node.runtime.inventory().into_iter().filter(|line| line.ends_with(" running")).collect()
}

async fn dies_while_stopping(calls: usize, acts: bool) -> bool {
    let mut node = Node::start();
    node.api.put(&pod("Always", &["a"]));
    node.wait_for_pod("p Running a=running/0").await;
    let reached = node.runtime.crash_after(calls, acts);
    node.client.namespaced::<Pod>("default").delete("p", &DeleteOptions::default()).await.unwrap();
    let died = tokio::select! {
        () = reached.notified() => true,
        () = node.wait("the pod to be gone", |api| api.get::<Pod>("default", "p").is_none()) => false,
    };
    node.kill_kubelet().await;
    node.runtime.answer_again();
    node.start_kubelet();
    remove(&mut node, calls, acts).await;
    died
}

/// Deletes the pod if it is there, and waits until nothing of it is left anywhere.
async fn remove(node: &mut Node, calls: usize, acts: bool) {
    // It may be gone already.
    let _ = node.client.namespaced::<Pod>("default").delete("p", &DeleteOptions::default()).await;
    node.wait("the pod to be gone", |api| api.get::<Pod>("default", "p").is_none()).await;
    let emptied = tokio::time::timeout(PATIENCE, node.runtime.wait_until(|inventory| inventory.is_empty())).await;
    assert!(emptied.is_ok(), "died in call {calls}, acts {acts}, left {:?}", node.runtime.inventory());
    node.stop_kubelet().await;
}

#[tokio::test]
async fn a_kubelet_that_dies_while_a_pod_starts_starts_it_once() {
    for acts in [false, true] {
        let mut deaths = 0;
        while dies_while_starting(deaths, acts).await {
            deaths += 1;
            assert!(deaths < CALLS_MAX, "a start takes no end");
        }
        assert!(deaths >= 5, "a sandbox and two containers take more than {deaths} calls");
    }
}

#[tokio::test]
async fn a_kubelet_that_dies_while_a_pod_stops_leaves_nothing() {
    for acts in [false, true] {
        let mut deaths = 0;
        while dies_while_stopping(deaths, acts).await {
            deaths += 1;
            assert!(deaths < CALLS_MAX, "an end takes no end");
        }
        assert!(deaths >= 2, "a container and a sandbox take more than {deaths} calls");
    }
}
