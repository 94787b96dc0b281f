//! How a client reaches an API server: over HTTP, or by a function call in the same process.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use rkube_api::StoredObject;
pub use rkube_api::resource::SharedResource;
use rkube_apimachinery::status::{ApiStatus, Reason};

/// A way to reach an API server with one identity.
///
/// # Guarantees
/// `send` passes the whole request chain: authentication, authorization, admission and audit apply to
/// in-process callers as to remote ones.
/// # Assumptions
/// Request paths are absolute (`/api/v1/...`), bodies JSON unless the request says otherwise.
pub trait Transport: Send + Sync + 'static {
    /// One request, one complete answer. A status of 400 and above comes back as `ClientError::Api`.
    fn send(&self, request: http::Request<Bytes>) -> BoxFuture<'_, Result<http::Response<Bytes>, ClientError>>;

    /// Streams objects and their changes. In one process the objects are the watch cache's own.
    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, ClientError>>;

    /// A whole list at one revision, items shared with the watch cache where that is in this process.
    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<ObjectList, ClientError>>;

    /// The server as metrics name it, `host:port`; nothing for one in this process.
    fn host(&self) -> &str {
        ""
    }
}

pub type SharedTransport = Arc<dyn Transport>;
pub type WatchStream = BoxStream<'static, Result<WatchEvent, ClientError>>;

/// What to list.
#[derive(Clone, Debug)]
pub struct ListRequest {
    pub resource: SharedResource,
    /// Empty for all namespaces and for cluster-scoped kinds.
    pub namespace: String,
    pub label_selector: String,
    pub field_selector: String,
    pub resource_version: String,
    pub resource_version_match: String,
    /// 0 for all.
    pub limit: u64,
    pub continue_token: String,
}

/// What to watch.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    pub resource: SharedResource,
    pub namespace: String,
    pub label_selector: String,
    pub field_selector: String,
    pub resource_version: String,
    /// Start with the current objects as `Added`, then a bookmark that says so.
    pub send_initial_events: bool,
    pub allow_bookmarks: bool,
    pub timeout_seconds: u32,
}

/// One page of objects.
#[derive(Clone, Debug)]
pub struct ObjectList {
    pub items: Vec<Arc<StoredObject>>,
    pub resource_version: String,
    pub continue_token: String,
}

/// A change, or a point in time.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    Added(Arc<StoredObject>),
    Modified(Arc<StoredObject>),
    /// The last state of an object, at the revision of its deletion.
    Deleted(Arc<StoredObject>),
    Bookmark {
        resource_version: String,
        initial_events_end: bool,
    },
}

/// Why a request gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's answer.
    #[error("{0}")]
    Api(ApiStatus),
    /// No answer. The request may have been carried out.
    #[error("requesting {path}")]
    Unreachable {
        path: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("building a request for {path}")]
    Request {
        path: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("decoding the answer for {path}")]
    Decode {
        path: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<ApiStatus> for ClientError {
    fn from(status: ApiStatus) -> Self {
        Self::Api(status)
    }
}

impl ClientError {
    pub fn status(&self) -> Option<&ApiStatus> {
        match self {
            Self::Api(status) => Some(status),
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(ApiStatus::is_not_found)
    }

    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(ApiStatus::is_conflict)
    }

    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(ApiStatus::is_already_exists)
    }

    pub fn is_forbidden(&self) -> bool {
        self.status().is_some_and(|status| status.is(Reason::Forbidden))
    }
}
