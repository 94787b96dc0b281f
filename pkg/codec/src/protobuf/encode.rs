//! Trees to messages, byte for byte what upstream's marshaller writes: fields by number, map entries by key, scalars
//! and structs also when they are zero, unless they are pointers.

use rkube_apimachinery::schema::{Field, Object, Presence, Scalar, SchemaSet, Shape, TypeId};
use rkube_apimachinery::time;
use serde_json::{Map, Value};

use super::wire::{put_bytes, put_double, put_int, put_nested};
use crate::json::decode::schema_props;
use crate::json::scalar;

/// A tree that is not of the type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("encoding {field} as protobuf: {reason}")]
    Value { field: String, reason: String },
    #[error("the type has no protobuf form")]
    NoForm,
}

/// The message of a tree, without envelope.
pub fn encode(value: &Value, schema: &SchemaSet, ty: TypeId) -> Result<Vec<u8>, EncodeError> {
    let Shape::Object(object) = &schema.get(ty).shape else { return Err(EncodeError::NoForm) };
    let empty = Map::new();
    let members = value.as_object().unwrap_or(&empty);
    // About what JSON takes is more than enough for most objects.
    let mut out = Vec::with_capacity(512);
    Encoder { schema }.fields(&mut out, object, members, &object.wire, 0)?;
    Ok(out)
}

struct Encoder<'s> {
    schema: &'s SchemaSet,
}

