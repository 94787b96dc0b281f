//! POST, PUT and PATCH.

use std::sync::Arc;

use http::{Response, StatusCode, header};
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::status::{ApiStatus, Status};
use rkube_http::body::Body;
use rkube_registry::Store;
use rkube_registry::store::{Answer, Patch, Target as StoreTarget};
use serde_json::Value;

use super::{output, store_target, table_options};
use crate::negotiation::{Output, media_type};
use crate::respond;
use crate::scope::Target;
use crate::server::Inner;
use crate::wire::{decode, read_body};

/// The kind a request's body is of.
pub(super) fn body_kind(target: &Target) -> GroupVersionKind {
    match target.row.subresource(&target.scope.info.subresource) {
        Some(sub) => GroupVersionKind::new(sub.group.as_ref(), sub.version.as_ref(), sub.kind.as_ref()),
        None => target.row.gvk(),
    }
}

pub(super) async fn create(
    server: &Arc<Inner>,
    target: &Target,
    store: &Store,
    body: Body,
) -> Result<Response<Body>, ApiStatus> {
    let scope = &target.scope;
    let output = output(target, false)?;
    let table = table_options(server, output, &target.query())?;
    let bytes = read_body(body).await?;
    let options = target.query().create_options();
    options.validate()?;
    let object = decode(&bytes, &scope.headers, &body_kind(target), &options.field_validation, &scope.context)?;
    let answer = store.create(&scope.context, &store_target(target), object, &options).await?;
    Ok(respond_answer(target, answer, StatusCode::CREATED, output, &table))
}

/// `POST /api/v1/namespaces/<ns>/bindings`: the pod is named in the body.
pub(super) async fn bind(server: &Arc<Inner>, target: &Target, body: Body) -> Result<Response<Body>, ApiStatus> {
    let scope = &target.scope;
    let output = output(target, false)?;
    let table = table_options(server, output, &target.query())?;
    let bytes = read_body(body).await?;
    let options = target.query().create_options();
    options.validate()?;
    let object = decode(&bytes, &scope.headers, &body_kind(target), &options.field_validation, &scope.context)?;
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let pods = rkube_api::resource_named("", "v1", "pods").and_then(|pods| server.registry.store(&pods.gvr()));
    let store = pods.ok_or_else(crate::answer::resource_not_found)?;
    let pod = StoreTarget::new(scope.info.namespace.as_str(), name).subresource("binding");
    let answer = store.create(&scope.context, &pod, object, &options).await?;
    Ok(respond_answer(target, answer, StatusCode::CREATED, output, &table))
}

pub(super) async fn update(
    server: &Arc<Inner>,
    target: &Target,
    store: &Store,
    body: Body,
) -> Result<Response<Body>, ApiStatus> {
    let scope = &target.scope;
    let output = output(target, false)?;
    let table = table_options(server, output, &target.query())?;
    let bytes = read_body(body).await?;
    let options = target.query().update_options();
    options.validate()?;
    let object = decode(&bytes, &scope.headers, &body_kind(target), &options.field_validation, &scope.context)?;
    let written = store.update(&scope.context, &store_target(target), object, &options).await?;
    let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(respond::object(status, &target.row, &written.object, output, &table, &scope.headers))
}

pub(super) async fn patch(
    server: &Arc<Inner>,
    target: &Target,
    store: &Store,
    body: Body,
) -> Result<Response<Body>, ApiStatus> {
    const JSON_PATCH: &str = "application/json-patch+json";
    const MERGE_PATCH: &str = "application/merge-patch+json";
    const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";
    const APPLY_PATCH: &str = "application/apply-patch+yaml";

    let scope = &target.scope;
    let output = output(target, false)?;
    let table = table_options(server, output, &target.query())?;
    let content_type =
        scope.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = media_type(content_type);
    // Merging by keys needs a schema that is compiled in.
    let has_strategic = rkube_api::resource(&target.row.gvr()).is_some();
    let wrap: fn(bytes::Bytes) -> Patch = match content_type {
        JSON_PATCH => Patch::Json,
        MERGE_PATCH => Patch::Merge,
        STRATEGIC_MERGE_PATCH if has_strategic => Patch::Strategic,
        APPLY_PATCH => Patch::Apply,
        _ => {
            let known: &[&str] = if has_strategic {
                &[JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, APPLY_PATCH]
            } else {
                &[JSON_PATCH, MERGE_PATCH, APPLY_PATCH]
            };
            let message = format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                known.join(", ")
            );
            return Err(ApiStatus::unsupported_media_type(message));
        }
    };
    let bytes = read_body(body).await?;
    let options = target.query().patch_options();
    options.validate(content_type == APPLY_PATCH)?;
    let written = store.patch(&scope.context, &store_target(target), wrap(bytes), &options).await?;
    let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(respond::object(status, &target.row, &written.object, output, &table, &scope.headers))
}

/// An object, or the Status some subresources and deletes answer with.
pub(super) fn respond_answer(
    target: &Target,
    answer: Answer,
    status: StatusCode,
    output: Output,
    table: &rkube_codec::table::Options,
) -> Response<Body> {
    match answer {
        Answer::Object(object) => respond::object(status, &target.row, &object, output, table, &target.scope.headers),
        Answer::Status(mut answer) => {
            answer.code = status.as_u16();
            respond_status(status, *answer, output, &target.scope.headers)
        }
    }
}

/// A successful Status.
pub(super) fn respond_status(
    code: StatusCode,
    status: Status,
    output: Output,
    headers: &http::HeaderMap,
) -> Response<Body> {
    match serde_json::to_value(&status) {
        Ok(value) => respond::value(code, &value, output, headers),
        Err(error) => respond::failure(&ApiStatus::internal(error), output),
    }
}
