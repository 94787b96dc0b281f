//! Short forms for what every validation does: read optional fields and report faults.
//!
//! Invariant: helpers here add errors in the order they are called and never stop a walk.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use rkube_apimachinery::field::{Error, ErrorList, Path};
use serde_json::Value;

/// `metadata.x is immutable` and the like.
pub(crate) const FIELD_IMMUTABLE: &str = "field is immutable";
pub(crate) const MUST_NOT_BE_NEGATIVE: &str = "must be greater than or equal to 0";
pub(crate) const MUST_BE_POSITIVE: &str = "must be greater than zero";
pub(crate) const MUST_BE_INTEGER: &str = "must be an integer";

/// Adds faults to a list.
pub(crate) trait Report {
    fn required(&mut self, path: impl Borrow<Path>, detail: impl Into<String>);
    fn invalid(&mut self, path: impl Borrow<Path>, value: impl Into<Value>, detail: impl Into<String>);
    fn forbidden(&mut self, path: impl Borrow<Path>, detail: impl Into<String>);
    fn not_supported(&mut self, path: impl Borrow<Path>, value: impl Into<Value>, valid: &[&str]);
    fn duplicate(&mut self, path: impl Borrow<Path>, value: impl Into<Value>);
    fn not_found(&mut self, path: impl Borrow<Path>, value: impl Into<Value>);
    fn too_long(&mut self, path: impl Borrow<Path>, maximum: usize);
    fn too_many(&mut self, path: impl Borrow<Path>, actual: usize, maximum: usize);
    /// One Invalid per message, as for the checks that return several.
    fn invalid_each(&mut self, path: impl Borrow<Path>, value: &str, messages: Vec<String>);
    fn not_negative(&mut self, path: impl Borrow<Path>, value: impl Into<i64>);
    fn positive(&mut self, path: impl Borrow<Path>, value: impl Into<i64>);
    /// The value must be one of `valid`, which is in the order the error shows.
    fn one_of(&mut self, path: impl Borrow<Path>, value: &str, valid: &[&str]);
    /// Like `one_of`, and an empty value is a missing one.
    fn required_one_of(&mut self, path: impl Borrow<Path>, value: &str, valid: &[&str]);
    fn not_empty(&mut self, path: impl Borrow<Path>, value: &str);
}

impl Report for ErrorList {
    fn required(&mut self, path: impl Borrow<Path>, detail: impl Into<String>) {
        self.push(Error::required(path.borrow(), detail));
    }

    fn invalid(&mut self, path: impl Borrow<Path>, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(Error::invalid(path.borrow(), value, detail));
    }

    fn forbidden(&mut self, path: impl Borrow<Path>, detail: impl Into<String>) {
        self.push(Error::forbidden(path.borrow(), detail));
    }

    fn not_supported(&mut self, path: impl Borrow<Path>, value: impl Into<Value>, valid: &[&str]) {
        self.push(Error::not_supported(path.borrow(), value, valid));
    }

    fn duplicate(&mut self, path: impl Borrow<Path>, value: impl Into<Value>) {
        self.push(Error::duplicate(path.borrow(), value));
    }

    fn not_found(&mut self, path: impl Borrow<Path>, value: impl Into<Value>) {
        self.push(Error::not_found(path.borrow(), value));
    }

    fn too_long(&mut self, path: impl Borrow<Path>, maximum: usize) {
        self.push(Error::too_long(path.borrow(), i64::try_from(maximum).unwrap_or(i64::MAX)));
    }

    fn too_many(&mut self, path: impl Borrow<Path>, actual: usize, maximum: usize) {
        self.push(Error::too_many(path.borrow(), actual, i64::try_from(maximum).unwrap_or(i64::MAX)));
    }

    fn invalid_each(&mut self, path: impl Borrow<Path>, value: &str, messages: Vec<String>) {
        for message in messages {
            self.push(Error::invalid(path.borrow(), value, message));
        }
    }

    fn not_negative(&mut self, path: impl Borrow<Path>, value: impl Into<i64>) {
        let value = value.into();
        if value < 0 {
            self.invalid(path, value, MUST_NOT_BE_NEGATIVE);
        }
    }

