//! What pods without a node are told: the `PodScheduled` condition and the node they were promised.
//!
//! In: a report per failed attempt. Out: patches, by a few workers. A newer report about a pod replaces one that
//! is not written yet, so that there is never more than one per pod.
//! Behaves as pkg/scheduler/schedule_one.go (`updatePod`), v1.36.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use rkube_api::k8s::core::v1::{Pod, PodCondition};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::time::whole_seconds;
use rkube_client::{Client, Patch};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::warn;

use crate::model::pod::PodInfo;

/// Writes at once.
pub(crate) const WORKERS: usize = 8;

/// What a pod is to be told.
pub(crate) struct Report {
    pub(crate) info: Arc<PodInfo>,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// The promised node, or empty to take a promise back.
    pub(crate) nominated: Option<String>,
}

type Pending = (HashMap<Arc<str>, Report>, VecDeque<Arc<str>>);

/// Reports to be written.
#[derive(Default)]
pub(crate) struct Reports {
    /// By uid, and in the order they came.
    queue: Mutex<Pending>,
    added: Notify,
}

impl Reports {
    pub(crate) fn add(&self, mut report: Report) {
        let uid = Arc::clone(&report.info.uid);
        let mut queue = self.queue.lock();
        match queue.0.remove(&uid) {
            Some(older) => report.nominated = report.nominated.or(older.nominated),
            None => queue.1.push_back(Arc::clone(&uid)),
        }
        queue.0.insert(uid, report);
        drop(queue);
        self.added.notify_one();
    }

    async fn next(&self) -> Report {
        loop {
            let added = self.added.notified();
            {
                let mut queue = self.queue.lock();
                let (reports, order) = &mut *queue;
                if let Some(report) = order.pop_front().and_then(|uid| reports.remove(&uid)) {
                    if !order.is_empty() {
                        self.added.notify_one();
                    }
                    return report;
                }
            }
            added.await;
        }
    }

    /// Writes reports, one after the other, for ever.
    pub(crate) async fn work(&self, client: &Client) {
        loop {
            let report = self.next().await;
            let Some(patch) = patch_for(&report, client) else { continue };
            let key = &report.info.key;
            let api = client.namespaced::<Pod>(&key.namespace);
            match api.patch_status(&key.name, &Patch::Strategic(patch)).await {
                Ok(_) => {}
                // The pod is gone, or another of its name has come.
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => warn!(pod = %key, error = %chain(&error), "Could not update pod status"),
            }
        }
    }
}

/// The patch, or nothing if the pod was told already.
fn patch_for(report: &Report, client: &Client) -> Option<Value> {
    let status = report.info.pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let old: Option<&PodCondition> = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
    let generation = report.info.pod.metadata.generation;
    let same = old.is_some_and(|old| {
        old.status == "False"
            && old.reason.as_deref() == Some(report.reason)
            && old.message.as_deref() == Some(report.message.as_str())
            && old.observed_generation == generation
    });
    let nominated =
        report.nominated.as_deref().filter(|node| *node != report.info.nominated_node().unwrap_or_default());
    if same && nominated.is_none() {
        return None;
    }
    let mut patch = json!({"metadata": {"uid": &*report.info.uid}, "status": {}});
    if !same {
        let transition = old.filter(|old| old.status == "False").and_then(|old| old.last_transition_time.clone());
        let transition = transition.map_or_else(|| whole_seconds(client.clock().now()), |time| time.0);
        let mut condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": report.reason,
            "message": report.message,
            "lastTransitionTime": transition.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        if let Some(generation) = generation {
            condition["observedGeneration"] = generation.into();
        }
        patch["status"]["conditions"] = json!([condition]);
    }
    if let Some(nominated) = nominated {
        patch["status"]["nominatedNodeName"] = if nominated.is_empty() { Value::Null } else { nominated.into() };
    }
    Some(patch)
}
