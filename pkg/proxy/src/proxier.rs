//! Keeps the table in step with Services and EndpointSlices.
//!
//! Watches  v1 Service, discovery.k8s.io/v1 EndpointSlice, v1 Node (this one)
//! Outputs  the nftables table; UDP flows forgotten; health check node ports; pages about itself; events about what is not served
//! Behaves as  pkg/proxy/nftables/proxier.go, v1.36
//!
//! Invariant: nothing is written before all caches have synced, since half the Services would be a change.
//! Nothing is taken away at shutdown.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use parking_lot::Mutex;
use rkube_api::k8s::core::v1::{Node, Service};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::events::EventRecorder;
use rkube_client::factory::NotSynced;
use rkube_client::{InformerFactory, Lister};
use rkube_network::netlink::{NetlinkError, Socket};
use rkube_network::nft::NftApplier;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::chains::is_dynamic;
use crate::endpoints::{Place, collect};
use crate::health::HealthServer;
use crate::metrics::Metrics;
use crate::ruleset::{Ruleset, RulesetConfig, ServiceView, forget_chains, make_before_break};
use crate::service::{health_check_node_port, service_ports};
use crate::status::{ProxyHealth, StatusConfig, StatusServer};

/// The label by which slices name their Service, and the name of the index over it.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Slices with this label are for DNS only.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The source of our events.
const COMPONENT: &str = "kube-proxy";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// All is written again this often, in case someone else changed the table. As upstream's full sync.
const FULL_SYNC_INTERVAL: Duration = Duration::from_secs(3600);
const RETRY_DELAY: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct ProxierConfig {
    pub node_name: String,
    /// This node's own address, if known before its Node object is.
    pub node_ip: Option<Ipv4Addr>,
    /// All pods.
    pub cluster_cidr: Ipv4Net,
    /// Cluster IPs that this node serves itself, as cluster DNS.
    pub own_addresses: BTreeSet<Ipv4Addr>,
    pub status: StatusConfig,
}

/// Why the proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum ProxierError {
    #[error("opening the way to nftables")]
    Open(#[source] NetlinkError),
    #[error(transparent)]
    NotSynced(#[from] NotSynced),
    #[error("the proxy's task ended")]
    Task(#[source] tokio::task::JoinError),
}

#[derive(Default)]
struct Dirty {
    services: BTreeSet<ObjectKey>,
    /// This node may have another zone or address.
    node: bool,
}

/// The component.
pub struct Proxier {
    config: ProxierConfig,
    clock: SharedClock,
    informers: InformerFactory,
    services: Lister<Service>,
    slices: Lister<EndpointSlice>,
    nodes: Lister<Node>,
    dirty: Arc<Mutex<Dirty>>,
    changed: Arc<Notify>,
    metrics: Metrics,
    health: ProxyHealth,
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    let name = labels.get(SERVICE_NAME).filter(|_| !labels.contains_key(HEADLESS_LABEL))?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref()?, name.as_str()))
}

