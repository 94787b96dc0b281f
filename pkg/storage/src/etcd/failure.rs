//! What etcd's and the transport's errors mean: whether to ask again, and whether a write may have happened.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::StorageError;
use crate::types::MAX_VALUE_BYTES;

/// gRPC status codes, as numbers of the protocol.
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

#[derive(Debug)]
pub(super) enum Failure {
    Compacted,
    Future,
    TooLarge,
    NoSpace(etcd_client::Error),
    /// etcd has refused it before it began, for now.
    Refused(etcd_client::Error),
    /// etcd has refused it and always will.
    Rejected(etcd_client::Error),
    /// The connection, the leader or the answer is lost.
    Lost(etcd_client::Error),
    TimedOut,
}

impl Failure {
    pub(super) fn new(error: etcd_client::Error) -> Self {
        let etcd_client::Error::GRpcStatus(status) = &error else {
            return Self::Lost(error);
        };
        let (number, message) = (status.code() as i32, status.message());
        match number {
            code::OUT_OF_RANGE if message.contains("has been compacted") => Self::Compacted,
            code::OUT_OF_RANGE if message.contains("future revision") => Self::Future,
            code::INVALID_ARGUMENT if message.contains("request is too large") => Self::TooLarge,
            code::RESOURCE_EXHAUSTED if message.contains("database space exceeded") => Self::NoSpace(error),
            code::RESOURCE_EXHAUSTED if message.contains("too many requests") => Self::Refused(error),
            // Raised before the request is proposed. "leader changed" and "timed out" are not.
            _ if message.contains("etcdserver: no leader") => Self::Refused(error),
            code::INVALID_ARGUMENT
            | code::PERMISSION_DENIED
            | code::UNAUTHENTICATED
            | code::UNIMPLEMENTED
            | code::FAILED_PRECONDITION => Self::Rejected(error),
            _ if was_never_sent(&error) => Self::Refused(error),
            _ => Self::Lost(error),
        }
    }

    /// Whether the same request may succeed later.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Lost(_) | Self::TimedOut)
    }

    /// Whether a write may be repeated, since it has not happened and will not.
    pub(super) fn certainly_not_done(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    pub(super) fn of_read(self) -> StorageError {
        match self {
            Self::Refused(error) | Self::Rejected(error) | Self::Lost(error) | Self::NoSpace(error) => {
                unavailable(error)
            }
            Self::TimedOut => StorageError::Unavailable(Arc::new(timed_out())),
            // Reads without a revision cannot fail so.
            Self::Compacted | Self::Future | Self::TooLarge => {
                StorageError::Corrupt { detail: format!("etcd answered {self:?} to a read of the newest revision") }
            }
        }
    }

    pub(super) fn of_write(self, size: usize) -> StorageError {
        match self {
            Self::TooLarge => StorageError::TooLarge { what: "value", size, limit: MAX_VALUE_BYTES },
            Self::NoSpace(error) => StorageError::Full(Some(Arc::new(Said(error)))),
            Self::Lost(error) => StorageError::Unknown(Arc::new(Said(error))),
            Self::TimedOut => StorageError::Unknown(Arc::new(timed_out())),
            other => other.of_read(),
        }
    }
}

pub(super) fn unavailable(error: etcd_client::Error) -> StorageError {
    StorageError::Unavailable(Arc::new(Said(error)))
}

/// What etcd's client reports, for a person: the message and the innermost cause, without its own workings.
#[derive(Debug)]
struct Said(etcd_client::Error);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let etcd_client::Error::GRpcStatus(status) = &self.0 else { return self.0.fmt(f) };
        f.write_str(status.message())?;
        let mut innermost = status.source();
        while let Some(cause) = innermost.and_then(std::error::Error::source) {
            innermost = Some(cause);
        }
        match innermost.map(ToString::to_string) {
            Some(cause) if !status.message().contains(&cause) => write!(f, ": {cause}"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Said {}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "etcd did not answer in time")
}

/// Whether no connection could be made at all.
fn was_never_sent(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}
