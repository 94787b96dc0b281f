//! Answers: objects and failures in the client's encoding, pretty where a person reads, compressed where it pays.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/handlers/responsewriters`, v1.36.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use rkube_api::StoredObject;
use rkube_api::resource::Resource;
use rkube_apimachinery::status::ApiStatus;
use rkube_http::body::Body;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::debug;

use rkube_codec::Media;

use crate::negotiation::{Output, Transform};
use crate::wire::codec;

/// Bodies below this are not worth compressing, as upstream's `defaultGzipThresholdBytes`.
pub(crate) const GZIP_BYTES_MIN: usize = 128 * 1024;

/// An answer with a body.
pub(crate) fn bytes(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer with a body, compressed where that pays.
pub(crate) fn encoded(
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
    headers: &HeaderMap,
) -> Response<Body> {
    compressed(bytes(status, content_type, body), headers)
}

/// JSON in the encoding wanted.
pub(crate) fn json(status: StatusCode, json: Bytes, output: Output, headers: &HeaderMap) -> Response<Body> {
    let encoded = match output.encoding {
        Media::Json if output.pretty => Ok(pretty(&json)),
        Media::Json => Ok(json.clone()),
        Media::Yaml => codec::yaml(&json),
        Media::Protobuf => codec::protobuf(&json),
    };
    match encoded {
        Ok(body) => compressed(bytes(status, output.content_type(), body), headers),
        Err(text) => {
            // What has no other form is answered in JSON, which every client reads.
            debug!(error = text, "An answer has no form but JSON");
            compressed(bytes(status, crate::negotiation::JSON, json), headers)
        }
    }
}

pub(crate) fn value(status: StatusCode, value: &Value, output: Output, headers: &HeaderMap) -> Response<Body> {
    json(status, Bytes::from(value.to_string()), output, headers)
}

/// A failure (or a successful Status) in the form the client wants.
pub(crate) fn failure(failure: &ApiStatus, output: Output) -> Response<Body> {
    let Ok(status) = StatusCode::from_u16(failure.code()) else { return plain_failure(failure) };
    let body = match serde_json::to_vec(failure.status()) {
        Ok(body) => Bytes::from(body),
        Err(_) => return plain_failure(failure),
    };
    let output = Output { transform: Transform::None, ..output };
    let mut response = json(status, body, output, &HeaderMap::new());
    add_retry_after(&mut response, failure);
    response
}

fn plain_failure(failure: &ApiStatus) -> Response<Body> {
    let status = StatusCode::from_u16(failure.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(failure.status()).unwrap_or_default();
    let mut response = bytes(status, "application/json", Bytes::from(body));
    add_retry_after(&mut response, failure);
    response
}

fn add_retry_after(response: &mut Response<Body>, failure: &ApiStatus) {
    let seconds = failure.status().details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if seconds > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if failure.code() == 401 || failure.code() == 403 || failure.code() >= 500 {
        let nosniff = HeaderValue::from_static("nosniff");
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    }
}

/// With two spaces of indentation and a line end, for people.
pub(crate) fn pretty(json: &[u8]) -> Bytes {
    match serde_json::from_slice::<Value>(json) {
        Ok(value) => {
            let mut text = serde_json::to_vec_pretty(&value).unwrap_or_default();
            text.push(b'\n');
            Bytes::from(text)
        }
        Err(_) => Bytes::copy_from_slice(json),
    }
}

/// Whether the client takes gzip.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| {
            let mut pieces = part.split(';').map(str::trim);
            pieces.next() == Some("gzip") && !pieces.any(|piece| piece == "q=0")
        })
}

