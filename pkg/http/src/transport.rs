//! The client's transport to an API server in another process: HTTP/2 over mutual TLS, JSON, watches decoded
//! as they arrive.
//!
//! Behaves as `k8s.io/client-go/rest` (`request.go`, `watch/decoder.go`), v1.36.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rkube_apimachinery::status::{ApiStatus, Reason, Status};
use rkube_client::decode::stored_object;
use rkube_client::transport::{ClientError, ListRequest, ObjectList, Transport, WatchEvent, WatchRequest, WatchStream};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::body::{Body, BoxError};
use crate::client::HttpClient;

/// A whole answer. Lists are unlimited on the server's side; this bounds what an agent holds of one page.
const ANSWER_BYTES_MAX: usize = 1 << 30;
/// One watch event: an object is at most 1.5 MiB in storage.
const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Reaches a remote API server.
#[derive(Clone)]
pub struct RemoteTransport {
    client: HttpClient,
    user_agent: HeaderValue,
}

impl RemoteTransport {
    pub fn new(client: HttpClient, user_agent: HeaderValue) -> Self {
        Self { client, user_agent }
    }

    async fn open(&self, mut request: Request<Body>) -> Result<Response<Body>, ClientError> {
        let path = request.uri().path().to_owned();
        request.headers_mut().entry(http::header::USER_AGENT).or_insert_with(|| self.user_agent.clone());
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        let response = self
            .client
            .request(request)
            .await
            .map_err(|source| ClientError::Unreachable { path: path.clone(), source: Box::new(source) })?;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let bytes = read(body, &path).await?;
        Err(ClientError::Api(failure(head.status, &head.headers, &bytes, &path)))
    }
}

async fn read(body: Body, path: &str) -> Result<Bytes, ClientError> {
    body.read(ANSWER_BYTES_MAX)
        .await
        .map_err(|source| ClientError::Unreachable { path: path.to_owned(), source: Box::new(source) })
}

impl Transport for RemoteTransport {
    fn host(&self) -> &str {
        self.client.authority()
    }

    fn send(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Bytes>, ClientError>> {
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let mut request = request.map(Body::from);
            if request.body().as_bytes().is_some_and(|bytes| !bytes.is_empty()) {
                request.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
            }
            let (head, body) = self.open(request).await?.into_parts();
            Ok(Response::from_parts(head, read(body, &path).await?))
        })
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, ClientError>> {
        Box::pin(async move {
            let mut query = Query::new(&request.label_selector, &request.field_selector);
            query.add("watch", "true");
            query.add("resourceVersion", &request.resource_version);
            if request.send_initial_events {
                query.add("sendInitialEvents", "true");
                query.add("resourceVersionMatch", "NotOlderThan");
            }
            if request.allow_bookmarks {
                query.add("allowWatchBookmarks", "true");
            }
            if request.timeout_seconds > 0 {
                query.add("timeoutSeconds", &request.timeout_seconds.to_string());
            }
            let path = collection_path(&request.resource, &request.namespace);
            let response = self.open(get(&path, &query)?).await?;
            let frames = Frames { chunks: response.into_body().into_stream(), buffer: BytesMut::new(), scanned: 0 };
            let resource = request.resource;
            let events = stream::unfold(Some((frames, path)), move |state| {
                let resource = Arc::clone(&resource);
                async move {
                    let (mut frames, path) = state?;
                    match frames.next().await {
                        Ok(None) => None,
                        Ok(Some(frame)) => {
                            let event = event(&resource, &frame, &path);
                            let more = event.is_ok();
                            Some((event, more.then_some((frames, path))))
                        }
                        Err(source) => Some((Err(ClientError::Unreachable { path, source }), None)),
                    }
                }
            });
            Ok(events.boxed())
        })
    }

    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<ObjectList, ClientError>> {
        Box::pin(async move {
            let mut query = Query::new(&request.label_selector, &request.field_selector);
            query.add("resourceVersion", &request.resource_version);
            query.add("resourceVersionMatch", &request.resource_version_match);
            if request.limit > 0 {
                query.add("limit", &request.limit.to_string());
            }
            query.add("continue", &request.continue_token);
            let path = collection_path(&request.resource, &request.namespace);
            let response = self.open(get(&path, &query)?).await?;
            let bytes = read(response.into_body(), &path).await?;
            let decode = |source| ClientError::Decode { path: path.clone(), source: Box::new(source) };
            let list: List<'_> = serde_json::from_slice(&bytes).map_err(decode)?;
            let mut items = Vec::with_capacity(list.items.len());
            for item in list.items {
                items.push(stored_object(&request.resource, bytes.slice_ref(item.get().as_bytes())).map_err(decode)?);
            }
            let continue_token = list.metadata.continue_token;
            Ok(ObjectList { items, resource_version: list.metadata.resource_version, continue_token })
        })
    }
}

fn get(path: &str, query: &Query) -> Result<Request<Body>, ClientError> {
    let request = Request::builder().method(Method::GET).uri(format!("{path}{}", query.0)).body(Body::empty());
    request.map_err(|source| ClientError::Request { path: path.to_owned(), source: Box::new(source) })
}

/// `?a=b&c=d`, without parameters that are empty.
struct Query(String);

impl Query {
    fn new(labels: &str, fields: &str) -> Self {
        let mut query = Self(String::new());
        query.add("labelSelector", labels);
        query.add("fieldSelector", fields);
        query
    }

    fn add(&mut self, name: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        let separator = if self.0.is_empty() { '?' } else { '&' };
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{separator}{name}={}", utf8_percent_encode(value, ESCAPED));
    }
}

