//! The Node object: registration, status, lease.
//!
//! Behaves as pkg/kubelet/{kubelet_node_status.go,nodestatus} and component-helpers' lease controller, v1.36.

pub mod capacity;
mod object;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rkube_api::k8s::coordination::v1::{Lease, LeaseSpec};
use rkube_api::k8s::core::v1::{ContainerImage, Node, NodeStatus};
use rkube_api::meta::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::quantity::{Format, Quantity};
use rkube_client::Client;
use rkube_client::informer::Informer;
use rkube_client::transport::ClientError;
use rkube_cri::v1::{
    ListImagesRequest, NetworkConfig, RuntimeConfig, StatusRequest, UpdateRuntimeConfigRequest, VersionRequest,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::config::KubeletConfig;
use crate::downward::NodeFacts;
use crate::events::{Events, Type};
use crate::eviction::Signal;
use crate::kubelet::Inner;
use crate::node::capacity::Capacity;
use crate::node::object::Observed;

/// The runtime is asked for its state, and the status compared, so often.
const STATUS_PERIOD: Duration = Duration::from_secs(10);
/// An unchanged status is written so often, as a sign of life for what knows no leases.
const REPORT_PERIOD: Duration = Duration::from_secs(300);
const LEASE_SECONDS: i32 = 40;
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Registration is tried this soon again at first, and never more seldom than the status period.
const REGISTER_RETRY: Duration = Duration::from_millis(100);
/// While the network is not ready the runtime is asked this soon again at first, and never more seldom than the
/// status period: it reads a new network configuration shortly after the event that tells us of it.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const IMAGES_MAX: usize = 50;
/// Listing images is the dearest question of all.
const IMAGES_PERIOD: Duration = Duration::from_secs(60);
/// How long a start waits for the runtime before the node is reported without it.
const FIRST_LOOK: Duration = Duration::from_secs(5);
const CONFLICT_RETRIES_MAX: usize = 5;

/// What is known about the node and changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) runtime: Result2,
    pub(crate) network: Result2,
    pub(crate) pleg: Result2,
    pub(crate) pressure: Vec<&'static str>,
    pub(crate) shutting_down: bool,
}

/// `Ok`, or why not. Unknown is not ok.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Result2(pub(crate) Result<(), String>);

impl Default for Result2 {
    fn default() -> Self {
        Self(Err("container runtime status check may not have completed yet".to_owned()))
    }
}

pub struct NodeManager {
    name: String,
    ips: Vec<String>,
    config: KubeletConfig,
    client: Client,
    clock: SharedClock,
    events: Events,
    capacity: Capacity,
    own: Informer<Node>,
    health: RwLock<Health>,
    runtime_version: RwLock<String>,
    images: RwLock<Vec<ContainerImage>>,
    images_read: Mutex<Option<Duration>>,
    written: Mutex<Option<(NodeStatus, Duration)>>,
    pod_cidr: Mutex<String>,
    observed: watch::Sender<bool>,
    /// Something happened that the next look at the runtime or the next status should show.
    changed: Arc<Notify>,
}

impl NodeManager {
    pub fn new(
        config: &KubeletConfig,
        client: Client,
        clock: SharedClock,
        events: Events,
        capacity: Capacity,
        own: Informer<Node>,
    ) -> Self {
        Self {
            name: config.node_name.clone(),
            ips: config.node_ips.clone(),
            config: config.clone(),
            client,
            clock,
            events,
            capacity,
            own,
            health: RwLock::default(),
            runtime_version: RwLock::default(),
            images: RwLock::default(),
            images_read: Mutex::default(),
            written: Mutex::default(),
            pod_cidr: Mutex::default(),
            observed: watch::channel(false).0,
            changed: Arc::default(),
        }
    }

    /// Capacity without what is reserved and what eviction keeps free.
    pub fn allocatable(&self) -> Capacity {
        let reserved = self.config.reserved;
        let keep = self.config.eviction.kept(Signal::MemoryAvailable, self.capacity.memory);
        let keep_disk = self.config.eviction.kept(Signal::NodeFsAvailable, self.capacity.ephemeral_storage);
        Capacity {
            cpu_milli: (self.capacity.cpu_milli - reserved.cpu_milli).max(0),
            memory: (self.capacity.memory - reserved.memory - keep - self.capacity.hugepages.values().sum::<i64>())
                .max(0),
            ephemeral_storage: (self.capacity.ephemeral_storage - keep_disk - reserved.ephemeral_storage).max(0),
            ..self.capacity.clone()
        }
    }

