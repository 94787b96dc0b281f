//! The client's transport as a call into the same chain: no sockets, and no serialization of objects on lists
//! and watches.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use http::{HeaderValue, Method, Request, Response, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rkube_api::resource::Resource;
use rkube_apimachinery::status::{ApiStatus, Reason, Status};
use rkube_client::transport::{ClientError, ListRequest, ObjectList, Transport, WatchEvent, WatchRequest, WatchStream};
use rkube_http::body::{Body, BoxError};
use rkube_registry::options::ListOptions;
use rkube_registry::store::{self, Watcher};
use rkube_registry::{Store, UserInfo};
use tokio_util::sync::CancellationToken;

use crate::auth::basic::authenticated;
use crate::server::ApiServer;

/// Answers to components in the same process are small; lists go another way.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Calls the server as one user.
pub(crate) struct InProcess {
    server: ApiServer,
    user: UserInfo,
}

impl InProcess {
    pub(crate) fn new(server: ApiServer, user: UserInfo) -> Self {
        Self { server, user: authenticated(user) }
    }
}

impl Transport for InProcess {
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Bytes>, ClientError>> {
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let mut request = request.map(Body::from);
            if request.body().as_bytes().is_some_and(|bytes| !bytes.is_empty()) {
                request
                    .headers_mut()
                    .entry(header::CONTENT_TYPE)
                    .or_insert(HeaderValue::from_static("application/json"));
            }
            let response = self.server.call_as(request, self.user.clone()).await;
            let (head, body) = response.into_parts();
            let bytes = body
                .read(ANSWER_BYTES_MAX)
                .await
                .map_err(|source| ClientError::Unreachable { path, source: BoxError::from(source) })?;
            if head.status.as_u16() >= 400 {
                return Err(ClientError::Api(failure(head.status.as_u16(), &bytes)));
            }
            Ok(Response::from_parts(head, bytes))
        })
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, ClientError>> {
        Box::pin(async move {
            let store = self.store(&request.resource)?;
            let mut options = ListOptions {
                label_selector: request.label_selector.clone(),
                field_selector: request.field_selector.clone(),
                watch: true,
                allow_watch_bookmarks: request.allow_bookmarks,
                resource_version: request.resource_version.clone(),
                timeout_seconds: (request.timeout_seconds > 0).then_some(request.timeout_seconds.into()),
                ..ListOptions::default()
            };
            if request.send_initial_events {
                options.send_initial_events = Some(true);
                options.resource_version_match = "NotOlderThan".to_owned();
            }
            options.default_initial_events();
            options.validate()?;
            let mut call = self.call(&request.resource, &request.namespace, &options)?;
            let (passed, tracked) = self.server.0.pass_in_process(&mut call, &self.user).await?;
            let namespace = if request.resource.namespaced { request.namespace.as_str() } else { "" };
            let watcher = store.watch(&passed.scope.context, namespace, &options).await?;
            let watching = Watching {
                watcher,
                batch: Vec::new(),
                stopping: self.server.stopping(),
                _held: Box::new((passed.permit, tracked)),
            };
            Ok(watching.stream())
        })
    }

    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<ObjectList, ClientError>> {
        Box::pin(async move {
            let store = self.store(&request.resource)?;
            let options = ListOptions {
                label_selector: request.label_selector.clone(),
                field_selector: request.field_selector.clone(),
                resource_version: request.resource_version.clone(),
                resource_version_match: request.resource_version_match.clone(),
                limit: i64::try_from(request.limit).unwrap_or(i64::MAX),
                continue_token: request.continue_token.clone(),
                ..ListOptions::default()
            };
            options.validate()?;
            let mut call = self.call(&request.resource, &request.namespace, &options)?;
            let (passed, _tracked) = self.server.0.pass_in_process(&mut call, &self.user).await?;
            let namespace = if request.resource.namespaced { request.namespace.as_str() } else { "" };
            let page = store.list(&passed.scope.context, namespace, &options).await?;
            Ok(ObjectList {
                items: page.items,
                resource_version: page.revision.to_string(),
                continue_token: page.continue_token,
            })
        })
    }
}

impl InProcess {
    fn store(&self, resource: &Resource) -> Result<Store, ClientError> {
        let found = self.server.0.registry.store(&resource.gvr());
        found.ok_or_else(|| {
            ClientError::Api(ApiStatus::failure(Reason::NotFound, "the server could not find the requested resource"))
        })
    }

    /// The request the chain is shown: what authorization and audit look at, without a body.
    fn call(&self, resource: &Resource, namespace: &str, options: &ListOptions) -> Result<Request<Body>, ClientError> {
        let mut path = rkube_client::client::collection_path(resource, namespace);
        let mut separator = '?';
        for (name, value) in [
            ("labelSelector", options.label_selector.as_str()),
            ("fieldSelector", options.field_selector.as_str()),
            ("watch", if options.watch { "true" } else { "" }),
        ] {
            if !value.is_empty() {
                path.push(separator);
                path.push_str(name);
                path.push('=');
                path.extend(utf8_percent_encode(value, ESCAPED));
                separator = '&';
            }
        }
        Request::builder()
            .method(Method::GET)
            .uri(&path)
            .body(Body::empty())
            .map_err(|source| ClientError::Request { path, source: Box::new(source) })
    }
}

struct Watching {
    watcher: Watcher,
    batch: Vec<store::WatchEvent>,
    stopping: CancellationToken,
    /// The place in flow control and the count among watches.
    _held: Box<dyn Send + Sync>,
}

impl Watching {
    fn stream(self) -> WatchStream {
        let batches = stream::unfold(self, |mut watching| async move {
            let more = tokio::select! {
                more = watching.watcher.next_batch(&mut watching.batch) => more,
                () = watching.stopping.cancelled() => false,
            };
            if !more {
                return None;
            }
            let events: Vec<_> = watching.batch.drain(..).map(event).collect();
            Some((stream::iter(events), watching))
        });
        batches.flatten().boxed()
    }
}

fn event(event: store::WatchEvent) -> Result<WatchEvent, ClientError> {
    Ok(match event {
        store::WatchEvent::Added(object) => WatchEvent::Added(object),
        store::WatchEvent::Modified(object) => WatchEvent::Modified(object),
        store::WatchEvent::Deleted(object) => WatchEvent::Deleted(object),
        store::WatchEvent::Bookmark { revision, initial_events_end } => {
            WatchEvent::Bookmark { resource_version: revision.to_string(), initial_events_end }
        }
        store::WatchEvent::Error(status) => return Err(ClientError::Api(status)),
    })
}

fn failure(code: u16, body: &[u8]) -> ApiStatus {
    match serde_json::from_slice::<Status>(body) {
        Ok(status) if status.kind == "Status" => ApiStatus::from_wire(status),
        _ => {
            let reason = if code == 404 { Reason::NotFound } else { Reason::Unknown };
            let mut status = ApiStatus::failure(reason, String::from_utf8_lossy(body).into_owned()).into_status();
            status.code = code;
            ApiStatus::from_wire(status)
        }
    }
}
