//! How server-side apply sees a type of the schema table, and whether a value fits it.
//!
//! Behaves as structured-merge-diff v6, typed/{helpers,validate}.go, and kube-openapi's conversion of schemas.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::quote::go_print;
use crate::schema::{List, ListKind, Map, Object, Scalar, SchemaSet, Shape, TypeId};

use super::set::PathElement;

/// A type as apply sees it. Copies are cheap.
#[derive(Clone, Copy)]
pub(super) enum Type<'s> {
    Scalar(Class),
    Object(&'s Object),
    Map(&'s Map),
    List(&'s List),
    /// An object without a schema: each key is owned on its own.
    AnyObject,
    /// A list without a schema is one value.
    AnyList,
    /// Anything; what it is follows from the value.
    Deduced,
}

/// What a scalar may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Numeric,
    String,
    Boolean,
    Untyped,
}

#[derive(Clone, Copy)]
pub(super) struct Types<'s>(pub(super) &'s SchemaSet);

impl<'s> Types<'s> {
    pub(super) fn get(self, id: TypeId) -> Type<'s> {
        match &self.0.get(id).shape {
            Shape::Object(object) => Type::Object(object),
            Shape::Map(map) => Type::Map(map),
            Shape::List(list) => Type::List(list),
            Shape::Scalar(scalar) => match scalar {
                Scalar::String | Scalar::Bytes | Scalar::Duration => Type::Scalar(Class::String),
                Scalar::Bool => Type::Scalar(Class::Boolean),
                Scalar::Int32 | Scalar::Int64 | Scalar::Double => Type::Scalar(Class::Numeric),
                Scalar::Time | Scalar::MicroTime | Scalar::Quantity | Scalar::IntOrString => {
                    Type::Scalar(Class::Untyped)
                }
                Scalar::FieldsV1 | Scalar::RawExtension => Type::AnyObject,
                Scalar::Json
                | Scalar::JsonSchemaPropsOrBool
                | Scalar::JsonSchemaPropsOrArray
                | Scalar::JsonSchemaPropsOrStringArray => Type::Deduced,
            },
        }
    }

    /// The type of a key's value. What the schema does not know is deduced.
    pub(super) fn child(self, ty: Type<'s>, key: &str) -> Type<'s> {
        match ty {
            Type::Object(object) => object.field(key).map_or(Type::Deduced, |field| self.get(field.ty)),
            Type::Map(map) => self.get(map.value),
            _ => Type::Deduced,
        }
    }

    pub(super) fn item(self, list: &List) -> Type<'s> {
        self.get(list.item)
    }

    /// What identifies an item of a set or a list with keys.
    pub(super) fn item_element(self, list: &List, item: &Value) -> Result<PathElement, String> {
        let ListKind::Map { keys } = &list.kind else {
            return match item {
                Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
                Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
                scalar => Ok(PathElement::Value(scalar.clone())),
            };
        };
        let fields = match item {
            Value::Object(fields) => fields,
            Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
            _ => return Err("associative list with keys may not have non-map elements".to_owned()),
        };
        let mut found: Vec<(String, Value)> = Vec::with_capacity(keys.len());
        for key in keys.iter() {
            if let Some(value) = fields.get(key.as_ref()) {
                found.push((key.to_string(), value.clone()));
            } else if let Type::Object(object) = self.item(list)
                && let Some(default) = object.field(key).and_then(|field| field.default.as_deref())
                && let Ok(value) = serde_json::from_str(default)
            {
                found.push((key.to_string(), value));
            }
        }
        if found.is_empty() && !keys.is_empty() {
            let keys: Vec<String> = keys.iter().map(|key| crate::quote::quote(key).to_string()).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default \
                 values for any key fields)",
                keys.join(" ")
            ));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(PathElement::Key(found))
    }

    /// All faults of `value`, each with its path. Lists may repeat an item only with `duplicates`.
    pub(super) fn validate(self, value: &Value, ty: Type<'s>, duplicates: bool) -> Vec<String> {
        let mut faults = Vec::new();
        self.check(value, ty, duplicates, &mut String::new(), &mut faults);
        faults
    }

    fn check(self, value: &Value, ty: Type<'s>, duplicates: bool, path: &mut String, faults: &mut Vec<String>) {
        let mut fault = |text: String| {
            faults.push(if path.is_empty() { text } else { format!("{path}: {text}") });
        };
        if value.is_null() {
            return;
        }
        let length = path.len();
        match (ty.of(Some(value)), value) {
            (Type::Scalar(class), value) => {
                if let Some(text) = wrong_scalar(class, value) {
                    fault(text);
                }
            }
            (Type::Object(_) | Type::Map(_) | Type::AnyObject, Value::Object(fields)) => {
                for (key, value) in fields {
                    path.push('.');
                    path.push_str(key);
                    if let Type::Object(object) = ty
                        && !object.preserve_unknown
                        && object.field(key).is_none()
                    {
                        faults.push(format!("{path}: field not declared in schema"));
                    } else {
                        self.check(value, self.child(ty, key), duplicates, path, faults);
                    }
                    path.truncate(length);
                }
            }
            (Type::Object(_) | Type::Map(_) | Type::AnyObject, other) => {
                fault(format!("expected map, got &{{{}}}", go_print(other)));
            }
            (Type::List(list), Value::Array(items)) => {
                let mut seen = BTreeSet::new();
                for (index, item) in items.iter().enumerate() {
                    let element = if list.kind == ListKind::Atomic {
                        PathElement::Index(i64::try_from(index).unwrap_or(i64::MAX))
                    } else {
                        match self.item_element(list, item) {
                            Ok(element) => element,
                            Err(text) => {
                                let text = format!("element {index}: {text}");
                                faults.push(if path.is_empty() { text } else { format!("{path}: {text}") });
                                return;
                            }
                        }
                    };
                    let shown = element.to_string();
                    if list.kind != ListKind::Atomic && !seen.insert(element) && !duplicates {
                        let text = format!("duplicate entries for key {shown}");
                        faults.push(if path.is_empty() { text } else { format!("{path}: {text}") });
                    }
                    path.push_str(&shown);
                    self.check(item, self.item(list), duplicates, path, faults);
                    path.truncate(length);
                }
            }
            (Type::List(_), other) => fault(format!("expected list, got &{{{}}}", go_print(other))),
            (Type::AnyList | Type::Deduced, _) => {}
        }
    }
}

