//! Ends containers and sandboxes: hooks, grace periods, and the order of sidecars.
//!
//! Behaves as killContainer and killPodWithSyncResult in pkg/kubelet/kuberuntime, and
//! kuberuntime_termination_order.go, v1.36.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rkube_api::k8s::core::v1::{Container, Pod};
use rkube_cri::RuntimeError;
use rkube_cri::v1::{ContainerStatusRequest, StopContainerRequest, StopPodSandboxRequest};
use tokio::sync::watch;

use crate::events::Type;
use crate::pod::{PodExt, init_containers, is_sidecar};
use crate::runtime::actions::KillReason;
use crate::runtime::labels::ContainerLabels;
use crate::runtime::state::RuntimePod;
use crate::runtime::{Runtime, hooks};

/// No container gets less, whatever its pod says.
const GRACE_MIN: i64 = 2;

/// Which containers of a pod have ended, so that sidecars can wait for the ones they serve.
struct Ordering {
    ended: watch::Sender<Vec<String>>,
    running: Vec<String>,
    /// Sidecars in the order they started.
    sidecars: Vec<String>,
}

impl Ordering {
    fn new(pod: &Pod, current: &RuntimePod) -> Arc<Self> {
        let sidecars = init_containers(pod.pod_spec()).iter().filter(|container| is_sidecar(container));
        Arc::new(Self {
            ended: watch::channel(vec![]).0,
            running: current.running().map(|container| container.name.clone()).collect(),
            sidecars: sidecars.map(|container| container.name.clone()).collect(),
        })
    }

    /// A sidecar waits for all that is no sidecar and for sidecars that started after it.
    async fn turn(&self, name: &str) {
        let Some(position) = self.sidecars.iter().position(|sidecar| sidecar == name) else { return };
        let earlier = &self.sidecars[..=position];
        let awaited = |name: &String| !earlier.contains(name);
        let mut ended = self.ended.subscribe();
        let all =
            ended.wait_for(|ended| self.running.iter().filter(|name| awaited(name)).all(|name| ended.contains(name)));
        // The sender lives in `self`.
        let _ = all.await;
    }

    fn note_end(&self, name: &str) {
        self.ended.send_modify(|ended| ended.push(name.to_owned()));
    }
}

impl Runtime {
    /// Stops everything of a pod, containers first, then its sandboxes. `grace` replaces every other
    /// grace period. Without `pod` (it is gone from the API) the labels tell the grace period.
    pub async fn kill_pod(
        &self,
        pod: Option<&Pod>,
        current: &RuntimePod,
        grace: Option<i64>,
    ) -> Result<(), RuntimeError> {
        let ordering = pod.map(|pod| Ordering::new(pod, current));
        let kills = current.running().map(|container| {
            let ordering = ordering.clone();
            async move {
                let reason = KillReason::Unspecified;
                let killed = self
                    .kill_in_order(pod, &container.id, &container.name, "", reason, grace, ordering.as_deref())
                    .await;
                if let Some(ordering) = ordering {
                    ordering.note_end(&container.name);
                }
                killed
            }
        });
        let killed: Result<Vec<()>, RuntimeError> = join_all(kills).await.into_iter().collect();
        for sandbox in &current.sandboxes {
            let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            match self.service.stop_pod_sandbox(request).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        killed.map(drop)
    }

    pub async fn kill_container(
        &self,
        pod: Option<&Pod>,
        id: &str,
        name: &str,
        message: &str,
        reason: KillReason,
        grace: Option<i64>,
    ) -> Result<(), RuntimeError> {
        self.kill_in_order(pod, id, name, message, reason, grace, None).await
    }

    #[expect(clippy::too_many_arguments, reason = "a kill and its place in the order")]
    async fn kill_in_order(
        &self,
        pod: Option<&Pod>,
        id: &str,
        name: &str,
        message: &str,
        reason: KillReason,
        grace: Option<i64>,
        ordering: Option<&Ordering>,
    ) -> Result<(), RuntimeError> {
        let known = pod.and_then(|pod| Some((pod, pod.container(name)?.1)));
        let own_grace = match &known {
            Some((pod, container)) => grace_period(pod, container, reason),
            None => self.grace_by_labels(id).await,
        };
        let mut left = grace.unwrap_or(own_grace);
        if let Some((pod, container)) = &known {
            let text = if message.is_empty() { format!("Stopping container {name}") } else { message.to_owned() };
            self.events.container(pod, container, Type::Normal, "Killing", text);
            if left > 0 {
                left -= self.pre_stop(pod, container, id, left).await;
            }
        }
        if let Some(ordering) = ordering
            && left > 0
        {
            let begin = self.clock.monotonic();
            let limit = self.clock.sleep(Duration::from_secs(u64::try_from(left).unwrap_or(0)));
            tokio::select! {
                () = ordering.turn(name) => {}
                () = limit => {}
            }
            left -= seconds(self.clock.monotonic().saturating_sub(begin));
        }
        let timeout = left.max(GRACE_MIN);
        tracing::debug!(container = name, id, timeout, "Stopping container");
        match self.service.stop_container(StopContainerRequest { container_id: id.to_owned(), timeout }).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Runs preStop for at most the grace period; gives the seconds it took.
    async fn pre_stop(&self, pod: &Pod, container: &Container, id: &str, grace: i64) -> i64 {
        let Some(handler) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) else {
            return 0;
        };
        let begin = self.clock.monotonic();
        let status = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
        let hook = hooks::run(&self.service, &self.clock, id, container, handler, status);
        let limit = self.clock.sleep(Duration::from_secs(u64::try_from(grace).unwrap_or(0)));
        tokio::select! {
            result = hook => if let Err(message) = result {
                tracing::warn!(pod = %pod.key(), container = container.name, message, "PreStop hook failed");
                self.events.container(pod, container, Type::Warning, "FailedPreStopHook", "PreStopHook failed");
            },
            () = limit => {
                tracing::info!(pod = %pod.key(), container = container.name, grace, "PreStop hook did not end within the grace period");
            }
        }
        seconds(self.clock.monotonic().saturating_sub(begin))
    }

    async fn grace_by_labels(&self, id: &str) -> i64 {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = self.service.container_status(request).await.ok().and_then(|answer| answer.status);
        status.and_then(|status| ContainerLabels::read(&status.annotations).grace_period_seconds).unwrap_or(GRACE_MIN)
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// The deletion's grace period, else that of the probe that failed, else the pod's.
fn grace_period(pod: &Pod, container: &Container, reason: KillReason) -> i64 {
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        return seconds;
    }
    let probe = match reason {
        KillReason::LivenessProbe => container.liveness_probe.as_ref(),
        KillReason::StartupProbe => container.startup_probe.as_ref(),
        _ => None,
    };
    probe
        .and_then(|probe| probe.termination_grace_period_seconds)
        .or(pod.pod_spec().termination_grace_period_seconds)
        .unwrap_or(GRACE_MIN)
}
