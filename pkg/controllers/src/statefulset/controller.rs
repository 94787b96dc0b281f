//! Carries out the plan for one StatefulSet at a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use rkube_api::k8s::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use rkube_api::k8s::core::v1::{PersistentVolumeClaim, Pod};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::batch::slow_start;
use rkube_client::owner::{ControllerRefManager, object_key, selector_of, uid_of};
use rkube_client::{
    Client, ClientError, DeleteOptions, Delta, EventRecorder, Lister, Reconciler, Requeue, SyncError, WorkQueue,
};
use tracing::warn;

use super::NAME;
use super::claims::{has_other_controller, is_stale, is_up_to_date, retention, with_owners};
use super::plan::{Claims, Revisions, Step, disruption, is_ordered, next_check, plan, status};
use super::pods::{
    claim_name, claim_templates, claims, identity_matches, is_member, ordinal, pod_name, revision_of, set_identity,
    set_name, set_storage,
};
use crate::common::enqueue::{enqueue_all, owners_of};
use crate::common::errors::ignore_not_found;
use crate::common::history::{self, History, name_of};
use crate::common::pods;
use crate::common::written::Written;
use crate::context::{ControllerContext, Running};
use crate::metrics::metrics;

const HASH_LABEL: &str = "controller.kubernetes.io/hash";

struct StatefulSetController {
    client: Client,
    recorder: EventRecorder,
    clock: SharedClock,
    sets: Lister<StatefulSet>,
    pods: Lister<Pod>,
    claims: Lister<PersistentVolumeClaim>,
    revisions: Lister<ControllerRevision>,
    written: Written,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let sets = context.informers.informer::<StatefulSet>();
    let pods = context.informers.informer::<Pod>();
    let claims = context.informers.informer::<PersistentVolumeClaim>();
    let revisions = context.informers.informer::<ControllerRevision>();
    pods::index_by_controller(&pods);
    let queue: WorkQueue<ObjectKey> = context.queue("statefulset");
    let controller = Arc::new(StatefulSetController {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component(NAME),
        clock: context.clock().clone(),
        sets: sets.lister(),
        pods: pods.lister(),
        claims: claims.lister(),
        revisions: revisions.lister(),
        written: Written::new(context.clock().clone(), Arc::clone(pods.core())),
    });
    enqueue_all(&sets, &queue);
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    pods.add_handler(move |delta| observer.pod_changed(&delta, &keys));
    context.run(NAME, &queue, &controller, context.config.concurrent_syncs)
}

/// Claims as the cache has them.
struct CachedClaims<'a> {
    cache: &'a Lister<PersistentVolumeClaim>,
    set: &'a StatefulSet,
}

impl CachedClaims<'_> {
    fn of(&self, pod: &Pod) -> Vec<Arc<PersistentVolumeClaim>> {
        let Some(ordinal) = ordinal(pod) else { return Vec::new() };
        let namespace = self.set.metadata.namespace.as_deref().unwrap_or_default();
        let names = claim_templates(self.set).iter().map(|template| claim_name(self.set, template, ordinal));
        names.filter_map(|name| self.cache.get_named(namespace, &name)).collect()
    }
}

impl Claims for CachedClaims<'_> {
    fn match_policy(&self, pod: &Pod) -> bool {
        self.of(pod).iter().all(|claim| is_up_to_date(claim, self.set, pod))
    }

    fn are_stale(&self, pod: &Pod) -> bool {
        retention(self.set).0 && self.of(pod).iter().any(|claim| is_stale(claim, pod))
    }
}

impl StatefulSetController {
    fn pod_changed(&self, delta: &Delta<Arc<Pod>>, queue: &WorkQueue<ObjectKey>) {
        let pod = delta.object();
        self.written.observe(&pod.metadata, matches!(delta, Delta::Deleted(_)));
        let owners = owners_of(&self.sets, delta);
        for owner in owners.current.into_iter().chain(owners.former) {
            queue.add(owner);
        }
        if owners.adoptable {
            for set in self.sets.list_all(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                let selector = selector_of(set.spec.as_ref().map(|spec| &spec.selector));
                let fits = selector.is_ok_and(|selector| selector.matches(&pod.metadata.labels));
                if fits && is_member(&set, pod) {
                    queue.add(object_key(&*set));
                }
            }
        }
    }

    fn record(&self, set: &StatefulSet, verb: &str, what: &str, result: &Result<(), ClientError>) {
        let name = set_name(set);
        match result {
            Ok(()) => {
                let ending = if what.starts_with("Claim") { "success" } else { "successful" };
                let text = format!("{verb} {what} in StatefulSet {name} {ending}");
                self.recorder.normal(set, &format!("Successful{verb}"), text);
            }
            Err(error) => {
                let text = format!("{verb} {what} in StatefulSet {name} failed error: {error}");
                self.recorder.warning(set, &format!("Failed{verb}"), text);
            }
        }
    }

