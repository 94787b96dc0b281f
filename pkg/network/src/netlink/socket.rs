//! A blocking netlink socket: requests with acknowledgement, dumps, and netfilter's batches.
//!
//! The kernel answers while the request is being sent, so nothing here waits for long.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout, SndBufForce};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::wire::{ACK, DUMP, Message, Replies, Reply, u32_at};

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
/// A dump was interrupted by a change and is not consistent.
const FLAG_INTERRUPTED: u16 = 0x10;
/// More than the kernel ever puts in one datagram of a dump (32 KiB).
const DATAGRAM_MAX: usize = 1 << 16;
/// A batch goes out in one piece: ten thousand Services are about 10 MB.
const BATCH_BYTES_MAX: usize = 256 << 20;
/// How often a dump is begun anew because something changed under it.
const DUMP_ATTEMPTS: u32 = 16;
/// The kernel answers at once; this only keeps a bug from hanging the caller.
const RECEIVE_TIMEOUT_SECONDS: i64 = 10;

/// Why the kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("opening a netlink socket")]
    Open(#[source] io::Error),
    #[error("{action}")]
    Send {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    /// The kernel's answer to a request.
    #[error("{action}")]
    Refused {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    /// The `index`th message of a batch was refused, and with it the batch.
    #[error("{action}: message {index}")]
    Batch {
        action: &'static str,
        index: usize,
        #[source]
        source: io::Error,
    },
}

impl NetlinkError {
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Open(source)
            | Self::Send { source, .. }
            | Self::Refused { source, .. }
            | Self::Batch { source, .. } => source.raw_os_error(),
        }
    }

    pub fn is(&self, errno: Errno) -> bool {
        self.errno() == Some(errno as i32)
    }

    /// The thing is there already.
    pub fn exists(&self) -> bool {
        self.is(Errno::EEXIST)
    }

    /// The thing, or what it hangs on, is not there.
    pub fn missing(&self) -> bool {
        [Errno::ENOENT, Errno::ENODEV, Errno::ESRCH, Errno::EADDRNOTAVAIL].into_iter().any(|errno| self.is(errno))
    }
}

/// Ignores that a thing to be removed is gone already.
pub fn gone(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.missing() => Ok(()),
        other => other,
    }
}

/// A socket in the network namespace of the thread that opened it, for ever.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Links, addresses, routes and neighbours.
    pub fn route() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// nftables and connection tracking.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let failed = |errno: Errno| NetlinkError::Open(errno.into());
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).map_err(failed)?;
        // Without the capability for more, the defaults do for small requests.
        let _ = setsockopt(&fd, SndBufForce, &BATCH_BYTES_MAX);
        let _ = setsockopt(&fd, RcvBufForce, &(16 << 20));
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(RECEIVE_TIMEOUT_SECONDS)).map_err(failed)?;
        Ok(Self { fd, sequence: 0 })
    }

    fn send(&self, action: &'static str, bytes: &[u8]) -> Result<(), NetlinkError> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.fd.as_raw_fd(), bytes, &kernel, MsgFlags::empty())
            .map(drop)
            .map_err(|errno| NetlinkError::Send { action, source: errno.into() })
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// A request that changes something, and the kernel's word that it did.
    pub fn call(&mut self, action: &'static str, message: Message) -> Result<(), NetlinkError> {
        let sequence = self.next_sequence();
        self.send(action, &message.finish(ACK, sequence))?;
        self.answers(action, sequence, |_| {}).map(drop)
    }

    /// A question with one answer.
    pub fn get<T>(
        &mut self,
        action: &'static str,
        message: Message,
        mut read: impl FnMut(Reply<'_>) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        let sequence = self.next_sequence();
        let mut found = None;
        self.send(action, &message.finish(ACK, sequence))?;
        self.answers(action, sequence, |reply| found = read(reply).or(found.take()))?;
        Ok(found)
    }

    /// All things of a kind.
    pub fn dump<T>(
        &mut self,
        action: &'static str,
        message: &Message,
        mut read: impl FnMut(Reply<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.next_sequence();
            let mut found = Vec::new();
            self.send(action, &message.clone().finish(DUMP, sequence))?;
            if self.answers(action, sequence, |reply| found.extend(read(reply)))? {
                return Ok(found);
            }
        }
        Err(NetlinkError::Refused { action, source: io::ErrorKind::Interrupted.into() })
    }

    /// Reads until the answer to `sequence` is complete. False if it is not consistent.
    fn answers(
        &self,
        action: &'static str,
        sequence: u32,
        mut each: impl FnMut(Reply<'_>),
    ) -> Result<bool, NetlinkError> {
        let mut buffer = vec![0; DATAGRAM_MAX];
        let mut consistent = true;
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(NetlinkError::Refused { action, source: errno.into() }),
            };
            for reply in Replies(buffer.get(..length).unwrap_or_default()) {
                // Left over from a request that was given up.
                if reply.sequence != sequence {
                    continue;
                }
                consistent &= reply.flags & FLAG_INTERRUPTED == 0;
                match reply.kind {
                    KIND_ERROR | KIND_DONE => {
                        return match error_of(reply) {
                            Some(source) => Err(NetlinkError::Refused { action, source }),
                            None => Ok(consistent),
                        };
                    }
                    _ => each(reply),
                }
            }
        }
    }

    /// All of these or none. The messages must begin and end with netfilter's batch markers.
    ///
    /// The kernel works while the batch is being sent and says nothing if all went well: when the send has
    /// returned, what there is to read are errors.
    pub fn batch(&mut self, action: &'static str, messages: Vec<Message>) -> Result<(), NetlinkError> {
        let first = self.sequence.wrapping_add(1).max(1);
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::len).sum());
        for message in messages {
            let sequence = self.next_sequence();
            bytes.extend_from_slice(&message.finish(0, sequence));
        }
        self.send(action, &bytes)?;
        let mut buffer = vec![0; DATAGRAM_MAX];
        let mut outcome = Ok(());
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return outcome,
                Err(Errno::EINTR) => continue,
                Err(errno) => return outcome.and(Err(NetlinkError::Send { action, source: errno.into() })),
            };
            for reply in Replies(buffer.get(..length).unwrap_or_default()) {
                if let (KIND_ERROR, Some(source), true) = (reply.kind, error_of(reply), outcome.is_ok()) {
                    let index = reply.sequence.wrapping_sub(first) as usize;
                    outcome = Err(NetlinkError::Batch { action, index, source });
                }
            }
        }
    }
}

/// The error an answer carries. `NLMSG_ERROR` with zero is an acknowledgement.
fn error_of(reply: Reply<'_>) -> Option<io::Error> {
    match u32_at(reply.body, 0).map(u32::cast_signed) {
        Some(code) if code < 0 => Some(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => None,
    }
}
