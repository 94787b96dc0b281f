//! Typed decoding: one pass over the bytes, driven by the schema, straight into the tree Go would write back.
//!
//! In   JSON bytes (or a tree that came from YAML or a patch), a type
//! Out  the tree: unknown fields pruned, nulls and zero values present or absent as Go's struct tags say, quantities,
//!      times and durations canonical; the strict errors (`unknown field`, `duplicate field`); the first mismatch
//!
//! Behaves as sigs.k8s.io/json, the fork of encoding/json that kube-apiserver decodes with, v1.36.
//! Differs from upstream: nesting stops at 128 levels, not at 10,000; a member that comes twice replaces the first,
//! where Go merges structs and maps.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::LazyLock;

use rkube_apimachinery::quote::quote;
use rkube_apimachinery::schema::{Map as MapShape, Object, Presence, Scalar, SchemaSet, Shape, TypeId};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::any::Any;
use super::{canonical, scalar, syntax};

/// More strict errors than this are not collected.
const MAX_PROBLEMS: usize = 100;

/// A tree and what strict decoding has against it.
#[derive(Debug, Default)]
pub struct Typed {
    pub value: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.bar"`, in the order they were met, each once.
    pub problems: Vec<String>,
}

/// Why bytes are not an object of the type, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON at all.
    #[error("{0}")]
    Syntax(String),
    /// JSON, but a value of the wrong type or form.
    #[error("{0}")]
    Type(String),
}

static SCHEMA_PROPS: LazyLock<Option<TypeId>> =
    LazyLock::new(|| rkube_api::type_named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"));

/// The type inside the three scalars that hold a schema or something simpler.
pub(crate) fn schema_props() -> Option<TypeId> {
    *SCHEMA_PROPS
}

/// Decodes JSON bytes. With `check` strict errors are collected.
pub fn from_slice(bytes: &[u8], schema: &SchemaSet, ty: TypeId, check: bool) -> Result<Typed, JsonError> {
    let mut context = Context::new(schema, check);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let decoded = Seed { context: &mut context, ty, parent: None }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match decoded {
        Ok(value) => context.finish(value),
        Err(error) => {
            // Only the scanner knows Go's words; what it accepts and we do not is a limit of ours.
            Err(JsonError::Syntax(syntax::error(bytes).unwrap_or_else(|| limit(&error))))
        }
    }
}

/// Decodes JSON bytes of no known type: everything is kept, and with `check` duplicate members are collected.
pub fn untyped(bytes: &[u8], check: bool) -> Result<Typed, JsonError> {
    let mut context = Context::new(rkube_api::schema(), check);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let decoded = Any { context: &mut context, check }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match decoded {
        Ok(value) => context.finish(Some(value)),
        Err(error) => Err(JsonError::Syntax(syntax::error(bytes).unwrap_or_else(|| limit(&error)))),
    }
}

/// Decodes a tree: what a patch or YAML made.
pub fn from_value(value: &Value, schema: &SchemaSet, ty: TypeId, check: bool) -> Result<Typed, JsonError> {
    let mut context = Context::new(schema, check);
    match (Seed { context: &mut context, ty, parent: None }).deserialize(value) {
        Ok(value) => context.finish(value),
        Err(error) => Err(JsonError::Syntax(limit(&error))),
    }
}

fn limit(error: &serde_json::Error) -> String {
    if error.to_string().starts_with("recursion limit") {
        return "exceeded max depth".to_owned();
    }
    error.to_string()
}

pub(crate) struct Context<'s> {
    schema: &'s SchemaSet,
    check: bool,
    /// Where we are, as strict errors name it: `.spec.containers[0].name`.
    path: String,
    /// Where we are, as type errors name it: struct fields only, without positions and map keys.
    fields: String,
    problems: Vec<String>,
    mismatch: Option<String>,
}

/// A place to come back to in the paths.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    path: usize,
    fields: usize,
}

impl<'s> Context<'s> {
    fn new(schema: &'s SchemaSet, check: bool) -> Self {
        Self { schema, check, path: String::new(), fields: String::new(), problems: Vec::new(), mismatch: None }
    }

    fn finish(self, value: Option<Value>) -> Result<Typed, JsonError> {
        match self.mismatch {
            Some(mismatch) => Err(JsonError::Type(mismatch)),
            None => Ok(Typed { value: value.unwrap_or_default(), problems: self.problems }),
        }
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark { path: self.path.len(), fields: self.fields.len() }
    }

