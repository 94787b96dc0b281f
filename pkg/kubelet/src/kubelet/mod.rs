//! Composes the kubelet and runs its loop.
//!
//! One loop takes events: pods that came, changed or went, containers that changed, probes that decided,
//! and a tick for what is due. It only hands on; each pod has a worker task that does what takes time.
//! Behaves as pkg/kubelet/{kubelet,pod_workers}.go, v1.36.

mod admit;
mod housekeeping;
mod pod_sync;
mod resize;
mod sources;
pub(crate) mod workers;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use rkube_api::k8s::core::v1::{Node, Service};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use rkube_client::Client;
use rkube_client::events::EventRecorder;
use rkube_client::factory::InformerFactory;
use rkube_client::informer::Informer;
use rkube_cri::measured::Operations;
use rkube_cri::v1::{RuntimeConfigRequest, RuntimeConfigResponse};
use rkube_cri::{ImageService, Measured, RuntimeService, containerd};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info_span;

use crate::allocation::store::Store;
use crate::cm::{CgroupDriver, CgroupVersion, Cgroups, Limits};
use crate::config::KubeletConfig;
use crate::downward::NodeFacts;
use crate::events::Events;
use crate::node::{NodeManager, capacity};
use crate::objects::Objects;
use crate::pleg::{Pleg, PodCache};
use crate::pod::PodUid;
use crate::pods::PodManager;
use crate::prober::ProbeManager;
use crate::runtime::dns::{self, DnsSettings};
use crate::runtime::images::ImageManager;
use crate::runtime::resources::shares;
use crate::runtime::{Runtime, RuntimeSettings};
use crate::shutdown::MachineStops;
use crate::status::manager::StatusManager;
use crate::volumes::VolumeManager;
use crate::volumes::mounter::Mounter;

pub use workers::Workers;

/// What can wake the loop. Each is a hint to look at something, so a lost one costs time, not truth.
#[derive(Debug)]
pub(crate) enum Event {
    /// The set of pods that should be here may have changed.
    Desired,
    /// The containers of a pod changed.
    Runtime(PodUid),
    /// A probe of a pod decided.
    Probe(PodUid),
    /// A worker finished its pod.
    Finished(PodUid),
}

/// What the kubelet works with.
pub struct Dependencies {
    pub client: Client,
    pub clock: SharedClock,
    pub runtime: Arc<dyn RuntimeService>,
    pub images: Arc<dyn ImageService>,
    pub mounter: Arc<dyn Mounter>,
    /// For importing archives, where the runtime is containerd.
    pub importer: Option<containerd::Client>,
    /// Whether the machine goes down, which ends pods if they have time for it.
    pub machine_stops: MachineStops,
}

