//! Carries out the plan for one ReplicaSet or ReplicationController at a time.

use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::labels::Selector;
use rkube_client::owner::{ControllerRefManager, is_controlled_by, object_key, uid_of};
use rkube_client::{Client, ClientError, Delta, Expectations, Lister, Reconciler, Requeue, SyncError, WorkQueue};
use tracing::{info, warn};

use super::kinds::ReplicaOwner;
use super::plan::{Plan, plan};
use super::status;
use crate::common::enqueue::{enqueue_all, owners_of};
use crate::common::pod_control::{PodControl, pod_from_template};
use crate::common::pods;
use crate::common::status::write_status;
use crate::context::{ControllerContext, Running};
use crate::metrics::metrics;

struct ReplicaController<O> {
    client: Client,
    clock: SharedClock,
    owners: Lister<O>,
    pods: Lister<Pod>,
    pod_control: PodControl,
    expectations: Expectations,
}

pub(super) fn start<O: ReplicaOwner>(context: &ControllerContext) -> Running {
    let owners = context.informers.informer::<O>();
    let pods = context.informers.informer::<Pod>();
    pods::index_by_controller(&pods);
    let client = context.client_for(O::CONTROLLER);
    let queue: WorkQueue<ObjectKey> = context.queue(O::QUEUE);
    let controller = Arc::new(ReplicaController {
        clock: context.clock().clone(),
        owners: owners.lister(),
        pods: pods.lister(),
        pod_control: PodControl::new(client.clone(), context.recorder.for_component(O::EVENT_SOURCE)),
        expectations: Expectations::new(context.clock().clone()),
        client,
    });

    enqueue_all(&owners, &queue);
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    pods.add_handler(move |delta| observer.pod_changed(&delta, &keys));
    context.run(O::CONTROLLER, &queue, &controller, context.config.concurrent_syncs)
}

impl<O: ReplicaOwner> ReplicaController<O> {
    fn pod_changed(&self, delta: &Delta<Arc<Pod>>, queue: &WorkQueue<ObjectKey>) {
        let pod = delta.object();
        let owners = owners_of(&self.owners, delta);
        queue_some(queue, owners.former);
        if let Some(owner) = owners.current {
            let gone = matches!(delta, Delta::Deleted(_)) || pods::is_terminating(pod);
            if gone {
                self.expectations.deletion_observed(&owner, uid_of(&**pod));
            } else if matches!(delta, Delta::Added(_)) {
                self.expectations.creation_observed(&owner);
            }
            queue.add(owner);
        }
        if owners.adoptable {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for owner in self.owners.list_all(namespace) {
                if owner.selector().is_ok_and(|selector| selector.matches(&pod.metadata.labels)) {
                    queue.add(object_key(&*owner));
                }
            }
        }
    }

    /// Pods of other owners of the same application, for choosing what to delete.
    fn related_pods(&self, owner: &O) -> Vec<Arc<Pod>> {
        let namespace = owner.metadata().namespace.as_deref().unwrap_or_default();
        let siblings = self.owners.list_all(namespace).into_iter();
        let siblings = siblings.filter(|other| uid_of(&**other) == uid_of(owner) || owner.is_related(other));
        siblings.flat_map(|sibling| self.pods.by_index(pods::CONTROLLER_INDEX, uid_of(&*sibling))).collect()
    }

    /// The pods to count: ours that are active after adoption and release, and how many are terminating.
    async fn claim_pods(&self, owner: &O, selector: &Selector) -> Result<(Vec<Arc<Pod>>, usize), SyncError> {
        let namespace = owner.metadata().namespace.as_deref().unwrap_or_default();
        let all = pods::owned_and_orphans(&self.pods, uid_of(owner), namespace);
        let terminating = all.iter().filter(|pod| {
            let matches = selector.matches(&pod.metadata.labels);
            pods::is_terminating(pod) && !pods::is_terminal(pod) && matches && is_controlled_by(&pod.metadata, owner)
        });
        let terminating = terminating.count();
        let active = all.into_iter().filter(|pod| pods::is_active(pod)).collect();
        let manager = ControllerRefManager::new(&self.client, owner, selector);
        Ok((manager.claim(active, |_| true).await?, terminating))
    }

