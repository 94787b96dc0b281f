//! What the roles are configured with: plain values, checked before anything starts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// How files that people write are read.
pub use rkube_pki::files::text as read_text;

/// A control plane, and by default a node on the same machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    pub data_dir: PathBuf,
    pub bind_address: IpAddr,
    pub https_listen_port: u16,
    /// What other machines reach this server by; found from the default route if not given.
    pub advertise_address: Option<IpAddr>,
    pub tls_sans: Vec<String>,
    pub token: Option<Secret>,
    pub agent_token: Option<Secret>,
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
    pub cluster_dns: IpAddr,
    pub cluster_domain: String,
    pub service_node_ports: (u16, u16),
    pub write_kubeconfig: PathBuf,
    pub write_kubeconfig_mode: u32,
    pub datastore: Datastore,
    /// A `KubeSchedulerConfiguration`.
    pub scheduler_config: Option<PathBuf>,
    /// Settings of the controllers, as `name=value` with the names of kube-controller-manager's flags.
    pub controller_args: Vec<String>,
    /// Components not to run, by name.
    pub disable: Vec<String>,
    /// The node on this machine; `None` with `--disable-agent`.
    pub agent: Option<NodeConfig>,
}

/// Where the cluster's state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datastore {
    /// In `<data-dir>/server/db`.
    Embedded,
    Etcd {
        endpoints: Vec<String>,
        ca_file: Option<PathBuf>,
        cert_file: Option<PathBuf>,
        key_file: Option<PathBuf>,
    },
}

/// A worker that joins a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    pub data_dir: PathBuf,
    /// `https://host:port`
    pub join: String,
    pub token: Secret,
    /// On 127.0.0.1: behind it is whichever server answers.
    pub lb_server_port: u16,
    pub node: NodeConfig,
}

/// The node half, the same for a server's own node and for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    pub node_name: String,
    pub node_ip: Option<IpAddr>,
    pub node_labels: Vec<(String, String)>,
    /// `key=value:Effect`
    pub node_taints: Vec<String>,
    /// `unix:///path`; found at the usual places if not given.
    pub container_runtime_endpoint: Option<String>,
    pub network_backend: NetworkBackend,
    pub kubelet_root_dir: PathBuf,
    pub cni_bin_dir: PathBuf,
    pub cni_conf_dir: PathBuf,
    pub resolv_conf: PathBuf,
    /// The name servers of domains that those of `resolv_conf` do not know.
    pub stub_domains: BTreeMap<String, Vec<SocketAddr>>,
    pub pod_logs_dir: PathBuf,
    /// The cgroup pods are made under.
    pub cgroup_root: String,
    /// `registries.yaml`
    pub private_registry: PathBuf,
    /// `name=value`, by the names of upstream's kubelet flags.
    pub kubelet_args: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkBackend {
    Vxlan,
    HostGw,
    /// Another CNI plugin is installed by the administrator.
    None,
}

/// An IPv4 or IPv6 network in CIDR notation, kept as text for the components that parse it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix_length: u8,
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

impl Cidr {
    /// The `n`th address of the network; `None` past its end.
    pub fn nth(&self, n: u32) -> Option<IpAddr> {
        match self.address {
            IpAddr::V4(address) => {
                let host_bits = 32 - u32::from(self.prefix_length);
                let base = u32::from(address) & u32::MAX.checked_shl(host_bits).unwrap_or(0);
                (u64::from(n) < 1 << host_bits).then(|| IpAddr::from((base | n).to_be_bytes()))
            }
            IpAddr::V6(address) => {
                let host_bits = 128 - u32::from(self.prefix_length);
                let base = u128::from(address) & u128::MAX.checked_shl(host_bits).unwrap_or(0);
                let fits = host_bits >= 32 || n < 1 << host_bits;
                fits.then(|| IpAddr::from((base | u128::from(n)).to_be_bytes()))
            }
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix_length)).unwrap_or(0);
                u32::from(network) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix_length)).unwrap_or(0);
                u128::from(network) & mask == u128::from(address) & mask
            }
            _ => false,
        }
    }
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where things are under the data directory.
#[derive(Clone, Debug)]
pub struct Paths {
    data_dir: PathBuf,
}

impl Paths {
    pub fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned() }
    }

    pub fn server(&self) -> PathBuf {
        self.data_dir.join("server")
    }

    pub fn tls(&self) -> PathBuf {
        self.server().join("tls")
    }

    pub fn db(&self) -> PathBuf {
        self.server().join("db")
    }

    pub fn token(&self) -> PathBuf {
        self.server().join("token")
    }

    pub fn agent_token(&self) -> PathBuf {
        self.server().join("agent-token")
    }

    pub fn manifests(&self) -> PathBuf {
        self.server().join("manifests")
    }

    /// kubeconfigs of the server's own components.
    pub fn credentials(&self) -> PathBuf {
        self.server().join("cred")
    }

    pub fn agent(&self) -> PathBuf {
        self.data_dir.join("agent")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_network_end_where_it_ends() {
        let network = Cidr { address: "10.43.0.0".parse().unwrap(), prefix_length: 30 };
        assert_eq!(network.nth(1).unwrap().to_string(), "10.43.0.1");
        assert_eq!(network.nth(4), None);
        assert!(network.contains("10.43.0.3".parse().unwrap()));
        assert!(!network.contains("10.43.0.4".parse().unwrap()));
    }
}
