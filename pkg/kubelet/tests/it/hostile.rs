//! Pods that mean harm or ask for what is not there: the node stays up, and what is outside of them stays as it was.

use std::path::Path;

use rkube_api::k8s::core::v1::{EmptyDirVolumeSource, Pod, Volume, VolumeMount};
use rkube_api::meta::pkg::api::resource::Quantity;

use crate::harness::{wait, wait_for_pod};
use crate::real_node::{RealNode, STAYS, script_pod, settles};

fn with_volume(mut pod: Pod, size_limit: Option<&str>, sub_path: Option<&str>) -> Pod {
    let size_limit = size_limit.map(|limit| Quantity(limit.to_owned()));
    let volume = EmptyDirVolumeSource { size_limit, ..EmptyDirVolumeSource::default() };
    let spec = pod.spec.as_mut().unwrap();
    spec.volumes = Some(vec![Volume { name: "e".into(), empty_dir: Some(volume), ..Volume::default() }]);
    let mount = VolumeMount { name: "e".into(), mount_path: "/e".into(), ..VolumeMount::default() };
    for container in &mut spec.containers {
        container.volume_mounts = Some(vec![mount.clone()]);
    }
    if let (Some(path), Some(last)) = (sub_path, spec.containers.last_mut()) {
        last.volume_mounts = Some(vec![VolumeMount { sub_path: Some(path.to_owned()), ..mount }]);
    }
    pod
}

#[tokio::test]
async fn a_fork_bomb_stays_within_its_pod() {
    let mut node = RealNode::start("bomb").await;
    let before = node.inventory().await;
    // Each of them waits, so that they add up; the shell ends when it can make no more.
    let bomb = "while :; do /bin/busybox sleep 3600 & done";
    node.api.put(&script_pod("Never", &[("a", bomb)]));
    wait(&node.api, "the bomb to have gone off", |api| {
        api.list::<Pod>("").iter().any(|pod| {
            let status = pod.status.clone().unwrap_or_default();
            let ended = status
                .container_statuses
                .iter()
                .flatten()
                .any(|container| container.state.as_ref().is_some_and(|state| state.terminated.is_some()));
            ended && status.phase.as_deref() == Some("Failed")
        })
    })
    .await;
    node.delete().await;
    let mut next = script_pod("Always", &[("b", STAYS)]);
    next.metadata.uid = Some("next".into());
    node.api.put(&next);
    wait_for_pod(&node.api, "p Running b=running/0").await;
    node.delete().await;
    settles(&mut node, &before).await;
}

#[tokio::test]
async fn a_pod_that_fills_its_volume_is_evicted() {
    let mut node = RealNode::start("fills").await;
    let before = node.inventory().await;
    let fills = "/bin/busybox dd if=/dev/zero of=/e/x bs=1M count=3; exec /bin/busybox sleep 3600";
    node.api.put(&with_volume(script_pod("Always", &[("a", fills)]), Some("1Mi"), None));
    let evicted = |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        (status.phase.as_deref(), status.reason.as_deref()) == (Some("Failed"), Some("Evicted"))
    };
    wait(&node.api, "the pod to be evicted", |api| api.list::<Pod>("").iter().any(|pod| evicted(pod))).await;
    let message = node.api.get::<Pod>("default", "p").unwrap().status.clone().unwrap().message;
    assert_eq!(message.as_deref(), Some("Usage of EmptyDir volume \"e\" exceeds the limit \"1Mi\". "));
    node.delete().await;
    settles(&mut node, &before).await;
}

#[tokio::test]
async fn links_lead_nowhere_out_of_a_volume() {
    let mut node = RealNode::start("links").await;
    let before = node.inventory().await;
    let outside = node.path("outside");
    std::fs::create_dir(&outside).unwrap();
    // The first container makes the link, the second is to be given what it leads to.
    let script = format!("/bin/busybox ln -s {} /e/out", outside.display());
    let pod = script_pod("Always", &[("a", script.as_str()), ("b", STAYS)]);
    let mut pod = with_volume(pod, None, Some("out/new"));
    let spec = pod.spec.as_mut().unwrap();
    spec.init_containers = Some(vec![spec.containers.remove(0)]);
    node.api.put(&pod);
    let refused = "leads out of volume \"e\"";
    wait(&node.api, "the link to be refused", |api| {
        let pods = api.list::<Pod>("");
        let statuses = pods.iter().filter_map(|pod| pod.status.as_ref()?.container_statuses.clone()).flatten();
        statuses.filter_map(|status| status.state?.waiting?.message).any(|message| message.contains(refused))
    })
    .await;
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "nothing was made where the link leads");
    node.delete().await;
    assert!(Path::new(&outside).is_dir());
    settles(&mut node, &before).await;
}

#[tokio::test]
async fn what_a_container_leaves_for_us_to_read_is_read_as_a_file_only() {
    let mut node = RealNode::start("reads").await;
    let before = node.inventory().await;
    // Its message is larger than any, and what is made of bytes that are no text.
    let shouts = "/bin/busybox dd if=/dev/urandom of=/dev/termination-log bs=64k count=16 2>/dev/null; exit 4";
    node.api.put(&script_pod("Never", &[("a", shouts)]));
    wait_for_pod(&node.api, "p Failed a=exited(4)/0").await;
    let status = node.api.get::<Pod>("default", "p").unwrap().status.clone().unwrap();
    let ended = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    // 4096 bytes, of which each that is no text became three.
    assert!(ended.message.is_some_and(|message| message.len() <= 3 * 4096));
    node.delete().await;
    settles(&mut node, &before).await;
}
