//! The state of one probe of one container. Pure: the driver asks [`ProbeWorker::step`] what to do and
//! reports back with [`ProbeWorker::record`].
//!
//! ```text
//! new container ──► initial result ──delay──► probing ──threshold──► result
//!       ▲                                        │ liveness or startup failed
//!       └────────── restarted ◄──── on hold ◄────┘
//! ```
//! Behaves as pkg/kubelet/prober/worker.go, v1.36.

use std::time::Duration;

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{ContainerStatus, Probe};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    /// As in events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }

    /// What holds until the probe has decided; `None` is undecided.
    fn initial(self) -> Option<bool> {
        match self {
            Self::Startup => None,
            Self::Readiness => Some(false),
            Self::Liveness => Some(true),
        }
    }
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Look again after the period.
    Wait,
    /// Run the probe.
    Probe,
    /// Never again.
    Stop,
}

/// The result of a container changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub container_id: String,
    pub result: Option<bool>,
}

/// What is known of the pod when the worker looks.
pub struct Look<'a> {
    pub status: Option<&'a ContainerStatus>,
    pub pod_ended: bool,
    pub pod_terminating: bool,
    /// The container is started again after it ended.
    pub restartable: bool,
    pub now: Timestamp,
}

#[derive(Clone, Debug)]
pub struct ProbeWorker {
    kind: ProbeKind,
    initial_delay: Duration,
    failure_threshold: i32,
    success_threshold: i32,
    container_id: String,
    last: Option<bool>,
    run: i32,
    /// Failed for good: nothing to probe until the container is another one.
    on_hold: bool,
}

impl ProbeWorker {
    pub fn new(kind: ProbeKind, probe: &Probe) -> Self {
        let delay = probe.initial_delay_seconds.unwrap_or(0);
        Self {
            kind,
            initial_delay: Duration::from_secs(u64::try_from(delay).unwrap_or(0)),
            failure_threshold: probe.failure_threshold.filter(|count| *count > 0).unwrap_or(3),
            success_threshold: probe.success_threshold.filter(|count| *count > 0).unwrap_or(1),
            container_id: String::new(),
            last: None,
            run: 0,
            on_hold: false,
        }
    }

    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    pub fn step(&mut self, look: &Look<'_>) -> (Step, Option<Change>) {
        if look.pod_ended {
            return (Step::Stop, None);
        }
        let Some(status) = look.status else { return (Step::Wait, None) };
        let id = status.container_id.as_deref().map(|id| id.split_once("://").map_or(id, |(_, id)| id));
        let Some(id) = id.filter(|id| !id.is_empty()) else { return (Step::Wait, None) };
        let mut change = None;
        if self.container_id != id {
            id.clone_into(&mut self.container_id);
            self.on_hold = false;
            self.last = None;
            self.run = 0;
            change = Some(self.change(self.kind.initial()));
        }
        if self.on_hold {
            return (Step::Wait, change);
        }
        let state = status.state.clone().unwrap_or_default();
        let Some(running) = state.running else {
            let step = if state.terminated.is_none() || look.restartable { Step::Wait } else { Step::Stop };
            return (step, Some(self.change(Some(false))));
        };
        if look.pod_terminating && self.kind != ProbeKind::Readiness {
            // A pod that ends is not restarted for a probe.
            return (Step::Stop, Some(self.change(Some(true))));
        }
        let age = running.started_at.map(|started| look.now.duration_since(started.0));
        let old_enough = age.is_none_or(|age| Duration::try_from(age).is_ok_and(|age| age >= self.initial_delay));
        let started = status.started == Some(true);
        if !old_enough || started == (self.kind == ProbeKind::Startup) {
            return (Step::Wait, change);
        }
        (Step::Probe, change)
    }

    /// Takes the outcome of one probe.
    pub fn record(&mut self, success: bool) -> Option<Change> {
        if self.last == Some(success) {
            self.run += 1;
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.run < threshold {
            return None;
        }
        if !success && self.kind != ProbeKind::Readiness {
            self.on_hold = true;
            self.run = 0;
        }
        Some(self.change(Some(success)))
    }

    fn change(&self, result: Option<bool>) -> Change {
        Change { container_id: self.container_id.clone(), result }
    }
}

#[cfg(test)]
mod tests {
    use rkube_api::k8s::core::v1::{ContainerState, ContainerStateRunning};
    use rkube_api::meta::pkg::apis::meta::v1::Time;

    use super::*;

    fn status(id: &str, started: bool) -> ContainerStatus {
        let running = ContainerStateRunning { started_at: Some(Time(Timestamp::UNIX_EPOCH)) };
        ContainerStatus {
            container_id: Some(format!("containerd://{id}")),
            started: Some(started),
            state: Some(ContainerState { running: Some(running), ..ContainerState::default() }),
            ..ContainerStatus::default()
        }
    }

    /// `script`: `s` and `f` are outcomes of probes at successive seconds, `R` a restart.
    fn check(kind: ProbeKind, probe: &Probe, script: &str, expected: &str) {
        let mut worker = ProbeWorker::new(kind, probe);
        let mut log = Vec::new();
        let mut id = 0;
        for (second, event) in script.chars().enumerate() {
            if event == 'R' {
                id += 1;
            }
            let status = status(&format!("c{id}"), kind != ProbeKind::Startup);
            let look = Look {
                status: Some(&status),
                pod_ended: false,
                pod_terminating: false,
                restartable: true,
                now: Timestamp::from_second(second as i64).unwrap(),
            };
            let (step, change) = worker.step(&look);
            let recorded = (step == Step::Probe && event != 'R').then(|| worker.record(event == 's')).flatten();
            for change in [change, recorded].into_iter().flatten() {
                let result = match change.result {
                    None => "unknown",
                    Some(true) => "ok",
                    Some(false) => "failed",
                };
                log.push(format!("{second}:{}={result}", change.container_id));
            }
        }
        assert_eq!(log.join(" "), expected);
    }

    #[test]
    fn readiness_starts_failed_and_follows_thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(2), ..Probe::default() };
        check(ProbeKind::Readiness, &probe, "ssfsff", "0:c0=failed 1:c0=ok 5:c0=failed");
    }

    #[test]
    fn liveness_holds_after_failure_until_the_container_is_new() {
        let probe = Probe { failure_threshold: Some(3), ..Probe::default() };
        check(ProbeKind::Liveness, &probe, "fffffRs", "0:c0=ok 2:c0=failed 5:c1=ok 6:c1=ok");
    }

    #[test]
    fn nothing_is_probed_before_the_initial_delay() {
        let probe = Probe { initial_delay_seconds: Some(3), failure_threshold: Some(1), ..Probe::default() };
        check(ProbeKind::Liveness, &probe, "fffff", "0:c0=ok 3:c0=failed");
        check(ProbeKind::Startup, &probe, "ffsss", "0:c0=unknown 3:c0=ok 4:c0=ok");
    }
}
