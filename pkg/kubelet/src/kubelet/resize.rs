//! Lets resizes of running pods in, in their order, and tells how far they came.
//!
//! A pod whose spec asks for other resources than it was given is queued; one task asks admission for each, as it does
//! for new pods. One that finds no room waits until something ends, shrinks, or a while has passed.
//! Behaves as pkg/kubelet/allocation/allocation_manager.go and HandlePodUpdates in pkg/kubelet/kubelet.go, v1.36.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::k8s::core::v1::{Pod, PodCondition};
use tokio::sync::Notify;

use crate::allocation::conditions::ResizeConditions;
use crate::allocation::{Pending, event_message, grows, order};
use crate::cm::{Limits, pod_limits};
use crate::events::Type;
use crate::kubelet::Inner;
use crate::kubelet::workers::Worker;
use crate::pod::{PodExt, PodUid};
use crate::runtime::resources::ContainerResources;
use crate::runtime::state::RuntimePod;
use crate::worker::Phase;

/// Upstream's, before all pods are known and after.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(180);

#[derive(Default)]
pub(crate) struct Resizes {
    pending: Mutex<HashSet<PodUid>>,
    told: Mutex<HashMap<PodUid, ResizeConditions>>,
    wake: Notify,
}

impl Resizes {
    /// There may be room now.
    pub(crate) fn retry(&self) {
        if !self.pending.lock().is_empty() {
            self.wake.notify_one();
        }
    }

    /// What a pod's status says of its resize.
    pub(crate) fn conditions(&self, uid: &PodUid) -> Vec<PodCondition> {
        self.told.lock().get(uid).map(ResizeConditions::list).unwrap_or_default()
    }

    pub(crate) fn retain(&self, is_known: impl Fn(&PodUid) -> bool) {
        self.told.lock().retain(|uid, _| is_known(uid));
        self.pending.lock().retain(|uid| is_known(uid));
    }

    fn edit<R>(&self, uid: &PodUid, change: impl FnOnce(&mut ResizeConditions) -> R) -> R {
        change(self.told.lock().entry(uid.clone()).or_default())
    }

    fn queue(&self, uid: PodUid) {
        self.pending.lock().insert(uid);
    }
}

impl Inner {
    /// A worker's pod with the resources it was given.
    pub(crate) fn allocated(&self, worker: &Worker) -> Arc<Pod> {
        self.allocations.apply(&worker.pod())
    }

    /// Gives a pod that was let in what it asks for, unless it was given something by an earlier life.
    pub(super) fn allocate_first(&self, pod: &Pod) {
        let uid = pod.uid();
        if let Some(status) = &pod.status {
            self.resizes.edit(&uid, |told| *told = ResizeConditions::of(status));
        }
        if self.allocations.allocated(&uid).is_none()
            && let Err(error) = self.allocations.allocate(pod)
        {
            tracing::warn!(%error, "Resources of the pod were not noted");
        }
    }

    /// The spec may ask for something else than the pod was given.
    pub(crate) fn consider_resize(&self, worker: &Worker) {
        if self.allocations.differs(&worker.pod()) {
            self.resizes.queue(worker.uid.clone());
            self.resizes.wake.notify_one();
        } else {
            // One that waited may have been taken back.
            self.resizes.edit(&worker.uid, ResizeConditions::clear_pending);
        }
    }

    pub(crate) async fn decide_resizes(self: Arc<Self>) {
        let mut delay = FIRST_RETRY;
        loop {
            let is_idle = self.resizes.pending.lock().is_empty();
            tokio::select! {
                () = self.resizes.wake.notified() => {}
                () = self.clock.sleep(delay), if !is_idle => {}
            }
            // Before, pods that are yet to come would lose the room they had.
            if !self.sources.all_are_ready() {
                delay = FIRST_RETRY;
                continue;
            }
            delay = RETRY;
            for pending in self.pending_resizes() {
                let Some(worker) = self.workers.get(&pending.uid) else { continue };
                if self.decide_resize(&worker).await {
                    self.resizes.queue(pending.uid);
                }
            }
        }
    }

