//! A node whose runtime and server are in memory and whose folders are temporary.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rkube_api::k8s::core::v1::{Container, Pod, PodSpec};
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::random::SystemRandom;
use rkube_apimachinery::task;
use rkube_client::Client;
use rkube_client::fake::FakeApi;
use rkube_cri::fake::FakeRuntime;
use rkube_kubelet::eviction::Thresholds;
use rkube_kubelet::volumes::mounter::FakeMounter;
use rkube_kubelet::{Dependencies, Kubelet, KubeletConfig};
use tokio::runtime::Runtime as Executor;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Generous: the machine may be busy. What is awaited comes by events, not by this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One life of a kubelet, on threads of its own so that it can be ended anywhere.
pub(crate) struct Life {
    stop: CancellationToken,
    running: JoinHandle<()>,
    executor: Option<Executor>,
}

impl Life {
    /// `dependencies` runs on the kubelet's own threads, where its connections live.
    pub(crate) fn start(config: KubeletConfig, dependencies: impl FnOnce() -> Dependencies + Send + 'static) -> Self {
        let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let entered = executor.enter();
        let running = task::spawn(tracing::info_span!("kubelet"), async move {
            Kubelet::new(config, dependencies(), token).run(|| {}).await.unwrap();
        });
        drop(entered);
        Self { stop, running, executor: Some(executor) }
    }

    /// Ends it as a restart does.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, &mut self.running).await.expect("the kubelet stops").unwrap();
        self.end().await;
    }

    /// Ends it where it stands, as kill -9 does.
    pub(crate) async fn kill(mut self) {
        self.end().await;
    }

    async fn end(&mut self) {
        let executor = self.executor.take().unwrap();
        tokio::task::spawn_blocking(move || executor.shutdown_timeout(PATIENCE)).await.unwrap();
    }
}

impl Drop for Life {
    /// A test that failed does not wait.
    fn drop(&mut self) {
        if let Some(executor) = self.executor.take() {
            executor.shutdown_background();
        }
    }
}

pub(crate) fn config(root: &Path) -> KubeletConfig {
    let mut config = KubeletConfig::new("n1", vec!["192.0.2.1".to_owned()], "v1.36.2");
    config.root_dir = root.join("kubelet");
    config.logs_root = root.join("pods");
    config.container_logs_root = root.join("containers");
    config.cgroup_mount = root.join("cgroup");
    // The machine's own figures must not decide a test.
    config.eviction = Thresholds::none();
    config.manifests_dir = Some(root.join("manifests"));
    config.shutdown_grace_period = Duration::from_secs(60);
    config.shutdown_grace_period_critical = Duration::from_secs(30);
    config
}

pub(crate) struct Node {
    pub(crate) api: FakeApi,
    pub(crate) client: Client,
    pub(crate) runtime: FakeRuntime,
    /// Whether the kubelet is stopped because the machine is.
    pub(crate) machine_stops: Arc<AtomicBool>,
    folder: tempfile::TempDir,
    life: Option<Life>,
}

impl Node {
    /// A node with the image `i`, its kubelet running.
    pub(crate) fn start() -> Self {
        let clock = SystemClock::shared();
        let (api, client) = server();
        let runtime = FakeRuntime::new().at(i64::try_from(clock.now().as_nanosecond()).unwrap()).with_image("i:1");
        let folder = tempfile::tempdir().unwrap();
        let mut node = Self { api, client, runtime, machine_stops: Arc::default(), folder, life: None };
        node.start_kubelet();
        node
    }

    pub(crate) fn start_kubelet(&mut self) {
        let (client, runtime, stops) = (self.client.clone(), self.runtime.clone(), self.machine_stops.clone());
        self.life = Some(Life::start(config(self.folder.path()), move || Dependencies {
            client,
            clock: SystemClock::shared(),
            runtime: Arc::new(runtime.clone()),
            images: Arc::new(runtime),
            mounter: Arc::new(FakeMounter::default()),
            importer: None,
            machine_stops: Arc::new(move || Box::pin(std::future::ready(stops.load(Ordering::Relaxed)))),
        }));
    }

    /// Where static pods are read from.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    pub(crate) async fn kill_kubelet(&mut self) {
        self.life.take().unwrap().kill().await;
    }

    pub(crate) async fn stop_kubelet(&mut self) {
        self.life.take().unwrap().stop().await;
    }

    pub(crate) async fn wait(&self, what: &str, holds: impl Fn(&FakeApi) -> bool) {
        wait(&self.api, what, holds).await;
    }

    pub(crate) async fn wait_for_pod(&self, description: &str) {
        wait_for_pod(&self.api, description).await;
    }
}

/// A server in memory that leaves pods to be deleted to the kubelet.
pub(crate) fn server() -> (FakeApi, Client) {
    let clock = SystemClock::shared();
    let api = FakeApi::new(clock.clone());
    api.keep_terminating_pods();
    let client = Client::new(api.connect(), clock, Arc::new(SystemRandom));
    (api, client)
}

pub(crate) async fn wait(api: &FakeApi, what: &str, holds: impl Fn(&FakeApi) -> bool) {
    let waited = tokio::time::timeout(PATIENCE, api.wait_until(holds)).await;
    // `name phase container=state` of every pod.
    let pods: Vec<String> = api.list::<Pod>("").iter().map(|pod| describe(pod)).collect();
    assert!(waited.is_ok(), "waiting for {what}; pods: {pods:?}");
}

/// Waits until a pod is described so.
pub(crate) async fn wait_for_pod(api: &FakeApi, description: &str) {
    wait(api, description, |api| api.list::<Pod>("").iter().any(|pod| describe(pod) == description)).await;
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
