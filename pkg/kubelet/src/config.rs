//! Everything about a kubelet that is decided before it starts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rkube_api::k8s::core::v1::Taint;

use crate::cm::CgroupDriver;

/// Upstream's default.
pub const PODS_MAX: u32 = 110;
pub const PORT: u16 = 10250;

/// Resources held back from pods, in the units of capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    pub cpu_milli: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    pub pids: i64,
}

#[derive(Clone, Debug)]
pub struct KubeletConfig {
    pub node_name: String,
    /// The node's addresses, the first of each family.
    pub node_ips: Vec<String>,
    /// `/var/lib/kubelet`
    pub root_dir: PathBuf,
    /// `/var/log/pods`
    pub logs_root: PathBuf,
    /// `/var/log/containers`
    pub container_logs_root: PathBuf,
    /// Static pods, `agent/pods`.
    pub manifests_dir: Option<PathBuf>,
    /// Archives that are imported, `agent/images`.
    pub images_dir: Option<PathBuf>,
    /// Where the runtime reads network configurations, which is watched while the node waits for one.
    pub cni_conf_dir: Option<PathBuf>,
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub labels: BTreeMap<String, String>,
    /// Set at first registration only.
    pub taints: Vec<Taint>,
    pub port: u16,
    pub pods_max: u32,
    pub pod_pids_max: Option<i64>,
    /// Where `kubepods` is made: `/`, or another place when several kubelets share a machine.
    pub cgroup_root: String,
    /// For runtimes that do not say.
    pub cgroup_driver: CgroupDriver,
    /// `/sys/fs/cgroup`
    pub cgroup_mount: PathBuf,
    pub reserved: Reserved,
    /// `v1.36.2+rkube.1`
    pub version: String,
    /// Rotation of container logs.
    pub container_log_bytes_max: u64,
    pub container_log_files_max: usize,
    pub image_gc_high_percent: u8,
    pub image_gc_low_percent: u8,
    pub eviction: crate::eviction::Thresholds,
    pub shutdown_grace_period: Duration,
    pub shutdown_grace_period_critical: Duration,
    /// The image of sandboxes, never collected.
    pub pause_image: String,
    /// The node's own credentials for registries.
    pub registries: crate::registries::Registries,
    /// Namespaced sysctls beyond the safe ones that pods may set.
    pub allowed_unsafe_sysctls: Vec<String>,
}

impl KubeletConfig {
    /// Upstream's defaults for everything but the node's name and addresses.
    pub fn new(node_name: &str, node_ips: Vec<String>, version: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            node_ips,
            root_dir: "/var/lib/kubelet".into(),
            logs_root: "/var/log/pods".into(),
            container_logs_root: "/var/log/containers".into(),
            manifests_dir: None,
            images_dir: None,
            cni_conf_dir: None,
            cluster_dns: vec![],
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            labels: BTreeMap::new(),
            taints: vec![],
            port: PORT,
            pods_max: PODS_MAX,
            pod_pids_max: None,
            cgroup_root: "/".to_owned(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            cgroup_mount: "/sys/fs/cgroup".into(),
            reserved: Reserved::default(),
            version: version.to_owned(),
            container_log_bytes_max: 10 << 20,
            container_log_files_max: 5,
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            eviction: crate::eviction::Thresholds::default(),
            shutdown_grace_period: Duration::ZERO,
            shutdown_grace_period_critical: Duration::ZERO,
            pause_image: rkube_cri::pause::IMAGE.to_owned(),
            registries: crate::registries::Registries::default(),
            allowed_unsafe_sysctls: vec![],
        }
    }
}
