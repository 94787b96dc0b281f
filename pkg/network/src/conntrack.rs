//! The kernel's table of connections: which there are, and forgetting some.
//!
//! A UDP flow keeps its first translation as long as packets come, whatever the rules say by then. When its
//! endpoint is gone, somebody must make the kernel forget it.

use std::net::Ipv4Addr;

use crate::netlink::wire::{Attributes, Message, Reply};
use crate::netlink::{NetlinkError, Socket, gone};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const FAMILY_IP: u8 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    pub protocol: u8,
    pub source: (Ipv4Addr, u16),
    pub destination: (Ipv4Addr, u16),
}

/// A connection, as it was opened and as answers to it come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub original: Tuple,
    /// Its source is who really answers.
    pub reply: Tuple,
}

fn message(kind: u16) -> Message {
    Message::new((SUBSYSTEM << 8) | kind, 0, &[FAMILY_IP, 0, 0, 0])
}

fn read_tuple(bytes: &[u8]) -> Option<Tuple> {
    let tuple = Attributes(bytes);
    let (ip, protocol) = (Attributes(tuple.find(1)?), Attributes(tuple.find(2)?));
    let address = |kind| ip.find(kind).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(Ipv4Addr::from);
    // ICMP has no ports.
    let port = |kind| {
        let bytes = protocol.find(kind).and_then(|bytes| <[u8; 2]>::try_from(bytes).ok());
        bytes.map(u16::from_be_bytes).unwrap_or_default()
    };
    Some(Tuple {
        protocol: *protocol.find(1)?.first()?,
        source: (address(1)?, port(2)),
        destination: (address(2)?, port(3)),
    })
}

fn read_flow(reply: Reply<'_>) -> Option<Flow> {
    let attributes = Attributes(reply.body.get(4..)?);
    Some(Flow {
        original: read_tuple(attributes.find(TUPLE_ORIGINAL)?)?,
        reply: read_tuple(attributes.find(TUPLE_REPLY)?)?,
    })
}

impl Socket {
    /// The IPv4 flows that are wanted; on a netfilter socket.
    pub fn flows(&mut self, wanted: impl Fn(&Flow) -> bool) -> Result<Vec<Flow>, NetlinkError> {
        let read = |reply: Reply<'_>| read_flow(reply).filter(&wanted);
        self.dump("listing connections", &message(GET), read)
    }

    /// Makes the kernel forget a flow; one that has ended is no error.
    pub fn forget_flow(&mut self, flow: &Flow) -> Result<(), NetlinkError> {
        let mut delete = message(DELETE);
        let Tuple { protocol, source, destination } = flow.original;
        delete.nest(TUPLE_ORIGINAL, |tuple| {
            tuple.nest(1, |ip| {
                ip.attr(1, &source.0.octets()).attr(2, &destination.0.octets());
            });
            tuple.nest(2, |ports| {
                ports.attr(1, &[protocol]).attr(2, &source.1.to_be_bytes()).attr(3, &destination.1.to_be_bytes());
            });
        });
        gone(self.call("deleting a connection", delete))
    }
}
