//! A node with a containerd of its own.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::clock::SystemClock;
use rkube_client::Client;
use rkube_client::api::DeleteOptions;
use rkube_client::fake::FakeApi;
use rkube_cri::v1::ListPodSandboxRequest;
use rkube_cri::{Remote, RuntimeService, pause};
use rkube_kubelet::Dependencies;
use rkube_kubelet::registries::Registries;
use rkube_kubelet::volumes::mounter::{KernelMounter, Mounter};
use rkube_testing::containerd::{BUSYBOX, Containerd, cgroups, remove_cgroups};

use crate::harness::{Life, PATIENCE, config, pod, server, wait};

pub(crate) const IMAGE: &str = "docker.io/library/busybox:1";

pub(crate) struct RealNode {
    pub(crate) api: FakeApi,
    pub(crate) client: Client,
    pub(crate) life: Option<Life>,
    pub(crate) containerd: Containerd,
    folder: tempfile::TempDir,
    cgroup_root: String,
    /// `registries.yaml`
    pub(crate) registries: Registries,
}

impl RealNode {
    pub(crate) async fn start(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let containerd = Containerd::start(folder.path());
        let (api, client) = server();
        let cgroup_root = format!("/rkube-{name}-{}", std::process::id());
        let registries = Registries::default();
        let mut node = Self { api, client, life: None, containerd, folder, cgroup_root, registries };
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn remote(&self) -> Remote {
        Remote::new(self.containerd.socket().to_str().unwrap()).unwrap()
    }

    pub(crate) fn start_kubelet(&mut self) {
        let mut config = config(self.folder.path());
        config.cgroup_mount = "/sys/fs/cgroup".into();
        config.cgroup_root.clone_from(&self.cgroup_root);
        config.registries = self.registries.clone();
        config.pod_pids_max = Some(256);
        let (client, socket) = (self.client.clone(), self.containerd.socket());
        self.life = Some(Life::start(config, move || {
            let runtime = Remote::new(socket.to_str().unwrap()).unwrap();
            let importer = Some(runtime.containerd());
            let runtime = Arc::new(runtime);
            Dependencies {
                client,
                clock: SystemClock::shared(),
                runtime: runtime.clone(),
                images: runtime,
                mounter: Arc::new(KernelMounter),
                importer,
                machine_stops: Arc::new(|| Box::pin(std::future::ready(false))),
            }
        }));
    }

    /// Starts the kubelet anew with other registries, which containerd is told of.
    pub(crate) async fn restart_with(&mut self, registries: Registries) {
        self.stop().await;
        registries.write(&self.path("certs.d")).unwrap();
        self.registries = registries;
        self.start_kubelet();
    }

    pub(crate) async fn stop(&mut self) {
        self.life.take().unwrap().stop().await;
    }

    pub(crate) async fn kill_kubelet(&mut self) {
        self.life.take().unwrap().kill().await;
    }

    /// What pods leave in the kernel and on disk. The cgroups of the classes stay.
    pub(crate) async fn inventory(&self) -> Vec<String> {
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

    pub(crate) async fn delete(&self) {
        self.client.namespaced::<Pod>("default").delete("p", &DeleteOptions::default()).await.unwrap();
        wait(&self.api, "the pod to be gone", |api| api.get::<Pod>("default", "p").is_none()).await;
    }

    pub(crate) fn container_ids(&self) -> Vec<String> {
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
pub(crate) fn script_pod(policy: &str, scripts: &[(&str, &str)]) -> Pod {
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

pub(crate) const STAYS: &str = "trap 'exit 0' TERM; while true; do /bin/busybox sleep 0.1; done";

/// Waits until what the pod left is collected, and stops the kubelet. Logs are what goes last.
pub(crate) async fn settles(node: &mut RealNode, before: &[String]) {
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
    node.stop().await;
}
