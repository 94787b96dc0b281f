//! Looks at objects that may have to go, and makes them go.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use rkube_api::k8s::core::v1::ObjectReference;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::meta::Meta;
use rkube_client::api::Preconditions;
use rkube_client::{
    Client, ClientError, DeleteOptions, EventRecorder, EventType, Patch, Propagation, Reconciler, Requeue, Runner,
    SyncError, WorkQueue,
};
use serde_json::{Value, json};

use super::NAME;
use super::graph::{FOREGROUND, Node, ORPHAN, Owner, Uid};
use super::monitors::{Monitors, Queues, Rediscover, SETTLE};
use crate::common::errors::ignore_not_found;
use crate::context::{ControllerContext, Running};

const WORKERS: usize = 20;
/// Owners known to be absent. A uid never comes back, so an entry is never wrong.
const ABSENT_MAX: usize = 500;

struct Collector {
    client: Client,
    recorder: EventRecorder,
    monitors: Arc<Monitors>,
    queues: Queues,
    absent: Mutex<Absent>,
}

/// Where an owner was looked for and not found.
#[derive(Default)]
struct Absent {
    known: HashSet<AbsentKey>,
    order: VecDeque<AbsentKey>,
}

/// Namespace (empty for cluster scope), group, kind, name, uid.
type AbsentKey = (String, String, String, String, Uid);

impl Absent {
    fn insert(&mut self, key: AbsentKey) {
        if self.known.insert(key.clone()) {
            self.order.push_back(key);
        }
        while self.order.len() > ABSENT_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let queues = Queues {
        delete: context.queue("garbage_collector_attempt_to_delete"),
        orphan: context.queue("garbage_collector_attempt_to_orphan"),
    };
    let discovery: WorkQueue<Rediscover> = context.queue("garbage_collector_discovery");
    let client = context.client_for(NAME);
    let monitors = Arc::new(Monitors::new(client.clone(), context.informers.clone(), queues.clone()));
    for (group, plural) in
        [("apiextensions.k8s.io", "customresourcedefinitions"), ("apiregistration.k8s.io", "apiservices")]
    {
        if let Some(resource) = rkube_api::resource_named(group, "v1", plural) {
            let keys = discovery.clone();
            let informer = context.informers.dynamic(Arc::clone(resource));
            informer.add_handler(move |_| keys.add_after(Rediscover, SETTLE));
        }
    }
    let collector = Arc::new(Collector {
        client,
        recorder: context.recorder.for_component(NAME),
        monitors: Arc::clone(&monitors),
        queues: queues.clone(),
        absent: Mutex::default(),
    });
    let deleting = Runner::new(NAME, queues.delete.clone(), Arc::clone(&collector)).workers(WORKERS);
    let orphaning = Runner::new(NAME, queues.orphan.clone(), Arc::new(Orphaning(collector))).workers(WORKERS);
    let discovering = Runner::new(NAME, discovery.clone(), monitors).workers(1);
    let (stop, informers) = (context.shutdown.clone(), context.informers.clone());
    Box::pin(async move {
        discovery.add(Rediscover);
        let first = discovery.clone();
        let collect = async {
            // Nothing is judged before the graph is whole. The first discovery must have worked for that.
            first.wait_idle().await;
            if informers.wait_for_sync().await.is_ok() {
                tokio::join!(deleting.run(stop.clone()), orphaning.run(stop.clone()));
            }
        };
        tokio::join!(discovering.run(stop.clone()), collect);
    })
}

/// What the API says about an object's owners.
#[derive(Default)]
struct Classified<'a> {
    solid: usize,
    /// Gone, or waiting for their dependents to go.
    removable: Vec<&'a Owner>,
    waiting: bool,
}

impl Collector {
    fn api(&self, resource: &SharedResource, namespace: &str) -> rkube_client::DynamicApi {
        self.client.dynamic(Arc::clone(resource), namespace)
    }

