//! The API server as one value: configuration in, a handler and in-process transports out.
//!
//! Whoever composes a process gives the registry, the identity parts and the way to nodes, puts the server
//! behind a listener, and asks it for transports for the components in the same process.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use rkube_api::resource::SharedResource;
use rkube_apimachinery::clock::SharedClock;
use rkube_client::transport::SharedTransport;
use rkube_http::body::Body;
use rkube_http::listener::Handler;
use rkube_registry::{Admission, Registry, UserInfo};
use tokio_util::sync::CancellationToken;

use crate::auth::{Audit, Authenticator, Authorizer, FlowControl, Impersonation};
use crate::catalog::Catalog;
use crate::health::{Check, Checks, READINESS};
use crate::metrics::{Metrics, SharedRegistry};
use crate::openapi::OpenApi;
use crate::proxy::Nodes;
use crate::transport::InProcess;

/// The version clients see.
pub const GIT_VERSION: &str = "v1.36.2+rkube.1";
/// Non-watch requests end after this, as upstream's `--request-timeout`.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What a server is made of.
pub struct Config {
    pub registry: Arc<Registry>,
    pub clock: SharedClock,
    /// Built-in rows, those never stored included, in discovery's order.
    pub resources: Vec<SharedResource>,
    pub authenticator: Arc<dyn Authenticator>,
    /// Requests without credentials are `system:anonymous`; otherwise they are refused.
    pub anonymous: bool,
    pub authorizer: Arc<dyn Authorizer>,
    pub impersonation: Arc<dyn Impersonation>,
    pub audit: Arc<dyn Audit>,
    pub flow: Arc<dyn FlowControl>,
    pub admission: Arc<dyn Admission>,
    pub nodes: Arc<dyn Nodes>,
    pub openapi: Arc<dyn OpenApi>,
    pub metrics: SharedRegistry,
    /// Besides `ping` and `shutdown`.
    pub checks: Vec<Check>,
    /// Where clients reach the server, as `host:port`, for `/api`.
    pub advertise_address: String,
    /// What answers paths and kinds the server itself does not know.
    pub extensions: Extensions,
    pub request_timeout: Duration,
}

/// Answers requests the server passes on.
pub trait Extension: Send + Sync + 'static {
    /// `Err` gives the request back unanswered.
    fn call(&self, request: ExtensionRequest) -> BoxFuture<'_, Result<Response<Body>, ExtensionRequest>>;
}

/// An authenticated and authorized request.
pub struct ExtensionRequest {
    pub request: Request<Body>,
    pub user: UserInfo,
    pub info: crate::request_info::RequestInfo,
}

/// Documents and handlers that other parts contribute.
#[derive(Clone, Default)]
pub struct Extensions {
    /// Asked before the server's own resources: aggregated APIs.
    pub before: Vec<Arc<dyn Extension>>,
    /// Asked for what nothing else knows.
    pub after: Vec<Arc<dyn Extension>>,
    /// `/openid/v1/jwks` and `/.well-known/openid-configuration`.
    pub openid: Option<OpenId>,
}

/// The public half of service account tokens.
#[derive(Clone)]
pub struct OpenId {
    pub configuration: Bytes,
    pub keys: Bytes,
}

/// The server. Clones share everything.
#[derive(Clone)]
pub struct ApiServer(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) registry: Arc<Registry>,
    pub(crate) clock: SharedClock,
    pub(crate) builtin: Vec<SharedResource>,
    pub(crate) catalog: ArcSwap<Catalog>,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) anonymous: bool,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) impersonation: Arc<dyn Impersonation>,
    pub(crate) audit: Arc<dyn Audit>,
    pub(crate) flow: Arc<dyn FlowControl>,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) nodes: Arc<dyn Nodes>,
    pub(crate) openapi: Arc<dyn OpenApi>,
    pub(crate) metrics: Metrics,
    pub(crate) metrics_registry: SharedRegistry,
    pub(crate) checks: Checks,
    pub(crate) advertise_address: String,
    pub(crate) extensions: Extensions,
    pub(crate) request_timeout: Duration,
    /// Cancelled when the server stops: readiness fails, watches end.
    pub(crate) stopping: CancellationToken,
}

impl ApiServer {
    pub fn new(config: Config) -> Self {
        let stopping = CancellationToken::new();
        let signal = stopping.clone();
        let mut checks = vec![Check::ping()];
        checks.extend(config.checks);
        checks.push(Check::new("shutdown", READINESS, move || {
            if signal.is_cancelled() { Err("process is shutting down".to_owned()) } else { Ok(()) }
        }));
        let metrics = Metrics::register(&config.metrics);
        config.registry.register_metrics(&mut config.metrics.lock());
        let catalog = Catalog::new(config.resources.clone(), rkube_api::groups());
        Self(Arc::new(Inner {
            registry: config.registry,
            clock: config.clock,
            builtin: config.resources,
            catalog: ArcSwap::new(catalog),
            authenticator: config.authenticator,
            anonymous: config.anonymous,
            authorizer: config.authorizer,
            impersonation: config.impersonation,
            audit: config.audit,
            flow: config.flow,
            admission: config.admission,
            nodes: config.nodes,
            openapi: config.openapi,
            metrics,
            metrics_registry: config.metrics,
            checks: Checks::new(checks),
            advertise_address: config.advertise_address,
            extensions: config.extensions,
            request_timeout: config.request_timeout,
            stopping,
        }))
    }

    /// A transport for a component in this process, which acts as `user`. It passes the whole chain but
    /// authentication.
    pub fn transport_as(&self, user: UserInfo) -> SharedTransport {
        Arc::new(InProcess::new(self.clone(), user))
    }

    /// Serves these rows besides the built-in ones: custom resources.
    pub fn set_custom_resources(&self, rows: &[SharedResource]) {
        let all = self.0.builtin.iter().chain(rows).cloned().collect();
        self.0.catalog.store(Catalog::new(all, rkube_api::groups()));
    }

    /// Rows served now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.0.catalog.load_full()
    }

    /// Whether every readiness check passes.
    pub fn is_ready(&self) -> bool {
        self.0.checks.passes("readyz")
    }

    /// Makes `/readyz` fail and ends watches and proxied streams, so that a listener can drain.
    pub fn stop(&self) {
        self.0.stopping.cancel();
    }

    /// Cancelled by [`Self::stop`].
    pub fn stopping(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// Answers a request as `user`, past authentication.
    pub fn call_as(&self, request: Request<Body>, user: UserInfo) -> BoxFuture<'static, Response<Body>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.serve(request, Some(user)).await })
    }
}

impl Handler for ApiServer {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.serve(request, None).await })
    }
}
