//! The node half: kubelet, pod network, service proxy and cluster DNS, the same for a server's own node and
//! for a worker. Components reach the cluster through the client they are given and cannot tell which.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::Taint;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use rkube_client::{Client, InformerFactory};
use rkube_cri::{Remote, RuntimeError};
use rkube_dns::zone::Zone;
use rkube_dns::{DnsConfig, DnsServer};
use rkube_http::listener::Listener;
use rkube_http::tls::{self, ClientVerifier, SharedServerConfig};
use rkube_kubelet::args::ArgumentError;
use rkube_kubelet::registries::{Registries, RegistriesError};
use rkube_kubelet::server::KubeletServer;
use rkube_kubelet::server::auth::Webhook;
use rkube_kubelet::volumes::mounter::KernelMounter;
use rkube_kubelet::{Dependencies, Kubelet, KubeletConfig};

use rkube_network::node::{Backend, NetworkConfig, NodeNetwork};
use rkube_pki::authority;
use rkube_pki::tree::Names;
use rkube_proxy::proxier::{Proxier, ProxierConfig};
use rkube_proxy::status::StatusConfig;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tracing::info_span;

use crate::component::{Component, ComponentError, Patient, component};
use crate::config::{NetworkBackend, NodeConfig};
use crate::join::ServingCertificate;
use crate::version;

const DNS_PORT: u16 = 53;
/// kube-proxy's ports.
const PROXY_HEALTHZ_PORT: u16 = 10_256;
const PROXY_METRICS_PORT: u16 = 10_249;
/// Differs from upstream: pods go at 5 % of free disk, as with k3s, and not at 10 and 15 %. The node is often a
/// machine with a large disk that is used for other things, too.
const EVICTION_HARD: &str =
    "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,imagefs.inodesFree<5%";
/// How long streams and logs may take to end when the node stops.
const SERVER_DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a node knows of its cluster.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct ClusterFacts {
    pub(crate) dns: IpAddr,
    pub(crate) domain: String,
    /// The network of pods, in CIDR notation.
    pub(crate) pods: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("no container runtime was found: install containerd, or name its socket with --container-runtime-endpoint")]
    NoRuntime,
    #[error("--container-runtime-endpoint {endpoint}")]
    Runtime {
        endpoint: String,
        #[source]
        source: RuntimeError,
    },
    #[error("the pod network needs an IPv4 --cluster-cidr, not {0}")]
    PodNetwork(String),
    #[error("finding this program's own path")]
    Executable(#[source] std::io::Error),
    #[error("--kubelet-arg")]
    KubeletArgument(#[from] ArgumentError),
    #[error("--private-registry")]
    Registries(#[from] RegistriesError),
    #[error("finding the node's address: use --node-ip")]
    Address(#[source] std::io::Error),
    #[error("this machine has no address that the server reaches: name one with --node-ip")]
    NoAddress,
}

/// Lists what runs on a node. `after` is what the node's parts wait for.
pub(crate) fn components(
    config: &NodeConfig,
    agent_folder: PathBuf,
    cluster: &ClusterFacts,
    client: &Client,
    clock: &SharedClock,
    trust: Trust,
    after: &'static [&'static str],
) -> Result<Vec<Box<dyn Component>>, NodeError> {
    let endpoint = match &config.container_runtime_endpoint {
        Some(endpoint) => endpoint.clone(),
        None => Remote::discover().ok_or(NodeError::NoRuntime)?.to_owned(),
    };
    let runtime = Remote::new(&endpoint).map_err(|source| NodeError::Runtime { endpoint, source })?;
    let address = match config.node_ip {
        Some(address) => address,
        None => match super::address::own().map_err(NodeError::Address)? {
            Some(address) => address,
            // A server in no network has nobody but itself to reach its node.
            None if trust.serving.is_some() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            None => return Err(NodeError::NoAddress),
        },
    };
    let mut all = Vec::new();
    all.push(network(config, &agent_folder, cluster, address, client, after)?);
    if let IpAddr::V4(address) = address {
        all.push(proxy(config, cluster, address, client, after)?);
    }
    // Pods may have time to end when the machine stops, and need their names until then.
    all.push(dns(config, cluster, client.clone(), clock.clone(), after));
    let certs = agent_folder.join("etc/containerd/certs.d");
    let mut settings = kubelet_config(config, agent_folder.clone(), cluster, address)?;
    settings.registries = Registries::read(&config.private_registry)?;
    settings.registries.write(&certs)?;
    let extra = settings.shutdown_grace_period;
    let serving = Serving { trust, names: names(&config.node_name, address), folder: agent_folder };
    let component = kubelet(settings, runtime, client.clone(), clock.clone(), serving, after);
    all.push(Box::new(Patient { component, extra }));
    Ok(all)
}

/// Services as nftables rules of this node.
fn proxy(
    config: &NodeConfig,
    cluster: &ClusterFacts,
    address: Ipv4Addr,
    client: &Client,
    after: &'static [&'static str],
) -> Result<Box<dyn Component>, NodeError> {
    let cluster_cidr = cluster.pods.parse().map_err(|_| NodeError::PodNetwork(cluster.pods.clone()))?;
    let settings = ProxierConfig {
        node_name: config.node_name.clone(),
        node_ip: Some(address),
        cluster_cidr,
        own_addresses: match cluster.dns {
            IpAddr::V4(dns) => [dns].into(),
            IpAddr::V6(_) => BTreeSet::new(),
        },
        status: StatusConfig {
            healthz: Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PROXY_HEALTHZ_PORT))),
            metrics: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_METRICS_PORT))),
        },
    };
    let client = client.clone();
    Ok(component("kube-proxy", after, move |ready, shutdown| async move {
        let stop = shutdown.token();
        let informers = InformerFactory::new(client, stop.clone());
        let proxier = Proxier::new(settings, &informers);
        informers.start();
        proxier.run(|| ready.ready(), stop).await.map_err(Into::into)
    }))
}

