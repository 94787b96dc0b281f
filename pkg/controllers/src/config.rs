//! Settings of all controllers, with kube-controller-manager's defaults.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

/// Validated before anything starts; controllers read it and nothing else.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// `*`, `name` or `-name`, as `--controllers`.
    pub controllers: BTreeSet<String>,
    /// Keys worked on at once by the workload controllers.
    pub concurrent_syncs: usize,
    /// Where nodes get their pod ranges from, one per address family. Empty for none.
    pub cluster_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    /// Where the API server listens on its nodes' addresses, which no load balancer may take.
    pub api_server_port: Option<u16>,
    /// Prefix lengths of a node's range.
    pub node_cidr_mask_size_ipv4: u8,
    pub node_cidr_mask_size_ipv6: u8,
    pub node_monitor_grace_period: Duration,
    pub node_startup_grace_period: Duration,
    pub node_monitor_period: Duration,
    /// Evictions per second while a zone is healthy, and while it is partly down and large.
    pub node_eviction_rate: f32,
    pub secondary_node_eviction_rate: f32,
    pub large_cluster_size_threshold: usize,
    pub unhealthy_zone_threshold: f32,
    /// Terminated pods kept; 0 for all.
    pub terminated_pod_gc_threshold: usize,
    pub horizontal_pod_autoscaler_sync_period: Duration,
    pub horizontal_pod_autoscaler_downscale_stabilization: Duration,
    pub horizontal_pod_autoscaler_tolerance: f64,
    pub horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    pub horizontal_pod_autoscaler_initial_readiness_delay: Duration,
    pub cluster_signing_duration: Duration,
    /// Signs the certificates of kubelets and clients; without one nothing is signed.
    pub signing_authority: Option<rkube_pki::CertificateAuthority>,
    /// Signs the tokens of service accounts that live in Secrets; without them such Secrets stay empty.
    pub service_account_keys: Option<rkube_pki::service_account::ServiceAccountKeys>,
    /// What this process's own API server is known by; `None` where there is none.
    pub api_server: Option<crate::kubernetes_service::ApiServer>,
    /// By what this process's own API server knows its users; `None` where there is none.
    pub authentication_trust: Option<crate::cluster_authentication_trust::AuthenticationTrust>,
    /// The PEM bundle that pods trust the API server with.
    pub root_ca: String,
    /// Unused for this long before legacy tokens are deleted.
    pub legacy_service_account_token_clean_up_period: Duration,
    /// How long the pods of an unready node with the not-ready taint may stay is in their tolerations.
    pub endpoints_per_slice_max: usize,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            controllers: BTreeSet::new(),
            concurrent_syncs: 5,
            cluster_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            api_server_port: None,
            node_cidr_mask_size_ipv4: 24,
            node_cidr_mask_size_ipv6: 64,
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            node_monitor_period: Duration::from_secs(5),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            large_cluster_size_threshold: 50,
            unhealthy_zone_threshold: 0.55,
            terminated_pod_gc_threshold: 12_500,
            horizontal_pod_autoscaler_sync_period: Duration::from_secs(15),
            horizontal_pod_autoscaler_downscale_stabilization: Duration::from_secs(300),
            horizontal_pod_autoscaler_tolerance: 0.1,
            horizontal_pod_autoscaler_cpu_initialization_period: Duration::from_secs(300),
            horizontal_pod_autoscaler_initial_readiness_delay: Duration::from_secs(30),
            cluster_signing_duration: Duration::from_secs(365 * 24 * 3600),
            signing_authority: None,
            service_account_keys: None,
            api_server: None,
            authentication_trust: None,
            root_ca: String::new(),
            legacy_service_account_token_clean_up_period: Duration::from_secs(365 * 24 * 3600),
            endpoints_per_slice_max: 100,
        }
    }
}
