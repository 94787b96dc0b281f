//! Asks other name servers: those of the host's resolv.conf, or of a stub domain.
//!
//! The host's file is read again when it changed, looked at when a question needs it and at most once a
//! second: a laptop that changes networks needs no restart.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::Name;
use parking_lot::Mutex;
use rkube_apimachinery::clock::SharedClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

const PORT: u16 = 53;
/// One server's time to answer before the next is asked.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions on the way to others; more are refused, so that a dead server cannot fill the memory.
pub(crate) const IN_FLIGHT_MAX: usize = 1_000;
/// Servers tried for one question.
const SERVERS_MAX: usize = 3;
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);
const UDP_REPLY_SIZE_MAX: usize = 4_096;

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("{path} names no name server")]
    NoServers { path: PathBuf },
    #[error("no name server answered, the last was {server}")]
    NoAnswer {
        server: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("{IN_FLIGHT_MAX} questions wait for other name servers already")]
    Busy,
}

/// Names that certain servers know.
#[derive(Clone, Debug)]
pub struct StubDomain {
    pub domain: Name,
    pub servers: Vec<SocketAddr>,
}

/// How a question is asked, and so answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Udp,
    Tcp,
}

pub struct Forwarder {
    resolv_conf: PathBuf,
    /// Addresses of our own, which the file may name: asking them would go round in circles.
    own: Vec<IpAddr>,
    stubs: Vec<StubDomain>,
    clock: SharedClock,
    hosts: Mutex<Hosts>,
    /// The server that answered last is asked first.
    preferred: AtomicUsize,
    in_flight: Arc<Semaphore>,
}

#[derive(Default)]
struct Hosts {
    servers: Vec<SocketAddr>,
    modified: Option<SystemTime>,
    checked: Option<Duration>,
}

impl Forwarder {
    pub fn new(resolv_conf: PathBuf, own: Vec<IpAddr>, stubs: Vec<StubDomain>, clock: SharedClock) -> Self {
        Self {
            resolv_conf,
            own,
            stubs,
            clock,
            hosts: Mutex::default(),
            preferred: AtomicUsize::new(0),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
        }
    }

    /// Sends a question as it came and returns the reply as it came, but for the id.
    pub async fn ask(&self, name: &Name, query: &[u8], protocol: Protocol) -> Result<Bytes, ForwardError> {
        let _permit = self.in_flight.try_acquire().map_err(|_| ForwardError::Busy)?;
        let servers = self.servers(name);
        let mut failed = None;
        let first = self.preferred.load(Ordering::Relaxed);
        for attempt in 0..servers.len().min(SERVERS_MAX) {
            let index = (first + attempt) % servers.len();
            let server = servers[index];
            let exchange = async {
                match protocol {
                    Protocol::Udp => ask_udp(server, query).await,
                    Protocol::Tcp => ask_tcp(server, query).await,
                }
            };
            let outcome = tokio::select! {
                outcome = exchange => outcome,
                () = self.clock.sleep(ATTEMPT_TIMEOUT) => Err(std::io::ErrorKind::TimedOut.into()),
            };
            match outcome {
                Ok(reply) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(reply);
                }
                Err(source) => failed = Some(ForwardError::NoAnswer { server, source }),
            }
        }
        Err(failed.unwrap_or_else(|| ForwardError::NoServers { path: self.resolv_conf.clone() }))
    }

    fn servers(&self, name: &Name) -> Vec<SocketAddr> {
        let stub =
            self.stubs.iter().filter(|stub| stub.domain.zone_of(name)).max_by_key(|stub| stub.domain.num_labels());
        match stub {
            Some(stub) => stub.servers.clone(),
            None => self.host_servers(),
        }
    }

    fn host_servers(&self) -> Vec<SocketAddr> {
        let now = self.clock.monotonic();
        let mut hosts = self.hosts.lock();
        if hosts.checked.is_some_and(|checked| now - checked < RECHECK_INTERVAL) {
            return hosts.servers.clone();
        }
        hosts.checked = Some(now);
        let modified = fs::metadata(&self.resolv_conf).and_then(|metadata| metadata.modified()).ok();
        if modified != hosts.modified || hosts.servers.is_empty() {
            // A file that is being replaced is read at the next question.
            if let Ok(text) = fs::read_to_string(&self.resolv_conf) {
                hosts.servers =
                    name_servers(&text).into_iter().filter(|server| !self.own.contains(&server.ip())).collect();
                hosts.modified = modified;
            }
        }
        hosts.servers.clone()
    }
}

/// The `nameserver` lines of a resolv.conf.
pub fn name_servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = (words.next()? == "nameserver").then(|| words.next())??;
            // A zone (`%eth0`) is for link-local addresses, which pods could not use anyway.
            address.split('%').next()?.parse::<IpAddr>().ok()
        })
        .map(|address| SocketAddr::new(address, PORT))
        .collect()
}

/// A socket of its own per question: its random port is what makes a forged reply unlikely.
async fn ask_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Bytes> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; UDP_REPLY_SIZE_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_reply(query, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer.into());
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Bytes> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(query).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).await?;
    if is_reply(query, &reply) { Ok(reply.into()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// The same id and question, and a reply at all.
fn is_reply(query: &[u8], reply: &[u8]) -> bool {
    let (Ok(query), Ok(reply)) = (Message::from_vec(query), Message::from_vec(reply)) else { return false };
    reply.metadata.message_type == MessageType::Response
        && reply.metadata.id == query.metadata.id
        && reply.queries == query.queries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_libc_reads_them() {
        let text =
            "# comment\nnameserver 192.0.2.1\nsearch example.org\nnameserver\tfe80::1%eth0\nnameserver nonsense\n";
        let servers: Vec<String> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[fe80::1]:53"]);
    }
}