/// Where the addresses of pods are recorded.
pub(crate) fn network_folder(agent_folder: &Path) -> PathBuf {
    agent_folder.join("network")
}

/// The built-in pod network; where another CNI plugin is to be used, what Services need of it.
fn network(
    config: &NodeConfig,
    agent_folder: &Path,
    cluster: &ClusterFacts,
    address: IpAddr,
    client: &Client,
    after: &'static [&'static str],
) -> Result<Box<dyn Component>, NodeError> {
    let backend = match config.network_backend {
        NetworkBackend::Vxlan => Backend::Vxlan,
        NetworkBackend::HostGw => Backend::HostGw,
        NetworkBackend::None => Backend::None,
    };
    let cluster_cidr = cluster.pods.parse().map_err(|_| NodeError::PodNetwork(cluster.pods.clone()))?;
    let settings = NetworkConfig {
        node_name: config.node_name.clone(),
        node_ip: match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        },
        backend,
        cluster_cidr,
        cni_bin_dir: config.cni_bin_dir.clone(),
        cni_conf_dir: config.cni_conf_dir.clone(),
        data_dir: network_folder(agent_folder),
        executable: std::env::current_exe().map_err(NodeError::Executable)?,
    };
    let client = client.clone();
    Ok(component("network", after, move |ready, shutdown| async move {
        let stop = shutdown.token();
        let informers = InformerFactory::new(client, stop.clone());
        let network = NodeNetwork::new(settings, &informers);
        informers.start();
        // A new node gets its pod network after its kubelet has registered it: others need not wait.
        ready.ready();
        network.run(|| {}, stop).await.map_err(Into::into)
    }))
}

fn kubelet_config(
    config: &NodeConfig,
    agent_folder: PathBuf,
    cluster: &ClusterFacts,
    address: IpAddr,
) -> Result<KubeletConfig, NodeError> {
    let mut settings = KubeletConfig {
        root_dir: config.kubelet_root_dir.clone(),
        logs_root: config.pod_logs_dir.clone(),
        container_logs_root: config.pod_logs_dir.with_file_name("containers"),
        manifests_dir: Some(agent_folder.join("pods")),
        images_dir: Some(agent_folder.join("images")),
        cni_conf_dir: Some(config.cni_conf_dir.clone()),
        cluster_dns: vec![cluster.dns.to_string()],
        cluster_domain: cluster.domain.clone(),
        resolv_conf: config.resolv_conf.clone(),
        labels: config.node_labels.iter().cloned().collect::<BTreeMap<_, _>>(),
        taints: config.node_taints.iter().map(|text| taint(text)).collect(),
        cgroup_root: config.cgroup_root.clone(),
        ..KubeletConfig::new(&config.node_name, vec![address.to_string()], version::KUBERNETES)
    };
    let defaults = format!("eviction-hard={EVICTION_HARD}");
    settings.apply(&[defaults])?;
    settings.apply(&config.kubelet_args)?;
    Ok(settings)
}

/// Asks the service manager. Without one, nobody says that the machine stops.
fn machine_stops() -> BoxFuture<'static, bool> {
    Box::pin(async {
        let mut command = tokio::process::Command::new("systemctl");
        // The environment may hold the token this process joined with, which is nobody else's.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        let asked = command.arg("is-system-running").output().await;
        asked.is_ok_and(|answer| answer.stdout.trim_ascii() == b"stopping")
    })
}

