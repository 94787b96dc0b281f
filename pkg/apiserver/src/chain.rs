//! The request chain: panic guard, request info, authentication, audit, impersonation, flow control,
//! authorization, deadline, and then whatever answers.
//!
//! Behaves as `DefaultBuildHandlerChain` of `k8s.io/apiserver/pkg/server/config.go`, v1.36.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use rkube_apimachinery::status::ApiStatus;
use rkube_http::body::Body;
use rkube_http::listener::ConnectionInfo;
use rkube_registry::context::CreateAuthorizer;
use rkube_registry::{Attributes as AdmissionAttributes, RequestContext, UserInfo};
use tracing::{debug, error};
use uuid::Uuid;

use crate::auth::basic::{anonymous, authenticated};
use crate::auth::{
    Attributes, AuditEvent, Authorizer, Credentials, Decision, FlowRequest, Permit, Stage, request_header,
};
use crate::health;
use crate::metrics::Tracked;
use crate::query::Query;
use crate::request_info::RequestInfo;
use crate::respond;
use crate::scope::{Scope, error_output, user_agent};
use crate::server::Inner;

/// Names the request in audit logs.
const AUDIT_ID: http::HeaderName = http::HeaderName::from_static("audit-id");
const FLOW_SCHEMA: http::HeaderName = http::HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const PRIORITY_LEVEL: http::HeaderName = http::HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// Longest id a client may give its request.
const AUDIT_ID_BYTES_MAX: usize = 64;
const FIELD_MANAGER_BYTES_MAX: usize = 128;

/// A request that passed the chain.
pub(crate) struct Passed {
    pub(crate) scope: Scope,
    pub(crate) permit: Permit,
}

/// What audit and metrics need at the end.
struct Record {
    id: String,
    uri: String,
    info: RequestInfo,
    user: UserInfo,
    impersonated: Option<UserInfo>,
    source: Option<std::net::SocketAddr>,
    user_agent: String,
    received: jiff::Timestamp,
}

impl Inner {
    /// Answers any request, whatever happens.
    pub(crate) async fn serve(self: Arc<Self>, request: Request<Body>, user: Option<UserInfo>) -> Response<Body> {
        let started = self.clock.monotonic();
        let received = self.clock.now();
        let id = audit_id(&request);
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let mut response = match RequestInfo::new(&method, &uri) {
            Err(error) => {
                let output = error_output(request.headers(), &uri);
                respond::failure(&ApiStatus::bad_request(error.to_string()), output)
            }
            Ok(info) => {
                let known = info.is_resource && self.catalog.load().find(&info.gvr()).is_some();
                let tracked = self.metrics.begin(&info, known);
                let record = Record {
                    id: id.clone(),
                    uri: uri.to_string(),
                    info: info.clone(),
                    user: UserInfo::default(),
                    impersonated: None,
                    source: request.extensions().get::<Arc<ConnectionInfo>>().map(|connection| connection.remote),
                    user_agent: user_agent(request.headers()).to_owned(),
                    received,
                };
                Arc::clone(&self).guarded(request, info, user, record, tracked, started).await
            }
        };
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(&id) {
            headers.insert(AUDIT_ID, value);
        }
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        response
    }

    async fn guarded(
        self: Arc<Self>,
        request: Request<Body>,
        info: RequestInfo,
        user: Option<UserInfo>,
        mut record: Record,
        tracked: Tracked,
        started: Duration,
    ) -> Response<Body> {
        let is_long_running = info.is_long_running();
        let output = error_output(request.headers(), request.uri());
        let is_dry_run = Query::of(request.uri()).get("dryRun").is_some_and(|value| !value.is_empty());
        let limit = match Query::of(request.uri()).timeout() {
            Ok(asked) => asked.map_or(self.request_timeout, |asked| asked.min(self.request_timeout)),
            Err(status) => return respond::failure(&status, output),
        };
        let deadline = (!is_long_running).then(|| started + limit);
        let answer = AssertUnwindSafe(self.pass_and_answer(request, info, user, deadline, &mut record)).catch_unwind();
        let result = if is_long_running {
            Some(answer.await)
        } else {
            tokio::select! {
                biased;
                result = answer => Some(result),
                () = self.clock.sleep(limit) => None,
            }
        };
        let (mut response, permit) = match result {
            Some(Ok(answered)) => answered,
            Some(Err(panic)) => {
                self.metrics.panicked();
                error!(path = record.info.path, panic = panic_text(panic.as_ref()), "A request's handler panicked");
                self.audit(&record, Stage::Panic, Some(500), &Default::default());
                (panicked(), Permit::default())
            }
            None => {
                self.metrics.terminated(&tracked, 504);
                debug!(path = record.info.path, "A request took too long");
                let text = "request did not complete within the allotted timeout";
                (respond::failure(&ApiStatus::timeout(text, 0), output), Permit::default())
            }
        };
        let code = response.status().as_u16();
        self.metrics.answered(&tracked, code, is_dry_run, self.clock.monotonic().saturating_sub(started));
        add_uid(&mut response, &FLOW_SCHEMA, &permit.flow_schema_uid);
        add_uid(&mut response, &PRIORITY_LEVEL, &permit.priority_level_uid);
        if response.body().as_bytes().is_some() {
            return response;
        }
        // A stream holds its place, and is counted, until it ends.
        let (head, body) = response.into_parts();
        let held = (permit, tracked);
        let body = Body::stream(body.into_stream().map(move |chunk| {
            let _held = &held;
            chunk
        }));
        Response::from_parts(head, body)
    }

