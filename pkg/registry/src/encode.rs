//! The stored form of an object, and what is read from it without decoding it.
//!
//! Stored values are JSON that begins `{"apiVersion":…,"kind":…,"metadata":{`, without a resourceVersion:
//! it is the revision of the write, so it is spliced in right after that brace when an object is read.
//! Everything after is copied as it is.

use std::fmt;

use bytes::Bytes;
use rkube_api::object::{Parts, Selection};
use rkube_api::resource::SelectableField;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The path of a field that objects never have.
const NOWHERE: &str = "-";

const MANAGED_FIELDS: &str = "managedFields";
const METADATA: &str = "\"metadata\":{";
const VERSION: &str = "\"resourceVersion\":\"";

/// Bytes that are not an object in stored form.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    #[error("the value is not an object with apiVersion, kind and metadata")]
    Shape,
    #[error("the value is not JSON")]
    Json(#[source] serde_json::Error),
}

/// An object in stored form.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    /// What would be picked out of the bytes.
    pub(crate) selection: Selection,
}

/// Encodes for storage. `value` keeps everything but its resourceVersion.
pub(crate) fn encode(value: &mut Value) -> Result<Bytes, EncodeError> {
    encode_with_owners(value, None)
}

/// As `encode`, with `metadata.managedFields` as text where the object has none: where they would be if it had them.
pub(crate) fn encode_with_owners(value: &mut Value, owners: Option<&[u8]>) -> Result<Bytes, EncodeError> {
    let object = value.as_object_mut().ok_or(EncodeError::Shape)?;
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).ok_or(EncodeError::Shape)?;
    metadata.remove("resourceVersion");
    encode_object(object, owners)
}

/// The object in parts, with other metadata, encoded for storage.
pub(crate) fn encode_parts(parts: &Parts, metadata: &mut Map<String, Value>) -> Result<Bytes, EncodeError> {
    metadata.remove("resourceVersion");
    let mut out = Vec::with_capacity(parts.before.len() + parts.after.len() + 2048);
    out.extend_from_slice(&parts.before);
    encode_metadata(metadata, parts.owners.as_deref(), &mut out)?;
    out.extend_from_slice(&parts.after);
    Ok(Bytes::from(out))
}

fn encode_metadata(metadata: &Map<String, Value>, owners: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let before = metadata.iter().filter(|(name, _)| name.as_str() < MANAGED_FIELDS);
    let after = metadata.iter().filter(|(name, _)| name.as_str() >= MANAGED_FIELDS);
    let member = |out: &mut Vec<u8>, name: &String, value: &Value| {
        serde_json::to_writer(&mut *out, name)?;
        out.push(b':');
        serde_json::to_writer(&mut *out, value)?;
        out.push(b',');
        Ok(())
    };
    out.push(b'{');
    for (name, value) in before {
        member(out, name, value).map_err(EncodeError::Json)?;
    }
    if let Some(owners) = owners {
        for part in [b"\"", MANAGED_FIELDS.as_bytes(), b"\":", owners, b","] {
            out.extend_from_slice(part);
        }
    }
    for (name, value) in after {
        member(out, name, value).map_err(EncodeError::Json)?;
    }
    // Every member left a comma behind it.
    out.pop_if(|last| *last == b',');
    out.push(b'}');
    Ok(())
}

fn encode_object(object: &Map<String, Value>, owners: Option<&[u8]>) -> Result<Bytes, EncodeError> {
    let mut out = Vec::with_capacity(1024);
    let field = |name: &str| object.get(name).ok_or(EncodeError::Shape);
    out.extend_from_slice(b"{\"apiVersion\":");
    serde_json::to_writer(&mut out, field("apiVersion")?).map_err(EncodeError::Json)?;
    out.extend_from_slice(b",\"kind\":");
    serde_json::to_writer(&mut out, field("kind")?).map_err(EncodeError::Json)?;
    out.extend_from_slice(b",\"metadata\":");
    match (owners, field("metadata")?) {
        (Some(_), Value::Object(metadata)) => encode_metadata(metadata, owners, &mut out)?,
        (_, metadata) => serde_json::to_writer(&mut out, metadata).map_err(EncodeError::Json)?,
    }
    for (name, value) in object.iter().filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata"))
    {
        out.push(b',');
        serde_json::to_writer(&mut out, name).map_err(EncodeError::Json)?;
        out.push(b':');
        serde_json::to_writer(&mut out, value).map_err(EncodeError::Json)?;
    }
    out.push(b'}');
    Ok(Bytes::from(out))
}

