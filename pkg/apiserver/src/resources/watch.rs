//! WATCH: events as they happen, each flushed at once, as chunks or WebSocket messages.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/handlers/watch.go`, v1.36.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use futures_util::stream::{self, StreamExt};
use http::{HeaderValue, Request, Response, header};
use rkube_api::StoredObject;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::status::ApiStatus;
use rkube_codec::Media;
use rkube_codec::table;
use rkube_http::body::{Body, BoxError};
use rkube_http::upgrade::is_websocket;
use rkube_http::websocket::{self, Message};
use rkube_registry::Store;
use rkube_registry::store::{WatchEvent, Watcher};
use serde_json::json;
use tokio_util::sync::CancellationToken;

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
    let events = Events::new(watcher, encoder, server.stopping.clone(), count);
    if is_websocket(&target.scope.headers) {
        return over_websocket(&mut request, events, output.encoding);
    }
    let mut response = Response::new(Body::stream(events.pieces().map(Ok::<Bytes, BoxError>)));
    let content_type = match output.encoding {
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

/// Small events that are there together go out as one piece of about this size.
const PIECE_BYTES: usize = 64 * 1024;
/// An object from this size on goes out as the bytes that are stored, uncopied, so that thousands of watchers of large
/// objects hold them once.
const UNCOPIED_BYTES_MIN: usize = 16 * 1024;

/// A watch and how its events are written. Events are written as they are sent: what waits is not encoded yet.
struct Events {
    watcher: Watcher,
    batch: Vec<WatchEvent>,
    pending: VecDeque<WatchEvent>,
    /// Pieces of an event whose beginning was sent.
    rest: VecDeque<Bytes>,
    encoder: EventEncoder,
    /// Whether an error was the last event.
    failed: bool,
    stopping: CancellationToken,
    count: prometheus_client::metrics::counter::Counter,
}

impl Events {
    fn new(
        watcher: Watcher,
        encoder: EventEncoder,
        stopping: CancellationToken,
        count: prometheus_client::metrics::counter::Counter,
    ) -> Self {
        let (batch, pending, rest) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Self { watcher, batch, pending, rest, encoder, failed: false, stopping, count }
    }

    /// Waits until an event is pending. False: there will be none.
    async fn wait(&mut self) -> bool {
        if !self.pending.is_empty() {
            return true;
        }
        if self.failed {
            return false;
        }
        let more = tokio::select! {
            more = self.watcher.next_batch(&mut self.batch) => more,
            () = self.stopping.cancelled() => false,
        };
        self.pending.extend(self.batch.drain(..));
        more
    }

    /// The next pending event in its form; an error if it has none. After an error nothing follows.
    fn next(&mut self) -> Option<(&'static str, Bytes)> {
        let event = self.pending.pop_front()?;
        self.count.inc();
        let encoded = self.encoder.event(&event).or_else(|text| {
            let error = WatchEvent::Error(ApiStatus::internal(text));
            self.failed = true;
            self.encoder.event(&error)
        });
        self.failed |= matches!(event, WatchEvent::Error(_));
        if self.failed {
            self.pending.clear();
        }
        encoded.ok()
    }

    /// One frame for each event.
    fn frames(self) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(self, |mut events| async move {
            while events.wait().await {
                if let Some((kind, object)) = events.next() {
                    let mut frame = BytesMut::with_capacity(object.len() + 40);
                    events.encoder.begin(kind, &mut frame);
                    frame.put(object);
                    frame.put_slice(events.encoder.end());
                    return Some((frame.freeze(), events));
                }
            }
            None
        })
    }

    /// Frames one after the other, cut where that saves memory.
    fn pieces(self) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(self, |mut events| async move {
            if let Some(rest) = events.rest.pop_front() {
                return Some((rest, events));
            }
            while events.wait().await {
                let piece = events.piece();
                if !piece.is_empty() {
                    return Some((piece, events));
                }
            }
            None
        })
    }

    /// As many pending events as fit a piece, or the beginning of a large one.
    fn piece(&mut self) -> Bytes {
        let mut piece = BytesMut::new();
        while piece.len() < PIECE_BYTES
            && let Some((kind, object)) = self.next()
        {
            piece.reserve(40 + if object.len() < UNCOPIED_BYTES_MIN { object.len() } else { 0 });
            self.encoder.begin(kind, &mut piece);
            if object.len() >= UNCOPIED_BYTES_MIN {
                self.rest.push_back(object);
                self.rest.push_back(Bytes::from_static(self.encoder.end()));
                self.rest.retain(|part| !part.is_empty());
                break;
            }
            piece.put(object);
            piece.put_slice(self.encoder.end());
        }
        if piece.is_empty() { self.rest.pop_front().unwrap_or_default() } else { piece.freeze() }
    }
}

struct EventEncoder {
    row: SharedResource,
    output: Output,
    table: table::Options,
}

impl EventEncoder {
    /// The event's type, and its object in the encoding asked for; of protobuf the whole frame.
    fn event(&mut self, event: &WatchEvent) -> Result<(&'static str, Bytes), String> {
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
            return Ok((kind, codec::protobuf_event(kind, &object)));
        }
        Ok((kind, object))
    }

    /// What stands before the object.
    fn begin(&self, kind: &str, out: &mut BytesMut) {
        if self.output.encoding != Media::Protobuf {
            out.put_slice(b"{\"type\":\"");
            out.put_slice(kind.as_bytes());
            out.put_slice(b"\",\"object\":");
        }
    }

    /// What stands after it.
    fn end(&self) -> &'static [u8] {
        if self.output.encoding == Media::Protobuf { b"" } else { b"}\n" }
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
    let messages = events.frames().map(move |frame| match encoding {
        Media::Protobuf => Message::binary(frame),
        _ => Message::text(String::from_utf8_lossy(&frame).into_owned()),
    });
    websocket::send_all(upgrade, messages);
    Ok(response)
}