    async fn pass_and_answer(
        self: &Arc<Self>,
        mut request: Request<Body>,
        info: RequestInfo,
        user: Option<UserInfo>,
        deadline: Option<Duration>,
        record: &mut Record,
    ) -> (Response<Body>, Permit) {
        let output = error_output(request.headers(), request.uri());
        let passed = match self.pass(&mut request, info, user, deadline, record).await {
            Ok(passed) => passed,
            Err(status) => {
                self.audit(record, Stage::ResponseComplete, Some(status.code()), &Default::default());
                return (respond::failure(&status, output), Permit::default());
            }
        };
        let context = Arc::clone(&passed.scope.context);
        let is_long_running = passed.scope.info.is_long_running();
        let mut response = Arc::clone(self).answer(passed.scope, request).await;
        respond::add_warnings(response.headers_mut(), &context.take_warnings());
        let stage = if is_long_running { Stage::ResponseStarted } else { Stage::ResponseComplete };
        self.audit(record, stage, Some(response.status().as_u16()), &context.take_audit_annotations());
        (response, passed.permit)
    }

    /// Everything before the answer.
    async fn pass(
        self: &Arc<Self>,
        request: &mut Request<Body>,
        info: RequestInfo,
        user: Option<UserInfo>,
        deadline: Option<Duration>,
        record: &mut Record,
    ) -> Result<Passed, ApiStatus> {
        let user = match user {
            Some(user) => user,
            None => {
                let connection = request.extensions().get::<Arc<ConnectionInfo>>().cloned();
                let known = self.authenticate(request.headers(), connection.as_deref()).await;
                // HTTP/2 is costly to serve and easy to abuse (CVE-2023-44487): who guesses pays for the next guess with a
                // handshake.
                // Differs from upstream: the anonymous keep their connection. Clients there are that send the next
                // request before they see its end, and fail; nodes that join read what everyone may.
                if known.is_err()
                    && let Some(connection) = connection
                {
                    connection.last_requests.cancel();
                }
                known?
            }
        };
        request.headers_mut().remove(header::AUTHORIZATION);
        request_header::clear(request.headers_mut());
        record.user = user.clone();
        self.audit(record, Stage::RequestReceived, None, &Default::default());
        let impersonated = self.impersonation.impersonate(request.headers_mut(), &user, &self.authorizer).await?;
        let user = match impersonated {
            Some(other) => {
                record.impersonated = Some(other.clone());
                authenticated(other)
            }
            None => user,
        };
        let permit = if info.is_long_running() {
            Permit::default()
        } else {
            self.flow.admit(&FlowRequest { info: &info, user: &user }).await?
        };
        self.authorize(&Attributes::of(&info, &user)).await?;
        let scope = self.scope(request, info, user, deadline);
        Ok(Passed { scope, permit })
    }

    fn scope(&self, request: &Request<Body>, info: RequestInfo, user: UserInfo, deadline: Option<Duration>) -> Scope {
        let mut context = RequestContext::new(user.clone(), Arc::clone(&self.admission));
        context.default_field_manager = field_manager(user_agent(request.headers()));
        context.deadline = deadline;
        if matches!(info.verb, "update" | "patch") {
            let authorizer = Arc::clone(&self.authorizer);
            context.create_authorizer = Some(Arc::new(MayCreate { authorizer, user: user.clone() }));
        }
        Scope {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
            info,
            user,
            context: Arc::new(context),
        }
    }

