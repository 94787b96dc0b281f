//! DELETE of one object and of collections.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/handlers/delete.go`, v1.36.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use rkube_apimachinery::status::ApiStatus;
use rkube_http::body::Body;
use rkube_registry::Store;
use rkube_registry::options::DeleteOptions;
use serde_json::Value;

use super::list::respond_list;
use super::write::respond_answer;
use super::{namespace, output, store_target, table_options};
use crate::negotiation::body_encoding;
use crate::scope::Target;
use crate::server::Inner;
use crate::wire::{codec, read_body};

pub(super) async fn one(
    server: &Arc<Inner>,
    target: &Target,
    store: &Store,
    body: Body,
) -> Result<Response<Body>, ApiStatus> {
    let scope = &target.scope;
    let output = output(target, false)?;
    let table = table_options(server, output, &target.query())?;
    let options = delete_options(target, &read_body(body).await?)?;
    let wants_cascade = options.orphan_dependents == Some(false);
    let deleted = store.delete(&scope.context, &store_target(target), options).await?;
    // Only a client that says so learns by the code that the object is still there: old clients expect 200.
    let status = if !deleted.immediate && wants_cascade { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok(respond_answer(target, deleted.answer, status, output, &table))
}

pub(super) async fn collection(
    server: &Arc<Inner>,
    target: &Target,
    store: &Store,
    body: Body,
) -> Result<Response<Body>, ApiStatus> {
    let scope = &target.scope;
    let output = output(target, false)?;
    let table = table_options(server, output, &target.query())?;
    let list = target.query().list_options()?;
    list.validate()?;
    let options = delete_options(target, &read_body(body).await?)?;
    let deleted = store.delete_collection(&scope.context, namespace(target), options, &list).await?;
    respond_list(&target.row, deleted, output, &table, &scope.headers)
}

/// From the body, or from the query when there is none.
fn delete_options(target: &Target, bytes: &Bytes) -> Result<DeleteOptions, ApiStatus> {
    let mut options = if bytes.is_empty() {
        target.query().delete_options()?
    } else {
        let encoding = body_encoding(&target.scope.headers, true)?;
        let decoded = codec::options(bytes, encoding).map_err(ApiStatus::bad_request)?;
        let kind = decoded.get("kind").and_then(Value::as_str).unwrap_or_default();
        if !kind.is_empty() && kind != "DeleteOptions" {
            return Err(ApiStatus::bad_request("decoded object cannot be converted to DeleteOptions"));
        }
        serde_json::from_value(decoded).map_err(|error| ApiStatus::bad_request(error.to_string()))?
    };
    options.ignore_store_read_error_with_cluster_breaking_potential = None;
    options.validate()?;
    Ok(options)
}
