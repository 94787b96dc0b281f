//! The pods of all fake nodes: one watch, a queue of pods with something to do, a few reporters.
//!
//! Level-triggered: what is to be done follows from the pod as last seen, the rules and the clock ([`plan`]); a lost answer
//! or a restart repeats at most a report that is already true.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use rkube_api::StoredObject;
use rkube_api::k8s::core::v1::Pod as PodKind;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::task;
use rkube_client::WorkQueue;
use rkube_client::client::resource_of;
use rkube_client::reflector::{self, Scope, Sink};
use rkube_client::transport::ClientError;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::debug_span;

use super::rules::{ANNOTATION, Facts, Outcome, Phase, Rules};
use super::{Shape, status};
use crate::cluster::Cluster;
use crate::progress::{Ticker, say};

/// A pod on one of our nodes, as last seen.
struct Seen {
    object: Arc<StoredObject>,
    node: usize,
    /// When the pod was first seen, and when it was first seen being deleted.
    since: Duration,
    deleted_since: Option<Duration>,
    address: usize,
}

/// What a pod needs next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Wait(Duration),
    Report(Phase),
    Remove,
}

/// Reports pods, until shutdown.
pub(super) struct Agent {
    cluster: Cluster,
    shape: Shape,
    count: usize,
    rules: Rules,
    stop_after: Duration,
    reports: Ticker,
    pods: Mutex<HashMap<ObjectKey, Seen>>,
    queue: WorkQueue<ObjectKey>,
    addresses: AtomicUsize,
}

impl Agent {
    pub(super) fn new(
        cluster: Cluster,
        shape: Shape,
        count: usize,
        rules: Rules,
        stop_after: Duration,
        reports: Ticker,
    ) -> Self {
        let queue = WorkQueue::new("fake-pods", cluster.clock.clone());
        let (pods, addresses) = (Mutex::default(), AtomicUsize::new(1));
        Self { cluster, shape, count, rules, stop_after, reports, pods, queue, addresses }
    }

    pub(super) async fn run(self: Arc<Self>, reporters: usize, shutdown: CancellationToken) {
        let scope = Scope {
            resource: resource_of::<PodKind>(),
            namespace: String::new(),
            label_selector: String::new(),
            field_selector: "spec.nodeName!=".to_owned(),
        };
        let workers: Vec<_> = (0..reporters.max(1))
            .map(|index| task::spawn(debug_span!("reporter", index), Arc::clone(&self).work(index)))
            .collect();
        let sink: Arc<dyn Sink> = Arc::clone(&self) as _;
        reflector::run(self.cluster.client(0), scope, sink, shutdown).await;
        self.queue.shut_down();
        for worker in workers {
            // A worker that panicked has said so.
            let _ = worker.await;
        }
    }

    async fn work(self: Arc<Self>, worker: usize) {
        while let Some(key) = self.queue.get().await {
            match self.look_after(worker, &key).await {
                Ok(()) => self.queue.forget(&key),
                // Gone, or another pod by now: the watch tells.
                Err(error) if error.is_not_found() || error.is_conflict() => self.queue.forget(&key),
                Err(error) => {
                    self.reports.failed();
                    say(&format!("pod {key} not reported: {}", chain(&error)));
                    self.queue.add_rate_limited(key.clone());
                }
            }
            self.queue.done(&key);
        }
    }

    async fn look_after(&self, worker: usize, key: &ObjectKey) -> Result<(), ClientError> {
        let now = self.cluster.clock.monotonic();
        let Some((object, node, times, address)) = self.pods.lock().get(key).map(|seen| {
            let times = (now.saturating_sub(seen.since), seen.deleted_since.map(|since| now.saturating_sub(since)));
            (Arc::clone(&seen.object), seen.node, times, seen.address)
        }) else {
            return Ok(());
        };
        // What the server sends is a pod; were it not, there would be nothing to do for it.
        let Ok(pod) = serde_json::from_slice::<status::Pod>(&object.json) else { return Ok(()) };
        let path = format!("/api/v1/namespaces/{}/pods/{}", key.namespace, key.name);
        let connection = self.cluster.connection(worker);
        match plan(&pod, &self.outcome(&pod, &object), times, self.stop_after) {
            Step::Nothing => {}
            Step::Wait(duration) => self.queue.add_after(key.clone(), duration),
            Step::Report(phase) => {
                let now = format!("{:.0}", self.cluster.clock.now());
                let body = status::pod(&pod, phase, node, address, &now).to_string();
                connection.patch(&format!("{path}/status"), status::STRATEGIC, body).await?;
                self.reports.done();
            }
            Step::Remove => {
                let options = json!({
                    "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                    "preconditions": {"uid": pod.metadata.uid},
                });
                connection.send(Method::DELETE, &path, options.to_string()).await?;
                self.reports.done();
            }
        }
        Ok(())
    }

