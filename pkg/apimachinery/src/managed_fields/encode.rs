//! The `fieldsV1` form of a set: `{"f:spec":{"f:ports":{".":{},"k:{\"port\":80}":{}}}}`.
//!
//! Invariant: `from_json(to_json(set)) == set`.
//! Behaves as structured-merge-diff v6, fieldpath/serialize.go. A tree of JSON sorts keys as text, which is
//! the order of elements except for numbers in keys; [`to_text`] has the exact order.

use serde_json::{Map, Value};

use super::set::{PathElement, Set};

/// Why JSON is not a set of paths.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("expected an object")]
    NotAnObject,
    #[error("key must be 2 characters long:")]
    ShortKey,
    #[error("missing colon: {0}")]
    MissingColon(String),
    #[error("invalid path element: {0}")]
    Element(String),
}

/// Reads a set. Elements of an unknown kind are skipped, for the sake of later versions.
pub fn from_json(value: &Value) -> Result<Set, DecodeError> {
    match value {
        Value::Null => Ok(Set::new()),
        Value::Object(fields) => Ok(read(fields)?.0),
        _ => Err(DecodeError::NotAnObject),
    }
}

/// The set below, and whether the node itself is a member: it is when it says so, or has nothing below.
fn read(fields: &Map<String, Value>) -> Result<(Set, bool), DecodeError> {
    let mut set = Set::new();
    let mut member = false;
    for (key, value) in fields {
        if key == "." {
            member = true;
            continue;
        }
        let Some(element) = element_from(key)? else { continue };
        let below = match value {
            Value::Object(below) => read(below)?,
            Value::Null => (Set::new(), true),
            _ => return Err(DecodeError::NotAnObject),
        };
        set.attach(element, below.1, below.0);
    }
    let member = member || set.is_empty();
    Ok((set, member))
}

fn element_from(key: &str) -> Result<Option<PathElement>, DecodeError> {
    let (Some(kind), Some(colon)) = (key.as_bytes().first(), key.as_bytes().get(1)) else {
        return Err(DecodeError::ShortKey);
    };
    if *colon != b':' {
        return Err(DecodeError::MissingColon(key.to_owned()));
    }
    let rest = &key[2..];
    let invalid = || DecodeError::Element(key.to_owned());
    Ok(Some(match kind {
        b'f' => PathElement::Field(rest.to_owned()),
        b'v' => PathElement::Value(serde_json::from_str(rest).map_err(|_| invalid())?),
        b'k' => {
            let fields: Map<String, Value> = serde_json::from_str(rest).map_err(|_| invalid())?;
            let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            PathElement::Key(fields)
        }
        b'i' => PathElement::Index(rest.parse().map_err(|_| invalid())?),
        _ => return Ok(None),
    }))
}

fn element_text(element: &PathElement) -> String {
    match element {
        PathElement::Field(name) => ["f:", name].concat(),
        PathElement::Key(fields) => {
            let mut out = String::from("k:{");
            for (index, (name, value)) in fields.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                out.push_str(&value.to_string());
            }
            out.push('}');
            out
        }
        PathElement::Value(value) => format!("v:{value}"),
        PathElement::Index(index) => format!("i:{index}"),
    }
}

/// Writes a set as a tree.
pub fn to_json(set: &Set) -> Value {
    Value::Object(write(set, false))
}

fn write(set: &Set, member: bool) -> Map<String, Value> {
    let mut out = Map::new();
    if member && !set.is_empty() {
        out.insert(".".to_owned(), Value::Object(Map::new()));
    }
    for node in set.nodes() {
        out.insert(element_text(&node.element), Value::Object(write(&node.children, node.member)));
    }
    out
}

/// Writes a set as text, in the order of its elements.
pub fn to_text(set: &Set) -> String {
    let mut out = String::new();
    write_text(set, false, &mut out);
    out
}

fn write_text(set: &Set, member: bool, out: &mut String) {
    out.push('{');
    let mut first = true;
    if member && !set.is_empty() {
        out.push_str("\".\":{}");
        first = false;
    }
    for node in set.nodes() {
        if !first {
            out.push(',');
        }
        first = false;
        out.push_str(&Value::from(element_text(&node.element)).to_string());
        out.push(':');
        write_text(&node.children, node.member, out);
    }
    out.push('}');
}
