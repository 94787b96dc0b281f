//! Brings one pod in line with its spec: the acting half of [`actions`](super::actions).
//!
//! Behaves as SyncPod in pkg/kubelet/kuberuntime/kuberuntime_manager.go, v1.36.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::{Container, Pod, Secret, Service};
use rkube_cri::v1::{PodSandboxConfig, PodSandboxStatusRequest, RunPodSandboxRequest};

use tokio_util::sync::CancellationToken;

use crate::downward::NodeFacts;
use crate::events::Type;
use crate::pod::{PodExt, PodUid, as_container, container_hash, ephemeral_containers, init_containers, is_sidecar};
use crate::runtime::Runtime;
use crate::runtime::actions::{self, Observations, PodActions};
use crate::runtime::dns::{self, DnsSettings};
use crate::runtime::resize::MemoryInUse;
use crate::runtime::resources::ContainerResources;
use crate::runtime::sandbox::{self, SandboxInputs};
use crate::runtime::state::{RuntimePod, State, sandbox_from_status};
use crate::volumes::PodVolumes;

/// What probes have found, by container id.
pub trait ProbeView: Send + Sync {
    fn liveness(&self, container_id: &str) -> Option<bool>;
    fn startup(&self, container_id: &str) -> Option<bool>;
}

/// What a sync needs beside the pod.
pub struct SyncInputs<'a> {
    pub volumes: &'a PodVolumes,
    pub pull_secrets: &'a [Arc<Secret>],
    pub services: &'a [Arc<Service>],
    pub node: &'a NodeFacts,
    pub dns: &'a DnsSettings,
    pub cgroup_parent: String,
    pub runtime_handler: String,
    pub probes: &'a dyn ProbeView,
    pub memory: MemoryInUse<'a>,
    /// Cancelled when the pod is to end: pulls and hooks are given up, and a failure is no news.
    pub cancel: &'a CancellationToken,
    /// Called once the sandbox is up, before images are pulled.
    pub on_sandbox_ready: &'a (dyn Fn(&[String]) + Send + Sync),
}

/// Why a container waits: what its status shows until it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub container: String,
    pub reason: String,
    pub message: String,
}

#[derive(Debug, Default)]
pub struct SyncOutcome {
    pub waiting: Vec<Waiting>,
    pub started: Vec<String>,
    /// Whether a running container was given other resources.
    pub resized: bool,
    /// Why some could not be given theirs.
    pub resize_error: Option<String>,
    /// What stopped the whole sync.
    pub error: Option<String>,
    /// When a container that waits out a back-off may be tried again.
    pub retry_after: Option<Duration>,
}

impl SyncOutcome {
    pub fn is_ok(&self) -> bool {
        self.waiting.is_empty() && self.error.is_none() && self.resize_error.is_none()
    }

    fn failed(mut self, error: impl Into<String>) -> Self {
        self.error = Some(error.into());
        self
    }

    pub(crate) fn retry_in(&mut self, after: Duration) {
        self.retry_after = Some(self.retry_after.map_or(after, |before| before.min(after)));
    }
}

struct View<'a> {
    probes: &'a dyn ProbeView,
    runtime: &'a Runtime,
    uid: PodUid,
}

impl Observations for View<'_> {
    fn liveness(&self, container_id: &str) -> Option<bool> {
        self.probes.liveness(container_id)
    }

    fn startup(&self, container_id: &str) -> Option<bool> {
        self.probes.startup(container_id)
    }

    fn actuated(&self, container_id: &str) -> Option<ContainerResources> {
        self.runtime.allocations.actuated(&self.uid, container_id)
    }
}

/// A sandbox to start containers in.
pub(crate) struct ReadySandbox {
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
    pub(crate) ips: Vec<String>,
}