    pub(crate) fn leave(&mut self, mark: Mark) {
        self.path.truncate(mark.path);
        self.fields.truncate(mark.fields);
    }

    fn enter_field(&mut self, mark: Mark, name: &str) {
        self.leave(mark);
        self.path.push('.');
        self.path.push_str(name);
        self.fields.push('.');
        self.fields.push_str(name);
    }

    pub(crate) fn enter_key(&mut self, mark: Mark, key: &str) {
        self.leave(mark);
        if self.check {
            self.path.push('.');
            self.path.push_str(key);
        }
    }

    pub(crate) fn enter_index(&mut self, mark: Mark, index: usize) {
        self.leave(mark);
        if self.check {
            let _ = write!(self.path, "[{index}]");
        }
    }

    fn problem(&mut self, what: &str) {
        if !self.check || self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        let text = format!("{what} field {}", quote(self.path.trim_start_matches('.')));
        if !self.problems.contains(&text) {
            self.problems.push(text);
        }
    }

    pub(crate) fn duplicate(&mut self) {
        self.problem("duplicate");
    }

    /// A value that does not fit. Go keeps the first such error and reads on.
    fn mismatch(&mut self, found: &str, ty: TypeId, parent: Option<TypeId>) {
        if self.mismatch.is_none() {
            let go_type = go_type(self.schema, ty);
            self.mismatch = Some(match parent {
                Some(parent) => format!(
                    "json: cannot unmarshal {found} into Go struct field {}{} of type {go_type}",
                    simple_name(&self.schema.get(parent).name),
                    self.fields
                ),
                None => format!("json: cannot unmarshal {found} into Go value of type {go_type}"),
            });
        }
    }

    /// What an unmarshaller of Go's own says: without a place.
    fn fault(&mut self, text: String) {
        self.mismatch.get_or_insert(text);
    }
}

fn simple_name(definition: &str) -> &str {
    definition.rsplit('.').next().unwrap_or_default()
}

/// A type as Go's errors print it. Named string types are printed as `string`: the table does not have their names.
fn go_type(schema: &SchemaSet, ty: TypeId) -> String {
    let definition = schema.get(ty);
    match &definition.shape {
        Shape::Scalar(scalar) => match scalar {
            Scalar::String | Scalar::Time | Scalar::MicroTime | Scalar::Duration => "string".to_owned(),
            Scalar::Bool => "bool".to_owned(),
            Scalar::Int32 | Scalar::IntOrString => "int32".to_owned(),
            Scalar::Int64 => "int64".to_owned(),
            Scalar::Double => "float64".to_owned(),
            Scalar::Bytes => "[]uint8".to_owned(),
            _ => package_and_name(&definition.name),
        },
        Shape::Object(_) => package_and_name(&definition.name),
        Shape::List(list) => format!("[]{}", go_type(schema, list.item)),
        Shape::Map(map) => format!("map[string]{}", go_type(schema, map.value)),
    }
}

fn package_and_name(definition: &str) -> String {
    let mut parts = definition.rsplit('.');
    match (parts.next(), parts.next()) {
        (Some(name), Some(package)) => format!("{package}.{name}"),
        _ => "map[string]interface {}".to_owned(),
    }
}

/// Which fields of a struct were met and which are in the tree.
#[derive(Default)]
struct Bits {
    low: u128,
    /// Custom resources may have more fields than built-in types.
    high: Vec<u128>,
}

impl Bits {
    /// Sets a bit and says whether it was set before.
    fn set(&mut self, index: usize) -> bool {
        let bit = 1_u128 << (index % 128);
        let word = match (index / 128).checked_sub(1) {
            None => &mut self.low,
            Some(word) => {
                if self.high.len() <= word {
                    self.high.resize(word + 1, 0);
                }
                match self.high.get_mut(word) {
                    Some(word) => word,
                    None => return false,
                }
            }
        };
        let before = *word & bit != 0;
        *word |= bit;
        before
    }
}

/// Decodes one value of a type. `None` is null, which Go takes for "not there", or a mismatch.
struct Seed<'c, 's> {
    context: &'c mut Context<'s>,
    ty: TypeId,
    /// The struct the value is in.
    parent: Option<TypeId>,
}

