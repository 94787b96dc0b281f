//! Connecting pods to the bridge and disconnecting them.
//!
//! A pod has its address with a prefix of 32 and a default route over the gateway, so that all its traffic
//! passes this host's forwarding, where Services are resolved both ways; on a plain bridge the answers of a
//! neighbour would not, unless `br_netfilter` is loaded.
//!
//! Invariant: every call can be made again after a crash anywhere in it. ADD of what is there answers the
//! same again; ADD of what is half there begins anew; DEL of what is not there succeeds.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use rkube_apimachinery::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use super::DEVICE_PREFIX;
use super::types::{Code, Environment, Failure, NetConf};
use crate::ipam::{Attachment, HostPort, Ipam, Reservation};
use crate::netlink::link::{Link, Mac};
use crate::netlink::route::Route;
use crate::netlink::{LinkNews, NetlinkError, Socket};
use crate::netns::Netns;
use crate::{sysctl, table};

/// `RTPROT_BOOT`: what the kernel expects of a pod's own routes.
const POD_ROUTE_PROTOCOL: u8 = 3;

/// Upstream's `bridge` plugin gives as much.
const OPERATIONAL_TIMEOUT: Duration = Duration::from_secs(2);

/// A call's configuration.
#[derive(Debug)]
pub struct Context {
    config: NetConf,
}

/// A hardware address that follows from an address, so that no cache is wrong when an address is reused.
pub(crate) fn mac_of(prefix: [u8; 2], address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [prefix[0], prefix[1], a, b, c, d]
}

const POD_MAC: [u8; 2] = [0x0a, 0x58];

/// The name of the host's end: the same for the same attachment, 44 bits of a hash otherwise.
fn device_name(attachment: &Attachment) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in attachment.container_id.bytes().chain([0]).chain(attachment.ifname.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{DEVICE_PREFIX}{:011x}", hash >> 20)
}

fn host_net(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::from(address)
}