impl Runtime {
    pub async fn sync_pod(&self, pod: &Pod, current: &RuntimePod, inputs: &SyncInputs<'_>) -> SyncOutcome {
        let mut outcome = SyncOutcome::default();
        let actions = actions::compute(pod, current, &View { probes: inputs.probes, runtime: self, uid: pod.uid() });
        tracing::debug!(pod = %pod.key(), ?actions, "Computed pod actions");
        if actions.create_sandbox && actions.sandbox_id.is_some() {
            let text = "Pod sandbox changed, it will be killed and re-created.";
            self.events.pod(pod, Type::Normal, "SandboxChanged", text);
        }
        if actions.kill_pod {
            if let Err(error) = self.kill_pod(Some(pod), current, None).await {
                return outcome.failed(error.to_string());
            }
            if actions.create_sandbox {
                self.remove_init_containers(pod, current, false).await;
            }
        } else {
            for kill in &actions.kill {
                if let Err(error) =
                    self.kill_container(Some(pod), &kill.id, &kill.name, &kill.message, kill.reason, None).await
                {
                    outcome.waiting.push(Waiting {
                        container: kill.name.clone(),
                        reason: "KillContainerError".into(),
                        message: error.to_string(),
                    });
                    return outcome;
                }
            }
        }
        self.remove_init_containers(pod, current, true).await;

        let Some(sandbox) = self.sandbox(pod, current, &actions, inputs, &mut outcome).await else {
            return outcome;
        };
        self.start_all(pod, current, &actions, &sandbox, inputs, &mut outcome).await;
        outcome
    }

