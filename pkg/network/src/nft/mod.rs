//! nftables by our own encoding: what a table consists of, as netlink messages and as text.
//!
//! A change is a list of [`Op`]s that the kernel carries out all together or not at all ([`NftApplier`]).
//! Behind the trait is a netlink socket on a node and a recorder in tests. The text is `nft`'s syntax, for
//! tests and people; nothing reads it back.

mod encode;
mod rule;

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::netlink::{NetlinkError, Socket};

pub use encode::{TABLE, chains};
pub use rule::{Rule, Selector};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;

/// A part of a key or of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Address,
    Protocol,
    Port,
    Number,
}

/// A value of a [`Field`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datum {
    Address(Ipv4Addr),
    Protocol(u8),
    Port(u16),
    Number(u32),
}

/// Where a packet goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
}

/// What a map has for a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    Data(Vec<Datum>),
    Verdict(Verdict),
}

/// What the elements of a map have besides the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    Data(&'static [Field]),
    Verdict,
}

/// A named set, or map if it has values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetSpec {
    pub name: &'static str,
    pub key: &'static [Field],
    pub value: Option<ValueKind>,
    /// Filled by rules, with elements that time out, and never with more than this many.
    pub dynamic_size_max: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    pub key: Vec<Datum>,
    pub value: Option<Value>,
}

/// Where a base chain hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: ChainKind,
    pub point: HookPoint,
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// One step of a change to our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Does nothing to a table that exists.
    AddTable,
    DeleteTable,
    /// Does nothing to a chain that exists, of the same hook.
    AddChain {
        name: String,
        hook: Option<Hook>,
    },
    FlushChain(String),
    DeleteChain(String),
    AddRule(Rule),
    /// Does nothing to a set that exists, of the same kind.
    AddSet(SetSpec),
    FlushSet(&'static str),
    AddElements {
        set: &'static str,
        elements: Vec<Element>,
    },
    DeleteElements {
        set: &'static str,
        elements: Vec<Element>,
    },
}

/// Carries out changes to our table.
pub trait NftApplier: Send {
    /// All of `ops` or, with an error, none of them.
    fn apply(&mut self, ops: &[Op]) -> Result<(), NetlinkError>;

    /// The names of the chains that there are; none if there is no table.
    fn chains(&mut self) -> Result<Vec<String>, NetlinkError>;
}

impl NftApplier for Socket {
    fn apply(&mut self, ops: &[Op]) -> Result<(), NetlinkError> {
        if ops.is_empty() {
            return Ok(());
        }
        self.batch("changing the nftables table", encode::batch(ops))
    }

    fn chains(&mut self) -> Result<Vec<String>, NetlinkError> {
        encode::chains(self)
    }
}

pub(crate) fn protocol_name(protocol: u8) -> String {
    match protocol {
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        SCTP => "sctp".to_owned(),
        other => other.to_string(),
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "ipv4_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Number => "mark",
        })
    }
}

impl fmt::Display for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Protocol(protocol) => f.write_str(&protocol_name(*protocol)),
            Self::Port(port) => write!(f, "{port}"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// Items with ` . ` between them, as `nft` writes concatenations.
pub(crate) fn concat<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . ")
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&concat(&self.key))?;
        match &self.value {
            None => Ok(()),
            Some(Value::Data(data)) => write!(f, " : {}", concat(data)),
            Some(Value::Verdict(verdict)) => write!(f, " : {verdict}"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elements_text =
            |elements: &[Element]| elements.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::AddTable => f.write_str("add table"),
            Self::DeleteTable => f.write_str("delete table"),
            Self::AddChain { name, hook: None } => write!(f, "add chain {name}"),
            Self::AddChain { name, hook: Some(hook) } => {
                let kind = format!("{:?}", hook.kind).to_lowercase();
                let point = format!("{:?}", hook.point).to_lowercase();
                write!(f, "add chain {name} {{ type {kind} hook {point} priority {}; }}", hook.priority)
            }
            Self::FlushChain(name) => write!(f, "flush chain {name}"),
            Self::DeleteChain(name) => write!(f, "delete chain {name}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::AddSet(set) => {
                write!(
                    f,
                    "add {} {} {{ type {}",
                    if set.value.is_some() { "map" } else { "set" },
                    set.name,
                    concat(set.key)
                )?;
                match set.value {
                    Some(ValueKind::Data(fields)) => write!(f, " : {}", concat(fields))?,
                    Some(ValueKind::Verdict) => f.write_str(" : verdict")?,
                    None => {}
                }
                if let Some(size) = set.dynamic_size_max {
                    write!(f, "; flags dynamic,timeout; size {size}")?;
                }
                f.write_str("; }")
            }
            Self::FlushSet(name) => write!(f, "flush set {name}"),
            Self::AddElements { set, elements } => write!(f, "add element {set} {{ {} }}", elements_text(elements)),
            Self::DeleteElements { set, elements } => {
                write!(f, "delete element {set} {{ {} }}", elements_text(elements))
            }
        }
    }
}

/// How long a timeout is in the kernel's unit.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
