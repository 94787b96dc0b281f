//! Messages to trees, in the form a JSON decode of the same object has.
//!
//! **Invariant:** memory is bounded by a constant times the length of the input: no length is believed before its bytes
//! are seen, nesting is bounded, and unknown fields leave nothing behind.

use jiff::{SignedDuration, Timestamp};
use rkube_apimachinery::schema::{Field, Object, Presence, Scalar, SchemaSet, Shape, TypeId};
use rkube_apimachinery::{quantity, time};
use serde_json::{Map, Value};

use super::envelope::{MAGIC, Unknown};
use super::wire::{Payload, Reader};
use crate::json::decode::schema_props;
use crate::json::{canonical, scalar};

/// Messages in messages, as deep as JSON may go.
const MAX_DEPTH: usize = 128;

/// Why bytes are not a message of the type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: illegal wireType {0}")]
    WireType(u8),
    #[error("proto: illegal tag {0}")]
    Tag(u32),
    #[error("proto: wrong wireType for field {0}")]
    Mismatch(String),
    #[error("exceeded max depth")]
    Depth,
    #[error("{0}")]
    Value(String),
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
}

/// The tree of a message, without `apiVersion` and `kind`.
pub fn decode(bytes: &[u8], schema: &SchemaSet, ty: TypeId) -> Result<Value, MessageError> {
    Decoder { schema, depth: 0 }.message(bytes, ty)
}

struct Decoder<'s> {
    schema: &'s SchemaSet,
    depth: usize,
}

impl<'s> Decoder<'s> {
    fn deeper<T>(&mut self, inside: impl FnOnce(&mut Self) -> Result<T, MessageError>) -> Result<T, MessageError> {
        if self.depth >= MAX_DEPTH {
            return Err(MessageError::Depth);
        }
        self.depth += 1;
        let result = inside(self);
        self.depth -= 1;
        result
    }

    fn message(&mut self, bytes: &[u8], ty: TypeId) -> Result<Value, MessageError> {
        let schema = self.schema;
        let Shape::Object(object) = &schema.get(ty).shape else {
            return Err(MessageError::Value("the type has no protobuf form".to_owned()));
        };
        self.deeper(|decoder| {
            let mut members = Map::new();
            decoder.fields(bytes, object, &object.wire, 0, &mut members)?;
            // Go's omitempty and null look at what the message said; scalars are always there.
            members.retain(|name, value| match object.field(name) {
                Some(field) if field.presence == Presence::OmitEmpty => {
                    !scalar::is_empty(value, &schema.get(field.ty).shape)
                }
                _ => !value.is_null(),
            });
            canonical::fill(schema, object, &mut members);
            Ok(Value::Object(members))
        })
    }

