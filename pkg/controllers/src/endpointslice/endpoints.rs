//! From a pod and a Service to an endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{ObjectReference, Pod, Service};
use rkube_api::k8s::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone};

use crate::common::pods;
use crate::common::service_pods::{addresses, find_port, hostname, is_headless, publishes_not_ready};

/// A pod, and the zone of its node where that is known.
pub(super) type ZonedPod = (Arc<Pod>, Option<String>);
/// What makes an endpoint the same one: addresses, name, and the object behind it.
pub(crate) type EndpointKey = (Vec<String>, Option<String>, Option<String>, Option<String>);
/// Ports in order; slices of one Service differ in them when pods resolve a named port differently.
pub(crate) type PortKey = Vec<(String, String, Option<i32>, Option<String>)>;
/// Ports and the endpoints that have them.
pub(super) type EndpointsByPorts = BTreeMap<PortKey, (Vec<EndpointPort>, BTreeMap<EndpointKey, Endpoint>)>;

pub(crate) fn endpoint_key(endpoint: &Endpoint) -> EndpointKey {
    let mut addresses = endpoint.addresses.clone();
    addresses.sort();
    let target = endpoint.target_ref.as_ref();
    (
        addresses,
        endpoint.hostname.clone(),
        target.and_then(|target| target.namespace.clone()),
        target.and_then(|target| target.name.clone()),
    )
}

pub(crate) fn port_key(ports: &[EndpointPort]) -> PortKey {
    let part = |port: &EndpointPort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        (port.name.clone().unwrap_or_default(), protocol, port.port, port.app_protocol.clone())
    };
    let mut key: PortKey = ports.iter().map(part).collect();
    key.sort();
    key
}

/// Equal in everything that is not in the key. A target's resource version does not count.
pub(crate) fn same_state(a: &Endpoint, b: &Endpoint) -> bool {
    let target = |endpoint: &Endpoint| {
        let mut target = endpoint.target_ref.clone();
        if let Some(target) = &mut target {
            target.resource_version = None;
        }
        target
    };
    a.node_name == b.node_name && a.zone == b.zone && a.conditions == b.conditions && target(a) == target(b)
}

/// The address families a Service has endpoints for.
pub(super) fn address_types(service: &Service) -> BTreeSet<&'static str> {
    let spec = service.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.as_ref()).into_iter().flatten();
    let families: BTreeSet<_> = families
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some("IPv4"),
            "IPv6" => Some("IPv6"),
            _ => None,
        })
        .collect();
    if !families.is_empty() {
        return families;
    }
    let address = spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    match address.parse::<IpAddr>() {
        Ok(address) => BTreeSet::from([if address.is_ipv6() { "IPv6" } else { "IPv4" }]),
        Err(_) => BTreeSet::from(["IPv4", "IPv6"]),
    }
}

fn endpoint_ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
    let resolved = ports.filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(find_port(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    let mut ports: Vec<EndpointPort> = resolved.collect();
    ports.sort_by_cached_key(|port| port_key(std::slice::from_ref(port)));
    ports
}

fn endpoint(service: &Service, pod: &Pod, zone: Option<String>, address_type: &str) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pods::is_terminating(pod);
    let own = addresses(pod).into_iter().filter(|address| address.is_ipv6() == (address_type == "IPv6"));
    Endpoint {
        addresses: own.map(|address| address.to_string()).collect(),
        conditions: Some(EndpointConditions {
            ready: Some(publishes_not_ready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        node_name: Some(pods::node_name(pod).to_owned()).filter(|node| !node.is_empty()),
        zone,
        hostname: hostname(pod, service),
        ..Endpoint::default()
    }
}

/// The endpoints of one family that a Service is to have. `pods` come with the zones of their nodes.
pub(super) fn desired(service: &Service, pods: &[ZonedPod], address_type: &str) -> EndpointsByPorts {
    let mut desired = EndpointsByPorts::new();
    for (pod, zone) in pods {
        let ports = endpoint_ports(service, pod);
        let entry = desired.entry(port_key(&ports)).or_insert_with(|| (ports, BTreeMap::new()));
        let endpoint = endpoint(service, pod, zone.clone(), address_type);
        if !endpoint.addresses.is_empty() {
            entry.1.insert(endpoint_key(&endpoint), endpoint);
        }
    }
    desired
}

/// The labels of a Service's slices: the Service's own, and what identifies them.
pub(super) fn slice_labels(service: &Service, managed_by: &str) -> BTreeMap<String, String> {
    const RESERVED: [&str; 3] =
        ["kubernetes.io/service-name", "endpointslice.kubernetes.io/managed-by", "service.kubernetes.io/headless"];
    let own = service.metadata.labels.iter().flatten().filter(|(name, _)| !RESERVED.contains(&name.as_str()));
    let mut labels: BTreeMap<String, String> = own.map(|(name, value)| (name.clone(), value.clone())).collect();
    if is_headless(service) {
        labels.insert("service.kubernetes.io/headless".to_owned(), String::new());
    }
    labels.insert("kubernetes.io/service-name".to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert("endpointslice.kubernetes.io/managed-by".to_owned(), managed_by.to_owned());
    labels
}

/// Where traffic for an endpoint should come from, by the Service's `trafficDistribution`.
pub(super) fn hints(service: &Service, endpoint: &Endpoint) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
    let by_node = match distribution {
        Some("PreferClose" | "PreferSameZone") => false,
        Some("PreferSameNode") => true,
        _ => return None,
    };
    let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true);
    if !ready {
        return endpoint.hints.clone();
    }
    let for_zones = endpoint.zone.clone().map(|name| vec![ForZone { name }]);
    let for_nodes = endpoint.node_name.clone().filter(|_| by_node).map(|name| vec![ForNode { name }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_zones, for_nodes })
}
