//! Namespace controller: empties namespaces that are being deleted, then lets them go.
//!
//! Watches  v1 Namespace (primary); v1 Pod (deletions in terminating namespaces)
//! Reads    discovery, and lists of every namespaced resource, of terminating namespaces only
//! Writes   deletions in the namespace; Namespace status conditions; Namespace `finalize`
//! Behaves as  pkg/controller/namespace/deletion, v1.36
//!
//! Invariant: the finalizer is removed only after a consistent list of every resource that discovery names was
//! empty. Pods go first, so that nothing they depend on goes before them.
//!
//! // Differs from upstream: resources whose list is empty get no delete request, and the work starts at once instead
//! of after five seconds: there is one lifecycle check, in the one write path.

mod conditions;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Namespace, Pod};
use rkube_api::resource::SharedResource;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::meta::Meta;
use rkube_client::transport::ObjectList;
use rkube_client::{
    Client, ClientError, DeleteOptions, Delta, ListParams, Lister, Propagation, Reconciler, Requeue, SyncError,
    WorkQueue,
};

use crate::common::discovery::discover;
use crate::common::errors::ignore_not_found;
use crate::common::pods;
use crate::context::{ControllerContext, Descriptor, Running};
use conditions::Report;

const NAME: &str = "namespace-controller";
const FINALIZER: &str = "kubernetes";
/// How long finalizers of others are given before the next look.
const FINALIZER_ESTIMATE: Duration = Duration::from_secs(15);

pub(crate) const NAMESPACE: Descriptor = Descriptor::new(NAME, "namespace", start);

struct NamespaceController {
    client: Client,
    clock: SharedClock,
    namespaces: Lister<Namespace>,
}

fn start(context: &ControllerContext) -> Running {
    let namespaces = context.informers.informer::<Namespace>();
    let pods = context.informers.informer::<Pod>();
    let queue: WorkQueue<ObjectKey> = context.queue("namespace");
    let controller = Arc::new(NamespaceController {
        client: context.client_for(NAME),
        clock: context.clock().clone(),
        namespaces: namespaces.lister(),
    });
    let keys = queue.clone();
    namespaces.add_handler(move |delta| {
        let metadata = &delta.object().metadata;
        if !matches!(delta, Delta::Deleted(_)) && metadata.deletion_timestamp.is_some() {
            keys.add(ObjectKey::cluster(metadata.name.as_deref().unwrap_or_default()));
        }
    });
    // The last pod that ends lets the rest go, without waiting for the estimate.
    let (lister, keys) = (namespaces.lister(), queue.clone());
    pods.core().add_handler(move |delta| {
        if let Delta::Deleted(pod) = delta {
            let key = ObjectKey::cluster(Arc::clone(&pod.key.namespace));
            if lister.get(&key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
                keys.add(key);
            }
        }
    });
    context.run(NAME, &queue, &controller, 10)
}

/// What is left of one resource.
struct Remaining {
    count: usize,
    finalizers: BTreeMap<String, usize>,
    /// How long it will probably take.
    estimate: Duration,
}

impl NamespaceController {
    /// Deletes everything of a resource in the namespace and says what is left.
    async fn empty(
        &self,
        resource: &SharedResource,
        namespace: &str,
        deleted_at: Timestamp,
    ) -> Result<Remaining, ClientError> {
        let nothing = || Remaining { count: 0, finalizers: BTreeMap::new(), estimate: Duration::ZERO };
        let api = self.client.dynamic(Arc::clone(resource), namespace);
        let Some(present) = unless_unsupported(api.list(&ListParams::default()).await)? else { return Ok(nothing()) };
        if present.items.is_empty() {
            return Ok(nothing());
        }
        let estimate = self.estimate(resource, &present, deleted_at);
        let options = DeleteOptions::default().propagation(Propagation::Background);
        let collected = if resource.has_verb("deletecollection") {
            unless_unsupported(api.delete_collection(&options, &ListParams::default()).await)?.is_some()
        } else {
            false
        };
        if !collected {
            for object in &present.items {
                ignore_not_found(api.delete(&object.key.name, &options).await)?;
            }
        }
        let Some(left) = unless_unsupported(api.list(&ListParams::default()).await)? else { return Ok(nothing()) };
        let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
        for object in &left.items {
            let value = object.value().unwrap_or_default();
            for finalizer in value.finalizers() {
                *finalizers.entry(finalizer.to_owned()).or_default() += 1;
            }
        }
        let count = left.items.len();
        let estimate = if count > 0 && estimate.is_zero() { FINALIZER_ESTIMATE } else { estimate };
        Ok(Remaining { count, finalizers, estimate: if count == 0 { Duration::ZERO } else { estimate } })
    }

