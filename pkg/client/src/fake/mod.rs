//! An API server in memory, for tests of whatever speaks through a [`Client`](crate::Client).
//!
//! It has what controllers depend on: resource versions, conflicts, uids, generations, graceful and
//! finalized deletion, generated names, status and scale subresources, patches, selectors, watches with
//! initial events and bookmarks. It does not validate, default or authorize.
//!
//! A [`FakeTransport`] is one process's connection. It can be told to die after its n-th write: the write
//! happens, the answer never comes, and nothing after it does either. That is what a crash looks like.

mod patch;
mod request;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rkube_api::Kind;
use rkube_api::StoredObject;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::status::ApiStatus;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::transport::{
    ClientError, ListRequest, ObjectList, SharedTransport, Transport, WatchEvent, WatchRequest, WatchStream,
};
pub use request::Action;
use request::Target;
use state::{Filter, State};

/// More than the longest chain of tasks that wake one another without a request in between.
const SETTLED_YIELDS: u32 = 100;

/// Decides about a request before it is carried out: `Some` is the answer it gets instead.
type Reaction = Box<dyn Fn(&Action) -> Option<ApiStatus> + Send + Sync>;

/// The server. Clones share its state.
#[derive(Clone)]
pub struct FakeApi(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Notify,
    reactions: Mutex<Vec<Reaction>>,
    actions: Mutex<Vec<Action>>,
}

impl FakeApi {
    pub fn new(clock: SharedClock) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State::new(clock)),
            changed: Notify::new(),
            reactions: Mutex::new(Vec::new()),
            actions: Mutex::new(Vec::new()),
        }))
    }

    /// A connection that works.
    pub fn connect(&self) -> SharedTransport {
        self.connect_until_write(i64::MAX).0
    }

    /// A connection that dies with its `writes`-th write, and a token that says when it has.
    pub fn connect_until_write(&self, writes: i64) -> (SharedTransport, CancellationToken) {
        let dead = CancellationToken::new();
        let transport = FakeTransport { api: self.clone(), left: AtomicI64::new(writes), dead: dead.clone() };
        (Arc::new(transport), dead)
    }

    /// Pods bound to a node stay with a deletion timestamp until `finish_deletion`, as if a kubelet stopped them.
    pub fn keep_terminating_pods(&self) {
        self.0.state.lock().graceful_pods = true;
    }

    /// Puts an object as it is, status included, over whatever is there.
    pub fn put<K: Kind>(&self, object: &K) {
        self.put_value(K::PLURAL, object.to_value());
    }

    /// As `put`, for any resource.
    pub fn put_value(&self, plural: &str, object: Value) {
        self.0.state.lock().put(plural, object);
        self.0.changed.notify_waiters();
    }

    /// Changes an object in place, status included, as its other writers would.
    ///
    /// # Panics
    /// If it is not there: tests name objects they made.
    pub fn edit<K: Kind>(&self, namespace: &str, name: &str, edit: impl FnOnce(&mut K)) {
        let mut object = (*self.get::<K>(namespace, name).expect("the object to edit is there")).clone();
        edit(&mut object);
        self.put(&object);
    }

    /// Removes an object whatever its finalizers say.
    pub fn remove<K: Kind>(&self, namespace: &str, name: &str) {
        self.0.state.lock().remove(K::GROUP, K::PLURAL, &ObjectKey::new(namespace, name));
        self.0.changed.notify_waiters();
    }

    /// Removes every pod that is terminating and has no finalizer, as kubelets do in the end.
    pub fn finish_deletions(&self) {
        self.0.state.lock().finish_deletions();
        self.0.changed.notify_waiters();
    }

    pub fn get<K: Kind>(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let stored = self.0.state.lock().get(K::GROUP, K::PLURAL, &ObjectKey::new(namespace, name))?;
        Some(stored.typed().expect("the fake holds what a typed client wrote"))
    }

    pub fn list<K: Kind>(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.0.state.lock().list(K::GROUP, K::PLURAL);
        objects
            .iter()
            .filter(|object| namespace.is_empty() || &*object.key.namespace == namespace)
            .map(|object| object.typed().expect("the fake holds what a typed client wrote"))
            .collect()
    }

    /// Objects of any resource as JSON.
    pub fn list_values(&self, group: &str, plural: &str) -> Vec<Value> {
        let objects = self.0.state.lock().list(group, plural);
        objects.iter().filter_map(|object| object.value().ok()).collect()
    }

    /// What GET on a path outside of resources answers: discovery, metrics.
    pub fn set_raw(&self, path: &str, body: Value) {
        self.0.state.lock().raw.insert(path.to_owned(), body);
    }

    /// Lets `reaction` answer requests instead of the store. The first that answers wins.
    pub fn react(&self, reaction: impl Fn(&Action) -> Option<ApiStatus> + Send + Sync + 'static) {
        self.0.reactions.lock().push(Box::new(reaction));
    }

    pub fn clear_reactions(&self) {
        self.0.reactions.lock().clear();
    }

    /// Every request since the last call, lists and watches included, in order.
    pub fn take_actions(&self) -> Vec<Action> {
        std::mem::take(&mut *self.0.actions.lock())
    }

    /// As `take_actions`, of those that try to change something, one per line.
    pub fn take_writes(&self) -> String {
        let writes = self.take_actions().into_iter().filter(Action::is_write);
        writes.map(|action| action.to_string()).collect::<Vec<_>>().join("\n")
    }

    pub fn revision(&self) -> u64 {
        self.0.state.lock().revision
    }

    /// How many requests were made since the start, actions taken or not.
    pub fn request_count(&self) -> u64 {
        self.0.state.lock().requests
    }

    /// Forgets history: watches from before now answer 410.
    pub fn compact(&self) {
        self.0.state.lock().compact();
        self.0.changed.notify_waiters();
    }

    /// Ends every running watch, as a server does when it restarts.
    pub fn drop_watches(&self) {
        self.0.state.lock().watch_epoch += 1;
        self.0.changed.notify_waiters();
    }

    /// Waits until `holds`, looking again after every change.
    pub async fn wait_until(&self, holds: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }

    /// Lets everything else in this thread's runtime run until no request was made for a while. For tests
    /// on one thread and a fake clock, where a task that can run does run when others yield.
    pub async fn settle(&self) {
        let mut quiet = 0;
        let mut seen = (self.request_count(), self.revision());
        while quiet < SETTLED_YIELDS {
            tokio::task::yield_now().await;
            let now = (self.request_count(), self.revision());
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
        }
    }

    fn note(&self, action: Action) -> Result<(), ClientError> {
        self.0.state.lock().requests += 1;
        let reaction = self.0.reactions.lock().iter().find_map(|reaction| reaction(&action));
        self.0.actions.lock().push(action);
        reaction.map_or(Ok(()), |status| Err(ClientError::Api(status)))
    }
}

