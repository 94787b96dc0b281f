//! Pods from their object to their containers and back.

use std::sync::atomic::Ordering;

use rkube_api::Kind;
use rkube_api::k8s::coordination::v1::Lease;
use rkube_api::k8s::core::v1::{Node as NodeObject, Pod};
use rkube_client::api::DeleteOptions;
use rkube_client::fake::FakeApi;
use rkube_cri::Code;

use crate::harness::{Node, pod};

#[tokio::test]
async fn a_pod_runs_ends_and_stays() {
    let mut node = Node::start();
    node.api.put(&pod("Never", &["a", "b"]));
    node.wait_for_pod("p Running a=running/0 b=running/0").await;
    let started: Vec<String> = node.runtime.take_calls();
    assert_eq!(
        started,
        [
            "run_pod_sandbox p attempt=0",
            "create_container a attempt=0",
            "start_container a",
            "create_container b attempt=0",
            "start_container b"
        ]
    );
    let status = node.api.get::<Pod>("default", "p").unwrap().status.clone().unwrap();
    assert_eq!((status.pod_ip.as_deref(), status.host_ip.as_deref()), (Some("10.42.0.9"), Some("192.0.2.1")));

    node.runtime.exit("a", 0);
    node.wait_for_pod("p Running a=exited(0)/0 b=running/0").await;
    node.runtime.exit("b", 0);
    node.wait_for_pod("p Succeeded a=exited(0)/0 b=exited(0)/0").await;
    node.stop_kubelet().await;
    assert!(node.api.get::<Pod>("default", "p").is_some(), "a pod that ended is not the kubelet's to remove");
}

#[tokio::test]
async fn a_container_that_ends_is_started_again_at_once_and_then_waits() {
    let mut node = Node::start();
    node.api.put(&pod("Always", &["a"]));
    node.wait_for_pod("p Running a=running/0").await;
    node.runtime.exit("a", 1);
    node.wait_for_pod("p Running a=running/1").await;
    node.runtime.exit("a", 1);
    node.wait_for_pod("p Running a=CrashLoopBackOff/1").await;
    node.stop_kubelet().await;
}

#[tokio::test]
async fn a_deleted_pod_is_stopped_before_its_object_goes() {
    let mut node = Node::start();
    node.api.put(&pod("Always", &["a"]));
    node.wait_for_pod("p Running a=running/0").await;
    node.runtime.take_calls();
    node.client.namespaced::<Pod>("default").delete("p", &DeleteOptions::default()).await.unwrap();
    node.wait("the pod to be gone", |api| api.get::<Pod>("default", "p").is_none()).await;
    let calls = node.runtime.take_calls();
    assert_eq!(calls.first().map(String::as_str), Some("stop_container a timeout=7"), "{calls:?}");
    node.stop_kubelet().await;
}

#[tokio::test]
async fn a_restart_of_the_kubelet_restarts_nothing() {
    let mut node = Node::start();
    node.api.put(&pod("Always", &["a"]));
    node.wait_for_pod("p Running a=running/0").await;
    node.stop_kubelet().await;
    node.runtime.take_calls();
    // Something must happen for the new one to have looked.
    node.api.edit::<Pod>("default", "p", |pod| pod.status = None);
    node.start_kubelet();
    node.wait_for_pod("p Running a=running/0").await;
    assert_eq!(node.runtime.take_calls(), Vec::<String>::new());
    node.stop_kubelet().await;
}

/// As after the node was cut off: a controller says that its pods are not ready, and nothing on the node changes.
#[tokio::test]
async fn a_status_that_somebody_else_wrote_is_put_right() {
    let mut node = Node::start();
    node.api.put(&pod("Always", &["a"]));
    let is_ready = |api: &FakeApi| {
        let pod = api.get::<Pod>("default", "p").unwrap();
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.filter(|condition| condition.type_ == "Ready").all(|condition| condition.status == "True")
            && pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
    };
    node.wait_for_pod("p Running a=running/0").await;
    node.wait("the pod to be ready", is_ready).await;
    node.api.edit::<Pod>("default", "p", |pod| {
        let conditions = pod.status.as_mut().and_then(|status| status.conditions.as_mut()).unwrap();
        conditions
            .iter_mut()
            .filter(|condition| condition.type_ == "Ready")
            .for_each(|ready| ready.status = "False".into());
    });
    node.wait("the pod to be ready again", is_ready).await;
    node.stop_kubelet().await;
}

