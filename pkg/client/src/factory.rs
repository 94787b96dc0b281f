//! The informers of a process: one per resource and scope, whoever asks for it.
//!
//! Behaves as `k8s.io/client-go/informers/factory.go`, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rkube_api::Kind;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_apimachinery::task;
use tokio_util::sync::CancellationToken;
use tracing::info_span;

use crate::client::{Client, resource_of};
use crate::informer::{Informer, SharedInformer};
use crate::reflector::{self, Scope, Sink};

/// Makes and keeps shared informers. Clones share them.
#[derive(Clone)]
pub struct InformerFactory(Arc<Shared>);

struct Shared {
    client: Client,
    stop: CancellationToken,
    informers: Mutex<BTreeMap<Id, Entry>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    resource: GroupVersionResource,
    namespace: String,
    label_selector: String,
    field_selector: String,
}

struct Entry {
    informer: Arc<SharedInformer>,
    stop: CancellationToken,
    started: bool,
}

/// The informers that have not synced, when a wait for them was given up.
#[derive(Debug, thiserror::Error)]
#[error("waiting for caches of {}", .resources.join(", "))]
pub struct NotSynced {
    pub resources: Vec<String>,
}

impl InformerFactory {
    /// Informers made here end with `stop`.
    pub fn new(client: Client, stop: CancellationToken) -> Self {
        Self(Arc::new(Shared { client, stop, informers: Mutex::new(BTreeMap::new()) }))
    }

    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// All objects of a built-in kind.
    pub fn informer<K: Kind>(&self) -> Informer<K> {
        self.scoped("", "", "")
    }

    /// The objects of a built-in kind that a namespace (empty for all) and selectors leave.
    pub fn scoped<K: Kind>(&self, namespace: &str, label_selector: &str, field_selector: &str) -> Informer<K> {
        Informer::new(self.shared(Scope {
            resource: resource_of::<K>(),
            namespace: namespace.to_owned(),
            label_selector: label_selector.to_owned(),
            field_selector: field_selector.to_owned(),
        }))
    }

    /// All objects of any resource, untyped. Shares the informer of the same built-in kind.
    pub fn dynamic(&self, resource: SharedResource) -> Arc<SharedInformer> {
        self.shared(Scope {
            resource,
            namespace: String::new(),
            label_selector: String::new(),
            field_selector: String::new(),
        })
    }

    fn shared(&self, scope: Scope) -> Arc<SharedInformer> {
        let id = Id {
            resource: scope.resource.gvr(),
            namespace: scope.namespace.clone(),
            label_selector: scope.label_selector.clone(),
            field_selector: scope.field_selector.clone(),
        };
        let mut informers = self.0.informers.lock();
        let entry = informers.entry(id).or_insert_with(|| Entry {
            informer: SharedInformer::new(scope),
            stop: self.0.stop.child_token(),
            started: false,
        });
        Arc::clone(&entry.informer)
    }

    /// Starts every informer made so far that is not running. Call again after making more.
    pub fn start(&self) {
        for entry in self.0.informers.lock().values_mut().filter(|entry| !entry.started) {
            entry.started = true;
            let scope = entry.informer.scope().clone();
            let span = info_span!("reflector", resource = %scope.resource.gvr());
            let sink: Arc<dyn Sink> = Arc::clone(&entry.informer) as _;
            task::spawn(span, reflector::run(self.0.client.clone(), scope, sink, entry.stop.clone()));
        }
    }

    /// Ends and forgets the untyped informer of a resource that no longer exists.
    pub fn remove(&self, resource: &GroupVersionResource) {
        self.0.informers.lock().retain(|id, entry| {
            let keep = id.resource != *resource;
            if !keep {
                entry.stop.cancel();
            }
            keep
        });
    }

    /// Waits until every informer made so far has synced, or until shutdown.
    pub async fn wait_for_sync(&self) -> Result<(), NotSynced> {
        let informers: Vec<_> = self.0.informers.lock().values().map(|entry| Arc::clone(&entry.informer)).collect();
        let all = futures_util::future::join_all(informers.iter().map(|informer| informer.synced()));
        tokio::select! {
            _ = all => Ok(()),
            () = self.0.stop.cancelled() => {
                let waiting = informers.iter().filter(|informer| !informer.has_synced());
                Err(NotSynced { resources: waiting.map(|informer| informer.scope().resource.gvr().to_string()).collect() })
            }
        }
    }
}
