//! What this program put on a node for its network: finding it, and taking it away.
//!
//! Inputs: the folders of the node, and the kernel's state in the network namespace of the calling thread.
//! Outputs: a list that can be shown before anything is done ([`find`]), and its removal ([`remove`]).
//!
//! Invariant: only what bears our marks is found: devices by our names and by our records, routes by our protocol
//! number, addresses by their label, our table, our files. Forwarding stays on: others may need it by now.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::address::{local_addresses, remove_local};
use crate::cni::{DEVICE_PREFIX, LOOPBACK_PLUGIN, PLUGIN};
use crate::conflist::{FILE_NAME, InstallError};
use crate::ipam::Ipam;
use crate::netlink::Socket;
use crate::netlink::link::Link;
use crate::netlink::route::{PROTOCOL, Route};
use crate::nft::NftApplier;
use crate::node::{BRIDGE, NodeNetworkError, VXLAN};
use crate::table;

/// Where a node keeps what its network needs.
#[derive(Clone, Debug)]
pub struct Folders {
    /// The records of addresses.
    pub data: PathBuf,
    pub cni_bin: PathBuf,
    pub cni_conf: PathBuf,
}

/// One thing to take away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    File(PathBuf),
    Route(Route),
    Device(String),
    LocalAddress(Ipv4Addr),
    Table,
    Reservations { folder: PathBuf, count: usize },
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Route(route) => write!(f, "route to {}", route.to),
            Self::Device(name) => write!(f, "network device {name}"),
            Self::LocalAddress(address) => write!(f, "address {address} of lo"),
            Self::Table => write!(f, "nftables table ip {}", crate::nft::TABLE),
            Self::Reservations { folder, count } => {
                write!(f, "records of {count} pod addresses in {}", folder.display())
            }
        }
    }
}

/// All that is there, in the order to remove it: the runtime's configuration first, so that no pod is attached
/// meanwhile.
pub fn find(folders: &Folders) -> Result<Vec<Trace>, NodeNetworkError> {
    let mut traces: Vec<_> = files(folders).into_iter().map(Trace::File).collect();
    let mut socket = Socket::route()?;
    let routes = socket.routes()?.into_iter().filter(|route| route.protocol == PROTOCOL);
    traces.extend(routes.map(Trace::Route));

    let links = socket.links()?;
    let bridge = links.iter().find(|link| link.name == BRIDGE).map(|link| link.index);
    let recorded: BTreeSet<String> = match folders.data.exists() {
        true => Ipam::lock(&folders.data)?.reservations().iter().map(|one| one.device.clone()).collect(),
        false => BTreeSet::new(),
    };
    // Records may be lost: a port of our bridge with a name as we give them is a pod's all the same.
    let is_pods = |link: &&Link| {
        let plugged = bridge.is_some() && link.master == bridge && link.kind.as_deref() == Some("veth");
        plugged && link.name.starts_with(DEVICE_PREFIX) || recorded.contains(&link.name)
    };
    traces.extend(links.iter().filter(is_pods).map(|link| Trace::Device(link.name.clone())));
    let own = [VXLAN, BRIDGE].into_iter().filter(|name| links.iter().any(|link| link.name == *name));
    traces.extend(own.map(|name| Trace::Device(name.to_owned())));
    traces.extend(local_addresses()?.into_iter().map(Trace::LocalAddress));
    if !Socket::netfilter()?.chains()?.is_empty() {
        traces.push(Trace::Table);
    }
    if !recorded.is_empty() {
        traces.push(Trace::Reservations { folder: folders.data.clone(), count: recorded.len() });
    }
    Ok(traces)
}

/// Our configuration, and the plugin's links. A `loopback` of somebody else leads elsewhere.
fn files(folders: &Folders) -> Vec<PathBuf> {
    let plugin = folders.cni_bin.join(PLUGIN);
    let loopback = folders.cni_bin.join(LOOPBACK_PLUGIN);
    let target = fs::read_link(&plugin).ok();
    let is_ours = target.is_some() && fs::read_link(&loopback).ok() == target;
    let mut files = vec![folders.cni_conf.join(FILE_NAME), plugin];
    files.extend(is_ours.then_some(loopback));
    files.retain(|path| fs::symlink_metadata(path).is_ok());
    files
}

/// Takes one thing away; that it is gone is no error.
pub fn remove(trace: &Trace) -> Result<(), NodeNetworkError> {
    match trace {
        Trace::File(path) => match fs::remove_file(path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(InstallError { action: "removing", path: path.clone(), source }.into());
            }
            _ => {}
        },
        Trace::Route(route) => Socket::route()?.delete_route(route)?,
        Trace::Device(name) => {
            let mut socket = Socket::route()?;
            if let Some(link) = socket.link(name)? {
                socket.delete_link(link.index)?;
            }
        }
        Trace::LocalAddress(address) => remove_local(*address)?,
        Trace::Table => table::remove(&mut Socket::netfilter()?)?,
        Trace::Reservations { folder, .. } => drop(Ipam::lock(folder)?.reclaim(|_| false)?),
    }
    Ok(())
}