impl Proxier {
    /// Asks `informers` for what it watches; start them afterwards.
    pub fn new(config: ProxierConfig, informers: &InformerFactory) -> Self {
        let services = informers.informer::<Service>();
        let slices = informers.informer::<EndpointSlice>();
        let nodes = informers.informer::<Node>();
        // The name stands for one function in the process: cluster DNS has the same index.
        slices.add_index(SERVICE_NAME, |slice| {
            let labels = slice.metadata.labels.as_ref();
            let name = labels.and_then(|labels| labels.get(SERVICE_NAME));
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            name.map(|name| ObjectKey::new(namespace, name.as_str()).to_string()).into_iter().collect()
        });
        let dirty = Arc::new(Mutex::new(Dirty::default()));
        let changed = Arc::new(Notify::new());
        let health = ProxyHealth::new(informers.client().clock().clone());

        let (state, notify, pending) = (Arc::clone(&dirty), Arc::clone(&changed), health.clone());
        services.core().add_handler(move |delta| {
            pending.changed();
            state.lock().services.insert(delta.object().key.clone());
            notify.notify_one();
        });
        let (state, notify, pending) = (Arc::clone(&dirty), Arc::clone(&changed), health.clone());
        slices.add_handler(move |delta| {
            pending.changed();
            let keys = [delta.old(), Some(delta.object())];
            state.lock().services.extend(keys.into_iter().flatten().filter_map(|slice| service_of(slice)));
            notify.notify_one();
        });
        let (state, notify, own) = (Arc::clone(&dirty), Arc::clone(&changed), config.node_name.clone());
        nodes.core().add_handler(move |delta| {
            if *delta.object().key.name == *own {
                state.lock().node = true;
                notify.notify_one();
            }
        });
        Self {
            config,
            clock: informers.client().clock().clone(),
            informers: informers.clone(),
            services: services.lister(),
            slices: slices.lister(),
            nodes: nodes.lister(),
            dirty,
            changed,
            metrics: Metrics::default(),
            health,
        }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Keeps the kernel's table in step until `stop`. `ready` is called when it is for the first time.
    pub async fn run(self, ready: impl FnOnce() + Send, stop: CancellationToken) -> Result<(), ProxierError> {
        let _pages = StatusServer::start(&self.config.status, &self.health, &self.metrics);
        tokio::select! {
            synced = self.informers.wait_for_sync() => synced?,
            () = stop.cancelled() => return Ok(()),
        }
        let nft: Box<dyn NftApplier> = Box::new(Socket::netfilter().map_err(ProxierError::Open)?);
        let mut worker = Worker {
            nft,
            ruleset: Ruleset::new(RulesetConfig {
                cluster: self.config.cluster_cidr,
                own_addresses: self.config.own_addresses.clone(),
            }),
            needs_full: true,
        };
        let mut health = HealthServer::new(self.clock.clone(), self.health.clone());
        let recorder = EventRecorder::start(self.informers.client().clone(), COMPONENT, stop.clone());
        let mut warnings = Warnings { recorder: recorder.on_host(&self.config.node_name), known: HashMap::new() };
        let mut place = Place::default();
        let mut ready = Some(ready);
        let mut next_full = self.clock.monotonic();
        loop {
            let dirty = std::mem::take(&mut *self.dirty.lock());
            let mut keys = dirty.services;
            let node = self.nodes.get(&ObjectKey::cluster(self.config.node_name.as_str()));
            self.health.see_node(node.as_deref());
            let now_at = self.place(node.as_deref());
            if dirty.node && now_at != place || worker.needs_full && ready.is_some() {
                place = now_at;
                keys.extend(self.services.list_all("").iter().map(|service| key_of(service)));
            }
            for key in &keys {
                self.read(key, &place, &mut worker.ruleset, &mut health);
            }
            for key in &keys {
                warnings.look_at(key, self.services.get(key).as_deref(), &worker.ruleset);
            }
            let start = self.clock.monotonic();
            worker.needs_full |= start >= next_full;
            if worker.needs_full {
                self.metrics.full_syncs.inc();
                next_full = start.saturating_add(FULL_SYNC_INTERVAL);
            }
            // A large change keeps the kernel busy for a while.
            let work = tokio::task::spawn_blocking(move || {
                let outcome = worker.sync();
                (worker, outcome)
            });
            let outcome;
            (worker, outcome) = work.await.map_err(ProxierError::Task)?;
            let took = self.clock.monotonic().saturating_sub(start);
            self.metrics.sync_duration_seconds.observe(took.as_secs_f64());
            self.metrics.services.set(i64::try_from(worker.ruleset.services()).unwrap_or(i64::MAX));
            let delay = match outcome {
                Ok(()) => {
                    self.health.updated();
                    if !self.dirty.lock().services.is_empty() {
                        self.health.changed();
                    }
                    debug!(services = keys.len(), milliseconds = took.as_millis(), "Services are in step");
                    if let Some(ready) = ready.take() {
                        info!(services = worker.ruleset.services(), "Services are in step");
                        ready();
                    }
                    next_full.saturating_sub(self.clock.monotonic())
                }
                Err(error) => {
                    self.metrics.sync_failures.inc();
                    warn!(error = %chain(&error), "Could not change the nftables table, retrying");
                    RETRY_DELAY
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.changed.notified() => {}
                () = self.clock.sleep(delay) => {}
            }
        }
    }

    fn place(&self, node: Option<&Node>) -> Place {
        let labels = node.and_then(|node| node.metadata.labels.as_ref());
        let zone = labels.and_then(|labels| labels.get(ZONE_LABEL)).cloned().unwrap_or_default();
        let addresses = node.and_then(|node| node.status.as_ref()?.addresses.as_ref());
        let internal = addresses.into_iter().flatten().filter(|address| address.type_ == "InternalIP");
        let found = internal.into_iter().find_map(|address| address.address.parse().ok());
        Place { node: self.config.node_name.clone(), zone, address: self.config.node_ip.or(found) }
    }

    /// Takes a Service as it is now into the rules.
    fn read(&self, key: &ObjectKey, place: &Place, ruleset: &mut Ruleset, health: &mut HealthServer) {
        let Some(service) = self.services.get(key) else {
            ruleset.set(key, &ServiceView::default(), place);
            return health.set(key, None, 0);
        };
        let mut slices = self.slices.by_index(SERVICE_NAME, &key.to_string());
        slices.retain(|slice| service_of(slice).is_some());
        let view = ServiceView { ports: service_ports(&service), endpoints: collect(&slices, place) };
        let ready_here = view.endpoints.values().flatten().filter(|(_, endpoint)| endpoint.is_local && endpoint.ready);
        let addresses: BTreeSet<_> = ready_here.map(|((address, _), _)| *address).collect();
        health.set(key, health_check_node_port(&service), addresses.len());
        ruleset.set(key, &view, place);
    }
}

/// Tells users what of their Services this node does not do, once per change of it.
struct Warnings {
    recorder: EventRecorder,
    known: HashMap<ObjectKey, Vec<Ipv4Addr>>,
}

impl Warnings {
    fn look_at(&mut self, key: &ObjectKey, service: Option<&Service>, ruleset: &Ruleset) {
        let ports = service.map(service_ports).unwrap_or_default();
        // External addresses are the same for all ports of a Service.
        let external = ports.into_iter().next().map(|port| port.external_ips).unwrap_or_default();
        let kept: Vec<_> = external.into_iter().filter(|address| ruleset.keeps(*address)).collect();
        let (Some(service), false) = (service, kept.is_empty()) else {
            self.known.remove(key);
            return;
        };
        if self.known.get(key) == Some(&kept) {
            return;
        }
        for address in &kept {
            let text = format!("External IP {address} is an address of the cluster itself and is not served");
            self.recorder.warning(service, "ExternalIPNotServed", text);
        }
        self.known.insert(key.clone(), kept);
    }
}

fn key_of(service: &Service) -> ObjectKey {
    let metadata = &service.metadata;
    ObjectKey::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// The rules and the kernel.
pub struct Worker {
    pub nft: Box<dyn NftApplier>,
    pub ruleset: Ruleset,
    /// What the kernel has is not known.
    pub needs_full: bool,
}

impl Worker {
    /// Brings the kernel in step with the rules. After an error the next call writes everything.
    pub fn sync(&mut self) -> Result<(), NetlinkError> {
        let ops = if self.needs_full { self.ruleset.full_ops() } else { self.ruleset.take_ops() };
        let (coming, going) = make_before_break(ops);
        for ops in [coming, going] {
            if let Err(error) = self.nft.apply(&ops) {
                self.needs_full = true;
                return Err(error);
            }
        }
        let mut retired = self.ruleset.take_retired();
        if std::mem::take(&mut self.needs_full) {
            let (present, known) = (self.nft.chains()?, self.ruleset.chain_names());
            retired.extend(present.into_iter().filter(|name| is_dynamic(name) && !known.contains(name)));
        }
        // Kernels before 6.2 may still count the elements just removed as users: these chains then stay until
        // all is written the next time.
        if let Err(error) = self.nft.apply(&forget_chains(&retired)) {
            debug!(error = %chain(&error), "Chains without use are left for later");
        }
        if self.ruleset.take_stale_udp() {
            self.forget_flows();
        }
        Ok(())
    }

    /// A failure leaves UDP clients with a dead endpoint until they pause, and is worth no more than a warning.
    fn forget_flows(&self) {
        let forget = || -> Result<usize, NetlinkError> {
            let host = Socket::route()?.addresses()?.into_iter().map(|address| address.net.addr());
            let stale = self.ruleset.stale_flows(host.collect());
            let mut socket = Socket::netfilter()?;
            let flows = socket.flows(&stale)?;
            for flow in &flows {
                socket.forget_flow(flow)?;
            }
            Ok(flows.len())
        };
        match forget() {
            Ok(0) => {}
            Ok(count) => debug!(count, "Forgot UDP flows to endpoints that are gone"),
            Err(error) => warn!(error = %chain(&error), "Could not forget UDP flows to endpoints that are gone"),
        }
    }
}
