//! Counts one budget at a time, and takes back what was said of pods that nobody evicted.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::{Pod, PodCondition};
use rkube_api::k8s::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use rkube_api::meta::pkg::apis::meta::v1::{ObjectMeta, Time};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::time::whole_seconds;
use rkube_client::owner::{object_key, selector_of};
use rkube_client::{Client, Delta, EventRecorder, Lister, Reconciler, Requeue, Runner, SyncError, WorkQueue};
use tracing::warn;

use super::NAME;
use super::plan::{self, DISRUPTION_TARGET};
use super::scale::{Scales, Total};
use crate::common::enqueue::enqueue_all;
use crate::common::errors::ignore_not_found;
use crate::common::go_text::selector_text;
use crate::common::mapper::Mapper;
use crate::context::{ControllerContext, Running};

/// What upstream signs these events with.
const EVENT_SOURCE: &str = "controllermanager";

struct Disruption {
    client: Client,
    recorder: EventRecorder,
    clock: SharedClock,
    budgets: Lister<PodDisruptionBudget>,
    pods: Lister<Pod>,
    scales: Scales,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let budgets = context.informers.informer::<PodDisruptionBudget>();
    let pods = context.informers.informer::<Pod>();
    let client = context.client_for(NAME);
    let controller = Arc::new(Disruption {
        recorder: context.recorder.for_component(EVENT_SOURCE),
        clock: context.clock().clone(),
        budgets: budgets.lister(),
        pods: pods.lister(),
        scales: Scales {
            mapper: Mapper::new(&client),
            client: client.clone(),
            controllers: context.informers.informer().lister(),
            replica_sets: context.informers.informer().lister(),
            deployments: context.informers.informer().lister(),
            stateful_sets: context.informers.informer().lister(),
        },
        client,
    });
    let queue: WorkQueue<ObjectKey> = context.queue("disruption");
    let stale: WorkQueue<ObjectKey> = context.queue("stale_pod_disruption");
    enqueue_all(&budgets, &queue);
    let (observer, keys, stale_keys) = (Arc::clone(&controller), queue.clone(), stale.clone());
    pods.add_handler(move |delta| observer.pod_changed(&delta, &keys, &stale_keys));
    let counting = Runner::new(NAME, queue, Arc::clone(&controller)).workers(1);
    let cleaning = Runner::new(NAME, stale, Arc::new(StalePods(controller))).workers(1);
    let stop = context.shutdown.clone();
    Box::pin(async move {
        tokio::join!(counting.run(stop.clone()), cleaning.run(stop));
    })
}

