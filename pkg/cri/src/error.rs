//! Why a runtime gave no answer.

use std::fmt;
use std::time::Duration;

/// gRPC's codes, under the names its Go library prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Canceled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl From<tonic::Code> for Code {
    fn from(code: tonic::Code) -> Self {
        match code {
            tonic::Code::Cancelled => Self::Canceled,
            tonic::Code::Ok | tonic::Code::Unknown => Self::Unknown,
            tonic::Code::InvalidArgument => Self::InvalidArgument,
            tonic::Code::DeadlineExceeded => Self::DeadlineExceeded,
            tonic::Code::NotFound => Self::NotFound,
            tonic::Code::AlreadyExists => Self::AlreadyExists,
            tonic::Code::PermissionDenied => Self::PermissionDenied,
            tonic::Code::ResourceExhausted => Self::ResourceExhausted,
            tonic::Code::FailedPrecondition => Self::FailedPrecondition,
            tonic::Code::Aborted => Self::Aborted,
            tonic::Code::OutOfRange => Self::OutOfRange,
            tonic::Code::Unimplemented => Self::Unimplemented,
            tonic::Code::Internal => Self::Internal,
            tonic::Code::Unavailable => Self::Unavailable,
            tonic::Code::DataLoss => Self::DataLoss,
            tonic::Code::Unauthenticated => Self::Unauthenticated,
        }
    }
}

/// A call that failed. The text of a status is the one users know from kubelet events.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("rpc error: code = {code} desc = {message}")]
    Status { call: &'static str, code: Code, message: String },
    #[error("rpc error: code = DeadlineExceeded desc = {call} gave no answer within {}s", limit.as_secs())]
    Timeout { call: &'static str, limit: Duration },
    #[error("runtime endpoint {endpoint:?} is not a Unix socket path")]
    Endpoint { endpoint: String },
    /// The answer lacks a part the protocol demands.
    #[error("{call} answered without {missing}")]
    Incomplete { call: &'static str, missing: &'static str },
}

impl RuntimeError {
    pub(crate) fn status(call: &'static str, status: &tonic::Status) -> Self {
        let mut message = status.message().to_owned();
        // "transport error" alone tells nobody that the socket is missing; the causes do.
        let mut source = std::error::Error::source(status);
        while let Some(cause) = source {
            let text = cause.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self::Status { call, code: status.code().into(), message }
    }

    /// A status as a runtime would send it, for fakes.
    pub fn new(call: &'static str, code: Code, message: impl Into<String>) -> Self {
        Self::Status { call, code, message: message.into() }
    }

    pub fn code(&self) -> Code {
        match self {
            Self::Status { code, .. } => *code,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::Endpoint { .. } => Code::InvalidArgument,
            Self::Incomplete { .. } => Code::Internal,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.code() == Code::NotFound
    }

    pub fn is_unimplemented(&self) -> bool {
        self.code() == Code::Unimplemented
    }

    /// The runtime's own words, without the code.
    pub fn message(&self) -> String {
        match self {
            Self::Status { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}
