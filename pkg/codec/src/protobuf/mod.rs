//! Kubernetes protobuf, driven by the schema table: trees in and out, the `k8s\0` envelope, lists and watch frames
//! put together from items that are encoded already.

mod decode;
mod encode;
pub mod envelope;
pub mod list;
pub mod wire;

use rkube_apimachinery::schema::{SchemaSet, TypeId};
use serde_json::Value;

pub use decode::{MessageError, decode};
pub use encode::{EncodeError, encode};
pub use envelope::{MAGIC, Unknown};

/// An object as clients get it: envelope and message. `apiVersion` and `kind` are the tree's.
pub fn encode_object(value: &Value, schema: &SchemaSet, ty: TypeId) -> Result<Vec<u8>, EncodeError> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let raw = encode(value, schema, ty)?;
    Ok(envelope::wrap(text("apiVersion"), text("kind"), &raw))
}

/// The message in an envelope as a tree with its `apiVersion` and `kind`.
pub fn decode_object(bytes: &[u8], schema: &SchemaSet, ty: TypeId) -> Result<Value, MessageError> {
    let unknown = Unknown::parse(bytes)?;
    let mut value = decode(unknown.raw, schema, ty)?;
    unknown.put_type(&mut value);
    Ok(value)
}

/// Why an object does not get from one form to the other.
#[derive(Debug, thiserror::Error)]
pub enum TranscodeError {
    #[error("the object is not JSON")]
    Json(#[from] serde_json::Error),
    #[error("no kind {kind:?} of {api_version:?} has a protobuf form")]
    Kind { api_version: String, kind: String },
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// A built-in object (or machinery type: `Status`, `PartialObjectMetadata`) from JSON to protobuf, with its envelope.
/// What it is, it says itself.
pub fn from_json(json: &[u8]) -> Result<Vec<u8>, TranscodeError> {
    let value: Value = serde_json::from_slice(json)?;
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let ty = type_named_in(text("apiVersion"), text("kind"))?;
    Ok(encode_object(&value, rkube_api::schema(), ty)?)
}

/// A built-in object from protobuf, with its envelope, to a tree. What it is, the envelope says.
pub fn to_value(bytes: &[u8]) -> Result<Value, TranscodeError> {
    let unknown = Unknown::parse(bytes)?;
    let ty = type_named_in(&unknown.api_version, &unknown.kind)?;
    let mut value = decode(unknown.raw, rkube_api::schema(), ty)?;
    unknown.put_type(&mut value);
    Ok(value)
}

fn type_named_in(api_version: &str, kind: &str) -> Result<TypeId, TranscodeError> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    rkube_api::schema::type_of_parts(group, version, kind)
        .ok_or_else(|| TranscodeError::Kind { api_version: api_version.to_owned(), kind: kind.to_owned() })
}