    /// The sandbox there is, or a new one.
    async fn sandbox(
        &self,
        pod: &Pod,
        current: &RuntimePod,
        actions: &PodActions,
        inputs: &SyncInputs<'_>,
        outcome: &mut SyncOutcome,
    ) -> Option<ReadySandbox> {
        let config = self.sandbox_config(pod, actions.attempt, inputs);
        if !actions.create_sandbox {
            let id = actions.sandbox_id.clone()?;
            return Some(ReadySandbox { id, config, ips: self.addresses(pod, current.ips(), inputs) });
        }
        if let Err(error) = std::fs::create_dir_all(&config.log_directory) {
            let message = format!("failed to create sandbox log directory {}: {error}", config.log_directory);
            self.events.pod(
                pod,
                Type::Warning,
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: {message}"),
            );
            outcome.error = Some(message);
            return None;
        }
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: inputs.runtime_handler.clone() };
        let id = match self.service.run_pod_sandbox(request).await {
            Ok(answer) => answer.pod_sandbox_id,
            // A pod that was deleted meanwhile loses its network under the runtime's hands.
            Err(_) if inputs.cancel.is_cancelled() => return None,
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                self.events.pod(pod, Type::Warning, "FailedCreatePodSandBox", message);
                outcome.error = Some(format!(
                    "failed to \"CreatePodSandbox\" for \"{}\" with CreatePodSandboxError: {error}",
                    pod.full_text()
                ));
                return None;
            }
        };
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
        let status = match self.service.pod_sandbox_status(request).await {
            Ok(answer) => answer.status.as_ref().map(sandbox_from_status),
            Err(error) => {
                let message = format!("Unable to get pod sandbox status: {error}");
                self.events.pod(pod, Type::Warning, "FailedPodSandBoxStatus", message);
                outcome.error = Some(error.to_string());
                return None;
            }
        };
        let ips = self.addresses(pod, &status.map(|status| status.ips).unwrap_or_default(), inputs);
        (inputs.on_sandbox_ready)(&ips);
        Some(ReadySandbox { id, config, ips })
    }

    /// A pod on the host's network has the host's addresses.
    fn addresses(&self, pod: &Pod, sandbox: &[String], inputs: &SyncInputs<'_>) -> Vec<String> {
        if pod.is_host_network() { inputs.node.ips.clone() } else { sandbox.to_vec() }
    }

    fn sandbox_config(&self, pod: &Pod, attempt: u32, inputs: &SyncInputs<'_>) -> PodSandboxConfig {
        let (dns, omitted) = dns::pod_dns(pod, inputs.dns);
        if let Some(message) = omitted {
            self.events.pod(pod, Type::Warning, "DNSConfigForming", message);
        }
        let inputs = SandboxInputs {
            attempt,
            hostname: dns::node_hostname(pod, &inputs.dns.cluster_domain),
            dns,
            logs_root: &self.settings.logs_root,
            cgroup_parent: inputs.cgroup_parent.clone(),
            seccomp_root: &self.settings.seccomp_root(),
            volume_groups: inputs.volumes.groups(),
        };
        sandbox::config(pod, inputs)
    }

    async fn start_all(
        &self,
        pod: &Pod,
        current: &RuntimePod,
        actions: &PodActions,
        sandbox: &ReadySandbox,
        inputs: &SyncInputs<'_>,
        outcome: &mut SyncOutcome,
    ) {
        let spec = pod.pod_spec();
        if inputs.cancel.is_cancelled() {
            return;
        }
        for index in &actions.ephemeral {
            let Some(ephemeral) = ephemeral_containers(spec).get(*index) else { continue };
            let target = ephemeral.target_container_name.as_deref().filter(|name| !name.is_empty());
            self.try_start(pod, &as_container(ephemeral), target, current, sandbox, inputs, outcome).await;
        }
        for index in &actions.init {
            let Some(container) = init_containers(spec).get(*index) else { continue };
            let started = self.try_start(pod, container, None, current, sandbox, inputs, outcome).await;
            if !started && !is_sidecar(container) {
                return;
            }
        }
        self.resize(pod, &actions.resize, &inputs.memory, outcome).await;
        for index in &actions.regular {
            let Some(container) = spec.containers.get(*index) else { continue };
            self.try_start(pod, container, None, current, sandbox, inputs, outcome).await;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one sync; a struct would be built for this call only")]
    async fn try_start(
        &self,
        pod: &Pod,
        container: &Container,
        target: Option<&str>,
        current: &RuntimePod,
        sandbox: &ReadySandbox,
        inputs: &SyncInputs<'_>,
        outcome: &mut SyncOutcome,
    ) -> bool {
        let name = container.name.clone();
        if let Some((waiting, after)) = self.back_off(pod, container, current) {
            outcome.waiting.push(waiting);
            outcome.retry_in(after);
            return false;
        }
        match self.start_container(pod, container, target, current, sandbox, inputs).await {
            Ok(()) => {
                outcome.started.push(name);
                true
            }
            Err(failure) => {
                tracing::info!(
                    pod = %pod.key(), container = name, reason = failure.reason, message = failure.message,
                    "Container was not started"
                );
                outcome.waiting.push(Waiting {
                    container: name,
                    reason: failure.reason.to_owned(),
                    message: failure.message,
                });
                false
            }
        }
    }

    /// A container that ended waits before it is started again, longer each time.
    fn back_off(&self, pod: &Pod, container: &Container, current: &RuntimePod) -> Option<(Waiting, Duration)> {
        let ended =
            current.containers.iter().find(|status| status.name == container.name && status.state == State::Exited)?;
        let since = ended.finished_at.unwrap_or(ended.created_at);
        let key = backoff_key(pod, container);
        let now = self.clock.now();
        let mut backoff = self.backoff.lock();
        let Some(remaining) = backoff.remaining(&key, since, now) else {
            backoff.next(&key, since, now);
            return None;
        };
        let delay = crate::runtime::images::go_duration(backoff.get(&key));
        drop(backoff);
        let name = &container.name;
        let text = format!("Back-off restarting failed container {name} in pod {}", pod.full_text());
        self.events.container(pod, container, Type::Warning, "BackOff", text);
        let message = format!("back-off {delay} restarting failed container={name} pod={}", pod.full_text());
        Some((Waiting { container: name.clone(), reason: "CrashLoopBackOff".into(), message }, remaining))
    }

    /// Removes ended init containers: all but the newest of each name, or all of them when the sandbox
    /// is new and initialization starts over.
    async fn remove_init_containers(&self, pod: &Pod, current: &RuntimePod, keep_newest: bool) {
        for container in init_containers(pod.pod_spec()) {
            let of_name = current.containers.iter().filter(|status| status.name == container.name);
            for status in of_name.skip(usize::from(keep_newest)) {
                if !matches!(status.state, State::Exited | State::Unknown) {
                    continue;
                }
                if let Err(error) = self.remove_container(&status.id).await {
                    tracing::warn!(pod = %pod.key(), container = container.name, %error, "Ended init container was not removed");
                }
            }
        }
    }

    /// Forgets what is remembered of a pod that is gone.
    pub fn forget(&self, pod: &Pod) {
        let mut backoff = self.backoff.lock();
        for (_, container) in crate::pod::all_containers(pod.pod_spec()) {
            backoff.reset(&backoff_key(pod, &container));
        }
        backoff.collect(self.clock.now());
        drop(backoff);
        self.images.forget(&pod.uid());
    }
}

fn backoff_key(pod: &Pod, container: &Container) -> String {
    format!("{}_{}_{}_{}_{}", pod.name(), pod.namespace(), pod.uid(), container.name, container_hash(container))
}