/// Makes the bridge of this node's pods, or corrects it. Returns it.
pub fn ensure_bridge(socket: &mut Socket, name: &str, pods: Ipv4Net, mtu: u32) -> Result<Link, Failure> {
    let gateway = Ipv4Addr::from(u32::from(pods.network()).saturating_add(1));
    let bridge = match socket.link(name)? {
        Some(bridge) => bridge,
        None => {
            // Without a fixed address a bridge takes that of a port, and changes it when the port goes.
            match socket.add_bridge(name, mac_of(POD_MAC, gateway), mtu) {
                Err(error) if !error.exists() => return Err(error.into()),
                _ => {}
            }
            let made = socket.link(name)?;
            made.ok_or_else(|| Failure::new(Code::Failed, format!("the bridge {name} is gone again")))?
        }
    };
    if bridge.kind.as_deref() != Some("bridge") {
        return Err(Failure::new(Code::Failed, format!("{name} exists and is not a bridge")));
    }
    if bridge.mtu != mtu {
        socket.set_mtu(bridge.index, mtu)?;
    }
    let wanted = Ipv4Net::new(gateway, pods.prefix_len()).unwrap_or(pods);
    let present: Vec<_> = socket.addresses()?.into_iter().filter(|address| address.link == bridge.index).collect();
    if !present.iter().any(|address| address.net == wanted) {
        socket.add_address(bridge.index, wanted)?;
    }
    for stale in present.iter().filter(|address| address.net != wanted) {
        socket.delete_address(bridge.index, stale.net)?;
    }
    if !bridge.is_up {
        socket.set_up(bridge.index)?;
    }
    sysctl::set("net/ipv4/ip_forward", "1")?;
    // Lets host ports of 127.0.0.1 be forwarded to pods; the table drops what comes in for 127.0.0.0/8.
    sysctl::set(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
    Ok(bridge)
}

impl Context {
    pub fn new(config: NetConf) -> Self {
        Self { config }
    }

    pub(super) fn add(&self, environment: &Environment) -> Result<String, Failure> {
        let attachment = &environment.attachment;
        let path = environment.netns.as_deref();
        let path = path.ok_or_else(|| Failure::new(Code::InvalidEnvironment, "CNI_NETNS is required"))?;
        let netns = Netns::open(path)?;
        let device = device_name(attachment);
        let host_ports = self.config.host_ports()?;
        let mut socket = Socket::route()?;
        let mut ipam = Ipam::lock(&self.config.data_dir)?;

        if let Some(found) = ipam.find(attachment).cloned() {
            if self.is_whole(&mut socket, &netns, &found)? {
                self.open_host_ports(&found)?;
                return self.result(&mut socket, environment, &found);
            }
            self.remove(&mut socket, &found)?;
            ipam.release(found.address)?;
        }
        let links = socket.links()?;
        let reservation = match ipam.reserve(self.config.pod_cidr, attachment, &device, host_ports.clone()) {
            Err(crate::ipam::IpamError::Exhausted { .. }) => {
                // Pods that went without a DEL left addresses behind.
                for leaked in ipam.reclaim(|other| links.iter().any(|link| link.name == other.device))? {
                    self.close_host_ports(&leaked.host_ports, leaked.address)?;
                }
                ipam.reserve(self.config.pod_cidr, attachment, &device, host_ports)?
            }
            other => other?,
        };
        let attached = self.attach(&mut socket, &netns, &reservation).and_then(|()| self.open_host_ports(&reservation));
        if let Err(failure) = attached {
            // As much as can be undone; the runtime's DEL does it again.
            let _ = self.remove(&mut socket, &reservation);
            let _ = ipam.release(reservation.address);
            return Err(failure);
        }
        self.result(&mut socket, environment, &reservation)
    }

    fn attach(&self, socket: &mut Socket, netns: &Netns, reservation: &Reservation) -> Result<(), Failure> {
        let Reservation { address, attachment, device, .. } = reservation;
        let mtu = self.config.mtu;
        let bridge = ensure_bridge(socket, &self.config.bridge, self.config.pod_cidr, mtu)?;
        if let Some(leftover) = socket.link(device)? {
            socket.delete_link(leftover.index)?;
        }
        let mac = mac_of(POD_MAC, *address);
        socket.add_veth(device, mtu, &attachment.ifname, Some(mac), netns.file())?;
        let host_end = socket.link(device)?;
        let host_end = host_end.ok_or_else(|| Failure::new(Code::Failed, format!("{device} is gone again")))?;
        socket.set_master(host_end.index, bridge.index)?;
        socket.set_hairpin(host_end.index)?;
        socket.set_up(host_end.index)?;
        let gateway = self.config.gateway();
        netns.within(|| configure_pod(&attachment.ifname, *address, gateway))??;
        // The port first: with the first one the bridge wakes up.
        await_operational(socket, &[device, &self.config.bridge])
    }

    /// Whether nothing is missing of an earlier ADD.
    fn is_whole(&self, socket: &mut Socket, netns: &Netns, reservation: &Reservation) -> Result<bool, Failure> {
        let bridge = socket.link(&self.config.bridge)?;
        let host_end = socket.link(&reservation.device)?;
        let attached = match (&bridge, &host_end) {
            (Some(bridge), Some(host_end)) => host_end.master == Some(bridge.index) && host_end.is_up,
            _ => false,
        };
        let (ifname, address) = (&reservation.attachment.ifname, reservation.address);
        let gateway = self.config.gateway();
        Ok(attached && netns.within(|| pod_is_configured(ifname, address, gateway))??)
    }

    fn remove(&self, socket: &mut Socket, reservation: &Reservation) -> Result<(), Failure> {
        self.close_host_ports(&reservation.host_ports, reservation.address)?;
        if let Some(link) = socket.link(&reservation.device)? {
            socket.delete_link(link.index)?;
        }
        Ok(())
    }

    fn open_host_ports(&self, reservation: &Reservation) -> Result<(), Failure> {
        if reservation.host_ports.is_empty() {
            return Ok(());
        }
        let mut nft = Socket::netfilter()?;
        table::add_host_ports(&mut nft, reservation.address, &reservation.host_ports)?;
        Ok(())
    }

    fn close_host_ports(&self, ports: &[HostPort], address: Ipv4Addr) -> Result<(), Failure> {
        if ports.is_empty() {
            return Ok(());
        }
        table::delete_host_ports(&mut Socket::netfilter()?, address, ports)?;
        Ok(())
    }

    pub(super) fn delete(&self, environment: &Environment) -> Result<(), Failure> {
        let mut socket = Socket::route()?;
        let found = {
            let mut ipam = Ipam::lock(&self.config.data_dir)?;
            let found = ipam.find(&environment.attachment).cloned();
            if let Some(found) = &found {
                self.close_host_ports(&found.host_ports, found.address)?;
                // The device goes before the address is free, and outside of the lock it would be slow for
                // nobody else; but then another ADD could be given the address while this pod still has it.
                if let Some(link) = socket.link(&found.device)? {
                    socket.delete_link(link.index)?;
                }
                ipam.release(found.address)?;
            }
            found
        };
        // A crash before the reservation was written cannot leave a device; one from before a wiped data
        // directory can.
        if found.is_none()
            && let Some(link) = socket.link(&device_name(&environment.attachment))?
        {
            socket.delete_link(link.index)?;
        }
        Ok(())
    }

    pub(super) fn check(&self, environment: &Environment) -> Result<(), Failure> {
        let failed = |message: String| Failure::new(Code::CheckFailed, message);
        let path = environment.netns.as_deref();
        let path = path.ok_or_else(|| failed("CNI_NETNS is required".to_owned()))?;
        let netns = Netns::open(path)?;
        let ipam = Ipam::lock(&self.config.data_dir)?;
        let Some(found) = ipam.find(&environment.attachment) else {
            return Err(failed(format!("no address is reserved for {}", environment.attachment.container_id)));
        };
        if !self.is_whole(&mut Socket::route()?, &netns, found)? {
            return Err(failed(format!("the pod's interface is not as ADD made it, address {}", found.address)));
        }
        Ok(())
    }

    /// Releases what the runtime does not know.
    pub(super) fn collect_garbage(&self) -> Result<(), Failure> {
        let missing = || Failure::new(Code::InvalidConfig, "cni.dev/valid-attachments is required");
        let valid = self.config.valid_attachments.as_ref().ok_or_else(missing)?;
        let mut socket = Socket::route()?;
        let mut ipam = Ipam::lock(&self.config.data_dir)?;
        let stale: Vec<_> =
            ipam.reservations().iter().filter(|other| !valid.contains(&other.attachment)).cloned().collect();
        for reservation in stale {
            self.remove(&mut socket, &reservation)?;
            ipam.release(reservation.address)?;
        }
        Ok(())
    }

    /// Whether an ADD could succeed.
    pub(super) fn status(&self) -> Result<(), Failure> {
        match Socket::route()?.link(&self.config.bridge)? {
            Some(_) => Ok(()),
            None => Err(Failure::new(Code::NotAvailable, format!("the bridge {} is not there", self.config.bridge))),
        }
    }

    fn result(&self, socket: &mut Socket, environment: &Environment, found: &Reservation) -> Result<String, Failure> {
        let mac = |link: Option<Link>| link.and_then(|link| link.mac).map(mac_text).unwrap_or_default();
        let version = self.config.cni_version.as_str();
        let mut ip = json!({
            "address": host_net(found.address).to_string(),
            "gateway": self.config.gateway(),
            "interface": 2,
        });
        if version.starts_with("0.") {
            ip["version"] = "4".into();
        }
        let result = json!({
            "cniVersion": version,
            "interfaces": [
                {"name": self.config.bridge, "mac": mac(socket.link(&self.config.bridge)?)},
                {"name": found.device, "mac": mac(socket.link(&found.device)?)},
                {
                    "name": found.attachment.ifname,
                    "mac": mac_text(mac_of(POD_MAC, found.address)),
                    "sandbox": environment.netns,
                },
            ],
            "ips": [ip],
            "routes": [{"dst": "0.0.0.0/0", "gw": self.config.gateway()}],
            "dns": {},
        });
        Ok(result.to_string())
    }
}

/// Waits until packets to devices that were set up are no longer dropped. The first look makes kernels from 6.3 on finish
/// that work at once; others tell when they have.
fn await_operational(socket: &mut Socket, names: &[&str]) -> Result<(), Failure> {
    // Before the first look, so that nothing is missed between it and the wait.
    let news = LinkNews::open()?;
    let clock = SystemClock::new();
    for name in names {
        while !socket.link(name)?.is_none_or(|link| link.is_operational) {
            let left = OPERATIONAL_TIMEOUT.saturating_sub(clock.monotonic());
            if left.is_zero() {
                return Err(Failure::new(Code::Failed, format!("the device {name} does not come up")));
            }
            news.wait(left)?;
        }
    }
    Ok(())
}

fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn pod_routes(link: u32, gateway: Ipv4Addr) -> [Route; 2] {
    let to_gateway = Route { link: Some(link), protocol: POD_ROUTE_PROTOCOL, ..Route::new(host_net(gateway)) };
    let everything = Ipv4Net::default();
    let default =
        Route { via: Some(gateway), link: Some(link), protocol: POD_ROUTE_PROTOCOL, ..Route::new(everything) };
    [to_gateway, default]
}

/// Runs in the pod's namespace.
fn configure_pod(ifname: &str, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), NetlinkError> {
    let mut socket = Socket::route()?;
    if let Some(lo) = socket.link("lo")? {
        socket.set_up(lo.index)?;
    }
    let Some(link) = socket.link(ifname)? else { return Ok(()) };
    socket.add_address(link.index, host_net(address))?;
    socket.set_up(link.index)?;
    for route in pod_routes(link.index, gateway) {
        socket.replace_route(&route)?;
    }
    Ok(())
}

/// Runs in the pod's namespace.
fn pod_is_configured(ifname: &str, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<bool, NetlinkError> {
    let mut socket = Socket::route()?;
    let Some(link) = socket.link(ifname)? else { return Ok(false) };
    let has_address =
        socket.addresses()?.iter().any(|found| found.link == link.index && found.net == host_net(address));
    let routes = socket.routes()?;
    Ok(link.is_up && has_address && pod_routes(link.index, gateway).iter().all(|route| routes.contains(route)))
}

/// The `loopback` plugin: `lo` of the pod is up.
pub(super) fn loopback(
    command: &str,
    environment: &impl Fn(&str) -> Option<String>,
    version: &str,
) -> Result<String, Failure> {
    let result = |sandbox: Option<&str>| -> Value {
        let mut ip = json!({"address": "127.0.0.1/8", "interface": 0});
        if version.starts_with("0.") {
            ip["version"] = "4".into();
        }
        let interface = json!({"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": sandbox});
        json!({"cniVersion": version, "interfaces": [interface], "ips": [ip], "dns": {}})
    };
    match command {
        "ADD" | "CHECK" => {
            let environment = Environment::new(environment, true)?;
            let path = environment.netns.unwrap_or_default();
            Netns::open(&path)?.within(|| {
                let mut socket = Socket::route()?;
                let lo = socket.link("lo")?;
                lo.map_or(Ok(()), |lo| socket.set_up(lo.index))
            })??;
            Ok(if command == "ADD" { result(path.to_str()).to_string() } else { String::new() })
        }
        // The namespace takes its loopback device along.
        _ => Ok(String::new()),
    }
}
