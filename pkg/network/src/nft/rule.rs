//! Rules: what is looked at, in which registers it is put, and what follows.
//!
//! Registers are sixteen words of 32 bits. Fields that are looked up together stand in neighbouring
//! registers, one each. Newer kernels refuse a rule that reads a register it has not written itself.

use std::fmt;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::{Datum, Verdict};

/// A register of 32 bits, 0 to 15.
pub(super) type Register = u8;

/// What a register is loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    SourceAddress,
    DestinationAddress,
    Protocol,
    DestinationPort,
    Constant(Datum),
    /// A number from `offset` up to, not including, `offset + modulus`.
    Random {
        modulus: u32,
        offset: u32,
    },
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceAddress => f.write_str("ip saddr"),
            Self::DestinationAddress => f.write_str("ip daddr"),
            Self::Protocol => f.write_str("meta l4proto"),
            Self::DestinationPort => f.write_str("th dport"),
            Self::Constant(datum) => write!(f, "{datum}"),
            Self::Random { modulus, offset: 0 } => write!(f, "numgen random mod {modulus}"),
            Self::Random { modulus, offset } => write!(f, "numgen random mod {modulus} offset {offset}"),
        }
    }
}

/// The kernel's instructions, as far as we use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    Load(Register, Selector),
    /// `fib saddr type` or `fib daddr type`
    AddressType {
        register: Register,
        source: bool,
    },
    InterfaceName {
        register: Register,
        input: bool,
    },
    ConntrackState(Register),
    ConntrackStatus(Register),
    Mark(Register),
    SetMark(Register),
    IcmpType(Register),
    Mask {
        register: Register,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Copy {
        from: Register,
        to: Register,
    },
    Compare {
        register: Register,
        equal: bool,
        data: Vec<u8>,
    },
    /// Goes on if the key is (not) there.
    Member {
        set: &'static str,
        key: Register,
        invert: bool,
    },
    Map {
        map: &'static str,
        key: Register,
        into: Register,
    },
    VerdictMap {
        map: &'static str,
        key: Register,
    },
    Dnat {
        address: Register,
        port: Register,
    },
    Masquerade,
    Reject,
    Update {
        map: &'static str,
        key: Register,
        data: Register,
        timeout: Duration,
    },
    Delete {
        map: &'static str,
        key: Register,
        data: Register,
    },
    Verdict(Verdict),
}

