//! The stored form of an object, and what is read from it without decoding it.
//!
//! Stored values are JSON that begins `{"apiVersion":…,"kind":…,"metadata":{`, without a resourceVersion:
//! it is the revision of the write, so it is spliced in right after that brace when an object is read.
//! Everything after is copied as it is.

use std::fmt;
use std::io::Write as _;

use bytes::Bytes;
use rkube_api::object::Selection;
use rkube_api::resource::SelectableField;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

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

/// Encodes for storage. `value` keeps everything but its resourceVersion.
pub(crate) fn encode(value: &mut Value) -> Result<Bytes, EncodeError> {
    let object = value.as_object_mut().ok_or(EncodeError::Shape)?;
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).ok_or(EncodeError::Shape)?;
    metadata.remove("resourceVersion");
    encode_object(object)
}

fn encode_object(object: &Map<String, Value>) -> Result<Bytes, EncodeError> {
    let mut out = Vec::with_capacity(1024);
    let field = |name: &str| object.get(name).ok_or(EncodeError::Shape);
    out.extend_from_slice(b"{\"apiVersion\":");
    serde_json::to_writer(&mut out, field("apiVersion")?).map_err(EncodeError::Json)?;
    out.extend_from_slice(b",\"kind\":");
    serde_json::to_writer(&mut out, field("kind")?).map_err(EncodeError::Json)?;
    out.extend_from_slice(b",\"metadata\":");
    serde_json::to_writer(&mut out, field("metadata")?).map_err(EncodeError::Json)?;
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
    let mut out = Vec::with_capacity(bytes.len() + VERSION.len() + 24);
    out.extend_from_slice(head);
    out.extend_from_slice(VERSION.as_bytes());
    // Writing to a vector cannot fail.
    let _ = write!(out, "{revision}");
    out.push(b'"');
    if tail.first() != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(tail);
    Ok(Bytes::from(out))
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

#[derive(Clone, Debug, Default)]
struct Pick {
    children: Vec<(String, Pick)>,
    leaf: Option<Leaf>,
}

#[derive(Clone, Copy, Debug)]
enum Leaf {
    Uid,
    Labels,
    Field(usize),
}

impl Picker {
    pub(crate) fn new(fields: &[SelectableField]) -> Self {
        let mut root = Pick::default();
        root.add(&["metadata", "uid"], Leaf::Uid);
        root.add(&["metadata", "labels"], Leaf::Labels);
        for (index, field) in fields.iter().enumerate() {
            // The only alternatives there are (`source.component|reportingComponent` of events) come in reverse
            // in sorted JSON, so that the preferred one is stored last.
            for path in field.path.split('|') {
                let path: Vec<&str> = path.split('.').collect();
                root.add(&path, Leaf::Field(index));
            }
        }
        Self { root, zeros: fields.iter().map(|field| field.zero.to_string()).collect() }
    }

    pub(crate) fn pick(&self, json: &[u8]) -> Result<Selection, EncodeError> {
        let mut selection = Selection { uid: String::new(), labels: Vec::new(), fields: self.zeros.clone() };
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let seed = PickSeed { pick: &self.root, into: &mut selection };
        seed.deserialize(&mut deserializer).map_err(EncodeError::Json)?;
        selection.labels.sort_unstable();
        Ok(selection)
    }

    /// The same, from a tree.
    pub(crate) fn pick_value(&self, value: &Value) -> Selection {
        let mut selection = Selection { uid: String::new(), labels: Vec::new(), fields: self.zeros.clone() };
        self.root.from_value(value, &mut selection);
        selection.labels.sort_unstable();
        selection
    }
}

impl Pick {
    fn add(&mut self, path: &[&str], leaf: Leaf) {
        let Some((first, rest)) = path.split_first() else {
            self.leaf = Some(leaf);
            return;
        };
        let known = self.children.iter().position(|(name, _)| name == first);
        let at = known.unwrap_or_else(|| {
            self.children.push(((*first).to_owned(), Self::default()));
            self.children.len() - 1
        });
        self.children[at].1.add(rest, leaf);
    }

    fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|(known, _)| known == name).map(|(_, child)| child)
    }

    fn from_value(&self, value: &Value, into: &mut Selection) {
        match value {
            Value::String(text) => store(self.leaf, text, into),
            Value::Bool(_) | Value::Number(_) => store(self.leaf, &value.to_string(), into),
            Value::Array(items) => {
                // Paths go through the first item of a list, as `status.podIPs` does.
                if let Some(first) = items.first() {
                    self.from_value(first, into);
                }
            }
            Value::Object(members) => {
                if let Some(Leaf::Labels) = self.leaf {
                    let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
                    into.labels.extend(members.iter().filter_map(text));
                }
                for (name, child) in &self.children {
                    if let Some(value) = members.get(name) {
                        child.from_value(value, into);
                    }
                }
            }
            Value::Null => {}
        }
    }
}

fn store(leaf: Option<Leaf>, text: &str, into: &mut Selection) {
    match leaf {
        Some(Leaf::Uid) => text.clone_into(&mut into.uid),
        Some(Leaf::Field(index)) => {
            if let Some(field) = into.fields.get_mut(index)
                && !text.is_empty()
            {
                text.clone_into(field);
            }
        }
        Some(Leaf::Labels) | None => {}
    }
}

struct PickSeed<'a> {
    pick: &'a Pick,
    into: &'a mut Selection,
}

impl<'de> DeserializeSeed<'de> for PickSeed<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PickSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        store(self.pick.leaf, text, self.into);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        store(self.pick.leaf, if value { "true" } else { "false" }, self.into);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        store(self.pick.leaf, &value.to_string(), self.into);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        store(self.pick.leaf, &value.to_string(), self.into);
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        store(self.pick.leaf, &value.to_string(), self.into);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if items.next_element_seed(PickSeed { pick: self.pick, into: self.into })?.is_some() {
            while items.next_element::<IgnoredAny>()?.is_some() {}
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        if let Some(Leaf::Labels) = self.pick.leaf {
            while let Some((name, value)) = members.next_entry::<String, Value>()? {
                if let Value::String(value) = value {
                    self.into.labels.push((name, value));
                }
            }
            return Ok(());
        }
        while let Some(name) = members.next_key_seed(NameSeed(self.pick))? {
            match name {
                Some(child) => members.next_value_seed(PickSeed { pick: child, into: self.into })?,
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
    fn a_value_written_in_another_order_is_read_all_the_same() {
        let foreign = Bytes::from_static(br#"{"metadata":{},"kind":"K","x":1,"apiVersion":"v1"}"#);
        let read = with_revision(&foreign, 5).expect("splices");
        let text = String::from_utf8(read.to_vec()).expect("text");
        assert_eq!(text, r#"{"apiVersion":"v1","kind":"K","metadata":{"resourceVersion":"5"},"x":1}"#);
    }

    #[test]
    fn selection_is_the_same_from_bytes_and_from_a_tree() {
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
        ]);
        let value = json!({
            "metadata": {"uid": "u", "labels": {"b": "2", "a": "1"}},
            "spec": {"nodeName": "n", "hostNetwork": true},
            "status": {"replicas": 3, "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        });
        let expected = Selection {
            uid: "u".into(),
            labels: vec![("a".into(), "1".into()), ("b".into(), "2".into())],
            fields: vec!["n".into(), "true".into(), "3".into(), "10.0.0.1".into(), "zero".into()],
        };
        assert_eq!(picker.pick(value.to_string().as_bytes()).expect("picks"), expected);
        assert_eq!(picker.pick_value(&value), expected);
    }
}
