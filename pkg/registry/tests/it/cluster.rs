//! A registry with a few resources and a fake clock.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rkube_api::StoredObject;
use rkube_api::k8s::core::v1::{ConfigMap, Pod};
use rkube_apimachinery::clock::FakeClock;
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_apimachinery::meta::Meta;
use rkube_apimachinery::random::SeededRandom;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::options::{CreateOptions, DeleteOptions, ListOptions, UpdateOptions};
use rkube_registry::store::{Answer, Deleted, ListPage, Patch, Target, WatchEvent, Watcher, Written};
use rkube_registry::strategy::Registration;
use rkube_registry::strategy::generic::{GenericStatusStrategy, GenericStrategy};
use rkube_registry::{
    Config, Registry, RequestContext, Store, StrategyContext, TokenPolicy, TokenSigner, TokenToSign, TypedStrategy,
};
use rkube_storage::memory::MemoryStorage;
use serde_json::{Value, json};

/// How long a test waits for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    pub(crate) registry: Arc<Registry>,
    pub(crate) storage: Arc<MemoryStorage>,
    pub(crate) clock: FakeClock,
    pub(crate) context: Arc<RequestContext>,
}

struct Maps;

impl TypedStrategy for Maps {
    type Object = ConfigMap;

    fn validate(&self, _: &StrategyContext<'_>, map: &ConfigMap) -> ErrorList {
        let bad = map.data.iter().flatten().filter(|(key, _)| key.contains(' '));
        bad.map(|(key, _)| Error::invalid(&Path::new("data").key(key), key.as_str(), "no spaces")).collect()
    }

    fn validate_update(&self, context: &StrategyContext<'_>, new: &ConfigMap, _: &ConfigMap) -> ErrorList {
        self.validate(context, new)
    }
}

struct Pods;

impl TypedStrategy for Pods {
    type Object = Pod;

    fn default(&self, pod: &mut Pod) {
        let spec = pod.spec.get_or_insert_default();
        spec.termination_grace_period_seconds.get_or_insert(30);
    }

    fn prepare_for_create(&self, _: &StrategyContext<'_>, pod: &mut Pod) {
        pod.metadata.generation = Some(1);
        pod.status = None;
    }

    fn prepare_for_update(&self, _: &StrategyContext<'_>, new: &mut Pod, old: &Pod) {
        new.status.clone_from(&old.status);
        if new.spec != old.spec {
            new.metadata.generation = old.metadata.generation.map(|generation| generation + 1);
        }
    }

