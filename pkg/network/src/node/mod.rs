//! The network of one node: its pods' bridge, its part of the overlay, its nftables frame.
//!
//! Watches  v1 Node
//! Outputs  devices, routes and neighbours ([`apply`]); the runtime's configuration (`conflist`); an event about
//!          this node when that fails
//!
//! [`plan`] says what should be there from the Node objects; [`apply`] makes it so, as often as asked.
//!
//! Invariant: nothing is taken away at shutdown. Pods and their connections outlive the agent.

mod apply;
mod plan;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use rkube_api::k8s::core::v1::Node;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::{Client, EventRecorder, InformerFactory, Lister};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use apply::{Network, ensure};
pub use plan::{Desired, Peer, View, VxlanDevice, desired, view, vtep_mac};

use crate::cni::Failure;
use crate::conflist::{self, Conflist, InstallError};
use crate::ipam::IpamError;
use crate::netlink::NetlinkError;
use crate::sysctl::SysctlError;

pub const BRIDGE: &str = "rkube0";
pub const VXLAN: &str = "rkube-vxlan";

/// The source of our events.
const COMPONENT: &str = "network";
/// Someone else may have changed what is ours: look again even if no Node changed.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60);
const RETRY_DELAY: Duration = Duration::from_secs(2);

/// How packets get to the pods of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// In UDP between the nodes.
    Vxlan,
    /// By routes; all nodes are on one network.
    HostGw,
    /// Another CNI plugin does it.
    None,
}

#[derive(Clone, Debug)]
pub struct NetworkConfig {
    pub node_name: String,
    /// The address other nodes reach this one by; that of the Node object if not given.
    pub node_ip: Option<Ipv4Addr>,
    pub backend: Backend,
    pub cluster_cidr: Ipv4Net,
    pub cni_bin_dir: PathBuf,
    pub cni_conf_dir: PathBuf,
    /// Where addresses are recorded; not shared between nodes.
    pub data_dir: PathBuf,
    /// What the plugin's link points to: this program.
    pub executable: PathBuf,
}

/// Why the node's network is not as it should be, yet.
#[derive(Debug, thiserror::Error)]
pub enum NodeNetworkError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Ipam(#[from] IpamError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error("making the bridge: {0}")]
    Bridge(String),
    #[error("address {0} of this node is on no network device")]
    NoUnderlay(Ipv4Addr),
    #[error(
        "device {device} has the address {address}, which is inside the pods' network {cluster}: \
         give the cluster another one with --cluster-cidr, or the device another address"
    )]
    Overlap { device: String, address: Ipv4Net, cluster: Ipv4Net },
    #[error("the node's network task ended")]
    Task(#[source] tokio::task::JoinError),
}

impl From<Failure> for NodeNetworkError {
    fn from(failure: Failure) -> Self {
        Self::Bridge(failure.message)
    }
}

/// The component.
pub struct NodeNetwork {
    config: Arc<NetworkConfig>,
    client: Client,
    clock: SharedClock,
    nodes: Lister<Node>,
    changed: Arc<Notify>,
}

impl NodeNetwork {
    /// Asks `informers` for Nodes; start them afterwards.
    pub fn new(config: NetworkConfig, informers: &InformerFactory) -> Self {
        let nodes = informers.informer::<Node>();
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        nodes.core().add_handler(move |_| notify.notify_one());
        let client = informers.client().clone();
        let clock = client.clock().clone();
        Self { config: Arc::new(config), client, clock, nodes: nodes.lister(), changed }
    }

    /// Keeps the network in step with the Nodes until `stop`. `ready` is called when pods can be attached.
    pub async fn run(self, ready: impl FnOnce() + Send, stop: CancellationToken) -> Result<(), NodeNetworkError> {
        let mut ready = Some(ready);
        let mut last: Option<Desired> = None;
        let recorder = EventRecorder::start(self.client.clone(), COMPONENT, stop.clone());
        let recorder = recorder.on_host(&self.config.node_name);
        let mut told = BTreeSet::new();
        loop {
            let delay = match self.sync(&mut last).await {
                Ok(true) => {
                    if let Some(ready) = ready.take() {
                        info!("The node's network is up");
                        ready();
                    }
                    told.clear();
                    RESYNC_INTERVAL
                }
                // The Node has no pod network yet; its next change tells.
                Ok(false) => RESYNC_INTERVAL,
                Err(error) => {
                    let text = chain(&error).to_string();
                    warn!(error = text, "Could not bring the node's network in step, retrying");
                    let node = self.nodes.get(&ObjectKey::cluster(self.config.node_name.as_str()));
                    if let Some(node) = node.filter(|_| !told.contains(&text)) {
                        recorder.warning(&*node, "NetworkSetupFailed", text.clone());
                        told.insert(text);
                    }
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

    /// False if this node has no pod network yet.
    async fn sync(&self, last: &mut Option<Desired>) -> Result<bool, NodeNetworkError> {
        let nodes = self.nodes.list_all("");
        let view = view(&self.config.node_name, self.config.node_ip, &nodes);
        for problem in &view.problems {
            warn!(problem, "Left a node out of the network");
        }
        if self.config.backend != Backend::None && (view.pods.is_none() || view.address.is_none()) {
            return Ok(false);
        }
        let config = Arc::clone(&self.config);
        // Netlink calls block, for microseconds each.
        let work = tokio::task::spawn_blocking(move || bring_up(&config, &view));
        let desired = work.await.map_err(NodeNetworkError::Task)??;
        if last.as_ref() != Some(&desired) {
            info!(peers = desired.routes.len(), "Routes to other nodes are in step");
            *last = Some(desired);
        }
        Ok(true)
    }
}

/// Makes the network, then tells the runtime.
fn bring_up(config: &NetworkConfig, view: &View) -> Result<Desired, NodeNetworkError> {
    let network = Network { backend: config.backend, cluster: config.cluster_cidr, data_dir: config.data_dir.clone() };
    let (desired, mtu) = ensure(&network, view)?;
    if config.backend == Backend::None {
        // The runtime takes the first configuration there is, which is to be the other plugin's.
        conflist::withdraw(&config.cni_conf_dir)?;
    }
    if let (Some(pods), Some(mtu)) = (view.pods, mtu) {
        conflist::install_plugin(&config.executable, &config.cni_bin_dir)?;
        let conflist = Conflist { pods, bridge: BRIDGE.to_owned(), mtu, data_dir: config.data_dir.clone() };
        conflist::install(&conflist, &config.cni_conf_dir)?;
    }
    Ok(desired)
}
