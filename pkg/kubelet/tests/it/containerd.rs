//! Pods on a real containerd, from their object to the kernel and back.

use rkube_api::k8s::core::v1::{ConfigMap, ConfigMapVolumeSource, EmptyDirVolumeSource, Pod, Volume, VolumeMount};

use crate::harness::wait_for_pod;
use crate::real_node::{RealNode, STAYS, script_pod, settles};

#[tokio::test]
async fn a_pod_comes_and_goes_and_leaves_nothing() {
    let mut node = RealNode::start("comes").await;
    let mut map = ConfigMap { data: Some([("key".to_owned(), "value".to_owned())].into()), ..ConfigMap::default() };
    map.metadata.name = Some("m".into());
    map.metadata.namespace = Some("default".into());
    node.api.put(&map);
    let before = node.inventory().await;

    let mut pod = script_pod(
        "Never",
        &[
            ("a", "/bin/busybox cat /m/key > /dev/termination-log; /bin/busybox mount > /e/mounts; exit 3"),
            ("b", STAYS),
        ],
    );
    let spec = pod.spec.as_mut().unwrap();
    let config_map = ConfigMapVolumeSource { name: "m".into(), ..ConfigMapVolumeSource::default() };
    let memory = EmptyDirVolumeSource { medium: Some("Memory".into()), ..EmptyDirVolumeSource::default() };
    spec.volumes = Some(vec![
        Volume { name: "m".into(), config_map: Some(config_map), ..Volume::default() },
        Volume { name: "e".into(), empty_dir: Some(memory), ..Volume::default() },
    ]);
    let mount =
        |name: &str| VolumeMount { name: name.into(), mount_path: format!("/{name}"), ..VolumeMount::default() };
    spec.containers[0].volume_mounts = Some(vec![mount("m"), mount("e")]);
    node.api.put(&pod);
    wait_for_pod(&node.api, "p Running a=exited(3)/0 b=running/0").await;
    let status = node.api.get::<Pod>("default", "p").unwrap().status.clone().unwrap();
    let ended = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.reason.as_deref(), ended.message.as_deref()), (Some("Error"), Some("value")));
    assert_eq!(status.pod_ip.as_deref(), Some("192.0.2.9"));

    node.delete().await;
    settles(&mut node, &before).await;
}

#[tokio::test]
async fn a_killed_kubelet_restarts_no_container() {
    let mut node = RealNode::start("killed").await;
    let before = node.inventory().await;
    node.api.put(&script_pod("Always", &[("a", STAYS), ("b", STAYS)]));
    wait_for_pod(&node.api, "p Running a=running/0 b=running/0").await;
    let ids = node.container_ids();
    for _ in 0..3 {
        node.kill_kubelet().await;
        // Something must happen for the new one to have looked.
        node.api.edit::<Pod>("default", "p", |pod| pod.status = None);
        node.start_kubelet();
        wait_for_pod(&node.api, "p Running a=running/0 b=running/0").await;
        assert_eq!(node.container_ids(), ids);
    }
    node.delete().await;
    settles(&mut node, &before).await;
}

#[tokio::test]
async fn pods_outlive_containerd_and_recover() {
    let mut node = RealNode::start("outlive").await;
    let before = node.inventory().await;
    let dies = "until [ -e /e/die ]; do /bin/busybox sleep 0.1; done; /bin/busybox rm /e/die; exit 5";
    let mut pod = script_pod("Always", &[("a", STAYS), ("b", dies)]);
    let spec = pod.spec.as_mut().unwrap();
    spec.volumes =
        Some(vec![Volume { name: "e".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }]);
    spec.containers[1].volume_mounts =
        Some(vec![VolumeMount { name: "e".into(), mount_path: "/e".into(), ..VolumeMount::default() }]);
    node.api.put(&pod);
    wait_for_pod(&node.api, "p Running a=running/0 b=running/0").await;
    let ids = node.container_ids();
    node.containerd.kill_daemon();
    // One container ends while nobody looks.
    let uid = pod.metadata.uid.clone().unwrap();
    let volume = node.path("kubelet/pods").join(uid).join("volumes/kubernetes.io~empty-dir/e");
    std::fs::write(volume.join("die"), "").unwrap();
    node.containerd.start_daemon();
    wait_for_pod(&node.api, "p Running a=running/0 b=running/1").await;
    assert_eq!(node.container_ids()[0], ids[0]);
    node.delete().await;
    settles(&mut node, &before).await;
}
