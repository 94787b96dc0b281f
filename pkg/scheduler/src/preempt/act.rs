//! Carrying a preemption out: victims are marked, deleted and told; pods that lost their promise are told.
//!
//! Behaves as pkg/scheduler/framework/preemption/executor.go, v1.36.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::task;
use rkube_apimachinery::time::whole_seconds;
use rkube_client::events::reference_to;
use rkube_client::{ClientError, DeleteOptions, EventType, Patch};
use serde_json::json;
use tracing::{debug, info_span, warn};

use crate::metrics::metrics;
use crate::model::pod::PodInfo;
use crate::preempt::{PREEMPTED, Preemption};
use crate::queue::Queued;
use crate::scheduler::Scheduler;

/// Victims of one preemption that are written of at once; mostly there are few, but a large pod may displace
/// a hundred small ones.
const VICTIMS_MAX: usize = 4;

impl Scheduler {
    /// Beside the decisions; the preemptor comes back when its victims are gone.
    pub(crate) fn carry_out(self: &Arc<Self>, queued: Queued, preemption: Preemption) {
        metrics().preemption_victims.observe(preemption.victims.len() as f64);
        let scheduler = Arc::clone(self);
        let span = info_span!("preemption", component = "scheduler", pod = %queued.info.key);
        task::spawn(span, async move {
            // It is never closed.
            let _turn = scheduler.preemptions.acquire().await;
            if !scheduler.state.lock().still_wants(&queued.info.uid, &preemption.victims) {
                return;
            }
            let start = scheduler.now();
            for pod in &preemption.demoted {
                scheduler.clear_promise(pod).await;
            }
            let preempt = async |victim: Arc<PodInfo>| match scheduler.preempt(&queued, &preemption.node, &victim).await
            {
                Ok(()) => false,
                Err(error) => {
                    warn!(victim = %victim.key, error = %chain(&error), "Could not preempt a pod");
                    scheduler.state.lock().pardon(&victim.uid);
                    true
                }
            };
            let victims = preemption.victims.iter().filter(|victim| !victim.is_terminating()).cloned();
            let preempted: Vec<_> = victims.map(preempt).collect();
            let failed: Vec<bool> = stream::iter(preempted).buffer_unordered(VICTIMS_MAX).collect().await;
            let failed = failed.contains(&true);
            metrics().preempted(!failed, scheduler.now().saturating_sub(start));
            // After a failure no event may come that brings the preemptor back.
            if failed && scheduler.state.lock().activate(&queued.info.uid, scheduler.now()) {
                scheduler.wake.notify_one();
            }
        });
    }

    async fn clear_promise(&self, pod: &PodInfo) {
        let api = self.context.client.namespaced::<Pod>(pod.namespace());
        let patch = json!({"metadata": {"uid": &*pod.uid}, "status": {"nominatedNodeName": null}});
        if let Err(error) = api.patch_status(&pod.key.name, &Patch::Strategic(patch)).await {
            debug!(pod = %pod.key, error = %chain(&error), "Could not clear a nomination");
        }
        if self.state.lock().activate(&pod.uid, self.now()) {
            self.wake.notify_one();
        }
    }

    async fn preempt(&self, by: &Queued, node: &str, victim: &PodInfo) -> Result<(), ClientError> {
        let gone = |error: &ClientError| error.is_not_found() || error.is_conflict();
        let api = self.context.client.namespaced::<Pod>(victim.namespace());
        let mut condition = json!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": PREEMPTED,
            "message": format!("{}: preempting to accommodate a higher priority pod", self.profile_name(by)),
            "lastTransitionTime": whole_seconds(self.context.clock.now()).strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        if let Some(generation) = victim.pod.metadata.generation {
            condition["observedGeneration"] = generation.into();
        }
        let patch = json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [condition]}});
        match api.patch_status(&victim.key.name, &Patch::Strategic(patch)).await {
            Err(error) if gone(&error) => return Ok(()),
            result => drop(result?),
        }
        match api.delete(&victim.key.name, &DeleteOptions::uid(&victim.uid)).await {
            Err(error) if gone(&error) => return Ok(()),
            result => result?,
        }
        let note = format!("Preempted by pod {} on node {node}", by.info.uid);
        let (about, related) = (reference_to(victim.pod.as_ref()), reference_to(by.info.pod.as_ref()));
        let recorder = self.context.recorder.for_component(self.profile_name(by));
        recorder.event_with_action(about, Some(related), EventType::Normal, "Preempted", "Preempting", note);
        Ok(())
    }
}