    fn check_graceful_delete(&self, _: &StrategyContext<'_>, pod: &Pod, options: &mut DeleteOptions) -> bool {
        let spec = pod.spec.as_ref();
        let bound = spec.and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
        let wanted = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(0);
        let period = options.grace_period_seconds.unwrap_or(wanted);
        options.grace_period_seconds = Some(if bound { period } else { 0 });
        true
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

struct PodStatus;

impl TypedStrategy for PodStatus {
    type Object = Pod;

    fn prepare_for_update(&self, _: &StrategyContext<'_>, new: &mut Pod, old: &Pod) {
        new.spec.clone_from(&old.spec);
    }
}

/// Like admissionregistration: an update must say which version it changes.
struct Careful;

impl TypedStrategy for Careful {
    type Object = rkube_api::k8s::coordination::v1::Lease;

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

pub(crate) fn config() -> Config {
    let served = [
        ("", "configmaps"),
        ("", "endpoints"),
        ("", "events"),
        ("", "namespaces"),
        ("", "nodes"),
        ("", "pods"),
        ("", "replicationcontrollers"),
        ("", "serviceaccounts"),
        ("", "services"),
        ("apps", "deployments"),
        ("coordination.k8s.io", "leases"),
        ("events.k8s.io", "events"),
        ("networking.k8s.io", "ipaddresses"),
        ("networking.k8s.io", "servicecidrs"),
        ("policy", "poddisruptionbudgets"),
    ];
    let row = |(group, plural): (&str, &str)| {
        let resource = GroupVersionResource::new(group, "v1", plural);
        rkube_api::resource(&resource).expect("a row").clone()
    };
    let mut strategies = vec![
        Registration::new("", "configmaps", Maps),
        Registration::new("", "pods", Pods).status(PodStatus),
        Registration::new("coordination.k8s.io", "leases", Careful),
    ];
    // The rest takes what comes: these tests are about the stores.
    strategies.extend(served.map(|(group, plural)| Registration {
        group,
        plural,
        main: Arc::new(GenericStrategy { has_status: true, allow_unconditional_update: true }),
        subresources: vec![("status", Arc::new(GenericStatusStrategy { allow_unconditional_update: true }))],
    }));
    Config {
        resources: served.map(row).to_vec(),
        strategies,
        token_signer: Some(Arc::new(Signer)),
        ..Config::default()
    }
}

/// Signs by writing down what it is asked to sign.
struct Signer;

impl TokenSigner for Signer {
    fn policy(&self) -> TokenPolicy {
        TokenPolicy { audiences: vec!["api".to_owned()], expiration_seconds_max: 7200, extend_expiration: true }
    }

    fn sign<'a>(&'a self, request: &'a TokenToSign) -> BoxFuture<'a, Result<String, ApiStatus>> {
        Box::pin(std::future::ready(Ok(format!(
            "{} pod={:?} node={:?} aud={:?} exp={} warn={}",
            request.service_account.name,
            request.pod.as_ref().map(|pod| &pod.name),
            request.node.as_ref().map(|node| &node.name),
            request.audiences,
            request.expiration_seconds,
            request.warn_after_seconds,
        ))))
    }
}

impl Cluster {
    pub(crate) async fn new() -> Self {
        Self::over(Arc::new(MemoryStorage::new())).await
    }

    pub(crate) async fn over(storage: Arc<MemoryStorage>) -> Self {
        Self::configured(storage, config()).await
    }

    pub(crate) async fn configured(storage: Arc<MemoryStorage>, config: Config) -> Self {
        let clock = FakeClock::new("2026-01-02T03:04:05Z".parse().expect("a time"));
        let registry = Registry::new(storage.clone(), clock.shared(), SeededRandom::shared(7), config)
            .await
            .expect("the registry starts");
        Self { registry, storage, clock, context: Arc::new(RequestContext::internal()) }
    }

    pub(crate) fn store(&self, plural: &str) -> Store {
        let group = match plural {
            "deployments" => "apps",
            "leases" => "coordination.k8s.io",
            "poddisruptionbudgets" => "policy",
            "ipaddresses" | "servicecidrs" => "networking.k8s.io",
            _ => "",
        };
        self.registry.store(&GroupVersionResource::new(group, "v1", plural)).expect("the resource is served")
    }

    pub(crate) async fn create(&self, plural: &str, body: Value) -> Result<Value, ApiStatus> {
        let target = Target::new("ns", "");
        let answer = self.store(plural).create(&self.context, &target, body, &CreateOptions::default()).await?;
        match answer {
            Answer::Object(object) => Ok(value(&object)),
            Answer::Status(status) => panic!("a status instead of an object: {status:?}"),
        }
    }

    pub(crate) async fn post(&self, plural: &str, target: &Target, body: Value) -> Result<Answer, ApiStatus> {
        self.store(plural).create(&self.context, target, body, &CreateOptions::default()).await
    }

    pub(crate) async fn update(&self, plural: &str, target: &Target, body: Value) -> Result<Written, ApiStatus> {
        self.store(plural).update(&self.context, target, body, &UpdateOptions::default()).await
    }

    pub(crate) async fn merge(&self, plural: &str, target: &Target, patch: Value) -> Result<Value, ApiStatus> {
        let patch = Patch::Merge(patch.to_string().into());
        let written = self.store(plural).patch(&self.context, target, patch, &Default::default()).await?;
        Ok(value(&written.object))
    }

    pub(crate) async fn get(&self, plural: &str, name: &str) -> Result<Value, ApiStatus> {
        let object = self.store(plural).get(&self.context, &Target::new("ns", name), &Default::default()).await?;
        Ok(value(&object))
    }

    pub(crate) async fn delete(&self, plural: &str, name: &str, options: Value) -> Result<Deleted, ApiStatus> {
        let options = serde_json::from_value(options).expect("delete options");
        self.store(plural).delete(&self.context, &Target::new("ns", name), options).await
    }

    pub(crate) async fn list(&self, plural: &str, namespace: &str, options: Value) -> Result<ListPage, ApiStatus> {
        let options: ListOptions = serde_json::from_value(options).expect("list options");
        self.store(plural).list(&self.context, namespace, &options).await
    }

    pub(crate) async fn watch(&self, plural: &str, namespace: &str, options: Value) -> Result<Watching, ApiStatus> {
        let options: ListOptions = serde_json::from_value(options).expect("list options");
        let watcher = self.store(plural).watch(&self.context, namespace, &options).await?;
        Ok(Watching { watcher, pending: Vec::new() })
    }
}

/// A watch whose events are read one at a time, as text.
pub(crate) struct Watching {
    watcher: Watcher,
    pending: Vec<WatchEvent>,
}

impl Watching {
    /// The next event; `None` at the end.
    pub(crate) async fn event(&mut self) -> Option<WatchEvent> {
        if self.pending.is_empty() {
            let mut batch = Vec::new();
            let more = tokio::time::timeout(PATIENCE, self.watcher.next_batch(&mut batch));
            if !more.await.expect("an event or the end of the watch comes in time") {
                return None;
            }
            batch.reverse();
            self.pending = batch;
        }
        self.pending.pop()
    }

    pub(crate) async fn next(&mut self) -> String {
        match self.event().await {
            None => "end".to_owned(),
            Some(WatchEvent::Added(object)) => format!("ADDED {}@{}", object.key, object.revision),
            Some(WatchEvent::Modified(object)) => format!("MODIFIED {}@{}", object.key, object.revision),
            Some(WatchEvent::Deleted(object)) => {
                assert_eq!(value(&object).resource_version(), object.revision.to_string());
                format!("DELETED {}@{}", object.key, object.revision)
            }
            Some(WatchEvent::Bookmark { revision, initial_events_end }) => {
                format!("BOOKMARK {revision}{}", if initial_events_end { " initial" } else { "" })
            }
            Some(WatchEvent::Error(status)) => format!("ERROR {} {}", status.code(), status.message()),
        }
    }

    pub(crate) async fn take(&mut self, count: usize) -> Vec<String> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(self.next().await);
        }
        events
    }
}

pub(crate) fn value(object: &StoredObject) -> Value {
    object.value().expect("stored objects are JSON")
}

pub(crate) fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

pub(crate) fn map_with(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": data}})
}

pub(crate) fn pod(name: &str, node: &str) -> Value {
    let spec = if node.is_empty() { json!({"containers": []}) } else { json!({"containers": [], "nodeName": node}) };
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

pub(crate) fn at(name: &str) -> Target {
    Target::new("ns", name)
}

pub(crate) fn keys(page: &ListPage) -> Vec<String> {
    page.items.iter().map(|item| item.key.to_string()).collect()
}