    /// Reads a message into the fields at the positions `wire`. Embedded messages go into the same members.
    fn fields(
        &mut self,
        bytes: &[u8],
        object: &'s Object,
        wire: &[u16],
        level: usize,
        members: &mut Map<String, Value>,
    ) -> Result<(), MessageError> {
        let mut reader = Reader::new(bytes);
        let number_at = |position: &u16| {
            object.fields.get(usize::from(*position)).map_or(0, |field| match field.within.get(level) {
                Some(number) => *number,
                None => field.number,
            })
        };
        while let Some((number, payload)) = reader.field()? {
            let start = wire.partition_point(|position| number_at(position) < number);
            let length = wire.iter().skip(start).take_while(|position| number_at(position) == number).count();
            let Some(group) = wire.get(start..start + length) else { continue };
            let Some(field) = group.first().and_then(|position| object.fields.get(usize::from(*position))) else {
                continue;
            };
            if field.within.get(level).is_some() {
                let Payload::Bytes(bytes) = payload else { return Err(mismatch(field)) };
                self.deeper(|decoder| decoder.fields(bytes, object, group, level + 1, members))?;
            } else {
                self.field(field, payload, members)?;
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &'s Field,
        payload: Payload<'_>,
        members: &mut Map<String, Value>,
    ) -> Result<(), MessageError> {
        match &self.schema.get(field.ty).shape {
            Shape::List(list) if !list.wrapped => {
                let slot = members.entry(field.json.as_ref()).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(items) = slot else { return Err(mismatch(field)) };
                if let (Payload::Bytes(bytes), Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Bool)) =
                    (&payload, &self.schema.get(list.item).shape)
                {
                    // Packed: several varints in one field.
                    let mut packed = Reader::new(bytes);
                    while !packed.is_empty() {
                        let item = Payload::Varint(packed.varint()?);
                        items.push(self.element(field, list.item, item)?);
                    }
                    return Ok(());
                }
                items.push(self.element(field, list.item, payload)?);
            }
            Shape::Map(map) => {
                let Payload::Bytes(bytes) = payload else { return Err(mismatch(field)) };
                let mut reader = Reader::new(bytes);
                let mut key = String::new();
                let mut value = None;
                while let Some((number, payload)) = reader.field()? {
                    match (number, payload) {
                        (1, Payload::Bytes(bytes)) => key = String::from_utf8_lossy(bytes).into_owned(),
                        (2, payload) => value = Some(self.element(field, map.value, payload)?),
                        _ => {}
                    }
                }
                let value = value.unwrap_or_else(|| match self.schema.get(map.value).shape {
                    // Bytes that are left out of an entry are empty in Go, not absent.
                    Shape::Scalar(Scalar::Bytes) => Value::String(String::new()),
                    _ => scalar::zero(self.schema, map.value),
                });
                let slot = members.entry(field.json.as_ref()).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(entries) = slot else { return Err(mismatch(field)) };
                entries.insert(key, value);
            }
            _ => {
                let value = self.element(field, field.ty, payload)?;
                members.insert(field.json.to_string(), value);
            }
        }
        Ok(())
    }

    fn element(&mut self, field: &Field, ty: TypeId, payload: Payload<'_>) -> Result<Value, MessageError> {
        match (&self.schema.get(ty).shape, payload) {
            (Shape::Scalar(kind), payload) => self.scalar(field, *kind, payload),
            (Shape::Object(_), Payload::Bytes(bytes)) => self.message(bytes, ty),
            (Shape::List(list), Payload::Bytes(bytes)) if list.wrapped => {
                let mut reader = Reader::new(bytes);
                let mut items = Vec::new();
                while let Some((number, payload)) = reader.field()? {
                    if number == 1 {
                        items.push(self.element(field, list.item, payload)?);
                    }
                }
                Ok(Value::Array(items))
            }
            _ => Err(mismatch(field)),
        }
    }

    fn scalar(&mut self, field: &Field, kind: Scalar, payload: Payload<'_>) -> Result<Value, MessageError> {
        #[expect(clippy::cast_possible_wrap, reason = "numbers are two's complement on the wire")]
        let signed = |value: u64| value as i64;
        match (kind, payload) {
            (Scalar::Bool, Payload::Varint(value)) => Ok(Value::Bool(value != 0)),
            #[expect(clippy::cast_possible_truncation, reason = "Go keeps the low 32 bits too")]
            (Scalar::Int32, Payload::Varint(value)) => Ok(Value::from(signed(value) as i32)),
            (Scalar::Int64, Payload::Varint(value)) => Ok(Value::from(signed(value))),
            (Scalar::Double, Payload::Fixed64(value)) => Ok(scalar::float(f64::from_bits(value))),
            (Scalar::String, Payload::Bytes(bytes)) => Ok(Value::String(String::from_utf8_lossy(bytes).into_owned())),
            (Scalar::Bytes, Payload::Bytes(bytes)) => {
                use base64::Engine;
                Ok(Value::String(scalar::BASE64.encode(bytes)))
            }
            (Scalar::Time | Scalar::MicroTime, Payload::Bytes(bytes)) => timestamp(kind, bytes),
            (Scalar::Duration, Payload::Bytes(bytes)) => {
                let nanos = signed(integer_in(bytes, 1)?);
                Ok(Value::String(time::format_duration(SignedDuration::from_nanos(nanos))))
            }
            (Scalar::Quantity, Payload::Bytes(bytes)) => {
                let text = bytes_in(bytes, 1)?.map(String::from_utf8_lossy).unwrap_or_default();
                if text.is_empty() {
                    return Ok(Value::from("0"));
                }
                let canonical =
                    quantity::canonicalize(&text).map_err(|error| MessageError::Value(error.to_string()))?;
                Ok(Value::String(canonical.into_owned()))
            }
            (Scalar::IntOrString, Payload::Bytes(bytes)) => {
                if integer_in(bytes, 1)? == 0 {
                    return Ok(Value::from(signed(integer_in(bytes, 2)?)));
                }
                let text = bytes_in(bytes, 3)?.unwrap_or_default();
                Ok(Value::String(String::from_utf8_lossy(text).into_owned()))
            }
            (Scalar::FieldsV1 | Scalar::RawExtension | Scalar::Json, Payload::Bytes(bytes)) => {
                match bytes_in(bytes, 1)? {
                    None => Ok(Value::Null),
                    Some(raw) => self.raw(raw),
                }
            }
            (Scalar::JsonSchemaPropsOrBool, Payload::Bytes(bytes)) => match self.props(bytes, 2)? {
                Some(props) => Ok(props),
                None => Ok(Value::Bool(integer_in(bytes, 1)? != 0)),
            },
            (Scalar::JsonSchemaPropsOrArray, Payload::Bytes(bytes)) => {
                if let Some(props) = self.props(bytes, 1)? {
                    return Ok(props);
                }
                let mut reader = Reader::new(bytes);
                let mut items = Vec::new();
                while let Some((number, payload)) = reader.field()? {
                    if let (2, Payload::Bytes(bytes), Some(ty)) = (number, payload, schema_props()) {
                        items.push(self.message(bytes, ty)?);
                    }
                }
                Ok(if items.is_empty() { Value::Null } else { Value::Array(items) })
            }
            (Scalar::JsonSchemaPropsOrStringArray, Payload::Bytes(bytes)) => {
                if let Some(props) = self.props(bytes, 1)? {
                    return Ok(props);
                }
                let mut reader = Reader::new(bytes);
                let mut items = Vec::new();
                while let Some((number, payload)) = reader.field()? {
                    if let (2, Payload::Bytes(bytes)) = (number, payload) {
                        items.push(Value::String(String::from_utf8_lossy(bytes).into_owned()));
                    }
                }
                Ok(if items.is_empty() { Value::Null } else { Value::Array(items) })
            }
            _ => Err(mismatch(field)),
        }
    }

    /// The schema in one of the scalars that may hold one.
    fn props(&mut self, bytes: &[u8], number: u32) -> Result<Option<Value>, MessageError> {
        match (bytes_in(bytes, number)?, schema_props()) {
            (Some(bytes), Some(ty)) => self.message(bytes, ty).map(Some),
            _ => Ok(None),
        }
    }

    /// Raw JSON, or an object in an envelope, as lists of mixed kinds hold them.
    fn raw(&mut self, raw: &[u8]) -> Result<Value, MessageError> {
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        if !raw.starts_with(MAGIC) {
            return serde_json::from_slice(raw).map_err(|error| MessageError::Value(error.to_string()));
        }
        let unknown = Unknown::parse(raw)?;
        let (group, version) = unknown.api_version.rsplit_once('/').unwrap_or(("", &unknown.api_version));
        let Some(ty) = rkube_api::schema::type_of_parts(group, version, &unknown.kind) else {
            let text = format!("no kind {:?} is registered for version {:?}", unknown.kind, unknown.api_version);
            return Err(MessageError::Value(text));
        };
        let mut value = self.message(unknown.raw, ty)?;
        unknown.put_type(&mut value);
        Ok(value)
    }
}

fn mismatch(field: &Field) -> MessageError {
    MessageError::Mismatch(field.json.to_string())
}

/// The last value of a varint field of a small message; 0 if there is none.
fn integer_in(bytes: &[u8], wanted: u32) -> Result<u64, MessageError> {
    let mut reader = Reader::new(bytes);
    let mut found = 0;
    while let Some((number, payload)) = reader.field()? {
        if let Payload::Varint(value) = payload
            && number == wanted
        {
            found = value;
        }
    }
    Ok(found)
}

/// The last value of a delimited field of a small message.
fn bytes_in(bytes: &[u8], wanted: u32) -> Result<Option<&[u8]>, MessageError> {
    let mut reader = Reader::new(bytes);
    let mut found = None;
    while let Some((number, payload)) = reader.field()? {
        if let Payload::Bytes(value) = payload
            && number == wanted
        {
            found = Some(value);
        }
    }
    Ok(found)
}

fn timestamp(kind: Scalar, bytes: &[u8]) -> Result<Value, MessageError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    #[expect(clippy::cast_possible_wrap, reason = "seconds before 1970 are negative")]
    let seconds = integer_in(bytes, 1)? as i64;
    let nanos = i32::try_from(integer_in(bytes, 2)?).unwrap_or(0);
    let out_of_range = |_| MessageError::Value(format!("time {seconds} is out of range"));
    Ok(Value::String(if kind == Scalar::Time {
        time::format(Timestamp::from_second(seconds).map_err(out_of_range)?)
    } else {
        time::format_micro(Timestamp::new(seconds, nanos).map_err(out_of_range)?)
    }))
}
