//! Subresources that are not objects: exec, attach, port-forward, logs, and proxies to nodes, pods, services.
//!
//! The server finds the backend, checks what the caller may do, and passes bytes on. The kubelet speaks the
//! streaming protocols itself, WebSocket and SPDY alike.
//! Behaves as `pkg/registry/core/{pod,node,service}` where they connect, v1.36.

mod html;
mod logs;
mod nodes;
mod pods;
mod services;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use rkube_api::resource::SharedResource;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::status::{ApiStatus, Reason};
use rkube_http::body::Body;
use rkube_http::connect::Connector;
use rkube_http::proxy::{Backend, forward};
use rkube_http::upgrade::is_websocket;

use crate::answer::method_not_allowed;
use crate::auth::Attributes;
use crate::respond;
use crate::scope::Scope;
use crate::server::Inner;

pub use nodes::RegistryNodes;

/// Where a kubelet is and how it is spoken to.
#[derive(Clone)]
pub struct NodeEndpoint {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The node's address, without port.
    pub host: String,
    pub port: u16,
    /// With the server's client certificate.
    pub connector: Connector,
}

/// Finds nodes, and opens connections into the cluster.
pub trait Nodes: Send + Sync + 'static {
    fn kubelet<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<NodeEndpoint, ApiStatus>>;

    /// For pods and services: without any identity of the server.
    fn cluster(&self) -> Connector;
}

/// What a proxied backend may be asked.
const PROXIED: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// A backend, and how its answers are changed.
struct Route {
    backend: Backend,
    /// Links and redirects are rewritten to lead back through this path.
    rewrite: Option<String>,
}

pub(crate) async fn connect(
    server: &Arc<Inner>,
    scope: Scope,
    row: &SharedResource,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiStatus> {
    let subresource = scope.info.subresource.clone();
    let allowed = row.subresource(&subresource).is_some_and(|known| {
        let verb = if scope.info.verb == "proxy" { "get" } else { scope.info.verb };
        known.verbs.iter().any(|known| known == verb) || (subresource == "proxy" && PROXIED.contains(&scope.method))
    });
    if !allowed || scope.info.path_name().is_empty() {
        return Err(method_not_allowed());
    }
    if matches!(subresource.as_str(), "exec" | "attach" | "portforward") {
        may_create(server, &scope).await?;
        let backend = pods::stream(server, &scope).await?;
        return pass_on(server, request, Route { backend, rewrite: None }, &scope).await;
    }
    if subresource == "log" {
        return logs::answer(server, &scope, request).await;
    }
    if let Some(redirect) = missing_slash(&scope) {
        return Ok(redirect);
    }
    let route = match row.plural.as_ref() {
        "nodes" => nodes::route(server, &scope).await?,
        "pods" => pods::route(server, &scope).await?,
        _ => services::route(server, &scope).await?,
    };
    add_forwarded(&mut request, &scope);
    pass_on(server, request, route, &scope).await
}

/// A WebSocket opens with a GET, which must not open what only `create` may.
async fn may_create(server: &Arc<Inner>, scope: &Scope) -> Result<(), ApiStatus> {
    if scope.info.verb == "create" {
        return Ok(());
    }
    let mut attributes = Attributes::of(&scope.info, &scope.user);
    attributes.verb = "create".to_owned();
    server.authorize(&attributes).await
}

/// `.../proxy` without a slash: relative links of the backend's pages would lead astray.
fn missing_slash(scope: &Scope) -> Option<Response<Body>> {
    let path = scope.uri.path();
    let at_root = scope.info.parts.len() == 3 && !path.ends_with('/');
    if !at_root || !matches!(scope.method, Method::GET | Method::HEAD) || is_websocket(&scope.headers) {
        return None;
    }
    let query = scope.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = respond::bytes(StatusCode::MOVED_PERMANENTLY, "text/plain", bytes::Bytes::new());
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_str(&format!("{path}/{query}")).ok()?);
    Some(response)
}

fn add_forwarded(request: &mut Request<Body>, scope: &Scope) {
    let host = scope.headers.get(header::HOST).cloned();
    let host = host.or_else(|| HeaderValue::from_str(scope.uri.authority()?.as_str()).ok());
    if let Ok(uri) = HeaderValue::from_str(scope.uri.path()) {
        request.headers_mut().insert("x-forwarded-uri", uri);
    }
    if let Some(host) = host {
        request.headers_mut().insert("x-forwarded-host", host);
    }
    request.headers_mut().insert("x-forwarded-proto", HeaderValue::from_static("https"));
}