const HIDDEN: Register = 12;
/// The kernel keeps 256 bytes with a rule, of which two say what they are and one ends the text.
const COMMENT_LENGTH_MAX: usize = 250;
const SCRATCH: Register = 15;
const SCRATCH_WIDE: Register = 8;
/// `RTN_LOCAL`
const LOCAL: u32 = 2;
/// `IPS_DST_NAT`
const DESTINATION_NATTED: u32 = 1 << 5;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`
const NEW: u32 = 8;

/// A rule under construction and done: each method adds a condition or a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub chain: String,
    pub(super) expressions: Vec<Expression>,
    text: Vec<String>,
    /// What each register holds, for the text.
    registers: Vec<String>,
    /// `nft` cannot print the rule.
    hidden: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.chain, self.text.join(" "))
    }
}

impl Rule {
    pub fn new(chain: &str) -> Self {
        Self {
            chain: chain.to_owned(),
            expressions: Vec::new(),
            text: Vec::new(),
            registers: vec![String::new(); 16],
            hidden: false,
        }
    }

    /// What the rule says, for whoever lists a rule that `nft` cannot print.
    pub(super) fn comment(&self) -> Option<String> {
        self.hidden.then(|| self.text.join(" ").chars().take(COMMENT_LENGTH_MAX).collect())
    }

    fn say(mut self, text: impl Into<String>) -> Self {
        self.text.push(text.into());
        self
    }

    fn push(mut self, expressions: impl IntoIterator<Item = Expression>) -> Self {
        self.expressions.extend(expressions);
        self
    }

    fn describe(&mut self, register: Register, text: String) {
        if let Some(slot) = self.registers.get_mut(usize::from(register)) {
            *slot = text;
        }
    }

    fn described(&self, from: Register, count: u8) -> String {
        let texts = self.registers.iter().skip(usize::from(from)).take(usize::from(count));
        texts.filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>().join(" . ")
    }

    fn address(self, selector: Selector, net: Ipv4Net, inside: bool) -> Self {
        let mask = net.netmask().octets().to_vec();
        let compare = Expression::Compare { register: SCRATCH, equal: inside, data: net.network().octets().to_vec() };
        self.push([
            Expression::Load(SCRATCH, selector),
            Expression::Mask { register: SCRATCH, mask, xor: vec![0; 4] },
            compare,
        ])
        .say(format!("{selector} {}{net}", if inside { "" } else { "!= " }))
    }

    #[must_use]
    pub fn from(self, net: Ipv4Net) -> Self {
        self.address(Selector::SourceAddress, net, true)
    }

    #[must_use]
    pub fn not_from(self, net: Ipv4Net) -> Self {
        self.address(Selector::SourceAddress, net, false)
    }

    #[must_use]
    pub fn to(self, net: Ipv4Net) -> Self {
        self.address(Selector::DestinationAddress, net, true)
    }

    #[must_use]
    pub fn not_to(self, net: Ipv4Net) -> Self {
        self.address(Selector::DestinationAddress, net, false)
    }

    fn local(self, source: bool) -> Self {
        self.push([
            Expression::AddressType { register: SCRATCH, source },
            Expression::Compare { register: SCRATCH, equal: true, data: LOCAL.to_ne_bytes().to_vec() },
        ])
        .say(format!("fib {} type local", if source { "saddr" } else { "daddr" }))
    }

    /// From one of this host's addresses.
    #[must_use]
    pub fn from_local(self) -> Self {
        self.local(true)
    }

    /// To one of this host's addresses.
    #[must_use]
    pub fn to_local(self) -> Self {
        self.local(false)
    }

    fn interface(self, input: bool, name: &str, equal: bool) -> Self {
        let mut data = name.as_bytes().to_vec();
        data.resize(16, 0);
        self.push([
            Expression::InterfaceName { register: SCRATCH_WIDE, input },
            Expression::Compare { register: SCRATCH_WIDE, equal, data },
        ])
        .say(format!(
            "{} {}\"{name}\"",
            if input { "iifname" } else { "oifname" },
            if equal { "" } else { "!= " }
        ))
    }

    #[must_use]
    pub fn not_into_by(self, interface: &str) -> Self {
        self.interface(true, interface, false)
    }

    #[must_use]
    pub fn out_by(self, interface: &str) -> Self {
        self.interface(false, interface, true)
    }

    fn bits(self, load: Expression, bits: u32, text: &str) -> Self {
        self.push([
            load,
            Expression::Mask { register: SCRATCH, mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expression::Compare { register: SCRATCH, equal: false, data: vec![0; 4] },
        ])
        .say(text)
    }

    #[must_use]
    pub fn new_connection(self) -> Self {
        self.bits(Expression::ConntrackState(SCRATCH), NEW, "ct state new")
    }

    #[must_use]
    pub fn destination_natted(self) -> Self {
        self.bits(Expression::ConntrackStatus(SCRATCH), DESTINATION_NATTED, "ct status dnat")
    }

    #[must_use]
    pub fn marked(self, mark: u32) -> Self {
        self.bits(Expression::Mark(SCRATCH), mark, &format!("meta mark & {mark:#010x} != 0"))
    }

    fn set_mark(self, mask: u32, xor: u32, text: String) -> Self {
        self.push([
            Expression::Mark(SCRATCH),
            Expression::Mask { register: SCRATCH, mask: mask.to_ne_bytes().to_vec(), xor: xor.to_ne_bytes().to_vec() },
            Expression::SetMark(SCRATCH),
        ])
        .say(text)
    }

    /// Sets the bits of `mark` and leaves others, which may be the administrator's.
    #[must_use]
    pub fn mark(self, mark: u32) -> Self {
        self.set_mark(!mark, mark, format!("meta mark set meta mark | {mark:#010x}"))
    }

    #[must_use]
    pub fn unmark(self, mark: u32) -> Self {
        self.set_mark(!mark, 0, format!("meta mark set meta mark & {:#010x}", !mark))
    }

    /// ICMP redirects.
    #[must_use]
    pub fn icmp_redirect(self) -> Self {
        self.push([
            Expression::Load(SCRATCH, Selector::Protocol),
            Expression::Compare { register: SCRATCH, equal: true, data: vec![1] },
            Expression::IcmpType(SCRATCH),
            Expression::Compare { register: SCRATCH, equal: true, data: vec![5] },
        ])
        .say("icmp type redirect")
    }

    /// Loads selectors into consecutive registers.
    #[must_use]
    pub fn load(mut self, first: Register, selectors: &[Selector]) -> Self {
        for (register, selector) in (first..).zip(selectors) {
            self.describe(register, selector.to_string());
            self.expressions.push(Expression::Load(register, *selector));
        }
        self
    }

    /// Goes on if the destination is in a set of addresses.
    #[must_use]
    pub fn to_member(self, set: &'static str) -> Self {
        self.load(0, &[Selector::DestinationAddress]).member(set, 0, 1)
    }

    /// Goes on if what stands in the registers is in the set.
    #[must_use]
    pub fn member(self, set: &'static str, key: Register, count: u8) -> Self {
        let text = format!("{} @{set}", self.described(key, count));
        self.push([Expression::Member { set, key, invert: false }]).say(text)
    }

    /// Goes on with the key's value in registers, if it has one. Of maps whose values are one word, the word
    /// stands behind another that means nothing.
    #[must_use]
    pub fn map(mut self, map: &'static str, (key, count): (Register, u8), (into, width): (Register, u8)) -> Self {
        let text = format!("({}) map @{map}", self.described(key, count));
        for register in into..into + width {
            self.describe(register, String::new());
        }
        self.describe(into, text);
        if width != 1 {
            return self.push([Expression::Map { map, key, into }]);
        }
        // `nft` 1.0.6 aborts when it lists a rule that uses a map's value as a key, because it does not know
        // the value's length. So the value is the second of two words, which `nft` loses sight of: it then
        // says that it cannot print the rule, and prints the comment.
        self.hidden = true;
        self.push([Expression::Map { map, key, into: HIDDEN }, Expression::Copy { from: HIDDEN + 1, to: into }])
    }

    #[must_use]
    pub fn verdict_map(self, map: &'static str, key: Register, count: u8) -> Self {
        let text = format!("{} vmap @{map}", self.described(key, count));
        self.push([Expression::VerdictMap { map, key }]).say(text)
    }

    /// Sends the connection to the address and port in two registers.
    #[must_use]
    pub fn dnat(self, address: Register) -> Self {
        let text = format!("dnat to {}", self.described(address, 2));
        self.push([Expression::Dnat { address, port: address + 1 }]).say(text)
    }

    #[must_use]
    pub fn masquerade(self) -> Self {
        self.push([Expression::Masquerade]).say("masquerade fully-random")
    }

    #[must_use]
    pub fn reject(self) -> Self {
        self.push([Expression::Reject]).say("reject")
    }

    /// Remembers a value for a key, or that one remembered is still in use.
    #[must_use]
    pub fn update(self, map: &'static str, (key, count): (Register, u8), data: Register, timeout: Duration) -> Self {
        let text = format!("update @{map} {{ {} timeout {}s }}", self.described(key, count), timeout.as_secs());
        self.push([Expression::Update { map, key, data, timeout }]).say(text)
    }

    /// Forgets what was remembered for a key. The kernel wants a value register, and does not look at it.
    #[must_use]
    pub fn forget(self, map: &'static str, (key, count): (Register, u8), data: Register) -> Self {
        let text = format!("delete @{map} {{ {} }}", self.described(key, count));
        self.push([Expression::Delete { map, key, data }]).say(text)
    }

    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        let text = verdict.to_string();
        self.push([Expression::Verdict(verdict)]).say(text)
    }
}
