//! Container statuses of the API out of what the runtime says, what the status was, and why containers
//! wait. Pure.
//!
//! Behaves as convertToAPIContainerStatuses in pkg/kubelet/kubelet_pods.go and UpdatePodStatus in
//! pkg/kubelet/prober/prober_manager.go, v1.36.

use std::collections::BTreeMap;

use rkube_api::k8s::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, Pod, ResourceRequirements, VolumeMountStatus,
};
use rkube_api::meta::pkg::api::resource::Quantity as ApiQuantity;
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::quantity::{Format, Quantity};

use crate::pod::{ContainerKind, PodExt, all_containers, is_sidecar};
use crate::runtime::resources::ContainerResources;
use crate::runtime::state::{RuntimeContainer, RuntimePod, State, has_any_regular_container};
use crate::runtime::sync::Waiting;

const CONTAINER_CREATING: &str = "ContainerCreating";
const POD_INITIALIZING: &str = "PodInitializing";
const STATUS_UNKNOWN: &str = "ContainerStatusUnknown";

/// What probes say, by container name.
pub trait ProbeState {
    /// `None`: no result yet. `has_*`: the container has such a probe.
    fn started(&self, container_id: &str) -> Option<bool>;
    fn ready(&self, container_id: &str) -> Option<bool>;
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(reason: &str, message: &str, exit_code: i32) -> ContainerState {
    let terminated = ContainerStateTerminated {
        exit_code,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

pub(crate) struct Converter<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) runtime: &'a RuntimePod,
    pub(crate) waiting: &'a [Waiting],
    pub(crate) probes: &'a dyn ProbeState,
    pub(crate) runtime_name: &'a str,
}

impl Converter<'_> {
    /// The statuses of one of the pod's three lists, in the order of the spec for init containers, by
    /// name for the others.
    pub(crate) fn convert(&self, kind: ContainerKind, old: &[ContainerStatus]) -> Vec<ContainerStatus> {
        let spec = self.pod.pod_spec();
        let containers: Vec<Container> =
            all_containers(spec).filter(|(of, _)| *of == kind).map(|(_, container)| container.into_owned()).collect();
        let has_init = spec.init_containers.as_ref().is_some_and(|init| !init.is_empty());
        let default_reason = if has_init { POD_INITIALIZING } else { CONTAINER_CREATING };
        let old: BTreeMap<&str, &ContainerStatus> = old.iter().map(|status| (status.name.as_str(), status)).collect();
        let mut statuses: Vec<ContainerStatus> = containers
            .iter()
            .map(|container| self.one(container, kind, old.get(container.name.as_str()).copied(), default_reason))
            .collect();
        if kind != ContainerKind::Init {
            statuses.sort_by(|a, b| a.name.cmp(&b.name));
        }
        statuses
    }

    fn one(
        &self,
        container: &Container,
        kind: ContainerKind,
        old: Option<&ContainerStatus>,
        default_reason: &str,
    ) -> ContainerStatus {
        let found: Vec<&RuntimeContainer> =
            self.runtime.containers.iter().filter(|status| status.name == container.name).take(2).collect();
        let mut status = match found.first() {
            Some(newest) => {
                let mut status = self.known_container(container, newest, old);
                if let Some(previous) = found.get(1) {
                    status.last_state = self.known_container(container, previous, old).state;
                }
                status
            }
            None => self.without_runtime(container, kind, old, default_reason),
        };
        self.add_waiting(container, kind, found.first().copied(), &mut status);
        self.add_probes(container, kind, found.first().copied(), &mut status);
        status
    }

