//! HTTP/1.1 upgrades on the server side: recognizing them, answering `101`, taking the connection over.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use crate::body::Body;

/// A connection after its upgrade.
pub type UpgradedIo = TokioIo<Upgraded>;

/// Whether a comma-separated header names `token`, in any case.
pub fn has_token(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Whether the client asks to change protocols.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    has_token(headers, CONNECTION, "upgrade") && headers.contains_key(UPGRADE)
}

pub fn is_websocket(headers: &HeaderMap) -> bool {
    is_upgrade(headers) && has_token(headers, UPGRADE, "websocket")
}

pub fn is_spdy(headers: &HeaderMap) -> bool {
    is_upgrade(headers) && has_token(headers, UPGRADE, crate::spdy::SPDY_31)
}

/// `101 Switching Protocols` to `protocol`.
pub fn switching_protocols(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// A plain-text failure of a handshake, before any protocol was switched.
pub fn refuse(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Body::from(message.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The handle that becomes the connection once a `101` has been sent; `None` when the connection cannot
/// be upgraded (HTTP/2, or a request that came from no socket).
pub fn take<B>(request: &mut Request<B>) -> Option<OnUpgrade> {
    request.extensions_mut().remove::<OnUpgrade>()
}
