//! Carrying out a decision: the pod's node is written to the API, once.
//!
//! The server binds a pod at most once. A request that got no answer may have been carried out, so the pod is
//! read before anything is concluded: as long as it is not known, the room on the node stays taken.
//! Behaves as pkg/scheduler/schedule_one.go (`bindingCycle`, `handleBindingCycleError`), v1.36.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::chain::chain;
use rkube_client::{ClientError, EventType};
use tracing::{debug, warn};

use crate::metrics::metrics;
use crate::model::pod::node_name;
use crate::queue::Queued;
use crate::scheduler::Scheduler;
use crate::status::Report;
use crate::volumes::Bindings;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// How a binding ended.
enum Outcome {
    Bound,
    /// The pod does not exist any more, or is elsewhere: nothing to do.
    Gone,
    Refused(String),
}

impl Scheduler {
    pub(crate) async fn bind(
        self: &Arc<Self>,
        queued: Queued,
        node: Arc<str>,
        volumes: Option<Bindings>,
        start: Duration,
    ) {
        let info = &queued.info;
        let began = self.now();
        let bound = match &volumes {
            Some(volumes) => self.bind_volumes(volumes, &node, queued.profile).await,
            None => Ok(()),
        };
        if volumes.is_some() {
            self.ran("PreBind", bound.is_ok(), &queued, began);
        }
        let began = self.now();
        let outcome = match bound {
            Ok(()) => {
                let outcome = self.write_binding(&queued, &node).await;
                self.ran("Bind", matches!(outcome, Outcome::Bound), &queued, began);
                outcome
            }
            Err(message) => Outcome::Refused(message),
        };
        if let Some(volumes) = &volumes {
            self.state.lock().release(volumes);
        }
        match outcome {
            Outcome::Bound => {
                self.state.lock().bound(&info.uid);
                let now = self.now();
                metrics().attempt(self.profile_name(&queued), "scheduled", now.saturating_sub(start));
                let first = queued.first_attempt.unwrap_or(start);
                metrics().bound(queued.attempts, now.saturating_sub(first));
                if queued.flushed {
                    metrics().after_flush.inc();
                }
                debug!(pod = %info.key, node = %node, "Successfully bound pod to node");
                let note = format!("Successfully assigned {} to {node}", info.key);
                self.event(&queued, EventType::Normal, "Scheduled", "Binding", &note);
            }
            Outcome::Gone => {
                self.state.lock().not_bound(info, true, self.now());
                self.wake.notify_one();
            }
            Outcome::Refused(message) => self.binding_failed(&queued, message, start),
        }
    }

    fn ran(&self, point: &'static str, succeeded: bool, queued: &Queued, began: Duration) {
        let status = if succeeded { "Success" } else { "Error" };
        metrics().ran(point, status, self.profile_name(queued), self.now().saturating_sub(began));
    }

    pub(crate) fn binding_failed(&self, queued: &Queued, message: String, start: Duration) {
        let info = &queued.info;
        let now = self.now();
        self.state.lock().not_bound(info, false, now);
        self.wake.notify_one();
        metrics().attempt(self.profile_name(queued), "error", now.saturating_sub(start));
        warn!(pod = %info.key, message, "Binding failed; retrying");
        self.event(queued, EventType::Warning, "FailedScheduling", "Scheduling", &message);
        self.reports.add(Report { info: Arc::clone(info), reason: "SchedulerError", message, nominated: None });
    }

    async fn write_binding(&self, queued: &Queued, node: &str) -> Outcome {
        let key = &queued.info.key;
        let api = self.context.client.namespaced::<Pod>(&key.namespace);
        let mut delay = FIRST_RETRY;
        loop {
            let error = match api.bind(&key.namespace, &key.name, &queued.info.uid, node).await {
                Ok(()) => return Outcome::Bound,
                Err(error) => error,
            };
            match &error {
                ClientError::Api(status) if status.is_not_found() => return Outcome::Gone,
                // Bound already, by whomever, or another pod by this name; the pod tells.
                ClientError::Api(status) if status.is_conflict() => {}
                ClientError::Api(status) => {
                    return Outcome::Refused(format!("running Bind plugin \"DefaultBinder\": {status}"));
                }
                _ => debug!(pod = %key, error = %chain(&error), "No answer to a binding"),
            }
            match api.get(&key.name).await {
                Ok(pod) if pod.metadata.uid.as_deref() != Some(&*queued.info.uid) => return Outcome::Gone,
                Ok(pod) => match node_name(&pod) {
                    Some(bound) if bound == node => return Outcome::Bound,
                    Some(_) => return Outcome::Gone,
                    None if error.is_conflict() => {
                        return Outcome::Refused(format!("running Bind plugin \"DefaultBinder\": {}", chain(&error)));
                    }
                    None => {}
                },
                Err(error) if error.is_not_found() => return Outcome::Gone,
                Err(error) => debug!(pod = %key, error = %chain(&error), "Could not read a pod being bound"),
            }
            self.context.clock.sleep(delay).await;
            delay = (delay * 2).min(LAST_RETRY);
        }
    }
}
