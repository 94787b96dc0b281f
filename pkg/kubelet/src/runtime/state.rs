//! What the runtime says about a pod, in the kubelet's words.
//!
//! Behaves as pkg/kubelet/container/runtime.go and kuberuntime/convert.go, v1.36.

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{Container, Pod};
use rkube_cri::v1;

use crate::pod::{PodExt, PodUid, init_containers, is_sidecar};
use crate::runtime::labels::{self, ContainerLabels};
use crate::runtime::resources::ContainerResources;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

impl State {
    pub fn from_cri(state: i32) -> Self {
        match v1::ContainerState::try_from(state) {
            Ok(v1::ContainerState::ContainerCreated) => Self::Created,
            Ok(v1::ContainerState::ContainerRunning) => Self::Running,
            Ok(v1::ContainerState::ContainerExited) => Self::Exited,
            _ => Self::Unknown,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Unknown => "unknown",
        }
    }
}

/// One container as the runtime last reported it.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeContainer {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    pub state: State,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    /// `repo@digest` where known.
    pub image_id: String,
    pub hash: String,
    pub restart_count: i32,
    pub log_path: String,
    /// What it was last given, where this process gave it.
    pub actuated: Option<ContainerResources>,
    pub user: Option<v1::LinuxContainerUser>,
}

/// One sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeSandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: Timestamp,
    pub ips: Vec<String>,
    pub host_network: bool,
    pub runtime_handler: String,
}

/// A pod in the runtime. Newest first in both lists.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimePod {
    pub uid: PodUid,
    pub namespace: String,
    pub name: String,
    pub sandboxes: Vec<RuntimeSandbox>,
    pub containers: Vec<RuntimeContainer>,
}

impl RuntimePod {
    pub fn new(uid: PodUid, namespace: &str, name: &str) -> Self {
        Self { uid, namespace: namespace.to_owned(), name: name.to_owned(), sandboxes: vec![], containers: vec![] }
    }

    pub fn of(pod: &Pod) -> Self {
        Self::new(pod.uid(), pod.namespace(), pod.name())
    }

    /// The newest container of a name.
    pub fn container(&self, name: &str) -> Option<&RuntimeContainer> {
        self.containers.iter().find(|container| container.name == name)
    }

    pub fn running(&self) -> impl Iterator<Item = &RuntimeContainer> {
        self.containers.iter().filter(|container| matches!(container.state, State::Running | State::Unknown))
    }

    /// The addresses of the newest sandbox that is up, or of the newest one when nothing else is known.
    pub fn ips(&self) -> &[String] {
        let sandbox = self.sandboxes.iter().find(|sandbox| sandbox.ready).or(self.sandboxes.first());
        sandbox.map(|sandbox| sandbox.ips.as_slice()).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }

    /// Whether anything of it may still run.
    pub fn is_active(&self) -> bool {
        self.running().next().is_some() || self.sandboxes.iter().any(|sandbox| sandbox.ready)
    }
}

/// Whether a pod needs a new sandbox, which attempt that would be, and the sandbox there is.
pub fn sandbox_changed(pod: &Pod, runtime: &RuntimePod) -> (bool, u32, Option<String>) {
    let Some(newest) = runtime.sandboxes.first() else {
        return (true, 0, None);
    };
    let next = newest.attempt + 1;
    let id = Some(newest.id.clone());
    let ready = runtime.sandboxes.iter().filter(|sandbox| sandbox.ready).count();
    if ready > 1 || !newest.ready {
        return (true, next, id);
    }
    if newest.host_network != pod.is_host_network() {
        return (true, next, None);
    }
    if !newest.host_network && newest.ips.is_empty() {
        return (true, next, id);
    }
    (false, newest.attempt, id)
}

/// Whether any regular container exists, which means that initialization was once done.
pub fn has_any_regular_container(pod: &Pod, runtime: &RuntimePod) -> bool {
    pod.pod_spec().containers.iter().any(|container| runtime.container(&container.name).is_some())
}

/// Sidecars of a pod, in the order they start.
pub fn sidecars(pod: &Pod) -> impl Iterator<Item = &Container> {
    init_containers(pod.pod_spec()).iter().filter(|container| is_sidecar(container))
}

pub(crate) fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn optional(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| timestamp(nanoseconds))
}

pub(crate) fn sandbox_from_status(status: &v1::PodSandboxStatus) -> RuntimeSandbox {
    let network = status.network.clone().unwrap_or_default();
    let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    let options = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref()?.options.as_ref());
    RuntimeSandbox {
        id: status.id.clone(),
        attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        ready: status.state == v1::PodSandboxState::SandboxReady as i32,
        created_at: timestamp(status.created_at),
        // Only what parses as an address is one: the value ends in environment variables and files.
        ips: ips.filter(|ip| ip.parse::<std::net::IpAddr>().is_ok()).collect(),
        host_network: options.is_some_and(|options| options.network == v1::NamespaceMode::Node as i32),
        runtime_handler: status.runtime_handler.clone(),
    }
}

/// A sandbox of which only the list tells: without addresses, so that it is replaced.
pub(crate) fn sandbox_from_list(sandbox: &v1::PodSandbox) -> RuntimeSandbox {
    RuntimeSandbox {
        id: sandbox.id.clone(),
        attempt: sandbox.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        ready: sandbox.state == v1::PodSandboxState::SandboxReady as i32,
        created_at: timestamp(sandbox.created_at),
        ips: vec![],
        host_network: false,
        runtime_handler: sandbox.runtime_handler.clone(),
    }
}

pub(crate) fn container_from_status(status: &v1::ContainerStatus, sandbox_id: &str) -> RuntimeContainer {
    let labels = ContainerLabels::read(&status.annotations);
    let spec = status.image.clone().unwrap_or_default();
    let image = if spec.user_specified_image.is_empty() { spec.image } else { spec.user_specified_image };
    let image_id = if status.image_ref.is_empty() { status.image_id.clone() } else { status.image_ref.clone() };
    let metadata = status.metadata.clone().unwrap_or_default();
    let state = State::from_cri(status.state);
    RuntimeContainer {
        id: status.id.clone(),
        name: metadata.name,
        sandbox_id: sandbox_id.to_owned(),
        state,
        created_at: timestamp(status.created_at),
        started_at: if state == State::Created { None } else { optional(status.started_at) },
        finished_at: if state == State::Exited { optional(status.finished_at) } else { None },
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        image,
        image_id,
        hash: labels.hash,
        restart_count: labels.restart_count.unwrap_or_else(|| i32::try_from(metadata.attempt).unwrap_or(0)),
        log_path: status.log_path.clone(),
        actuated: None,
        user: status.user.as_ref().and_then(|user| user.linux.clone()),
    }
}

/// The UID in a sandbox's or container's labels. Without one it is not ours.
pub(crate) fn uid_of(labels: &std::collections::HashMap<String, String>) -> Option<PodUid> {
    labels.get(labels::POD_UID).filter(|uid| !uid.is_empty()).map(|uid| PodUid::from(uid.as_str()))
}
