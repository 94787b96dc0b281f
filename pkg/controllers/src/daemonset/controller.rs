//! Carries out the plan for one DaemonSet at a time, and finds the DaemonSets that a node concerns.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::{join, join_all};
use rkube_api::k8s::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use rkube_api::k8s::core::v1::{Node, Pod};
use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{ControllerRefManager, controller_of, object_key, selector_of, uid_of};
use rkube_client::{
    Client, Delta, EventRecorder, EventType, Expectations, Lister, Reconciler, Requeue, SyncError, WorkQueue,
};
use tracing::{info, warn};

use super::NAME;
use super::backoff::FailedPods;
use super::history::{Current, clean_up, current};
use super::nodes::{Fit, Requirements};
use super::plan::{Found, Plan, Remark, bounded, manage};
use super::pods::{HASH_LABEL, daemon_template, pin_to_node};
use super::rollout::rolling_update;
use super::status;
use crate::common::enqueue::{Owners, enqueue_all, owners_of};
use crate::common::history::{self, History};
use crate::common::nodes::{index_by_node, pods_on, taints};
use crate::common::pod_control::{PodControl, pod_from_template};
use crate::common::pods;
use crate::common::status::write_status;
use crate::context::{ControllerContext, Running};

struct DaemonSetController {
    client: Client,
    clock: SharedClock,
    recorder: EventRecorder,
    pod_control: PodControl,
    sets: Lister<DaemonSet>,
    pods: Lister<Pod>,
    nodes: Lister<Node>,
    revisions: Lister<ControllerRevision>,
    expectations: Expectations,
    failed_pods: FailedPods,
}

/// Passes on changes of nodes to the DaemonSets they matter to.
struct NodeObserver {
    sets: Lister<DaemonSet>,
    nodes: Lister<Node>,
    pods: Lister<Pod>,
    queue: WorkQueue<ObjectKey>,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let sets = context.informers.informer::<DaemonSet>();
    let pods = context.informers.informer::<Pod>();
    let nodes = context.informers.informer::<Node>();
    let revisions = context.informers.informer::<ControllerRevision>();
    pods::index_by_controller(&pods);
    index_by_node(&pods);
    let queue: WorkQueue<ObjectKey> = context.queue("daemonset");
    let changed_nodes: WorkQueue<String> = context.queue("daemonset-node-updates");
    let (client, recorder) = (context.client_for(NAME), context.recorder.for_component(NAME));
    let controller = Arc::new(DaemonSetController {
        clock: context.clock().clone(),
        pod_control: PodControl::new(client.clone(), recorder.clone()),
        sets: sets.lister(),
        pods: pods.lister(),
        nodes: nodes.lister(),
        revisions: revisions.lister(),
        expectations: Expectations::new(context.clock().clone()),
        failed_pods: FailedPods::default(),
        client,
        recorder,
    });
    let node_observer =
        NodeObserver { sets: sets.lister(), nodes: nodes.lister(), pods: pods.lister(), queue: queue.clone() };
    let node_observer = Arc::new(node_observer);

    enqueue_all(&sets, &queue);
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    pods.add_handler(move |delta| observer.pod_changed(&delta, &keys));
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    revisions.add_handler(move |delta| {
        observer.queue_owners(&owners_of(&observer.sets, &delta), &delta, &keys);
    });
    let names = changed_nodes.clone();
    nodes.add_handler(move |delta| {
        let node = delta.object();
        let same = |old: &Arc<Node>| old.metadata.labels == node.metadata.labels && taints(old) == taints(node);
        if !delta.old().is_some_and(same) {
            names.add(node.metadata.name.clone().unwrap_or_default());
        }
    });
    let workers = context.config.concurrent_syncs;
    let both =
        join(context.run(NAME, &queue, &controller, workers), context.run(NAME, &changed_nodes, &node_observer, 1));
    Box::pin(async move {
        both.await;
    })
}

