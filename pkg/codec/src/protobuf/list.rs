//! Lists and watch frames out of objects that are encoded already: nothing is decoded and nothing copied but the bytes.

use rkube_apimachinery::schema::{SchemaSet, TypeId};
use serde_json::Value;

use super::envelope::{TAIL, Unknown, delimited_len, head};
use super::wire::{DELIMITED, put_bytes, put_tag, put_varint};
use super::{EncodeError, MessageError, encode};

/// The bytes around the items of a list. On the wire: `head`, then for each item [`item_prefix`] and its message,
/// then `tail`.
#[derive(Debug)]
pub struct ListFrame {
    pub head: Vec<u8>,
    pub tail: [u8; 4],
}

/// Frames a list of items whose messages (without envelopes) have these lengths.
pub fn frame(
    api_version: &str,
    kind: &str,
    list_meta: &Value,
    item_lens: impl Iterator<Item = usize>,
) -> Result<ListFrame, EncodeError> {
    let (schema, ty) = list_meta_type()?;
    let meta = encode(list_meta, schema, ty)?;
    let mut metadata = Vec::with_capacity(meta.len() + 4);
    put_bytes(&mut metadata, 1, &meta);
    let raw_len = metadata.len() + item_lens.map(delimited_len).sum::<usize>();
    let mut head = head(api_version, kind, raw_len);
    head.extend_from_slice(&metadata);
    Ok(ListFrame { head, tail: TAIL })
}

fn list_meta_type() -> Result<(&'static SchemaSet, TypeId), EncodeError> {
    let ty = rkube_api::type_named("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta").ok_or(EncodeError::NoForm)?;
    Ok((rkube_api::schema(), ty))
}

/// The message of one item of a `PartialObjectMetadataList`, from the JSON of its metadata.
pub fn partial_item(metadata: &Value) -> Result<Vec<u8>, EncodeError> {
    let ty = rkube_api::type_named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").ok_or(EncodeError::NoForm)?;
    let meta = encode(metadata, rkube_api::schema(), ty)?;
    let mut out = Vec::with_capacity(meta.len() + 6);
    put_bytes(&mut out, 1, &meta);
    Ok(out)
}

/// What precedes an item's message of this length in a list.
pub fn item_prefix(length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(6);
    put_tag(&mut out, 2, DELIMITED);
    put_varint(&mut out, length as u64);
    out
}

/// A whole list from objects in their envelopes, as they are kept beside stored objects.
pub fn encode_list<'a>(
    api_version: &str,
    kind: &str,
    list_meta: &Value,
    items: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, ListError> {
    let items = items.map(|item| Ok(Unknown::parse(item)?.raw)).collect::<Result<Vec<&[u8]>, MessageError>>()?;
    let frame = frame(api_version, kind, list_meta, items.iter().map(|item| item.len()))?;
    let total = frame.head.len() + items.iter().map(|item| delimited_len(item.len())).sum::<usize>() + frame.tail.len();
    let mut out = frame.head;
    out.reserve_exact(total - out.len());
    for item in items {
        put_bytes(&mut out, 2, item);
    }
    out.extend_from_slice(&frame.tail);
    Ok(out)
}

#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("encoding the list's metadata")]
    Meta(#[from] EncodeError),
    #[error("an item is not in its envelope")]
    Item(#[from] MessageError),
}

/// One watch event as a frame of a protobuf stream: four bytes of length and a `WatchEvent`. `object` is in its
/// envelope.
///
/// # Panics
/// Never: an object is far below 4 GiB.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let raw = delimited_len(object.len());
    let length = delimited_len(event.len()) + delimited_len(raw);
    let mut out = Vec::with_capacity(4 + length);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    put_bytes(&mut out, 1, event.as_bytes());
    put_tag(&mut out, 2, DELIMITED);
    put_varint(&mut out, raw as u64);
    put_bytes(&mut out, 1, object);
    out
}
