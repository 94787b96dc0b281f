//! Decides what to do to bring a pod's containers in line with its spec. Pure.
//!
//! Inputs   the pod, what the runtime says, probe results, resources in force
//! Output   [`PodActions`]: a new sandbox or not, what to kill, what to start, what to resize
//! Behaves as  computePodActions and computeInitContainerActions in
//!             pkg/kubelet/kuberuntime/{kuberuntime_manager,kuberuntime_container}.go, v1.36

use rkube_api::k8s::core::v1::{Container, Pod};

use crate::pod::{
    PodExt, as_container, container_hash, ephemeral_containers, init_containers, is_sidecar, restarts_after,
};
use crate::runtime::resources::{ContainerResources, resize_needs_restart};
use crate::runtime::state::{RuntimeContainer, RuntimePod, State, has_any_regular_container, sandbox_changed};

/// Why a container is killed, which decides whose grace period applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    Unspecified,
    StartupProbe,
    LivenessProbe,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    pub reason: KillReason,
}

/// A container whose limits change while it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Resize {
    pub id: String,
    pub name: String,
    pub from: ContainerResources,
    pub to: ContainerResources,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodActions {
    /// Stop everything, sandbox included.
    pub kill_pod: bool,
    pub create_sandbox: bool,
    pub sandbox_id: Option<String>,
    pub attempt: u32,
    /// Indexes into the spec's lists, in the order to start them.
    pub init: Vec<usize>,
    pub ephemeral: Vec<usize>,
    pub regular: Vec<usize>,
    pub kill: Vec<Kill>,
    pub resize: Vec<Resize>,
}

/// What is known about a running container beyond what the runtime says.
pub trait Observations {
    /// `None` while the probe has not decided.
    fn liveness(&self, container_id: &str) -> Option<bool>;
    fn startup(&self, container_id: &str) -> Option<bool>;
    /// The resources last given to the runtime; `None` when nobody noted them.
    fn actuated(&self, container_id: &str) -> Option<ContainerResources>;
}

pub fn compute(pod: &Pod, runtime: &RuntimePod, seen: &dyn Observations) -> PodActions {
    let spec = pod.pod_spec();
    let (create, attempt, sandbox_id) = sandbox_changed(pod, runtime);
    let mut actions =
        PodActions { kill_pod: create, create_sandbox: create, sandbox_id, attempt, ..PodActions::default() };
    if create {
        plan_new_sandbox(pod, runtime, &mut actions);
        return actions;
    }

    // Ephemeral containers run once, whether or not initialization is done.
    for (index, ephemeral) in ephemeral_containers(spec).iter().enumerate() {
        if runtime.container(&as_container(ephemeral).name).is_none() {
            actions.ephemeral.push(index);
        }
    }

    let initialized = Init { pod, runtime, seen }.plan(&mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }

    let mut kept = 0;
    for (index, container) in spec.containers.iter().enumerate() {
        match runtime.container(&container.name) {
            Some(status) if status.state == State::Running => {
                if !plan_running(pod, index, container, status, seen, &mut actions) {
                    kept += 1;
                }
            }
            status => plan_stopped(pod, index, container, status, &mut actions),
        }
    }
    if kept == 0 && actions.regular.is_empty() {
        actions.kill_pod = true;
        // Otherwise sidecars would keep alive a pod that is done.
        actions.init.clear();
    }
    actions
}

fn plan_new_sandbox(pod: &Pod, runtime: &RuntimePod, actions: &mut PodActions) {
    let spec = pod.pod_spec();
    // With no container ever created the sandbox itself failed, and that is retried.
    if pod.restart_policy() == "Never" && actions.attempt != 0 && !runtime.containers.is_empty() {
        actions.create_sandbox = false;
        return;
    }
    let succeeded = |container: &Container| {
        runtime.container(&container.name).is_some_and(|status| status.state == State::Exited && status.exit_code == 0)
    };
    let start = spec.containers.iter().enumerate().filter(|(_, container)| {
        let policy = container.restart_policy.as_deref().unwrap_or(pod.restart_policy());
        !(policy == "OnFailure" && succeeded(container))
    });
    let start: Vec<usize> = start.map(|(index, _)| index).collect();
    if start.is_empty() && has_any_regular_container(pod, runtime) {
        actions.create_sandbox = false;
        return;
    }
    if init_containers(spec).is_empty() {
        actions.regular = start;
    } else {
        // A new sandbox begins from the beginning.
        actions.init = vec![0];
    }
}

