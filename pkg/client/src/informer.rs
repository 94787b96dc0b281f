//! Shared informers: one watch and one store per resource and process, read by any number of listers and
//! reported to any number of handlers.
//!
//! The core holds `Arc<StoredObject>` and is compiled once; [`Informer`] and [`Lister`] add the type. The typed
//! form is the one that hangs on the stored object, so that all of the process shares one decoded copy.
//! Behaves as `k8s.io/client-go/tools/cache` (`shared_informer.go`, `thread_safe_store.go`), v1.36.
//!
//! // Differs from upstream: handlers run in the reflector's task, in order, after the store changed. They
//! must not block; they enqueue keys. In return there is no buffer to grow, and a synced informer has
//! told its handlers everything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::marker::PhantomData;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rkube_api::object::Selection;
use rkube_api::{Kind, StoredObject};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::labels::Selector;
use tokio::sync::watch;
use tracing::{error, warn};

use crate::reflector::{Scope, Sink};

/// A change in a store.
#[derive(Clone, Debug)]
pub enum Delta<T> {
    Added(T),
    /// `old` and `new` are the same object: a deletion and re-creation is reported as that.
    Updated {
        old: T,
        new: T,
    },
    /// The last state that was seen.
    Deleted(T),
}

impl<T> Delta<T> {
    /// The object as it is now, or was last.
    pub fn object(&self) -> &T {
        match self {
            Self::Added(object) | Self::Updated { new: object, .. } | Self::Deleted(object) => object,
        }
    }

    /// The object before the change, if it was there.
    pub fn old(&self) -> Option<&T> {
        match self {
            Self::Updated { old, .. } => Some(old),
            Self::Added(_) | Self::Deleted(_) => None,
        }
    }
}

type Handler = Box<dyn Fn(&Delta<Arc<StoredObject>>) + Send + Sync>;
type IndexFn = Box<dyn Fn(&StoredObject) -> Vec<String> + Send + Sync>;

struct Index {
    values_of: IndexFn,
    keys: HashMap<String, BTreeSet<ObjectKey>>,
}

impl Index {
    fn insert(&mut self, object: &StoredObject) {
        for value in (self.values_of)(object) {
            self.keys.entry(value).or_default().insert(object.key.clone());
        }
    }

    /// Most changes of an object leave its values as they are, and the sets can be large.
    fn replace(&mut self, old: &StoredObject, new: &StoredObject) {
        if (self.values_of)(old) != (self.values_of)(new) {
            self.remove(old);
            self.insert(new);
        }
    }

