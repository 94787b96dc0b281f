//! JSON Patch, RFC 6902.
//!
//! In: the patch as bytes, the document as a tree. Out: the document changed, or an error and a document of
//! which nothing may be used.
//! Limits: [`MAX_OPERATIONS`], [`MAX_COPY_BYTES`].
//! Behaves as gopkg.in/evanphx/json-patch.v4 and apiserver/pkg/endpoints/handlers/patch.go, v1.36. That
//! library is laxer than the RFC, and clients rely on it: indices may be negative, `replace` adds a missing
//! key, a missing `value` is null, `test` of a missing key passes for null.

use std::io;

use serde_json::{Map, Value};

use crate::quote::go_json_kind;
use crate::status::ApiStatus;

/// Patches with more operations are refused with 413.
pub const MAX_OPERATIONS: usize = 10_000;
/// How much `copy` may add to a document in one patch.
pub const MAX_COPY_BYTES: usize = 3 * 1024 * 1024;

/// Why a JSON patch was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("decoding JSON patch")]
    Syntax {
        #[source]
        source: serde_json::Error,
    },
    #[error("json: cannot unmarshal {kind} into Go value of type jsonpatch.{expected}")]
    Type { kind: &'static str, expected: &'static str },
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
    #[error("Unexpected kind: {0}")]
    UnknownOperation(String),
    #[error("{operation} operation failed to decode {member}: missing value")]
    MissingMember { operation: &'static str, member: &'static str },
    #[error("{operation} operation does not apply: doc is missing path: {path:?}: missing value")]
    MissingPath { operation: &'static str, path: String },
    #[error("error in {operation} for path: '{path}': Unable to remove nonexistent key: {key}: missing value")]
    MissingKey { operation: &'static str, path: String, key: String },
    #[error(
        "error in {operation} for path: '{path}': Unable to access invalid index: {index}: invalid index referenced"
    )]
    Index { operation: &'static str, path: String, index: String },
    #[error("replace operation value must be object or array")]
    ReplaceRoot,
    #[error("testing value {0} failed: test failed")]
    TestFailed(String),
    #[error(
        "Unable to complete the copy, the accumulated size increase of copy is {0}, exceeding the limit {MAX_COPY_BYTES}"
    )]
    CopySize(usize),
}

impl From<Error> for ApiStatus {
    fn from(error: Error) -> Self {
        match &error {
            Error::Syntax { source } => Self::bad_request(source.to_string()),
            Error::Type { .. } => Self::bad_request(error.to_string()),
            Error::TooManyOperations(_) => Self::request_entity_too_large(error),
            _ => Self::unprocessable_patch(),
        }
    }
}

/// A decoded patch.
#[derive(Clone, Debug)]
pub struct JsonPatch {
    operations: Vec<Map<String, Value>>,
}

impl JsonPatch {
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let value = serde_json::from_slice(bytes).map_err(|source| Error::Syntax { source })?;
        Self::from_value(value)
    }

    pub fn from_value(value: Value) -> Result<Self, Error> {
        let operations = match value {
            Value::Array(operations) => operations,
            Value::Null => Vec::new(),
            other => return Err(Error::Type { kind: go_json_kind(&other), expected: "Patch" }),
        };
        if operations.len() > MAX_OPERATIONS {
            return Err(Error::TooManyOperations(operations.len()));
        }
        let operations = operations
            .into_iter()
            .map(|operation| match operation {
                Value::Object(members) => Ok(members),
                Value::Null => Ok(Map::new()),
                other => Err(Error::Type { kind: go_json_kind(&other), expected: "Operation" }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { operations })
    }

    /// What strict decoding has against the patch: members that no operation has.
    pub fn unknown_members(&self) -> impl Iterator<Item = String> {
        const KNOWN: [&str; 4] = ["from", "op", "path", "value"];
        self.operations.iter().enumerate().flat_map(|(index, members)| {
            let unknown = members.keys().filter(|name| !KNOWN.contains(&name.as_str()));
            unknown.map(move |name| format!("unknown field \"[{index}].{name}\""))
        })
    }

    /// Applies all operations in order.
    pub fn apply(self, document: &mut Value) -> Result<(), Error> {
        let mut copied = 0;
        for mut operation in self.operations {
            let kind = operation.get("op").and_then(Value::as_str).unwrap_or("unknown").to_owned();
            let value = operation.remove("value");
            match kind.as_str() {
                "add" => add(document, "add", &member(&operation, "add", "path")?, value.unwrap_or_default())?,
                "remove" => {
                    remove(document, "remove", &member(&operation, "remove", "path")?)?;
                }
                "replace" => replace(document, &member(&operation, "replace", "path")?, value.unwrap_or_default())?,
                "move" => {
                    let from = member(&operation, "move", "from")?;
                    let moved = remove(document, "move", &from)?;
                    add(document, "move", &member(&operation, "move", "path")?, moved)?;
                }
                "copy" => {
                    let from = member(&operation, "copy", "from")?;
                    let found = get(document, "copy", &from)?.cloned().unwrap_or_default();
                    copied += encoded_len(&found);
                    if copied > MAX_COPY_BYTES {
                        return Err(Error::CopySize(copied));
                    }
                    add(document, "copy", &member(&operation, "copy", "path")?, found)?;
                }
                "test" => {
                    let path = member(&operation, "test", "path")?;
                    let expected = value.unwrap_or_default();
                    let found = if path.is_empty() { Some(&*document) } else { get(document, "test", &path)? };
                    if found.unwrap_or(&Value::Null) != &expected {
                        return Err(Error::TestFailed(path));
                    }
                }
                _ => return Err(Error::UnknownOperation(kind)),
            }
        }
        Ok(())
    }
}

fn member(operation: &Map<String, Value>, kind: &'static str, name: &'static str) -> Result<String, Error> {
    match operation.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        _ => Err(Error::MissingMember { operation: kind, member: name }),
    }
}

