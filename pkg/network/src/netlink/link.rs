//! Network devices: bridge, veth and vxlan, their state and their addresses.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use ipnet::Ipv4Net;

use super::socket::{NetlinkError, Socket, gone};
use super::wire::{Attributes, CREATE, EXCLUSIVE, Message, REPLACE, Reply, u16_at, u32_at};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_BRPORT_MODE: u16 = 4;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;

pub(super) const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const UP: u32 = 1;
/// `IF_OPER_UP`
const OPERATIONAL: u8 = 6;
const SCOPE_HOST: u8 = 254;

pub type Mac = [u8; 6];

/// A network device as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub is_up: bool,
    /// It carries packets: after it is set up the kernel takes a moment until it does, and drops them before.
    pub is_operational: bool,
    /// The bridge it is a port of.
    pub master: Option<u32>,
    /// `bridge`, `veth`, `vxlan`; none for devices of hardware.
    pub kind: Option<String>,
    pub vxlan: Option<Vxlan>,
}

/// What makes a vxlan device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: u32,
    pub port: u16,
    pub local: Ipv4Addr,
    /// The device that carries it.
    pub underlay: u32,
}

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub link: u32,
    pub net: Ipv4Net,
    /// The device's name, unless whoever added the address chose another.
    pub label: String,
}

