//! A node whose runtime and server are in memory and whose folders are temporary.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::{Container, Pod, PodSpec};
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::random::SystemRandom;
use rkube_apimachinery::task;
use rkube_client::Client;
use rkube_client::fake::FakeApi;
use rkube_cri::fake::FakeRuntime;
use rkube_kubelet::volumes::mounter::FakeMounter;
use rkube_kubelet::{Dependencies, Kubelet, KubeletConfig};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Generous: the machine may be busy. What is awaited comes by events, not by this.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    pub(crate) api: FakeApi,
    pub(crate) client: Client,
    pub(crate) runtime: FakeRuntime,
    folder: tempfile::TempDir,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Node {
    /// A node with the image `i`, its kubelet running.
    pub(crate) fn start() -> Self {
        let clock = SystemClock::shared();
        let api = FakeApi::new(clock.clone());
        api.keep_terminating_pods();
        let client = Client::new(api.connect(), clock.clone(), Arc::new(SystemRandom));
        let runtime = FakeRuntime::new().at(i64::try_from(clock.now().as_nanosecond()).unwrap()).with_image("i:1");
        let mut node = Self { api, client, runtime, folder: tempfile::tempdir().unwrap(), running: None };
        node.start_kubelet();
        node
    }

    pub(crate) fn start_kubelet(&mut self) {
        let root = self.folder.path();
        let mut config = KubeletConfig::new("n1", vec!["192.0.2.1".to_owned()], "v1.36.2");
        config.root_dir = root.join("kubelet");
        config.logs_root = root.join("pods");
        config.container_logs_root = root.join("containers");
        config.cgroup_mount = root.join("cgroup");
        // The machine's own figures must not decide a test.
        config.eviction.memory_available = 0;
        config.eviction.nodefs_available_percent = 0;
        config.eviction.nodefs_inodes_free_percent = 0;
        let clock = SystemClock::shared();
        let dependencies = Dependencies {
            client: self.client.clone(),
            clock,
            runtime: Arc::new(self.runtime.clone()),
            images: Arc::new(self.runtime.clone()),
            mounter: Arc::new(FakeMounter::default()),
            importer: None,
        };
        let stop = CancellationToken::new();
        let kubelet = Kubelet::new(config, dependencies, stop.clone());
        let running = task::spawn(tracing::info_span!("kubelet"), async move {
            kubelet.run(|| {}).await.unwrap();
        });
        self.running = Some((stop, running));
    }

    /// Ends the kubelet as a restart does.
    pub(crate) async fn stop_kubelet(&mut self) {
        let (stop, running) = self.running.take().unwrap();
        stop.cancel();
        tokio::time::timeout(PATIENCE, running).await.expect("the kubelet stops").unwrap();
    }

    pub(crate) async fn wait(&self, what: &str, holds: impl Fn(&FakeApi) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, self.api.wait_until(holds)).await;
        assert!(waited.is_ok(), "waiting for {what}; pods: {:?}", self.pods());
    }

    /// `name phase container=state` of every pod.
    pub(crate) fn pods(&self) -> Vec<String> {
        self.api.list::<Pod>("").iter().map(|pod| describe(pod)).collect()
    }

    /// Waits until the only pod is described so.
    pub(crate) async fn wait_for_pod(&self, description: &str) {
        self.wait(description, |api| api.list::<Pod>("").iter().any(|pod| describe(pod) == description)).await;
    }
}

fn describe(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let containers: Vec<String> = containers
        .map(|container| {
            let state = container.state.clone().unwrap_or_default();
            let text = match (state.running, state.terminated, state.waiting) {
                (Some(_), ..) => "running".to_owned(),
                (_, Some(ended), _) => format!("exited({})", ended.exit_code),
                (.., Some(waiting)) => waiting.reason.unwrap_or_default(),
                _ => String::new(),
            };
            format!("{}={text}/{}", container.name, container.restart_count)
        })
        .collect();
    let name = pod.metadata.name.clone().unwrap_or_default();
    format!("{name} {} {}", status.phase.unwrap_or_default(), containers.join(" "))
}

/// A pod on the node with one container per name.
pub(crate) fn pod(policy: &str, containers: &[&str]) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some("p".into());
    pod.metadata.namespace = Some("default".into());
    pod.metadata.uid = Some("0d9fd9f1-b5a2-4a1c-a2f5-5a5d2a6b1c11".into());
    let container = |name: &&str| Container {
        name: (*name).to_owned(),
        image: Some("i:1".to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        ..Container::default()
    };
    pod.spec = Some(PodSpec {
        node_name: Some("n1".into()),
        restart_policy: Some(policy.into()),
        containers: containers.iter().map(container).collect(),
        termination_grace_period_seconds: Some(7),
        ..PodSpec::default()
    });
    pod
}
