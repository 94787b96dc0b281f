//! From a question as it came to the reply as it goes out: of our own names from memory, of others by asking.
//!
//! Invariant: what is sent fits what the client takes, and is never more than [`UDP_SIZE_MAX`] over UDP.
//! Invariant: a reply is made here from a question here. Of what another server said only records and code are
//! handed on, so that neither its identifier nor its extensions get to a client.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use tracing::debug;

use crate::answer::{Authority, Reply};
use crate::cache::{Cache, Question};
use crate::forward::{Forwarder, Protocol};
use crate::metrics::{Metrics, Rcode};
use crate::zone::Zone;

/// The smallest datagram every resolver accepts.
const UDP_SIZE_PLAIN: u16 = 512;
/// The largest we send: fits an Ethernet frame with room for tunnels, and bounds amplification.
pub(crate) const UDP_SIZE_MAX: u16 = 1_232;
/// A header and nothing else.
const HEADER_SIZE: usize = 12;
/// Aliases that lead to aliases. Longer ways are circles, or might as well be.
const ALIASES_MAX: usize = 8;

/// A question as it came.
pub(crate) struct Request {
    message: Message,
    protocol: Protocol,
}

/// What was received.
pub(crate) enum Parsed {
    Request(Request),
    /// No question; this says so.
    Malformed([u8; HEADER_SIZE]),
    /// Deserves no reply: it is one itself, and two servers could answer each other for ever, or too short.
    Noise,
}

impl Request {
    pub(crate) fn parse(bytes: &[u8], protocol: Protocol) -> Parsed {
        let is_reply = |flags: u8| flags & 0x80 != 0;
        let Some(&[a, b, flags, ..]) = bytes.get(..HEADER_SIZE).filter(|header| !is_reply(header[2])) else {
            return Parsed::Noise;
        };
        match Message::from_vec(bytes) {
            Ok(message) if message.metadata.message_type == MessageType::Query => {
                Parsed::Request(Self { message, protocol })
            }
            // The identifier, what was asked for and FORMERR, without the question that could not be read.
            _ => Parsed::Malformed([a, b, 0x80 | flags & 0x79, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]),
        }
    }

    fn size_max(&self) -> usize {
        match (self.protocol, &self.message.edns) {
            (Protocol::Tcp, _) => usize::from(u16::MAX),
            (Protocol::Udp, None) => usize::from(UDP_SIZE_PLAIN),
            (Protocol::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(UDP_SIZE_PLAIN, UDP_SIZE_MAX)),
        }
    }

    fn dnssec_ok(&self) -> bool {
        self.message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }
}

/// What is left to ask of others.
pub(crate) struct Pending {
    /// Ours that lead there.
    aliases: Vec<Record>,
    question: Question,
}

pub(crate) enum Step {
    Done(Vec<u8>),
    Forward(Pending),
}

pub(crate) struct Responder {
    pub(crate) authority: Authority,
    pub(crate) zone: Arc<Zone>,
    pub(crate) forwarder: Forwarder,
    pub(crate) cache: Cache,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: Metrics,
}

