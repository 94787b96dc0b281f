//! Bodies: objects from clients, checked against the schema, and objects to clients in the encoding they
//! accept.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/handlers/{create,update,rest}.go` where they decode, v1.36.

use bytes::Bytes;
use http::HeaderMap;
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::status::ApiStatus;
use rkube_codec::Media;
use rkube_http::body::{Body, REQUEST_BODY_BYTES_MAX, ReadError};
use rkube_registry::RequestContext;
use serde_json::Value;

use crate::negotiation::{Encoding, body_encoding};

pub(crate) mod codec;

use codec::{Decoded, decode_any};

/// Reads a body within the limit.
pub(crate) async fn read_body(body: Body) -> Result<Bytes, ApiStatus> {
    body.read(REQUEST_BODY_BYTES_MAX).await.map_err(|error| match error {
        ReadError::TooLarge { limit } => {
            ApiStatus::request_entity_too_large(format!("limit is {limit}"))
        }
        ReadError::TimedOut => ApiStatus::timeout("the request's body did not arrive in time", 0),
        ReadError::Transport(error) => ApiStatus::bad_request(format!("reading the request body: {error}")),
    })
}

/// Strictness about fields the schema does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    /// Nothing said means warn.
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "Ignore" => Self::Ignore,
            "Strict" => Self::Strict,
            _ => Self::Warn,
        }
    }
}

impl From<FieldValidation> for rkube_codec::FieldValidation {
    fn from(validation: FieldValidation) -> Self {
        match validation {
            FieldValidation::Ignore => Self::Ignore,
            FieldValidation::Warn => Self::Warn,
            FieldValidation::Strict => Self::Strict,
        }
    }
}

/// Decodes an object of `kind`, or of another version of its group and kind where `accepts` says so. A body
/// without `apiVersion` and `kind` is taken to be of `kind`.
pub(crate) fn decode(
    bytes: &Bytes,
    headers: &HeaderMap,
    kind: &GroupVersionKind,
    validation: FieldValidation,
    context: &RequestContext,
) -> Result<Value, ApiStatus> {
    let encoding = body_encoding(headers)?;
    if let Some(ty) = rkube_api::type_of(kind) {
        let media = match encoding {
            Encoding::Json => Media::Json,
            Encoding::Yaml => Media::Yaml,
            Encoding::Protobuf => Media::Protobuf,
        };
        let decoded = rkube_codec::decode(bytes, media, kind, rkube_api::schema(), ty, validation.into())?;
        decoded.warnings.into_iter().for_each(|text| context.warn(text));
        return Ok(decoded.value);
    }
    let unrecognized = |error: &str| {
        let summary = summary(bytes);
        ApiStatus::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {error} ({summary})",
            kind.kind
        ))
    };
    let Decoded { mut value, strict } = decode_any(bytes, encoding).map_err(|error| unrecognized(&error))?;
    let object = value.as_object_mut().ok_or_else(|| unrecognized("the body is not an object"))?;
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, given) = (text("apiVersion"), text("kind"));
    if given.is_empty() {
        object.insert("kind".to_owned(), kind.kind.clone().into());
    }
    if api_version.is_empty() {
        object.insert("apiVersion".to_owned(), kind.api_version().into());
    }
    if !given.is_empty() && given != kind.kind {
        let version = api_version.rsplit('/').next().unwrap_or_default();
        let message = format!(
            "{given} in version {version:?} cannot be handled as a {}: the kind in the data ({given}) does not match the expected kind ({})",
            kind.kind, kind.kind
        );
        return Err(ApiStatus::bad_request(message));
    }
    if !api_version.is_empty() && api_version != kind.api_version() {
        let message = format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            kind.api_version()
        );
        return Err(ApiStatus::bad_request(message));
    }
    report(strict, kind, validation, context)?;
    Ok(value)
}

fn handled_as(kind: &GroupVersionKind, error: &str) -> String {
    format!("{} in version {:?} cannot be handled as a {}: {error}", kind.kind, kind.version, kind.kind)
}

/// Deals with unknown and duplicate fields as the client wants.
fn report(
    strict: Vec<String>,
    kind: &GroupVersionKind,
    validation: FieldValidation,
    context: &RequestContext,
) -> Result<(), ApiStatus> {
    if strict.is_empty() {
        return Ok(());
    }
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => strict.into_iter().for_each(|text| context.warn(text)),
        FieldValidation::Strict => {
            let errors = format!("strict decoding error: {}", strict.join(", "));
            return Err(ApiStatus::bad_request(handled_as(kind, &errors)));
        }
    }
    Ok(())
}

/// The beginning of a body, for a message about it.
fn summary(bytes: &[u8]) -> String {
    const LENGTH: usize = 30;
    let is_text = bytes.iter().take(LENGTH).all(|byte| !byte.is_ascii_control() || byte.is_ascii_whitespace());
    if !is_text {
        return "binary data".to_owned();
    }
    let head = String::from_utf8_lossy(bytes.get(..LENGTH.min(bytes.len())).unwrap_or_default());
    if bytes.len() > LENGTH { format!("{head} ...") } else { head.into_owned() }
}
