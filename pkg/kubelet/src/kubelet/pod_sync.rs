//! What a pod's worker does: sync, stop, clean up.
//!
//! Behaves as SyncPod, SyncTerminatingPod and SyncTerminatedPod in pkg/kubelet/kubelet.go, v1.36.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::{Pod, Secret};
use rkube_api::k8s::node::v1::RuntimeClass;
use rkube_apimachinery::chain::chain;
use tokio_util::sync::CancellationToken;

use crate::events::Type;
use crate::kubelet::workers::Worker;
use crate::kubelet::{Event, Inner};
use crate::pod::PodExt;
use crate::runtime::resize::MemoryInUse;
use crate::runtime::state::RuntimePod;
use crate::runtime::sync::{SyncInputs, SyncOutcome};
use crate::status::{StatusInputs, Verdict, generate, is_terminal_phase};
use crate::worker::{Action, Input};

/// A pod that is well is looked at again after this, which is how changed configuration reaches it.
const RESYNC: Duration = Duration::from_secs(60);
/// After a failure; doubled up to the maximum.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How a piece of work ended.
pub(super) enum End {
    /// Look again after this, or when woken.
    Wait(Duration),
    /// Something failed: look again soon, later each time.
    Retry,
    /// Go on at once.
    Next(Input),
}

impl Inner {
    pub(crate) async fn run_worker(self: Arc<Self>, worker: Arc<Worker>) {
        let mut retry = RETRY_FIRST;
        loop {
            if self.shutdown.is_cancelled() {
                return;
            }
            let action = worker.life.lock().next();
            let cancel = worker.begin();
            let end = match action {
                Action::Sync => self.sync(&worker, &cancel).await,
                Action::Stop { grace_seconds } => self.stop(&worker, grace_seconds, &cancel).await,
                Action::CleanUp => self.clean_up(&worker).await,
                Action::Nothing => {
                    self.notify(Event::Finished(worker.uid.clone()));
                    return;
                }
            };
            let wait = match end {
                End::Next(input) => {
                    retry = RETRY_FIRST;
                    worker.apply(input);
                    continue;
                }
                End::Wait(wait) => {
                    retry = RETRY_FIRST;
                    wait
                }
                End::Retry => {
                    let wait = retry;
                    retry = (retry * 2).min(RETRY_MAX);
                    wait
                }
            };
            // Woken already when the next step is another one.
            if worker.life.lock().next() != action {
                continue;
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = worker.wake.notified() => {}
                () = self.clock.sleep(wait) => {}
            }
        }
    }

    /// What the runtime last said about a pod.
    fn current(&self, pod: &Pod) -> Arc<RuntimePod> {
        self.cache.get(&pod.uid()).unwrap_or_else(|| Arc::new(RuntimePod::of(pod)))
    }

    /// Whether the pod had ended before this kubelet came to know it: its status is told.
    fn ended_before(&self, pod: &Pod) -> bool {
        is_terminal_phase(pod.phase()) && self.statuses.get(&pod.uid()).is_none()
    }

    /// Asks the runtime anew.
    async fn refresh(&self, pod: &Pod) -> Result<Arc<RuntimePod>, rkube_cri::RuntimeError> {
        let status = self.runtime.pod_status(&pod.uid(), pod.namespace(), pod.name()).await?;
        Ok(self.cache.set(status))
    }

    /// Makes the status of a pod and hands it to be written.
    pub(crate) fn report(&self, worker: &Worker, pod: &Pod, current: &RuntimePod, is_terminal: bool) -> String {
        let facts = self.facts();
        let old = self.old_status(pod);
        let waiting = worker.waiting.lock().clone();
        let verdict = worker.life.lock().verdict().cloned();
        let inputs = StatusInputs {
            pod,
            runtime: current,
            old: &old,
            waiting: &waiting,
            probes: &*self.probes.results,
            is_terminal,
            verdict: verdict.as_ref(),
            host_ips: &facts.ips,
            runtime_name: &self.runtime.settings.runtime_name,
            now: self.clock.now(),
            resize: &self.resizes.conditions(&pod.uid()),
            limits: self.allocations.limits(&pod.uid()),
        };
        let status = generate(&inputs);
        let phase = status.phase.clone().unwrap_or_default();
        let before = old.container_statuses != status.container_statuses;
        self.statuses.set(pod, status);
        if before {
            self.probes.poke(&pod.uid());
        }
        phase
    }

