//! The node half: kubelet, pod network, service proxy and cluster DNS, the same for a server's own node and
//! for a worker. Components reach the cluster through the client they are given and cannot tell which.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use rkube_api::k8s::core::v1::Taint;
use rkube_apimachinery::clock::SharedClock;
use rkube_client::{Client, InformerFactory};
use rkube_cri::{Remote, RuntimeError};
use rkube_dns::zone::Zone;
use rkube_dns::{DnsConfig, DnsServer};
use rkube_kubelet::volumes::mounter::KernelMounter;
use rkube_kubelet::{Dependencies, Kubelet, KubeletConfig};

use crate::component::{Component, component};
use crate::config::NodeConfig;
use crate::version;

const DNS_PORT: u16 = 53;

/// What a node knows of its cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterFacts {
    pub(crate) dns: IpAddr,
    pub(crate) domain: String,
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
    #[error("finding the node's address: use --node-ip")]
    Address(#[source] std::io::Error),
}

/// Lists what runs on a node. `after` is what the node's parts wait for.
pub(crate) fn components(
    config: &NodeConfig,
    agent_folder: PathBuf,
    cluster: &ClusterFacts,
    client: &Client,
    clock: &SharedClock,
    after: &'static [&'static str],
) -> Result<Vec<Box<dyn Component>>, NodeError> {
    let endpoint = match &config.container_runtime_endpoint {
        Some(endpoint) => endpoint.clone(),
        None => Remote::discover().ok_or(NodeError::NoRuntime)?.to_owned(),
    };
    let runtime = Remote::new(&endpoint).map_err(|source| NodeError::Runtime { endpoint, source })?;
    let address = match config.node_ip {
        Some(address) => address,
        None => super::address::of_default_route().map_err(NodeError::Address)?,
    };
    Ok(vec![
        kubelet(kubelet_config(config, agent_folder, cluster, address), runtime, client.clone(), clock.clone(), after),
        dns(config, cluster, client.clone(), clock.clone(), after),
    ])
}

fn kubelet_config(
    config: &NodeConfig,
    agent_folder: PathBuf,
    cluster: &ClusterFacts,
    address: IpAddr,
) -> KubeletConfig {
    KubeletConfig {
        root_dir: config.kubelet_root_dir.clone(),
        logs_root: config.pod_logs_dir.clone(),
        container_logs_root: config.pod_logs_dir.with_file_name("containers"),
        manifests_dir: Some(agent_folder.join("pods")),
        images_dir: Some(agent_folder.join("images")),
        cluster_dns: vec![cluster.dns.to_string()],
        cluster_domain: cluster.domain.clone(),
        resolv_conf: config.resolv_conf.clone(),
        labels: config.node_labels.iter().cloned().collect::<BTreeMap<_, _>>(),
        taints: config.node_taints.iter().map(|text| taint(text)).collect(),
        cgroup_root: config.cgroup_root.clone(),
        ..KubeletConfig::new(&config.node_name, vec![address.to_string()], version::KUBERNETES)
    }
}

/// `key=value:Effect`, checked when the settings were read.
fn taint(text: &str) -> Taint {
    let (pair, effect) = text.rsplit_once(':').unwrap_or((text, "NoSchedule"));
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let value = (!value.is_empty()).then(|| value.to_owned());
    Taint { key: key.to_owned(), value, effect: effect.to_owned(), ..Taint::default() }
}

fn kubelet(
    config: KubeletConfig,
    runtime: Remote,
    client: Client,
    clock: SharedClock,
    after: &'static [&'static str],
) -> Box<dyn Component> {
    component("kubelet", after, move |ready, shutdown| async move {
        let importer = Some(runtime.containerd());
        let runtime = Arc::new(runtime);
        let dependencies = Dependencies {
            client,
            clock,
            runtime: runtime.clone(),
            images: runtime,
            mounter: Arc::new(KernelMounter),
            importer,
        };
        let kubelet = Kubelet::new(config, dependencies, shutdown.token());
        kubelet.run(|| ready.ready()).await.map_err(Into::into)
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
        stub_domains: Vec::new(),
    };
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
        server.run(|_| ready.ready(), stop).await.map_err(Into::into)
    })
}