/// Why a kubelet could not start.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    #[error("making directory {path}")]
    Directory {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("setting up cgroups of pods")]
    Cgroups(#[from] crate::cm::CgroupError),
    #[error("making the pause image")]
    Pause(#[source] std::io::Error),
}

/// The parts, shared by all tasks.
pub struct Inner {
    pub config: KubeletConfig,
    pub client: Client,
    pub clock: SharedClock,
    pub events: Events,
    pub runtime: Arc<Runtime>,
    pub importer: Option<containerd::Client>,
    pub pleg: Arc<Pleg>,
    pub cache: Arc<PodCache>,
    pub pods: Arc<PodManager>,
    pub statuses: Arc<StatusManager>,
    pub probes: Arc<ProbeManager>,
    pub volumes: Arc<VolumeManager>,
    pub objects: Arc<Objects>,
    pub cgroups: Cgroups,
    pub node: Arc<NodeManager>,
    pub workers: Workers,
    /// Calls of the runtime.
    pub operations: Arc<Operations>,
    pub allocations: Arc<Store>,
    pub(crate) resizes: resize::Resizes,
    pub services: Informer<Service>,
    /// Whether services changed since they were kept, and when that was, by the monotonic clock.
    services_changed: Arc<AtomicBool>,
    services_kept: Mutex<Option<Duration>>,
    pub(crate) sources: sources::Sources,
    facts: RwLock<Arc<NodeFacts>>,
    pub(crate) wake: mpsc::Sender<Event>,
    pub(crate) garbage: Notify,
    /// Held while a pod is let in: two that come together must not take the same room.
    pub(crate) admission: tokio::sync::Mutex<()>,
    /// When garbage was last collected, by the monotonic clock.
    collected: Mutex<Option<Duration>>,
    /// Images that came from files. No registry has them, so they are never collected.
    pub(crate) imported: Mutex<HashSet<String>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl Inner {
    pub fn facts(&self) -> Arc<NodeFacts> {
        self.facts.read().clone()
    }

    /// What names mean to pods. The host's file is read for each: it changes with the networks the machine is in.
    pub fn dns(&self) -> DnsSettings {
        let host = std::fs::read_to_string(&self.config.resolv_conf).unwrap_or_else(|error| {
            tracing::warn!(path = %self.config.resolv_conf.display(), %error, "Resolver configuration was not read");
            String::new()
        });
        DnsSettings {
            cluster_dns: self.config.cluster_dns.clone(),
            cluster_domain: self.config.cluster_domain.clone(),
            host: dns::parse(&host),
        }
    }

    /// The services that containers are told of: none before they were read at least once.
    pub(crate) async fn known_services(&self) -> Vec<Arc<Service>> {
        tokio::select! {
            biased;
            () = self.services.core().synced() => {
                let services = self.services.lister().list_all("");
                self.keep_services(&services);
                services
            }
            true = self.objects.is_on_its_own() => self.objects.kept_services(),
        }
    }

    /// Keeps the services for a start without the server: before the first container is told of them, and when they
    /// change, but not for every change of many.
    fn keep_services(&self, services: &[Arc<Service>]) {
        let now = self.clock.monotonic();
        let mut kept = self.services_kept.lock();
        let is_due = kept.is_none_or(|at| now.saturating_sub(at) >= TICK);
        if is_due && self.services_changed.swap(false, Ordering::AcqRel) {
            *kept = Some(now);
            self.objects.keep_services(services);
        }
    }

    /// The queue is bounded; when it is full the tick finds what a dropped hint was about.
    pub(crate) fn notify(&self, event: Event) {
        let _ = self.wake.try_send(event);
    }
}

pub struct Kubelet {
    inner: Arc<Inner>,
    events: mpsc::Receiver<Event>,
    informers: InformerFactory,
    told_to_stop: CancellationToken,
    machine_stops: MachineStops,
}

const EVENTS_MAX: usize = 4096;
/// What is due is looked for so often. Work that has a time of its own has a timer of its own.
const TICK: Duration = Duration::from_secs(10);
/// Upstream's period for dead containers. A pod that ends is collected at once.
const GARBAGE_PERIOD: Duration = Duration::from_secs(60);

impl Kubelet {
    pub fn new(config: KubeletConfig, dependencies: Dependencies, shutdown: CancellationToken) -> Self {
        let Dependencies { client, clock, runtime, images, mounter, importer, machine_stops } = dependencies;
        let measured = Measured::new(runtime, images, clock.clone());
        let operations = measured.operations();
        let runtime: Arc<dyn RuntimeService> = Arc::new(measured.clone());
        let images: Arc<dyn ImageService> = Arc::new(measured);
        let told_to_stop = shutdown;
        // Its parts run on while pods end.
        let shutdown = CancellationToken::new();
        let client = client.with_user_agent("kubelet");
        let recorder = EventRecorder::start(client.clone(), "kubelet", shutdown.clone());
        let events = Events::new(&recorder, &config.node_name);
        let (wake, receiver) = mpsc::channel(EVENTS_MAX);

        let capacity = capacity::read(&config.root_dir);
        let cgroups = Cgroups::new(&config.cgroup_mount, &config.cgroup_root, config.pod_pids_max);
        let objects = Arc::new(Objects::new(client.clone(), clock.clone(), config.root_dir.join("objects")));
        let settings = RuntimeSettings {
            root_dir: config.root_dir.clone(),
            logs_root: config.logs_root.clone(),
            container_logs_root: config.container_logs_root.clone(),
            memory_capacity: capacity.memory,
            cgroup_v2: cgroups.version == CgroupVersion::V2,
            hugepage_sizes: capacity.hugepages.keys().copied().collect(),
            apparmor_enabled: std::path::Path::new("/sys/kernel/security/apparmor/profiles").exists(),
            runtime_name: "containerd".to_owned(),
        };
        let images =
            ImageManager::new(images, clock.clone(), events.clone(), config.registries.clone(), importer.clone());
        let allocations = Arc::new(Store::open(config.root_dir.join("pod-resources")));
        let runtime_manager = Arc::new(Runtime::new(
            runtime.clone(),
            images,
            clock.clone(),
            events.clone(),
            objects.clone(),
            mounter.clone(),
            settings,
            allocations.clone(),
        ));
        let cache = Arc::<PodCache>::default();
        let notify = {
            let wake = wake.clone();
            // A full queue is drained by the tick.
            Arc::new(move |uid: &PodUid| drop(wake.try_send(Event::Runtime(uid.clone()))))
        };
        let pleg = Arc::new(Pleg::new(runtime_manager.clone(), cache.clone(), notify));
        let statuses = Arc::new(StatusManager::new(client.clone(), clock.clone()));
        let changed = {
            let wake = wake.clone();
            Arc::new(move |uid: &PodUid| drop(wake.try_send(Event::Probe(uid.clone()))))
        };
        let probes =
            Arc::new(ProbeManager::new(runtime.clone(), clock.clone(), events.clone(), statuses.clone(), changed));
        let volumes = Arc::new(VolumeManager::new(
            config.root_dir.clone(),
            mounter,
            clock.clone(),
            client.clone(),
            objects.clone(),
        ));
        let informers = InformerFactory::new(client.clone(), shutdown.clone());
        let services = informers.informer::<Service>();
        let services_changed = Arc::new(AtomicBool::new(true));
        let changed = services_changed.clone();
        services.add_handler(move |_| changed.store(true, Ordering::Release));
        let field = |name: &str| format!("{name}={}", config.node_name);
        let assigned = informers.scoped("", "", &field("spec.nodeName"));
        let own_node: Informer<Node> = informers.scoped("", "", &field("metadata.name"));
        let node =
            Arc::new(NodeManager::new(&config, client.clone(), clock.clone(), events.clone(), capacity, own_node));
        let facts = RwLock::new(Arc::new(node.facts()));
        let sources = sources::Sources::new(assigned, &wake);
        let inner = Inner {
            client,
            clock,
            events,
            runtime: runtime_manager,
            importer,
            pleg,
            cache,
            pods: Arc::default(),
            statuses,
            probes,
            volumes,
            objects,
            cgroups,
            node,
            workers: Workers::default(),
            operations,
            allocations,
            resizes: resize::Resizes::default(),
            services,
            services_changed,
            services_kept: Mutex::default(),
            sources,
            facts,
            wake,
            garbage: Notify::new(),
            admission: tokio::sync::Mutex::default(),
            collected: Mutex::default(),
            imported: Mutex::default(),
            tasks: TaskTracker::new(),
            shutdown,
            config,
        };
        Self { inner: Arc::new(inner), events: receiver, informers, told_to_stop, machine_stops }
    }

    /// The shared parts, for the kubelet's server.
    pub fn inner(&self) -> Arc<Inner> {
        self.inner.clone()
    }

    /// Runs until shutdown. `ready` is called when the runtime answered and pods can be started.
    ///
    /// # Guarantees
    /// Containers keep running when this returns, and when it is killed.
    pub async fn run(self, ready: impl FnOnce() + Send) -> Result<(), KubeletError> {
        let Self { inner, events, informers, told_to_stop, machine_stops } = self;
        let shutdown = inner.shutdown.clone();
        // Whatever way this ends, its parts end.
        let _stop = shutdown.clone().drop_guard();
        inner.make_directories()?;
        informers.start();
        let parts: [(&'static str, BoxFuture<'static, ()>); 9] = [
            ("pleg", Box::pin(inner.pleg.clone().run(shutdown.clone()))),
            ("status", Box::pin(inner.statuses.clone().run(inner.clone(), shutdown.clone()))),
            ("node", Box::pin(inner.node.clone().run(inner.clone(), shutdown.clone()))),
            ("garbage", Box::pin(inner.clone().collect_garbage())),
            ("logs", Box::pin(crate::log_rotation::run(inner.clone()))),
            ("images", Box::pin(inner.clone().import_images())),
            ("resizes", Box::pin(inner.clone().decide_resizes())),
            ("static-pods", Box::pin(inner.clone().watch_manifests())),
            ("eviction", Box::pin(crate::eviction::manager::run(inner.clone(), shutdown.clone()))),
        ];
        for (name, part) in parts {
            let stop = shutdown.clone();
            let until_shutdown = async move {
                tokio::select! {
                    () = part => {}
                    () = stop.cancelled() => {}
                }
            };
            task::spawn(info_span!("kubelet", part = name), inner.tasks.track_future(until_shutdown));
        }
        let known = async {
            inner.pleg.synced().await;
            inner.node.observed().await;
        };
        tokio::select! {
            () = known => {}
            () = told_to_stop.cancelled() => return Ok(()),
        }
        inner.set_up_cgroups().await?;
        ready();
        let stop = async {
            told_to_stop.cancelled().await;
            inner.shut_down(&machine_stops).await;
        };
        tokio::select! {
            () = inner.clone().run_loop(events) => {}
            () = stop => {}
        }
        shutdown.cancel();
        inner.workers.stop_all();
        inner.tasks.close();
        inner.tasks.wait().await;
        Ok(())
    }
}

impl Inner {
    fn make_directories(&self) -> Result<(), KubeletError> {
        let pods = self.config.root_dir.join("pods");
        for path in [&self.config.root_dir, &pods, &self.config.logs_root, &self.config.container_logs_root] {
            std::fs::create_dir_all(path).map_err(|source| KubeletError::Directory { path: path.clone(), source })?;
        }
        Ok(())
    }

    async fn set_up_cgroups(&self) -> Result<(), KubeletError> {
        // Runtimes of before 2024 cannot be asked, and the configuration decides.
        let driver = match self.runtime.service.runtime_config(RuntimeConfigRequest::default()).await {
            Ok(RuntimeConfigResponse { linux: Some(linux) }) => match linux.cgroup_driver() {
                rkube_cri::v1::CgroupDriver::Systemd => CgroupDriver::Systemd,
                rkube_cri::v1::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
            },
            _ => self.config.cgroup_driver,
        };
        self.cgroups.set_driver(driver);
        let allocatable = self.node.allocatable();
        let limits = Limits {
            cpu_shares: Some(shares(allocatable.cpu_milli)),
            memory: Some(allocatable.memory),
            pids: self.node.allocatable_pids(),
            ..Limits::default()
        };
        self.cgroups.set_up(&limits)?;
        Ok(())
    }

    async fn run_loop(self: Arc<Self>, mut events: mpsc::Receiver<Event>) {
        self.clone().reconcile_desired();
        let mut tick = self.clock.sleep(TICK);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = &mut tick => {
                    self.clone().reconcile_desired();
                    let last = *self.collected.lock();
                    if last.is_none_or(|last| self.clock.monotonic().saturating_sub(last) >= GARBAGE_PERIOD) {
                        self.garbage.notify_one();
                    }
                    tick = self.clock.sleep(TICK);
                }
                event = events.recv() => match event {
                    None => return,
                    Some(Event::Desired) => self.clone().reconcile_desired(),
                    Some(Event::Runtime(uid)) => self.clone().runtime_changed(&uid),
                    Some(Event::Probe(uid)) => self.workers.wake(&uid),
                    Some(Event::Finished(uid)) => self.clone().worker_finished(&uid),
                },
            }
        }
    }
}
