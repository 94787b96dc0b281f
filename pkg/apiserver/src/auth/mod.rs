//! The places of authentication, impersonation, authorization, audit and flow control in the request chain,
//! as interfaces, with implementations simple enough to bootstrap a cluster.

pub mod attributes;
pub mod basic;
pub mod bootstrap_token;
pub mod cluster;
pub mod flow;
pub mod impersonation;
mod legacy_token;
pub mod node;
pub mod request_header;
pub mod service_account;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::HeaderMap;
use rkube_apimachinery::status::ApiStatus;
use rkube_http::listener::ConnectionInfo;
use rkube_registry::UserInfo;

use crate::request_info::RequestInfo;
pub use attributes::Attributes;

/// What an authenticator may look at.
pub struct Credentials<'a> {
    pub headers: &'a HeaderMap,
    pub connection: Option<&'a ConnectionInfo>,
}

/// Who a request comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authenticated {
    pub user: UserInfo,
    /// The audiences a token is good for; empty where credentials have none.
    pub audiences: Vec<String>,
}

/// Tells who a request comes from.
pub trait Authenticator: Send + Sync + 'static {
    /// `None` when the request has no credentials this authenticator knows.
    ///
    /// # Errors
    /// Bad credentials, and no good ones beside them: the request is answered 401, never as anonymous.
    fn authenticate<'a>(
        &'a self,
        credentials: &'a Credentials<'a>,
    ) -> BoxFuture<'a, Result<Option<Authenticated>, AuthenticationError>>;

    /// For TokenReview. `None`: the token is not good.
    fn authenticate_token<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Authenticated>, AuthenticationError>>;
}

/// Why credentials are not good, for the log and for TokenReview; clients are told no more than `Unauthorized`.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthenticationError(pub String);

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow {
        reason: String,
    },
    /// No other authorizer is asked.
    Deny {
        reason: String,
    },
    NoOpinion {
        reason: String,
    },
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    pub fn reason(&self) -> &str {
        match self {
            Self::Allow { reason } | Self::Deny { reason } | Self::NoOpinion { reason } => reason,
        }
    }
}

/// What a user may do, for SelfSubjectRulesReview: the members of its status.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub resource_rules: Vec<serde_json::Value>,
    pub non_resource_rules: Vec<serde_json::Value>,
    pub incomplete: bool,
    /// Why it is incomplete.
    pub errors: Vec<String>,
}

/// Decides who may do what.
pub trait Authorizer: Send + Sync + 'static {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision>;

    fn rules<'a>(&'a self, user: &'a UserInfo, namespace: &'a str) -> BoxFuture<'a, Rules>;
}

/// Lets a user act as another.
pub trait Impersonation: Send + Sync + 'static {
    /// `Some` when the headers ask for it and the user may; the headers are removed.
    ///
    /// # Errors
    /// 403 when the user may not, 400 or 500 when the headers make no sense.
    fn impersonate<'a>(
        &'a self,
        headers: &'a mut HeaderMap,
        user: &'a UserInfo,
        authorizer: &'a Arc<dyn Authorizer>,
    ) -> BoxFuture<'a, Result<Option<UserInfo>, ApiStatus>>;
}

/// A stage of a request, as audit sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    RequestReceived,
    /// The head of a long-running answer has been sent.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

/// One stage of one request.
pub struct AuditEvent<'a> {
    pub id: &'a str,
    pub stage: Stage,
    pub uri: &'a str,
    pub info: &'a RequestInfo,
    pub user: &'a UserInfo,
    pub impersonated: Option<&'a UserInfo>,
    pub source: Option<std::net::SocketAddr>,
    pub user_agent: &'a str,
    pub received: jiff::Timestamp,
    pub now: jiff::Timestamp,
    /// From the response on.
    pub code: Option<u16>,
    pub annotations: &'a std::collections::BTreeMap<String, String>,
}

/// Records what happens. Must not block: it is called in the request's path.
pub trait Audit: Send + Sync + 'static {
    fn record(&self, event: &AuditEvent<'_>);
}

/// What flow control classifies a request by.
pub struct FlowRequest<'a> {
    pub info: &'a RequestInfo,
    pub user: &'a UserInfo,
}

/// Limits how much is done at once.
pub trait FlowControl: Send + Sync + 'static {
    /// Waits for a place. The place is given back when the permit is dropped.
    ///
    /// # Errors
    /// 429 with `Retry-After`.
    fn admit<'a>(&'a self, request: &'a FlowRequest<'a>) -> BoxFuture<'a, Result<Permit, ApiStatus>>;
}

/// A place among the requests under way, and what to tell the client of it.
#[derive(Default)]
pub struct Permit {
    /// Dropped at the end of the request.
    pub held: Option<Box<dyn Send + Sync>>,
    pub flow_schema_uid: String,
    pub priority_level_uid: String,
}