impl Responder {
    /// Answers what can be answered from memory.
    pub(crate) fn local(&self, request: &Request) -> Step {
        self.metrics.requests.inc();
        let metadata = &request.message.metadata;
        let refuse = |code| Step::Done(self.reply(request, code, |_| {}));
        if metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [query] = request.message.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
        if request.message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return refuse(ResponseCode::BADVERS);
        }
        // Transfers tell too much, and `ANY` is how reflection attacks ask for much.
        if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR | RecordType::ANY) {
            return refuse(ResponseCode::NotImp);
        }
        if query.query_class() != DNSClass::IN {
            return refuse(ResponseCode::Refused);
        }
        self.answer(request, query)
    }

    fn answer(&self, request: &Request, query: &Query) -> Step {
        let kind = query.query_type();
        let mut aliases = Vec::new();
        let mut name = query.name().clone();
        while aliases.len() <= ALIASES_MAX {
            match self.authority.answer(&self.zone, &name, kind) {
                Reply::Records { mut answers, additionals } => {
                    // Clients take the first address; each reply begins with another one.
                    if answers.len() > 1 && matches!(kind, RecordType::A | RecordType::AAAA) {
                        let shift = usize::from(request.message.metadata.id) % answers.len();
                        answers.rotate_left(shift);
                    }
                    return Step::Done(self.reply(request, ResponseCode::NoError, |reply| {
                        reply.metadata.authoritative = true;
                        reply.answers = aliases;
                        reply.answers.extend(answers);
                        reply.additionals = additionals;
                    }));
                }
                Reply::Negative(code) => {
                    return Step::Done(self.reply(request, code, |reply| {
                        reply.metadata.authoritative = true;
                        reply.answers = aliases;
                        let serial = u32::try_from(self.clock.now().as_second()).unwrap_or(1);
                        reply.authorities = vec![self.authority.soa(serial)];
                    }));
                }
                Reply::Alias { alias, target } => {
                    aliases.push(*alias);
                    if kind == RecordType::CNAME {
                        return Step::Done(self.aliases_alone(request, aliases, ResponseCode::NoError));
                    }
                    name = target;
                }
                Reply::NotOurs => {
                    let question = Question { name: name.to_lowercase(), kind, dnssec: request.dnssec_ok() };
                    let pending = Pending { aliases, question };
                    return match self.cache.get(&pending.question, self.clock.monotonic()) {
                        Some((found, seconds_left)) => {
                            self.metrics.cache_hits.inc();
                            Step::Done(self.relay(request, pending.aliases, &found, Some(seconds_left)))
                        }
                        None => Step::Forward(pending),
                    };
                }
            }
        }
        Step::Done(self.aliases_alone(request, aliases, ResponseCode::ServFail))
    }

    /// Asks others.
    pub(crate) async fn forward(&self, request: &Request, pending: Pending) -> Vec<u8> {
        self.metrics.forwards.inc();
        let Pending { aliases, question } = pending;
        match self.forwarder.ask(&question).await {
            Ok(found) => {
                let found = Arc::new(found);
                let keep = Duration::from_secs(u64::from(keep_seconds(&found)));
                if !found.metadata.truncation {
                    self.cache.put(question, Arc::clone(&found), keep, self.clock.monotonic());
                }
                self.relay(request, aliases, &found, None)
            }
            Err(error) => {
                debug!(name = %question.name, error = %chain(&error), "Could not forward a query");
                // An alias alone is an answer: who wants more can ask for its target.
                let code = if aliases.is_empty() { ResponseCode::ServFail } else { ResponseCode::NoError };
                self.aliases_alone(request, aliases, code)
            }
        }
    }

    fn aliases_alone(&self, request: &Request, aliases: Vec<Record>, code: ResponseCode) -> Vec<u8> {
        self.reply(request, code, |reply| {
            reply.metadata.authoritative = !aliases.is_empty();
            reply.answers = aliases;
        })
    }

    /// Hands on what another server said, behind the aliases that led there.
    fn relay(&self, request: &Request, aliases: Vec<Record>, found: &Message, seconds_left: Option<u32>) -> Vec<u8> {
        self.reply(request, found.metadata.response_code, |reply| {
            reply.metadata.authoritative = !aliases.is_empty();
            reply.metadata.authentic_data = found.metadata.authentic_data;
            reply.metadata.truncation = found.metadata.truncation;
            let aged = |records: &[Record]| {
                let mut records = records.to_vec();
                for record in &mut records {
                    record.ttl = record.ttl.min(seconds_left.unwrap_or(u32::MAX));
                }
                records
            };
            reply.answers = aliases;
            reply.answers.extend(aged(&found.answers));
            reply.authorities = aged(&found.authorities);
            reply.additionals = aged(&found.additionals);
        })
    }

    fn reply(&self, request: &Request, code: ResponseCode, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
        let asked = &request.message.metadata;
        let mut reply = Message::response(asked.id, asked.op_code);
        reply.metadata.recursion_desired = asked.recursion_desired;
        reply.metadata.checking_disabled = asked.checking_disabled;
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = code;
        reply.queries.clone_from(&request.message.queries);
        if request.message.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_SIZE_MAX);
            edns.set_rcode_high(code.high());
            edns.set_dnssec_ok(request.dnssec_ok());
            reply.set_edns(edns);
        }
        fill(&mut reply);
        self.metrics.responses.get_or_create(&Rcode::of(code)).inc();
        encode_within(reply, request.size_max())
    }
}

/// Encodes within what the client takes: first without additional records, then with as many answers as fit, since
/// not every resolver asks again over TCP.
fn encode_within(mut reply: Message, limit: usize) -> Vec<u8> {
    let fits = |reply: &Message| reply.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    if let Some(bytes) = fits(&reply) {
        return bytes;
    }
    reply.additionals.clear();
    if let Some(bytes) = fits(&reply) {
        return bytes;
    }
    reply.authorities.clear();
    reply.metadata.truncation = true;
    let answers = std::mem::take(&mut reply.answers);
    let (mut fitting, mut too_many) = (0, answers.len() + 1);
    while fitting + 1 < too_many {
        let count = usize::midpoint(fitting, too_many);
        reply.answers = answers.iter().take(count).cloned().collect();
        if fits(&reply).is_some() { fitting = count } else { too_many = count }
    }
    reply.answers = answers.into_iter().take(fitting).collect();
    reply.to_vec().unwrap_or_default()
}

/// The shortest time of all records; for a negative answer what its SOA says.
fn keep_seconds(reply: &Message) -> u32 {
    let negative = reply.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    match reply.metadata.response_code {
        ResponseCode::NoError if !reply.answers.is_empty() => {
            reply.answers.iter().map(|record| record.ttl).min().unwrap_or(0)
        }
        ResponseCode::NoError | ResponseCode::NXDomain => negative.unwrap_or(0),
        _ => 0,
    }
}

/// The question for another server. Of ours it has nothing but what is asked.
pub(crate) fn question_message(question: &Question, id: u16) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(absolute(&question.name), question.kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_SIZE_MAX);
    edns.set_dnssec_ok(question.dnssec);
    message.set_edns(edns);
    message
}

fn absolute(name: &Name) -> Name {
    let mut name = name.clone();
    name.set_fqdn(true);
    name
}