impl<'s> Seed<'_, 's> {
    fn shape(&self) -> &'s Shape {
        &self.context.schema.get(self.ty).shape
    }

    fn mismatch(self, found: &str) -> Option<Value> {
        // Unmarshallers of Go's own see only their value, and their errors carry no place.
        match self.shape() {
            Shape::Scalar(Scalar::Time | Scalar::MicroTime | Scalar::Duration) => {
                self.context.fault(format!("json: cannot unmarshal {found} into Go value of type string"));
            }
            Shape::Scalar(Scalar::IntOrString) => {
                self.context.fault(format!("json: cannot unmarshal {found} into Go value of type int32"));
            }
            Shape::Scalar(Scalar::Quantity) => {
                self.context.fault(rkube_apimachinery::quantity::ParseError::Format.to_string());
            }
            Shape::Scalar(
                Scalar::JsonSchemaPropsOrBool | Scalar::JsonSchemaPropsOrArray | Scalar::JsonSchemaPropsOrStringArray,
            ) => self.context.fault("boolean or JSON schema expected".to_owned()),
            _ => self.context.mismatch(found, self.ty, self.parent),
        }
        None
    }

    fn text(self, text: Cow<'_, str>) -> Option<Value> {
        let Shape::Scalar(scalar) = self.shape() else { return self.mismatch("string") };
        match scalar {
            Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Double => self.mismatch("string"),
            Scalar::JsonSchemaPropsOrBool | Scalar::JsonSchemaPropsOrArray | Scalar::JsonSchemaPropsOrStringArray => {
                self.mismatch("string")
            }
            Scalar::String | Scalar::IntOrString | Scalar::FieldsV1 | Scalar::RawExtension | Scalar::Json => {
                Some(Value::String(text.into_owned()))
            }
            _ => match scalar::text(*scalar, text) {
                Ok(value) => value,
                Err(error) => {
                    self.context.fault(error);
                    None
                }
            },
        }
    }

    fn number(self, number: Number) -> Option<Value> {
        let Shape::Scalar(scalar) = self.shape() else { return self.mismatch("number") };
        match (scalar, number) {
            (Scalar::Int32, Number::Signed(value)) if i32::try_from(value).is_ok() => Some(Value::from(value)),
            (Scalar::Int64, Number::Signed(value)) => Some(Value::from(value)),
            (Scalar::IntOrString, Number::Signed(value)) if i32::try_from(value).is_ok() => Some(Value::from(value)),
            (Scalar::Double | Scalar::FieldsV1 | Scalar::RawExtension | Scalar::Json, number) => Some(number.value()),
            (Scalar::Int32 | Scalar::Int64 | Scalar::IntOrString, number) => {
                let found = format!("number {}", number.value());
                self.mismatch(&found)
            }
            (Scalar::Quantity, number) => self.text(number.value().to_string().into()),
            _ => self.mismatch("number"),
        }
    }
}

#[derive(Clone, Copy)]
enum Number {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
}

