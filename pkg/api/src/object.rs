//! One object at one revision, encoded once and shared by everything that reads it.

use std::any::Any;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::RwLock;
use rkube_apimachinery::key::ObjectKey;
use serde_json::{Map, Value};

use crate::kind::{DecodeError, Kind};
use crate::span;

/// An immutable object at one revision. GET, LIST, WATCH, informers and the garbage collector hold the
/// same `Arc`; the typed and protobuf forms are made when first asked for and shared while they are in use.
pub struct StoredObject {
    pub key: ObjectKey,
    /// `metadata.resourceVersion`, as a number.
    pub revision: u64,
    /// The whole object as JSON, with `apiVersion`, `kind` and `metadata.resourceVersion` in place.
    pub json: Bytes,
    /// What selection needs, so that a watcher that filters decodes nothing.
    pub selection: Selection,
    forms: RwLock<Forms>,
    /// One of `NO_FORMS`, `RESTING`, `IN_USE`: a look at an object that has no other form takes no lock.
    usage: AtomicU8,
}

const NO_FORMS: u8 = 0;
/// Nobody has asked for a form since the last call of `forget_unused`.
const RESTING: u8 = 1;
const IN_USE: u8 = 2;

/// What was made of the JSON.
#[derive(Clone, Default)]
struct Forms {
    typed: Option<Typed>,
    protobuf: Option<Bytes>,
}

#[derive(Clone)]
enum Typed {
    Kept(Arc<dyn Any + Send + Sync>),
    /// Others hold it: asking for it again costs nothing, and it goes when they let go of it.
    Shared(Weak<dyn Any + Send + Sync>),
}

impl Typed {
    fn get(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        match self {
            Self::Kept(typed) => Some(Arc::clone(typed)),
            Self::Shared(typed) => typed.upgrade(),
        }
    }

    /// Keeps only what others keep too.
    fn rest(self) -> Option<Self> {
        let shared = match self {
            Self::Kept(typed) => Arc::downgrade(&typed),
            Self::Shared(typed) => typed,
        };
        (shared.strong_count() > 0).then_some(Self::Shared(shared))
    }
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

/// An object of which only the metadata is looked at.
pub struct Parts {
    pub before: Bytes,
    /// An object that has only its metadata, without `managedFields`.
    pub object: Value,
    /// `metadata.managedFields`.
    pub owners: Option<Bytes>,
    pub after: Bytes,
}

impl StoredObject {
    pub fn new(key: ObjectKey, revision: u64, json: Bytes, selection: Selection) -> Self {
        Self { key, revision, json, selection, forms: RwLock::default(), usage: AtomicU8::new(NO_FORMS) }
    }

    /// The typed form, decoded once while it is in use, and shared. It has no `metadata.managedFields`: they are often half of an object,
    /// and a write without them keeps those that are stored.
    pub fn typed<K: Kind>(&self) -> Result<Arc<K>, DecodeError> {
        let known = self.form(|forms| forms.typed.as_ref().and_then(Typed::get));
        if let Some(typed) = known.and_then(|typed| typed.downcast::<K>().ok()) {
            return Ok(typed);
        }
        let decoded = Arc::new(match span::managed_fields(&self.json) {
            Some(owners) => K::decode(&span::without(&self.json, owners.member))?,
            None => K::decode(&self.json)?,
        });
        // Another thread may have been first; either value is the same.
        self.keep(|forms| forms.typed = Some(Typed::Kept(decoded.clone())));
        Ok(decoded)
    }

    fn form<T>(&self, get: impl FnOnce(&Forms) -> Option<T>) -> Option<T> {
        if self.usage.load(Ordering::Relaxed) == NO_FORMS {
            return None;
        }
        let found = get(&self.forms.read())?;
        if self.usage.load(Ordering::Relaxed) != IN_USE {
            self.usage.store(IN_USE, Ordering::Relaxed);
        }
        Some(found)
    }

    fn keep(&self, keep: impl FnOnce(&mut Forms)) {
        let mut forms = self.forms.write();
        keep(&mut forms);
        self.usage.store(IN_USE, Ordering::Relaxed);
    }