    /// Creates the claims of a pod that are not there.
    async fn ensure_claims(&self, set: &StatefulSet, pod: &Pod) -> Result<(), SyncError> {
        let Some(ordinal) = ordinal(pod) else { return Ok(()) };
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let api = self.client.namespaced::<PersistentVolumeClaim>(namespace);
        for claim in claims(set, ordinal) {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            match self.claims.get_named(namespace, name) {
                Some(known) if known.metadata.deletion_timestamp.is_some() => {
                    return Err(SyncError::other(format!("pvc {name} is being deleted")));
                }
                Some(_) => {}
                None => {
                    let created = match api.create(&claim).await.map(drop) {
                        // The cache does not show yet what an earlier sync made.
                        Err(error) if error.is_already_exists() => continue,
                        created => created,
                    };
                    self.record(set, "Create", &format!("Claim {name} Pod {}", pod_name(pod)), &created);
                    created.map_err(SyncError::during("creating a claim"))?;
                }
            }
        }
        Ok(())
    }

    /// Gives the claims of a pod the owners that the retention policy asks for.
    async fn fix_claims(&self, set: &StatefulSet, pod: &Pod) -> Result<(), SyncError> {
        let cached = CachedClaims { cache: &self.claims, set };
        for claim in cached.of(pod) {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            if has_other_controller(&claim, set, pod) {
                let text = format!(
                    "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim"
                );
                self.recorder.warning(set, "ConflictingController", text);
            }
            if !is_up_to_date(&claim, set, pod) {
                let api = self
                    .client
                    .namespaced::<PersistentVolumeClaim>(set.metadata.namespace.as_deref().unwrap_or_default());
                let updated = api.update(&with_owners(&claim, set, pod)).await;
                updated.map_err(SyncError::during("updating a claim's owners"))?;
            }
        }
        Ok(())
    }

    async fn create(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod) -> Result<(), SyncError> {
        self.ensure_claims(set, pod).await?;
        let api = self.client.namespaced::<Pod>(&key.namespace);
        let created = api.create(pod).await;
        if let Ok(stored) = &created {
            self.written.stored(key, &stored.metadata);
        }
        let created = created.map(drop);
        if !created.as_ref().is_err_and(ClientError::is_already_exists) {
            self.record(set, "Create", &format!("Pod {}", pod_name(pod)), &created);
        }
        created.map_err(SyncError::during("creating a pod"))
    }

    async fn fix(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod) -> Result<(), SyncError> {
        self.fix_claims(set, pod).await?;
        let Some(ordinal) = ordinal(pod) else { return Ok(()) };
        let mut updated = pod.clone();
        if !identity_matches(set, pod) {
            set_identity(&mut updated, ordinal);
        }
        set_storage(set, &mut updated, ordinal);
        if super::pods::storage_matches(set, pod) {
            updated.spec.clone_from(&pod.spec);
        }
        if updated == *pod {
            return Ok(());
        }
        self.ensure_claims(set, pod).await?;
        let result = self.client.namespaced::<Pod>(&key.namespace).update(&updated).await;
        if let Ok(stored) = &result {
            self.written.stored(key, &stored.metadata);
        }
        let result = result.map(drop);
        self.record(set, "Update", &format!("Pod {}", pod_name(pod)), &result);
        result.map_err(SyncError::during("updating a pod"))
    }

    async fn delete(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod) -> Result<(), SyncError> {
        let api = self.client.namespaced::<Pod>(&key.namespace);
        let deleted = ignore_not_found(api.delete(pod_name(pod), &DeleteOptions::uid(uid_of(pod))).await);
        self.record(set, "Delete", &format!("Pod {}", pod_name(pod)), &deleted);
        deleted.map_err(SyncError::during("deleting a pod"))
    }

    async fn carry_out(&self, key: &ObjectKey, set: &StatefulSet, step: &Step) -> Result<(), SyncError> {
        match step {
            Step::Create(pod) => self.create(key, set, pod).await,
            Step::EnsureClaims(pod) => {
                self.ensure_claims(set, pod).await?;
                self.fix_claims(set, pod).await
            }
            Step::Fix(pod) => self.fix(key, set, pod).await,
            Step::FixClaims(pod) => self.fix_claims(set, pod).await,
            Step::Delete(pod) => self.delete(key, set, pod).await,
        }
    }

