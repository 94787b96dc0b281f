//! Making the kernel have what [`super::plan`] says, in the network namespace of the calling thread.
//!
//! Invariant: what is already right is not touched, so doing it again disturbs no packet.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use tracing::info;

use super::plan::{Desired, View, VxlanDevice, desired, vtep_mac};
use super::{BRIDGE, Backend, NodeNetworkError, VXLAN};
use crate::cni::ensure_bridge;
use crate::ipam::Ipam;
use crate::netlink::link::{Link, Vxlan};
use crate::netlink::route::{Neighbour, NeighbourTable, PROTOCOL, Route};
use crate::netlink::{NetlinkError, Socket};
use crate::sysctl;
use crate::table::{self, TableConfig};

/// As flannel has it, so that firewalls set up for k3s fit.
const VXLAN_PORT: u16 = 8472;
const VXLAN_VNI: u32 = 1;
/// Ethernet 14, IPv4 20, UDP 8, vxlan 8.
const VXLAN_OVERHEAD: u32 = 50;

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub struct Network {
    pub backend: Backend,
    pub cluster: Ipv4Net,
    /// Where addresses are recorded.
    pub data_dir: PathBuf,
}

/// Brings devices, routes and the nftables frame in step. Returns what leads to the peers, and the MTU of
/// pods if they are ours to attach.
pub fn ensure(network: &Network, view: &View) -> Result<(Desired, Option<u32>), NodeNetworkError> {
    let mut socket = Socket::route()?;
    let (pods, address) = match (network.backend, view.pods, view.address) {
        (Backend::None, ..) | (_, None, _) | (.., None) => {
            ensure_table(network, None)?;
            return Ok((Desired::default(), None));
        }
        (_, Some(pods), Some(address)) => (pods, address),
    };
    check_overlap(&mut socket, network.cluster)?;
    let underlay = underlay(&mut socket, address)?;
    let mtu = match network.backend {
        Backend::Vxlan => underlay.mtu.saturating_sub(VXLAN_OVERHEAD),
        _ => underlay.mtu,
    };
    ensure_bridge(&mut socket, BRIDGE, pods, mtu)?;
    ensure_table(network, Some(pods))?;
    let vxlan = match network.backend {
        Backend::Vxlan => Some(ensure_vxlan(&mut socket, pods, address, &underlay, mtu)?),
        _ => {
            if let Some(left) = socket.link(VXLAN)? {
                socket.delete_link(left.index)?;
            }
            None
        }
    };
    let desired = desired(network.backend, view, vxlan);
    if let Some(VxlanDevice { link }) = vxlan {
        sync_neighbours(&mut socket, NeighbourTable::Forwarding, link, &desired.forwarding)?;
        sync_neighbours(&mut socket, NeighbourTable::Arp, link, &desired.arp)?;
    }
    sync_routes(&mut socket, &desired.routes)?;
    Ok((desired, Some(mtu)))
}

/// Pods with addresses of the host's own networks could not be told from what is there. Single addresses are no
/// networks: other programs put them where they like.
fn check_overlap(socket: &mut Socket, cluster: Ipv4Net) -> Result<(), NodeNetworkError> {
    let links = socket.links()?;
    let name = |index| links.iter().find(|link| link.index == index).map(|link| link.name.as_str()).unwrap_or_default();
    for found in socket.addresses()? {
        let overlaps = cluster.contains(&found.net.trunc()) || found.net.contains(&cluster);
        if overlaps && found.net.prefix_len() < 32 && ![BRIDGE, VXLAN].contains(&name(found.link)) {
            return Err(NodeNetworkError::Overlap { device: name(found.link).to_owned(), address: found.net, cluster });
        }
    }
    Ok(())
}

/// The device that has the node's address.
fn underlay(socket: &mut Socket, address: Ipv4Addr) -> Result<Link, NodeNetworkError> {
    let on = socket.addresses()?.into_iter().find(|found| found.net.addr() == address).map(|found| found.link);
    let link = socket.links()?.into_iter().find(|link| Some(link.index) == on);
    link.ok_or(NodeNetworkError::NoUnderlay(address))
}