    fn positive(&mut self, path: impl Borrow<Path>, value: impl Into<i64>) {
        let value = value.into();
        if value <= 0 {
            self.invalid(path, value, MUST_BE_POSITIVE);
        }
    }

    fn one_of(&mut self, path: impl Borrow<Path>, value: &str, valid: &[&str]) {
        if !valid.contains(&value) {
            self.not_supported(path, value, valid);
        }
    }

    fn required_one_of(&mut self, path: impl Borrow<Path>, value: &str, valid: &[&str]) {
        if value.is_empty() {
            self.required(path, "");
        } else {
            self.one_of(path, value, valid);
        }
    }

    fn not_empty(&mut self, path: impl Borrow<Path>, value: &str) {
        if value.is_empty() {
            self.required(path, "");
        }
    }
}

/// An optional text, absent meaning empty as in Go.
pub(crate) trait OptText {
    fn text(&self) -> &str;
    fn is_blank(&self) -> bool {
        self.text().is_empty()
    }
}

impl OptText for Option<String> {
    fn text(&self) -> &str {
        self.as_deref().unwrap_or_default()
    }
}

/// An optional list, absent meaning empty.
pub(crate) trait OptList<T> {
    fn items(&self) -> &[T];
}

impl<T> OptList<T> for Option<Vec<T>> {
    fn items(&self) -> &[T] {
        self.as_deref().unwrap_or_default()
    }
}

/// An optional map, absent meaning empty.
pub(crate) trait OptMap<V> {
    fn pairs<'a>(&'a self) -> impl Iterator<Item = (&'a String, &'a V)>
    where
        V: 'a;
    fn value(&self, key: &str) -> Option<&V>;
    fn count(&self) -> usize;
}

impl<V> OptMap<V> for Option<BTreeMap<String, V>> {
    fn pairs<'a>(&'a self) -> impl Iterator<Item = (&'a String, &'a V)>
    where
        V: 'a,
    {
        self.iter().flatten()
    }

    fn value(&self, key: &str) -> Option<&V> {
        self.as_ref().and_then(|map| map.get(key))
    }

    fn count(&self) -> usize {
        self.as_ref().map_or(0, BTreeMap::len)
    }
}

/// Any serializable part of an object as the value of an error.
pub(crate) fn shown<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// Drops empty lists and maps, so that absent and empty compare equal as upstream's semantic equality has it.
pub(crate) fn semantic_eq<T: serde::Serialize + PartialEq>(left: &T, right: &T) -> bool {
    left == right || without_empty(shown(left)) == without_empty(shown(right))
}

fn without_empty(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept: serde_json::Map<String, Value> = map
                .into_iter()
                .map(|(key, value)| (key, without_empty(value)))
                .filter(|(_, value)| !is_empty(value))
                .collect();
            Value::Object(kept)
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_empty).collect()),
        other => other,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// `update` may not change the field.
pub(crate) fn immutable<T: serde::Serialize + PartialEq>(
    new: &T,
    old: &T,
    path: impl Borrow<Path>,
    errors: &mut ErrorList,
) {
    if !semantic_eq(new, old) {
        errors.invalid(path, shown(new), FIELD_IMMUTABLE);
    }
}

/// Exactly one source of many may be set: counts them and validates the first only.
pub(crate) struct Sources<'a> {
    path: &'a Path,
    more_than_one: &'static str,
    pub(crate) found: usize,
}

impl<'a> Sources<'a> {
    pub(crate) fn new(path: &'a Path, more_than_one: &'static str) -> Self {
        Self { path, more_than_one, found: 0 }
    }

    /// `name` is the field, for the error; `check` gets the field's own path.
    pub(crate) fn take<T>(
        &mut self,
        errors: &mut ErrorList,
        source: Option<&T>,
        name: &str,
        check: impl FnOnce(&T, &Path, &mut ErrorList),
    ) {
        let Some(source) = source else { return };
        if self.found > 0 {
            errors.forbidden(self.path.child(name), self.more_than_one);
        } else {
            self.found += 1;
            check(source, &self.path.child(name), errors);
        }
    }
}