impl Number {
    fn value(self) -> Value {
        match self {
            Self::Signed(value) => Value::from(value),
            Self::Unsigned(value) => Value::from(value),
            Self::Float(value) => scalar::float(value),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Option<Value>, E> {
        Ok(match self.shape() {
            Shape::Scalar(
                Scalar::Bool | Scalar::JsonSchemaPropsOrBool | Scalar::FieldsV1 | Scalar::RawExtension | Scalar::Json,
            ) => Some(Value::Bool(value)),
            _ => self.mismatch("bool"),
        })
    }

    fn visit_i64<E>(self, value: i64) -> Result<Option<Value>, E> {
        Ok(self.number(Number::Signed(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Option<Value>, E> {
        Ok(self.number(i64::try_from(value).map_or(Number::Unsigned(value), Number::Signed)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Option<Value>, E> {
        Ok(self.number(Number::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Option<Value>, E> {
        Ok(self.text(Cow::Borrowed(value)))
    }

    fn visit_string<E>(self, value: String) -> Result<Option<Value>, E> {
        Ok(self.text(Cow::Owned(value)))
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<Option<Value>, A::Error> {
        match self.shape() {
            Shape::List(list) => items(self.context, list.item, self.parent, access),
            Shape::Scalar(Scalar::FieldsV1 | Scalar::RawExtension | Scalar::Json) => {
                Any { context: self.context, check: false }.visit_seq(access).map(Some)
            }
            Shape::Scalar(Scalar::JsonSchemaPropsOrArray) => match schema_props() {
                Some(item) => items(self.context, item, self.parent, access),
                None => Ok(None),
            },
            Shape::Scalar(Scalar::JsonSchemaPropsOrStringArray) => {
                Any { context: self.context, check: false }.visit_seq(access).map(Some)
            }
            _ => {
                let none = self.mismatch("array");
                let mut access = access;
                while access.next_element::<IgnoredAny>()?.is_some() {}
                Ok(none)
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Option<Value>, A::Error> {
        match self.shape() {
            Shape::Object(object) => struct_members(self.context, object, self.ty, access).map(Some),
            Shape::Map(map) => map_members(self.context, map, self.parent, access).map(Some),
            Shape::Scalar(Scalar::FieldsV1 | Scalar::RawExtension | Scalar::Json) => {
                Any { context: self.context, check: false }.visit_map(access).map(Some)
            }
            Shape::Scalar(
                Scalar::JsonSchemaPropsOrBool | Scalar::JsonSchemaPropsOrArray | Scalar::JsonSchemaPropsOrStringArray,
            ) => match schema_props() {
                Some(ty) => Seed { ty, ..self }.visit_map(access),
                None => Ok(None),
            },
            _ => {
                let none = self.mismatch("object");
                let mut access = access;
                while access.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(none)
            }
        }
    }
}

fn items<'de, A: SeqAccess<'de>>(
    context: &mut Context<'_>,
    item: TypeId,
    parent: Option<TypeId>,
    mut access: A,
) -> Result<Option<Value>, A::Error> {
    let mut found = Vec::new();
    let at = context.mark();
    loop {
        context.enter_index(at, found.len());
        let seed = ItemSeed { context: &mut *context, ty: item, parent };
        match access.next_element_seed(seed)? {
            Some(value) => found.push(value),
            None => break,
        }
    }
    context.leave(at);
    Ok(Some(Value::Array(found)))
}

/// An item or a map value: null is the zero value of its type.
struct ItemSeed<'c, 's> {
    context: &'c mut Context<'s>,
    ty: TypeId,
    parent: Option<TypeId>,
}

impl<'de> DeserializeSeed<'de> for ItemSeed<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let schema = self.context.schema;
        let ty = self.ty;
        let seed = Seed { context: self.context, ty, parent: self.parent };
        Ok(seed.deserialize(deserializer)?.unwrap_or_else(|| scalar::zero(schema, ty)))
    }
}

fn map_members<'de, A: MapAccess<'de>>(
    context: &mut Context<'_>,
    map: &MapShape,
    parent: Option<TypeId>,
    mut access: A,
) -> Result<Value, A::Error> {
    let mut members = Map::new();
    let at = context.mark();
    while let Some(key) = access.next_key::<String>()? {
        context.enter_key(at, &key);
        if members.contains_key(&key) {
            context.duplicate();
        }
        let value = access.next_value_seed(ItemSeed { context: &mut *context, ty: map.value, parent })?;
        members.insert(key, value);
    }
    context.leave(at);
    Ok(Value::Object(members))
}

/// A member name, borrowed from the input where it has no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a member name")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E>(self, key: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(key.to_owned()))
    }

    fn visit_string<E>(self, key: String) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(key))
    }
}

fn struct_members<'de, A: MapAccess<'de>>(
    context: &mut Context<'_>,
    object: &Object,
    ty: TypeId,
    mut access: A,
) -> Result<Value, A::Error> {
    let schema = context.schema;
    let mut members = Map::new();
    let mut met = Bits::default();
    let at = context.mark();
    while let Some(key) = access.next_key_seed(Key)? {
        let index = object.fields.binary_search_by(|field| field.json.as_ref().cmp(&key)).ok();
        let Some((index, field)) = index.and_then(|index| Some((index, object.fields.get(index)?))) else {
            if object.preserve_unknown {
                context.enter_key(at, &key);
                if members.contains_key(key.as_ref()) {
                    context.duplicate();
                }
                let value = access.next_value_seed(Any { context: &mut *context, check: true })?;
                members.insert(key.into_owned(), value);
            } else {
                context.enter_key(at, &key);
                context.problem("unknown");
                access.next_value::<IgnoredAny>()?;
            }
            continue;
        };
        context.enter_field(at, &field.json);
        if met.set(index) {
            context.duplicate();
        }
        let seed = Seed { context: &mut *context, ty: field.ty, parent: Some(ty) };
        let value = access.next_value_seed(seed)?;
        let Some(value) = value else { continue };
        if field.presence == Presence::OmitEmpty && scalar::is_empty(&value, &schema.get(field.ty).shape) {
            continue;
        }
        members.insert(field.json.to_string(), value);
    }
    context.leave(at);
    canonical::fill(schema, object, &mut members);
    Ok(Value::Object(members))
}
