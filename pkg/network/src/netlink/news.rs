//! What the kernel tells about network devices without being asked.
//!
//! Invariant: it says that something changed, never what: a burst may be lost, so whoever waits looks again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use super::socket::NetlinkError;

/// `RTMGRP_LINK`
const LINKS: u32 = 1;
/// Messages are thrown away, so what does not fit is cut.
const MESSAGE_BYTES: usize = 1 << 10;

/// Changes of devices in the network namespace of the thread that opened it, from then on.
#[derive(Debug)]
pub struct LinkNews(OwnedFd);

impl LinkNews {
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |errno: Errno| NetlinkError::Open(errno.into());
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute).map_err(failed)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, LINKS)).map_err(failed)?;
        Ok(Self(fd))
    }

    /// Returns when there was news since the last call, or after `limit`.
    pub fn wait(&self, limit: Duration) -> Result<(), NetlinkError> {
        let failed = |errno: Errno| NetlinkError::Refused {
            action: "waiting for a change of network devices",
            source: io::Error::from(errno),
        };
        // Rounded up: a wait of less than a millisecond is none, and would be repeated without a pause.
        let limit = PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], limit) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let mut buffer = [0; MESSAGE_BYTES];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EAGAIN) => return Ok(()),
                // More happened than the kernel keeps, which is news, too.
                Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}