/// The container a path's last part is in, and that part. What stands before the first slash is ignored.
fn locate<'a>(document: &'a mut Value, operation: &'static str, path: &str) -> Result<(&'a mut Value, String), Error> {
    let missing = || Error::MissingPath { operation, path: path.to_owned() };
    let (_, pointer) = path.split_once('/').ok_or_else(missing)?;
    let mut parts = pointer.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).peekable();
    let mut container = document;
    loop {
        let part = parts.next().ok_or_else(missing)?;
        if parts.peek().is_none() {
            return if container.is_object() || container.is_array() { Ok((container, part)) } else { Err(missing()) };
        }
        container = match container {
            Value::Object(fields) => fields.get_mut(&part).ok_or_else(missing)?,
            Value::Array(items) => {
                let index = index(&part, items.len()).ok_or_else(missing)?;
                items.get_mut(index).ok_or_else(missing)?
            }
            _ => return Err(missing()),
        };
    }
}

/// Position of an existing item; negative ones count from the end.
fn index(part: &str, len: usize) -> Option<usize> {
    let index: i64 = part.parse().ok()?;
    let index = if index < 0 { index.checked_add(i64::try_from(len).ok()?)? } else { index };
    usize::try_from(index).ok().filter(|index| *index < len)
}

fn bad_index(operation: &'static str, path: &str, part: String) -> Error {
    Error::Index { operation, path: path.to_owned(), index: part }
}

fn get<'a>(document: &'a mut Value, operation: &'static str, path: &str) -> Result<Option<&'a Value>, Error> {
    let (container, part) = locate(document, operation, path)?;
    match container {
        Value::Object(fields) => Ok(fields.get(&part)),
        Value::Array(items) => match index(&part, items.len()) {
            Some(index) => Ok(items.get(index)),
            None => Err(bad_index(operation, path, part)),
        },
        _ => Err(Error::MissingPath { operation, path: path.to_owned() }),
    }
}

fn add(document: &mut Value, operation: &'static str, path: &str, value: Value) -> Result<(), Error> {
    let (container, part) = locate(document, operation, path)?;
    match container {
        Value::Object(fields) => {
            fields.insert(part, value);
        }
        Value::Array(items) if part == "-" => items.push(value),
        Value::Array(items) => {
            // One more place than there are items: the end.
            let Some(index) = index(&part, items.len() + 1) else { return Err(bad_index(operation, path, part)) };
            items.insert(index, value);
        }
        _ => return Err(Error::MissingPath { operation, path: path.to_owned() }),
    }
    Ok(())
}

fn remove(document: &mut Value, operation: &'static str, path: &str) -> Result<Value, Error> {
    let (container, part) = locate(document, operation, path)?;
    match container {
        Value::Object(fields) => match fields.remove(&part) {
            Some(value) => Ok(value),
            None => Err(Error::MissingKey { operation, path: path.to_owned(), key: part }),
        },
        Value::Array(items) => match index(&part, items.len()) {
            Some(index) => Ok(items.remove(index)),
            None => Err(bad_index(operation, path, part)),
        },
        _ => Err(Error::MissingPath { operation, path: path.to_owned() }),
    }
}

fn replace(document: &mut Value, path: &str, value: Value) -> Result<(), Error> {
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return Err(Error::ReplaceRoot);
        }
        *document = value;
        return Ok(());
    }
    let (container, part) = locate(document, "replace", path)?;
    match container {
        Value::Object(fields) => {
            fields.insert(part, value);
        }
        Value::Array(items) => {
            let slot = index(&part, items.len()).and_then(|index| items.get_mut(index));
            let Some(slot) = slot else { return Err(bad_index("replace", path, part)) };
            *slot = value;
        }
        _ => return Err(Error::MissingPath { operation: "replace", path: path.to_owned() }),
    }
    Ok(())
}