    async fn sync(&self, worker: &Worker, cancel: &CancellationToken) -> End {
        let pod = self.allocated(worker);
        let mut current = self.current(&pod);
        if self.ended_before(&pod) && !current.is_active() {
            return End::Next(Input::EndedBefore);
        }
        if !worker.is_admitted() {
            match self.let_in(worker, &pod, &current, cancel).await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
        // From here on it was given something.
        let pod = self.allocated(worker);
        self.note_resize(&pod, &current);
        let phase = self.report(worker, &pod, &current, false);
        if is_terminal_phase(&phase) {
            return End::Next(Input::ContainersEnded);
        }
        let deadline = match self.deadline(&pod) {
            Some(Duration::ZERO) => {
                let message = "Pod was active on the node longer than the specified deadline";
                self.events.pod(&pod, Type::Normal, "DeadlineExceeded", message);
                let verdict = Verdict::new("DeadlineExceeded", message);
                return End::Next(Input::Evicted { verdict, grace_seconds: None });
            }
            left => left,
        };
        if let Err(message) = self.node.network_ready()
            && !pod.is_host_network()
        {
            self.events.pod(&pod, Type::Warning, "NetworkNotReady", format!("network is not ready: {message}"));
            return End::Retry;
        }
        match self.prepare_and_sync(worker, &pod, &current, cancel).await {
            Err(message) => {
                tracing::info!(message, "Pod was not synced");
                End::Retry
            }
            Ok(outcome) => {
                if let Some(error) = &outcome.resize_error {
                    self.note_resize_error(&pod, error);
                }
                let acted = !outcome.started.is_empty() || outcome.resized || !outcome.is_ok();
                let old = std::mem::replace(&mut *worker.waiting.lock(), outcome.waiting.clone());
                if acted || old != outcome.waiting {
                    match self.refresh(&pod).await {
                        Ok(fresh) => current = fresh,
                        Err(error) => tracing::warn!(%error, "Pod was not read from the runtime"),
                    }
                    let pod = self.allocated(worker);
                    self.note_resize(&pod, &current);
                    self.report(worker, &pod, &current, false);
                }
                self.end_of(&outcome, deadline)
            }
        }
    }

    fn end_of(&self, outcome: &SyncOutcome, deadline: Option<Duration>) -> End {
        if let Some(error) = outcome.error.as_ref().or(outcome.resize_error.as_ref()) {
            tracing::info!(error, "Pod was not synced");
            return End::Retry;
        }
        // An image or configuration that is missing is looked for at the pace of its own back-off.
        let other = outcome.waiting.iter().any(|waiting| waiting.reason != "CrashLoopBackOff");
        let wait = match (outcome.retry_after, other) {
            (Some(after), false) => after,
            (Some(after), true) => after.min(RETRY_MAX),
            (None, true) => RETRY_MAX,
            (None, false) => RESYNC,
        };
        End::Wait(deadline.map_or(wait, |deadline| wait.min(deadline)))
    }

    async fn prepare_and_sync(
        &self,
        worker: &Worker,
        pod: &Arc<Pod>,
        current: &RuntimePod,
        cancel: &CancellationToken,
    ) -> Result<SyncOutcome, String> {
        let uid = pod.uid();
        let limits = self.limits_of(pod);
        let before = self.allocations.limits(&uid).unwrap_or(limits);
        // Between the two the pod has room for its containers as they are and as they will be.
        let on_the_way = if self.is_resizing(pod, current) { before.or_higher(&limits) } else { limits };
        self.cgroups.ensure(pod, &on_the_way).map_err(|error| {
            let text = chain(&error).to_string();
            self.events.pod(
                pod,
                Type::Warning,
                "FailedCreatePodContainer",
                format!("unable to ensure pod container exists: {text}"),
            );
            text
        })?;
        let facts = self.facts();
        let volumes = tokio::select! {
            volumes = self.volumes.set_up(pod, current.ips(), &facts) => volumes,
            () = cancel.cancelled() => return Err("the pod is being terminated".to_owned()),
        };
        let volumes = volumes.map_err(|failed| {
            for (name, error) in &failed {
                let text = format!("MountVolume.SetUp failed for volume {name:?} : {}", chain(error));
                self.events.pod(pod, Type::Warning, "FailedMount", text);
            }
            let names: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
            format!("volumes {} are not set up", names.join(", "))
        })?;
        let secrets = self.pull_secrets(pod).await;
        let runtime_handler = self.runtime_handler(pod).await?;
        let services = tokio::select! {
            services = self.known_services() => services,
            () = cancel.cancelled() => return Err("the pod is being terminated".to_owned()),
        };
        self.probes.add_pod(pod);
        let dns = self.dns();
        let inputs = SyncInputs {
            volumes: &volumes,
            pull_secrets: &secrets,
            services: &services,
            node: &facts,
            dns: &dns,
            cgroup_parent: self.cgroups.parent_of(pod),
            runtime_handler,
            probes: &*self.probes.results,
            memory: MemoryInUse {
                lower_pod_limit: limits.memory.filter(|_| limits.has_less_memory_than(&before)),
                of: &|container| self.cgroups.memory_in_use(pod, container),
            },
            cancel,
            on_sandbox_ready: &|_| worker.wake.notify_one(),
        };
        let mut outcome = self.runtime.sync_pod(pod, current, &inputs).await;
        if outcome.resize_error.is_none() && outcome.error.is_none() {
            if on_the_way != limits
                && let Err(error) = self.cgroups.ensure(pod, &limits)
            {
                outcome.resize_error = Some(chain(&error).to_string());
                return Ok(outcome);
            }
            outcome.resized |= before != limits;
            self.allocations.limit(&uid, limits);
        }
        Ok(outcome)
    }

    async fn pull_secrets(&self, pod: &Pod) -> Vec<Arc<Secret>> {
        let mut secrets = Vec::new();
        for reference in pod.pod_spec().image_pull_secrets.as_deref().unwrap_or_default() {
            let name = &reference.name;
            match self.objects.get::<Secret>(pod.namespace(), name).await {
                Ok(Some(secret)) => secrets.push(secret),
                // The image may be pulled without.
                Ok(None) | Err(_) => {
                    let text = format!(
                        "Unable to retrieve some image pull secrets ({name}); attempting to pull the image may not succeed."
                    );
                    self.events.pod(pod, Type::Warning, "FailedToRetrieveImagePullSecret", text);
                }
            }
        }
        secrets
    }

    async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let Some(name) = pod.pod_spec().runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(String::new());
        };
        match self.objects.get::<RuntimeClass>("", name).await {
            Ok(Some(class)) => Ok(class.handler.clone()),
            Ok(None) => {
                let text = format!("Failed to create pod sandbox: RuntimeClass {name:?} not found");
                self.events.pod(pod, Type::Warning, "FailedCreatePodSandBox", &text);
                Err(text)
            }
            Err(error) => Err(chain(&error).to_string()),
        }
    }

    /// Time left until the pod's own deadline.
    fn deadline(&self, pod: &Pod) -> Option<Duration> {
        let seconds = u64::try_from(pod.pod_spec().active_deadline_seconds?).ok()?;
        let started = self.statuses.get(&pod.uid()).and_then(|status| status.start_time)?;
        let age = Duration::try_from(self.clock.now().duration_since(started.0)).unwrap_or(Duration::ZERO);
        Some(Duration::from_secs(seconds).saturating_sub(age))
    }

    async fn stop(&self, worker: &Worker, grace_seconds: Option<i64>, cancel: &CancellationToken) -> End {
        let pod = self.allocated(worker);
        let removed = worker.life.lock().is_removed();
        worker.waiting.lock().clear();
        let current = match self.refresh(&pod).await {
            Ok(current) => current,
            Err(error) => {
                tracing::warn!(%error, "Pod was not read from the runtime");
                return End::Retry;
            }
        };
        if !removed {
            self.report(worker, &pod, &current, false);
        }
        self.probes.stop_liveness_and_startup(&pod.uid());
        let known = (!pod.pod_spec().containers.is_empty()).then_some(&*pod);
        let killed = tokio::select! {
            killed = self.runtime.kill_pod(known, &current, grace_seconds) => killed,
            // A shorter grace period takes over: stopping again is harmless.
            () = cancel.cancelled() => return End::Wait(Duration::ZERO),
        };
        if let Err(error) = killed {
            tracing::warn!(%error, "Pod was not stopped");
            let text = format!("error killing pod: {error}");
            self.events.pod(&pod, Type::Warning, "FailedKillPod", text);
            return End::Retry;
        }
        self.probes.remove_pod(&pod.uid());
        match self.refresh(&pod).await {
            Ok(current) if current.is_active() => {
                tracing::warn!("Containers of the pod still run after it was stopped");
                End::Retry
            }
            Ok(current) => {
                if !removed {
                    self.report(worker, &pod, &current, true);
                }
                End::Next(Input::Stopped)
            }
            Err(error) => {
                tracing::warn!(%error, "Pod was not read from the runtime");
                End::Retry
            }
        }
    }

    async fn clean_up(&self, worker: &Worker) -> End {
        let pod = self.allocated(worker);
        let uid = pod.uid();
        if !worker.life.lock().is_removed() && !self.ended_before(&pod) {
            self.report(worker, &pod, &self.current(&pod), true);
            // Its last phase may have been withheld while containers could run.
            self.statuses.touch(&uid);
        }
        let volumes = self.volumes.clone();
        let torn_down = {
            let uid = uid.clone();
            tokio::task::spawn_blocking(move || volumes.tear_down(&uid)).await
        };
        match torn_down {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "Volumes of the pod were not taken down");
                return End::Retry;
            }
            Err(error) => {
                tracing::warn!(%error, "Volumes of the pod were not taken down");
                return End::Retry;
            }
        }
        if let Err(error) = self.cgroups.remove(&uid) {
            tracing::warn!(error = %chain(&error), "Cgroup of the pod was not removed");
            return End::Retry;
        }
        self.runtime.forget(&pod);
        End::Next(Input::CleanedUp)
    }
}