fn collection_path(resource: &rkube_client::transport::SharedResource, namespace: &str) -> String {
    let prefix = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    if namespace.is_empty() || !resource.namespaced {
        format!("{prefix}/{}", resource.plural)
    } else {
        format!("{prefix}/namespaces/{}/{}", utf8_percent_encode(namespace, ESCAPED), resource.plural)
    }
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    continue_token: String,
}

/// Splits a watch's body into its events, one a line.
struct Frames {
    chunks: BoxStream<'static, Result<Bytes, BoxError>>,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    scanned: usize,
}

impl Frames {
    async fn next(&mut self) -> Result<Option<Bytes>, BoxError> {
        loop {
            while let Some(end) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.scanned + end + 1).freeze();
                self.scanned = 0;
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
            }
            self.scanned = self.buffer.len();
            if self.scanned > EVENT_BYTES_MAX {
                return Err(format!("a watch event is larger than {EVENT_BYTES_MAX} bytes").into());
            }
            match self.chunks.next().await {
                Some(chunk) => self.buffer.extend_from_slice(&chunk?),
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => return Err("the watch ended inside an event".into()),
            }
        }
    }
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BookmarkMetadata {
    resource_version: String,
    annotations: std::collections::BTreeMap<String, String>,
}

fn event(
    resource: &rkube_client::transport::SharedResource,
    line: &Bytes,
    path: &str,
) -> Result<WatchEvent, ClientError> {
    let decode = |source| ClientError::Decode { path: path.to_owned(), source: Box::new(source) };
    let frame: Frame<'_> = serde_json::from_slice(line).map_err(decode)?;
    let object = || {
        // A copy of its own: a slice would keep the whole chunk alive for as long as the object is cached.
        stored_object(resource, Bytes::copy_from_slice(frame.object.get().as_bytes())).map_err(decode)
    };
    match frame.kind {
        "ADDED" => Ok(WatchEvent::Added(object()?)),
        "MODIFIED" => Ok(WatchEvent::Modified(object()?)),
        "DELETED" => Ok(WatchEvent::Deleted(object()?)),
        "BOOKMARK" => {
            let Bookmark { metadata } = serde_json::from_str(frame.object.get()).map_err(decode)?;
            let initial_events_end =
                metadata.annotations.get("k8s.io/initial-events-end").is_some_and(|value| value == "true");
            Ok(WatchEvent::Bookmark { resource_version: metadata.resource_version, initial_events_end })
        }
        "ERROR" => {
            let status: Status = serde_json::from_str(frame.object.get()).map_err(decode)?;
            Err(ClientError::Api(ApiStatus::from_wire(status)))
        }
        other => {
            let source = format!("a watch event of unknown type {other:?}").into();
            Err(ClientError::Decode { path: path.to_owned(), source })
        }
    }
}

/// The server's `Status`, or one made from the status code as client-go makes it.
fn failure(code: StatusCode, headers: &HeaderMap, body: &[u8], path: &str) -> ApiStatus {
    if let Ok(status) = serde_json::from_slice::<Status>(body)
        && status.kind == "Status"
    {
        return ApiStatus::from_wire(status);
    }
    let text = String::from_utf8_lossy(body.get(..body.len().min(2048)).unwrap_or_default());
    let (reason, message) = match code.as_u16() {
        401 => (Reason::Unauthorized, "the server has asked for the client to provide credentials".to_owned()),
        403 => (Reason::Forbidden, format!("access to {path} is forbidden")),
        404 => (Reason::NotFound, "the server could not find the requested resource".to_owned()),
        405 => (Reason::MethodNotAllowed, "the server does not allow this method on the requested resource".to_owned()),
        409 => (Reason::Conflict, "the server reported a conflict".to_owned()),
        410 => (Reason::Expired, "the requested version is gone".to_owned()),
        429 => (
            Reason::TooManyRequests,
            "the server has received too many requests and has asked us to try again later".to_owned(),
        ),
        503 => (Reason::ServiceUnavailable, "the server is currently unable to handle the request".to_owned()),
        504 => (Reason::Timeout, "the server was unable to return a response in the time allotted".to_owned()),
        code if code >= 500 => (
            Reason::InternalError,
            format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        ),
        _ => (
            Reason::Unknown,
            format!("the server responded with the status code {code} but did not return more information: {text}"),
        ),
    };
    let mut status = ApiStatus::failure(reason, message).into_status();
    status.code = code.as_u16();
    let status = ApiStatus::from_wire(status);
    match headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok()) {
        Some(seconds) => status.retry_after(seconds),
        None => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(parts: &'static [&'static str]) -> Frames {
        let chunks = stream::iter(parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes())))).boxed();
        Frames { chunks, buffer: BytesMut::new(), scanned: 0 }
    }

    #[tokio::test]
    async fn events_are_split_wherever_chunks_end() {
        let mut split = frames(&["{\"a\":", "1}\n{\"b\":2}\n\n{", "\"c\":3}", "\n"]);
        let mut lines = Vec::new();
        while let Some(line) = split.next().await.unwrap() {
            lines.push(String::from_utf8(line.trim_ascii().to_vec()).unwrap());
        }
        assert_eq!(lines, ["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
        assert!(frames(&["{\"cut"]).next().await.is_err());
    }

    #[test]
    fn an_answer_without_a_status_becomes_one() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("3"));
        let status = failure(StatusCode::TOO_MANY_REQUESTS, &headers, b"slow down", "/api");
        assert!(status.is(Reason::TooManyRequests));
        assert_eq!(status.status().details.as_ref().unwrap().retry_after_seconds, 3);
    }
}
