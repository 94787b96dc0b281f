//! Follows the pods of a namespace by watch, counts them by what has become of them, and notes when each was bound.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use parking_lot::Mutex;
use rkube_api::StoredObject;
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::task;
use rkube_client::client::resource_of;
use rkube_client::reflector::{self, Scope, Sink};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug_span;

use crate::cluster::Cluster;
use crate::progress::Ticker;

/// Pods by state. A pod counts in every state it has reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) present: usize,
    pub(crate) bound: usize,
    pub(crate) running: usize,
    /// Told that there is no node for them.
    pub(crate) refused: usize,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    spec: Spec,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    conditions: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

impl Status {
    fn is_refused(&self) -> bool {
        self.conditions.iter().any(|condition| condition.r#type == "PodScheduled" && condition.status == "False")
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Reached {
    bound: bool,
    running: bool,
    refused: bool,
}

impl Counts {
    fn count(&mut self, pod: Reached) {
        self.present += 1;
        self.bound += usize::from(pod.bound);
        self.running += usize::from(pod.running);
        self.refused += usize::from(pod.refused);
    }

    fn discount(&mut self, pod: Reached) {
        self.present -= 1;
        self.bound -= usize::from(pod.bound);
        self.running -= usize::from(pod.running);
        self.refused -= usize::from(pod.refused);
    }
}

/// The pods of one namespace, as they change. Ends with its last handle.
pub(crate) struct Tracker {
    shared: Arc<Shared>,
    counts: watch::Receiver<Counts>,
    clock: SharedClock,
    stop: CancellationToken,
}

struct Shared {
    pods: Mutex<HashMap<ObjectKey, Reached>>,
    bound_at: Mutex<HashMap<String, Duration>>,
    counts: watch::Sender<Counts>,
    clock: SharedClock,
    bound: Ticker,
}

impl Tracker {
    /// Starts to watch. `label_selector` may be empty; `bound` counts pods as they get their node.
    pub(crate) fn start(cluster: &Cluster, namespace: &str, label_selector: &str, bound: Ticker) -> Self {
        let stop = CancellationToken::new();
        let (sender, counts) = watch::channel(Counts::default());
        let shared = Arc::new(Shared {
            pods: Mutex::default(),
            bound_at: Mutex::default(),
            counts: sender,
            clock: cluster.clock.clone(),
            bound,
        });
        let scope = Scope {
            resource: resource_of::<Pod>(),
            namespace: namespace.to_owned(),
            label_selector: label_selector.to_owned(),
            field_selector: String::new(),
        };
        let sink: Arc<dyn Sink> = Arc::clone(&shared) as _;
        task::spawn(debug_span!("tracker"), reflector::run(cluster.client(0), scope, sink, stop.clone()));
        Self { shared, counts, clock: cluster.clock.clone(), stop }
    }

    /// Waits until `enough`; says how far it came when it takes longer than `timeout`.
    pub(crate) async fn wait(&self, what: &str, timeout: Duration, enough: impl Fn(&Counts) -> bool) -> Result<()> {
        let mut counts = self.counts.clone();
        tokio::select! {
            // The sender lives in `self`.
            _ = counts.wait_for(|counts| enough(counts)) => Ok(()),
            () = self.clock.sleep(timeout) => {
                let Counts { present, bound, running, refused } = *self.counts.borrow();
                bail!(
                    "{what} took longer than {} s: {present} pods, {bound} bound, {running} running, {refused} refused",
                    timeout.as_secs(),
                )
            }
        }
    }

    /// When each pod was seen bound, by name.
    pub(crate) fn bound_at(&self) -> HashMap<String, Duration> {
        self.shared.bound_at.lock().clone()
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    fn see(&self, object: &StoredObject) {
        let head: Head = serde_json::from_slice(&object.json).unwrap_or_default();
        let now = Reached {
            bound: !head.spec.node_name.is_empty(),
            running: head.status.phase == "Running",
            refused: head.status.is_refused(),
        };
        let before = self.pods.lock().insert(object.key.clone(), now);
        if before == Some(now) {
            return;
        }
        if now.bound && !before.is_some_and(|before| before.bound) {
            self.bound_at.lock().insert(object.key.name.to_string(), self.clock.monotonic());
            self.bound.done();
        }
        self.counts.send_modify(|counts| {
            if let Some(before) = before {
                counts.discount(before);
            }
            counts.count(now);
        });
    }
}

impl Sink for Shared {
    fn replace(&self, objects: BTreeMap<ObjectKey, Arc<StoredObject>>) {
        self.pods.lock().clear();
        self.counts.send_replace(Counts::default());
        for object in objects.values() {
            self.see(object);
        }
    }

    fn upsert(&self, object: Arc<StoredObject>) {
        self.see(&object);
    }

    fn remove(&self, last: Arc<StoredObject>) {
        if let Some(before) = self.pods.lock().remove(&last.key) {
            self.counts.send_modify(|counts| counts.discount(before));
        }
    }
}