fn selects(budget: &PodDisruptionBudget, metadata: &ObjectMeta) -> bool {
    let selector = selector_of(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
    selector.is_ok_and(|selector| selector.matches(&metadata.labels))
}

impl Disruption {
    fn pod_changed(&self, delta: &Delta<Arc<Pod>>, queue: &WorkQueue<ObjectKey>, stale: &WorkQueue<ObjectKey>) {
        let pod = delta.object();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let former = delta.old().filter(|old| old.metadata.labels != pod.metadata.labels);
        let mut selecting = Vec::new();
        for budget in self.budgets.list_all(namespace) {
            if selects(&budget, &pod.metadata) {
                selecting.push(budget);
            } else if former.is_some_and(|old| selects(&budget, &old.metadata)) {
                queue.add(object_key(&*budget));
            }
        }
        if let [first, _, ..] = selecting.as_slice() {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let chosen = first.metadata.name.as_deref().unwrap_or_default();
            let text = format!(
                "Pod {namespace:?}/{name:?} matches multiple PodDisruptionBudgets.  Chose {chosen:?} arbitrarily."
            );
            self.recorder.warning(&**pod, "MultiplePodDisruptionBudgets", text);
        }
        // Differs from upstream: all of them are counted again, not only the one that was chosen.
        for budget in &selecting {
            queue.add(object_key(&**budget));
        }
        if !matches!(delta, Delta::Deleted(_))
            && let Some(wait) = plan::stale_in(pod, self.clock.now())
        {
            stale.add_after(object_key(&**pod), wait);
        }
    }

    /// Counts the budget; when to count it again.
    async fn count(&self, budget: &PodDisruptionBudget) -> Result<Option<Duration>, SyncError> {
        let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
        let selector = selector_of(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
        let selector = selector.map_err(|error| {
            self.recorder.warning(budget, "NoPods", format!("Failed to get pods: {error}"));
            SyncError::other(error.to_string())
        })?;
        let members = self.pods.list(namespace, &selector);
        if members.is_empty() {
            self.recorder.normal(budget, "NoPods", "No matching pods found");
        }
        let total = if plan::needs_scale(budget) { self.scales.total(&members).await } else { Ok(Total::default()) };
        let expected = total.and_then(|total| {
            let expected = plan::expected(budget, members.len(), total.scale);
            Ok((expected.map_err(|error| SyncError::other(error.to_string()))?, total.unmanaged))
        });
        let (expected, unmanaged) = expected.inspect_err(|error| {
            let text = format!("Failed to calculate the number of expected pods: {error}");
            self.recorder.warning(budget, "CalculateExpectedPodCountFailed", text);
        })?;
        if !unmanaged.is_empty() {
            let selector = selector_text(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
            let text = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a \
                 result, the status of the PDB cannot be calculated correctly, which may result in undefined \
                 behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an \
                 integer value."
            );
            self.recorder.warning(budget, "UnmanagedPods", text);
        }
        let now = self.clock.now();
        let disrupted = plan::disrupted(budget, &members, now);
        for pod in &disrupted.forgotten {
            // The name is missing in upstream's text too: the namespace is there twice.
            let text = format!("Pod was expected by PDB {namespace}/{namespace} to be deleted but it wasn't");
            self.recorder.warning(&**pod, "NotDeleted", text);
        }
        let status = plan::status(budget, &members, expected, disrupted.waiting, now);
        self.write(budget, status).await?;
        Ok(disrupted.recheck)
    }

    async fn write(&self, budget: &PodDisruptionBudget, status: PodDisruptionBudgetStatus) -> Result<(), SyncError> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let updated = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
        let written = self.client.namespaced::<PodDisruptionBudget>(namespace).update_status(&updated).await;
        ignore_not_found(written.map(drop)).map_err(SyncError::during("writing the status"))
    }
}

impl Reconciler for Disruption {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(budget) = self.budgets.get(key) else { return Ok(Requeue::Never) };
        match self.count(&budget).await {
            Ok(recheck) => Ok(Requeue::after(recheck)),
            Err(error) if error.is_conflict() => Err(error),
            Err(error) => {
                warn!(key = %key, error = %chain(&error), "Counting a budget failed, it allows nothing now");
                let text = match error.client_error() {
                    Some(source) => source.to_string(),
                    None => error.to_string(),
                };
                self.write(&budget, plan::failed(&budget, &text, self.clock.now())).await?;
                Ok(Requeue::Never)
            }
        }
    }
}

/// Takes back `DisruptionTarget` from pods that live on.
struct StalePods(Arc<Disruption>);

impl Reconciler for StalePods {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Self(disruption) = self;
        let Some(pod) = disruption.pods.get(key) else { return Ok(Requeue::Never) };
        let now = disruption.clock.now();
        match plan::stale_in(&pod, now) {
            None => return Ok(Requeue::Never),
            Some(wait) if !wait.is_zero() => return Ok(Requeue::After(wait)),
            Some(_) => {}
        }
        let mut updated = (*pod).clone();
        let conditions = updated.status.get_or_insert_default().conditions.get_or_insert_default();
        if let Some(condition) = conditions.iter_mut().find(|condition| condition.type_ == DISRUPTION_TARGET) {
            *condition = PodCondition {
                type_: DISRUPTION_TARGET.to_owned(),
                status: "False".to_owned(),
                observed_generation: pod.metadata.generation,
                last_transition_time: Some(Time(whole_seconds(now))),
                ..PodCondition::default()
            };
        }
        let written = disruption.client.namespaced::<Pod>(&key.namespace).update_status(&updated).await;
        ignore_not_found(written.map(drop)).map_err(SyncError::during("clearing a stale disruption"))?;
        Ok(Requeue::Never)
    }
}
