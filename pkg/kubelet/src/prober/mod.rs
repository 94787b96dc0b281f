//! Probes: one task per probe of a container, and the results others read.
//!
//! [`worker`] decides, [`probe`] asks.
//! Behaves as pkg/kubelet/prober, v1.36.

pub mod http;
pub mod probe;
pub mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::k8s::core::v1::{Container, Pod, Probe};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use rkube_cri::RuntimeService;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::info_span;

use crate::events::{Events, Type};
use crate::pod::{PodExt, PodUid, init_containers, is_sidecar};
use crate::prober::probe::Outcome;
use crate::prober::worker::{Look, ProbeKind, ProbeWorker, Step};
use crate::runtime::sync::ProbeView;
use crate::status::convert::ProbeState;
use crate::status::is_terminal_phase;
use crate::status::manager::StatusManager;

/// A probe that could not be run is tried again at once so many times.
const RETRIES_MAX: usize = 3;

type Key = (PodUid, String, ProbeKind);

/// Results by container id and kind.
#[derive(Default)]
pub struct Results(Mutex<HashMap<(String, ProbeKind), Option<bool>>>);

impl Results {
    fn get(&self, container_id: &str, kind: ProbeKind) -> Option<bool> {
        self.0.lock().get(&(container_id.to_owned(), kind)).copied().flatten()
    }

    /// Whether this is news.
    fn set(&self, container_id: &str, kind: ProbeKind, result: Option<bool>) -> bool {
        self.0.lock().insert((container_id.to_owned(), kind), result) != Some(result)
    }

    fn remove(&self, container_id: &str, kind: ProbeKind) {
        self.0.lock().remove(&(container_id.to_owned(), kind));
    }
}

impl ProbeView for Results {
    fn liveness(&self, container_id: &str) -> Option<bool> {
        self.get(container_id, ProbeKind::Liveness)
    }

    fn startup(&self, container_id: &str) -> Option<bool> {
        self.get(container_id, ProbeKind::Startup)
    }
}

impl ProbeState for Results {
    fn started(&self, container_id: &str) -> Option<bool> {
        self.get(container_id, ProbeKind::Startup)
    }

    fn ready(&self, container_id: &str) -> Option<bool> {
        self.get(container_id, ProbeKind::Readiness)
    }
}

/// What a count of probes is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Counted {
    pub namespace: String,
    pub pod: String,
    pub uid: PodUid,
    pub container: String,
    pub kind: ProbeKind,
    /// `successful`, `failed`, `unknown`
    pub result: &'static str,
}

struct Handle {
    stop: CancellationToken,
    poke: Arc<Notify>,
}

/// A probe's result changed: the pod is to be looked at.
pub type Changed = Arc<dyn Fn(&PodUid) + Send + Sync>;

pub struct ProbeManager {
    runtime: Arc<dyn RuntimeService>,
    clock: SharedClock,
    events: Events,
    statuses: Arc<StatusManager>,
    pub results: Arc<Results>,
    changed: Changed,
    workers: Mutex<HashMap<Key, Handle>>,
    counts: Mutex<std::collections::BTreeMap<Counted, u64>>,
}

impl ProbeManager {
    pub fn new(
        runtime: Arc<dyn RuntimeService>,
        clock: SharedClock,
        events: Events,
        statuses: Arc<StatusManager>,
        changed: Changed,
    ) -> Self {
        let results = Arc::default();
        Self { runtime, clock, events, statuses, results, changed, workers: Mutex::default(), counts: Mutex::default() }
    }

    /// Starts the probes of a pod that do not run yet.
    pub fn add_pod(self: &Arc<Self>, pod: &Arc<Pod>) {
        let spec = pod.pod_spec();
        let sidecars = init_containers(spec).iter().filter(|container| is_sidecar(container));
        for container in spec.containers.iter().chain(sidecars) {
            let probes = [
                (ProbeKind::Startup, &container.startup_probe),
                (ProbeKind::Readiness, &container.readiness_probe),
                (ProbeKind::Liveness, &container.liveness_probe),
            ];
            for (kind, probe) in probes {
                if let Some(probe) = probe {
                    self.start(pod, container, kind, probe);
                }
            }
        }
    }

    fn start(self: &Arc<Self>, pod: &Arc<Pod>, container: &Container, kind: ProbeKind, probe: &Probe) {
        let key = (pod.uid(), container.name.clone(), kind);
        let mut workers = self.workers.lock();
        if workers.contains_key(&key) {
            return;
        }
        let handle = Handle { stop: CancellationToken::new(), poke: Arc::new(Notify::new()) };
        let driver = Driver {
            manager: self.clone(),
            pod: pod.clone(),
            container: container.clone(),
            kind,
            probe: probe.clone(),
            worker: ProbeWorker::new(kind, probe),
        };
        let span = info_span!("prober", pod = %pod.key(), container = container.name, probe = kind.as_str());
        task::spawn(span, driver.run(handle.stop.clone(), handle.poke.clone()));
        workers.insert(key, handle);
    }

    /// A status changed: probes that wait for their container look at once.
    pub fn poke(&self, uid: &PodUid) {
        for (key, handle) in self.workers.lock().iter() {
            if key.0 == *uid && key.2 != ProbeKind::Liveness {
                handle.poke.notify_one();
            }
        }
    }

    /// A pod that ends is not restarted any more, but its readiness still counts.
    pub fn stop_liveness_and_startup(&self, uid: &PodUid) {
        self.stop_where(|key| key.0 == *uid && key.2 != ProbeKind::Readiness);
    }