/// Length of the JSON text, without making it.
fn encoded_len(value: &Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn patched(document: Value, patch: Value) -> String {
        let mut document = document;
        let result = JsonPatch::from_value(patch).and_then(|patch| patch.apply(&mut document));
        result.map_or_else(|error| format!("error: {error}"), |()| document.to_string())
    }

    #[test]
    fn operations_apply_as_the_library_does() {
        let doc = || json!({"a": {"b": [1, 2, 3]}, "n": null, "x~/y": 1});
        for (patch, expected) in [
            (json!([{"op": "add", "path": "/a/b/1", "value": 9}]), r#"{"a":{"b":[1,9,2,3]},"n":null,"x~/y":1}"#),
            (json!([{"op": "add", "path": "/a/b/-", "value": 9}]), r#"{"a":{"b":[1,2,3,9]},"n":null,"x~/y":1}"#),
            (json!([{"op": "add", "path": "/a/b/-1", "value": 9}]), r#"{"a":{"b":[1,2,3,9]},"n":null,"x~/y":1}"#),
            (json!([{"op": "remove", "path": "/a/b/-1"}]), r#"{"a":{"b":[1,2]},"n":null,"x~/y":1}"#),
            (
                json!([{"op": "replace", "path": "/new", "value": 1}]),
                r#"{"a":{"b":[1,2,3]},"n":null,"new":1,"x~/y":1}"#,
            ),
            (json!([{"op": "remove", "path": "/x~0~1y"}]), r#"{"a":{"b":[1,2,3]},"n":null}"#),
            (json!([{"op": "move", "from": "/a/b", "path": "/c"}]), r#"{"a":{},"c":[1,2,3],"n":null,"x~/y":1}"#),
            (json!([{"op": "copy", "from": "/a", "path": "/n"}]), r#"{"a":{"b":[1,2,3]},"n":{"b":[1,2,3]},"x~/y":1}"#),
            (json!([{"op": "test", "path": "/missing"}, {"op": "replace", "path": "", "value": {}}]), "{}"),
            (json!([{"op": "test", "path": "/a/b/0", "value": 2}]), "error: testing value /a/b/0 failed: test failed"),
            (
                json!([{"op": "remove", "path": "/zz"}]),
                "error: error in remove for path: '/zz': Unable to remove nonexistent key: zz: missing value",
            ),
            (
                json!([{"op": "add", "path": "/z/z", "value": 1}]),
                "error: add operation does not apply: doc is missing path: \"/z/z\": missing value",
            ),
            (
                json!([{"op": "add", "path": "/a/b/4", "value": 1}]),
                "error: error in add for path: '/a/b/4': Unable to access invalid index: 4: invalid index referenced",
            ),
            (
                json!([{"op": "add", "path": "", "value": 1}]),
                "error: add operation does not apply: doc is missing path: \"\": missing value",
            ),
            (json!([{"op": "jump", "path": "/a"}]), "error: Unexpected kind: jump"),
            (json!({"op": "add"}), "error: json: cannot unmarshal object into Go value of type jsonpatch.Patch"),
            (json!([7]), "error: json: cannot unmarshal number into Go value of type jsonpatch.Operation"),
        ] {
            assert_eq!(patched(doc(), patch.clone()), expected, "{patch}");
        }
    }

    #[test]
    fn copies_and_operations_are_bounded() {
        let mut doubling = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 40];
        doubling.insert(0, json!({"op": "add", "path": "/a", "value": ["x".repeat(1000)]}));
        assert!(patched(json!({}), Value::from(doubling)).contains("exceeding the limit 3145728"));
        let many = vec![json!({"op": "test", "path": ""}); MAX_OPERATIONS + 1];
        let error = JsonPatch::from_value(Value::from(many)).expect_err("too many");
        let status = ApiStatus::from(error);
        assert_eq!(
            (status.code(), status.message()),
            (413, "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001")
        );
    }

    proptest! {
        #[test]
        fn any_patch_applies_or_fails(paths in prop::collection::vec(("(add|remove|replace|move|copy|test)", "(/[ab0-9~-]{0,2}){0,3}", "(/[ab0-9~-]{0,2}){0,3}"), 0..8)) {
            let operations: Vec<Value> = paths
                .into_iter()
                .map(|(op, path, from)| json!({"op": op, "path": path, "from": from, "value": {"a": [1]}}))
                .collect();
            patched(json!({"a": [{"b": 1}], "b": null}), Value::from(operations));
        }
    }
}