    /// The object as the API has it, if it is still this one.
    async fn fetch(&self, uid: &Uid, node: &Node) -> Result<Option<Value>, ClientError> {
        match self.api(&node.resource, &node.key.namespace).get(&node.key.name).await {
            Ok(object) if object.uid() == &**uid => Ok(Some(object)),
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether an owner does not exist. `None` for a reference that can never be resolved.
    async fn is_absent(&self, owner: &Owner, node: &Node) -> Result<Option<bool>, SyncError> {
        let group = owner.group();
        let Some(resource) = self.monitors.resource_of(&group, &owner.kind) else {
            return Err(SyncError::other(format!(
                "unable to get REST mapping for {}/{}.",
                owner.api_version, owner.kind
            )));
        };
        if resource.namespaced && node.key.namespace.is_empty() {
            return Ok(None);
        }
        let namespace = if resource.namespaced { node.key.namespace.to_string() } else { String::new() };
        let key = (namespace.clone(), group, owner.kind.clone(), owner.name.clone(), owner.uid.clone());
        if self.absent.lock().known.contains(&key) {
            return Ok(Some(true));
        }
        let found = match self.api(&resource, &namespace).get(&owner.name).await {
            Ok(found) => Some(found),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(SyncError::during("reading an owner")(error)),
        };
        let absent = found.is_none_or(|found| found.uid() != &*owner.uid);
        if absent {
            self.absent.lock().insert(key);
        }
        Ok(Some(absent))
    }

    /// `None` if a reference is invalid and the object is left alone.
    async fn classify<'a>(&self, node: &Node, owners: &'a [Owner]) -> Result<Option<Classified<'a>>, SyncError> {
        let mut classified = Classified::default();
        for owner in owners {
            let known = self.monitors.graph.lock().owner(owner, node).map(|known| known.deleting_dependents);
            match known {
                Some(true) => {
                    classified.waiting = true;
                    classified.removable.push(owner);
                }
                Some(false) => classified.solid += 1,
                None => match self.is_absent(owner, node).await? {
                    None => {
                        self.report_invalid(node, owner);
                        return Ok(None);
                    }
                    Some(true) => classified.removable.push(owner),
                    Some(false) => classified.solid += 1,
                },
            }
        }
        Ok(Some(classified))
    }

    fn report_invalid(&self, node: &Node, owner: &Owner) {
        let reference = ObjectReference {
            api_version: Some(node.resource.group_version().to_string()),
            kind: Some(node.resource.kind.to_string()),
            namespace: Some(node.key.namespace.to_string()).filter(|namespace| !namespace.is_empty()),
            name: Some(node.key.name.to_string()),
            ..ObjectReference::default()
        };
        let text = format!(
            "ownerRef [{}/{}, name: {}, uid: {}] does not exist in namespace {:?}",
            owner.api_version, owner.kind, owner.name, owner.uid, &*node.key.namespace
        );
        self.recorder.event_about(reference, EventType::Warning, "OwnerRefInvalidNamespace", text);
    }

    /// Writes another list of owner references, at the version it was made from.
    async fn patch_owners(&self, node: &Node, latest: &Value, owners: Vec<Value>) -> Result<(), ClientError> {
        let patch = json!({"metadata": {
            "resourceVersion": latest.resource_version(), "uid": latest.uid(), "ownerReferences": owners,
        }});
        let api = self.api(&node.resource, &node.key.namespace);
        ignore_not_found(api.patch(&node.key.name, &Patch::Merge(patch)).await.map(drop))
    }

    async fn drop_owners(&self, node: &Node, latest: &Value, gone: &[&Uid]) -> Result<(), ClientError> {
        let references = latest["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let kept =
            references.iter().filter(|reference| !gone.iter().any(|uid| reference["uid"].as_str() == Some(&***uid)));
        let kept: Vec<Value> = kept.cloned().collect();
        if kept.len() == references.len() {
            return Ok(());
        }
        self.patch_owners(node, latest, kept).await
    }

    async fn remove_finalizer(&self, uid: &Uid, node: &Node, finalizer: &str) -> Result<(), SyncError> {
        let Some(latest) = self.fetch(uid, node).await? else { return Ok(()) };
        let finalizers: Vec<&str> = latest.finalizers().collect();
        if !finalizers.contains(&finalizer) {
            return Ok(());
        }
        let kept: Vec<&str> = finalizers.into_iter().filter(|known| *known != finalizer).collect();
        let patch = json!({"metadata": {
            "resourceVersion": latest.resource_version(), "uid": &**uid, "finalizers": kept,
        }});
        let api = self.api(&node.resource, &node.key.namespace);
        let result = api.patch(&node.key.name, &Patch::Merge(patch)).await;
        ignore_not_found(result.map(drop)).map_err(SyncError::during("removing a finalizer"))
    }

    async fn delete(&self, uid: &Uid, node: &Node, latest: &Value, policy: Propagation) -> Result<(), SyncError> {
        let preconditions =
            Preconditions { uid: Some(uid.to_string()), resource_version: Some(latest.resource_version().to_owned()) };
        let options = DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() };
        let api = self.api(&node.resource, &node.key.namespace);
        let result = api.delete(&node.key.name, &options.propagation(policy)).await;
        ignore_not_found(result).map_err(SyncError::during("deleting a dependent"))
    }

    /// An owner in foreground deletion goes when no dependent blocks it.
    async fn finish_foreground(&self, uid: &Uid, node: &Node) -> Result<(), SyncError> {
        let blocking: Vec<(Uid, bool)> = {
            let graph = self.monitors.graph.lock();
            let state = |dependent: &Uid| graph.get(dependent).is_some_and(|node| node.deleting_dependents);
            graph.blocking_dependents(uid).into_iter().map(|dependent| (dependent.clone(), state(&dependent))).collect()
        };
        if blocking.is_empty() {
            return self.remove_finalizer(uid, node, FOREGROUND).await;
        }
        for (dependent, deletes_its_own) in blocking {
            if !deletes_its_own {
                self.queues.delete.add(dependent);
            }
        }
        Ok(())
    }

