//! Listens for questions over UDP and TCP and replies.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info_span};

use crate::answer::{Authority, Reply};
use crate::cache::{Cache, Question};
use crate::forward::{Forwarder, Protocol, StubDomain};
use crate::metrics::{Metrics, Rcode};
use crate::zone::Zone;

/// The smallest datagram every resolver accepts.
const UDP_SIZE_PLAIN: u16 = 512;
/// The largest we send: fits an Ethernet frame with room for tunnels, and bounds amplification.
const UDP_SIZE_MAX: u16 = 1_232;
/// A question fits; more is not one.
const QUERY_SIZE_MAX: usize = 4_096;
/// TCP connections at once. More wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Tasks that read the UDP socket: one per core keeps up, the kernel spreads the datagrams.
const UDP_TASKS: usize = 2;

#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Where to listen; the cluster DNS address on port 53.
    pub listen: Vec<SocketAddr>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub stub_domains: Vec<StubDomain>,
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("{domain:?} is not a domain name")]
    Domain {
        domain: String,
        #[source]
        source: hickory_proto::ProtoError,
    },
    #[error("listening for DNS on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// Cluster DNS of one node.
pub struct DnsServer {
    shared: Arc<Shared>,
    listen: Vec<SocketAddr>,
}

struct Shared {
    authority: Authority,
    zone: Arc<Zone>,
    forwarder: Forwarder,
    cache: Cache,
    clock: SharedClock,
    metrics: Metrics,
}

impl DnsServer {
    pub fn new(config: DnsConfig, zone: Arc<Zone>, clock: SharedClock) -> Result<Self, DnsError> {
        let authority = Authority::new(&config.cluster_domain)
            .map_err(|source| DnsError::Domain { domain: config.cluster_domain.clone(), source })?;
        let own: Vec<IpAddr> = config.listen.iter().map(SocketAddr::ip).collect();
        let forwarder = Forwarder::new(config.resolv_conf, own, config.stub_domains, clock.clone());
        let metrics = Metrics::default();
        let shared = Shared { authority, zone, forwarder, cache: Cache::default(), clock, metrics };
        Ok(Self { shared: Arc::new(shared), listen: config.listen })
    }

    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        self.shared.metrics.register(registry);
    }

    /// Listens until `stop`. `ready` is called with the addresses once all are listened on.
    pub async fn run(self, ready: impl FnOnce(&[SocketAddr]), stop: CancellationToken) -> Result<(), DnsError> {
        let mut bound = Vec::new();
        let mut tasks = Vec::new();
        for address in self.listen {
            let listen = |source| DnsError::Listen { address, source };
            let udp = Arc::new(UdpSocket::bind(address).await.map_err(listen)?);
            let address = udp.local_addr().map_err(listen)?;
            let tcp = TcpListener::bind(address).await.map_err(listen)?;
            bound.push(address);
            for _ in 0..UDP_TASKS {
                let (shared, udp, stop) = (Arc::clone(&self.shared), Arc::clone(&udp), stop.clone());
                tasks.push(task::spawn(info_span!("dns", protocol = "udp"), async move {
                    tokio::select! { () = serve_udp(shared, udp) => {}, () = stop.cancelled() => {} }
                }));
            }
            let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
            tasks.push(task::spawn(info_span!("dns", protocol = "tcp"), async move {
                tokio::select! { () = serve_tcp(shared, tcp) => {}, () = stop.cancelled() => {} }
            }));
        }
        ready(&bound);
        for task in tasks {
            if let Err(error) = task.await {
                debug!(%error, "A DNS listener ended");
            }
        }
        Ok(())
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; QUERY_SIZE_MAX];
    loop {
        // Errors are those of earlier sends (a port that closed) and say nothing about the socket.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(request) = Request::parse(&buffer[..length], Protocol::Udp) else { continue };
        match shared.local(&request) {
            Step::Done(reply) => {
                let _ = socket.try_send_to(&reply, from);
            }
            Step::Forward(alias) => {
                let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
                task::spawn(info_span!("dns-forward"), async move {
                    let reply = shared.forward(&request, alias).await;
                    let _ = socket.send_to(&reply, from).await;
                });
            }
        }
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = Arc::clone(&shared);
        task::spawn(info_span!("dns-connection"), async move {
            let _permit = permit;
            // A client that goes away in the middle is no news.
            let _ = serve_connection(&shared, stream).await;
        });
    }
}