fn wrong(field: &str, found: &Value) -> EncodeError {
    let kind = match found {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number out of range",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    EncodeError::Value { field: field.to_owned(), reason: format!("{kind} does not fit") }
}

impl Encoder<'_> {
    /// The fields at the positions `wire` of a struct. Those that lie in an embedded message at this level form a
    /// message of their own, which is written even when it is empty.
    fn fields(
        &self,
        out: &mut Vec<u8>,
        object: &Object,
        members: &Map<String, Value>,
        wire: &[u16],
        level: usize,
    ) -> Result<(), EncodeError> {
        let mut rest = wire;
        while let Some((&position, after)) = rest.split_first() {
            let Some(field) = object.fields.get(usize::from(position)) else { return Err(EncodeError::NoForm) };
            let Some(&number) = field.within.get(level) else {
                self.field(out, field, members.get(field.json.as_ref()).filter(|value| !value.is_null()))?;
                rest = after;
                continue;
            };
            let inside = |position: &u16| {
                object.fields.get(usize::from(*position)).and_then(|field| field.within.get(level)) == Some(&number)
            };
            let length = rest.iter().take_while(|position| inside(position)).count();
            let (group, after) = rest.split_at(length);
            put_nested(out, number, |out| self.fields(out, object, members, group, level + 1))?;
            rest = after;
        }
        Ok(())
    }

    fn field(&self, out: &mut Vec<u8>, field: &Field, value: Option<&Value>) -> Result<(), EncodeError> {
        let is_value = matches!(field.presence, Presence::OmitEmpty | Presence::Always);
        let name = field.json.as_ref();
        match (&self.schema.get(field.ty).shape, value) {
            (Shape::List(list), Some(Value::Array(items))) if !list.wrapped => {
                for item in items {
                    self.element(out, field.number, list.item, item, name)?;
                }
                Ok(())
            }
            (Shape::Map(map), Some(Value::Object(members))) => {
                // The tree keeps members sorted, which is the order upstream writes.
                for (key, value) in members {
                    put_nested(out, field.number, |out| {
                        put_bytes(out, 1, key.as_bytes());
                        self.element(out, 2, map.value, value, name)
                    })?;
                }
                Ok(())
            }
            (Shape::List(_), Some(value)) => self.element(out, field.number, field.ty, value, name),
            (Shape::List(_) | Shape::Map(_) | Shape::Scalar(Scalar::Bytes), None) => Ok(()),
            (Shape::Map(_), Some(value)) => Err(wrong(name, value)),
            (_, Some(value)) => self.element(out, field.number, field.ty, value, name),
            (_, None) if is_value => self.element(out, field.number, field.ty, &Value::Null, name),
            (_, None) => Ok(()),
        }
    }

    /// One value under a number, also if it is zero.
    fn element(
        &self,
        out: &mut Vec<u8>,
        number: u32,
        ty: TypeId,
        value: &Value,
        name: &str,
    ) -> Result<(), EncodeError> {
        match &self.schema.get(ty).shape {
            Shape::Scalar(scalar) => self.scalar(out, number, *scalar, value, name),
            Shape::Object(object) => {
                let empty = Map::new();
                let members = match value {
                    Value::Object(members) => members,
                    Value::Null => &empty,
                    other => return Err(wrong(name, other)),
                };
                put_nested(out, number, |out| self.fields(out, object, members, &object.wire, 0))
            }
            Shape::List(list) if list.wrapped => put_nested(out, number, |out| match value {
                Value::Array(items) => items.iter().try_for_each(|item| self.element(out, 1, list.item, item, name)),
                Value::Null => Ok(()),
                other => Err(wrong(name, other)),
            }),
            Shape::List(_) | Shape::Map(_) => Err(wrong(name, value)),
        }
    }

    fn scalar(
        &self,
        out: &mut Vec<u8>,
        number: u32,
        scalar: Scalar,
        value: &Value,
        name: &str,
    ) -> Result<(), EncodeError> {
        let fault = |reason: String| EncodeError::Value { field: name.to_owned(), reason };
        let text = || match value {
            Value::String(text) => Ok(text.as_str()),
            Value::Null => Ok(""),
            other => Err(wrong(name, other)),
        };
        match scalar {
            Scalar::String => put_bytes(out, number, text()?.as_bytes()),
            Scalar::Bool => match value {
                Value::Bool(value) => put_int(out, number, i64::from(*value)),
                Value::Null => put_int(out, number, 0),
                other => return Err(wrong(name, other)),
            },
            Scalar::Int32 | Scalar::Int64 => put_int(out, number, integer(value, name)?),
            Scalar::Double => {
                let double = if value.is_null() { Some(0.0) } else { value.as_f64() };
                put_double(out, number, double.ok_or_else(|| wrong(name, value))?);
            }
            Scalar::Bytes => put_bytes(out, number, &scalar::bytes(text()?).map_err(fault)?),
            Scalar::Time | Scalar::MicroTime => {
                let text = text()?;
                put_nested(out, number, |out| timestamp(out, scalar, text).map_err(fault))?;
            }
            Scalar::Duration => {
                let text = text()?;
                let duration =
                    if text.is_empty() { Ok(jiff::SignedDuration::ZERO) } else { time::parse_duration(text) };
                let nanos = duration.map_err(|error| fault(error.to_string()))?.as_nanos();
                let nanos = i64::try_from(nanos).map_err(|_| wrong(name, value))?;
                put_nested(out, number, |out| {
                    put_int(out, 1, nanos);
                    Ok(())
                })?;
            }
            Scalar::Quantity => {
                let written;
                let text = match value {
                    Value::Number(number) => {
                        written = number.to_string();
                        &written
                    }
                    Value::Null => "0",
                    _ => text()?,
                };
                put_nested(out, number, |out| {
                    put_bytes(out, 1, text.as_bytes());
                    Ok(())
                })?;
            }
            Scalar::IntOrString => put_nested(out, number, |out| {
                let (kind, int, text) = match value {
                    Value::String(text) => (1, 0, text.as_str()),
                    other => (0, integer(other, name)?, ""),
                };
                put_int(out, 1, kind);
                put_int(out, 2, int);
                put_bytes(out, 3, text.as_bytes());
                Ok(())
            })?,
            Scalar::FieldsV1 | Scalar::RawExtension | Scalar::Json => put_nested(out, number, |out| {
                if !value.is_null() || scalar == Scalar::Json {
                    let raw = serde_json::to_vec(value).map_err(|error| fault(error.to_string()))?;
                    put_bytes(out, 1, &raw);
                }
                Ok(())
            })?,
            Scalar::JsonSchemaPropsOrBool => put_nested(out, number, |out| {
                put_int(out, 1, i64::from(!matches!(value, Value::Bool(false) | Value::Null)));
                self.props(out, 2, value, name)
            })?,
            Scalar::JsonSchemaPropsOrArray => put_nested(out, number, |out| match value {
                Value::Array(items) => items.iter().try_for_each(|item| self.props(out, 2, item, name)),
                other => self.props(out, 1, other, name),
            })?,
            Scalar::JsonSchemaPropsOrStringArray => put_nested(out, number, |out| match value {
                Value::Array(items) => {
                    for item in items {
                        put_bytes(out, 2, item.as_str().ok_or_else(|| wrong(name, item))?.as_bytes());
                    }
                    Ok(())
                }
                other => self.props(out, 1, other, name),
            })?,
        }
        Ok(())
    }

    /// The schema inside one of the scalars that may hold one.
    fn props(&self, out: &mut Vec<u8>, number: u32, value: &Value, name: &str) -> Result<(), EncodeError> {
        match (value, schema_props()) {
            (Value::Object(_), Some(ty)) => self.element(out, number, ty, value, name),
            _ => Ok(()),
        }
    }
}

fn integer(value: &Value, name: &str) -> Result<i64, EncodeError> {
    if value.is_null() { Ok(0) } else { value.as_i64().ok_or_else(|| wrong(name, value)) }
}

/// Seconds and nanoseconds; nothing at all for Go's zero time.
fn timestamp(out: &mut Vec<u8>, scalar: Scalar, text: &str) -> Result<(), String> {
    if text.is_empty() || text.starts_with("0001-01-01T00:00:00") {
        return Ok(());
    }
    let time = if scalar == Scalar::Time { time::parse(text) } else { time::parse_micro(text) };
    let time = time.map_err(|error| error.to_string())?;
    // Before 1970 the fraction counts forward from the second below.
    let nanos = time.as_nanosecond();
    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).map_err(|error| error.to_string())?;
    let fraction = if scalar == Scalar::Time { 0 } else { nanos.rem_euclid(1_000_000_000) / 1000 * 1000 };
    put_int(out, 1, seconds);
    put_int(out, 2, i64::try_from(fraction).map_err(|error| error.to_string())?);
    Ok(())
}