#[tokio::test]
async fn what_fails_is_shown() {
    let mut node = Node::start();
    node.runtime.fail("run_pod_sandbox", Code::Unknown, "no network");
    // More often than it is tried until somebody looks.
    for _ in 0..1000 {
        node.runtime.fail("create_container", Code::Unknown, "no such device");
    }
    node.api.put(&pod("Always", &["a"]));
    node.wait_for_pod("p Pending a=CreateContainerError/0").await;
    let reason = node.api.get::<Pod>("default", "p").unwrap().status.clone().unwrap();
    let waiting = reason.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.message.as_deref(), Some("no such device"));
    node.stop_kubelet().await;
}

#[tokio::test]
async fn a_pod_that_may_not_run_here_fails_at_once_and_stays_so() {
    let mut node = Node::start();
    let mut stranger = pod("Always", &["a"]);
    let spec = stranger.spec.as_mut().unwrap();
    spec.node_selector = Some([("zone".to_owned(), "elsewhere".to_owned())].into());
    node.api.put(&stranger);
    // Without a container status: none was ever to be.
    node.wait_for_pod("p Failed ").await;
    let status = node.api.get::<Pod>("default", "p").unwrap().status.clone().unwrap();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    assert_eq!(
        format!("{}: {} ({})", text(&status.reason), text(&status.message), text(&status.qos_class)),
        "NodeAffinity: Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node \
         affinity/selector (BestEffort)"
    );
    assert_eq!(node.runtime.take_calls(), Vec::<String>::new());

    // A kubelet that finds it so leaves it so, and finishes its deletion.
    node.stop_kubelet().await;
    node.start_kubelet();
    node.client.namespaced::<Pod>("default").delete("p", &DeleteOptions::default()).await.unwrap();
    node.wait("the pod to be gone", |api| api.get::<Pod>("default", "p").is_none()).await;
    assert_eq!(node.runtime.take_calls(), Vec::<String>::new());
    node.stop_kubelet().await;
}

#[tokio::test]
async fn the_node_is_registered_and_holds_its_lease() {
    let mut node = Node::start();
    let is_ready = |node: &NodeObject| {
        node.status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|c| c.type_ == "Ready" && c.status == "True")
    };
    node.wait("the node to be ready", |api| api.list::<NodeObject>("").iter().any(|node| is_ready(node))).await;
    node.wait("its lease", |api| api.get::<Lease>("kube-node-lease", "n1").is_some()).await;
    let labels = node.api.list::<NodeObject>("")[0].metadata.labels.clone().unwrap();
    assert_eq!(labels.get("kubernetes.io/hostname").map(String::as_str), Some("n1"));
    node.stop_kubelet().await;
}

#[tokio::test]
async fn pods_end_in_order_when_the_machine_stops() {
    let mut node = Node::start();
    let mut critical = pod("Always", &["last"]);
    critical.metadata.name = Some("critical".into());
    critical.metadata.uid = Some("critical".into());
    critical.spec.as_mut().unwrap().priority = Some(2_000_001_000);
    node.api.put(&critical);
    node.wait_for_pod("critical Running last=running/0").await;
    node.api.put(&pod("Always", &["first"]));
    node.wait_for_pod("p Running first=running/0").await;
    node.runtime.take_calls();

    node.machine_stops.store(true, Ordering::Relaxed);
    node.stop_kubelet().await;
    let stops: Vec<String> =
        node.runtime.take_calls().into_iter().filter(|call| call.starts_with("stop_container")).collect();
    assert_eq!(stops, ["stop_container first timeout=7", "stop_container last timeout=7"]);
    for name in ["p", "critical"] {
        let status = node.api.get::<Pod>("default", name).unwrap().status.clone().unwrap();
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Terminated")), "{name}");
    }
}

#[tokio::test]
async fn a_mirror_that_is_deleted_comes_back_and_its_pod_runs_on() {
    let mut node = Node::start();
    let mut manifest = pod("Always", &["a"]);
    manifest.metadata.uid = None;
    std::fs::create_dir_all(node.manifests()).unwrap();
    std::fs::write(node.manifests().join("p.json"), manifest.encode()).unwrap();
    node.wait_for_pod("p-n1 Running a=running/0").await;
    let mirror = node.api.get::<Pod>("default", "p-n1").unwrap().metadata.uid.clone();
    node.runtime.take_calls();
    node.client.namespaced::<Pod>("default").delete("p-n1", &DeleteOptions::default()).await.unwrap();
    node.wait("another mirror with its status", |api| {
        api.get::<Pod>("default", "p-n1").is_some_and(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
            pod.metadata.uid != mirror && phase.as_deref() == Some("Running")
        })
    })
    .await;
    assert_eq!(node.runtime.take_calls(), Vec::<String>::new(), "the pod runs on");
    std::fs::remove_file(node.manifests().join("p.json")).unwrap();
    node.wait("the mirror to go with its file", |api| api.get::<Pod>("default", "p-n1").is_none()).await;
    node.stop_kubelet().await;
}