/// `struct ifinfomsg`.
fn interface(family: u8, index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

fn read_link(reply: Reply<'_>) -> Option<Link> {
    let index = u32_at(reply.body, 4)?;
    let is_up = u32_at(reply.body, 8)? & UP != 0;
    let attributes = Attributes(reply.body.get(16..)?);
    let info = attributes.find(IFLA_LINKINFO).map(Attributes);
    let kind = info.and_then(|info| info.find_text(IFLA_INFO_KIND)).map(str::to_owned);
    let data = info.and_then(|info| info.find(IFLA_INFO_DATA)).map(Attributes);
    Some(Link {
        index,
        name: attributes.find_text(IFLA_IFNAME)?.to_owned(),
        mac: attributes.find(IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        mtu: attributes.find_u32(IFLA_MTU).unwrap_or_default(),
        is_up,
        is_operational: attributes.find(IFLA_OPERSTATE) == Some(&[OPERATIONAL]),
        master: attributes.find_u32(IFLA_MASTER),
        vxlan: data.filter(|_| kind.as_deref() == Some("vxlan")).and_then(read_vxlan),
        kind,
    })
}

fn read_vxlan(data: Attributes<'_>) -> Option<Vxlan> {
    let local: [u8; 4] = data.find(IFLA_VXLAN_LOCAL)?.try_into().ok()?;
    let port = u16::from_be(u16_at(data.find(IFLA_VXLAN_PORT)?, 0)?);
    let underlay = data.find_u32(IFLA_VXLAN_LINK).unwrap_or_default();
    Some(Vxlan { vni: data.find_u32(IFLA_VXLAN_ID)?, port, local: local.into(), underlay })
}

impl Socket {
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = Message::new(GET_LINK, 0, &interface(0, 0, 0, 0));
        message.text(IFLA_IFNAME, name);
        match self.get("looking up a network device", message, read_link) {
            Err(error) if error.missing() => Ok(None),
            other => other,
        }
    }

    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        self.dump("listing network devices", &Message::new(GET_LINK, 0, &interface(0, 0, 0, 0)), read_link)
    }

    pub fn add_bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = Message::new(NEW_LINK, CREATE | EXCLUSIVE, &interface(0, 0, 0, 0));
        message.text(IFLA_IFNAME, name).u32(IFLA_MTU, mtu).attr(IFLA_ADDRESS, &mac).nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "bridge");
        });
        self.call("creating the bridge", message)
    }

    /// A pair of devices, `name` here and `peer` in another network namespace.
    pub fn add_veth(
        &mut self,
        name: &str,
        mtu: u32,
        peer: &str,
        peer_mac: Option<Mac>,
        peer_netns: impl AsFd,
    ) -> Result<(), NetlinkError> {
        let netns = peer_netns.as_fd().as_raw_fd().cast_unsigned();
        let mut message = Message::new(NEW_LINK, CREATE | EXCLUSIVE, &interface(0, 0, 0, 0));
        message.text(IFLA_IFNAME, name).u32(IFLA_MTU, mtu).nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |other| {
                    other.raw(&interface(0, 0, 0, 0)).text(IFLA_IFNAME, peer).u32(IFLA_MTU, mtu);
                    if let Some(mac) = peer_mac {
                        other.attr(IFLA_ADDRESS, &mac);
                    }
                    other.u32(IFLA_NET_NS_FD, netns);
                });
            });
        });
        self.call("creating a veth pair", message)
    }

    pub fn add_vxlan(&mut self, name: &str, mac: Mac, mtu: u32, vxlan: Vxlan) -> Result<(), NetlinkError> {
        let mut message = Message::new(NEW_LINK, CREATE | EXCLUSIVE, &interface(0, 0, 0, 0));
        message.text(IFLA_IFNAME, name).u32(IFLA_MTU, mtu).attr(IFLA_ADDRESS, &mac).nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |data| {
                data.u32(IFLA_VXLAN_ID, vxlan.vni)
                    .u32(IFLA_VXLAN_LINK, vxlan.underlay)
                    .attr(IFLA_VXLAN_LOCAL, &vxlan.local.octets())
                    // Who is where comes from Node objects; learning would let pods redirect each other.
                    .attr(IFLA_VXLAN_LEARNING, &[0])
                    .attr(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
            });
        });
        self.call("creating the vxlan device", message)
    }

    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let message = Message::new(DELETE_LINK, 0, &interface(0, index, 0, 0));
        gone(self.call("deleting a network device", message))
    }

    pub fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.call("bringing a network device up", Message::new(SET_LINK, 0, &interface(0, index, UP, UP)))
    }

    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = Message::new(SET_LINK, 0, &interface(0, index, 0, 0));
        message.u32(IFLA_MTU, mtu);
        self.call("setting the MTU of a network device", message)
    }

    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<(), NetlinkError> {
        let mut message = Message::new(SET_LINK, 0, &interface(0, index, 0, 0));
        message.attr(IFLA_ADDRESS, &mac);
        self.call("setting the hardware address of a network device", message)
    }

    pub fn set_master(&mut self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        let mut message = Message::new(SET_LINK, 0, &interface(0, index, 0, 0));
        message.u32(IFLA_MASTER, bridge);
        self.call("attaching a network device to the bridge", message)
    }

    /// Lets frames leave by the bridge port they came in on.
    pub fn set_hairpin(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = Message::new(SET_LINK, 0, &interface(AF_BRIDGE, index, 0, 0));
        message.nest(IFLA_PROTINFO, |port| {
            port.attr(IFLA_BRPORT_MODE, &[1]);
        });
        self.call("setting hairpin mode of a bridge port", message)
    }

    /// Adds an address, or does nothing if it is there.
    pub fn add_address(&mut self, index: u32, net: Ipv4Net) -> Result<(), NetlinkError> {
        self.add_labelled_address(index, net, None)
    }

    /// The same with a label, which begins with the device's name and tells whose the address is.
    pub fn add_labelled_address(&mut self, index: u32, net: Ipv4Net, label: Option<&str>) -> Result<(), NetlinkError> {
        let mut message = address_message(NEW_ADDRESS, CREATE | REPLACE, index, net);
        if let Some(label) = label {
            message.text(IFA_LABEL, label);
        }
        self.call("adding an address", message)
    }

    pub fn delete_address(&mut self, index: u32, net: Ipv4Net) -> Result<(), NetlinkError> {
        gone(self.call("deleting an address", address_message(DELETE_ADDRESS, 0, index, net)))
    }

    /// The IPv4 addresses of all devices.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let message = Message::new(GET_ADDRESS, 0, &[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
        self.dump("listing addresses", &message, |reply| {
            let attributes = Attributes(reply.body.get(8..)?);
            let local = attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS))?;
            let local: [u8; 4] = local.try_into().ok()?;
            let net = Ipv4Net::new(local.into(), *reply.body.get(1)?).ok()?;
            (*reply.body.first()? == AF_INET).then_some(())?;
            let label = attributes.find_text(IFA_LABEL).unwrap_or_default().to_owned();
            Some(Address { link: u32_at(reply.body, 4)?, net, label })
        })
    }
}

fn address_message(kind: u16, flags: u16, index: u32, net: Ipv4Net) -> Message {
    let scope = if net.addr().is_loopback() { SCOPE_HOST } else { 0 };
    let mut fixed = [AF_INET, net.prefix_len(), 0, scope, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(kind, flags, &fixed);
    message.attr(IFA_LOCAL, &net.addr().octets()).attr(IFA_ADDRESS, &net.addr().octets());
    message
}