    /// Takes the queue, in order. Pods that end do not need it any more.
    fn pending_resizes(&self) -> Vec<Pending> {
        let queue = std::mem::take(&mut *self.resizes.pending.lock());
        let workers = queue.into_iter().filter_map(|uid| self.workers.get(&uid));
        let alive = workers.filter(|worker| worker.phase() == Phase::Syncing && worker.is_admitted());
        let mut pending: Vec<Pending> = alive
            .map(|worker| {
                let pod = worker.pod();
                Pending {
                    uid: worker.uid.clone(),
                    grows: grows(&self.allocations.apply(&pod), &pod),
                    priority: pod.pod_spec().priority.unwrap_or(0),
                    qos: pod.qos(),
                    since: self.resizes.edit(&worker.uid, |told| told.deferred_since()),
                }
            })
            .collect();
        order(&mut pending);
        pending
    }

    /// Returns whether it has to wait.
    async fn decide_resize(&self, worker: &Arc<Worker>) -> bool {
        let _one_at_a_time = self.admission.lock().await;
        let pod = worker.pod();
        let (uid, generation, now) = (pod.uid(), pod.generation(), self.clock.now());
        if !self.allocations.differs(&pod) {
            self.consider_resize(worker);
            return false;
        }
        let before = self.resizes.conditions(&uid);
        let waits = match self.decide(&pod).await {
            Ok(preempted) => {
                if let Err(error) = self.allocations.allocate(&pod) {
                    tracing::warn!(pod = %worker.key, %error, "Resize was not noted");
                    return true;
                }
                // Their end is not awaited: until then nobody else is given their room.
                preempted.iter().for_each(|other| drop(self.preempt(other)));
                self.resizes.edit(&uid, |told| told.begin(generation, now));
                tracing::info!(pod = %worker.key, "Resize of the pod begins");
                let message = event_message("started", &pod, generation, "");
                self.events.pod(&pod, Type::Normal, "ResizeStarted", message);
                false
            }
            Err(refusal) => {
                if self.resizes.edit(&uid, |told| told.defer(&refusal.message, generation, now)) {
                    let message = event_message(&refusal.reason, &pod, generation, &refusal.message);
                    tracing::info!(pod = %worker.key, refusal.message, "Resize of the pod waits");
                    self.events.pod(&pod, Type::Warning, "ResizeDeferred", message);
                }
                true
            }
        };
        if !waits || before != self.resizes.conditions(&uid) {
            worker.wake.notify_one();
        }
        waits
    }

    /// Whether something of the pod has other resources than the pod was given.
    pub(super) fn is_resizing(&self, pod: &Pod, current: &RuntimePod) -> bool {
        let uid = pod.uid();
        let spec = pod.pod_spec();
        let mut resizable = crate::pod::init_containers(spec).iter().chain(&spec.containers);
        let differs = |container: &rkube_api::k8s::core::v1::Container| {
            let mut running = current.running().filter(|running| running.name == container.name);
            let actuated = running.next().and_then(|running| self.allocations.actuated(&uid, &running.id));
            actuated.is_some_and(|actuated| actuated != ContainerResources::of(pod, container))
        };
        resizable.any(differs) || self.allocations.limits(&uid).is_some_and(|limits| limits != self.limits_of(pod))
    }

    pub(super) fn limits_of(&self, pod: &Pod) -> Limits {
        pod_limits(pod, self.cgroups.pids_max)
    }

    /// Says that a resize is under way, or that it is done.
    pub(super) fn note_resize(&self, pod: &Pod, current: &RuntimePod) {
        let uid = pod.uid();
        if self.is_resizing(pod, current) {
            self.resizes.edit(&uid, |told| told.go_on(pod.generation(), self.clock.now()));
        } else if let Some(generation) = self.resizes.edit(&uid, ResizeConditions::complete) {
            let message = event_message("completed", pod, generation, "");
            self.events.pod(pod, Type::Normal, "ResizeCompleted", message);
            // What it gave back may be what another waits for.
            self.resizes.retry();
        }
    }

    pub(super) fn note_resize_error(&self, pod: &Pod, error: &str) {
        let told = self.resizes.edit(&pod.uid(), |told| told.fail(error, pod.generation(), self.clock.now()));
        if let Some(generation) = told {
            self.events.pod(pod, Type::Warning, "ResizeError", event_message("error", pod, generation, error));
        }
    }
}
