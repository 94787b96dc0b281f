//! Operations and rules as netlink messages, as `linux/netfilter/nf_tables.h` numbers them.

use super::rule::{Expression, Register, Selector};
use super::{ChainKind, Datum, Element, Field, HookPoint, Op, Rule, SetSpec, Value, ValueKind, Verdict, milliseconds};
use crate::netlink::wire::{APPEND, Attributes, CREATE, Message};
use crate::netlink::{NetlinkError, Socket};

/// The name of the one table we own, in family `ip`.
pub const TABLE: &str = "rkube";

const FAMILY_IP: u8 = 2;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVALUATED: u32 = 0x20;
const DATA_VERDICT: u32 = 0xffff_ff00;

/// Elements per message: each is at most 100 bytes, and a nested attribute holds 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// `NFT_REG32_00`
const FIRST_REGISTER: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

fn message(kind: u16, flags: u16) -> Message {
    Message::new((SUBSYSTEM << 8) | kind, flags, &[FAMILY_IP, 0, 0, 0])
}

fn marker(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[0, 0, high, low])
}

/// The messages of one atomic change.
pub(super) fn batch(ops: &[Op]) -> Vec<Message> {
    let mut messages = Vec::with_capacity(ops.len() + 2);
    messages.push(marker(BATCH_BEGIN));
    let mut next_set_id = 1;
    for op in ops {
        encode(op, &mut next_set_id, &mut messages);
    }
    messages.push(marker(BATCH_END));
    messages
}

fn encode(op: &Op, next_set_id: &mut u32, messages: &mut Vec<Message>) {
    match op {
        Op::AddTable | Op::DeleteTable => {
            let (kind, flags) = if *op == Op::AddTable { (NEW_TABLE, CREATE) } else { (DELETE_TABLE, 0) };
            let mut table = message(kind, flags);
            table.text(1, TABLE);
            messages.push(table);
        }
        Op::AddChain { name, hook } => {
            let mut chain = message(NEW_CHAIN, CREATE);
            chain.text(1, TABLE).text(3, name);
            if let Some(hook) = hook {
                let number = match hook.point {
                    HookPoint::Prerouting => 0,
                    HookPoint::Input => 1,
                    HookPoint::Forward => 2,
                    HookPoint::Output => 3,
                    HookPoint::Postrouting => 4,
                };
                chain.nest(4, |inner| {
                    inner.be32(1, number).be32(2, hook.priority.cast_unsigned());
                });
                chain.text(7, if hook.kind == ChainKind::Nat { "nat" } else { "filter" });
            }
            messages.push(chain);
        }
        Op::FlushChain(name) => {
            let mut rules = message(DELETE_RULE, 0);
            rules.text(1, TABLE).text(2, name);
            messages.push(rules);
        }
        Op::DeleteChain(name) => {
            let mut chain = message(DELETE_CHAIN, 0);
            chain.text(1, TABLE).text(3, name);
            messages.push(chain);
        }
        Op::AddRule(rule) => messages.push(add_rule(rule)),
        Op::AddSet(set) => {
            messages.push(add_set(set, *next_set_id));
            *next_set_id += 1;
        }
        Op::FlushSet(name) => {
            let mut elements = message(DELETE_ELEMENT, 0);
            elements.text(1, TABLE).text(2, name);
            messages.push(elements);
        }
        Op::AddElements { set, elements } => element_messages(NEW_ELEMENT, CREATE, set, elements, true, messages),
        Op::DeleteElements { set, elements } => element_messages(DELETE_ELEMENT, 0, set, elements, false, messages),
    }
}

fn field_type(field: Field) -> u32 {
    match field {
        Field::Address => 7,
        Field::Protocol => 12,
        Field::Port => 13,
        Field::Number => 19,
    }
}

/// The type number of a concatenation, as `nft` makes it to know how to print elements, and its length.
fn fields_type(fields: &[Field]) -> (u32, u32) {
    let kind = fields.iter().fold(0, |kind, field| (kind << 6) | field_type(*field));
    (kind, 4 * u32::try_from(fields.len()).unwrap_or_default())
}

