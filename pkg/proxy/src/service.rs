//! A Service's ports, as far as they matter for packets.
//!
//! Behaves as  pkg/proxy/serviceport.go, v1.36

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use rkube_api::k8s::core::v1::Service;
use rkube_network::nft::{SCTP, TCP, UDP};

const LOCAL: &str = "Local";
/// Services with this label are another proxy's.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Where a connection to a Service arrives, and the name of the Service port for everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub address: Ipv4Addr,
    pub protocol: u8,
    pub port: u16,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// As slices name it; empty for a single unnamed port.
    pub name: String,
    /// The cluster IP with protocol and port.
    pub frontend: Frontend,
    pub node_port: Option<u16>,
    pub external_ips: Vec<Ipv4Addr>,
    pub load_balancer_ips: Vec<Ipv4Addr>,
    /// Empty for everyone.
    pub source_ranges: Vec<Ipv4Net>,
    /// How long a client stays with its endpoint.
    pub affinity: Option<Duration>,
    pub internal_local: bool,
    pub external_local: bool,
}

impl ServicePort {
    pub fn externally_accessible(&self) -> bool {
        self.node_port.is_some() || !self.load_balancer_ips.is_empty() || !self.external_ips.is_empty()
    }

    pub fn uses_cluster_endpoints(&self) -> bool {
        !self.internal_local || self.externally_accessible()
    }

    pub fn uses_local_endpoints(&self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible())
    }
}

fn protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        "SCTP" => Some(SCTP),
        _ => None,
    }
}

/// An address that a Service may be reached by from outside: never the host's own loopback.
fn external(text: &str) -> Option<Ipv4Addr> {
    let address: Ipv4Addr = text.parse().ok()?;
    let usable = !address.is_loopback() && !address.is_unspecified() && !address.is_multicast();
    usable.then_some(address)
}

/// The ports to serve. None for headless Services, aliases, and those of another proxy.
pub fn service_ports(service: &Service) -> Vec<ServicePort> {
    let labels = service.metadata.labels.as_ref();
    let Some(spec) = service.spec.as_ref() else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") || labels.is_some_and(|all| all.contains_key(PROXY_NAME_LABEL)) {
        return Vec::new();
    }
    let several = spec.cluster_ips.iter().flatten();
    let Some(address) = several.chain(&spec.cluster_ip).find_map(|text| text.parse::<Ipv4Addr>().ok()) else {
        return Vec::new();
    };
    let external_ips: Vec<_> = spec.external_ips.iter().flatten().filter_map(|text| external(text)).collect();
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    // In mode `Proxy` the load balancer itself must see the traffic.
    let ingress = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    let load_balancer_ips: Vec<_> = ingress.filter_map(|ingress| external(ingress.ip.as_deref()?)).collect();
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let ranges: Vec<Ipv4Net> = ranges.filter_map(|text| text.trim().parse().ok()).collect();
    let source_ranges = if ranges.iter().any(|net| net.prefix_len() == 0) { Vec::new() } else { ranges };
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(10_800);
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    });
    let affinity = affinity.filter(|timeout| !timeout.is_zero());
    let external_local = spec.external_traffic_policy.as_deref() == Some(LOCAL);
    let internal_local = spec.internal_traffic_policy.as_deref() == Some(LOCAL);
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(ServicePort {
            name: port.name.clone().unwrap_or_default(),
            frontend: Frontend {
                address,
                protocol: protocol(port.protocol.as_deref())?,
                port: u16::try_from(port.port).ok()?,
            },
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
            external_ips: external_ips.clone(),
            load_balancer_ips: load_balancer_ips.clone(),
            source_ranges: source_ranges.clone(),
            affinity,
            internal_local,
            external_local,
        })
    });
    ports.collect()
}

/// Where load balancers ask whether this node has endpoints, for Services that keep to them.
pub fn health_check_node_port(service: &Service) -> Option<u16> {
    let spec = service.spec.as_ref()?;
    let applies =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some(LOCAL);
    applies.then_some(spec.health_check_node_port?).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}
