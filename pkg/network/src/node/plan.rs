//! From Node objects to what the kernel should have. Nothing here touches anything.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use rkube_api::k8s::core::v1::Node;

use super::Backend;
use crate::cni::mac_of;
use crate::netlink::link::Mac;
use crate::netlink::route::{Neighbour, Route};

const VTEP_MAC: [u8; 2] = [0x0e, 0x58];

/// Another node with pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub pods: Ipv4Net,
    pub address: Ipv4Addr,
}

/// The cluster as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub pods: Option<Ipv4Net>,
    pub address: Option<Ipv4Addr>,
    /// By name.
    pub peers: Vec<Peer>,
    /// Nodes that are left out, and why.
    pub problems: Vec<String>,
}

/// The device that carries the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanDevice {
    pub link: u32,
}

/// What the kernel should have for the peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub routes: BTreeSet<Route>,
    pub arp: BTreeSet<Neighbour>,
    pub forwarding: BTreeSet<Neighbour>,
}

fn pod_network(node: &Node) -> Option<Ipv4Net> {
    let spec = node.spec.as_ref()?;
    let several = spec.pod_cidrs.iter().flatten();
    several.chain(&spec.pod_cidr).find_map(|text| text.parse::<Ipv4Net>().ok()).map(|net| net.trunc())
}

fn internal_ip(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    internal.into_iter().find_map(|address| address.address.parse().ok())
}

/// Sorts the Nodes into this one and its peers.
pub fn view(own_name: &str, own_address: Option<Ipv4Addr>, nodes: &[Arc<Node>]) -> View {
    let mut view = View { address: own_address, ..View::default() };
    let name_of = |node: &Node| node.metadata.name.clone().unwrap_or_default();
    if let Some(own) = nodes.iter().find(|node| name_of(node) == own_name) {
        view.pods = pod_network(own);
        view.address = own_address.or_else(|| internal_ip(own));
    }
    for node in nodes {
        let name = name_of(node);
        let (Some(pods), Some(address)) = (pod_network(node), internal_ip(node)) else { continue };
        if name == own_name {
            continue;
        }
        let overlaps = |other: &Ipv4Net| other.contains(&pods) || pods.contains(other);
        if view.pods.as_ref().is_some_and(overlaps) {
            view.problems.push(format!("the pod network {pods} of node {name} overlaps that of this node"));
        } else if let Some(peer) = view.peers.iter().find(|peer| overlaps(&peer.pods)) {
            view.problems.push(format!("the pod network {pods} of node {name} overlaps that of node {}", peer.name));
        } else if pods.contains(&address) {
            view.problems.push(format!("the address {address} of node {name} is inside its own pod network {pods}"));
        } else if view.address == Some(address) {
            view.problems.push(format!("node {name} has this node's address {address}"));
        } else {
            view.peers.push(Peer { name, pods, address });
        }
    }
    view
}

/// The hardware address of a node's end of the tunnel. It follows from the pod network, which no two nodes
/// share, so nodes need not tell each other.
pub fn vtep_mac(pods: Ipv4Net) -> Mac {
    mac_of(VTEP_MAC, pods.network())
}

/// What leads to the peers. `vxlan` is the device of that backend.
pub fn desired(backend: Backend, view: &View, vxlan: Option<VxlanDevice>) -> Desired {
    let mut desired = Desired::default();
    for peer in &view.peers {
        match (backend, vxlan) {
            (Backend::Vxlan, Some(VxlanDevice { link })) => {
                // The far end of the tunnel answers for the first address of its pods.
                let via = peer.pods.network();
                let source = view.pods.map(|pods| pods.network());
                let route = Route { via: Some(via), link: Some(link), onlink: true, source, ..Route::new(peer.pods) };
                desired.routes.insert(route);
                let mac = vtep_mac(peer.pods);
                desired.arp.insert(Neighbour { link, address: via, mac });
                desired.forwarding.insert(Neighbour { link, address: peer.address, mac });
            }
            (Backend::HostGw, _) => {
                desired.routes.insert(Route { via: Some(peer.address), ..Route::new(peer.pods) });
            }
            _ => {}
        }
    }
    desired
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use rkube_api::Kind;
    use serde_json::json;

    use super::*;

    fn node(name: &str, pods: &str, address: &str) -> Arc<Node> {
        let value = json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": pods},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        });
        Arc::new(Node::from_value(value).unwrap())
    }

    fn describe(backend: Backend, nodes: &[Arc<Node>]) -> String {
        let view = view("a", None, nodes);
        let desired = desired(backend, &view, Some(VxlanDevice { link: 7 }));
        let mut lines = view.problems;
        lines.extend(desired.routes.iter().map(|route| {
            format!("route {} via {:?} dev {:?} src {:?}", route.to, route.via, route.link, route.source)
        }));
        lines.extend(desired.arp.iter().map(|entry| format!("arp {} {:02x?}", entry.address, entry.mac)));
        lines.extend(desired.forwarding.iter().map(|entry| format!("fdb {} {:02x?}", entry.address, entry.mac)));
        lines.join("\n") + "\n"
    }

    #[test]
    fn peers_are_reached_and_overlaps_are_left_out() {
        let nodes = [
            node("a", "10.42.0.0/24", "192.0.2.1"),
            node("b", "10.42.1.0/24", "192.0.2.2"),
            node("c", "10.42.0.0/16", "192.0.2.3"),
            node("d", "10.42.1.0/25", "192.0.2.4"),
            node("e", "", "192.0.2.5"),
            node("f", "10.42.6.0/24", "192.0.2.1"),
            node("g", "10.42.7.0/24", "10.42.7.9"),
        ];
        expect![[r#"
            the pod network 10.42.0.0/16 of node c overlaps that of this node
            the pod network 10.42.1.0/25 of node d overlaps that of node b
            node f has this node's address 192.0.2.1
            the address 10.42.7.9 of node g is inside its own pod network 10.42.7.0/24
            route 10.42.1.0/24 via Some(10.42.1.0) dev Some(7) src Some(10.42.0.0)
            arp 10.42.1.0 [0e, 58, 0a, 2a, 01, 00]
            fdb 192.0.2.2 [0e, 58, 0a, 2a, 01, 00]
        "#]]
        .assert_eq(&describe(Backend::Vxlan, &nodes));
        expect![[r#"
            route 10.42.1.0/24 via Some(192.0.2.2) dev None src None
        "#]]
        .assert_eq(&describe(Backend::HostGw, &[nodes[0].clone(), nodes[1].clone()]));
    }
}