fn compressed(response: Response<Body>, headers: &HeaderMap) -> Response<Body> {
    let Some(body) = response.body().as_bytes() else { return response };
    if body.len() <= GZIP_BYTES_MIN || !accepts_gzip(headers) {
        return response;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    // Writing to a vector cannot fail.
    let packed = encoder.write_all(&body).and_then(|()| encoder.finish());
    match packed {
        Ok(packed) => {
            let (mut head, _) = response.into_parts();
            mark_gzip(&mut head.headers);
            Response::from_parts(head, Body::from(packed))
        }
        Err(_) => response,
    }
}

pub(crate) fn mark_gzip(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// An object, transformed as the client wants.
pub(crate) fn object(
    status: StatusCode,
    row: &Resource,
    found: &std::sync::Arc<StoredObject>,
    output: Output,
    options: &rkube_codec::table::Options,
    headers: &HeaderMap,
) -> Response<Body> {
    match output.transform {
        Transform::None if output.encoding == Media::Protobuf => match found.protobuf(codec::protobuf) {
            Ok(body) => compressed(bytes(status, output.content_type(), body), headers),
            Err(text) => plain_failure(&ApiStatus::internal(text)),
        },
        Transform::None => json(status, found.json.clone(), output, headers),
        Transform::Table { version } => {
            let meta = rkube_codec::table::ListMeta {
                resource_version: found.revision.to_string(),
                ..rkube_codec::table::ListMeta::default()
            };
            let table = rkube_codec::table::render(row, std::slice::from_ref(found), version, &meta, options);
            json(status, Bytes::from(table), output, headers)
        }
        Transform::PartialObjectMetadata { version } => match partial(&found.json, version) {
            Ok(body) => json(status, Bytes::from(body), output, headers),
            Err(error) => plain_failure(&ApiStatus::internal(error)),
        },
        Transform::PartialObjectMetadataList { .. } => failure(
            &ApiStatus::not_acceptable(
                "you requested PartialObjectMetadataList, but the requested object is not a list",
            ),
            output,
        ),
    }
}

#[derive(Deserialize)]
struct OnlyMetadata<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// An object's metadata alone. Items of lists carry their type too, so there is one form.
pub(crate) fn partial(json: &[u8], version: &str) -> Result<Vec<u8>, serde_json::Error> {
    let only: OnlyMetadata<'_> = serde_json::from_slice(json)?;
    let metadata = only.metadata.get();
    let mut out = Vec::with_capacity(metadata.len() + 96);
    out.extend_from_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/"#);
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(br#"","metadata":"#);
    out.extend_from_slice(metadata.as_bytes());
    out.push(b'}');
    Ok(out)
}

/// Longest text of one warning once there are many.
const WARNING_CHARS_MAX: usize = 256;
/// Above this much text every warning is cut to [`WARNING_CHARS_MAX`].
const WARNINGS_BYTES_MAX: usize = 4 * 1024;
/// And above this many bytes of headers the rest is dropped.
const WARNING_HEADERS_BYTES_MAX: usize = 2 * WARNINGS_BYTES_MAX;

/// One `Warning: 299` header for each text.
///
/// Behaves as `k8s.io/apiserver/pkg/endpoints/filters/warning.go`, v1.36.
pub(crate) fn add_warnings(headers: &mut HeaderMap, warnings: &[String]) {
    let total: usize = warnings.iter().map(String::len).sum();
    let mut used = 0;
    for text in warnings {
        let text = if total > WARNINGS_BYTES_MAX { cut(text, WARNING_CHARS_MAX) } else { text.as_str() };
        let line = format!("299 - \"{}\"", escape(text));
        used += line.len();
        if used > WARNING_HEADERS_BYTES_MAX {
            return;
        }
        if let Ok(value) = HeaderValue::from_bytes(line.as_bytes()) {
            headers.append(header::WARNING, value);
        }
    }
}

/// A quoted string of a header: backslashes and quotes escaped, line ends and other controls as spaces.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                out.push('\\');
                out.push(character);
            }
            control if control.is_control() => out.push(' '),
            other => out.push(other),
        }
    }
    out
}

fn cut(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(end, _)| text.get(..end).unwrap_or(text))
}