/// `key=value:Effect`, checked when the settings were read.
fn taint(text: &str) -> Taint {
    let (pair, effect) = text.rsplit_once(':').unwrap_or((text, "NoSchedule"));
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let value = (!value.is_empty()).then(|| value.to_owned());
    Taint { key: key.to_owned(), value, effect: effect.to_owned(), ..Taint::default() }
}

/// Whom the kubelet's server trusts, and what it shows.
pub(crate) struct Trust {
    /// PEM of the cluster's authority.
    pub(crate) authority: String,
    /// What the kubelet serves with; a worker asks the cluster for its own.
    pub(crate) serving: Option<SharedServerConfig>,
}

struct Serving {
    trust: Trust,
    names: Names,
    /// Where a worker keeps its certificates.
    folder: PathBuf,
}

/// What a kubelet is reached by.
pub(crate) fn names(node_name: &str, address: IpAddr) -> Names {
    Names { dns_names: vec![node_name.to_owned()], ip_addresses: vec![address] }
}

fn kubelet(
    config: KubeletConfig,
    runtime: Remote,
    client: Client,
    clock: SharedClock,
    serving: Serving,
    after: &'static [&'static str],
) -> Box<dyn Component> {
    component("kubelet", after, move |ready, shutdown| async move {
        let (node_name, port) = (config.node_name.clone(), config.port);
        let node = client.clone();
        let importer = Some(runtime.containerd());
        let runtime = Arc::new(runtime);
        let dependencies = Dependencies {
            client,
            clock: clock.clone(),
            runtime: runtime.clone(),
            images: runtime,
            mounter: Arc::new(KernelMounter),
            importer,
            machine_stops: Arc::new(machine_stops),
        };
        let kubelet = Kubelet::new(config, dependencies, shutdown.token());
        let inner = kubelet.inner();
        let (registered, is_registered) = tokio::sync::oneshot::channel::<()>();
        let running = kubelet.run(move || {
            // The server below has ended if nobody waits.
            let _ = registered.send(());
            ready.ready();
        });
        let stop = shutdown.token();
        let server = async {
            if is_registered.await.is_err() {
                return Ok(());
            }
            let roots = tls::roots(&authority::certificates(&serving.trust.authority, "cluster CA")?)?;
            let (config, renewal) = match serving.trust.serving {
                Some(config) => (config, None),
                None => {
                    let asked = ServingCertificate {
                        client: node.clone(),
                        clock: clock.clone(),
                        node_name: node_name.clone(),
                        names: serving.names,
                        roots: roots.clone(),
                        authority: serving.trust.authority,
                        folder: serving.folder,
                    };
                    let (config, pair) = tokio::select! {
                        first = asked.first() => first?,
                        () = stop.cancelled() => return Ok(()),
                    };
                    let renewal = asked.keep_fresh(Arc::clone(&config), pair);
                    (config, Some(task::spawn(info_span!("certificates", component = "kubelet"), renewal)))
                }
            };
            let access = Webhook::new(node, clock.clone(), &node_name, ClientVerifier::new(roots)?);
            let address = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port);
            let socket = TcpListener::bind(address).await?;
            let listener = Listener::new("kubelet", socket, Some(config), clock);
            let handler = Arc::new(KubeletServer::new(inner, Arc::new(access)));
            listener.serve(handler, stop, SERVER_DRAIN_TIMEOUT).await;
            if let Some(renewal) = renewal {
                renewal.abort();
            }
            Ok::<(), ComponentError>(())
        };
        let (ran, served) = tokio::join!(running, server);
        ran?;
        served
    })
}

fn dns(
    config: &NodeConfig,
    cluster: &ClusterFacts,
    client: Client,
    clock: SharedClock,
    after: &'static [&'static str],
) -> Box<dyn Component> {
    let settings = DnsConfig {
        listen: vec![SocketAddr::new(cluster.dns, DNS_PORT)],
        cluster_domain: cluster.domain.clone(),
        resolv_conf: config.resolv_conf.clone(),
        stub_domains: config.stub_domains.clone(),
    };
    let address = cluster.dns;
    component("dns", after, move |ready, shutdown| async move {
        let stop = shutdown.token();
        let zone = Arc::new(Zone::default());
        let informers = InformerFactory::new(client, stop.clone());
        zone.follow(&informers);
        informers.start();
        if informers.wait_for_sync().await.is_err() {
            return Ok(());
        }
        let server = DnsServer::new(settings, zone, clock)?;
        if let IpAddr::V4(address) = address {
            rkube_network::address::assign_local(address)?;
        }
        server.run(|_| ready.ready(), stop).await.map_err(Into::into)
    })
}