/// Where the first member of `metadata` begins, in bytes of the stored form.
fn metadata_start(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes.strip_prefix(b"{\"apiVersion\":\"")?;
    rest = rest.get(memchr(b'"', rest)? + 1..)?.strip_prefix(b",\"kind\":\"")?;
    rest = rest.get(memchr(b'"', rest)? + 1..)?.strip_prefix(b",")?.strip_prefix(METADATA.as_bytes())?;
    Some(bytes.len() - rest.len())
}

fn memchr(byte: u8, bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|candidate| *candidate == byte)
}

/// The object as clients see it: the stored form with its revision in place.
pub(crate) fn with_revision(stored: &Bytes, revision: u64) -> Result<Bytes, EncodeError> {
    let Some(start) = metadata_start(stored) else {
        // Written by something else: bring it into our form first.
        let mut value: Value = serde_json::from_slice(stored).map_err(EncodeError::Json)?;
        let normal = encode(&mut value)?;
        return splice(&normal, metadata_start(&normal).ok_or(EncodeError::Shape)?, revision);
    };
    splice(stored, start, revision)
}

fn splice(bytes: &[u8], start: usize, revision: u64) -> Result<Bytes, EncodeError> {
    let (head, tail) = bytes.split_at_checked(start).ok_or(EncodeError::Shape)?;
    let digits = revision.to_string();
    let end = if tail.first() == Some(&b'}') { "\"" } else { "\"," };
    // Exactly as large as it is: this is what is kept for as long as the object is there.
    Ok(Bytes::from([head, VERSION.as_bytes(), digits.as_bytes(), end.as_bytes(), tail].concat()))
}

/// The same object at another revision, from bytes that `with_revision` made.
pub(crate) fn at_revision(json: &Bytes, revision: u64) -> Result<Bytes, EncodeError> {
    let stored = without_revision(json).ok_or(EncodeError::Shape)?;
    with_revision(&stored, revision)
}

/// The stored form of bytes that `with_revision` made.
pub(crate) fn without_revision(json: &Bytes) -> Option<Bytes> {
    let start = metadata_start(json)?;
    let after = json.get(start..)?.strip_prefix(VERSION.as_bytes())?;
    let digits = memchr(b'"', after)?;
    let rest = after.get(digits + 1..)?;
    let rest = rest.strip_prefix(b",").unwrap_or(rest);
    let mut out = Vec::with_capacity(json.len());
    out.extend_from_slice(json.get(..start)?);
    out.extend_from_slice(rest);
    Some(Bytes::from(out))
}

/// What to pick out of an object's JSON: its uid, its labels and the registered fields, in one pass that
/// builds no tree.
#[derive(Clone, Debug)]
pub(crate) struct Picker {
    root: Pick,
    zeros: Vec<String>,
}

/// One place in an object, with what is wanted of its value and of what is below it.
#[derive(Clone, Debug, Default)]
struct Pick {
    children: Vec<(String, Pick)>,
    labels: bool,
    uid: bool,
    /// The fields that have this value.
    fields: Vec<usize>,
    /// The fields that have this value when they have no other.
    fallbacks: Vec<usize>,
}

impl Picker {
    pub(crate) fn new(fields: &[SelectableField]) -> Self {
        let mut root = Pick::default();
        root.at("metadata.uid").uid = true;
        root.at("metadata.labels").labels = true;
        for (index, field) in fields.iter().enumerate().filter(|(_, field)| field.path != NOWHERE) {
            let mut paths = field.path.split('|');
            if let Some(first) = paths.next() {
                root.at(first).fields.push(index);
            }
            for fallback in paths {
                root.at(fallback).fallbacks.push(index);
            }
        }
        Self { root, zeros: fields.iter().map(|field| field.zero.to_string()).collect() }
    }

    /// As `pick`, of an object that is not text yet.
    pub(crate) fn pick_tree(&self, value: &Value) -> Selection {
        let mut picked = self.nothing();
        pick_tree(&self.root, value, &mut picked);
        picked.selection.labels.sort_unstable();
        picked.selection
    }

