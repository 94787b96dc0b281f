//! Gets pod statuses to the API server, each change once, and finishes graceful deletions.
//!
//! [`StatusManager::set`] stores and wakes the writer; the writer sends what the server has not seen yet.
//! A status that could not be sent is sent again, its latest version only: while the server is away
//! nothing piles up.
//! Behaves as pkg/kubelet/status/status_manager.go, v1.36.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Pod, PodStatus};
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::clock::SharedClock;
use rkube_client::Client;
use rkube_client::api::{DeleteOptions, Preconditions};
use rkube_client::transport::ClientError;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::allocation::conditions::{IN_PROGRESS, PENDING};
use crate::pod::{PodExt, PodUid};
use crate::status::{conditions, is_terminal_phase};

/// Before a status that could not be sent is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Statuses sent at a time. The server sees a burst of pods start as such, not one after another.
const PARALLEL_MAX: usize = 8;
const CONFLICT_RETRIES_MAX: usize = 5;

/// What the manager asks others.
pub trait PodLookup: Send + Sync + 'static {
    /// The pod the API server knows for this UID: itself, or the mirror of a static pod.
    fn api_pod(&self, uid: &PodUid) -> Option<Arc<Pod>>;
    /// Whether nothing of the pod is left on the node.
    fn is_finished(&self, uid: &PodUid) -> bool;
    /// Whether a container of it may still run.
    fn could_have_running_containers(&self, uid: &PodUid) -> bool;
}

struct Held {
    status: PodStatus,
    version: u64,
    sent: u64,
    /// The object it was written to: a static pod's mirror may be another one by now.
    sent_to: Option<PodUid>,
    /// The object's version with this status in it. In a newer one somebody else may have written over it, such as
    /// the controller that takes a silent node for dead.
    sent_at: u64,
}

pub struct StatusManager {
    client: Client,
    clock: SharedClock,
    held: Mutex<HashMap<PodUid, Held>>,
    /// Pods whose deletion may be finished.
    dirty: Mutex<HashSet<PodUid>>,
    wake: Notify,
    /// Whether something is still to be written.
    busy: watch::Sender<bool>,
}

impl StatusManager {
    pub fn new(client: Client, clock: SharedClock) -> Self {
        Self {
            client,
            clock,
            held: Mutex::default(),
            dirty: Mutex::default(),
            wake: Notify::new(),
            busy: watch::channel(false).0,
        }
    }

    /// The last status generated here.
    pub fn get(&self, uid: &PodUid) -> Option<PodStatus> {
        self.held.lock().get(uid).map(|held| held.status.clone())
    }

    /// Takes a new status. One that changes nothing is not sent.
    pub fn set(&self, pod: &Pod, mut status: PodStatus) {
        let uid = pod.uid();
        let mut held = self.held.lock();
        let old = match held.get(&uid) {
            Some(held) => held.status.clone(),
            None => pod.status.clone().unwrap_or_default(),
        };
        set_transition_times(&mut status, &old, Time(rkube_apimachinery::time::whole_seconds(self.clock.now())));
        match held.get_mut(&uid) {
            Some(entry) if entry.status == status => return,
            Some(entry) => {
                entry.status = status;
                entry.version += 1;
            }
            None => drop(held.insert(uid.clone(), Held { status, version: 1, sent: 0, sent_to: None, sent_at: 0 })),
        }
        drop(held);
        self.touch(&uid);
    }

    /// Looks at a pod again: its worker is done, or the API changed its object.
    pub fn touch(&self, uid: &PodUid) {
        self.dirty.lock().insert(uid.clone());
        self.busy.send_replace(true);
        self.wake.notify_one();
    }

    /// Waits until all that was handed over is written, for at most as long as a write is tried again in.
    pub async fn flushed(&self) {
        let mut busy = self.busy.subscribe();
        tokio::select! {
            // The sender lives in `self`.
            _ = busy.wait_for(|busy| !*busy) => {}
            () = self.clock.sleep(RETRY) => tracing::warn!("Statuses were not written in time"),
        }
    }

    /// Drops what is held of pods that are gone.
    pub fn retain(&self, keep: impl Fn(&PodUid) -> bool) {
        self.held.lock().retain(|uid, _| keep(uid));
    }