    /// Pods may take their grace period.
    fn estimate(&self, resource: &SharedResource, present: &ObjectList, deleted_at: Timestamp) -> Duration {
        if !(resource.group.is_empty() && resource.plural == Pod::PLURAL) {
            return Duration::ZERO;
        }
        let running = present.items.iter().filter_map(|object| object.typed::<Pod>().ok());
        let running = running.filter(|pod| !pods::is_terminal(pod));
        let grace = running.filter_map(|pod| pod.spec.as_ref()?.termination_grace_period_seconds).max().unwrap_or(0);
        let since = self.clock.now().duration_since(deleted_at).as_secs();
        if since >= grace { Duration::ZERO } else { Duration::from_secs(u64::try_from(grace).unwrap_or(0)) }
    }

    /// Empties the namespace; `report` collects what there is to say. How long the rest will take, if there is any.
    async fn delete_all_content(
        &self,
        namespace: &Namespace,
        deleted_at: Timestamp,
        report: &mut Report,
    ) -> Option<Duration> {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let discovered = match discover(&self.client).await {
            Ok(discovered) => discovered,
            Err(error) => {
                report.discovery_failed(error.to_string());
                return None;
            }
        };
        if !discovered.stale.is_empty() {
            let text = discovered.stale.iter().map(|version| format!("{version}: stale GroupVersion discovery"));
            let text = text.collect::<Vec<_>>().join(", ");
            report.discovery_failed(format!(
                "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {text}",
                discovered.stale.len()
            ));
        }
        let deletable = |resource: &&SharedResource| {
            resource.namespaced && resource.has_verb("delete") && resource.has_verb("list")
        };
        let (pods, others): (Vec<&SharedResource>, Vec<_>) = discovered
            .resources
            .iter()
            .filter(deletable)
            .partition(|resource| resource.group.is_empty() && resource.plural == Pod::PLURAL);
        let mut estimate = None;
        for resources in [pods, others] {
            for resource in resources {
                match self.empty(resource, name, deleted_at).await {
                    Ok(left) if left.count == 0 => {}
                    Ok(left) => {
                        report.remains(resource, left.count, &left.finalizers);
                        estimate = estimate.max(Some(left.estimate));
                    }
                    Err(error) => report.content_failed(error.to_string()),
                }
            }
            if estimate.is_some() {
                break;
            }
        }
        estimate
    }

    /// Writes the conditions if they changed.
    async fn write_conditions(&self, namespace: &Namespace, report: &Report) -> Result<Namespace, SyncError> {
        let mut updated = namespace.clone();
        let status = updated.status.get_or_insert_default();
        status.phase = Some("Terminating".to_owned());
        status.conditions = Some(report.conditions(status.conditions.as_deref().unwrap_or_default(), self.clock.now()));
        if updated.status == namespace.status {
            return Ok(updated);
        }
        let api = self.client.all::<Namespace>();
        api.update_status(&updated).await.map_err(SyncError::during("writing namespace conditions"))
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), SyncError> {
        let mut value = namespace.to_value();
        let finalizers = namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten());
        let left: Vec<&String> = finalizers.filter(|finalizer| *finalizer != FINALIZER).collect();
        value["spec"]["finalizers"] = left.into_iter().cloned().collect();
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let api = self.client.all::<Namespace>();
        let result = api.dynamic().update_subresource(name, "finalize", &value).await;
        ignore_not_found(result.map(drop)).map_err(SyncError::during("finalizing the namespace"))
    }
}

impl Reconciler for NamespaceController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(cached) = self.namespaces.get(key) else { return Ok(Requeue::Never) };
        if cached.metadata.deletion_timestamp.is_none() {
            return Ok(Requeue::Never);
        }
        // What is deleted here is gone for good, so the decision is made on the API's word, not the cache's.
        let namespace = match self.client.all::<Namespace>().get(&key.name).await {
            Ok(namespace) => namespace,
            Err(error) if error.is_not_found() => return Ok(Requeue::Never),
            Err(error) => return Err(error.into()),
        };
        let Some(deleted_at) = namespace.metadata.deletion_timestamp.as_ref().map(|time| time.0) else {
            return Ok(Requeue::Never);
        };
        let ours = namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten()).any(|f| f == FINALIZER);
        if !ours {
            return Ok(Requeue::Never);
        }
        let mut report = Report::default();
        let estimate = self.delete_all_content(&namespace, deleted_at, &mut report).await;
        let namespace = self.write_conditions(&namespace, &report).await?;
        if report.has_failures() {
            return Err(SyncError::other(report.failures()));
        }
        match estimate {
            Some(estimate) => Ok(Requeue::After(estimate / 2 + Duration::from_secs(1))),
            None => self.finalize(&namespace).await.map(|()| Requeue::Never),
        }
    }
}

/// `None` if the server does not know the resource or the verb: a custom resource may have gone meanwhile.
fn unless_unsupported<T>(result: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() || error.status().is_some_and(|status| status.code() == 405) => Ok(None),
        Err(error) => Err(error),
    }
}