impl<'s> Type<'s> {
    /// The type a value has where anything may be; other types are what they are.
    pub(super) fn of(self, value: Option<&Value>) -> Self {
        match (self, value) {
            (Type::Deduced, Some(Value::Array(_))) => Type::AnyList,
            (Type::Deduced, Some(Value::Bool(_) | Value::Number(_) | Value::String(_))) => Type::Scalar(Class::Untyped),
            (Type::Deduced, _) => Type::AnyObject,
            (known, _) => known,
        }
    }

    /// Whether two views of one schema type agree; only deduced ones can differ.
    pub(super) fn same(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }

    pub(super) fn is_atomic(self) -> bool {
        match self {
            Type::Object(object) => object.atomic,
            Type::Map(map) => map.atomic,
            Type::List(list) => list.kind == ListKind::Atomic,
            Type::AnyList => true,
            Type::Scalar(_) | Type::AnyObject | Type::Deduced => false,
        }
    }

    /// Whether `key` is a field of a struct, as opposed to a key of a map.
    pub(super) fn declares(self, key: &str) -> bool {
        matches!(self, Type::Object(object) if object.field(key).is_some())
    }
}

fn wrong_scalar(class: Class, value: &Value) -> Option<String> {
    match (class, value) {
        (Class::Numeric, Value::Number(_))
        | (Class::String, Value::String(_))
        | (Class::Boolean, Value::Bool(_))
        | (Class::Untyped, Value::Number(_) | Value::String(_) | Value::Bool(_)) => None,
        (Class::Numeric, other) => Some(format!("expected numeric (int or float), got {}", go_type(other))),
        (Class::String, other) => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(other)))
        }
        (Class::Boolean, other) => Some(format!("expected boolean, got &{{{}}}", go_print(other))),
        (Class::Untyped, other) => Some(format!("expected any scalar, got &{{{}}}", go_print(other))),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// As Go's `%#v` prints decoded JSON.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(text) => crate::quote::quote(text).to_string(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_syntax).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Object(fields) => {
            let quote = |key: &str| crate::quote::quote(key).to_string();
            let fields: Vec<String> =
                fields.iter().map(|(key, value)| format!("{}:{}", quote(key), go_syntax(value))).collect();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
        scalar => go_print(scalar),
    }
}
