//! The endpoints of a Service port, and which of them serve whom.
//!
//! Behaves as  pkg/proxy/{endpointslicecache,topology}.go, v1.36

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_network::nft::UDP;

use crate::service::ServicePort;

/// An address and port that answers.
pub type Target = (Ipv4Addr, u16);

/// What is said of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    pub is_local: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub zones: Vec<String>,
    pub nodes: Vec<String>,
}

/// Where this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub node: String,
    pub zone: String,
    pub address: Option<Ipv4Addr>,
}

/// The endpoints of every port, by the port's name.
pub type EndpointsByPort = BTreeMap<String, BTreeMap<Target, Endpoint>>;

/// The addresses that are other hosts' as seen from this one: a Service must not lead to the host's own
/// loopback or to the cloud's metadata service.
fn usable(address: Ipv4Addr) -> bool {
    !(address.is_loopback() || address.is_link_local() || address.is_multicast() || address.is_unspecified())
}

/// Collects the endpoints of a Service from its slices. An endpoint in two slices is ready if it is in one.
pub fn collect(slices: &[Arc<EndpointSlice>], place: &Place) -> EndpointsByPort {
    let mut by_port = EndpointsByPort::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        for port in slice.ports.iter().flatten() {
            let Some(number) = port.port.and_then(|number| u16::try_from(number).ok()) else { continue };
            let targets = by_port.entry(port.name.clone().unwrap_or_default()).or_default();
            for endpoint in slice.endpoints.iter().flatten() {
                // Of several addresses the first counts, as everywhere.
                let address = endpoint.addresses.first().and_then(|text| text.parse().ok());
                let Some(address) = address.filter(|address| usable(*address)) else { continue };
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                let ready = conditions.ready.unwrap_or(true);
                let hints = endpoint.hints.clone().unwrap_or_default();
                let found = Endpoint {
                    is_local: endpoint.node_name.as_deref() == Some(place.node.as_str()),
                    ready,
                    serving: conditions.serving.unwrap_or(ready),
                    terminating: conditions.terminating.unwrap_or(false),
                    zones: hints.for_zones.into_iter().flatten().map(|zone| zone.name).collect(),
                    nodes: hints.for_nodes.into_iter().flatten().map(|node| node.name).collect(),
                };
                match targets.get(&(address, number)) {
                    Some(known) if known.ready || !found.ready => {}
                    _ => {
                        targets.insert((address, number), found);
                    }
                }
            }
        }
    }
    by_port
}

/// Who serves connections, by where these may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// For policy `Cluster`.
    pub cluster: Vec<Target>,
    /// For policy `Local`.
    pub local: Vec<Target>,
    /// Whether there are any, on whatever node.
    pub has_any: bool,
    /// Those of the above that are pods of this node.
    pub on_this_node: Vec<Target>,
    /// All that still serve, wherever policies lead new connections: what has begun may go on. Filled for UDP
    /// only, whose flows nobody else ends.
    pub lasting: Vec<Target>,
}

/// Selects endpoints: ready ones, near ones if the hints are complete, and those that terminate but still
/// serve when there are no others.
pub fn categorize(endpoints: &BTreeMap<Target, Endpoint>, port: &ServicePort, place: &Place) -> Serving {
    let select = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<Target> {
        endpoints.iter().filter(|(_, endpoint)| wanted(endpoint)).map(|(target, _)| *target).collect()
    };
    let leaving = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let mut serving = Serving::default();
    if port.uses_cluster_endpoints() {
        let near = nearness(endpoints, place);
        serving.cluster = select(&|endpoint| endpoint.ready && near(endpoint));
        if serving.cluster.is_empty() {
            serving.cluster = select(&leaving);
        }
        serving.has_any = !serving.cluster.is_empty();
    }
    if port.uses_local_endpoints() {
        serving.has_any |= endpoints.values().any(|endpoint| endpoint.ready || leaving(endpoint));
        serving.local = select(&|endpoint| endpoint.is_local && endpoint.ready);
        if serving.local.is_empty() {
            serving.local = select(&|endpoint| endpoint.is_local && leaving(endpoint));
        }
    }
    let mut used: Vec<_> = serving.cluster.iter().chain(&serving.local).copied().collect();
    used.sort_unstable();
    used.dedup();
    used.retain(|target| endpoints.get(target).is_some_and(|endpoint| endpoint.is_local));
    serving.on_this_node = used;
    if port.frontend.protocol == UDP {
        serving.lasting = select(&|endpoint| endpoint.serving);
    }
    serving
}

/// Which endpoints are near enough. Hints count only if every ready endpoint has them and one is for here.
fn nearness<'a>(endpoints: &BTreeMap<Target, Endpoint>, place: &'a Place) -> impl Fn(&Endpoint) -> bool + use<'a> {
    let ready = || endpoints.values().filter(|endpoint| endpoint.ready);
    let for_node = |endpoint: &Endpoint| endpoint.nodes.contains(&place.node);
    let for_zone = |endpoint: &Endpoint| endpoint.zones.contains(&place.zone);
    let by_node = ready().all(|endpoint| !endpoint.nodes.is_empty()) && ready().any(for_node);
    let by_zone = !by_node && ready().all(|endpoint| !endpoint.zones.is_empty()) && ready().any(for_zone);
    move |endpoint| match (by_node, by_zone) {
        (true, _) => endpoint.nodes.contains(&place.node),
        (_, true) => endpoint.zones.contains(&place.zone),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use rkube_api::Kind;
    use serde_json::json;

    use super::*;

    #[test]
    fn no_endpoint_is_the_host_itself_or_nobody() {
        let addresses = [
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "224.0.0.251",
            "0.0.0.0",
            "10.42.0.256",
            "fd00::1",
            "",
            "10.42.0.7",
        ];
        let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
        let slice = |port: i64| {
            let ports = json!([{"name": "web", "port": port}]);
            let slice = json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
            Arc::new(EndpointSlice::from_value(slice).unwrap())
        };
        let found = collect(&[slice(8080), slice(70_000)], &Place::default());
        let targets: Vec<_> = found["web"].keys().copied().collect();
        assert_eq!(targets, [(Ipv4Addr::new(10, 42, 0, 7), 8080)]);
    }
}