    fn nothing(&self) -> Picked<'_> {
        let selection = Selection { uid: String::new(), labels: Vec::new(), fields: self.zeros.clone() };
        Picked { selection, zeros: &self.zeros, done: false }
    }

    pub(crate) fn pick(&self, json: &[u8]) -> Result<Selection, EncodeError> {
        let mut picked = self.nothing();
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let read = PickSeed { pick: &self.root, into: &mut picked, top: true }.deserialize(&mut deserializer);
        if !picked.done {
            read.map_err(EncodeError::Json)?;
        }
        picked.selection.labels.sort_unstable();
        Ok(picked.selection)
    }
}

impl Pick {
    /// The place at a dotted path.
    fn at(&mut self, path: &str) -> &mut Self {
        path.split('.').fold(self, |pick, name| {
            let known = pick.children.iter().position(|(known, _)| known == name);
            let at = known.unwrap_or_else(|| {
                pick.children.push((name.to_owned(), Self::default()));
                pick.children.len() - 1
            });
            &mut pick.children[at].1
        })
    }

    fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|(known, _)| known == name).map(|(_, child)| child)
    }
}

struct Picked<'a> {
    selection: Selection,
    zeros: &'a [String],
    /// Everything was found, and reading ended early: megabytes of data after the metadata are not looked at.
    done: bool,
}

impl Picked<'_> {
    fn store(&mut self, pick: &Pick, text: &str) {
        if pick.uid {
            text.clone_into(&mut self.selection.uid);
        }
        if text.is_empty() {
            return;
        }
        for index in &pick.fields {
            if let Some(field) = self.selection.fields.get_mut(*index) {
                text.clone_into(field);
            }
        }
        for index in &pick.fallbacks {
            if let (Some(field), Some(zero)) = (self.selection.fields.get_mut(*index), self.zeros.get(*index))
                && field == zero
            {
                text.clone_into(field);
            }
        }
    }
}

fn pick_tree(pick: &Pick, value: &Value, into: &mut Picked<'_>) {
    match value {
        Value::String(text) => into.store(pick, text),
        Value::Bool(value) => into.store(pick, if *value { "true" } else { "false" }),
        Value::Number(number) => into.store(pick, &number.to_string()),
        Value::Null => {}
        Value::Array(items) => items.iter().take(1).for_each(|first| pick_tree(pick, first, into)),
        Value::Object(members) if pick.labels => {
            let texts = members.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
            into.selection.labels.extend(texts);
        }
        Value::Object(members) => {
            for (name, child) in &pick.children {
                if let Some(member) = members.get(name) {
                    pick_tree(child, member, into);
                }
            }
        }
    }
}

struct PickSeed<'a, 'b> {
    pick: &'a Pick,
    into: &'a mut Picked<'b>,
    /// The object itself, not something in it.
    top: bool,
}