    fn remove(&mut self, object: &StoredObject) {
        for value in (self.values_of)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(&object.key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

#[derive(Default)]
struct Store {
    objects: BTreeMap<ObjectKey, Arc<StoredObject>>,
    indexes: HashMap<&'static str, Index>,
}

impl Store {
    fn insert(&mut self, object: Arc<StoredObject>) -> Option<Arc<StoredObject>> {
        let old = self.objects.insert(object.key.clone(), Arc::clone(&object));
        for index in self.indexes.values_mut() {
            match &old {
                Some(old) => index.replace(old, &object),
                None => index.insert(&object),
            }
        }
        old
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Arc<StoredObject>> {
        let old = self.objects.remove(key)?;
        for index in self.indexes.values_mut() {
            index.remove(&old);
        }
        Some(old)
    }
}

/// The untyped core of an informer.
///
/// # Guarantees
/// Handlers see every object exactly once as added before anything else of it, changes in order, and nothing
/// twice. What a handler is told is in the store already. Objects are never changed, only replaced.
/// # Assumptions
/// Handlers do not block and do not add handlers to their own informer.
pub struct SharedInformer {
    scope: Scope,
    store: RwLock<Store>,
    /// Held while handlers are told, so that a new handler's replay and live changes do not mix.
    handlers: Mutex<Vec<Handler>>,
    synced: watch::Sender<bool>,
}

impl SharedInformer {
    pub fn new(scope: Scope) -> Arc<Self> {
        let store = RwLock::new(Store::default());
        Arc::new(Self { scope, store, handlers: Mutex::new(Vec::new()), synced: watch::Sender::new(false) })
    }

    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    pub fn has_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Resolves once the store holds a complete list and all handlers were told.
    pub async fn synced(&self) {
        // The sender is `self`, which outlives the wait.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Tells `handler` everything in the store as added, then every change.
    pub fn add_handler(&self, handler: impl Fn(&Delta<Arc<StoredObject>>) + Send + Sync + 'static) {
        let mut handlers = self.handlers.lock();
        let handler: Handler = Box::new(handler);
        let present: Vec<_> = self.store.read().objects.values().cloned().collect();
        for object in present {
            self.tell(std::slice::from_ref(&handler), &Delta::Added(object));
        }
        handlers.push(handler);
    }

    /// Adds an index, or does nothing if there is one of that name: a name stands for one function.
    pub fn add_index(
        &self,
        name: &'static str,
        values_of: impl Fn(&StoredObject) -> Vec<String> + Send + Sync + 'static,
    ) {
        let mut store = self.store.write();
        if store.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { values_of: Box::new(values_of), keys: HashMap::new() };
        for object in store.objects.values() {
            index.insert(object);
        }
        store.indexes.insert(name, index);
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<StoredObject>> {
        self.store.read().objects.get(key).cloned()
    }

    pub fn len(&self) -> usize {
        self.store.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Objects in key order. An empty namespace means all.
    pub fn list(&self, namespace: &str, mut matches: impl FnMut(&Selection) -> bool) -> Vec<Arc<StoredObject>> {
        let store = self.store.read();
        let mut keep = |object: &&Arc<StoredObject>| matches(&object.selection);
        if namespace.is_empty() {
            return store.objects.values().filter(&mut keep).cloned().collect();
        }
        let first = ObjectKey::new(namespace, "");
        store
            .objects
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(|(key, _)| &*key.namespace == namespace)
            .map(|(_, object)| object)
            .filter(&mut keep)
            .cloned()
            .collect()
    }

    /// Objects whose index has `value`, in key order. An index that does not exist has nothing.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<StoredObject>> {
        let store = self.store.read();
        let keys = store.indexes.get(index).and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| store.objects.get(key).cloned()).collect()
    }

    /// How many objects [`by_index`](Self::by_index) would return.
    pub fn count_by_index(&self, index: &str, value: &str) -> usize {
        let store = self.store.read();
        store.indexes.get(index).and_then(|index| index.keys.get(value)).map_or(0, BTreeSet::len)
    }

    /// The values an index has at present.
    pub fn index_values(&self, index: &str) -> Vec<String> {
        let store = self.store.read();
        store.indexes.get(index).map(|index| index.keys.keys().cloned().collect()).unwrap_or_default()
    }

    fn tell(&self, handlers: &[Handler], delta: &Delta<Arc<StoredObject>>) {
        for handler in handlers {
            // One handler's bug must not stop the watch that all others live on.
            if catch_unwind(AssertUnwindSafe(|| handler(delta))).is_err() {
                error!(resource = %self.scope.resource.gvr(), key = %delta.object().key, "Event handler panicked");
            }
        }
    }

    /// Tells of a replaced object, as what it is: another object under the same name is not an update.
    fn tell_replaced(&self, handlers: &[Handler], old: Option<Arc<StoredObject>>, new: Arc<StoredObject>) {
        match old {
            None => self.tell(handlers, &Delta::Added(new)),
            Some(old) if old.revision == new.revision => {}
            Some(old) if old.selection.uid == new.selection.uid => self.tell(handlers, &Delta::Updated { old, new }),
            Some(old) => {
                self.tell(handlers, &Delta::Deleted(old));
                self.tell(handlers, &Delta::Added(new));
            }
        }
    }
}

impl Sink for SharedInformer {
    fn replace(&self, objects: BTreeMap<ObjectKey, Arc<StoredObject>>) {
        let handlers = self.handlers.lock();
        let mut changes = Vec::new();
        {
            let mut store = self.store.write();
            let gone: Vec<ObjectKey> =
                store.objects.keys().filter(|key| !objects.contains_key(*key)).cloned().collect();
            for key in gone {
                if let Some(old) = store.remove(&key) {
                    changes.push((Some(old), None));
                }
            }
            for object in objects.into_values() {
                let old = store.insert(Arc::clone(&object));
                changes.push((old, Some(object)));
            }
        }
        for change in changes {
            match change {
                (old, Some(new)) => self.tell_replaced(&handlers, old, new),
                (Some(old), None) => self.tell(&handlers, &Delta::Deleted(old)),
                (None, None) => {}
            }
        }
        self.synced.send_replace(true);
    }

    fn upsert(&self, object: Arc<StoredObject>) {
        let handlers = self.handlers.lock();
        let old = self.store.write().insert(Arc::clone(&object));
        self.tell_replaced(&handlers, old, object);
    }

    fn remove(&self, last: Arc<StoredObject>) {
        let handlers = self.handlers.lock();
        let removed = self.store.write().remove(&last.key);
        if removed.is_some() {
            self.tell(&handlers, &Delta::Deleted(last));
        }
    }
}

/// The typed form, or a log line and nothing: one undecodable object must not hide the others.
fn typed<K: Kind>(object: &StoredObject) -> Option<Arc<K>> {
    match object.typed() {
        Ok(typed) => Some(typed),
        Err(error) => {
            warn!(kind = K::KIND, key = %object.key, error = %chain(&error), "Ignored an object that does not decode");
            None
        }
    }
}

/// A typed view of a shared informer.
pub struct Informer<K> {
    core: Arc<SharedInformer>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core), kind: PhantomData }
    }
}

impl<K: Kind> Informer<K> {
    pub fn new(core: Arc<SharedInformer>) -> Self {
        Self { core, kind: PhantomData }
    }

    pub fn core(&self) -> &Arc<SharedInformer> {
        &self.core
    }

    pub fn lister(&self) -> Lister<K> {
        Lister { core: Arc::clone(&self.core), kind: PhantomData }
    }

    /// See [`SharedInformer::add_handler`].
    pub fn add_handler(&self, handler: impl Fn(Delta<Arc<K>>) + Send + Sync + 'static) {
        self.core.add_handler(move |delta| {
            let delta = match delta {
                Delta::Added(object) => typed(object).map(Delta::Added),
                Delta::Updated { old, new } => match (typed(old), typed(new)) {
                    (Some(old), Some(new)) => Some(Delta::Updated { old, new }),
                    (None, Some(new)) => Some(Delta::Added(new)),
                    (_, None) => None,
                },
                Delta::Deleted(object) => typed(object).map(Delta::Deleted),
            };
            if let Some(delta) = delta {
                handler(delta);
            }
        });
    }

    /// See [`SharedInformer::add_index`].
    pub fn add_index(&self, name: &'static str, values_of: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        self.core.add_index(name, move |object| typed(object).map(|object| values_of(&object)).unwrap_or_default());
    }

    pub fn has_synced(&self) -> bool {
        self.core.has_synced()
    }
}

/// Reads an informer's store.
pub struct Lister<K> {
    core: Arc<SharedInformer>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Lister<K> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core), kind: PhantomData }
    }
}

impl<K: Kind> Lister<K> {
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.core.get(key).and_then(|object| typed(&object))
    }

    /// By name, of a cluster-scoped kind or in a namespace.
    pub fn get_named(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get(&ObjectKey::new(namespace, name))
    }

    /// Everything in a namespace, or everywhere if that is empty, in key order.
    pub fn list_all(&self, namespace: &str) -> Vec<Arc<K>> {
        self.list_where(namespace, |_| true)
    }

    /// What a selector selects in a namespace, or everywhere if that is empty, in key order.
    pub fn list(&self, namespace: &str, selector: &Selector) -> Vec<Arc<K>> {
        self.list_where(namespace, |selection| selector.matches(&selection.labels))
    }

    /// As `list_all`, of what `matches`; nothing else is decoded.
    pub fn list_where(&self, namespace: &str, matches: impl FnMut(&Selection) -> bool) -> Vec<Arc<K>> {
        self.core.list(namespace, matches).iter().filter_map(|object| typed(object)).collect()
    }

    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        self.core.by_index(index, value).iter().filter_map(|object| typed(object)).collect()
    }

    pub fn len(&self) -> usize {
        self.core.len()
    }

    pub fn is_empty(&self) -> bool {
        self.core.is_empty()
    }
}
