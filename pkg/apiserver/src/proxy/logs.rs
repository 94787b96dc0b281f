//! `pods/log`: the kubelet's text, passed on as it comes, over WebSocket too.
//!
//! Behaves as `pkg/registry/core/pod/rest/log.go` and `k8s.io/streaming/pkg/httpstream/wsstream/stream.go`, v1.36.

use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::gvk::GroupKind;
use rkube_apimachinery::status::{ApiStatus, Reason};
use rkube_http::body::Body;
use rkube_http::proxy::{Backend, forward};
use rkube_http::upgrade::is_websocket;
use rkube_http::websocket::{self, Message};

use super::pods;
use crate::query::Query;
use crate::scope::Scope;
use crate::server::Inner;

/// How much of a kubelet's failure is told.
const FAILURE_BYTES_MAX: usize = 64 * 1024;

/// What a message carries by subprotocol; bytes where none is named.
const SUBPROTOCOLS: [&str; 3] = ["", "binary.k8s.io", BASE64];
const BASE64: &str = "base64.binary.k8s.io";

pub(super) async fn answer(
    server: &Arc<Inner>,
    scope: &Scope,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let text = text(server, scope).await?;
    if is_websocket(request.headers()) {
        return Ok(over_websocket(&mut request, text));
    }
    let mut out = Response::new(text);
    out.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(out)
}

/// Each piece as a message, after an empty one that says that the text begins.
fn over_websocket(request: &mut Request<Body>, text: Body) -> Response<Body> {
    let accepted = match websocket::accept(request, &SUBPROTOCOLS) {
        Ok(accepted) => accepted,
        Err(refusal) => return refusal,
    };
    let (response, protocol, upgrade) = accepted.into_parts();
    let message = move |piece: Bytes| match protocol.as_str() {
        BASE64 => Message::text(STANDARD.encode(piece)),
        _ => Message::binary(piece),
    };
    // A text that breaks off ends the connection; the kubelet's error has no place in the protocol.
    let pieces =
        text.into_stream().take_while(|piece| future::ready(piece.is_ok())).filter_map(|piece| async { piece.ok() });
    websocket::send_all(upgrade, stream::once(future::ready(Bytes::new())).chain(pieces).map(message));
    response
}

/// What the kubelet holds of the container's output.
async fn text(server: &Arc<Inner>, scope: &Scope) -> Result<Body, ApiStatus> {
    let query = scope.query();
    let name = scope.info.path_name();
    let options = options(&query, name)?;
    let pod = pods::get(server, scope, name).await?;
    let container = pods::container(query.get("container").unwrap_or_default(), name, &pod)?;
    let Some(endpoint) = pods::kubelet(server, &pod).await? else {
        // A pod that runs nowhere has said nothing.
        return Ok(Body::empty());
    };
    let path = format!("/containerLogs/{}/{name}/{container}?{options}", scope.info.namespace);
    let uri = pods::kubelet_uri(&endpoint, &path)?;
    let connector = if query.is_on("insecureSkipTLSVerifyBackend") {
        // The caller gives up knowing whom it hears from; the server still shows its identity to nobody else.
        server.nodes.cluster()
    } else {
        endpoint.connector
    };
    let backend = Backend { connector, uri, host: String::new(), response_timeout: None };
    let answer = forward(Request::new(Body::empty()), &backend, &server.stopping).await;
    let response = answer.map_err(|error| ApiStatus::internal(chain(&error)))?;
    if response.status() != StatusCode::OK {
        return Err(failure(response, name).await);
    }
    Ok(response.into_body())
}

/// The kubelet's words, as upstream's response checker tells them. A redirect is a failure.
async fn failure(response: Response<Body>, name: &str) -> ApiStatus {
    let code = response.status().as_u16();
    // A text that cannot be read leaves the code to speak for itself.
    let text = response.into_body().read(FAILURE_BYTES_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim_end().to_owned();
    match code {
        400 => ApiStatus::bad_request(text),
        404 => {
            let mut status = ApiStatus::failure(
                Reason::NotFound,
                format!("the server could not find the requested resource ( pods/log {name})"),
            );
            status.details_mut().name = name.to_owned();
            status.cause("UnexpectedServerResponse", text, "")
        }
        _ => {
            let message = format!(
                "an error on the server ({text:?}) has prevented the request from succeeding ( pods/log {name})"
            );
            let mut status = ApiStatus::failure(Reason::InternalError, message);
            status.details_mut().name = name.to_owned();
            status.cause("UnexpectedServerResponse", text, "")
        }
    }
}

/// Checks the options and writes them as the kubelet's query.
fn options(query: &Query<'_>, name: &str) -> Result<String, ApiStatus> {
    let mut errors = ErrorList::new();
    let mut out = String::new();
    let mut add = |name: &str, value: &str| {
        let separator = if out.is_empty() { "" } else { "&" };
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "{separator}{name}={}",
            percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC)
        );
    };
    for flag in ["follow", "previous", "timestamps"] {
        if query.is_on(flag) {
            add(flag, "true");
        }
    }
    let number = |name: &str| -> Result<Option<i64>, ApiStatus> {
        match query.get(name).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| ApiStatus::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        }
    };
    let tail = number("tailLines")?;
    if let Some(lines) = tail {
        if lines < 0 {
            let detail = "must be greater than or equal to 0";
            errors.push(Error::invalid(&Path::new("tailLines"), lines, detail));
        }
        add("tailLines", &lines.to_string());
    }
    if let Some(limit) = number("limitBytes")? {
        if limit < 1 {
            errors.push(Error::invalid(&Path::new("limitBytes"), limit, "must be greater than 0"));
        }
        add("limitBytes", &limit.to_string());
    }
    let since_seconds = number("sinceSeconds")?;
    let since_time = query.get("sinceTime").filter(|text| !text.is_empty());
    match (since_seconds, since_time) {
        (Some(_), Some(_)) => {
            let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(Error::forbidden(&Path::root(), detail));
        }
        (Some(seconds), None) => {
            if seconds < 1 {
                errors.push(Error::invalid(&Path::new("sinceSeconds"), seconds, "must be greater than 0"));
            }
            add("sinceSeconds", &seconds.to_string());
        }
        (None, Some(time)) => {
            if time.parse::<jiff::Timestamp>().is_err() {
                return Err(ApiStatus::bad_request(format!("parsing time {time:?}: not RFC 3339")));
            }
            add("sinceTime", time);
        }
        (None, None) => {}
    }
    let stream = query.get("stream").filter(|text| !text.is_empty()).unwrap_or("All");
    if !matches!(stream, "All" | "Stdout" | "Stderr") {
        errors.push(Error::not_supported(&Path::new("stream"), stream, &["All", "Stderr", "Stdout"]));
    } else if stream != "All" && tail.is_some() {
        let detail = "`tailLines` and specific `stream` are mutually exclusive for now";
        errors.push(Error::forbidden(&Path::root(), detail));
    }
    add("stream", stream);
    if errors.is_empty() {
        return Ok(out);
    }
    Err(ApiStatus::invalid(&GroupKind::new("", "PodLogOptions"), name, &errors))
}
