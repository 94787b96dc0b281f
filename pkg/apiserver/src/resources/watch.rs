//! WATCH: events as they happen, each batch flushed at once, as chunks or WebSocket messages.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/handlers/watch.go`, v1.36.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};
use futures_util::{SinkExt, Stream};
use http::{HeaderValue, Request, Response, header};
use rkube_api::StoredObject;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::status::ApiStatus;
use rkube_apimachinery::task;
use rkube_codec::Media;
use rkube_codec::table;
use rkube_http::body::{Body, BoxError};
use rkube_http::upgrade::is_websocket;
use rkube_http::websocket::{self, Message};
use rkube_registry::Store;
use rkube_registry::store::{WatchEvent, Watcher};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, debug_span};

use super::{namespace, output, table_options};
use crate::negotiation::{Output, Transform};
use crate::respond;
use crate::scope::Target;
use crate::server::Inner;
use crate::wire::codec;

pub(super) async fn answer(
    server: &Arc<Inner>,
    target: &Target,
    store: &Store,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let info = &target.scope.info;
    let output = output(target, true)?;
    let table = table_options(server, output, &target.query())?;
    let mut options = target.query().list_options()?;
    options.watch = true;
    if info.watch_prefix && !info.path_name().is_empty() {
        let name = info.path_name();
        if options.field_selector.is_empty() {
            options.field_selector = format!("metadata.name={name}");
        } else {
            options.field_selector = format!("metadata.name={name},{}", options.field_selector);
        }
    }
    options.default_initial_events();
    options.validate()?;
    let watcher = store.watch(&target.scope.context, namespace(target), &options).await?;
    let row = Arc::clone(&target.row);
    let count = server.metrics.watch_events(&row.group, &row.version, &row.plural);
    let encoder = EventEncoder { row, output, table };
    let events = Events { watcher, batch: Vec::new(), encoder, stopping: server.stopping.clone(), count };
    if is_websocket(&target.scope.headers) {
        return over_websocket(&mut request, events, output.encoding);
    }
    let frames = events.batches().map(|frames| {
        let mut chunk = BytesMut::new();
        for frame in frames {
            chunk.put(frame);
        }
        Ok::<Bytes, BoxError>(chunk.freeze())
    });
    let mut response = Response::new(Body::stream(frames));
    let content_type = match output.encoding {
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

/// A watch and how its events are written.
struct Events {
    watcher: Watcher,
    batch: Vec<WatchEvent>,
    encoder: EventEncoder,
    stopping: CancellationToken,
    count: prometheus_client::metrics::counter::Counter,
}

impl Events {
    /// Frames of the events that are there together.
    fn batches(self) -> impl Stream<Item = Vec<Bytes>> + Send {
        stream::unfold(Some(self), |state| async move {
            let mut events = state?;
            let more = tokio::select! {
                more = events.watcher.next_batch(&mut events.batch) => more,
                () = events.stopping.cancelled() => false,
            };
            if !more {
                return None;
            }
            let mut frames = Vec::with_capacity(events.batch.len());
            let mut failed = false;
            for event in events.batch.drain(..) {
                failed |= matches!(event, WatchEvent::Error(_));
                match events.encoder.frame(&event) {
                    Ok(frame) => frames.push(frame),
                    Err(text) => {
                        let status = ApiStatus::internal(text);
                        frames.extend(events.encoder.frame(&WatchEvent::Error(status)));
                        failed = true;
                    }
                }
                events.count.inc();
            }
            Some((frames, (!failed).then_some(events)))
        })
    }
}

struct EventEncoder {
    row: SharedResource,
    output: Output,
    table: table::Options,
}

impl EventEncoder {
    fn frame(&mut self, event: &WatchEvent) -> Result<Bytes, String> {
        let (kind, object) = match event {
            WatchEvent::Added(object) => ("ADDED", self.object(object)?),
            WatchEvent::Modified(object) => ("MODIFIED", self.object(object)?),
            WatchEvent::Deleted(object) => ("DELETED", self.object(object)?),
            WatchEvent::Bookmark { revision, initial_events_end } => {
                ("BOOKMARK", self.bookmark(*revision, *initial_events_end)?)
            }
            WatchEvent::Error(status) => {
                let json = serde_json::to_vec(status.status()).map_err(|error| error.to_string())?;
                ("ERROR", self.encoded(Bytes::from(json))?)
            }
        };
        if self.output.encoding == Media::Protobuf {
            return Ok(codec::protobuf_event(kind, &object));
        }
        let mut frame = BytesMut::with_capacity(object.len() + 40);
        frame.put_slice(b"{\"type\":\"");
        frame.put_slice(kind.as_bytes());
        frame.put_slice(b"\",\"object\":");
        frame.put_slice(&object);
        frame.put_slice(b"}\n");
        Ok(frame.freeze())
    }

    fn object(&mut self, object: &Arc<StoredObject>) -> Result<Bytes, String> {
        match self.output.transform {
            Transform::None if self.output.encoding == Media::Protobuf => object.protobuf(codec::protobuf),
            Transform::None => Ok(object.json.clone()),
            Transform::Table { version } => {
                let meta =
                    table::ListMeta { resource_version: object.revision.to_string(), ..table::ListMeta::default() };
                let rendered = table::render(&self.row, std::slice::from_ref(object), version, &meta, &self.table);
                // The columns are told once.
                self.table.no_headers = true;
                self.encoded(Bytes::from(rendered))
            }
            Transform::PartialObjectMetadata { version } | Transform::PartialObjectMetadataList { version } => {
                let partial = respond::partial(&object.json, version).map_err(|error| error.to_string())?;
                self.encoded(Bytes::from(partial))
            }
        }
    }

    fn encoded(&self, json: Bytes) -> Result<Bytes, String> {
        match self.output.encoding {
            Media::Protobuf => codec::protobuf(&json),
            _ => Ok(json),
        }
    }

    fn bookmark(&mut self, revision: u64, initial_events_end: bool) -> Result<Bytes, String> {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, api_version) = match self.output.transform {
            Transform::None => (self.row.kind.to_string(), self.row.group_version().to_string()),
            Transform::PartialObjectMetadata { version } | Transform::PartialObjectMetadataList { version } => {
                ("PartialObjectMetadata".to_owned(), format!("meta.k8s.io/{version}"))
            }
            Transform::Table { version } => {
                let object = json!({
                    "kind": "PartialObjectMetadata",
                    "apiVersion": format!("meta.k8s.io/{version}"),
                    "metadata": metadata,
                });
                let table = json!({
                    "kind": "Table",
                    "apiVersion": format!("meta.k8s.io/{version}"),
                    "metadata": {"resourceVersion": revision.to_string()},
                    "columnDefinitions": null,
                    "rows": [{"cells": [], "object": object}],
                });
                return self.encoded(Bytes::from(table.to_string()));
            }
        };
        let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        self.encoded(Bytes::from(object.to_string()))
    }
}

/// How a browser, which cannot set headers, says who it is.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Each event as a message: text for JSON, binary for protobuf.
fn over_websocket(request: &mut Request<Body>, events: Events, encoding: Media) -> Result<Response<Body>, ApiStatus> {
    // None is spoken; browsers name some all the same, one of which holds their token and is not repeated.
    let offered: Vec<String> = websocket::offered(request.headers()).into_iter().map(str::to_owned).collect();
    let mut supported: Vec<&str> =
        offered.iter().map(String::as_str).filter(|name| !name.starts_with(TOKEN_PROTOCOL)).collect();
    supported.push("");
    let accepted = match websocket::accept(request, &supported) {
        Ok(accepted) => accepted,
        Err(response) => return Ok(response),
    };
    let (response, _, upgrade) = accepted.into_parts();
    task::spawn(debug_span!("watch-websocket"), async move {
        let socket = match websocket::upgraded(upgrade).await {
            Ok(socket) => socket,
            Err(error) => {
                debug!(error = %chain(&error), "The client left before its watch began");
                return;
            }
        };
        let (mut sink, mut source) = socket.split();
        let mut batches = std::pin::pin!(events.batches());
        loop {
            let frames = tokio::select! {
                frames = batches.next() => frames,
                message = source.next() => match message {
                    Some(Ok(message)) if !message.is_close() => continue,
                    _ => return,
                },
            };
            let Some(frames) = frames else { break };
            for frame in frames {
                let message = if encoding == Media::Protobuf {
                    Message::binary(frame)
                } else {
                    Message::text(String::from_utf8_lossy(&frame).into_owned())
                };
                if sink.send(message).await.is_err() {
                    return;
                }
            }
        }
        // The client may be gone already.
        let _ = sink.send(websocket::normal_closure()).await;
    });
    Ok(response)
}
