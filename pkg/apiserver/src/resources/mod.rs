//! Requests for resources: one set of handlers for every row of the catalog.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/installer.go` and `handlers`, v1.36.

mod delete;
mod list;
mod reviews;
mod watch;
mod write;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use rkube_api::resource::SharedResource;
use rkube_apimachinery::status::{ApiStatus, Reason};
use rkube_codec::table::{IncludeObject, Options as TableOptions};
use rkube_http::body::Body;
use rkube_registry::Store;
use rkube_registry::store::Target as StoreTarget;

use crate::answer::{method_not_allowed, resource_not_found};
use crate::negotiation::{Output, Transform};
use crate::proxy;
use crate::query::Query;
use crate::respond;
use crate::scope::{Scope, Target};
use crate::server::Inner;
use crate::wire::codec::has_protobuf;

/// Subresources that are streams or backends, not objects.
const CONNECTED: [&str; 5] = ["exec", "attach", "portforward", "proxy", "log"];

/// Answers a request under a group and version that is served.
pub(crate) fn dispatch(
    server: Arc<Inner>,
    scope: Scope,
    request: Request<Body>,
) -> BoxFuture<'static, Result<Response<Body>, ApiStatus>> {
    Box::pin(async move { answer(&server, scope, request).await })
}

async fn answer(server: &Arc<Inner>, scope: Scope, request: Request<Body>) -> Result<Response<Body>, ApiStatus> {
    let row = server.catalog.load().find(&scope.info.gvr()).cloned().ok_or_else(resource_not_found)?;
    check_path(&scope, &row)?;
    let info = &scope.info;
    if CONNECTED.contains(&info.subresource.as_str()) && row.subresource(&info.subresource).is_some() {
        return proxy::connect(server, scope, &row, request).await;
    }
    let verb = verb(&scope, &row)?;
    if let Some(text) = deprecation(&row) {
        scope.context.warn(text);
    }
    let target = Target { scope, row };
    let body = |request: Request<Body>| request.into_body();
    let Some(store) = server.registry.store(&target.row.gvr()) else {
        return reviews::answer(server, &target, verb, body(request)).await;
    };
    // Boxed one by one: their futures differ in size by much, and most requests are small reads.
    let answer: BoxFuture<'_, Result<Response<Body>, ApiStatus>> = match verb {
        "get" => Box::pin(get(server, &target, &store)),
        "list" => Box::pin(list::answer(server, &target, &store)),
        "watch" if request.method() != Method::GET => return Err(method_not_allowed()),
        "watch" => Box::pin(watch::answer(server, &target, &store, request)),
        "create" => Box::pin(write::create(server, &target, &store, body(request))),
        "update" => Box::pin(write::update(server, &target, &store, body(request))),
        "patch" => Box::pin(write::patch(server, &target, &store, body(request))),
        "delete" => Box::pin(delete::one(server, &target, &store, body(request))),
        "deletecollection" => Box::pin(delete::collection(server, &target, &store, body(request))),
        _ => return Err(method_not_allowed()),
    };
    answer.await
}

/// What upstream says of an API that is to be left.
///
/// Behaves as `k8s.io/apiserver/pkg/endpoints/deprecation`, v1.36.
fn deprecation(row: &SharedResource) -> Option<&'static str> {
    match (row.group.as_ref(), row.version.as_ref(), row.plural.as_ref()) {
        ("", "v1", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        ("", "v1", "endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        _ => None,
    }
}

/// Whether the shape of the path fits the row: 404 otherwise.
fn check_path(scope: &Scope, row: &SharedResource) -> Result<(), ApiStatus> {
    let info = &scope.info;
    if info.parts.iter().any(|part| part.is_empty() || part == "." || part == "..") {
        let is_proxy_rest = matches!(info.subresource.as_str(), "proxy");
        if !is_proxy_rest {
            return Err(resource_not_found());
        }
    }
    if matches!(info.namespace.as_str(), "." | "..") {
        return Err(resource_not_found());
    }
    let is_namespace = row.group.is_empty() && row.plural == "namespaces";
    if !row.namespaced && !is_namespace && !info.namespace.is_empty() {
        return Err(resource_not_found());
    }
    let has_name = !info.path_name().is_empty();
    if row.namespaced && info.namespace.is_empty() && has_name {
        return Err(resource_not_found());
    }
    if !info.subresource.is_empty() {
        if row.subresource(&info.subresource).is_none() {
            return Err(resource_not_found());
        }
        if info.parts.len() > 3 && info.subresource != "proxy" {
            return Err(resource_not_found());
        }
    }
    Ok(())
}

/// The verb, if the path and the row allow it: 405 otherwise.
fn verb(scope: &Scope, row: &SharedResource) -> Result<&'static str, ApiStatus> {
    let info = &scope.info;
    let verb = info.verb;
    let has_name = !info.path_name().is_empty();
    let allowed = match verb {
        "list" | "deletecollection" => !has_name,
        "watch" => !has_name || info.watch_prefix,
        "create" if info.subresource.is_empty() => !has_name && (!row.namespaced || !info.namespace.is_empty()),
        _ => has_name,
    };
    let known = if info.subresource.is_empty() {
        row.has_verb(verb)
    } else {
        row.subresource(&info.subresource)
            .is_some_and(|subresource| subresource.verbs.iter().any(|known| known == verb))
    };
    // Collections are deleted within a namespace.
    let in_reach = verb != "deletecollection" || !row.namespaced || !info.namespace.is_empty();
    if allowed && known && in_reach { Ok(verb) } else { Err(method_not_allowed()) }
}

/// What the registry is asked about.
pub(crate) fn store_target(target: &Target) -> StoreTarget {
    let info = &target.scope.info;
    let namespace = if target.row.namespaced { info.namespace.as_str() } else { "" };
    StoreTarget::new(namespace, info.path_name()).subresource(&info.subresource)
}

/// The namespace of a collection.
pub(crate) fn namespace(target: &Target) -> &str {
    if target.row.namespaced { &target.scope.info.namespace } else { "" }
}

/// The form the client wants, if the resource has it.
pub(crate) fn output(target: &Target, streams: bool) -> Result<Output, ApiStatus> {
    let protobuf = has_protobuf(&target.row.gvk());
    Output::negotiate(&target.scope.headers, &target.query(), streams, protobuf)
}

async fn get(server: &Arc<Inner>, target: &Target, store: &Store) -> Result<Response<Body>, ApiStatus> {
    let output = output(target, false)?;
    let options = table_options(server, output, &target.query())?;
    let object = store.get(&target.scope.context, &store_target(target), &target.query().get_options()).await?;
    Ok(respond::object(StatusCode::OK, &target.row, &object, output, &options, &target.scope.headers))
}

/// Reads and checks what tables take from the query.
pub(crate) fn table_options(server: &Inner, output: Output, query: &Query<'_>) -> Result<TableOptions, ApiStatus> {
    let include_object = match query.get("includeObject").unwrap_or_default() {
        "" | "Metadata" => IncludeObject::Metadata,
        "None" => IncludeObject::None,
        "Object" => IncludeObject::Object,
        other if matches!(output.transform, Transform::Table { .. }) => {
            let message = format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            );
            return Err(ApiStatus::failure(Reason::BadRequest, message));
        }
        _ => IncludeObject::Metadata,
    };
    Ok(TableOptions { include_object, no_headers: false, now: server.clock.now() })
}
