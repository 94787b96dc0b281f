//! Values without a schema, built as a tree, with duplicate members noticed.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::decode::Context;
use super::scalar;

pub(crate) struct Any<'c, 's> {
    pub(crate) context: &'c mut Context<'s>,
    /// Whether duplicates are reported: Go keeps raw extensions as bytes and never looks into them.
    pub(crate) check: bool,
}

impl<'de> DeserializeSeed<'de> for Any<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(scalar::float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let at = self.context.mark();
        loop {
            self.context.enter_index(at, items.len());
            match access.next_element_seed(Any { context: self.context, check: self.check })? {
                Some(item) => items.push(item),
                None => break,
            }
        }
        self.context.leave(at);
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        let at = self.context.mark();
        while let Some(key) = access.next_key::<String>()? {
            self.context.enter_key(at, &key);
            if self.check && members.contains_key(&key) {
                self.context.duplicate();
            }
            let value = access.next_value_seed(Any { context: self.context, check: self.check })?;
            members.insert(key, value);
        }
        self.context.leave(at);
        Ok(Value::Object(members))
    }
}
