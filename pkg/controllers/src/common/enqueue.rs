//! From an object to the keys of those that care about it.

use std::sync::Arc;

use rkube_api::Kind;
use rkube_api::meta::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{controller_of_kind, object_key, uid_of};
use rkube_client::{Delta, Informer, Lister, WorkQueue};

/// Queues every object of the informer when it appears, changes or goes.
pub(crate) fn enqueue_all<K: Kind>(informer: &Informer<K>, queue: &WorkQueue<ObjectKey>) {
    let queue = queue.clone();
    informer.core().add_handler(move |delta| queue.add(delta.object().key.clone()));
}

/// The controller of an object as the cache has it: of this kind, name and uid.
pub(crate) fn resolve_controller<O: Kind>(owners: &Lister<O>, metadata: &ObjectMeta) -> Option<Arc<O>> {
    let reference = controller_of_kind::<O>(metadata)?;
    resolve(owners, metadata.namespace.as_deref().unwrap_or_default(), reference)
}

/// The object a reference names, unless it is another one under the same name.
pub(crate) fn resolve<O: Kind>(owners: &Lister<O>, namespace: &str, reference: &OwnerReference) -> Option<Arc<O>> {
    let namespace = if O::NAMESPACED { namespace } else { "" };
    owners.get_named(namespace, &reference.name).filter(|owner| uid_of(&**owner) == reference.uid)
}

/// What a change of a dependent object means to its controllers.
pub(crate) struct Owners {
    /// The controller it has, or had last.
    pub(crate) current: Option<ObjectKey>,
    /// The controller it had before the change, if that was another.
    pub(crate) former: Option<ObjectKey>,
    /// It has no controller, and is new or changed in what selectors and adoption look at.
    pub(crate) adoptable: bool,
}

/// Finds the controllers of kind `O` that a change concerns.
pub(crate) fn owners_of<O: Kind, K: Kind>(owners: &Lister<O>, delta: &Delta<Arc<K>>) -> Owners {
    let metadata = delta.object().metadata();
    let key_of = |metadata: &ObjectMeta| resolve_controller(owners, metadata).map(|owner| object_key(&*owner));
    let controller = |metadata: &ObjectMeta| rkube_client::owner::controller_of(metadata).cloned();
    let current = key_of(metadata);
    let old = delta.old().map(|old| old.metadata());
    let moved = old.is_some_and(|old| controller(old) != controller(metadata));
    let former = old.filter(|_| moved).and_then(key_of).filter(|former| Some(former) != current.as_ref());
    let orphan = controller(metadata).is_none() && metadata.deletion_timestamp.is_none();
    let relabelled = old.is_some_and(|old| old.labels != metadata.labels);
    let adoptable = orphan && (matches!(delta, Delta::Added(_)) || moved || relabelled);
    Owners { current, former, adoptable }
}
