//! One request on its way through the server: what it is about, who sends it, how to answer it.

use std::sync::Arc;

use http::{HeaderMap, Method};
use rkube_api::resource::SharedResource;
use rkube_registry::{RequestContext, UserInfo};

use crate::negotiation::Output;
use crate::query::Query;
use crate::request_info::RequestInfo;

/// What handlers know of a request besides its body.
pub(crate) struct Scope {
    pub(crate) method: Method,
    pub(crate) uri: http::Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) info: RequestInfo,
    pub(crate) user: UserInfo,
    pub(crate) context: Arc<RequestContext>,
}

/// A request for a resource that is served.
pub(crate) struct Target {
    pub(crate) scope: Scope,
    pub(crate) row: SharedResource,
}

impl Target {
    pub(crate) fn query(&self) -> Query<'_> {
        self.scope.query()
    }
}

impl Scope {
    pub(crate) fn query(&self) -> Query<'_> {
        Query::of(&self.uri)
    }

    /// The form for errors: whatever can be had of what the client accepts, JSON otherwise.
    pub(crate) fn error_output(&self) -> Output {
        error_output(&self.headers, &self.uri)
    }
}

pub(crate) fn error_output(headers: &HeaderMap, uri: &http::Uri) -> Output {
    Output::negotiate_plain(headers, &Query::of(uri)).unwrap_or_else(|_| Output::plain())
}

pub(crate) fn user_agent(headers: &HeaderMap) -> &str {
    headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