async fn serve_connection(shared: &Shared, mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let mut length = [0; 2];
        let read = async {
            stream.read_exact(&mut length).await?;
            let mut query = vec![0; usize::from(u16::from_be_bytes(length)).min(QUERY_SIZE_MAX)];
            stream.read_exact(&mut query).await?;
            Ok::<_, std::io::Error>(query)
        };
        let query = tokio::select! {
            query = read => query?,
            () = shared.clock.sleep(CONNECTION_IDLE_TIMEOUT) => return Ok(()),
        };
        let Some(request) = Request::parse(&query, Protocol::Tcp) else { return Ok(()) };
        let reply = match shared.local(&request) {
            Step::Done(reply) => reply,
            Step::Forward(alias) => shared.forward(&request, alias).await,
        };
        let length = u16::try_from(reply.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&reply).await?;
    }
}

/// A question as it came.
struct Request {
    message: Message,
    bytes: Bytes,
    protocol: Protocol,
}

impl Request {
    /// `None` for what deserves no reply: replies (or two servers could answer each other for ever) and
    /// what is not DNS.
    fn parse(bytes: &[u8], protocol: Protocol) -> Option<Self> {
        let message = Message::from_vec(bytes).ok()?;
        let is_query = message.metadata.message_type == MessageType::Query;
        is_query.then(|| Self { message, bytes: Bytes::copy_from_slice(bytes), protocol })
    }

    fn query(&self) -> Option<&Query> {
        self.message.queries.first()
    }

    fn size_max(&self) -> usize {
        match (self.protocol, &self.message.edns) {
            (Protocol::Tcp, _) => usize::from(u16::MAX),
            (Protocol::Udp, None) => usize::from(UDP_SIZE_PLAIN),
            (Protocol::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(UDP_SIZE_PLAIN, UDP_SIZE_MAX)),
        }
    }
}

/// A record of ours that points outside, and where to.
type Alias = (Box<Record>, Name);

enum Step {
    Done(Vec<u8>),
    /// Ask others, after this alias if there is one.
    Forward(Option<Alias>),
}