fn add_set(set: &SetSpec, id: u32) -> Message {
    let mut flags = 0;
    if set.value.is_some() {
        flags |= SET_MAP;
    }
    if set.dynamic_size_max.is_some() {
        flags |= SET_TIMEOUT | SET_EVALUATED;
    }
    let (key_type, key_length) = fields_type(set.key);
    let mut new = message(NEW_SET, CREATE);
    new.text(1, TABLE).text(2, set.name).be32(3, flags).be32(4, key_type).be32(5, key_length);
    match set.value {
        Some(ValueKind::Data(fields)) => {
            let (kind, length) = fields_type(fields);
            new.be32(6, kind).be32(7, length);
        }
        Some(ValueKind::Verdict) => {
            new.be32(6, DATA_VERDICT).be32(7, 0);
        }
        None => {}
    }
    if let Some(size) = set.dynamic_size_max {
        new.nest(9, |description| {
            description.be32(1, size);
        });
    }
    new.be32(10, id);
    new
}

fn bytes(data: &[Datum]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 * data.len());
    for datum in data {
        match datum {
            Datum::Address(address) => bytes.extend_from_slice(&address.octets()),
            Datum::Protocol(protocol) => bytes.push(*protocol),
            Datum::Port(port) => bytes.extend_from_slice(&port.to_be_bytes()),
            Datum::Number(number) => bytes.extend_from_slice(&number.to_ne_bytes()),
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn put_verdict(message: &mut Message, kind: u16, verdict: &Verdict) {
    let (code, chain): (i32, _) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    message.nest(kind, |data| {
        data.nest(2, |verdict| {
            verdict.be32(1, code.cast_unsigned());
            if let Some(chain) = chain {
                verdict.text(2, chain);
            }
        });
    });
}

fn element_messages(
    kind: u16,
    flags: u16,
    set: &str,
    elements: &[Element],
    with_values: bool,
    messages: &mut Vec<Message>,
) {
    for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
        let mut new = message(kind, flags);
        new.text(1, TABLE).text(2, set).nest(3, |list| {
            for element in chunk {
                list.nest(1, |item| {
                    item.nest(1, |key| {
                        key.attr(1, &bytes(&element.key));
                    });
                    match element.value.as_ref().filter(|_| with_values) {
                        Some(Value::Data(data)) => {
                            item.nest(2, |value| {
                                value.attr(1, &bytes(data));
                            });
                        }
                        Some(Value::Verdict(verdict)) => put_verdict(item, 2, verdict),
                        None => {}
                    }
                });
            }
        });
        messages.push(new);
    }
}

fn add_rule(rule: &Rule) -> Message {
    let mut new = message(NEW_RULE, CREATE | APPEND);
    new.text(1, TABLE).text(2, &rule.chain).nest(4, |list| {
        for expression in &rule.expressions {
            put_expression(list, expression);
        }
    });
    if let Some(text) = rule.comment() {
        // Kind, length and text with its end, as `nft` stores comments.
        let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
        let data = [&[0, length], text.as_bytes(), &[0]].concat();
        new.attr(7, &data);
    }
    new
}

fn number(register: Register) -> u32 {
    FIRST_REGISTER + u32::from(register)
}

fn put(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(1, |expression| {
        expression.text(1, name).nest(2, fill);
    });
}

fn put_value(message: &mut Message, kind: u16, data: &[u8]) {
    message.nest(kind, |value| {
        value.attr(1, data);
    });
}

fn payload(list: &mut Message, register: Register, base: u32, offset: u32, length: u32) {
    put(list, "payload", |data| {
        data.be32(1, number(register)).be32(2, base).be32(3, offset).be32(4, length);
    });
}

fn meta(list: &mut Message, register: Register, key: u32) {
    put(list, "meta", |data| {
        data.be32(1, number(register)).be32(2, key);
    });
}

fn conntrack(list: &mut Message, register: Register, key: u32) {
    put(list, "ct", |data| {
        data.be32(1, number(register)).be32(2, key);
    });
}

fn put_load(list: &mut Message, register: Register, selector: Selector) {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    const META_L4PROTO: u32 = 16;
    match selector {
        Selector::SourceAddress => payload(list, register, NETWORK, 12, 4),
        Selector::DestinationAddress => payload(list, register, NETWORK, 16, 4),
        Selector::Protocol => meta(list, register, META_L4PROTO),
        Selector::DestinationPort => payload(list, register, TRANSPORT, 2, 2),
        Selector::Constant(datum) => put(list, "immediate", |data| {
            data.be32(1, number(register));
            put_value(data, 2, &bytes(&[datum]));
        }),
        Selector::Random { modulus, offset } => put(list, "numgen", |data| {
            data.be32(1, number(register)).be32(2, modulus).be32(3, 1).be32(4, offset);
        }),
    }
}

fn put_lookup(list: &mut Message, set: &str, key: Register, into: Option<u32>, invert: bool) {
    put(list, "lookup", |data| {
        data.text(1, set).be32(2, number(key));
        if let Some(into) = into {
            data.be32(3, into);
        }
        if invert {
            data.be32(5, 1);
        }
    });
}

fn put_expression(list: &mut Message, expression: &Expression) {
    match expression {
        Expression::Load(register, selector) => put_load(list, *register, *selector),
        Expression::AddressType { register, source } => put(list, "fib", |data| {
            data.be32(1, number(*register)).be32(2, 3).be32(3, if *source { 1 } else { 2 });
        }),
        Expression::InterfaceName { register, input } => meta(list, *register, if *input { 6 } else { 7 }),
        Expression::ConntrackState(register) => conntrack(list, *register, 0),
        Expression::ConntrackStatus(register) => conntrack(list, *register, 2),
        Expression::Mark(register) => meta(list, *register, 3),
        Expression::SetMark(register) => put(list, "meta", |data| {
            data.be32(2, 3).be32(3, number(*register));
        }),
        Expression::IcmpType(register) => payload(list, *register, 2, 0, 1),
        Expression::Mask { register, mask, xor } => put(list, "bitwise", |data| {
            data.be32(1, number(*register)).be32(2, number(*register)).be32(3, 4);
            put_value(data, 4, mask);
            put_value(data, 5, xor);
        }),
        Expression::Copy { from, to } => put(list, "bitwise", |data| {
            data.be32(1, number(*from)).be32(2, number(*to)).be32(3, 4);
            put_value(data, 4, &[0xff; 4]);
            put_value(data, 5, &[0; 4]);
        }),
        Expression::Compare { register, equal, data: bytes } => put(list, "cmp", |data| {
            data.be32(1, number(*register)).be32(2, u32::from(!*equal));
            put_value(data, 3, bytes);
        }),
        Expression::Member { set, key, invert } => put_lookup(list, set, *key, None, *invert),
        Expression::Map { map, key, into } => put_lookup(list, map, *key, Some(number(*into)), false),
        Expression::VerdictMap { map, key } => put_lookup(list, map, *key, Some(VERDICT_REGISTER), false),
        Expression::Dnat { address, port } => put(list, "nat", |data| {
            data.be32(1, 1).be32(2, u32::from(FAMILY_IP)).be32(3, number(*address)).be32(5, number(*port));
        }),
        Expression::Masquerade => put(list, "masq", |data| {
            data.be32(1, 0x10);
        }),
        Expression::Reject => put(list, "reject", |data| {
            data.be32(1, 0).attr(2, &[3]);
        }),
        Expression::Update { map, key, data: value, timeout } => put(list, "dynset", |data| {
            data.text(1, map).be32(3, 1).be32(4, number(*key)).be32(5, number(*value));
            data.attr(6, &milliseconds(*timeout).to_be_bytes());
        }),
        Expression::Delete { map, key, data: value } => put(list, "dynset", |data| {
            data.text(1, map).be32(3, 2).be32(4, number(*key)).be32(5, number(*value));
        }),
        Expression::Verdict(verdict) => put(list, "immediate", |data| {
            data.be32(1, VERDICT_REGISTER);
            put_verdict(data, 2, verdict);
        }),
    }
}

/// The names of our table's chains.
pub fn chains(socket: &mut Socket) -> Result<Vec<String>, NetlinkError> {
    let names = socket.dump("listing nftables chains", &message(GET_CHAIN, 0), |reply| {
        let attributes = Attributes(reply.body.get(4..)?);
        let ours = attributes.find_text(1)? == TABLE;
        ours.then(|| attributes.find_text(3).map(str::to_owned)).flatten()
    });
    match names {
        Err(error) if error.missing() => Ok(Vec::new()),
        other => other,
    }
}