/// Headers by which a front proxy says who somebody is must not reach backends that might believe them.
fn remove_identity(request: &mut Request<Body>) {
    let headers = request.headers_mut();
    headers.remove(header::AUTHORIZATION);
    let names: Vec<_> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-remote-") || name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

async fn pass_on(
    server: &Arc<Inner>,
    mut request: Request<Body>,
    route: Route,
    scope: &Scope,
) -> Result<Response<Body>, ApiStatus> {
    remove_identity(&mut request);
    let host = route.backend.uri.authority().map(|authority| authority.to_string()).unwrap_or_default();
    let response = forward(request, &route.backend, &server.stopping).await.map_err(|error| {
        let error = chain(&error).to_string();
        if scope.info.subresource == "proxy" {
            ApiStatus::service_unavailable(error)
        } else {
            let mut status = ApiStatus::internal(error).into_status();
            status.code = 500;
            ApiStatus::from_wire(status)
        }
    })?;
    match route.rewrite {
        Some(prefix) => Ok(html::rewrite(response, &prefix, &host).await),
        None => Ok(response),
    }
}

/// The parts of `scheme:name:port`, `name:port` or `name`.
fn split_scheme_name_port(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("http", *name, ""),
        [name, port] => ("http", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    let scheme = match scheme {
        "" | "http" => "http",
        "https" => "https",
        _ => return None,
    };
    let name_fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    let port_fits =
        port.is_empty() || (port.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && port.len() <= 63);
    (name_fits && port_fits).then_some((scheme, name, port))
}

/// The backend's URL: what follows `proxy` in the path, and the query.
fn backend_uri(scope: &Scope, scheme: &str, authority: &str) -> Result<Uri, ApiStatus> {
    // Taken from the path as it was sent, so that escapes reach the backend as they are.
    let path = scope.uri.path();
    let marker = "/proxy";
    let mut rest = "";
    // The subresource is the segment after the name; a name or namespace may be `proxy` too.
    let segments_before = if scope.info.prefix == "apis" { 4 } else { 3 };
    let namespace_segments = if scope.info.namespace.is_empty() { 0 } else { 2 };
    for (seen, (position, _)) in path.match_indices('/').enumerate() {
        if seen == segments_before + namespace_segments + 1 && path[position..].starts_with(marker) {
            rest = &path[position + marker.len()..];
            break;
        }
    }
    let rest = if rest.is_empty() { "/" } else { rest };
    let query = scope.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{scheme}://{authority}{rest}{query}")
        .parse()
        .map_err(|error| ApiStatus::failure(Reason::BadRequest, format!("invalid backend URL: {error}")))
}

/// `host:port`, with brackets around an IPv6 address.
fn join_host_port(host: &str, port: &str) -> String {
    match (host.contains(':'), port.is_empty()) {
        (true, true) => format!("[{host}]"),
        (true, false) => format!("[{host}]:{port}"),
        (false, true) => host.to_owned(),
        (false, false) => format!("{host}:{port}"),
    }
}

/// The path under which the client reaches the backend.
fn own_prefix(scope: &Scope) -> String {
    let info = &scope.info;
    let namespace = if info.namespace.is_empty() { String::new() } else { format!("/namespaces/{}", info.namespace) };
    format!("/{}/{}{namespace}/{}/{}/proxy", info.prefix, info.version, info.resource, info.path_name())
}

/// Addresses that a caller may not reach through the server: its own loopback, link-local, multicast.
fn is_global_unicast(address: &str) -> bool {
    match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(v4)) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_unspecified() || v4.is_broadcast())
        }
        Ok(std::net::IpAddr::V6(v6)) => {
            !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified())
                && v6.to_ipv4_mapped().is_none_or(|v4| is_global_unicast(&v4.to_string()))
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_named_as_upstream_names_them() {
        assert_eq!(split_scheme_name_port("web"), Some(("http", "web", "")));
        assert_eq!(split_scheme_name_port("web:8080"), Some(("http", "web", "8080")));
        assert_eq!(split_scheme_name_port("https:web:metrics"), Some(("https", "web", "metrics")));
        for bad in ["", ":80", "ftp:web:80", "a:b:c:d", "we b", "web:8080/../x"] {
            assert_eq!(split_scheme_name_port(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_global_addresses_are_backends() {
        let answers =
            ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fe80::1", "::ffff:127.0.0.1", "fd00::1", "x"];
        assert_eq!(answers.map(is_global_unicast), [true, false, false, false, false, false, true, false]);
    }
}
