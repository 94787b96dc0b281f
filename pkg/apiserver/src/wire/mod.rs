//! Bodies: objects from clients, checked against the schema, and objects to clients in the encoding they
//! accept.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/handlers/{create,update,rest}.go` where they decode, v1.36.

use bytes::Bytes;
use http::HeaderMap;
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::status::ApiStatus;
use rkube_codec::{FieldValidation, Media};
use rkube_http::body::{Body, REQUEST_BODY_BYTES_MAX, ReadError};
use rkube_registry::RequestContext;
use serde_json::Value;

use crate::negotiation::body_encoding;

pub(crate) mod codec;

/// Reads a body within the limit.
pub(crate) async fn read_body(body: Body) -> Result<Bytes, ApiStatus> {
    body.read(REQUEST_BODY_BYTES_MAX).await.map_err(|error| match error {
        ReadError::TooLarge { limit } => ApiStatus::request_entity_too_large(format!("limit is {limit}")),
        ReadError::TimedOut => ApiStatus::timeout("the request's body did not arrive in time", 0),
        ReadError::Transport(error) => ApiStatus::bad_request(format!("reading the request body: {error}")),
    })
}

/// Decodes an object of `kind`. A body without `apiVersion` and `kind` is taken to be of `kind`.
pub(crate) fn decode(
    bytes: &Bytes,
    headers: &HeaderMap,
    kind: &GroupVersionKind,
    validation: &str,
    context: &RequestContext,
) -> Result<Value, ApiStatus> {
    let encoding = body_encoding(headers, codec::has_protobuf(kind))?;
    // The options are validated by then; an unknown word cannot come here.
    let validation = FieldValidation::parse(validation).unwrap_or_default();
    let Some(ty) = rkube_api::type_of(kind) else {
        return decode_untyped(bytes, encoding, kind, validation, context);
    };
    let schema = rkube_api::schema();
    let decoded = rkube_codec::decode(bytes, encoding, kind, schema, ty, validation)?;
    if validation == FieldValidation::Warn {
        decoded.warnings.into_iter().for_each(|text| context.warn(text));
    }
    Ok(decoded.value)
}

/// Custom resources are checked against their schema by their strategy.
fn decode_untyped(
    bytes: &Bytes,
    encoding: Media,
    kind: &GroupVersionKind,
    validation: FieldValidation,
    context: &RequestContext,
) -> Result<Value, ApiStatus> {
    let unrecognized = |error: &str| {
        ApiStatus::bad_request(format!("the object provided is unrecognized (must be of type {}): {error}", kind.kind))
    };
    let (mut value, problems) = codec::untyped(bytes, encoding).map_err(|error| unrecognized(&error))?;
    let object = value.as_object_mut().ok_or_else(|| unrecognized("the body is not an object"))?;
    let expected = [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())];
    for (name, expected) in expected {
        let given = object.entry(name).or_insert_with(|| Value::String(expected.clone()));
        if *given != Value::String(expected.clone()) {
            let message = format!("the {name} in the data ({given}) does not match the expected {name} ({expected})");
            return Err(ApiStatus::bad_request(message));
        }
    }
    match validation {
        FieldValidation::Strict if !problems.is_empty() => {
            Err(unrecognized(&format!("strict decoding error: {}", problems.join(", "))))
        }
        FieldValidation::Warn => {
            problems.into_iter().for_each(|text| context.warn(text));
            Ok(value)
        }
        _ => Ok(value),
    }
}