impl Shared {
    /// Answers what can be answered from memory.
    fn local(&self, request: &Request) -> Step {
        self.metrics.requests.inc();
        let metadata = &request.message.metadata;
        if metadata.op_code != OpCode::Query {
            return Step::Done(self.reply(request, ResponseCode::NotImp, |_| {}));
        }
        let [query] = request.message.queries.as_slice() else {
            return Step::Done(self.reply(request, ResponseCode::FormErr, |_| {}));
        };
        if request.message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return Step::Done(self.reply(request, ResponseCode::BADVERS, |_| {}));
        }
        // Transfers tell too much, and `ANY` is how reflection attacks ask for much.
        if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR | RecordType::ANY) {
            return Step::Done(self.reply(request, ResponseCode::NotImp, |_| {}));
        }
        if query.query_class() != DNSClass::IN {
            return Step::Done(self.reply(request, ResponseCode::Refused, |_| {}));
        }
        match self.authority.answer(&self.zone, query.name(), query.query_type()) {
            Reply::Records { mut answers, additionals } => {
                // Clients take the first address; each reply begins with another one.
                if answers.len() > 1 && matches!(query.query_type(), RecordType::A | RecordType::AAAA) {
                    let shift = usize::from(metadata.id) % answers.len();
                    answers.rotate_left(shift);
                }
                Step::Done(self.reply(request, ResponseCode::NoError, |reply| {
                    reply.metadata.authoritative = true;
                    reply.answers = answers;
                    reply.additionals = additionals;
                }))
            }
            Reply::Negative(code) => Step::Done(self.reply(request, code, |reply| {
                reply.metadata.authoritative = true;
                let serial = u32::try_from(self.clock.now().as_second()).unwrap_or(1);
                reply.authorities = vec![self.authority.soa(serial)];
            })),
            Reply::Alias { alias, target } => Step::Forward(Some((alias, target))),
            Reply::NotOurs => match self.cached(request, query) {
                Some(reply) => Step::Done(reply),
                None => Step::Forward(None),
            },
        }
    }

    fn cached(&self, request: &Request, query: &Query) -> Option<Vec<u8>> {
        let (bytes, left) = self.cache.get(&question(request, query), self.clock.monotonic())?;
        let mut reply = Message::from_vec(&bytes).ok()?;
        self.metrics.cache_hits.inc();
        reply.metadata.id = request.message.metadata.id;
        reply.queries = vec![query.clone()];
        for record in reply.answers.iter_mut().chain(&mut reply.authorities) {
            record.ttl = record.ttl.min(left);
        }
        Some(self.encode(request, reply))
    }

    async fn forward(&self, request: &Request, alias: Option<Alias>) -> Vec<u8> {
        let Some(query) = request.query() else { return self.reply(request, ResponseCode::FormErr, |_| {}) };
        self.metrics.forwards.inc();
        let Some((alias, target)) = alias else {
            return match self.forwarder.ask(query.name(), &request.bytes, request.protocol).await {
                Ok(bytes) => self.relay(request, query, bytes),
                Err(error) => {
                    debug!(name = %query.name(), error = %chain(&error), "Could not forward a query");
                    self.reply(request, ResponseCode::ServFail, |_| {})
                }
            };
        };
        let mut inner = Message::new(request.message.metadata.id, MessageType::Query, OpCode::Query);
        inner.metadata.recursion_desired = true;
        inner.add_query(Query::query(target.clone(), query.query_type()));
        let found = match inner.to_vec() {
            Ok(bytes) => self.forwarder.ask(&target, &bytes, request.protocol).await.ok(),
            Err(_) => None,
        };
        // The alias alone is an answer: the client can ask for its target itself.
        let found = found.and_then(|bytes| Message::from_vec(&bytes).ok()).map(|message| message.answers);
        self.reply(request, ResponseCode::NoError, |reply| {
            reply.answers = std::iter::once(*alias).chain(found.unwrap_or_default()).collect();
        })
    }

    /// Hands on what another server said, and remembers it.
    fn relay(&self, request: &Request, query: &Query, bytes: Bytes) -> Vec<u8> {
        let Ok(reply) = Message::from_vec(&bytes) else { return self.reply(request, ResponseCode::ServFail, |_| {}) };
        if !reply.metadata.truncation {
            let keep = Duration::from_secs(u64::from(keep_seconds(&reply)));
            self.cache.put(question(request, query), bytes, keep, self.clock.monotonic());
        }
        self.encode(request, reply)
    }

    fn reply(&self, request: &Request, code: ResponseCode, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
        let asked = &request.message.metadata;
        let mut reply = Message::response(asked.id, asked.op_code);
        reply.metadata.recursion_desired = asked.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = code;
        reply.queries = request.message.queries.clone();
        if request.message.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_SIZE_MAX);
            edns.set_rcode_high(code.high());
            reply.set_edns(edns);
        }
        fill(&mut reply);
        self.encode(request, reply)
    }

    /// Encodes within what the client takes: first without additional records, then cut short.
    fn encode(&self, request: &Request, mut reply: Message) -> Vec<u8> {
        self.metrics.responses.get_or_create(&Rcode { rcode: format!("{:?}", reply.metadata.response_code) }).inc();
        let limit = request.size_max();
        let encoded = reply.to_vec().unwrap_or_default();
        if encoded.len() <= limit {
            return encoded;
        }
        reply.additionals.clear();
        let encoded = reply.to_vec().unwrap_or_default();
        if encoded.len() <= limit {
            return encoded;
        }
        reply.truncate().to_vec().unwrap_or_default()
    }
}

fn question(request: &Request, query: &Query) -> Question {
    let dnssec = request.message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
    Question { name: query.name().to_lowercase(), kind: query.query_type(), dnssec }
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
