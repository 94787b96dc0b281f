//! Strategic merge patch: a merge patch that knows the types, so that lists with a key merge item by item.
//!
//! In: document and patch as trees, the document's type in the schema table. Out: the document changed
//! ([`apply`]), or a patch from two or three documents ([`create`], [`create_three_way`]).
//!
//! Directives in a patch: `$patch` (`replace`, `delete`) in objects and list items, `$retainKeys`,
//! `$setElementOrder/<list>`, `$deleteFromPrimitiveList/<list>`.
//! Invariant: `apply(a, create(a, b)) == b` for documents of the type.
//! Behaves as apimachinery/pkg/util/strategicpatch, v1.36. Lists are indexed by merge key, so a patch costs
//! what its size is, not its square. Where upstream fails because Go's struct has no tag to read (maps of
//! structs, free-form JSON), this merges; new list items lose their nulls and directives as new fields do.

mod apply;
mod diff;
mod list;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use crate::quote::{go_print, quote};
use crate::schema::{PatchStrategy, SchemaSet, Shape, TypeId};
use crate::status::{ApiStatus, Reason};

pub use apply::apply;
pub use diff::{create, create_three_way};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList";

/// Why a strategic merge patch was refused, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("json: cannot unmarshal {0} into Go value of type map[string]interface {{}}")]
    NotAnObject(&'static str),
    #[error("lists of lists are not supported")]
    ListOfLists,
    #[error("invalid patch format of primitive list")]
    PrimitiveList,
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    #[error("invalid patch format of setElementOrder list")]
    ElementOrder,
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoMergeKey { item: String, key: String },
    #[error("expected a {expected}, but received a {received}")]
    Type { expected: &'static str, received: &'static str },
    #[error("unknown patch type: {directive} in map: {map}")]
    Directive { directive: String, map: String },
    #[error("merging lists cannot yet be specified in the patch")]
    MergeDirective,
    #[error("cannot merge lists without merge key for {0}")]
    NoDeclaredKey(String),
    #[error("unable to find api field in struct {kind} for the json field {}", quote(.field))]
    UnknownField { kind: String, field: String },
    #[error("list element types are not identical: {0}")]
    MixedList(String),
    #[error("The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n")]
    OrderMismatch { patch: String, order: String },
    #[error("{one} and {other} are not deep equal: this may happen when calculating the 3-way diff patch")]
    RetainKeysDiffer { one: String, other: String },
    #[error("patch:\n{patch}\nconflicts with changes made from original to current:\n{changed}\n")]
    Conflict { patch: String, changed: String },
}

impl From<Error> for ApiStatus {
    fn from(error: Error) -> Self {
        match error {
            Error::NotAnObject(_) | Error::PrimitiveList | Error::RetainKeys | Error::ElementOrder => {
                Self::bad_request(error.to_string())
            }
            Error::ListOfLists => Self::unprocessable_patch(),
            // Upstream has no status for the rest and answers 500 with the text.
            _ => Self::failure(Reason::Unknown, error.to_string()),
        }
    }
}

/// A type, or nothing when the schema stops (free-form JSON).
#[derive(Clone, Copy)]
struct Node<'a> {
    set: &'a SchemaSet,
    ty: Option<TypeId>,
}

/// What the schema says of a field.
#[derive(Clone, Copy)]
struct FieldMeta<'a> {
    /// The field's type; for a list, its items'.
    node: Node<'a>,
    strategy: PatchStrategy,
    /// Empty for anything but lists of objects with a key.
    merge_key: &'a str,
}

impl<'a> Node<'a> {
    fn new(set: &'a SchemaSet, ty: TypeId) -> Self {
        Self { set, ty: Some(ty) }
    }

    fn free(self) -> FieldMeta<'a> {
        FieldMeta { node: Node { set: self.set, ty: None }, strategy: PatchStrategy::default(), merge_key: "" }
    }

    fn name(self) -> String {
        let name = self.ty.map_or("", |ty| self.set.get(ty).name.as_ref());
        name.rsplit('.').next().unwrap_or_default().to_owned()
    }

    fn field(self, key: &str) -> Result<FieldMeta<'a>, Error> {
        let Some(ty) = self.ty else { return Ok(self.free()) };
        let (ty, strategy) = match &self.set.get(ty).shape {
            Shape::Object(object) => match object.field(key) {
                Some(field) => (field.ty, field.patch),
                None if object.preserve_unknown => return Ok(self.free()),
                None => return Err(Error::UnknownField { kind: self.name(), field: key.to_owned() }),
            },
            Shape::Map(map) => (map.value, PatchStrategy::default()),
            Shape::Scalar(_) | Shape::List(_) => return Ok(self.free()),
        };
        Ok(match &self.set.get(ty).shape {
            Shape::List(list) => FieldMeta {
                node: Node { set: self.set, ty: Some(list.item) },
                strategy: list.patch,
                merge_key: list.patch_merge_key.as_ref(),
            },
            _ => FieldMeta { node: Node { set: self.set, ty: Some(ty) }, strategy, merge_key: "" },
        })
    }
}

/// How patches merge.
#[derive(Clone, Copy)]
struct Options {
    /// Merging into a document: parallel lists take effect and nulls only remove. Otherwise two patches are
    /// merged into one and both are kept.
    into_document: bool,
}

/// Go's names of the two container types, for messages.
const GO_MAP: &str = "map[string]interface {}";
const GO_LIST: &str = "[]interface {}";

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => GO_LIST,
        Value::Object(_) => GO_MAP,
    }
}

fn as_list(value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(Error::Type { expected: GO_LIST, received: go_type(&other) }),
    }
}

fn no_merge_key(item: &Map<String, Value>, key: &str) -> Error {
    Error::NoMergeKey { item: go_print(&Value::Object(item.clone())), key: key.to_owned() }
}

/// An item's merge key value.
fn key_of<'v>(item: &'v Value, merge_key: &str) -> Result<&'v Value, Error> {
    let item = item.as_object().ok_or_else(|| Error::Type { expected: GO_MAP, received: go_type(item) })?;
    item.get(merge_key).ok_or_else(|| no_merge_key(item, merge_key))
}

fn has_directive(value: &Value, directive: &str) -> bool {
    value.get(DIRECTIVE).and_then(Value::as_str) == Some(directive)
}
