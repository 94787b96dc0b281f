//! LIST: a walk over stored bytes, sent in pieces, so that its memory does not grow with its length.

use std::io::Write as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use rkube_api::StoredObject;
use rkube_api::resource::{Resource, SharedResource};
use rkube_apimachinery::status::ApiStatus;
use rkube_codec::Media;
use rkube_codec::table::{self, ListMeta};
use rkube_http::body::{Body, BoxError};
use rkube_registry::Store;
use rkube_registry::store::ListPage;
use serde_json::json;

use super::{namespace, output, table_options};
use crate::negotiation::{Output, Transform};
use crate::respond::{self, GZIP_BYTES_MIN, accepts_gzip, mark_gzip};
use crate::scope::Target;
use crate::server::Inner;
use crate::wire::codec;

/// Size of the pieces a list is sent in.
const PIECE_BYTES: usize = 64 * 1024;

pub(super) async fn answer(server: &Arc<Inner>, target: &Target, store: &Store) -> Result<Response<Body>, ApiStatus> {
    let output = output(target, false)?;
    let table = table_options(server, output, &target.query())?;
    let options = target.query().list_options()?;
    options.validate()?;
    let page = store.list(&target.scope.context, namespace(target), &options).await?;
    respond_list(&target.row, page, output, &table, &target.scope.headers)
}

/// A page in the form the client wants.
pub(super) fn respond_list(
    row: &SharedResource,
    page: ListPage,
    output: Output,
    table: &table::Options,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiStatus> {
    let meta = ListMeta {
        resource_version: page.revision.to_string(),
        continue_token: page.continue_token,
        remaining_item_count: page.remaining_item_count,
    };
    let form = match output.transform {
        Transform::Table { version } => {
            let body = table::render(row, &page.items, version, &meta, table);
            return Ok(respond::json(StatusCode::OK, Bytes::from(body), output, headers));
        }
        Transform::PartialObjectMetadata { .. } => {
            let text = "you requested PartialObjectMetadata, but the requested object is a list (*v1.List)";
            return Err(ApiStatus::not_acceptable(text));
        }
        Transform::PartialObjectMetadataList { version } => Form::Partial(version),
        Transform::None => Form::Whole { skip: item_prefix(row) },
    };
    if output.encoding == Media::Protobuf {
        return protobuf(row, page.items, &meta, form, headers);
    }
    let list = JsonList { head: list_head(row, &meta, &form), items: page.items, form };
    if output.encoding != Media::Json || output.pretty {
        // For people: lists they read are short, and the whole text is needed to lay it out.
        let whole = list.whole()?;
        return Ok(respond::json(StatusCode::OK, whole, output, headers));
    }
    if list.estimate() <= GZIP_BYTES_MIN {
        return Ok(respond::bytes(StatusCode::OK, output.content_type(), list.whole()?));
    }
    let gzip = accepts_gzip(headers);
    let mut response = Response::new(if gzip { list.gzip_body() } else { list.body() });
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(output.content_type()));
    if gzip {
        mark_gzip(response.headers_mut());
    }
    Ok(response)
}

/// How an item is written.
enum Form {
    /// As stored; built-in kinds without the first `skip` bytes, which are their type.
    Whole {
        skip: Option<Vec<u8>>,
    },
    Partial(&'static str),
}

/// What stored objects of a built-in kind begin with, and items of lists do not.
fn item_prefix(row: &Resource) -> Option<Vec<u8>> {
    rkube_api::resource(&row.gvr())?;
    Some(format!("{{\"apiVersion\":\"{}\",\"kind\":\"{}\",", row.group_version(), row.kind).into_bytes())
}

fn list_head(row: &Resource, meta: &ListMeta, form: &Form) -> Vec<u8> {
    let (kind, api_version) = match form {
        Form::Whole { .. } => (format!("{}List", row.kind), row.group_version().to_string()),
        Form::Partial(version) => ("PartialObjectMetadataList".to_owned(), format!("meta.k8s.io/{version}")),
    };
    let mut head = Vec::with_capacity(256);
    // Writing to a vector cannot fail. None of these texts needs escaping: tokens are base64.
    let _ = write!(head, "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{{");
    let _ = write!(head, "\"resourceVersion\":\"{}\"", meta.resource_version);
    if !meta.continue_token.is_empty() {
        let _ = write!(head, ",\"continue\":{}", json!(meta.continue_token));
    }
    if let Some(remaining) = meta.remaining_item_count {
        let _ = write!(head, ",\"remainingItemCount\":{remaining}");
    }
    head.extend_from_slice(b"},\"items\":[");
    head
}

struct JsonList {
    head: Vec<u8>,
    items: Vec<Arc<StoredObject>>,
    form: Form,
}

impl JsonList {
    fn estimate(&self) -> usize {
        self.head.len() + self.items.iter().map(|item| item.json.len() + 1).sum::<usize>()
    }

