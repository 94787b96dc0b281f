//! Passes a request on to another server and its answer back, upgrades included: how the API server reaches
//! kubelets, services and pods.
//!
//! Invariant: a redirect is handed to the client, never followed (CVE-2018-1002102, CVE-2020-8559). A backend
//! that answers an upgrade with anything but `101` is read as an ordinary answer and its connection closed, so
//! that no client ever speaks to it over a connection that carries the server's identity (CVE-2018-1002105).
//! Behaves as `k8s.io/apimachinery/pkg/util/proxy/upgradeaware.go`, v1.36.

use std::time::Duration;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rkube_apimachinery::{chain::chain, task};
use tokio_util::sync::CancellationToken;
use tracing::{debug, debug_span};

use crate::body::Body;
use crate::client::{RequestError, Upgrade, send_alone, upgrade};
use crate::connect::Connector;
use crate::upgrade::{is_upgrade, take};

/// Where to, and how.
#[derive(Clone)]
pub struct Backend {
    pub connector: Connector,
    /// The whole URL asked of the backend.
    pub uri: Uri,
    /// Sent as `Host`; the URL's authority where it is empty.
    pub host: String,
    /// For how long the head of an answer is awaited; `None` for as long as it takes.
    pub response_timeout: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("error trying to reach service")]
    Backend(#[from] RequestError),
    #[error("error trying to reach service: no answer in time")]
    Timeout,
    #[error("the client's connection cannot be upgraded")]
    NoUpgrade,
    #[error("the backend switched to a protocol that was not asked for")]
    WrongProtocol,
}

/// Headers that belong to one connection, not to the message.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

/// Passes `request` on. Headers that identify the caller must have been removed by whoever authenticated it.
/// `shutdown` ends upgraded connections.
pub async fn forward(
    mut request: Request<Body>,
    backend: &Backend,
    shutdown: &CancellationToken,
) -> Result<Response<Body>, ProxyError> {
    let upgrading = is_upgrade(request.headers());
    if !upgrading {
        prepare(request.headers_mut(), backend, None);
        let answer = send_alone(&backend.connector, &backend.uri, &mut request);
        let mut response = within(backend.response_timeout, answer).await??;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(ProxyError::WrongProtocol);
        }
        strip_hop_by_hop(response.headers_mut());
        return Ok(response);
    }
    let client = take(&mut request).ok_or(ProxyError::NoUpgrade)?;
    let asked = request.headers().get(header::UPGRADE).cloned();
    prepare(request.headers_mut(), backend, asked.clone());
    match within(backend.response_timeout, upgrade(&backend.connector, &backend.uri, request)).await?? {
        Upgrade::Refused(mut response) => {
            strip_hop_by_hop(response.headers_mut());
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            Ok(response)
        }
        Upgrade::Done { response, io } => {
            let switched = response.headers().get(header::UPGRADE);
            let same = match (&asked, switched) {
                (Some(asked), Some(switched)) => asked.as_bytes().eq_ignore_ascii_case(switched.as_bytes()),
                _ => false,
            };
            if !same {
                return Err(ProxyError::WrongProtocol);
            }
            let shutdown = shutdown.clone();
            task::spawn(debug_span!("upgraded-proxy"), async move {
                let client = match client.await {
                    Ok(client) => client,
                    Err(error) => {
                        debug!(error = %chain(&error), "The client left before the upgrade was done");
                        return;
                    }
                };
                let (mut near, mut far) = (TokioIo::new(client), io);
                tokio::select! {
                    result = tokio::io::copy_bidirectional(&mut near, &mut far) => {
                        if let Err(error) = result {
                            debug!(error = %chain(&error), "A proxied connection broke");
                        }
                    }
                    () = shutdown.cancelled() => {}
                }
            });
            Ok(response.map(|()| Body::empty()))
        }
    }
}

async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Result<T, ProxyError> {
    match limit {
        None => Ok(future.await),
        Some(limit) => tokio::time::timeout(limit, future).await.map_err(|_| ProxyError::Timeout),
    }
}

fn prepare(headers: &mut HeaderMap, backend: &Backend, upgrade: Option<HeaderValue>) {
    strip_hop_by_hop(headers);
    headers.remove(header::UPGRADE);
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
    let authority = backend.uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let host = if backend.host.is_empty() { authority } else { &backend.host };
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
}

/// Removes what belongs to the connection, and what `Connection` says belongs to it.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| *name != header::UPGRADE)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}
