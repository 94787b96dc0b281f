//! Kubernetes protobuf, driven by the schema table: trees in and out, the `k8s\0` envelope, lists and watch frames
//! put together from items that are encoded already.

mod decode;
mod encode;
pub mod envelope;
pub mod list;
mod wire;

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