    fn item(&self, object: &StoredObject, out: &mut BytesMut) -> Result<(), ApiStatus> {
        match &self.form {
            Form::Whole { skip } => {
                match skip.as_ref().and_then(|prefix| object.json.strip_prefix(prefix.as_slice())) {
                    Some(rest) => {
                        out.extend_from_slice(b"{");
                        out.extend_from_slice(rest);
                    }
                    None => out.extend_from_slice(&object.json),
                }
            }
            Form::Partial(version) => {
                let partial = respond::partial(&object.json, version).map_err(ApiStatus::internal)?;
                out.extend_from_slice(&partial);
            }
        }
        Ok(())
    }

    /// Writes items from `next` on until a piece is full, and the end after the last. The new `next`.
    fn piece(&self, mut next: usize, out: &mut BytesMut) -> Result<usize, ApiStatus> {
        if next == 0 {
            out.extend_from_slice(&self.head);
        }
        while let Some(item) = self.items.get(next) {
            if next > 0 {
                out.extend_from_slice(b",");
            }
            self.item(item, out)?;
            next += 1;
            if out.len() >= PIECE_BYTES && next < self.items.len() {
                return Ok(next);
            }
        }
        out.extend_from_slice(b"]}\n");
        Ok(usize::MAX)
    }

    fn whole(&self) -> Result<Bytes, ApiStatus> {
        let mut out = BytesMut::with_capacity(self.estimate() + 16);
        let mut next = 0;
        while next != usize::MAX {
            next = self.piece(next, &mut out)?;
        }
        Ok(out.freeze())
    }

    fn body(self) -> Body {
        Body::stream(stream::unfold((self, 0), |(list, next)| async move {
            if next == usize::MAX {
                return None;
            }
            let mut out = BytesMut::with_capacity(PIECE_BYTES + PIECE_BYTES / 4);
            match list.piece(next, &mut out) {
                Ok(next) => Some((Ok(out.freeze()), (list, next))),
                Err(status) => Some((Err(BoxError::from(status)), (list, usize::MAX))),
            }
        }))
    }

    fn gzip_body(self) -> Body {
        let encoder = GzEncoder::new(Vec::with_capacity(PIECE_BYTES), Compression::fast());
        Body::stream(stream::unfold(Some((self, 0, encoder)), |state| async move {
            let (list, mut next, mut encoder) = state?;
            loop {
                let mut out = BytesMut::with_capacity(PIECE_BYTES + PIECE_BYTES / 4);
                let written = list.piece(next, &mut out).map_err(BoxError::from).and_then(|following| {
                    next = following;
                    encoder.write_all(&out).map_err(BoxError::from)
                });
                if let Err(error) = written {
                    return Some((Err(error), None));
                }
                if next == usize::MAX {
                    return Some((encoder.finish().map(Bytes::from).map_err(BoxError::from), None));
                }
                if encoder.get_ref().len() >= PIECE_BYTES {
                    let piece = std::mem::replace(encoder.get_mut(), Vec::with_capacity(PIECE_BYTES));
                    return Some((Ok(Bytes::from(piece)), Some((list, next, encoder))));
                }
            }
        }))
    }
}

/// A list in protobuf: the sizes of all items are known before the first byte is sent.
fn protobuf(
    row: &Resource,
    items: Vec<Arc<StoredObject>>,
    meta: &ListMeta,
    form: Form,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiStatus> {
    let list = match form {
        Form::Whole { .. } => codec::protobuf_list(row, &items, meta),
        Form::Partial(version) => codec::protobuf_partial_list(&items, meta, version),
    };
    let pieces = list.map_err(ApiStatus::internal)?;
    let total: usize = pieces.iter().map(Bytes::len).sum();
    let content_type = Media::Protobuf.mime();
    if total <= GZIP_BYTES_MIN || !accepts_gzip(headers) {
        if pieces.len() == 1 || total <= GZIP_BYTES_MIN {
            return Ok(respond::bytes(StatusCode::OK, content_type, Bytes::from(pieces.concat())));
        }
        let mut response = Response::new(Body::stream(stream::iter(pieces.into_iter().map(Ok))));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        return Ok(response);
    }
    let encoder = GzEncoder::new(Vec::with_capacity(PIECE_BYTES), Compression::fast());
    let body = Body::stream(stream::unfold(Some((pieces.into_iter(), encoder)), |state| async move {
        let (mut pieces, mut encoder) = state?;
        for piece in pieces.by_ref() {
            if let Err(error) = encoder.write_all(&piece) {
                return Some((Err(BoxError::from(error)), None));
            }
            if encoder.get_ref().len() >= PIECE_BYTES {
                let packed = std::mem::replace(encoder.get_mut(), Vec::with_capacity(PIECE_BYTES));
                return Some((Ok(Bytes::from(packed)), Some((pieces, encoder))));
            }
        }
        Some((encoder.finish().map(Bytes::from).map_err(BoxError::from), None))
    }));
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    mark_gzip(response.headers_mut());
    Ok(response)
}
