//! One object at one revision, encoded once and shared by everything that reads it.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rkube_apimachinery::key::ObjectKey;
use serde_json::Value;

use crate::kind::{DecodeError, Kind};
use crate::span;

/// An immutable object at one revision. GET, LIST, WATCH, informers and the garbage collector hold the
/// same `Arc`; the typed and protobuf forms are made at most once, when first asked for.
pub struct StoredObject {
    pub key: ObjectKey,
    /// `metadata.resourceVersion`, as a number.
    pub revision: u64,
    /// The whole object as JSON, with `apiVersion`, `kind` and `metadata.resourceVersion` in place.
    pub json: Bytes,
    /// What selection needs, so that a watcher that filters decodes nothing.
    pub selection: Selection,
    typed: OnceLock<Arc<dyn Any + Send + Sync>>,
    protobuf: OnceLock<Bytes>,
}

/// The part of an object that selectors look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub uid: String,
    /// Sorted by name.
    pub labels: Vec<(String, String)>,
    /// The registered selectable fields of the kind, in the order of its resource row.
    pub fields: Vec<String>,
}

impl StoredObject {
    pub fn new(key: ObjectKey, revision: u64, json: Bytes, selection: Selection) -> Self {
        Self { key, revision, json, selection, typed: OnceLock::new(), protobuf: OnceLock::new() }
    }

    /// The typed form, decoded once and shared. It has no `metadata.managedFields`: they are often half of an object,
    /// and a write without them keeps those that are stored.
    pub fn typed<K: Kind>(&self) -> Result<Arc<K>, DecodeError> {
        if let Some(typed) = self.typed.get()
            && let Ok(typed) = Arc::clone(typed).downcast::<K>()
        {
            return Ok(typed);
        }
        let decoded = Arc::new(match span::managed_fields(&self.json) {
            Some(owners) => K::decode(&span::without(&self.json, owners))?,
            None => K::decode(&self.json)?,
        });
        // Another thread may have been first; either value is the same.
        let _ = self.typed.set(decoded.clone());
        Ok(decoded)
    }

    /// A copy that shares the bytes, and the other forms as far as they were made. What is decoded through the copy
    /// is not kept by the original.
    #[must_use]
    pub fn scratch(&self) -> Self {
        Self {
            key: self.key.clone(),
            revision: self.revision,
            json: self.json.clone(),
            selection: self.selection.clone(),
            typed: self.typed.clone(),
            protobuf: self.protobuf.clone(),
        }
    }

    /// `metadata` as it is in the JSON, found without reading what comes after it.
    pub fn metadata_json(&self) -> Option<&[u8]> {
        self.json.get(span::metadata(&self.json)?)
    }

    /// The object as a JSON tree.
    pub fn value(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_slice(&self.json)
    }

    /// The protobuf form (with envelope), encoded once by `encode`.
    pub fn protobuf<E>(&self, encode: impl FnOnce(&[u8]) -> Result<Bytes, E>) -> Result<Bytes, E> {
        if let Some(bytes) = self.protobuf.get() {
            return Ok(bytes.clone());
        }
        let bytes = encode(&self.json)?;
        let _ = self.protobuf.set(bytes.clone());
        Ok(bytes)
    }
}

impl std::fmt::Debug for StoredObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredObject").field("key", &self.key).field("revision", &self.revision).finish_non_exhaustive()
    }
}