fn plan_stopped(
    pod: &Pod,
    index: usize,
    container: &Container,
    status: Option<&RuntimeContainer>,
    actions: &mut PodActions,
) {
    let restart = match status {
        // A container that was never made, or never came to run, is no failure of its program.
        None => true,
        Some(status) if matches!(status.state, State::Created | State::Unknown) => {
            if status.state == State::Unknown {
                // Nobody knows whether it runs; two instances at once must not be.
                let message =
                    format!("Container is in {:?} state, try killing it before restart", status.state.as_str());
                actions.kill.push(kill(status, message, KillReason::Unknown));
            }
            true
        }
        Some(status) => !pod.is_terminating() && restarts_after(container, pod.restart_policy(), status.exit_code),
    };
    if restart && !pod.is_terminating() {
        actions.regular.push(index);
    }
}

/// Whether a running container is killed.
fn plan_running(
    pod: &Pod,
    index: usize,
    container: &Container,
    status: &RuntimeContainer,
    seen: &dyn Observations,
    actions: &mut PodActions,
) -> bool {
    let name = &container.name;
    let policy = container.restart_policy.as_deref().unwrap_or(pod.restart_policy());
    let mut restart = policy != "Never";
    let (message, reason) = if status.hash != container_hash(container) {
        // The spec changed: it is started anew whatever the policy says.
        restart = true;
        (format!("Container {name} definition changed"), KillReason::Unspecified)
    } else if seen.liveness(&status.id) == Some(false) {
        (format!("Container {name} failed liveness probe"), KillReason::LivenessProbe)
    } else if seen.startup(&status.id) == Some(false) {
        (format!("Container {name} failed startup probe"), KillReason::StartupProbe)
    } else {
        match plan_resize(pod, container, status, seen) {
            ResizePlan::Keep => return false,
            ResizePlan::Update(resize) => {
                actions.resize.push(resize);
                return false;
            }
            ResizePlan::Restart => {
                restart = true;
                (format!("Container {name} resize requires restart"), KillReason::Unspecified)
            }
        }
    };
    let message = if restart { format!("{message}, will be restarted") } else { message };
    if restart {
        actions.regular.push(index);
    }
    actions.kill.push(kill(status, message, reason));
    true
}

enum ResizePlan {
    Keep,
    Update(Resize),
    Restart,
}

fn plan_resize(pod: &Pod, container: &Container, status: &RuntimeContainer, seen: &dyn Observations) -> ResizePlan {
    let to = ContainerResources::of(pod, container);
    let noted = seen.actuated(&status.id);
    let from = noted.unwrap_or_default();
    if from == to {
        return ResizePlan::Keep;
    }
    // What nobody noted may be as it is to be: telling the runtime again does no harm, a restart does.
    if noted.is_some() && resize_needs_restart(container, &from, &to) {
        return ResizePlan::Restart;
    }
    ResizePlan::Update(Resize { id: status.id.clone(), name: container.name.clone(), from, to })
}

fn kill(status: &RuntimeContainer, message: String, reason: KillReason) -> Kill {
    Kill { id: status.id.clone(), name: status.name.clone(), message, reason }
}

/// Init containers are looked at from the last to the first: those that are done may be gone from the
/// runtime, so the last one that is there tells how far initialization came.
struct Init<'a> {
    pod: &'a Pod,
    runtime: &'a RuntimePod,
    seen: &'a dyn Observations,
}

/// What the container at hand says about the ones before it.
enum Step {
    Done,
    /// The pod has failed.
    Stop,
}