impl<'de> DeserializeSeed<'de> for PickSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PickSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.into.store(self.pick, text);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.into.store(self.pick, if value { "true" } else { "false" });
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.into.store(self.pick, &value.to_string());
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.into.store(self.pick, &value.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.into.store(self.pick, &value.to_string());
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if items.next_element_seed(PickSeed { pick: self.pick, into: self.into, top: false })?.is_some() {
            while items.next_element::<IgnoredAny>()?.is_some() {}
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        if self.pick.labels {
            while let Some((name, value)) = members.next_entry::<String, Value>()? {
                if let Value::String(value) = value {
                    self.into.selection.labels.push((name, value));
                }
            }
            return Ok(());
        }
        let mut left = self.pick.children.len();
        while let Some(name) = members.next_key_seed(NameSeed(self.pick))? {
            match name {
                Some(child) => {
                    members.next_value_seed(PickSeed { pick: child, into: self.into, top: false })?;
                    left = left.saturating_sub(1);
                    if self.top && left == 0 {
                        self.into.done = true;
                        return Err(serde::de::Error::custom("the rest is not needed"));
                    }
                }
                None => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Finds the child for a member's name without allocating it.
struct NameSeed<'a>(&'a Pick);

impl<'de, 'a> DeserializeSeed<'de> for NameSeed<'a> {
    type Value = Option<&'a Pick>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for NameSeed<'a> {
    type Value = Option<&'a Pick>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.child(name))
    }
}

#[cfg(test)]
mod tests {
    use rkube_api::StoredObject;
    use rkube_apimachinery::key::ObjectKey;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_revision_is_spliced_in_and_out_without_touching_the_rest() {
        let mut value = json!({
            "kind": "Pod", "apiVersion": "v1", "data": {"metadata": {"a": "\"}"}},
            "metadata": {"name": "x", "resourceVersion": "7", "labels": {"b": "2", "a": "1"}},
        });
        let stored = encode(&mut value).expect("encodes");
        let read = with_revision(&stored, 42).expect("splices");
        let text = String::from_utf8(read.to_vec()).expect("text");
        assert!(text.starts_with(r#"{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"42","labels":"#));
        assert_eq!(without_revision(&read).as_ref(), Some(&stored));
        assert_eq!(at_revision(&read, 43).expect("moves"), with_revision(&stored, 43).expect("splices"));
    }

    #[test]
    fn owners_beside_the_object_are_encoded_where_they_belong() {
        for metadata in [
            json!({"managedFields": [{"manager": "m"}]}),
            json!({"labels": {}, "managedFields": [{"manager": "m"}], "name": "x"}),
            json!({"managedFields": [], "uid": "u"}),
            json!({"labels": {}, "managedFields": null}),
        ] {
            let mut whole = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"a": 1}});
            let expected = encode(&mut whole).expect("encodes");
            let owners = whole["metadata"]["managedFields"].to_string();
            whole["metadata"].as_object_mut().expect("an object").remove("managedFields");
            let found = encode_with_owners(&mut whole, Some(owners.as_bytes())).expect("encodes");
            assert_eq!(found, expected);

            let json = with_revision(&expected, 7).expect("splices");
            let object = StoredObject::new(ObjectKey::cluster("x"), 7, json, Selection::default());
            let mut parts = object.parts().expect("parses").expect("has metadata");
            let mut metadata = std::mem::take(parts.object["metadata"].as_object_mut().expect("an object"));
            assert_eq!(encode_parts(&parts, &mut metadata).expect("encodes"), expected);
        }
    }

    #[test]
    fn a_value_written_in_another_order_is_read_all_the_same() {
        let foreign = Bytes::from_static(br#"{"metadata":{},"kind":"K","x":1,"apiVersion":"v1"}"#);
        let read = with_revision(&foreign, 5).expect("splices");
        let text = String::from_utf8(read.to_vec()).expect("text");
        assert_eq!(text, r#"{"apiVersion":"v1","kind":"K","metadata":{"resourceVersion":"5"},"x":1}"#);
    }

    #[test]
    fn reading_ends_when_everything_was_found() {
        let picker = Picker::new(&[]);
        let cut = br#"{"apiVersion":"v1","kind":"Secret","metadata":{"uid":"u","labels":{"a":"1"}},"data":{"#;
        let selection = picker.pick(cut).expect("what is needed was there");
        assert_eq!((selection.uid.as_str(), selection.labels.len()), ("u", 1));
        assert!(picker.pick(br#"{"kind":"Secret","data":{"#).is_err());
    }

    #[test]
    fn selection_is_picked_from_the_registered_places() {
        let field = |path: &'static str, zero: &'static str| SelectableField {
            label: path.into(),
            path: path.into(),
            zero: zero.into(),
        };
        let picker = Picker::new(&[
            field("spec.nodeName", ""),
            field("spec.hostNetwork", "false"),
            field("status.replicas", "0"),
            field("status.podIPs.ip", ""),
            field("absent.field", "zero"),
            field("-", "never"),
            field("source.component|reporter", ""),
            field("reporter|source.component", ""),
        ]);
        let value = json!({
            "metadata": {"uid": "u", "labels": {"b": "2", "a": "1"}},
            "reporter": "",
            "source": {"component": "kubelet"},
            "spec": {"nodeName": "n", "hostNetwork": true},
            "status": {"replicas": 3, "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        });
        let fields = ["n", "true", "3", "10.0.0.1", "zero", "never", "kubelet", "kubelet"];
        let expected = Selection {
            uid: "u".into(),
            labels: vec![("a".into(), "1".into()), ("b".into(), "2".into())],
            fields: fields.map(str::to_owned).to_vec(),
        };
        assert_eq!(picker.pick(value.to_string().as_bytes()).expect("picks"), expected);
        assert_eq!(picker.pick_tree(&value), expected);
    }
}