    async fn attempt_to_delete(&self, uid: &Uid, node: &Node) -> Result<(), SyncError> {
        if node.deleting_dependents {
            return self.finish_foreground(uid, node).await;
        }
        if node.deleting || self.monitors.graph.lock().is_held(node) {
            return Ok(());
        }
        let Some(latest) = self.fetch(uid, node).await? else {
            // The deletion event may come, or this was a remnant of a resource; either way it is gone.
            let work = self.monitors.graph.lock().remove(uid);
            self.queues.add(work);
            return Ok(());
        };
        let owners: Vec<Owner> =
            serde_json::from_value(latest["metadata"]["ownerReferences"].clone()).unwrap_or_default();
        if owners.is_empty() {
            return Ok(());
        }
        let Some(classified) = self.classify(node, &owners).await? else { return Ok(()) };
        if classified.solid > 0 {
            let gone: Vec<&Uid> = classified.removable.iter().map(|owner| &owner.uid).collect();
            return self.drop_owners(node, &latest, &gone).await.map_err(SyncError::during("dropping owners"));
        }
        let has = |finalizer: &str| latest.finalizers().any(|known| known == finalizer);
        let policy = if classified.waiting && self.has_dependents(uid) {
            if self.closes_a_circle(uid) {
                self.unblock(node, &latest).await?;
            }
            Propagation::Foreground
        } else if has(ORPHAN) {
            Propagation::Orphan
        } else if has(FOREGROUND) {
            Propagation::Foreground
        } else {
            Propagation::Background
        };
        // Unblocking changed the version.
        let latest = if self.closes_a_circle(uid) { self.fetch(uid, node).await? } else { Some(latest) };
        match latest {
            Some(latest) => self.delete(uid, node, &latest, policy).await,
            None => Ok(()),
        }
    }

    fn has_dependents(&self, uid: &Uid) -> bool {
        !self.monitors.graph.lock().dependents(uid).is_empty()
    }

    /// Whether a dependent is in foreground deletion itself: then the two might wait for each other.
    fn closes_a_circle(&self, uid: &Uid) -> bool {
        let graph = self.monitors.graph.lock();
        let waits = |dependent: &Uid| graph.get(dependent).is_some_and(|node| node.deleting_dependents);
        graph.dependents(uid).iter().any(waits)
    }

    async fn unblock(&self, node: &Node, latest: &Value) -> Result<(), ClientError> {
        let mut references = latest["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let blocks = |reference: &Value| reference["blockOwnerDeletion"] == true;
        if !references.iter().any(blocks) {
            return Ok(());
        }
        for reference in &mut references {
            reference["blockOwnerDeletion"] = false.into();
        }
        self.patch_owners(node, latest, references).await
    }

    async fn attempt_to_orphan(&self, uid: &Uid, node: &Node) -> Result<(), SyncError> {
        let dependents: Vec<(Uid, Node)> = {
            let graph = self.monitors.graph.lock();
            let dependents = graph.dependents(uid).into_iter();
            dependents.filter_map(|dependent| Some((dependent.clone(), graph.get(&dependent)?.clone()))).collect()
        };
        let mut errors = Vec::new();
        for (dependent_uid, dependent) in dependents {
            let orphaned = async {
                match self.fetch(&dependent_uid, &dependent).await? {
                    Some(latest) => self.drop_owners(&dependent, &latest, &[uid]).await,
                    None => Ok(()),
                }
            };
            errors.extend(orphaned.await.map_err(SyncError::during("orphaning a dependent")).err());
        }
        SyncError::all(errors)?;
        self.remove_finalizer(uid, node, ORPHAN).await
    }
}

impl Reconciler<Uid> for Collector {
    async fn sync(&self, uid: &Uid) -> Result<Requeue, SyncError> {
        let node = self.monitors.graph.lock().get(uid).cloned();
        match node {
            Some(node) => self.attempt_to_delete(uid, &node).await.map(|()| Requeue::Never),
            None => Ok(Requeue::Never),
        }
    }
}

/// The collector's other half: owners whose dependents are to stay.
struct Orphaning(Arc<Collector>);

impl Reconciler<Uid> for Orphaning {
    async fn sync(&self, uid: &Uid) -> Result<Requeue, SyncError> {
        let node = self.0.monitors.graph.lock().get(uid).cloned();
        match node.filter(|node| node.orphaning) {
            Some(node) => self.0.attempt_to_orphan(uid, &node).await.map(|()| Requeue::Never),
            None => Ok(Requeue::Never),
        }
    }
}