    async fn authenticate(
        &self,
        headers: &HeaderMap,
        connection: Option<&ConnectionInfo>,
    ) -> Result<UserInfo, ApiStatus> {
        let credentials = Credentials { headers, connection };
        match self.authenticator.authenticate(&credentials).await {
            Ok(Some(found)) => Ok(authenticated(found.user)),
            Ok(None) if self.anonymous => Ok(anonymous()),
            Ok(None) => Err(ApiStatus::unauthorized()),
            Err(error) => {
                debug!(%error, "Unable to authenticate the request");
                Err(ApiStatus::unauthorized())
            }
        }
    }

    /// # Errors
    /// 403 with upstream's text.
    pub(crate) async fn authorize(&self, attributes: &Attributes) -> Result<(), ApiStatus> {
        match self.authorizer.authorize(attributes).await {
            Decision::Allow { .. } => Ok(()),
            Decision::Deny { reason } | Decision::NoOpinion { reason } => Err(attributes.forbidden(&reason)),
        }
    }

    /// What [`Self::serve`] does before the answer, for callers in this process that want objects, not bytes.
    pub(crate) async fn pass_in_process(
        self: &Arc<Self>,
        request: &mut Request<Body>,
        user: &UserInfo,
    ) -> Result<(Passed, Tracked), ApiStatus> {
        let info = RequestInfo::new(request.method(), request.uri())
            .map_err(|error| ApiStatus::bad_request(error.to_string()))?;
        let tracked = self.metrics.begin(&info, true);
        let mut record = Record {
            id: audit_id(request),
            uri: request.uri().to_string(),
            info: info.clone(),
            user: UserInfo::default(),
            impersonated: None,
            source: None,
            user_agent: user_agent(request.headers()).to_owned(),
            received: self.clock.now(),
        };
        let deadline = (!info.is_long_running()).then(|| self.clock.monotonic() + self.request_timeout);
        let passed = self.pass(request, info, Some(user.clone()), deadline, &mut record).await?;
        Ok((passed, tracked))
    }

    fn audit(
        &self,
        record: &Record,
        stage: Stage,
        code: Option<u16>,
        annotations: &std::collections::BTreeMap<String, String>,
    ) {
        self.audit.record(&AuditEvent {
            id: &record.id,
            stage,
            uri: &record.uri,
            info: &record.info,
            user: &record.user,
            impersonated: record.impersonated.as_ref(),
            source: record.source,
            user_agent: &record.user_agent,
            received: record.received,
            now: self.clock.now(),
            code,
            annotations,
        });
    }
}

/// A PUT or an apply that creates needs the verb `create` too.
struct MayCreate {
    authorizer: Arc<dyn Authorizer>,
    user: UserInfo,
}

impl CreateAuthorizer for MayCreate {
    fn authorize_create<'a>(&'a self, attributes: &'a AdmissionAttributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move {
            let asked = Attributes {
                user: self.user.clone(),
                verb: "create".to_owned(),
                is_resource: true,
                group: attributes.resource.group.to_string(),
                version: attributes.resource.version.to_string(),
                namespace: attributes.namespace.to_string(),
                resource: attributes.resource.plural.to_string(),
                subresource: attributes.subresource.clone(),
                name: attributes.name.to_string(),
                ..Attributes::default()
            };
            match self.authorizer.authorize(&asked).await {
                Decision::Allow { .. } => Ok(()),
                Decision::Deny { reason } | Decision::NoOpinion { reason } => Err(asked.forbidden(&reason)),
            }
        })
    }
}

/// The client's id for its request, or a new one.
fn audit_id(request: &Request<Body>) -> String {
    let given = request.headers().get(AUDIT_ID).and_then(|value| value.to_str().ok());
    match given.filter(|id| !id.is_empty() && id.len() <= AUDIT_ID_BYTES_MAX) {
        Some(id) => id.to_owned(),
        None => Uuid::new_v4().to_string(),
    }
}

/// The user agent up to its first slash, printable characters only.
fn field_manager(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or_default();
    let mut out = String::new();
    for character in name.chars().filter(|character| !character.is_control()) {
        if out.len() + character.len_utf8() > FIELD_MANAGER_BYTES_MAX {
            break;
        }
        out.push(character);
    }
    out
}

fn add_uid(response: &mut Response<Body>, name: &http::HeaderName, uid: &str) {
    if let Ok(value) = HeaderValue::from_str(uid)
        && !uid.is_empty()
    {
        response.headers_mut().insert(name, value);
    }
}

fn panicked() -> Response<Body> {
    let text = "This request caused apiserver to panic. Look in the logs for details.\n".to_owned();
    health::text(StatusCode::INTERNAL_SERVER_ERROR, text)
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}