    fn outcome(&self, pod: &status::Pod, object: &StoredObject) -> Outcome {
        self.rules.outcome(&Facts {
            annotation: pod.metadata.annotations.get(ANNOTATION).map(String::as_str),
            labels: &object.selection.labels,
            restarts_always: pod.spec.restart_policy == "Always",
        })
    }
}

/// What a pod needs: `alive` since it was seen, `deleted` since it was first seen being deleted.
fn plan(
    pod: &status::Pod,
    outcome: &Outcome,
    (alive, deleted): (Duration, Option<Duration>),
    stop_after: Duration,
) -> Step {
    if let Some(deleted) = deleted {
        let grace = Duration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
        let left = stop_after.min(grace).saturating_sub(deleted);
        return if left.is_zero() { Step::Remove } else { Step::Wait(left) };
    }
    match (pod.status.phase.as_str(), outcome.phase) {
        ("Succeeded" | "Failed", _) | ("Running", Phase::Running) => Step::Nothing,
        ("Running", phase) => match outcome.after.saturating_sub(alive) {
            Duration::ZERO => Step::Report(phase),
            left => Step::Wait(left),
        },
        _ => Step::Report(Phase::Running),
    }
}

impl Agent {
    fn see(&self, object: Arc<StoredObject>, known: Option<Seen>) -> Option<Seen> {
        let node_name = selected(&object, "spec.nodeName");
        let node = self.shape.index(node_name, self.count)?;
        let now = self.cluster.clock.monotonic();
        let is_deleted = memchr::memmem::find(&object.json, b"\"deletionTimestamp\":\"").is_some();
        let known = known.filter(|known| known.object.selection.uid == object.selection.uid);
        let (since, deleted_since, address) = match known {
            Some(known) => (known.since, known.deleted_since, known.address),
            None => (now, None, self.addresses.fetch_add(1, Ordering::Relaxed)),
        };
        Some(Seen { object, node, since, deleted_since: deleted_since.or(is_deleted.then_some(now)), address })
    }
}

impl Sink for Agent {
    fn replace(&self, objects: BTreeMap<ObjectKey, Arc<StoredObject>>) {
        let mut pods = self.pods.lock();
        let mut old = std::mem::take(&mut *pods);
        for (key, object) in objects {
            if let Some(seen) = self.see(object, old.remove(&key)) {
                pods.insert(key.clone(), seen);
                self.queue.add(key);
            }
        }
    }

    fn upsert(&self, object: Arc<StoredObject>) {
        let key = object.key.clone();
        let mut pods = self.pods.lock();
        let known = pods.remove(&key);
        if let Some(seen) = self.see(object, known) {
            pods.insert(key.clone(), seen);
            self.queue.add(key);
        }
    }

    fn remove(&self, last: Arc<StoredObject>) {
        self.pods.lock().remove(&last.key);
    }
}

/// A selectable field of a pod, empty if the table does not have it.
fn selected<'a>(object: &'a StoredObject, label: &str) -> &'a str {
    let Some(resource) = rkube_api::resource_of::<PodKind>() else { return "" };
    let at = resource.selectable_fields.iter().position(|field| field.label == label);
    at.and_then(|at| object.selection.fields.get(at)).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: (Duration, Option<Duration>) = (Duration::ZERO, None);

    fn pod(phase: &str, grace: Option<u64>) -> status::Pod {
        let value = json!({"metadata": {"deletionGracePeriodSeconds": grace}, "status": {"phase": phase}});
        serde_json::from_value(value).unwrap()
    }

    fn step(phase: &str, outcome: &str, alive: u64) -> Step {
        let times = (Duration::from_secs(alive), None);
        plan(&pod(phase, None), &outcome.parse().unwrap(), times, Duration::ZERO)
    }

    #[test]
    fn a_pod_runs_before_it_ends_and_ends_once() {
        assert_eq!(step("Pending", "Failed@3", 9), Step::Report(Phase::Running));
        assert_eq!(step("Running", "Failed@3", 1), Step::Wait(Duration::from_secs(2)));
        assert_eq!(step("Running", "Failed@3", 3), Step::Report(Phase::Failed));
        assert_eq!(step("Failed", "Succeeded", 9), Step::Nothing);
        assert_eq!(step("Running", "Running", 9), Step::Nothing);
    }

    #[test]
    fn a_deleted_pod_stops_within_its_grace() {
        let outcome = "Running".parse().unwrap();
        let stop = |grace, deleted, stop_after| {
            let times = (NOW.0, Some(Duration::from_secs(deleted)));
            plan(&pod("Running", grace), &outcome, times, Duration::from_secs(stop_after))
        };
        assert_eq!(stop(Some(30), 0, 0), Step::Remove);
        assert_eq!(stop(Some(30), 1, 5), Step::Wait(Duration::from_secs(4)));
        assert_eq!(stop(Some(2), 2, 5), Step::Remove);
        assert_eq!(stop(None, 0, 5), Step::Remove);
    }
}
