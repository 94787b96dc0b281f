//! Routes, neighbours and forwarding entries.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::link::{AF_INET, Mac};
use super::socket::{NetlinkError, Socket, gone};
use super::wire::{Attributes, CREATE, Message, REPLACE, Reply, u16_at, u32_at};

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;
const GET_NEIGHBOUR: u16 = 30;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

const TABLE_MAIN: u8 = 254;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const TYPE_UNICAST: u8 = 1;
const ONLINK: u32 = 4;
const STATE_PERMANENT: u16 = 0x80;
const FLAG_SELF: u8 = 2;
const AF_BRIDGE: u8 = 7;

/// Who made a route, so that we find ours again and leave others alone. Not taken in `rt_protos`.
pub const PROTOCOL: u8 = 121;

/// A route in the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub to: Ipv4Net,
    pub via: Option<Ipv4Addr>,
    /// The device; found from the gateway if not given.
    pub link: Option<u32>,
    /// The gateway is on the device although no address says so.
    pub onlink: bool,
    /// The address that our own packets come from.
    pub source: Option<Ipv4Addr>,
    pub protocol: u8,
}

impl Route {
    pub fn new(to: Ipv4Net) -> Self {
        Self { to, via: None, link: None, onlink: false, source: None, protocol: PROTOCOL }
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let scope = if self.via.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK };
        let mut fixed = [0; 12];
        fixed[..8].copy_from_slice(&[
            AF_INET,
            self.to.prefix_len(),
            0,
            0,
            TABLE_MAIN,
            self.protocol,
            scope,
            TYPE_UNICAST,
        ]);
        fixed[8..12].copy_from_slice(&if self.onlink { ONLINK } else { 0 }.to_ne_bytes());
        let mut message = Message::new(kind, flags, &fixed);
        message.attr(RTA_DST, &self.to.network().octets());
        if let Some(via) = self.via {
            message.attr(RTA_GATEWAY, &via.octets());
        }
        if let Some(link) = self.link {
            message.u32(RTA_OIF, link);
        }
        if let Some(source) = self.source {
            message.attr(RTA_PREFSRC, &source.octets());
        }
        message
    }
}

/// An entry that says which hardware address an address (of the next hop or of the tunnel's far end) has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub link: u32,
    pub address: Ipv4Addr,
    pub mac: Mac,
}

/// Which of the two tables an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourTable {
    /// Address to hardware address.
    Arp,
    /// Hardware address to the tunnel's far end.
    Forwarding,
}

impl Neighbour {
    fn message(&self, table: NeighbourTable, kind: u16, flags: u16) -> Message {
        let (family, ntf) = match table {
            NeighbourTable::Arp => (AF_INET, 0),
            NeighbourTable::Forwarding => (AF_BRIDGE, FLAG_SELF),
        };
        let mut fixed = [0; 12];
        fixed[0] = family;
        fixed[4..8].copy_from_slice(&self.link.to_ne_bytes());
        fixed[8..10].copy_from_slice(&STATE_PERMANENT.to_ne_bytes());
        fixed[10] = ntf;
        let mut message = Message::new(kind, flags, &fixed);
        message.attr(NDA_DST, &self.address.octets()).attr(NDA_LLADDR, &self.mac);
        message
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn read_route(reply: Reply<'_>) -> Option<Route> {
    let fixed = reply.body.get(..12)?;
    let [family, prefix_length, _, _, table, protocol, _, kind] = *fixed.first_chunk()?;
    if (family, table, kind) != (AF_INET, TABLE_MAIN, TYPE_UNICAST) {
        return None;
    }
    let attributes = Attributes(reply.body.get(12..)?);
    let to = attributes.find(RTA_DST).and_then(address).unwrap_or(Ipv4Addr::UNSPECIFIED);
    Some(Route {
        to: Ipv4Net::new(to, prefix_length).ok()?,
        via: attributes.find(RTA_GATEWAY).and_then(address),
        link: attributes.find_u32(RTA_OIF),
        onlink: u32_at(fixed, 8)? & ONLINK != 0,
        source: attributes.find(RTA_PREFSRC).and_then(address),
        protocol,
    })
}

impl Socket {
    /// Adds a route, in the place of another to the same network if there is one.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        self.call("adding a route", route.message(NEW_ROUTE, CREATE | REPLACE))
    }

    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        gone(self.call("deleting a route", route.message(DELETE_ROUTE, 0)))
    }

    /// The IPv4 routes of the main table.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let mut fixed = [0; 12];
        fixed[0] = AF_INET;
        self.dump("listing routes", &Message::new(GET_ROUTE, 0, &fixed), read_route)
    }

    pub fn replace_neighbour(&mut self, table: NeighbourTable, entry: Neighbour) -> Result<(), NetlinkError> {
        self.call("adding a neighbour", entry.message(table, NEW_NEIGHBOUR, CREATE | REPLACE))
    }

    pub fn delete_neighbour(&mut self, table: NeighbourTable, entry: Neighbour) -> Result<(), NetlinkError> {
        gone(self.call("deleting a neighbour", entry.message(table, DELETE_NEIGHBOUR, 0)))
    }

    /// The permanent entries of a device.
    pub fn neighbours(&mut self, table: NeighbourTable, link: u32) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut fixed = [0; 12];
        fixed[0] = if table == NeighbourTable::Arp { AF_INET } else { AF_BRIDGE };
        self.dump("listing neighbours", &Message::new(GET_NEIGHBOUR, 0, &fixed), |reply| {
            let on = u32_at(reply.body, 4)?;
            if on != link || u16_at(reply.body, 8)? & STATE_PERMANENT == 0 {
                return None;
            }
            let attributes = Attributes(reply.body.get(12..)?);
            let mac = attributes.find(NDA_LLADDR)?.try_into().ok()?;
            Some(Neighbour { link, address: attributes.find(NDA_DST).and_then(address)?, mac })
        })
    }
}
