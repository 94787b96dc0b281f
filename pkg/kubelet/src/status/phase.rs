//! The phase of a pod out of its container statuses. Pure.
//!
//! Behaves as getPhase in pkg/kubelet/kubelet_pods.go, v1.36.

use rkube_api::k8s::core::v1::{Container, ContainerStatus, Pod};

use crate::pod::{PodExt, init_containers, is_sidecar, restarts_after};

#[derive(Default)]
struct Counts {
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    stopped_for_good: usize,
    succeeded: usize,
    pending_init: usize,
    pending_sidecars: usize,
    failed_init_for_good: usize,
}

/// How a container stands.
enum Standing {
    Unknown,
    Running,
    /// Ended, and waiting for its next start or not.
    Ended(i32),
    Waiting,
}

fn standing(status: Option<&ContainerStatus>) -> Standing {
    let Some(status) = status else { return Standing::Unknown };
    let state = status.state.clone().unwrap_or_default();
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    match (state.running, state.terminated, state.waiting, last) {
        (Some(_), ..) => Standing::Running,
        (None, Some(terminated), ..) => Standing::Ended(terminated.exit_code),
        (None, None, Some(_), Some(last)) => Standing::Ended(last.exit_code),
        (None, None, Some(_), None) => Standing::Waiting,
        _ => Standing::Unknown,
    }
}

/// `statuses` are those of init and regular containers.
pub(crate) fn phase(pod: &Pod, statuses: &[ContainerStatus], pod_is_terminal: bool, initialized: bool) -> &'static str {
    let counts = count(pod, statuses);
    if counts.failed_init_for_good > 0 {
        return "Failed";
    }
    if counts.pending_init > 0 || (counts.pending_sidecars > 0 && !initialized) || counts.waiting > 0 {
        return "Pending";
    }
    if counts.running > 0 && counts.unknown == 0 {
        return "Running";
    }
    if counts.running == 0 && counts.stopped > 0 && counts.unknown == 0 {
        let done = if counts.stopped == counts.succeeded { "Succeeded" } else { "Failed" };
        // No more restarts in a pod that ends, whatever its policy; a static pod comes back.
        if (pod_is_terminal && !pod.is_static()) || counts.stopped == counts.stopped_for_good {
            return done;
        }
        return "Running";
    }
    "Pending"
}

fn count(pod: &Pod, statuses: &[ContainerStatus]) -> Counts {
    let spec = pod.pod_spec();
    let policy = pod.restart_policy();
    let of = |container: &Container| statuses.iter().find(|status| status.name == container.name);
    let mut counts = Counts::default();
    for container in init_containers(spec) {
        let status = of(container);
        match (is_sidecar(container), standing(status)) {
            (false, Standing::Ended(0)) => {}
            (false, Standing::Ended(code)) => {
                counts.failed_init_for_good += usize::from(!restarts_after(container, policy, code));
            }
            (false, _) => counts.pending_init += 1,
            (true, Standing::Running) => {
                let started = status.is_some_and(|status| status.started == Some(true));
                counts.pending_sidecars += usize::from(!started);
                counts.running += 1;
            }
            (true, Standing::Ended(_)) => {}
            (true, Standing::Waiting) => {
                counts.pending_sidecars += 1;
                counts.waiting += 1;
            }
            (true, Standing::Unknown) => {
                counts.pending_sidecars += usize::from(status.is_some());
                counts.unknown += 1;
            }
        }
    }
    for container in &spec.containers {
        match standing(of(container)) {
            Standing::Running => counts.running += 1,
            Standing::Ended(code) => {
                counts.stopped += 1;
                counts.stopped_for_good += usize::from(!restarts_after(container, policy, code));
                counts.succeeded += usize::from(code == 0 && is_over(of(container)));
            }
            Standing::Waiting => counts.waiting += 1,
            Standing::Unknown => counts.unknown += 1,
        }
    }
    counts
}

/// A success counts only while it is the present state, not as the past of a container that waits.
fn is_over(status: Option<&ContainerStatus>) -> bool {
    status.and_then(|status| status.state.as_ref()).is_some_and(|state| state.terminated.is_some())
}
