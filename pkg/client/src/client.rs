//! One identity's way into the API: builds requests, retries what the server asks to retry, decodes answers.
//!
//! Behaves as `k8s.io/client-go/rest` (`request.go`, `with_retry.go`), v1.36.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rkube_api::Kind;
use rkube_api::resource::{Resource, SharedResource};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::SharedRandom;
use rkube_apimachinery::schema::TypeId;
use serde_json::Value;

use crate::api::{Api, DynamicApi};
use crate::request_metrics::requests;
use crate::transport::{ClientError, ListRequest, ObjectList, SharedTransport, WatchRequest, WatchStream};

/// How often one request is sent again because the server said so.
const RETRIES_MAX: u32 = 10;
/// The longest a `Retry-After` is honoured; a larger one is a server's mistake and must not stop a component.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// One try, answer included. The server's own limit is 60 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(70);

/// What may stand unescaped in a path segment or a query value.
const UNESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A client of the API with one identity. Clones share everything.
///
/// # Guarantees
/// A request that the server refused with `Retry-After` (429, 5xx) is sent again, at most ten times.
/// A read that got no answer is sent again; a write is not, because it may have been carried out.
#[derive(Clone)]
pub struct Client {
    transport: SharedTransport,
    shared: Arc<Shared>,
    user_agent: HeaderValue,
    timeout: Duration,
}

struct Shared {
    clock: SharedClock,
    random: SharedRandom,
}

impl Client {
    pub fn new(transport: SharedTransport, clock: SharedClock, random: SharedRandom) -> Self {
        Self {
            transport,
            shared: Arc::new(Shared { clock, random }),
            user_agent: HeaderValue::from_static("rkube"),
            timeout: REQUEST_TIMEOUT,
        }
    }

    /// The same client under another name, for audit and managed fields. Characters a header cannot hold are dropped.
    #[must_use]
    pub fn with_user_agent(&self, name: &str) -> Self {
        let mut client = self.clone();
        let clean: String = name.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
        if let Ok(value) = HeaderValue::from_str(&clean) {
            client.user_agent = value;
        }
        client
    }

    /// The same client, its name followed by the part of the component that acts. The manager of fields stays the
    /// component.
    #[must_use]
    pub fn acting_as(&self, part: &str) -> Self {
        self.with_user_agent(&format!("{}/{part}", self.user_agent.to_str().unwrap_or_default()))
    }