    /// The runtime knows no such container: it is yet to come, or it was removed.
    fn without_runtime(
        &self,
        container: &Container,
        kind: ContainerKind,
        old: Option<&ContainerStatus>,
        default_reason: &str,
    ) -> ContainerStatus {
        let mut status = ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            state: Some(waiting(default_reason, None)),
            volume_mounts: volume_mounts(container),
            ..ContainerStatus::default()
        };
        if let Some(old) = old {
            let old_state = old.state.clone().unwrap_or_default();
            if old_state.terminated.is_some() {
                return old.clone();
            }
            status.restart_count = old.restart_count;
            status.last_state.clone_from(&old.last_state);
            let had_ended = old.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
            if old_state.running.is_some() && !had_ended {
                let message =
                    "The container could not be located when the pod was deleted.  The container used to be Running";
                status.last_state = Some(terminated(STATUS_UNKNOWN, message, 137));
                if !self.pod.is_terminating() {
                    status.restart_count += 1;
                }
            }
        }
        let is_waiting = status.state.as_ref().is_some_and(|state| state.waiting.is_some());
        if kind == ContainerKind::Init
            && is_waiting
            && !is_sidecar(container)
            && has_any_regular_container(self.pod, self.runtime)
        {
            let message = "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally";
            status.state = Some(terminated("Completed", message, 0));
        }
        status
    }

    fn known_container(
        &self,
        container: &Container,
        from: &RuntimeContainer,
        old: Option<&ContainerStatus>,
    ) -> ContainerStatus {
        let id = format!("{}://{}", self.runtime_name, from.id);
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.clone());
        let mut status = ContainerStatus {
            name: from.name.clone(),
            restart_count: from.restart_count,
            image: from.image.clone(),
            image_id: from.image_id.clone(),
            container_id: Some(id.clone()),
            resources: given(self.pod, container, from.actuated.as_ref()),
            allocated_resources: requests,
            volume_mounts: old.map_or_else(|| volume_mounts(container), |old| old.volume_mounts.clone()),
            user: from.user.as_ref().map(|user| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: user.uid,
                    gid: user.gid,
                    supplemental_groups: Some(user.supplemental_groups.clone()),
                }),
            }),
            ..ContainerStatus::default()
        };
        if let Some(old) = old {
            status.restart_count = status.restart_count.max(old.restart_count);
            let old_state = old.state.clone().unwrap_or_default();
            if old.container_id.as_deref() != Some(&id) && old_state.terminated.is_some() {
                status.last_state = old.state.clone();
            } else if old.last_state.as_ref().is_some_and(|state| state.terminated.is_some()) {
                status.last_state.clone_from(&old.last_state);
            }
        }
        status.state = Some(match from.state {
            State::Running => ContainerState {
                running: Some(ContainerStateRunning { started_at: from.started_at.map(Time) }),
                ..ContainerState::default()
            },
            State::Exited => ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: from.exit_code,
                    reason: some(&from.reason),
                    message: some(&from.message),
                    started_at: from.started_at.map(Time),
                    finished_at: from.finished_at.map(Time),
                    container_id: Some(id),
                    signal: None,
                }),
                ..ContainerState::default()
            },
            State::Unknown
                if old.is_some_and(|old| old.state.as_ref().is_some_and(|state| state.running.is_some())) =>
            {
                status.restart_count = old.map_or(0, |old| old.restart_count) + 1;
                terminated(STATUS_UNKNOWN, "The container could not be located when the pod was terminated", 137)
            }
            State::Created | State::Unknown => {
                ContainerState { waiting: Some(ContainerStateWaiting::default()), ..ContainerState::default() }
            }
        });
        status
    }

    /// A container that is to be started and could not be shows why.
    fn add_waiting(
        &self,
        container: &Container,
        kind: ContainerKind,
        newest: Option<&RuntimeContainer>,
        status: &mut ContainerStatus,
    ) {
        let done = newest.is_some_and(|newest| newest.state == State::Exited && newest.exit_code == 0);
        if kind == ContainerKind::Init && done {
            return;
        }
        if newest.is_some_and(|newest| newest.state == State::Running) || self.pod.is_terminating() {
            return;
        }
        let Some(why) = self.waiting.iter().find(|waiting| waiting.container == container.name) else { return };
        if status.state.as_ref().is_some_and(|state| state.terminated.is_some()) {
            status.last_state = status.state.take();
        }
        status.state = Some(waiting(&why.reason, some(&why.message)));
    }

    fn add_probes(
        &self,
        container: &Container,
        kind: ContainerKind,
        newest: Option<&RuntimeContainer>,
        status: &mut ContainerStatus,
    ) {
        let state = status.state.clone().unwrap_or_default();
        if kind == ContainerKind::Init && !is_sidecar(container) {
            status.ready = state.terminated.is_some_and(|terminated| terminated.exit_code == 0);
            status.started = Some(state.running.is_some());
            return;
        }
        let id = newest.map(|newest| newest.id.as_str()).unwrap_or_default();
        let running = state.running.is_some();
        let started = running && self.probes.started(id).unwrap_or(container.startup_probe.is_none());
        let ready = started && self.probes.ready(id).unwrap_or(container.readiness_probe.is_none());
        status.started = Some(started);
        // Ephemeral containers take no part in the pod's readiness.
        status.ready = ready && kind != ContainerKind::Ephemeral;
        if kind == ContainerKind::Ephemeral {
            status.started = None;
        }
    }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?.iter().map(|mount| {
        let read_only = mount.read_only == Some(true);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only,
            // The runtimes we know mount only the top of a tree read-only.
            recursive_read_only: read_only.then(|| "Disabled".to_owned()),
            ..VolumeMountStatus::default()
        }
    });
    Some(mounts.collect())
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The container's resources as it has them, which differ from those asked for while a resize is under way.
fn given(pod: &Pod, container: &Container, actuated: Option<&ContainerResources>) -> Option<ResourceRequirements> {
    let mut resources = container.resources.clone()?;
    let Some(actuated) = actuated.filter(|actuated| **actuated != ContainerResources::of(pod, container)) else {
        return Some(resources);
    };
    let correct = |list: &mut Option<BTreeMap<String, ApiQuantity>>, cpu: Option<i64>, memory: Option<i64>| {
        let Some(list) = list else { return };
        let cpu = cpu.map(|milli| Quantity::milli(milli, Format::DecimalSi));
        let memory = memory.map(|bytes| Quantity::new(bytes, Format::BinarySi));
        for (name, quantity) in [("cpu", cpu), ("memory", memory)] {
            match quantity {
                Some(quantity) => list.insert(name.to_owned(), ApiQuantity(quantity.to_string())),
                None => list.remove(name),
            };
        }
    };
    correct(&mut resources.requests, actuated.cpu_request_milli, actuated.memory_request);
    correct(&mut resources.limits, actuated.cpu_limit_milli, actuated.memory_limit);
    Some(resources)
}
