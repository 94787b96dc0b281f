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

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::Name;
use parking_lot::Mutex;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::{Random, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::cache::Question;
use crate::respond::question_message;

const PORT: u16 = 53;
/// One server's time to answer before the next is asked.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions on the way to others; more are refused, so that a dead server cannot fill the memory.
pub(crate) const IN_FLIGHT_MAX: usize = 1_000;
/// Servers tried for one question.
const SERVERS_MAX: usize = 3;
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);
/// More than we say we take.
const UDP_REPLY_SIZE_MAX: usize = 4_096;

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
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
pub(crate) struct StubDomain {
    pub(crate) domain: Name,
    pub(crate) servers: Vec<SocketAddr>,
}

/// How a question came, and so is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Udp,
    Tcp,
}

pub(crate) struct Forwarder {
    resolv_conf: PathBuf,
    /// Addresses of our own, which the file may name: asking them would go round in circles.
    own: Vec<IpAddr>,
    stubs: Vec<(StubDomain, Preferred)>,
    clock: SharedClock,
    hosts: Mutex<Hosts>,
    preferred: Preferred,
    in_flight: Arc<Semaphore>,
}

/// Which of some servers answered last, and so is asked first.
#[derive(Default)]
struct Preferred(AtomicUsize);

#[derive(Default)]
struct Hosts {
    servers: Vec<SocketAddr>,
    modified: Option<SystemTime>,
    checked: Option<Duration>,
}

impl Forwarder {
    pub(crate) fn new(resolv_conf: PathBuf, own: Vec<IpAddr>, stubs: Vec<StubDomain>, clock: SharedClock) -> Self {
        Self {
            resolv_conf,
            own,
            stubs: stubs.into_iter().map(|stub| (stub, Preferred::default())).collect(),
            clock,
            hosts: Mutex::default(),
            preferred: Preferred::default(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
        }
    }

    /// Asks one server after the other until one knows. A server that says it cannot answer is believed only if all
    /// others say no better.
    pub(crate) async fn ask(&self, question: &Question) -> Result<Message, ForwardError> {
        let _permit = self.in_flight.try_acquire().map_err(|_| ForwardError::Busy)?;
        let (servers, preferred) = self.servers(&question.name);
        let (mut failed, mut unhelpful) = (None, None);
        let first = preferred.0.load(Ordering::Relaxed);
        for attempt in 0..servers.len().min(SERVERS_MAX) {
            let index = (first + attempt) % servers.len();
            let server = servers[index];
            let outcome = tokio::select! {
                outcome = exchange(server, question) => outcome,
                () = self.clock.sleep(ATTEMPT_TIMEOUT) => Err(std::io::ErrorKind::TimedOut.into()),
            };
            match outcome {
                Ok(reply) if matches!(reply.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused) => {
                    unhelpful = Some(reply);
                }
                Ok(reply) => {
                    preferred.0.store(index, Ordering::Relaxed);
                    return Ok(reply);
                }
                Err(source) => failed = Some(ForwardError::NoAnswer { server, source }),
            }
        }
        match (unhelpful, failed) {
            (Some(reply), _) => Ok(reply),
            (None, Some(error)) => Err(error),
            (None, None) => Err(ForwardError::NoServers { path: self.resolv_conf.clone() }),
        }
    }

    fn servers(&self, name: &Name) -> (Vec<SocketAddr>, &Preferred) {
        let knowing = self.stubs.iter().filter(|(stub, _)| stub.domain.zone_of(name));
        match knowing.max_by_key(|(stub, _)| stub.domain.num_labels()) {
            Some((stub, preferred)) => (stub.servers.clone(), preferred),
            None => (self.host_servers(), &self.preferred),
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
pub(crate) fn name_servers(text: &str) -> Vec<SocketAddr> {
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

/// Over UDP, and over TCP what is too large for that: clients that cannot do that get at least a part.
async fn exchange(server: SocketAddr, question: &Question) -> std::io::Result<Message> {
    // Who can guess neither this nor the port cannot put a reply into our cache.
    let [a, b, ..] = SystemRandom.next_u64().to_ne_bytes();
    let query = question_message(question, u16::from_ne_bytes([a, b]));
    let bytes = query.to_vec().map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let reply = ask_udp(server, &query, &bytes).await?;
    if !reply.metadata.truncation {
        return Ok(reply);
    }
    // A part is better than nothing, where TCP is blocked.
    Ok(ask_tcp(server, &query, &bytes).await.unwrap_or(reply))
}

/// A socket of its own per question: its random port is half of what makes a forged reply unlikely.
async fn ask_udp(server: SocketAddr, query: &Message, bytes: &[u8]) -> std::io::Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; UDP_REPLY_SIZE_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(reply) = reply_to(query, &buffer[..length]) {
            return Ok(reply);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &Message, bytes: &[u8]) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).await?;
    reply_to(query, &reply).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// The same id and question, and a reply at all.
fn reply_to(query: &Message, bytes: &[u8]) -> Option<Message> {
    let reply = Message::from_vec(bytes).ok()?;
    let is_reply = reply.metadata.message_type == MessageType::Response
        && reply.metadata.id == query.metadata.id
        && reply.queries == query.queries;
    is_reply.then_some(reply)
}

#[cfg(test)]
mod tests {
    use rkube_apimachinery::clock::FakeClock;

    use super::*;

    #[test]
    fn name_servers_are_read_as_libc_reads_them() {
        let text =
            "# comment\nnameserver 192.0.2.1\nsearch example.org\nnameserver\tfe80::1%eth0\nnameserver nonsense\n";
        let servers: Vec<String> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[fe80::1]:53"]);
    }

    #[test]
    fn the_hosts_file_is_followed_and_our_own_address_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let clock = FakeClock::new(jiff::Timestamp::UNIX_EPOCH);
        let own = vec!["10.43.0.10".parse().unwrap()];
        let stub = StubDomain {
            domain: Name::from_ascii("corp.example.").unwrap(),
            servers: vec!["192.0.2.9:5353".parse().unwrap()],
        };
        let forwarder = Forwarder::new(path.clone(), own, vec![stub], clock.shared());
        let servers = |name: &str| {
            let (servers, _) = forwarder.servers(&Name::from_ascii(name).unwrap());
            servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(servers("example.org."), "");
        fs::write(&path, "nameserver 10.43.0.10\nnameserver 192.0.2.1\n").unwrap();
        clock.advance(RECHECK_INTERVAL);
        assert_eq!(servers("example.org."), "192.0.2.1:53");
        let new = folder.path().join("new");
        fs::write(&new, "nameserver 192.0.2.2\n").unwrap();
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        fs::File::options().write(true).open(&new).unwrap().set_modified(later).unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(servers("example.org."), "192.0.2.1:53");
        clock.advance(RECHECK_INTERVAL);
        assert_eq!(servers("example.org."), "192.0.2.2:53");
        assert_eq!(servers("www.corp.example."), "192.0.2.9:5353");
    }
}
