//! Pods on a real containerd, from their object to the kernel and back.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use rkube_api::k8s::core::v1::{ConfigMap, ConfigMapVolumeSource, EmptyDirVolumeSource, Pod, Volume, VolumeMount};
use rkube_apimachinery::clock::SystemClock;
use rkube_client::Client;
use rkube_client::api::DeleteOptions;
use rkube_client::fake::FakeApi;
use rkube_cri::v1::ListPodSandboxRequest;
use rkube_cri::{Remote, RuntimeService, pause};
use rkube_kubelet::Dependencies;
use rkube_kubelet::volumes::mounter::{KernelMounter, Mounter};
use rkube_testing::containerd::{BUSYBOX, Containerd, cgroups, remove_cgroups};

use crate::harness::{Life, PATIENCE, config, pod, server, wait, wait_for_pod};

const IMAGE: &str = "docker.io/library/busybox:1";

struct RealNode {
    api: FakeApi,
    client: Client,
    life: Option<Life>,
    containerd: Containerd,
    folder: tempfile::TempDir,
    cgroup_root: String,
}

impl RealNode {
    async fn start(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let containerd = Containerd::start(folder.path());
        let (api, client) = server();
        let cgroup_root = format!("/rkube-{name}-{}", std::process::id());
        let mut node = Self { api, client, life: None, containerd, folder, cgroup_root };
        let busybox = std::fs::read(BUSYBOX).unwrap();
        let files: [(&str, u32, &[u8]); 1] = [("bin/busybox", 0o755, &busybox)];
        let images = [pause::archive().unwrap(), rkube_cri::image_archive(IMAGE, &files, &[]).unwrap()];
        let runtime = node.remote();
        for image in images {
            let path = node.path("image.tar");
            std::fs::write(&path, image).unwrap();
            runtime.containerd().import_for_cri(&runtime, &path).await.unwrap();
        }
        node.start_kubelet();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn remote(&self) -> Remote {
        Remote::new(self.containerd.socket().to_str().unwrap()).unwrap()
    }

    fn start_kubelet(&mut self) {
        let mut config = config(self.folder.path());
        config.cgroup_mount = "/sys/fs/cgroup".into();
        config.cgroup_root.clone_from(&self.cgroup_root);
        let (client, socket) = (self.client.clone(), self.containerd.socket());
        self.life = Some(Life::start(config, move || {
            let runtime = Arc::new(Remote::new(socket.to_str().unwrap()).unwrap());
            Dependencies {
                client,
                clock: SystemClock::shared(),
                runtime: runtime.clone(),
                images: runtime,
                mounter: Arc::new(KernelMounter),
                importer: None,
                machine_stops: Arc::new(|| Box::pin(std::future::ready(false))),
            }
        }));
    }

    async fn kill_kubelet(&mut self) {
        self.life.take().unwrap().kill().await;
    }

    /// What pods leave in the kernel and on disk. The cgroups of the classes stay.
    async fn inventory(&self) -> Vec<String> {
        let sandboxes = self.remote().list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().items;
        let mut all: Vec<String> = sandboxes.into_iter().map(|sandbox| format!("sandbox {}", sandbox.id)).collect();
        let mounts = KernelMounter.points_below(self.folder.path()).unwrap();
        all.extend(mounts.into_iter().map(|point| format!("mount {}", point.display())));
        all.extend(self.containerd.mounts().into_iter().map(|point| format!("mount {point}")));
        all.extend((0..self.containerd.network_namespaces()).map(|_| "network namespace".to_owned()));
        let of_pods = cgroups(&self.cgroup_root).into_iter().filter(|cgroup| cgroup.contains("/pod"));
        all.extend(of_pods.map(|cgroup| format!("cgroup {cgroup}")));
        for folder in ["pods", "kubelet/pods", "containers"] {
            let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
            all.extend(entries.map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy())));
        }
        all.sort();
        all.dedup();
        all
    }

    async fn delete(&self) {
        self.client.namespaced::<Pod>("default").delete("p", &DeleteOptions::default()).await.unwrap();
        wait(&self.api, "the pod to be gone", |api| api.get::<Pod>("default", "p").is_none()).await;
    }

    fn container_ids(&self) -> Vec<String> {
        let status = self.api.get::<Pod>("default", "p").unwrap().status.clone().unwrap();
        status.container_statuses.into_iter().flatten().filter_map(|status| status.container_id).collect()
    }
}

impl Drop for RealNode {
    fn drop(&mut self) {
        self.life = None;
        for point in KernelMounter.points_below(self.folder.path()).unwrap_or_default().into_iter().rev() {
            let _ = KernelMounter.unmount(&point);
        }
        self.containerd.end();
        remove_cgroups(&self.cgroup_root);
    }
}

/// A pod whose containers run these scripts.
fn script_pod(policy: &str, scripts: &[(&str, &str)]) -> Pod {
    let names: Vec<&str> = scripts.iter().map(|(name, _)| *name).collect();
    let mut pod = pod(policy, &names);
    let spec = pod.spec.as_mut().unwrap();
    spec.termination_grace_period_seconds = Some(1);
    for (container, (_, script)) in spec.containers.iter_mut().zip(scripts) {
        container.image = Some(IMAGE.to_owned());
        container.termination_message_path = Some("/dev/termination-log".to_owned());
        container.command = Some(["/bin/busybox", "sh", "-c", script].map(str::to_owned).into());
    }
    pod
}

const STAYS: &str = "trap 'exit 0' TERM; while true; do /bin/busybox sleep 0.1; done";

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

/// Waits until what the pod left is collected, and stops the kubelet. Logs are what goes last.
async fn settles(node: &mut RealNode, before: &[String]) {
    let inotify = Inotify::init().unwrap();
    for folder in ["pods", "containers"] {
        inotify.watches().add(node.path(folder), WatchMask::DELETE).unwrap();
    }
    let mut changes = inotify.into_event_stream([0; 4096]).unwrap();
    let settled = async {
        while node.inventory().await != before {
            changes.next().await.unwrap().unwrap();
        }
    };
    let waited = tokio::time::timeout(PATIENCE, settled).await;
    assert!(waited.is_ok(), "left: {:?}", node.inventory().await);
    node.life.take().unwrap().stop().await;
}
