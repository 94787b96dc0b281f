//! Listens for questions over UDP and TCP and replies.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::Name;
use parking_lot::Mutex;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info_span};

use crate::answer::Authority;
use crate::cache::Cache;
use crate::forward::{Forwarder, Protocol, StubDomain};
use crate::metrics::Metrics;
use crate::respond::{Parsed, Request, Responder, Step};
use crate::zone::Zone;

/// A question fits; more is not one.
const QUERY_SIZE_MAX: usize = 4_096;
/// TCP connections at once. More wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// Of one client, so that no pod keeps the others from TCP. More are closed at once.
const CONNECTIONS_PER_CLIENT_MAX: usize = 32;
/// How long a client may take for its next question, and to take an answer.
const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Tasks that read the UDP socket: one per core keeps up, the kernel spreads the datagrams.
const UDP_TASKS: usize = 2;

#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Where to listen; the cluster DNS address on port 53.
    pub listen: Vec<SocketAddr>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    /// The name servers of domains that those of the file do not know.
    pub stub_domains: BTreeMap<String, Vec<SocketAddr>>,
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
    responder: Arc<Responder>,
    listen: Vec<SocketAddr>,
}

impl DnsServer {
    pub fn new(config: DnsConfig, zone: Arc<Zone>, clock: SharedClock) -> Result<Self, DnsError> {
        let own: Vec<IpAddr> = config.listen.iter().map(SocketAddr::ip).collect();
        let no_domain = |domain: &str| {
            let domain = domain.to_owned();
            move |source| DnsError::Domain { domain, source }
        };
        let domain = config.cluster_domain;
        let authority = Authority::new(&domain, own.clone()).map_err(no_domain(&domain))?;
        let mut stubs = Vec::new();
        for (domain, servers) in config.stub_domains {
            let mut name = Name::from_ascii(&domain).map_err(no_domain(&domain))?;
            name.set_fqdn(true);
            stubs.push(StubDomain { domain: name, servers });
        }
        let forwarder = Forwarder::new(config.resolv_conf, own, stubs, clock.clone());
        let (cache, metrics) = (Cache::default(), Metrics::default());
        let responder = Arc::new(Responder { authority, zone, forwarder, cache, clock, metrics });
        Ok(Self { responder, listen: config.listen })
    }

    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        self.responder.metrics.register(registry);
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
                let (responder, udp, stop) = (Arc::clone(&self.responder), Arc::clone(&udp), stop.clone());
                tasks.push(task::spawn(info_span!("dns", protocol = "udp"), async move {
                    tokio::select! { () = serve_udp(responder, udp) => {}, () = stop.cancelled() => {} }
                }));
            }
            let (responder, stop) = (Arc::clone(&self.responder), stop.clone());
            tasks.push(task::spawn(info_span!("dns", protocol = "tcp"), async move {
                tokio::select! { () = serve_tcp(responder, tcp) => {}, () = stop.cancelled() => {} }
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

async fn serve_udp(responder: Arc<Responder>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; QUERY_SIZE_MAX];
    loop {
        // Errors are those of earlier sends (a port that closed) and say nothing about the socket.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let request = match Request::parse(&buffer[..length], Protocol::Udp) {
            Parsed::Request(request) => request,
            Parsed::Malformed(reply) => {
                responder.metrics.malformed.inc();
                let _ = socket.try_send_to(&reply, from);
                continue;
            }
            Parsed::Noise => {
                responder.metrics.malformed.inc();
                continue;
            }
        };
        match responder.local(&request) {
            Step::Done(reply) => {
                let _ = socket.try_send_to(&reply, from);
            }
            Step::Forward(pending) => {
                let (responder, socket) = (Arc::clone(&responder), Arc::clone(&socket));
                task::spawn(info_span!("dns-forward"), async move {
                    let reply = responder.forward(&request, pending).await;
                    let _ = socket.send_to(&reply, from).await;
                });
            }
        }
    }
}

/// How many connections each client has.
#[derive(Default)]
struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// One connection of a client.
struct Admitted {
    clients: Arc<Clients>,
    address: IpAddr,
}

impl Clients {
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Admitted> {
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_default();
        if *count >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        Some(Admitted { clients: Arc::clone(self), address })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.clients.0.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

async fn serve_tcp(responder: Arc<Responder>, listener: TcpListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let clients = Arc::new(Clients::default());
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let Ok((stream, from)) = listener.accept().await else { continue };
        let Some(admitted) = clients.admit(from.ip()) else {
            responder.metrics.refused_connections.inc();
            continue;
        };
        let responder = Arc::clone(&responder);
        task::spawn(info_span!("dns-connection"), async move {
            let _held = (permit, admitted);
            // A client that goes away in the middle is no news.
            let _ = serve_connection(&responder, stream).await;
        });
    }
}

async fn serve_connection(responder: &Responder, mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let query = tokio::select! {
            query = read_query(&mut stream) => query?,
            () = responder.clock.sleep(CONNECTION_IDLE_TIMEOUT) => return Ok(()),
        };
        let Parsed::Request(request) = Request::parse(&query, Protocol::Tcp) else {
            responder.metrics.malformed.inc();
            return Ok(());
        };
        let reply = match responder.local(&request) {
            Step::Done(reply) => reply,
            Step::Forward(pending) => responder.forward(&request, pending).await,
        };
        let length = u16::try_from(reply.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
        let message = [&length.to_be_bytes(), reply.as_slice()].concat();
        tokio::select! {
            written = stream.write_all(&message) => written?,
            () = responder.clock.sleep(CONNECTION_IDLE_TIMEOUT) => return Ok(()),
        }
    }
}

async fn read_query(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > QUERY_SIZE_MAX {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(query)
}