    /// The same client with another limit per try.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    pub fn clock(&self) -> &SharedClock {
        &self.shared.clock
    }

    pub fn transport(&self) -> &SharedTransport {
        &self.transport
    }

    /// For jitter and generated names.
    pub fn random(&self) -> &SharedRandom {
        &self.shared.random
    }

    /// Cluster-scoped objects of a kind, or those of all namespaces.
    pub fn all<K: Kind>(&self) -> Api<K> {
        Api::new(self.dynamic(resource_of::<K>(), ""))
    }

    /// Objects of a kind in one namespace.
    pub fn namespaced<K: Kind>(&self, namespace: &str) -> Api<K> {
        Api::new(self.dynamic(resource_of::<K>(), namespace))
    }

    /// Objects of any resource as JSON. An empty namespace for cluster scope or all namespaces.
    pub fn dynamic(&self, resource: SharedResource, namespace: &str) -> DynamicApi {
        DynamicApi::new(self.clone(), resource, namespace)
    }

    /// A GET of any path, for discovery and health.
    pub async fn get_raw(&self, path: &str) -> Result<Bytes, ClientError> {
        Ok(self.send(Method::GET, path, None).await?.into_body())
    }

    /// A GET of any path, parsed.
    pub async fn get_json(&self, path: &str) -> Result<Value, ClientError> {
        let bytes = self.get_raw(path).await?;
        serde_json::from_slice(&bytes)
            .map_err(|source| ClientError::Decode { path: path.to_owned(), source: Box::new(source) })
    }

    /// One request with a JSON body or none; `content_type` is for patches.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Response<Bytes>, ClientError> {
        let mut attempt = 0;
        loop {
            let request = self.build(&method, path, body.clone())?;
            let error = match self.timed(&method, path, self.transport.send(request), code_of).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let idempotent = method == Method::GET || method == Method::HEAD;
            self.wait_to_retry(&method, error, idempotent, &mut attempt).await?;
        }
    }

    /// Any request, as it is, once.
    pub async fn raw(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
        request.headers_mut().entry(USER_AGENT).or_insert_with(|| self.user_agent.clone());
        let path = request.uri().path().to_owned();
        let method = request.method().clone();
        self.timed(&method, &path, self.transport.send(request), code_of).await
    }

    pub async fn list(&self, request: ListRequest) -> Result<ObjectList, ClientError> {
        let path = collection_path(&request.resource, &request.namespace);
        let mut attempt = 0;
        loop {
            let error = match self.timed(&Method::GET, &path, self.transport.list(request.clone()), |_| 200).await {
                Ok(list) => return Ok(list),
                Err(error) => error,
            };
            self.wait_to_retry(&Method::GET, error, true, &mut attempt).await?;
        }
    }

    /// Starts a watch. Not retried here: whoever watches knows from where to go on.
    pub async fn watch(&self, request: WatchRequest) -> Result<WatchStream, ClientError> {
        let path = collection_path(&request.resource, &request.namespace);
        self.timed(&Method::GET, &path, self.transport.watch(request), |_| 200).await
    }

    fn build(
        &self,
        method: &Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Request<Bytes>, ClientError> {
        let mut builder = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, self.user_agent.clone());
        if let Some((content_type, _)) = &body {
            builder = builder.header(CONTENT_TYPE, *content_type);
        }
        builder
            .body(body.map(|(_, bytes)| bytes).unwrap_or_default())
            .map_err(|source| ClientError::Request { path: path.to_owned(), source: Box::new(source) })
    }

    /// Returns when the request may be sent again, or the error if it must not be.
    async fn wait_to_retry(
        &self,
        method: &Method,
        error: ClientError,
        idempotent: bool,
        attempt: &mut u32,
    ) -> Result<(), ClientError> {
        let Some(delay) = retry_delay(&error, idempotent).filter(|_| *attempt < RETRIES_MAX) else { return Err(error) };
        *attempt += 1;
        requests().retried(method, self.transport.host(), &error);
        self.shared.clock.sleep(delay).await;
        Ok(())
    }

    /// One try, within the time limit and counted. `code_of` says what the server answered.
    async fn timed<T>(
        &self,
        method: &Method,
        path: &str,
        request: impl Future<Output = Result<T, ClientError>>,
        code_of: impl FnOnce(&T) -> u16,
    ) -> Result<T, ClientError> {
        let start = self.shared.clock.monotonic();
        let result = tokio::select! {
            biased;
            result = request => result,
            () = self.shared.clock.sleep(self.timeout) => Err(ClientError::Unreachable {
                path: path.to_owned(),
                source: "no answer within the time limit".into(),
            }),
        };
        let took = self.shared.clock.monotonic().saturating_sub(start);
        requests().answered(method, self.transport.host(), result.as_ref().map(code_of), took);
        result
    }
}

fn code_of(response: &Response<Bytes>) -> u16 {
    response.status().as_u16()
}

/// How long to wait before the request is sent again; `None` if it must not be.
fn retry_delay(error: &ClientError, idempotent: bool) -> Option<Duration> {
    match error {
        ClientError::Api(status) => {
            let code = status.code();
            let seconds = status.status().details.as_ref().map_or(0, |details| details.retry_after_seconds);
            let asked = seconds > 0 && (code == 429 || code >= 500);
            asked.then(|| Duration::from_secs(seconds.into()).min(RETRY_AFTER_MAX))
        }
        ClientError::Unreachable { .. } if idempotent => Some(Duration::from_secs(1)),
        _ => None,
    }
}

/// `/api/v1/namespaces/ns/pods`, `/apis/apps/v1/deployments`.
pub fn collection_path(resource: &Resource, namespace: &str) -> String {
    let mut path = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    if !namespace.is_empty() && resource.namespaced {
        let _ = write!(path, "/namespaces/{}", escape(namespace));
    }
    let _ = write!(path, "/{}", resource.plural);
    path
}

/// Percent-encodes one path segment or query value.
pub fn escape(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, UNESCAPED)
}

/// The row of a built-in kind; for a kind without one (test kinds, kinds only subresources speak) its names and scope.
pub fn resource_of<K: Kind>() -> SharedResource {
    if let Some(resource) = rkube_api::resource_of::<K>() {
        return resource.clone();
    }
    Arc::new(Resource {
        group: K::GROUP.into(),
        version: K::VERSION.into(),
        plural: K::PLURAL.into(),
        singular: "".into(),
        short_names: (&[]).into(),
        categories: (&[]).into(),
        kind: K::KIND.into(),
        namespaced: K::NAMESPACED,
        verbs: (&[]).into(),
        subresources: (&[]).into(),
        schema: TypeId(u32::MAX),
        stored_as: None,
        storage_version_hash: "".into(),
        selectable_fields: (&[]).into(),
    })
}
