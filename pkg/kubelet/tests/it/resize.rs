//! Resources of running pods that change.

use rkube_api::k8s::core::v1::{Node as NodeObject, Pod};
use rkube_apimachinery::quantity::Quantity;
use rkube_client::api::DeleteOptions;
use rkube_client::fake::FakeApi;

use crate::harness::{Node, pod};

fn asks(pod: &mut Pod, cpu_milli: i64) {
    let resources = serde_json::json!({"requests": {"cpu": format!("{cpu_milli}m")}});
    let generation = pod.metadata.generation.unwrap_or(0) + 1;
    pod.metadata.generation = Some(generation);
    pod.spec.as_mut().unwrap().containers[0].resources = Some(serde_json::from_value(resources).unwrap());
}

fn named(name: &str, cpu_milli: i64) -> Pod {
    let mut pod = pod("Always", &["a"]);
    pod.metadata.name = Some(name.into());
    pod.metadata.uid = Some(format!("uid-of-{name}"));
    pod.spec.as_mut().unwrap().containers[0].name = name.into();
    asks(&mut pod, cpu_milli);
    pod
}

/// What is told of a pod's resize: `Pending Deferred/2`, and the request its container has.
fn told(api: &FakeApi, name: &str) -> String {
    let status = api.get::<Pod>("default", name).and_then(|pod| pod.status.clone()).unwrap_or_default();
    let conditions = status.conditions.iter().flatten();
    let resizes = conditions.filter_map(|condition| {
        let kind = condition.type_.strip_prefix("PodResize")?;
        let reason = condition.reason.clone().unwrap_or_default();
        Some(format!("{kind} {reason}/{} ", condition.observed_generation.unwrap_or_default()))
    });
    let resizes: String = resizes.collect();
    let containers = status.container_statuses.iter().flatten();
    let cpu =
        containers.filter_map(|container| Some(container.resources.as_ref()?.requests.as_ref()?.get("cpu")?.0.clone()));
    format!("{resizes}{}", cpu.collect::<String>())
}

async fn wait_told(node: &Node, name: &str, expected: &str) {
    let what = format!("{name} to be told as {expected:?}");
    node.wait(&what, |api| told(api, name) == expected).await;
}

/// Thousandths of a processor that the node has for pods.
async fn allocatable(node: &Node) -> i64 {
    let of = |node: &NodeObject| {
        let allocatable = node.status.as_ref()?.allocatable.as_ref()?.get("cpu")?;
        Quantity::parse(&allocatable.0).ok().map(|cpu| cpu.milli_value())
    };
    node.wait("the node's resources", |api| api.list::<NodeObject>("").iter().any(|node| of(node).is_some())).await;
    of(&node.api.list::<NodeObject>("")[0]).unwrap()
}

#[tokio::test]
async fn a_resize_waits_for_room_and_may_be_taken_back() {
    let mut node = Node::start();
    let all = allocatable(&node).await;
    node.api.put(&named("big", all - 300));
    node.wait_for_pod("big Running big=running/0").await;
    node.api.put(&named("small", 100));
    node.wait_for_pod("small Running small=running/0").await;
    node.runtime.take_calls();

    node.api.edit::<Pod>("default", "small", |pod| asks(pod, 500));
    wait_told(&node, "small", "Pending Deferred/2 100m").await;
    let pod = node.api.get::<Pod>("default", "small").unwrap();
    let conditions = pod.status.as_ref().unwrap().conditions.clone().unwrap();
    let message = conditions.into_iter().find(|condition| condition.type_ == "PodResizePending").unwrap().message;
    assert_eq!(
        message.unwrap(),
        format!("Node didn't have enough resource: cpu, requested: 500, used: {}, capacity: {all}", all - 300)
    );
    // What waits takes no room.
    node.api.put(&named("other", 150));
    node.wait_for_pod("other Running other=running/0").await;
    node.api.edit::<Pod>("default", "small", |pod| asks(pod, 100));
    wait_told(&node, "small", "100m").await;

    node.api.edit::<Pod>("default", "small", |pod| asks(pod, 400));
    wait_told(&node, "small", "Pending Deferred/4 100m").await;
    node.client.namespaced::<Pod>("default").delete("big", &DeleteOptions::default()).await.unwrap();
    wait_told(&node, "small", "400m").await;
    let updates: Vec<String> =
        node.runtime.take_calls().into_iter().filter(|call| call.starts_with("update_container")).collect();
    assert_eq!(updates, ["update_container_resources small"]);
    node.stop_kubelet().await;
}

#[tokio::test]
async fn a_resize_outlives_the_kubelet() {
    let mut node = Node::start();
    let all = allocatable(&node).await;
    node.api.put(&named("p", 100));
    node.wait_for_pod("p Running p=running/0").await;
    // One that waits still waits for the next kubelet, and the container keeps what it has.
    node.api.edit::<Pod>("default", "p", |pod| asks(pod, all + 1));
    wait_told(&node, "p", "Pending Deferred/2 100m").await;
    node.stop_kubelet().await;
    node.runtime.take_calls();
    node.api.edit::<Pod>("default", "p", |pod| pod.status.as_mut().unwrap().container_statuses = None);
    node.start_kubelet();
    wait_told(&node, "p", "Pending Deferred/2 100m").await;

    // One that was made meanwhile is carried out.
    node.kill_kubelet().await;
    node.api.edit::<Pod>("default", "p", |pod| asks(pod, 200));
    node.start_kubelet();
    wait_told(&node, "p", "200m").await;
    assert_eq!(node.runtime.take_calls(), ["update_container_resources p"]);
    node.stop_kubelet().await;
}

#[tokio::test]
async fn a_resize_that_fails_is_told_and_tried_again() {
    let mut node = Node::start();
    // Before, the node has no room for what asks for some.
    allocatable(&node).await;
    node.api.put(&named("p", 100));
    node.wait_for_pod("p Running p=running/0").await;
    for _ in 0..3 {
        node.runtime.fail("update_container_resources", rkube_cri::Code::Unknown, "no such cgroup");
    }
    node.api.edit::<Pod>("default", "p", |pod| asks(pod, 200));
    wait_told(&node, "p", "InProgress Error/2 100m").await;
    wait_told(&node, "p", "200m").await;
    node.stop_kubelet().await;
}
