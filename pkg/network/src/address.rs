//! Addresses of the cluster on the node itself, as that of cluster DNS.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::netlink::{NetlinkError, Socket};

/// Tells our addresses from those of others.
const LABEL: &str = "lo:rkube";

fn with_loopback(work: impl FnOnce(&mut Socket, u32) -> Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    let mut socket = Socket::route()?;
    let lo = socket.link("lo")?;
    lo.map_or(Ok(()), |lo| {
        if !lo.is_up {
            socket.set_up(lo.index)?;
        }
        work(&mut socket, lo.index)
    })
}

/// Makes an address this node's own, on `lo`. Doing it again changes nothing.
pub fn assign_local(address: Ipv4Addr) -> Result<(), NetlinkError> {
    with_loopback(|socket, lo| socket.add_labelled_address(lo, Ipv4Net::from(address), Some(LABEL)))
}

/// The reverse of [`assign_local`]; an address that is not there is no error.
pub fn remove_local(address: Ipv4Addr) -> Result<(), NetlinkError> {
    with_loopback(|socket, lo| socket.delete_address(lo, Ipv4Net::from(address)))
}

/// What [`assign_local`] was called with, by whatever process.
pub fn local_addresses() -> Result<Vec<Ipv4Addr>, NetlinkError> {
    let addresses = Socket::route()?.addresses()?.into_iter();
    Ok(addresses.filter(|address| address.label == LABEL).map(|address| address.net.addr()).collect())
}