impl DaemonSetController {
    /// Queues the sets that a change of a pod or revision concerns.
    fn queue_owners<K: rkube_api::Kind>(&self, owners: &Owners, delta: &Delta<Arc<K>>, queue: &WorkQueue<ObjectKey>) {
        for owner in owners.current.iter().chain(&owners.former) {
            queue.add(owner.clone());
        }
        if owners.adoptable {
            let metadata = delta.object().metadata();
            for set in self.sets.list_all(metadata.namespace.as_deref().unwrap_or_default()) {
                let selector = selector_of(set.spec.as_ref().map(|spec| &spec.selector));
                if selector.is_ok_and(|selector| selector.matches(&metadata.labels)) {
                    queue.add(object_key(&*set));
                }
            }
        }
    }

    fn pod_changed(&self, delta: &Delta<Arc<Pod>>, queue: &WorkQueue<ObjectKey>) {
        let pod = delta.object();
        let owners = owners_of(&self.sets, delta);
        if let Some(owner) = &owners.current {
            if matches!(delta, Delta::Deleted(_)) || pods::is_terminating(pod) {
                self.expectations.deletion_observed(owner, uid_of(&**pod));
            } else if matches!(delta, Delta::Added(_)) {
                self.expectations.creation_observed(owner);
            }
        }
        self.queue_owners(&owners, delta, queue);
    }

    fn say(&self, set: &DaemonSet, remark: &Remark) {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let (event_type, reason, text) = match remark {
            Remark::Failed { pod, node } => {
                let text = format!("Found failed daemon pod {namespace}/{pod} on node {node}, will try to kill it");
                (EventType::Warning, "FailedDaemonPod", text)
            }
            Remark::Succeeded { pod, node } => {
                let text =
                    format!("Found succeeded daemon pod {namespace}/{pod} on node {node}, will try to delete it");
                (EventType::Normal, "SucceededDaemonPod", text)
            }
        };
        self.recorder.event(set, event_type, reason, text);
    }

    async fn carry_out(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        found: &Found<'_>,
        plan: Plan,
    ) -> Result<(), SyncError> {
        let plan = bounded(plan);
        plan.remarks.iter().for_each(|remark| self.say(set, remark));
        if plan.create.is_empty() && plan.delete.is_empty() {
            return Ok(());
        }
        info!(key = %key, creating = plan.create.len(), deleting = plan.delete.len(), "Nodes need changes");
        let uids = plan.delete.iter().map(|pod| uid_of(&**pod).to_owned());
        self.expectations.expect(key, plan.create.len(), uids);
        let template = daemon_template(&found.spec.template, found.hash, found.generation);
        let make = |position: usize| {
            let mut pod = pod_from_template(set, &template);
            let node = plan.create.get(position).map(String::as_str).unwrap_or_default();
            pin_to_node(pod.spec.get_or_insert_default(), node);
            pod
        };
        let created = self.pod_control.create_many(set, &self.expectations, plan.create.len(), make).await;
        let deletions = plan.delete.iter().map(|pod| async {
            let deleted = self.pod_control.delete(set, pod).await;
            if deleted.is_err() {
                self.expectations.deletion_observed(key, uid_of(&**pod));
            }
            deleted
        });
        let deleted = join_all(deletions).await.into_iter().filter_map(Result::err);
        let deleted = deleted.filter(|error| !error.is_not_found());
        let deleted = deleted.map(|error| SyncError::during("deleting a pod")(error));
        let created = created.error.map(SyncError::during("creating a pod"));
        SyncError::all(created.into_iter().chain(deleted).collect())
    }

    /// Brings nodes, then templates, then revisions in line.
    async fn update(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        found: &Found<'_>,
        members: &[Arc<Pod>],
        revisions: &[Arc<ControllerRevision>],
        current: &Current,
    ) -> Result<Requeue, SyncError> {
        let generation = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
        let plan = manage(found, |node| {
            let backoff_key = (uid_of(set).to_owned(), generation, node.to_owned());
            self.failed_pods.hold(backoff_key, self.clock.monotonic())
        });
        let wait = plan.wait;
        self.carry_out(key, set, found, plan).await?;
        if self.expectations.satisfied(key) {
            self.carry_out(key, set, found, rolling_update(found)).await?;
        }
        let history =
            History { hash_label: HASH_LABEL, client: &self.client, owner: set, template: &found.spec.template };
        clean_up(&history, revisions, current, members, found.spec.revision_history_limit).await?;
        Ok(Requeue::after(wait))
    }

