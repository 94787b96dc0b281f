//! One task per pod, which alone acts for that pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use rkube_api::k8s::core::v1::{Pod, PodStatus};
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::task;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::info_span;

use crate::kubelet::Inner;
use crate::pod::{PodExt, PodUid};
use crate::runtime::sync::Waiting;
use crate::worker::{Input, Lifecycle, Phase};

/// A pod's worker as others see it.
pub struct Worker {
    pub uid: PodUid,
    pub key: ObjectKey,
    pub is_static: bool,
    pub(crate) life: Mutex<Lifecycle>,
    /// The newest object.
    pod: RwLock<Arc<Pod>>,
    pub(crate) wake: Notify,
    /// Cancelled when the work under way is for a life that is over.
    interrupt: Mutex<CancellationToken>,
    /// Why containers wait, as of the last sync.
    pub(crate) waiting: Mutex<Vec<Waiting>>,
    /// Cancelled when nothing of the pod is left on the node.
    finished: CancellationToken,
    /// Whether it was let in, so that its part of the node is taken though nothing of it runs yet.
    admitted: AtomicBool,
}

impl Worker {
    pub fn pod(&self) -> Arc<Pod> {
        self.pod.read().clone()
    }

    pub fn phase(&self) -> Phase {
        self.life.lock().phase()
    }

    pub(crate) fn set_pod(&self, pod: Arc<Pod>) {
        *self.pod.write() = pod;
    }

    pub(crate) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }

    pub(crate) fn set_admitted(&self) {
        self.admitted.store(true, Ordering::Release);
    }

    /// A fresh token for the next piece of work.
    pub(crate) fn begin(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *self.interrupt.lock() = token.clone();
        token
    }

    /// Waits until nothing of the pod is left on the node.
    pub(crate) async fn finished(&self) {
        self.finished.cancelled().await;
    }

    pub(crate) fn apply(&self, input: Input) {
        let (interrupts, phase) = {
            let mut life = self.life.lock();
            (life.apply(input), life.phase())
        };
        if phase == Phase::Finished {
            self.finished.cancel();
        }
        if interrupts {
            self.interrupt.lock().cancel();
        }
        self.wake.notify_one();
    }
}

/// Upstream's least grace, for pods that nobody waits for.
const GRACE_OF_GONE_SECONDS: i64 = 1;

impl Worker {
    /// Ends a pod that is not wanted here any more. An object leaves the API when its pod has stopped, or when
    /// it is forced out; only the second reaches this, and then nobody grants the pod its grace period.
    pub(crate) fn remove(&self) {
        let grace_seconds = (!self.is_static).then_some(GRACE_OF_GONE_SECONDS);
        self.apply(Input::Removed { grace_seconds });
    }
}

#[derive(Default)]
pub struct Workers(Mutex<HashMap<PodUid, Arc<Worker>>>);

impl Workers {
    pub fn get(&self, uid: &PodUid) -> Option<Arc<Worker>> {
        self.0.lock().get(uid).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Worker>> {
        self.0.lock().values().cloned().collect()
    }

    pub(crate) fn wake(&self, uid: &PodUid) {
        if let Some(worker) = self.0.lock().get(uid) {
            worker.wake.notify_one();
        }
    }

    pub(crate) fn remove(&self, uid: &PodUid) {
        self.0.lock().remove(uid);
    }

    /// Ends all tasks where they are. Containers run on.
    pub(crate) fn stop_all(&self) {
        for worker in self.0.lock().values() {
            worker.interrupt.lock().cancel();
            worker.wake.notify_one();
        }
    }

    /// Another life of the same name that has not finished: two instances of a static pod never overlap.
    fn predecessor(&self, pod: &Pod) -> bool {
        let (uid, key) = (pod.uid(), pod.key());
        self.0.lock().values().any(|worker| worker.key == key && worker.uid != uid && worker.phase() != Phase::Finished)
    }
}

/// Whether anything changed that the worker acts on. The status the kubelet itself wrote comes back with
/// every write and is no news; conditions of others are.
fn differs(old: &Pod, new: &Pod) -> bool {
    let foreign = |pod: &Pod| -> Vec<_> {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.into_iter().filter(|condition| !crate::status::is_own_condition(&condition.type_)).collect()
    };
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.metadata.annotations != new.metadata.annotations
        || old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
        || old.metadata.deletion_grace_period_seconds != new.metadata.deletion_grace_period_seconds
        || old.phase() != new.phase() && crate::status::is_terminal_phase(new.phase())
        || foreign(old) != foreign(new)
}

impl Inner {
    /// Hands a pod's newest object to its worker, which is started if there is none.
    pub(crate) fn update_worker(self: &Arc<Self>, pod: &Arc<Pod>) {
        let uid = pod.uid();
        let worker = match self.workers.get(&uid) {
            Some(worker) => worker,
            None if pod.is_static() && self.workers.predecessor(pod) => return,
            None => self.start_worker(pod),
        };
        let changed = differs(&worker.pod(), pod);
        worker.set_pod(pod.clone());
        if changed {
            self.objects.invalidate(pod.namespace());
            if worker.is_admitted() {
                self.consider_resize(&worker);
            }
        }
        if pod.is_terminating() {
            worker.apply(Input::Deleted { grace_seconds: pod.grace_period_seconds() });
            // The object may be finished with already.
            self.statuses.touch(&uid);
        } else if changed {
            worker.wake.notify_one();
        }
    }

    /// Ends a pod whose object is gone, or that was found in the runtime without one.
    pub(crate) fn remove_worker_of(self: &Arc<Self>, pod: &Arc<Pod>) {
        let worker = self.workers.get(&pod.uid()).unwrap_or_else(|| self.start_worker(pod));
        worker.remove();
    }

    fn start_worker(self: &Arc<Self>, pod: &Arc<Pod>) -> Arc<Worker> {
        let worker = Arc::new(Worker {
            uid: pod.uid(),
            key: pod.key(),
            is_static: pod.is_static(),
            life: Mutex::default(),
            pod: RwLock::new(pod.clone()),
            wake: Notify::new(),
            interrupt: Mutex::default(),
            waiting: Mutex::default(),
            finished: CancellationToken::new(),
            admitted: AtomicBool::new(false),
        });
        self.workers.0.lock().insert(pod.uid(), worker.clone());
        let span = info_span!("pod", pod = %worker.key, uid = %worker.uid);
        task::spawn(span, self.tasks.track_future(self.clone().run_worker(worker.clone())));
        worker
    }

    /// The status to go on from: the last one generated, else the API's.
    pub(crate) fn old_status(&self, pod: &Pod) -> PodStatus {
        self.statuses.get(&pod.uid()).or_else(|| pod.status.clone()).unwrap_or_default()
    }
}