    /// How many processes pods may have in all; no limit of its own when nothing is reserved.
    pub fn allocatable_pids(&self) -> Option<i64> {
        let reserved = Some(self.config.reserved.pids).filter(|pids| *pids > 0)?;
        let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok()?;
        Some((text.trim().parse::<i64>().ok()? - reserved).max(0))
    }

    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    pub fn facts(&self) -> NodeFacts {
        let allocatable = self.allocatable();
        let mut map = BTreeMap::new();
        map.insert("cpu".to_owned(), Quantity::milli(allocatable.cpu_milli, Format::DecimalSi));
        map.insert("memory".to_owned(), Quantity::new(allocatable.memory, Format::BinarySi));
        map.insert("ephemeral-storage".to_owned(), Quantity::new(allocatable.ephemeral_storage, Format::BinarySi));
        NodeFacts { name: self.name.clone(), ips: self.ips.clone(), allocatable: map }
    }

    pub fn network_ready(&self) -> Result<(), String> {
        let health = self.health.read();
        health.runtime.0.clone()?;
        health.network.0.clone()
    }

    pub fn pressure(&self) -> Vec<&'static str> {
        self.health.read().pressure.clone()
    }

    /// No pod is let in any more, and the node says so.
    pub(crate) fn set_shutting_down(&self) {
        self.health.write().shutting_down = true;
        self.changed.notify_one();
    }

    pub fn is_shutting_down(&self) -> bool {
        self.health.read().shutting_down
    }

    pub(crate) fn set_pressure(&self, pressure: Vec<&'static str>) {
        let before = std::mem::replace(&mut self.health.write().pressure, pressure.clone());
        if before != pressure {
            self.changed.notify_one();
        }
    }

    /// The node's object as last seen.
    pub fn object(&self) -> Option<Arc<Node>> {
        self.own.lister().get_named("", &self.name)
    }

    /// The node's object, or what it will be: a kubelet that never reached the server knows itself. One that was made
    /// before this kubelet told what it has gets that too, or it would have room for no pod.
    pub(crate) fn seen(&self) -> Arc<Node> {
        let own = || self.status(&NodeStatus::default());
        let Some(node) = self.object() else { return Arc::new(object::node(&self.config, own())) };
        if node.status.as_ref().is_some_and(|status| status.allocatable.is_some()) {
            return node;
        }
        let NodeStatus { capacity, allocatable, .. } = own();
        let mut node = Arc::unwrap_or_clone(node);
        let status = node.status.get_or_insert_default();
        (status.capacity, status.allocatable) = (capacity, allocatable);
        Arc::new(node)
    }

    pub async fn run(self: Arc<Self>, inner: Arc<Inner>, shutdown: CancellationToken) {
        let inner = &inner;
        let run = async {
            // A node that says NotReady while it looks around for the first time frightens others.
            tokio::select! {
                () = inner.pleg.synced() => {}
                () = self.clock.sleep(FIRST_LOOK) => {}
            }
            self.observe(inner).await;
            self.observed.send_replace(true);
            self.events.node(Type::Normal, "Starting", "Starting kubelet.");
            self.register(inner).await;
            let lease = self.renew_leases();
            let status = self.update_statuses(inner);
            tokio::join!(lease, status, self.watch_network_configuration());
        };
        tokio::select! {
            () = run => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Waits until the runtime was asked for the first time.
    pub async fn observed(&self) {
        // The sender lives in `self`.
        let _ = self.observed.subscribe().wait_for(|observed| *observed).await;
    }

    /// Asks the runtime how it is.
    async fn observe(&self, inner: &Inner) {
        let service = &inner.runtime.service;
        if self.runtime_version.read().is_empty()
            && let Ok(version) = service.version(VersionRequest::default()).await
        {
            *self.runtime_version.write() = format!("{}://{}", version.runtime_name, version.runtime_version);
        }
        let (runtime, network) = match service.status(StatusRequest::default()).await {
            Err(error) => {
                let text = format!("container runtime is down: {error}");
                (Err(text), Err("container runtime is down".to_owned()))
            }
            Ok(answer) => {
                let conditions = answer.status.unwrap_or_default().conditions;
                let state = |name: &str, what: &str| match conditions.iter().find(|condition| condition.r#type == name)
                {
                    Some(condition) if condition.status => Ok(()),
                    Some(condition) => Err(format!(
                        "container runtime {what}not ready: {name}=false reason:{} message:{}",
                        condition.reason, condition.message
                    )),
                    None => Err(format!("container runtime {what}not ready: {name} is unknown")),
                };
                (state("RuntimeReady", ""), state("NetworkReady", "network "))
            }
        };
        let changed = {
            let mut health = self.health.write();
            let changed = health.network.0.is_ok() != network.is_ok();
            health.runtime = Result2(runtime);
            health.pleg = Result2(inner.pleg.health().map_err(|error| format!("PLEG is not healthy: {error}")));
            health.network = Result2(network);
            changed
        };
        if changed {
            // Pods that waited for the network go on.
            for worker in inner.workers.all() {
                worker.wake.notify_one();
            }
        }
        let now = self.clock.monotonic();
        let images_are_due = self.images_read.lock().is_none_or(|at| now.saturating_sub(at) >= IMAGES_PERIOD);
        if images_are_due
            && let Ok(answer) = inner.runtime.images.service().list_images(ListImagesRequest::default()).await
        {
            let mut images = answer.images;
            images.sort_by_key(|image| std::cmp::Reverse(image.size));
            images.truncate(IMAGES_MAX);
            *self.images.write() = images.into_iter().map(object::image).collect();
            *self.images_read.lock() = Some(now);
        }
        self.pass_on_pod_cidr(inner).await;
    }

    /// Runtimes that make their own network configuration want to know the pods' addresses.
    async fn pass_on_pod_cidr(&self, inner: &Inner) {
        let node = self.object();
        let spec = node.as_ref().and_then(|node| node.spec.as_ref());
        let cidrs = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default().join(",");
        if cidrs.is_empty() || *self.pod_cidr.lock() == cidrs {
            return;
        }
        let network_config = Some(NetworkConfig { pod_cidr: cidrs.clone() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        if inner.runtime.service.update_runtime_config(request).await.is_ok() {
            *self.pod_cidr.lock() = cidrs;
        }
    }

    fn status(&self, old: &NodeStatus) -> NodeStatus {
        let health = self.health.read();
        let (images, runtime_version) = (self.images.read(), self.runtime_version.read());
        let observed = Observed {
            config: &self.config,
            capacity: &self.capacity,
            allocatable: &self.allocatable(),
            health: &health,
            images: &images,
            runtime_version: &runtime_version,
            now: self.clock.now(),
        };
        observed.status(old)
    }

    async fn register(&self, inner: &Inner) {
        let api = self.client.all::<Node>();
        let mut retry = REGISTER_RETRY;
        loop {
            let node = object::node(&self.config, self.status(&NodeStatus::default()));
            let result = match api.create(&node).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_already_exists() => self.reconcile_labels(&node).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => {
                    tracing::info!(node = self.name, "Registered node");
                    return;
                }
                Err(error) => tracing::warn!(node = self.name, error = %chain(&error), "Node was not registered"),
            }
            self.clock.sleep(retry).await;
            retry = (retry * 2).min(STATUS_PERIOD);
            self.observe(inner).await;
        }
    }

    /// The labels the kubelet answers for, on a node that was there before.
    async fn reconcile_labels(&self, wanted: &Node) -> Result<(), ClientError> {
        let api = self.client.all::<Node>();
        for _ in 0..CONFLICT_RETRIES_MAX {
            let mut node = api.get(&self.name).await?;
            let before = node.clone();
            for (from, to) in [
                (&wanted.metadata.labels, node.metadata.labels.get_or_insert_default()),
                (&wanted.metadata.annotations, node.metadata.annotations.get_or_insert_default()),
            ] {
                to.extend(from.iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
            }
            if node == before {
                return Ok(());
            }
            match api.update(&node).await {
                Err(error) if error.is_conflict() => {}
                result => return result.map(drop),
            }
        }
        Ok(())
    }

    async fn update_statuses(&self, inner: &Inner) {
        let mut reachable = inner.pleg.reachable();
        let mut look_again = LOOK_AGAIN;
        loop {
            if let Err(error) = self.write_status(inner).await {
                tracing::warn!(node = self.name, error = %chain(&error), "Node status was not written");
            }
            let wait = if self.network_ready().is_ok() { STATUS_PERIOD } else { look_again };
            let happened = tokio::select! {
                () = self.clock.sleep(wait) => false,
                () = self.changed.notified() => true,
                // The sender lives as long as the kubelet.
                _ = reachable.changed() => true,
            };
            look_again = if happened { LOOK_AGAIN } else { (look_again * 2).min(STATUS_PERIOD) };
            self.observe(inner).await;
        }
    }

    /// Looks at the runtime when its network configuration changes: until there is one the node is not ready.
    async fn watch_network_configuration(&self) {
        let Some(folder) = self.config.cni_conf_dir.clone() else { return };
        if let Err(error) = crate::folder::watch(folder.clone(), self.changed.clone()).await {
            tracing::error!(path = %folder.display(), %error, "Folder of network configurations is not watched");
        }
    }

    async fn write_status(&self, inner: &Inner) -> Result<(), ClientError> {
        let api = self.client.all::<Node>();
        let mut base = match self.object() {
            Some(node) => (*node).clone(),
            None => match api.get(&self.name).await {
                Ok(node) => node,
                Err(error) if error.is_not_found() => {
                    // Somebody removed the node while it lives: it comes back.
                    self.register(inner).await;
                    return Ok(());
                }
                Err(error) => return Err(error),
            },
        };
        // Taints or labels that changed meanwhile are refused as an attempt to change them back, before versions
        // are compared: once, it may be that.
        let mut refused = false;
        for _ in 0..CONFLICT_RETRIES_MAX {
            let old = base.status.clone().unwrap_or_default();
            let status = self.status(&old);
            let recent = self.written.lock().as_ref().is_some_and(|(written, at)| {
                object::same(written, &status) && self.clock.monotonic().saturating_sub(*at) < REPORT_PERIOD
            });
            if recent && object::same(&old, &status) {
                return Ok(());
            }
            self.tell_readiness(&old, &status);
            base.status = Some(status.clone());
            match api.update_status(&base).await {
                Ok(_) => {
                    *self.written.lock() = Some((status, self.clock.monotonic()));
                    return Ok(());
                }
                Err(error) if error.is_conflict() || (error.is_forbidden() && !refused) => {
                    refused |= error.is_forbidden();
                    base = api.get(&self.name).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn tell_readiness(&self, old: &NodeStatus, new: &NodeStatus) {
        let ready = |status: &NodeStatus| {
            status
                .conditions
                .iter()
                .flatten()
                .find(|condition| condition.type_ == "Ready")
                .map(|condition| condition.status.clone())
        };
        let (before, now) = (ready(old), ready(new));
        if before != now {
            let reason = if now.as_deref() == Some("True") { "NodeReady" } else { "NodeNotReady" };
            self.events.node(Type::Normal, reason, format!("Node {} status is now: {reason}", self.name));
        }
    }

    async fn renew_leases(&self) {
        let mut held: Option<Lease> = None;
        loop {
            match self.renew(held.take()).await {
                Ok(lease) => held = Some(lease),
                Err(error) => tracing::warn!(node = self.name, error = %chain(&error), "Node lease was not renewed"),
            }
            self.clock.sleep(Duration::from_secs(u64::from(LEASE_SECONDS.unsigned_abs()) / 4)).await;
        }
    }

    async fn renew(&self, held: Option<Lease>) -> Result<Lease, ClientError> {
        let api = self.client.namespaced::<Lease>(LEASE_NAMESPACE);
        let mut lease = match held {
            Some(lease) => lease,
            None => match api.get(&self.name).await {
                Ok(lease) => lease,
                Err(error) if error.is_not_found() => return api.create(&self.lease(Lease::default())).await,
                Err(error) => return Err(error),
            },
        };
        for _ in 0..CONFLICT_RETRIES_MAX {
            match api.update(&self.lease(lease)).await {
                Err(error) if error.is_conflict() => lease = api.get(&self.name).await?,
                Err(error) if error.is_not_found() => return api.create(&self.lease(Lease::default())).await,
                result => return result,
            }
        }
        api.get(&self.name).await
    }

    fn lease(&self, mut lease: Lease) -> Lease {
        lease.metadata.name = Some(self.name.clone());
        lease.metadata.namespace = Some(LEASE_NAMESPACE.to_owned());
        if lease.metadata.owner_references.is_none()
            && let Some(node) = self.object()
        {
            let ObjectMeta { uid: Some(uid), .. } = node.metadata.clone() else { return lease };
            lease.metadata.owner_references = Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: self.name.clone(),
                uid,
                ..OwnerReference::default()
            }]);
        }
        let spec = LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(self.clock.now())),
            ..lease.spec.take().unwrap_or_default()
        };
        Lease { spec: Some(spec), ..lease }
    }
}