    async fn carry_out(&self, key: &ObjectKey, owner: &O, plan: Plan) -> Result<(), ClientError> {
        match plan {
            Plan::Nothing => Ok(()),
            Plan::Create(count) => self.create_pods(key, owner, count).await,
            Plan::Delete(chosen) => self.delete_pods(key, owner, chosen).await,
        }
    }

    async fn create_pods(&self, key: &ObjectKey, owner: &O, count: usize) -> Result<(), ClientError> {
        let Some(template) = owner.template() else { return Ok(()) };
        info!(key = %key, creating = count, "Too few replicas");
        let pod = pod_from_template(owner, template);
        self.expectations.expect_creations(key, count);
        let outcome = self.pod_control.create_many(owner, &self.expectations, count, |_| pod.clone()).await;
        outcome.error.map_or(Ok(()), Err)
    }

    async fn delete_pods(&self, key: &ObjectKey, owner: &O, chosen: Vec<Arc<Pod>>) -> Result<(), ClientError> {
        info!(key = %key, deleting = chosen.len(), "Too many replicas");
        self.expectations.expect_deletions(key, chosen.iter().map(|pod| uid_of(&**pod).to_owned()));
        let deletions = chosen.iter().map(|pod| async {
            let result = self.pod_control.delete(owner, pod).await;
            if result.is_err() {
                self.expectations.deletion_observed(key, uid_of(&**pod));
            }
            match result {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(()),
            }
        });
        join_all(deletions).await.into_iter().collect()
    }
}

impl<O: ReplicaOwner> Reconciler for ReplicaController<O> {
    /// Brings the pods of one owner in line with its spec. Level-triggered: reads the caches and the clock,
    /// never the event that queued `key`.
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(owner) = self.owners.get(key) else {
            self.expectations.forget(key);
            return Ok(Requeue::Never);
        };
        let selector = match owner.selector() {
            Ok(selector) => selector,
            Err(error) => {
                // Retrying cannot mend a selector; its next change will queue the key.
                warn!(key = %key, error = %error, "Ignored an owner whose selector is not valid");
                return Ok(Requeue::Never);
            }
        };
        let needs_sync = self.expectations.satisfied(key);
        let (active, terminating) = self.claim_pods(&owner, &selector).await?;
        let now = self.clock.now();

        let acted = if needs_sync && owner.metadata().deletion_timestamp.is_none() {
            let too_many = active.len() > usize::try_from(owner.replicas()).unwrap_or(0);
            let related = if too_many { self.related_pods(&owner) } else { Vec::new() };
            let plan = plan(owner.replicas(), &active, &related, now);
            if let Plan::Delete(chosen) = &plan {
                note_ages(chosen, &active, now);
            }
            self.carry_out(key, &owner, plan).await
        } else {
            Ok(())
        };

        // The status is written even when acting failed, so that the failure is visible as a condition.
        let failure = acted.as_ref().err().map(ToString::to_string);
        let terminating = owner.reports_terminating().then_some(terminating);
        let counts = status::calculate(&*owner, &active, terminating, failure, now);
        if owner.counts() != counts {
            write_status(&self.client, &*owner, |owner| owner.set_counts(counts.clone())).await?;
        }
        acted?;
        Ok(Requeue::after(pods::next_availability_check(&active, owner.min_ready_seconds(), now)))
    }
}

fn queue_some(queue: &WorkQueue<ObjectKey>, key: Option<ObjectKey>) {
    if let Some(key) = key {
        queue.add(key);
    }
}

/// Notes how much older the chosen pods are than the youngest. Only ready pods count, and only where there was a choice.
fn note_ages(chosen: &[Arc<Pod>], active: &[Arc<Pod>], now: Timestamp) {
    if chosen.len() >= active.len() {
        return;
    }
    let age = |pod: &Arc<Pod>| {
        let created = pod.metadata.creation_timestamp.as_ref().filter(|_| pods::is_ready(pod))?;
        Some(now.duration_since(created.0).as_millis())
    };
    let Some(youngest) = active.iter().filter_map(age).min().filter(|youngest| *youngest > 0) else { return };
    for age in chosen.iter().filter_map(age) {
        metrics().deletion_age_ratio.observe((age / youngest) as f64);
    }
}