    async fn sync_set(&self, key: &ObjectKey, set: &DaemonSet, spec: &DaemonSetSpec) -> Result<Requeue, SyncError> {
        let selector = match selector_of(Some(&spec.selector)) {
            Ok(selector) => selector,
            Err(error) => {
                warn!(key = %key, error = %error, "Ignored a DaemonSet whose selector is not valid");
                return Ok(Requeue::Never);
            }
        };
        let satisfied = self.expectations.satisfied(key);
        let manager = ControllerRefManager::new(&self.client, set, &selector);
        let mut revisions = manager.claim(self.revisions.list_all(&key.namespace), |_| true).await?;
        history::sort(&mut revisions);
        let candidates = pods::owned_and_orphans(&self.pods, uid_of(set), &key.namespace);
        let members = manager.claim(candidates, |_| true).await?;
        let current = current(&self.client, set, &spec.template, &mut revisions, &members).await?;
        let now = self.clock.now();
        let found = Found::new(set, spec, &self.nodes.list_all(""), &members, &current.hash, now);

        let acted = if satisfied {
            self.update(key, set, &found, &members, &revisions, &current).await
        } else {
            Ok(Requeue::Never)
        };
        // Written even when acting failed. The pods are as before; their events bring the next count.
        let old = set.status.clone().unwrap_or_default();
        let mut status = status::calculate(&found, &old);
        status.collision_count = Some(current.collisions).filter(|count| *count > 0).or(old.collision_count);
        if satisfied {
            status.observed_generation = set.metadata.generation;
        }
        if differs(&status, &old) {
            write_status(&self.client, set, |set| set.status = Some(status.clone())).await?;
        }
        let check = pods::next_availability_check(&members, spec.min_ready_seconds.unwrap_or(0), now);
        Ok(acted?.or_sooner(Requeue::after(check)))
    }
}

/// Whether the new status says something that the old one does not. Absent counts are zero.
fn differs(new: &DaemonSetStatus, old: &DaemonSetStatus) -> bool {
    let number = |count: Option<i32>| count.unwrap_or(0);
    let counts = |status: &DaemonSetStatus| {
        [
            status.desired_number_scheduled,
            status.current_number_scheduled,
            status.number_misscheduled,
            status.number_ready,
            number(status.updated_number_scheduled),
            number(status.number_available),
            number(status.number_unavailable),
            number(status.collision_count),
        ]
    };
    counts(new) != counts(old) || new.observed_generation > old.observed_generation
}

impl Reconciler for DaemonSetController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(Requeue::Never);
        };
        let Some(spec) = &set.spec else { return Ok(Requeue::Never) };
        if spec.selector == LabelSelector::default() {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*set, "SelectingAll", text);
            return Ok(Requeue::Never);
        }
        // Its revisions may be gone already, and without them nothing can be counted.
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::Never);
        }
        self.sync_set(key, &set, spec).await
    }
}

impl Reconciler<String> for NodeObserver {
    async fn sync(&self, name: &String) -> Result<Requeue, SyncError> {
        let node = self.nodes.get_named("", name);
        let present = pods_on(&self.pods, name);
        let owners: HashSet<&str> =
            present.iter().filter_map(|pod| controller_of(&pod.metadata)).map(|owner| owner.uid.as_str()).collect();
        for set in self.sets.list_all("") {
            let Some(spec) = &set.spec else { continue };
            let has_pod = owners.contains(uid_of(&*set));
            let misscheduled = set.status.as_ref().is_some_and(|status| status.number_misscheduled > 0);
            let matters = match &node {
                // Differs from upstream: a node that is gone is told of, for the counts and for pods that wait for it.
                None => true,
                Some(node) => match Requirements::new(spec).fit(node) {
                    Fit::Runs => !has_pod || misscheduled,
                    Fit::Keeps | Fit::Refuses => has_pod,
                },
            };
            if matters {
                self.queue.add(object_key(&*set));
            }
        }
        Ok(Requeue::Never)
    }
}
