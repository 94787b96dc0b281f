//! The form Go would write: zero values present or absent as the struct tags say, quantities and times canonical.

use std::borrow::Cow;

use rkube_apimachinery::schema::{Object, Presence, Scalar, SchemaSet, Shape, TypeId};
use serde_json::{Map, Value};

use super::scalar;

/// Brings a tree into the form a decode of it would have given, in place. For trees that were made or changed by
/// our own code. Fields the type does not have stay, as do values of a wrong type: only decoding checks.
pub fn canonicalize(value: &mut Value, schema: &SchemaSet, ty: TypeId) {
    match &schema.get(ty).shape {
        Shape::Scalar(kind) => canonicalize_scalar(value, schema, *kind),
        Shape::List(list) => {
            if let Value::Array(items) = value {
                for item in items {
                    canonicalize_element(item, schema, list.item);
                }
            }
        }
        Shape::Map(map) => {
            if let Value::Object(members) = value {
                for member in members.values_mut() {
                    canonicalize_element(member, schema, map.value);
                }
            }
        }
        Shape::Object(object) => {
            if let Value::Object(members) = value {
                canonicalize_object(members, schema, object);
            }
        }
    }
}

fn canonicalize_object(members: &mut Map<String, Value>, schema: &SchemaSet, object: &Object) {
    members.retain(|name, value| {
        let Some(field) = object.field(name) else { return true };
        canonicalize(value, schema, field.ty);
        match field.presence {
            Presence::OmitEmpty => !scalar::is_empty(value, &schema.get(field.ty).shape),
            Presence::Pointer | Presence::Always | Presence::Nullable => !value.is_null(),
        }
    });
    fill(schema, object, members);
}

/// Items and map values have no `omitempty`: null is the zero value.
fn canonicalize_element(value: &mut Value, schema: &SchemaSet, ty: TypeId) {
    if value.is_null() {
        *value = scalar::zero(schema, ty);
    } else {
        canonicalize(value, schema, ty);
    }
}

fn canonicalize_scalar(value: &mut Value, schema: &SchemaSet, kind: Scalar) {
    let schema_props = || super::decode::schema_props();
    match (kind, &mut *value) {
        (Scalar::Time | Scalar::MicroTime | Scalar::Quantity | Scalar::Duration, Value::String(text)) => {
            if let Ok(canonical) = scalar::text(kind, Cow::Borrowed(text)) {
                *value = canonical.unwrap_or_default();
            }
        }
        (Scalar::Quantity, Value::Number(number)) => {
            if let Ok(Some(canonical)) = scalar::text(kind, Cow::Owned(number.to_string())) {
                *value = canonical;
            }
        }
        (
            Scalar::JsonSchemaPropsOrBool | Scalar::JsonSchemaPropsOrArray | Scalar::JsonSchemaPropsOrStringArray,
            Value::Object(_),
        ) => {
            if let Some(ty) = schema_props() {
                canonicalize(value, schema, ty);
            }
        }
        (Scalar::JsonSchemaPropsOrArray, Value::Array(items)) => {
            if let Some(ty) = schema_props() {
                items.iter_mut().for_each(|item| canonicalize(item, schema, ty));
            }
        }
        _ => {}
    }
}

/// Adds the fields that Go writes although nobody set them.
pub(crate) fn fill(schema: &SchemaSet, object: &Object, members: &mut Map<String, Value>) {
    for field in object.fields.iter() {
        let value = match field.presence {
            Presence::Pointer | Presence::OmitEmpty => continue,
            Presence::Nullable if !members.contains_key(field.json.as_ref()) => Value::Null,
            Presence::Always if !members.contains_key(field.json.as_ref()) => scalar::zero(schema, field.ty),
            _ => continue,
        };
        members.insert(field.json.to_string(), value);
    }
}
