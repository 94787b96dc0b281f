//! The envelope of stored and sent objects: `k8s\0` and a `runtime.Unknown` with the kind and the message.
//!
//! Behaves as apimachinery/pkg/runtime/serializer/protobuf, v1.36.

use serde_json::Value;

use super::MessageError;
use super::wire::{DELIMITED, Payload, Reader, put_bytes, put_tag, put_varint, varint_len};

/// What an object in protobuf begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// `contentEncoding` and `contentType`, which upstream writes empty.
pub(super) const TAIL: [u8; 4] = [0x1a, 0, 0x22, 0];

/// An opened envelope.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unknown<'a> {
    pub api_version: String,
    pub kind: String,
    /// The message.
    pub raw: &'a [u8],
    pub content_encoding: String,
    pub content_type: String,
}

impl<'a> Unknown<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let body = bytes.strip_prefix(MAGIC).ok_or(MessageError::NoMagic)?;
        let mut unknown = Self::default();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut reader = Reader::new(body);
        while let Some((number, payload)) = reader.field()? {
            match (number, payload) {
                (1, Payload::Bytes(bytes)) => {
                    let mut reader = Reader::new(bytes);
                    while let Some((number, payload)) = reader.field()? {
                        match (number, payload) {
                            (1, Payload::Bytes(bytes)) => unknown.api_version = text(bytes),
                            (2, Payload::Bytes(bytes)) => unknown.kind = text(bytes),
                            _ => {}
                        }
                    }
                }
                (2, Payload::Bytes(bytes)) => unknown.raw = bytes,
                (3, Payload::Bytes(bytes)) => unknown.content_encoding = text(bytes),
                (4, Payload::Bytes(bytes)) => unknown.content_type = text(bytes),
                _ => {}
            }
        }
        Ok(unknown)
    }

    /// Puts `apiVersion` and `kind` into a decoded tree.
    pub(crate) fn put_type(&self, value: &mut Value) {
        if let Value::Object(members) = value {
            for (name, text) in [("apiVersion", &self.api_version), ("kind", &self.kind)] {
                if !text.is_empty() {
                    members.insert(name.to_owned(), Value::String(text.clone()));
                }
            }
        }
    }
}

/// The envelope up to where the message begins, for a message of this length. [`TAIL`] follows the message.
pub(super) fn head(api_version: &str, kind: &str, raw_len: usize) -> Vec<u8> {
    let strings = api_version.len() + kind.len();
    let mut out = Vec::with_capacity(MAGIC.len() + strings + 24);
    out.extend_from_slice(MAGIC);
    let mut type_meta = Vec::with_capacity(strings + 6);
    put_bytes(&mut type_meta, 1, api_version.as_bytes());
    put_bytes(&mut type_meta, 2, kind.as_bytes());
    put_bytes(&mut out, 1, &type_meta);
    put_tag(&mut out, 2, DELIMITED);
    put_varint(&mut out, raw_len as u64);
    out
}

/// A message in its envelope.
pub fn wrap(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = head(api_version, kind, raw.len());
    out.reserve_exact(raw.len() + TAIL.len());
    out.extend_from_slice(raw);
    out.extend_from_slice(&TAIL);
    out
}

/// The length of a delimited field with a number below 16.
pub(super) fn delimited_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}