/// One process's connection.
struct FakeTransport {
    api: FakeApi,
    left: AtomicI64,
    dead: CancellationToken,
}

impl FakeTransport {
    /// Waits forever if the process is dead.
    async fn alive(&self) {
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

impl Transport for FakeTransport {
    fn send(&self, request: http::Request<Bytes>) -> BoxFuture<'_, Result<http::Response<Bytes>, ClientError>> {
        Box::pin(async move {
            self.alive().await;
            let (parts, body) = request.into_parts();
            let target = Target::parse(parts.uri.path());
            let action = Action::new(&parts, &target, &body);
            let is_write = action.is_write();
            self.api.note(action)?;
            let answer = {
                let mut state = self.api.0.state.lock();
                state.serve(&parts, &target, &body)
            };
            self.api.0.changed.notify_waiters();
            if is_write && answer.is_ok() && self.left.fetch_sub(1, Ordering::Relaxed) <= 1 {
                self.dead.cancel();
                self.alive().await;
            }
            // A real connection never answers within the same poll; races show only with this.
            tokio::task::yield_now().await;
            let (code, value) = answer?;
            http::Response::builder()
                .status(code)
                .body(Bytes::from(value.to_string()))
                .map_err(|source| ClientError::Request { path: parts.uri.path().to_owned(), source: Box::new(source) })
        })
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, ClientError>> {
        Box::pin(async move {
            self.alive().await;
            self.api.note(Action::collection("watch", &request.resource, &request.namespace))?;
            let filter =
                Filter::new(&request.resource, &request.namespace, &request.label_selector, &request.field_selector)?;
            let (initial, position, epoch) = self.api.0.state.lock().start_watch(&request, &filter)?;
            let watcher = Watcher { api: self.api.clone(), filter, position, epoch, dead: self.dead.clone() };
            let live = futures_util::stream::unfold(Some(watcher), |watcher| async move {
                let mut watcher = watcher?;
                let event = watcher.next().await?;
                let more = event.is_ok().then_some(watcher);
                Some((event, more))
            });
            Ok(futures_util::stream::iter(initial.into_iter().map(Ok)).chain(live).boxed())
        })
    }

    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<ObjectList, ClientError>> {
        Box::pin(async move {
            self.alive().await;
            self.api.note(Action::collection("list", &request.resource, &request.namespace))?;
            let filter =
                Filter::new(&request.resource, &request.namespace, &request.label_selector, &request.field_selector)?;
            tokio::task::yield_now().await;
            let state = self.api.0.state.lock();
            Ok(ObjectList {
                items: state.select(&filter),
                resource_version: state.revision.to_string(),
                continue_token: String::new(),
            })
        })
    }
}

struct Watcher {
    api: FakeApi,
    filter: Filter,
    /// Index into the log of the next change to look at.
    position: u64,
    epoch: u64,
    dead: CancellationToken,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchEvent, ClientError>> {
        loop {
            if self.dead.is_cancelled() {
                std::future::pending::<()>().await;
            }
            let changed = self.api.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.api.0.state.lock();
                if state.watch_epoch != self.epoch {
                    return None;
                }
                match state.next_event(&self.filter, &mut self.position) {
                    Ok(Some(event)) => return Some(Ok(event)),
                    Ok(None) => {}
                    Err(status) => return Some(Err(ClientError::Api(status))),
                }
            }
            changed.await;
        }
    }
}

/// A stored object as the machinery hands it around, from its JSON.
pub fn stored(object: &Value) -> Arc<StoredObject> {
    state::stored_from(object)
}