/// The nftables frame, with the host ports of the pods that are still there.
fn ensure_table(network: &Network, pods: Option<Ipv4Net>) -> Result<(), NodeNetworkError> {
    let links = Socket::route()?.links()?;
    let mut ipam = Ipam::lock(&network.data_dir)?;
    let leaked = ipam.reclaim(|reservation| links.iter().any(|link| link.name == reservation.device))?;
    if !leaked.is_empty() {
        info!(addresses = leaked.len(), "Reclaimed addresses of pods that are gone");
    }
    let config = TableConfig { pods, cluster: network.cluster, bridge: BRIDGE.to_owned() };
    table::ensure(&mut Socket::netfilter()?, &config, &ipam.host_ports())?;
    Ok(())
}

fn ensure_vxlan(
    socket: &mut Socket,
    pods: Ipv4Net,
    local: Ipv4Addr,
    underlay: &Link,
    mtu: u32,
) -> Result<VxlanDevice, NodeNetworkError> {
    let vxlan = Vxlan { vni: VXLAN_VNI, port: VXLAN_PORT, local, underlay: underlay.index };
    let mac = vtep_mac(pods);
    let mut present = socket.link(VXLAN)?;
    // These cannot be changed on a device that exists.
    if let Some(other) = present.take_if(|link| link.vxlan != Some(vxlan) || link.mac != Some(mac)) {
        socket.delete_link(other.index)?;
    }
    let link = match present {
        Some(link) => link,
        None => {
            socket.add_vxlan(VXLAN, mac, mtu, vxlan)?;
            socket.link(VXLAN)?.ok_or(NodeNetworkError::NoUnderlay(local))?
        }
    };
    if link.mtu != mtu {
        socket.set_mtu(link.index, mtu)?;
    }
    // What this host itself sends to pods of other nodes comes from here.
    let own = Ipv4Net::from(pods.network());
    for address in socket.addresses()?.iter().filter(|address| address.link == link.index && address.net != own) {
        socket.delete_address(link.index, address.net)?;
    }
    socket.add_address(link.index, own)?;
    if !link.is_up {
        socket.set_up(link.index)?;
    }
    // Node ports of 127.0.0.1 may lead to pods of other nodes.
    sysctl::set(&format!("net/ipv4/conf/{VXLAN}/route_localnet"), "1")?;
    Ok(VxlanDevice { link: link.index })
}

fn sync_neighbours(
    socket: &mut Socket,
    table: NeighbourTable,
    link: u32,
    desired: &BTreeSet<Neighbour>,
) -> Result<(), NetlinkError> {
    let present: BTreeSet<_> = socket.neighbours(table, link)?.into_iter().collect();
    // Removing first: a forwarding entry is found by its hardware address, of which there is one.
    for stale in present.difference(desired) {
        socket.delete_neighbour(table, *stale)?;
    }
    for missing in desired.difference(&present) {
        socket.replace_neighbour(table, *missing)?;
    }
    Ok(())
}

fn sync_routes(socket: &mut Socket, desired: &BTreeSet<Route>) -> Result<(), NetlinkError> {
    let present: Vec<_> = socket.routes()?.into_iter().filter(|route| route.protocol == PROTOCOL).collect();
    // The kernel fills in the device when only the gateway was said.
    let same = |wanted: &Route, found: &Route| Route { link: wanted.link.and(found.link), ..found.clone() } == *wanted;
    for missing in desired.iter().filter(|wanted| !present.iter().any(|found| same(wanted, found))) {
        socket.replace_route(missing)?;
    }
    for stale in present.iter().filter(|found| !desired.iter().any(|wanted| wanted.to == found.to)) {
        socket.delete_route(stale)?;
    }
    Ok(())
}