    /// Lets go of the forms that nobody has asked for since the last call: a decoded object is larger than its JSON,
    /// and most objects are not looked at for hours. Whether there are any left to let go of later; what others hold as
    /// well is not.
    pub fn forget_unused(&self) -> bool {
        match self.usage.load(Ordering::Relaxed) {
            NO_FORMS => false,
            IN_USE => {
                self.usage.store(RESTING, Ordering::Relaxed);
                true
            }
            _ => {
                let mut forms = self.forms.write();
                let typed = forms.typed.take().and_then(Typed::rest);
                self.usage.store(if typed.is_some() { RESTING } else { NO_FORMS }, Ordering::Relaxed);
                *forms = Forms { typed, protobuf: None };
                false
            }
        }
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
            forms: RwLock::new(self.forms.read().clone()),
            usage: AtomicU8::new(self.usage.load(Ordering::Relaxed)),
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

    /// The object cut into its metadata and the text around it; `None` if it has no metadata.
    pub fn parts(&self) -> Result<Option<Parts>, serde_json::Error> {
        let Some(metadata) = span::metadata(&self.json) else { return Ok(None) };
        let text = self.json.slice(metadata.clone());
        let owners = span::managed_fields(&self.json);
        let tree: Value = match &owners {
            Some(owners) => {
                let member = owners.member.start - metadata.start..owners.member.end - metadata.start;
                serde_json::from_slice(&span::without(&text, member))?
            }
            None => serde_json::from_slice(&text)?,
        };
        Ok(Some(Parts {
            before: self.json.slice(..metadata.start),
            object: Value::Object(Map::from_iter([("metadata".to_owned(), tree)])),
            owners: owners.map(|owners| self.json.slice(owners.value)),
            after: self.json.slice(metadata.end..),
        }))
    }

    /// The object as a JSON tree without `metadata.managedFields`, and those as text: for changes that leave the owners
    /// of fields as they are, which are often half of an object.
    pub fn value_beside_owners(&self) -> Result<(Value, Option<Bytes>), serde_json::Error> {
        match span::managed_fields(&self.json) {
            Some(owners) => {
                let value = serde_json::from_slice(&span::without(&self.json, owners.member))?;
                Ok((value, Some(self.json.slice(owners.value))))
            }
            None => Ok((self.value()?, None)),
        }
    }

    /// The protobuf form (with envelope), encoded by `encode` once while it is in use.
    pub fn protobuf<E>(&self, encode: impl FnOnce(&[u8]) -> Result<Bytes, E>) -> Result<Bytes, E> {
        if let Some(bytes) = self.form(|forms| forms.protobuf.clone()) {
            return Ok(bytes);
        }
        let bytes = encode(&self.json)?;
        self.keep(|forms| forms.protobuf = Some(bytes.clone()));
        Ok(bytes)
    }
}

impl std::fmt::Debug for StoredObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredObject").field("key", &self.key).field("revision", &self.revision).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[test]
    fn forms_are_shared_while_in_use_and_forgotten_after() {
        let json = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"1"}}"#;
        let object = StoredObject::new(ObjectKey::cluster("x"), 1, Bytes::from_static(json), Selection::default());
        let encode = |_: &[u8]| Ok::<_, std::convert::Infallible>(Bytes::from_static(b"form"));
        assert!(!object.forget_unused(), "nothing was made yet");

        let first = object.typed::<ConfigMap>().expect("decodes");
        assert!(object.forget_unused(), "it was just in use");
        assert!(Arc::ptr_eq(&first, &object.typed().expect("is there")));
        assert!(object.forget_unused(), "it was in use again");
        assert!(!object.forget_unused(), "somebody else has it");
        assert!(Arc::ptr_eq(&first, &object.typed().expect("is still there")));

        let weak = Arc::downgrade(&first);
        drop(first);
        object.protobuf(encode).expect("encodes");
        assert!(object.forget_unused());
        assert!(!object.forget_unused(), "nobody asked for either");
        assert_eq!((weak.strong_count(), object.protobuf(|_| Err("gone"))), (0, Err("gone")));
        assert_eq!(object.typed::<ConfigMap>().expect("decodes again").data.as_ref().map(|data| data.len()), Some(1));
    }
}
