//! The encodings, from the codec crate, in the form handlers need.

use std::sync::Arc;

use bytes::Bytes;
use rkube_api::StoredObject;
use rkube_api::resource::Resource;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_codec::protobuf::{self as pb, Unknown, list};
use rkube_codec::table::ListMeta;
use rkube_codec::{Media, json, yaml as yaml_codec};
use serde::Deserialize;
use serde_json::{Value, json};

/// Decodes options, which are of no group in particular.
pub(crate) fn options(bytes: &Bytes, encoding: Media) -> Result<Value, String> {
    match encoding {
        Media::Json => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
        Media::Yaml => yaml_codec::parse(bytes).map(|parsed| parsed.value).map_err(|error| error.to_string()),
        Media::Protobuf => pb::to_value(bytes).map_err(text),
    }
}

/// An object without a schema, which only JSON and YAML can hold.
pub(crate) fn untyped(bytes: &Bytes, encoding: Media) -> Result<(Value, Vec<String>), String> {
    match encoding {
        Media::Json => {
            let typed = json::decode::untyped(bytes, true).map_err(|error| error.to_string())?;
            Ok((typed.value, typed.problems))
        }
        Media::Yaml => {
            let parsed = yaml_codec::parse(bytes).map_err(|error| error.to_string())?;
            Ok((parsed.value, parsed.duplicate.into_iter().collect()))
        }
        Media::Protobuf => Err("the kind has no protobuf form".to_owned()),
    }
}

fn text<E: std::error::Error + 'static>(error: E) -> String {
    chain(&error).to_string()
}

/// An object's protobuf form, with its envelope.
pub(crate) fn protobuf(json: &[u8]) -> Result<Bytes, String> {
    pb::from_json(json).map(Bytes::from).map_err(text)
}

/// An object as YAML.
pub(crate) fn yaml(json: &[u8]) -> Result<Bytes, String> {
    let value: Value = serde_json::from_slice(json).map_err(text)?;
    yaml_codec::write(&value).map(Bytes::from).map_err(text)
}

/// A list in protobuf, in pieces: the items are the bytes that are kept beside the stored objects.
pub(crate) fn protobuf_list(
    row: &Resource,
    items: &[Arc<StoredObject>],
    meta: &ListMeta,
) -> Result<Vec<Bytes>, String> {
    let mut messages = Vec::with_capacity(items.len());
    for item in items {
        let object = item.protobuf(protobuf)?;
        let raw = Unknown::parse(&object).map_err(text)?.raw;
        messages.push(object.slice_ref(raw));
    }
    assemble(&row.group_version().to_string(), &format!("{}List", row.kind), messages, meta)
}

/// A list of metadata in protobuf, in pieces.
pub(crate) fn protobuf_partial_list(
    items: &[Arc<StoredObject>],
    meta: &ListMeta,
    version: &str,
) -> Result<Vec<Bytes>, String> {
    #[derive(Deserialize)]
    struct Head {
        metadata: Value,
    }
    let message = |item: &Arc<StoredObject>| -> Result<Bytes, String> {
        let head: Head = serde_json::from_slice(&item.json).map_err(text)?;
        list::partial_item(&head.metadata).map(Bytes::from).map_err(text)
    };
    let messages = items.iter().map(message).collect::<Result<Vec<Bytes>, String>>()?;
    assemble(&format!("meta.k8s.io/{version}"), "PartialObjectMetadataList", messages, meta)
}

fn assemble(api_version: &str, kind: &str, messages: Vec<Bytes>, meta: &ListMeta) -> Result<Vec<Bytes>, String> {
    let mut list_meta = json!({"resourceVersion": meta.resource_version});
    if !meta.continue_token.is_empty() {
        list_meta["continue"] = json!(meta.continue_token);
    }
    if let Some(remaining) = meta.remaining_item_count {
        list_meta["remainingItemCount"] = json!(remaining);
    }
    let frame = list::frame(api_version, kind, &list_meta, messages.iter().map(Bytes::len)).map_err(text)?;
    let mut pieces = Vec::with_capacity(2 * messages.len() + 2);
    pieces.push(Bytes::from(frame.head));
    for message in messages {
        pieces.push(Bytes::from(list::item_prefix(message.len())));
        pieces.push(message);
    }
    pieces.push(Bytes::copy_from_slice(&frame.tail));
    Ok(pieces)
}

/// A watch event with its length in front.
pub(crate) fn protobuf_event(kind: &str, object: &Bytes) -> Bytes {
    Bytes::from(list::watch_frame(kind, object))
}

/// Whether objects of a kind can be had in protobuf.
pub(crate) fn has_protobuf(kind: &GroupVersionKind) -> bool {
    rkube_api::type_of(kind).is_some()
}
