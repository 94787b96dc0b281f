//! Lets pods in one at a time, or refuses them; makes room for critical ones.
//!
//! Behaves as HandlePodAdditions and rejectPod in pkg/kubelet/kubelet.go, v1.36.
//!
//! Differs from upstream: after a restart of the kubelet a pod that runs is not asked again. It holds its part of the
//! node, and ending it would help nobody.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{Node, Pod};
use tokio_util::sync::CancellationToken;

use crate::admission::{self, Decision, NodeView, Refusal};
use crate::events::Type;
use crate::kubelet::Inner;
use crate::kubelet::pod_sync::End;
use crate::kubelet::workers::Worker;
use crate::pod::PodExt;
use crate::runtime::state::RuntimePod;
use crate::status::Verdict;
use crate::worker::{Input, Phase};

const PREEMPTED: &str = "Preempting";
const PREEMPTED_MESSAGE: &str = "Preempted in order to admit critical pod";

impl Inner {
    /// Lets the pod of a worker in, with what it was given if that is known, or says how its sync ends.
    pub(super) async fn let_in(
        &self,
        worker: &Worker,
        pod: &Arc<Pod>,
        current: &RuntimePod,
        cancel: &CancellationToken,
    ) -> Result<(), End> {
        let preempted = {
            let _one_at_a_time = self.admission.lock().await;
            // One that was let in by the kubelet before this one is not asked again.
            let is_known = current.is_active() || !current.containers.is_empty();
            let preempted = match is_known {
                true => vec![],
                false => self.decide(pod).await.map_err(|refusal| self.refuse(pod, &refusal))?,
            };
            self.allocate_first(pod);
            worker.set_admitted();
            preempted
        };
        // It may ask for more than it has, and may have changed meanwhile.
        self.consider_resize(worker);
        let ending = preempted.iter().filter_map(|other| self.preempt(other));
        let ended = futures_util::future::join_all(ending.map(|worker| async move { worker.finished().await }));
        tokio::select! {
            _ = ended => Ok(()),
            () = cancel.cancelled() => Err(End::Retry),
        }
    }

    /// The pods that have to go for this one.
    pub(super) async fn decide(&self, pod: &Arc<Pod>) -> Result<Vec<Arc<Pod>>, Refusal> {
        let others = self.others(pod);
        let seen = self.node.seen();
        match self.ask(&seen, pod, &others) {
            Decision::Admitted => Ok(vec![]),
            Decision::Preempts(pods) => Ok(pods),
            Decision::Refused(refusal) if admission::depends_on_labels(&refusal) => {
                // A label may have been set just before the pod came.
                let Ok(fresh) = self.client.all::<Node>().get(&self.config.node_name).await else {
                    return Err(refusal);
                };
                match self.ask(&fresh, pod, &others) {
                    Decision::Admitted => Ok(vec![]),
                    Decision::Preempts(pods) => Ok(pods),
                    Decision::Refused(refusal) => Err(refusal),
                }
            }
            Decision::Refused(refusal) => Err(refusal),
        }
    }

    fn ask(&self, node: &Node, pod: &Arc<Pod>, others: &[Arc<Pod>]) -> Decision {
        let view = NodeView {
            node,
            pods_max: self.config.pods_max,
            pressure: &self.node.pressure(),
            is_shutting_down: self.node.is_shutting_down(),
            allowed_unsafe_sysctls: &self.config.allowed_unsafe_sysctls,
            apparmor_enabled: self.runtime.settings.apparmor_enabled,
        };
        admission::admit(&view, pod, others)
    }

    fn refuse(&self, pod: &Pod, refusal: &Refusal) -> End {
        tracing::info!(reason = refusal.reason, message = refusal.message, "Refused pod");
        self.events.pod(pod, Type::Warning, &refusal.reason, &refusal.message);
        End::Next(Input::Refused { verdict: Verdict::refusal(refusal) })
    }

    pub(super) fn preempt(&self, pod: &Arc<Pod>) -> Option<Arc<Worker>> {
        let worker = self.workers.get(&pod.uid())?;
        tracing::info!(pod = %pod.key(), "Ending pod for a critical one");
        self.events.pod(pod, Type::Warning, PREEMPTED, PREEMPTED_MESSAGE);
        let verdict = Verdict {
            disruption_message: Some("Pod was preempted by Kubelet to accommodate a critical pod.".to_owned()),
            ..Verdict::disruption(PREEMPTED, PREEMPTED_MESSAGE)
        };
        let grace_seconds = pod.pod_spec().termination_grace_period_seconds;
        worker.apply(Input::Evicted { verdict, grace_seconds });
        Some(worker)
    }

    /// Pods that take part of the node already: let in, and not yet gone.
    fn others(&self, except: &Pod) -> Vec<Arc<Pod>> {
        let uid = except.uid();
        let holds = |worker: &&Arc<Worker>| {
            worker.uid != uid
                && matches!(worker.phase(), Phase::Syncing | Phase::Terminating)
                && (worker.is_admitted() || self.cache.get(&worker.uid).is_some_and(|pod| pod.is_active()))
        };
        self.workers.all().iter().filter(holds).map(|worker| self.allocated(worker)).collect()
    }
}