impl Init<'_> {
    /// Whether all init containers are done, or for sidecars started.
    fn plan(&self, actions: &mut PodActions) -> bool {
        let containers = init_containers(self.pod.pod_spec());
        if containers.is_empty() {
            return true;
        }
        // Exited containers may be left from an earlier sandbox and prove nothing.
        let mut initialized = self.pod.pod_spec().containers.iter().any(|container| {
            let status = self.runtime.container(&container.name);
            status.is_some_and(|status| matches!(status.state, State::Created | State::Running))
        });
        let mut previously = initialized;
        for (index, container) in containers.iter().enumerate().rev() {
            let Some(status) = self.runtime.container(&container.name) else {
                if previously && is_sidecar(container) {
                    actions.init.push(index);
                }
                continue;
            };
            if previously && !is_sidecar(container) {
                continue;
            }
            let last = index + 1 == containers.len();
            let before = Progress { index, last, previously };
            if let Step::Stop = self.one(container, status, &before, &mut initialized, actions) {
                actions.kill_pod = true;
                actions.init.clear();
                return false;
            }
            previously = true;
        }
        if !previously {
            actions.init.push(0);
        }
        actions.init.reverse();
        initialized
    }

    fn one(
        &self,
        container: &Container,
        status: &RuntimeContainer,
        progress: &Progress,
        initialized: &mut bool,
        actions: &mut PodActions,
    ) -> Step {
        let index = progress.index;
        match status.state {
            // Creating and starting are one step, so one that is only created failed to start.
            State::Created => actions.init.push(index),
            State::Running if is_sidecar(container) => {
                self.running_sidecar(container, status, progress, initialized, actions);
            }
            State::Running => {
                // Its policy cannot be to restart it.
                if let ResizePlan::Update(resize) = plan_resize(self.pod, container, status, self.seen) {
                    actions.resize.push(resize);
                }
            }
            State::Exited if is_sidecar(container) => actions.init.push(index),
            State::Exited if status.exit_code == 0 => {
                if progress.last {
                    *initialized = true;
                } else {
                    actions.init.push(index + 1);
                }
            }
            State::Exited => {
                // `Always` on the pod means on failure here, since a success ends an init container.
                if !restarts_after(container, self.pod.restart_policy(), status.exit_code) {
                    return Step::Stop;
                }
                actions.init.push(index);
            }
            State::Unknown => {
                // Rules need an exit code, and there may be none: only policies count.
                let policy = container.restart_policy.as_deref().unwrap_or(self.pod.restart_policy());
                if !is_sidecar(container) && policy == "Never" {
                    return Step::Stop;
                }
                let message =
                    format!("Init container is in {:?} state, try killing it before restart", status.state.as_str());
                actions.kill.push(kill(status, message, KillReason::Unknown));
                actions.init.push(index);
            }
        }
        Step::Done
    }

    fn running_sidecar(
        &self,
        container: &Container,
        status: &RuntimeContainer,
        progress: &Progress,
        initialized: &mut bool,
        actions: &mut PodActions,
    ) {
        let name = &container.name;
        let mut restart = |message: String, reason| {
            actions.kill.push(kill(status, message, reason));
            actions.init.push(progress.index);
        };
        if container.startup_probe.is_some() {
            match self.seen.startup(&status.id) {
                None => return,
                Some(false) => {
                    restart(format!("Init container {name} failed startup probe"), KillReason::StartupProbe);
                    return;
                }
                Some(true) => {}
            }
        }
        if progress.last {
            *initialized = true;
        } else if !progress.previously {
            actions.init.push(progress.index + 1);
        }
        let mut restart = |message: String, reason| {
            actions.kill.push(kill(status, message, reason));
            actions.init.push(progress.index);
        };
        if status.hash != container_hash(container) {
            restart(format!("Init container {name} definition changed"), KillReason::Unspecified);
        } else if container.liveness_probe.is_some() && self.seen.liveness(&status.id) == Some(false) {
            restart(format!("Init container {name} failed liveness probe"), KillReason::LivenessProbe);
        } else {
            match plan_resize(self.pod, container, status, self.seen) {
                ResizePlan::Keep => {}
                ResizePlan::Update(resize) => actions.resize.push(resize),
                ResizePlan::Restart => {
                    restart(format!("Init container {name} resize requires restart"), KillReason::Unspecified);
                }
            }
        }
    }
}

struct Progress {
    index: usize,
    last: bool,
    previously: bool,
}

#[cfg(test)]
#[path = "actions_tests.rs"]
mod tests;
