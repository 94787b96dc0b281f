//! Keeps a store equal to what the server has: lists, watches, and lists again when it must.
//!
//! Starts with a streaming list (`sendInitialEvents`) and falls back to LIST and WATCH when the server
//! refuses that. Behaves as `k8s.io/client-go/tools/cache/reflector.go`, v1.36.
//!
//! Invariant: the store is replaced only by a complete list, and changed only by events after it, in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rkube_api::StoredObject;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::random;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::backoff::ReflectorBackoff;
use crate::client::Client;
use crate::transport::{ClientError, ListRequest, WatchEvent, WatchRequest, WatchStream};

/// Watches end after this long, doubled at random, so that they do not all end at once.
const WATCH_TIMEOUT_SECONDS: u32 = 300;
/// A watch that ends sooner than this and brought nothing is a fault, not a time-out.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// What to reflect.
#[derive(Clone, Debug)]
pub struct Scope {
    pub resource: SharedResource,
    /// Empty for all.
    pub namespace: String,
    pub label_selector: String,
    pub field_selector: String,
}

/// Where a reflector puts what it sees.
pub trait Sink: Send + Sync {
    /// Everything there is; whatever is not in `objects` is gone.
    fn replace(&self, objects: BTreeMap<ObjectKey, Arc<StoredObject>>);
    /// An object is new or changed.
    fn upsert(&self, object: Arc<StoredObject>);
    /// An object is gone; `last` is its last state.
    fn remove(&self, last: Arc<StoredObject>);
}

/// Why a watch or list ended.
enum Stopped {
    /// Go on from the last version seen.
    Again,
    /// The version is too old: start over.
    Expired,
    /// Go on from the last version seen, after a while.
    Failed,
}

/// Runs until `shutdown`.
pub async fn run(client: Client, scope: Scope, sink: Arc<dyn Sink>, shutdown: CancellationToken) {
    let backoff = ReflectorBackoff::new(&client);
    let reflector = Reflector { client, scope, sink, backoff, streaming: true, version: String::new(), listed: false };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = reflector.run() => {}
    }
}

struct Reflector {
    client: Client,
    scope: Scope,
    sink: Arc<dyn Sink>,
    backoff: ReflectorBackoff,
    /// Whether the server is thought to understand `sendInitialEvents`.
    streaming: bool,
    /// The version everything in the store is at; empty before the first list.
    version: String,
    /// Whether `version` may be watched from.
    listed: bool,
}

impl Reflector {
    async fn run(mut self) {
        loop {
            let stopped = if self.listed { self.watch().await } else { self.populate().await };
            match stopped {
                Stopped::Again => {}
                Stopped::Expired => {
                    self.listed = false;
                    self.version.clear();
                }
                Stopped::Failed => self.backoff.wait(&self.client).await,
            }
        }
    }

    /// Fills the store from nothing and follows it as long as the stream lasts.
    async fn populate(&mut self) -> Stopped {
        if self.streaming {
            match self.stream_list().await {
                Ok(stream) => return self.follow(stream).await,
                Err(error) => {
                    let refused = error.status().is_some_and(|status| (400..500).contains(&status.code()));
                    let throttled = error.status().is_some_and(|status| status.code() == 429);
                    if !refused || throttled {
                        return self.report(error);
                    }
                    debug!(resource = %self.scope.resource.gvr(), error = %chain(&error), "Streaming list refused, listing");
                }
            }
        }
        match self.list().await {
            Ok(()) => Stopped::Again,
            Err(error) => self.report(error),
        }
    }

    /// Reads the initial events into a fresh map, then replaces the store. The stream goes on as a watch.
    async fn stream_list(&mut self) -> Result<WatchStream, ClientError> {
        let mut stream = self.client.watch(self.watch_request(true)).await?;
        let mut objects = BTreeMap::new();
        loop {
            match stream.next().await {
                Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    objects.insert(object.key.clone(), object);
                }
                Some(Ok(WatchEvent::Deleted(object))) => {
                    objects.remove(&object.key);
                }
                Some(Ok(WatchEvent::Bookmark { resource_version, initial_events_end: true })) => {
                    self.sink.replace(objects);
                    self.version = resource_version;
                    self.listed = true;
                    return Ok(stream);
                }
                Some(Ok(WatchEvent::Bookmark { .. })) => {}
                Some(Err(error)) => return Err(error),
                None => {
                    return Err(ClientError::Unreachable {
                        path: self.path(),
                        source: "the stream ended before the initial events did".into(),
                    });
                }
            }
        }
    }

    async fn list(&mut self) -> Result<(), ClientError> {
        let scope = self.scope.clone();
        let list = self
            .client
            .list(ListRequest {
                resource: scope.resource,
                namespace: scope.namespace,
                label_selector: scope.label_selector,
                field_selector: scope.field_selector,
                resource_version: String::new(),
                resource_version_match: String::new(),
                limit: 0,
                continue_token: String::new(),
            })
            .await?;
        self.sink.replace(list.items.into_iter().map(|object| (object.key.clone(), object)).collect());
        self.version = list.resource_version;
        self.listed = true;
        Ok(())
    }

    async fn watch(&mut self) -> Stopped {
        match self.client.watch(self.watch_request(false)).await {
            Ok(stream) => self.follow(stream).await,
            Err(error) => self.report(error),
        }
    }

    /// Applies events until the stream ends.
    async fn follow(&mut self, mut stream: WatchStream) -> Stopped {
        let started = self.client.clock().monotonic();
        let mut events = 0u64;
        while let Some(event) = stream.next().await {
            events += 1;
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    self.version = object.revision.to_string();
                    self.sink.upsert(object);
                }
                Ok(WatchEvent::Deleted(object)) => {
                    self.version = object.revision.to_string();
                    self.sink.remove(object);
                }
                Ok(WatchEvent::Bookmark { resource_version, .. }) => self.version = resource_version,
                Err(error) => return self.report(error),
            }
        }
        let lasted = self.client.clock().monotonic().saturating_sub(started);
        if events == 0 && lasted < SHORT_WATCH { Stopped::Failed } else { Stopped::Again }
    }

    fn report(&self, error: ClientError) -> Stopped {
        if error.status().is_some_and(rkube_apimachinery::status::ApiStatus::is_expired) {
            debug!(resource = %self.scope.resource.gvr(), "Watched version expired, listing again");
            // A list that expires at once would spin; only a version that was watched from may.
            return if self.listed { Stopped::Expired } else { Stopped::Failed };
        }
        warn!(resource = %self.scope.resource.gvr(), error = %chain(&error), "Watch failed, retrying");
        Stopped::Failed
    }

    fn watch_request(&self, send_initial_events: bool) -> WatchRequest {
        let scope = self.scope.clone();
        let extra = random::below(self.client.random().as_ref(), WATCH_TIMEOUT_SECONDS.into());
        let timeout_seconds = WATCH_TIMEOUT_SECONDS.saturating_add(u32::try_from(extra).unwrap_or(0));
        WatchRequest {
            resource: scope.resource,
            namespace: scope.namespace,
            label_selector: scope.label_selector,
            field_selector: scope.field_selector,
            resource_version: if send_initial_events { String::new() } else { self.version.clone() },
            send_initial_events,
            allow_bookmarks: true,
            timeout_seconds,
        }
    }

    fn path(&self) -> String {
        crate::client::collection_path(&self.scope.resource, &self.scope.namespace)
    }
}