    pub fn remove_pod(&self, uid: &PodUid) {
        self.stop_where(|key| key.0 == *uid);
        self.counts.lock().retain(|counted, _| counted.uid != *uid);
    }

    /// Probes run so far, by container, kind and result.
    pub fn counts(&self) -> Vec<(Counted, u64)> {
        self.counts.lock().iter().map(|(counted, count)| (counted.clone(), *count)).collect()
    }

    fn stop_where(&self, matches: impl Fn(&Key) -> bool) {
        self.workers.lock().retain(|key, handle| {
            let stop = matches(key);
            if stop {
                handle.stop.cancel();
            }
            !stop
        });
    }
}

struct Driver {
    manager: Arc<ProbeManager>,
    pod: Arc<Pod>,
    container: Container,
    kind: ProbeKind,
    probe: Probe,
    worker: ProbeWorker,
}

impl Driver {
    async fn run(mut self, stop: CancellationToken, poke: Arc<Notify>) {
        let seconds = self.probe.period_seconds.filter(|seconds| *seconds > 0).unwrap_or(10);
        let period = Duration::from_secs(u64::try_from(seconds).unwrap_or(10));
        let clock = self.manager.clock.clone();
        let uid = self.pod.uid();
        let mut next = Duration::ZERO;
        loop {
            let now = clock.monotonic();
            // A poke lets a waiting probe look, it does not make probes more frequent.
            let due = now >= next;
            let probing = tokio::select! {
                step = self.turn(due) => step,
                () = stop.cancelled() => break,
            };
            match probing {
                None => break,
                Some(true) => next = clock.monotonic() + period,
                Some(false) => {}
            }
            let now = clock.monotonic();
            let wait = if next > now { next - now } else { period };
            tokio::select! {
                () = clock.sleep(wait) => {}
                () = poke.notified() => {}
                () = stop.cancelled() => break,
            }
        }
        self.manager.results.remove(self.worker.container_id(), self.kind);
        let key = (uid, self.container.name.clone(), self.kind);
        if !stop.is_cancelled() {
            self.manager.workers.lock().remove(&key);
        }
    }

    /// `None` ends the worker; else whether the probe was run.
    async fn turn(&mut self, due: bool) -> Option<bool> {
        let uid = self.pod.uid();
        let Some(pod_status) = self.manager.statuses.get(&uid) else { return Some(false) };
        let all =
            pod_status.container_statuses.iter().flatten().chain(pod_status.init_container_statuses.iter().flatten());
        let status = all.into_iter().find(|status| status.name == self.container.name).cloned();
        let policy = self.container.restart_policy.as_deref().unwrap_or(self.pod.restart_policy());
        let look = Look {
            status: status.as_ref(),
            pod_ended: pod_status.phase.as_deref().is_some_and(is_terminal_phase),
            pod_terminating: self.pod.is_terminating(),
            restartable: policy != "Never" || is_sidecar(&self.container),
            now: self.manager.clock.now(),
        };
        let before = self.worker.container_id().to_owned();
        let (step, change) = self.worker.step(&look);
        if before != self.worker.container_id() {
            self.manager.results.remove(&before, self.kind);
        }
        self.publish(change);
        match step {
            Step::Stop => None,
            Step::Wait => Some(false),
            Step::Probe if !due => Some(false),
            Step::Probe => {
                let ip = pod_status.pod_ip.clone().unwrap_or_default();
                if let Some(success) = self.ask(&ip).await {
                    let change = self.worker.record(success);
                    self.publish(change);
                }
                Some(true)
            }
        }
    }

    async fn ask(&self, ip: &str) -> Option<bool> {
        let manager = &self.manager;
        let id = self.worker.container_id();
        let mut outcome = Outcome::Error(String::new());
        for _ in 0..RETRIES_MAX {
            outcome = probe::run(&manager.runtime, &self.container, id, &self.probe, ip).await;
            if !matches!(outcome, Outcome::Error(_)) {
                break;
            }
        }
        let result = match outcome {
            Outcome::Success | Outcome::Warning(_) => "successful",
            Outcome::Failure(_) => "failed",
            Outcome::Error(_) => "unknown",
        };
        let counted = Counted {
            namespace: self.pod.namespace().to_owned(),
            pod: self.pod.name().to_owned(),
            uid: self.pod.uid(),
            container: self.container.name.clone(),
            kind: self.kind,
            result,
        };
        *manager.counts.lock().entry(counted).or_default() += 1;
        let kind = self.kind.as_str();
        let event = |reason: &str, text: String| {
            manager.events.container(&self.pod, &self.container, Type::Warning, reason, text);
        };
        match outcome {
            Outcome::Success => Some(true),
            Outcome::Warning(text) => {
                event("ProbeWarning", format!("{kind} probe warning: {text}"));
                Some(true)
            }
            Outcome::Failure(text) => {
                event("Unhealthy", format!("{kind} probe failed: {text}"));
                Some(false)
            }
            Outcome::Error(text) => {
                event("Unhealthy", format!("{kind} probe errored: {text}"));
                // It says nothing about the container.
                None
            }
        }
    }

    fn publish(&self, change: Option<worker::Change>) {
        let Some(change) = change else { return };
        if self.manager.results.set(&change.container_id, self.kind, change.result) {
            (self.manager.changed)(&self.pod.uid());
        }
    }
}