    pub async fn run(self: Arc<Self>, lookup: Arc<dyn PodLookup>, shutdown: CancellationToken) {
        use futures_util::StreamExt;
        loop {
            let dirty = std::mem::take(&mut *self.dirty.lock());
            let work = dirty.into_iter().map(|uid| async {
                let done = self.sync(&uid, &*lookup).await;
                (uid, done)
            });
            let failed: Vec<PodUid> = futures_util::stream::iter(work)
                .buffer_unordered(PARALLEL_MAX)
                .filter_map(|(uid, done)| async move {
                    let error = done.err()?;
                    tracing::warn!(%uid, error = %rkube_apimachinery::chain::chain(&error), "Pod status was not written");
                    Some(uid)
                })
                .collect()
                .await;
            let is_idle = failed.is_empty() && self.dirty.lock().is_empty();
            self.busy.send_if_modified(|busy| std::mem::replace(busy, !is_idle) == is_idle);
            let retry = if failed.is_empty() { None } else { Some(self.clock.sleep(RETRY)) };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => {}
                () = async { match retry { Some(retry) => retry.await, None => std::future::pending().await } } => {}
            }
            self.dirty.lock().extend(failed);
        }
    }

    async fn sync(&self, uid: &PodUid, lookup: &dyn PodLookup) -> Result<(), ClientError> {
        let Some(pod) = lookup.api_pod(uid) else { return Ok(()) };
        let pending = {
            let held = self.held.lock();
            let owed = |held: &&Held| {
                held.sent < held.version || held.sent_to.as_ref() != Some(&pod.uid()) || held.sent_at < version_of(&pod)
            };
            held.get(uid).filter(owed).map(|held| (held.status.clone(), held.version))
        };
        if let Some((status, version)) = pending {
            let may_run = lookup.could_have_running_containers(uid);
            let sent_at = match self.write(&pod, &status, may_run).await {
                Ok(sent_at) => sent_at,
                // Somebody removed it, or another pod took its name.
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
            };
            // A phase that was withheld is owed: the worker touches the pod when its containers are stopped.
            let owes_phase = may_run && is_terminal_phase(status.phase.as_deref().unwrap_or_default());
            if !owes_phase && let Some(held) = self.held.lock().get_mut(uid) {
                held.sent = held.sent.max(version);
                held.sent_to = Some(pod.uid());
                held.sent_at = held.sent_at.max(sent_at);
            }
        }
        self.finish_deletion(uid, &pod, lookup).await
    }

    /// Returns the version of the object that has the status.
    async fn write(&self, pod: &Pod, status: &PodStatus, may_run: bool) -> Result<u64, ClientError> {
        let api = self.client.namespaced::<Pod>(pod.namespace());
        let mut base = pod.clone();
        // Labels that changed meanwhile are refused as an attempt to change them back, before versions are
        // compared: once, it may be that.
        let mut refused = false;
        for _ in 0..CONFLICT_RETRIES_MAX {
            let old = base.status.clone().unwrap_or_default();
            let merged = merge(&old, status, may_run);
            if merged == old {
                return Ok(version_of(&base));
            }
            base.status = Some(merged);
            match api.update_status(&base).await {
                Ok(written) => return Ok(version_of(&written)),
                Err(error) if error.is_conflict() || (error.is_forbidden() && !refused) => {
                    refused |= error.is_forbidden();
                    let fresh = api.get(pod.name()).await?;
                    if fresh.metadata.uid != pod.metadata.uid {
                        return Ok(version_of(pod));
                    }
                    base = fresh;
                }
                Err(error) => return Err(error),
            }
        }
        // Its next change will carry this one.
        Ok(version_of(pod))
    }

    /// Deletes the API object of a pod that was to be deleted and of which nothing is left here.
    async fn finish_deletion(&self, uid: &PodUid, pod: &Pod, lookup: &dyn PodLookup) -> Result<(), ClientError> {
        if !pod.is_terminating() || pod.is_mirror() || !lookup.is_finished(uid) {
            return Ok(());
        }
        // Told already: it goes with its last finalizer.
        let has_finalizers = pod.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
        if has_finalizers && pod.metadata.deletion_grace_period_seconds == Some(0) {
            return Ok(());
        }
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() }),
            ..DeleteOptions::default()
        };
        match self.client.namespaced::<Pod>(pod.namespace()).delete(pod.name(), &options).await {
            Ok(()) => {
                tracing::info!(pod = %pod.key(), %uid, "Deleted pod");
                self.held.lock().remove(uid);
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Versions of one object can be compared.
fn version_of(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// A condition keeps its time while its status stays.
fn set_transition_times(status: &mut PodStatus, old: &PodStatus, now: Time) {
    for condition in status.conditions.iter_mut().flatten() {
        let before = old.conditions.iter().flatten().find(|before| before.type_ == condition.type_);
        // Resizes know their time, which changes with the reason.
        let is_resize = [PENDING, IN_PROGRESS].contains(&condition.type_.as_str());
        let has_time = is_resize || !conditions::OWNED.contains(&condition.type_.as_str());
        if has_time && let Some(time) = &mut condition.last_transition_time {
            *time = Time(rkube_apimachinery::time::whole_seconds(time.0));
            continue;
        }
        condition.last_transition_time = match before {
            Some(before) if before.status == condition.status && before.last_transition_time.is_some() => {
                before.last_transition_time.clone()
            }
            _ => Some(now.clone()),
        };
    }
}

/// The status to write over the API's: others' conditions stay as they are there, and a pod does not end
/// before its containers have.
fn merge(old: &PodStatus, new: &PodStatus, may_run: bool) -> PodStatus {
    let mut merged = new.clone();
    let owned = |kind: &str| conditions::OWNED.contains(&kind) || kind == "DisruptionTarget";
    let mut list: Vec<_> =
        old.conditions.iter().flatten().filter(|condition| !owned(&condition.type_)).cloned().collect();
    list.extend(new.conditions.iter().flatten().filter(|condition| owned(&condition.type_)).cloned());
    let old_phase = old.phase.as_deref().unwrap_or_default();
    let new_phase = new.phase.as_deref().unwrap_or_default();
    if is_terminal_phase(new_phase) && !is_terminal_phase(old_phase) && may_run {
        merged.phase.clone_from(&old.phase);
        merged.reason.clone_from(&old.reason);
        merged.message.clone_from(&old.message);
    }
    if old.start_time.is_some() {
        merged.start_time.clone_from(&old.start_time);
    }
    merged.conditions = Some(list);
    merged.resource_claim_statuses.clone_from(&old.resource_claim_statuses);
    merged.extended_resource_claim_status.clone_from(&old.extended_resource_claim_status);
    merged.nominated_node_name.clone_from(&old.nominated_node_name);
    // What the server would store: a round trip through its form drops sub-second times.
    let pod = Pod { status: Some(merged.clone()), ..Pod::default() };
    Pod::from_value(pod.to_value()).ok().and_then(|pod| pod.status).unwrap_or(merged)
}

#[cfg(test)]
mod tests {
    use rkube_api::k8s::core::v1::PodCondition;

    use super::*;

    fn status(phase: &str, conditions: &[(&str, &str)]) -> PodStatus {
        let condition = |(kind, status): &(&str, &str)| PodCondition {
            type_: (*kind).to_owned(),
            status: (*status).to_owned(),
            ..PodCondition::default()
        };
        PodStatus {
            phase: Some(phase.to_owned()),
            conditions: Some(conditions.iter().map(condition).collect()),
            ..PodStatus::default()
        }
    }

    fn text(status: &PodStatus) -> String {
        let conditions: Vec<String> =
            status.conditions.iter().flatten().map(|c| format!("{}={}", c.type_, c.status)).collect();
        format!("{} {}", status.phase.as_deref().unwrap_or_default(), conditions.join(" "))
    }

    #[test]
    fn others_conditions_are_theirs() {
        let old = status("Running", &[("mine.io/gate", "True"), ("Ready", "False")]);
        let new = status("Running", &[("mine.io/gate", "False"), ("Ready", "True")]);
        assert_eq!(text(&merge(&old, &new, true)), "Running mine.io/gate=True Ready=True");
    }

    #[test]
    fn a_pod_does_not_end_before_its_containers() {
        let (old, new) = (status("Running", &[]), status("Failed", &[]));
        assert_eq!(text(&merge(&old, &new, true)), "Running ");
        assert_eq!(text(&merge(&old, &new, false)), "Failed ");
    }
}