    async fn carry_out_all(&self, key: &ObjectKey, set: &StatefulSet, steps: Vec<Step>) -> Result<(), SyncError> {
        if is_ordered(set) {
            for step in &steps {
                self.carry_out(key, set, step).await?;
            }
            return Ok(());
        }
        let steps = &steps;
        let outcome = slow_start(steps.len(), 1, |index| async move {
            match steps.get(index) {
                Some(step) => self.carry_out(key, set, step).await,
                None => Ok(()),
            }
        });
        outcome.await.error.map_or(Ok(()), Err)
    }

    async fn write_status(&self, set: &StatefulSet, wanted: StatefulSetStatus) -> Result<(), SyncError> {
        let old = set.status.clone().unwrap_or_default();
        let number = |count: Option<i32>| count.unwrap_or(0);
        let same = wanted.observed_generation <= old.observed_generation
            && wanted.replicas == old.replicas
            && number(wanted.ready_replicas) == number(old.ready_replicas)
            && number(wanted.available_replicas) == number(old.available_replicas)
            && number(wanted.current_replicas) == number(old.current_replicas)
            && number(wanted.updated_replicas) == number(old.updated_replicas)
            && number(wanted.collision_count) == number(old.collision_count)
            && wanted.current_revision == old.current_revision
            && wanted.update_revision == old.update_revision;
        if same {
            return Ok(());
        }
        let mut updated = set.clone();
        updated.status = Some(wanted);
        let api = self.client.namespaced::<StatefulSet>(set.metadata.namespace.as_deref().unwrap_or_default());
        ignore_not_found(api.update_status(&updated).await.map(drop)).map_err(SyncError::during("writing the status"))
    }

    /// The revisions of the set, adopted and sorted.
    async fn claim_revisions(
        &self,
        set: &StatefulSet,
        manager: &ControllerRefManager<'_, StatefulSet>,
    ) -> Result<Vec<Arc<ControllerRevision>>, SyncError> {
        let all = self.revisions.list_all(set.metadata.namespace.as_deref().unwrap_or_default());
        let mut revisions = manager.claim(all, |_| true).await?;
        history::sort(&mut revisions);
        Ok(revisions)
    }
}

impl Reconciler for StatefulSetController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(set) = self.sets.get(key) else {
            for policy in ["OrderedReady", "Parallel"] {
                metrics().stateful_set(&key.namespace, &key.name, policy, None);
            }
            return Ok(Requeue::Never);
        };
        let Some(spec) = &set.spec else { return Ok(Requeue::Never) };
        let selector = match selector_of(Some(&spec.selector)) {
            Ok(selector) => selector,
            Err(error) => {
                warn!(key = %key, error = %error, "Ignored a StatefulSet whose selector is not valid");
                return Ok(Requeue::Never);
            }
        };
        if let Some(wait) = self.written.unsettled(key) {
            return Ok(Requeue::After(wait));
        }
        let now = self.clock.now();
        let manager = ControllerRefManager::new(&self.client, &*set, &selector);
        let revisions = self.claim_revisions(&set, &manager).await?;
        let candidates = pods::owned_and_orphans(&self.pods, uid_of(&*set), &key.namespace);
        let members = manager.claim(candidates, |pod: &Pod| is_member(&set, pod)).await?;

        let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let history = History { hash_label: HASH_LABEL, client: &self.client, owner: &*set, template: &spec.template };
        let (update, collisions) = history.current(&revisions, collisions).await?;
        let wanted = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
        let current = revisions.iter().find(|revision| Some(name_of(revision)) == wanted);
        let current = current.map_or_else(|| Arc::clone(&update), Arc::clone);
        let current_template = history::template_of(&current).unwrap_or_else(|| spec.template.clone());
        let found = Revisions { current, current_template, update, update_template: spec.template.clone() };

        let policy = spec.pod_management_policy.as_deref().unwrap_or("OrderedReady");
        metrics().stateful_set(&key.namespace, &key.name, policy, Some(disruption(&set, &members, now)));
        let acted = if set.metadata.deletion_timestamp.is_none() {
            let cached = CachedClaims { cache: &self.claims, set: &set };
            let steps = plan(&set, &members, &found, &cached, now);
            self.carry_out_all(key, &set, steps).await
        } else {
            Ok(())
        };
        // Written even when acting failed. The pods are as before; their events bring the next count.
        self.write_status(&set, status(&set, &members, &found, collisions, now)).await?;
        acted?;
        let live: BTreeSet<String> = [name_of(&found.current), name_of(&found.update)]
            .into_iter()
            .chain(members.iter().map(|pod| revision_of(pod)))
            .map(str::to_owned)
            .collect();
        history.truncate(&revisions, &live, spec.revision_history_limit).await?;
        Ok(Requeue::after(next_check(&set, &members, now)))
    }
}
