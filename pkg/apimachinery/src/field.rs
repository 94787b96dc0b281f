//! Field paths and validation errors. Validation collects; it does not stop at the first fault.
//!
//! Behaves as apimachinery/pkg/util/validation/field, v1.36: the texts are what users and clients read.

use std::fmt;

use serde_json::Value;

use crate::quote::{go_float, go_json, quote};

/// The path of a field inside an object: `spec.containers[0].image`, `metadata.annotations[key]`.
///
/// Paths are built while walking an object that is almost always valid, so a child borrows nothing
/// and allocates once; keep them in locals and pass `&path`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The empty path: an object as a whole.
    pub fn root() -> Self {
        Self::default()
    }

    /// `path.name`.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            return Self(name.to_owned());
        }
        self.followed_by(&[".", name])
    }

    /// `path[index]`.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.followed_by(&["[", &index.to_string(), "]"])
    }

    /// `path[key]`.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.followed_by(&["[", key, "]"])
    }

    /// One allocation and no formatting machinery: a pod's validation makes more than a hundred paths.
    fn followed_by(&self, parts: &[&str]) -> Self {
        let mut text = String::with_capacity(self.0.len() + parts.iter().map(|part| part.len()).sum::<usize>());
        text.push_str(&self.0);
        parts.iter().for_each(|part| text.push_str(part));
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Upstream prints a nil path like this.
        if self.0.is_empty() { f.write_str("<nil>") } else { f.write_str(&self.0) }
    }
}

/// What is wrong with a field. `reason` is the machine-readable name in `details.causes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorType {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooShort,
    TooMany,
    TooFew,
    Internal,
    TypeInvalid,
}

impl ErrorType {
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooShort => "FieldValueTooShort",
            Self::TooMany => "FieldValueTooMany",
            Self::TooFew => "FieldValueTooFew",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooShort => "Too short",
            Self::TooMany => "Too many",
            Self::TooFew => "Too few",
            Self::Internal => "Internal error",
        }
    }
}

/// One fault in one field.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub kind: ErrorType,
    pub field: String,
    /// The offending value; shown for every type but Required, Forbidden, TooLong, TooShort and Internal.
    /// `None` is not shown either: some values are too long or too secret to repeat.
    pub value: Option<Value>,
    pub detail: String,
}

impl Error {
    fn new(kind: ErrorType, path: &Path, value: Value, detail: impl Into<String>) -> Self {
        Self { kind, field: path.to_string(), value: Some(value), detail: detail.into() }
    }

    /// The same error with the value left out of its text.
    #[must_use]
    pub fn omit_value(mut self) -> Self {
        self.value = None;
        self
    }

    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorType::NotFound, path, value.into(), "")
    }

    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Required, path, Value::Null, detail)
    }

    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorType::Duplicate, path, value.into(), "")
    }

    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Invalid, path, value.into(), detail)
    }

    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::TypeInvalid, path, value.into(), detail)
    }

    /// `valid` is shown quoted, in the given order, as upstream's sorted slices are.
    pub fn not_supported(path: &Path, value: impl Into<Value>, valid: &[&str]) -> Self {
        let quoted: Vec<String> = valid.iter().map(|value| quote(value).to_string()).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Self::new(ErrorType::NotSupported, path, value.into(), detail)
    }

    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Forbidden, path, Value::Null, detail)
    }

    /// `maximum` in bytes; a negative one is not mentioned.
    pub fn too_long(path: &Path, maximum: i64) -> Self {
        let detail = limit("may not be more than", maximum, "byte", "value is too long");
        Self::new(ErrorType::TooLong, path, Value::Null, detail)
    }

    /// As [`Self::too_long`], for limits that count characters.
    pub fn too_long_characters(path: &Path, maximum: i64) -> Self {
        let detail = limit("may not be more than", maximum, "character", "value is too long");
        Self::new(ErrorType::TooLong, path, Value::Null, detail)
    }

    /// `minimum` in characters; a negative one is not mentioned.
    pub fn too_short(path: &Path, minimum: i64) -> Self {
        let detail = limit("must be at least", minimum, "character", "value is too short");
        Self::new(ErrorType::TooShort, path, Value::Null, detail)
    }

    pub fn too_many(path: &Path, actual: usize, maximum: i64) -> Self {
        let detail = limit("must have at most", maximum, "item", "has too many items");
        Self::new(ErrorType::TooMany, path, Value::from(actual), detail)
    }

    pub fn too_few(path: &Path, actual: usize, minimum: i64) -> Self {
        let detail = limit("must have at least", minimum, "item", "has too few items");
        Self::new(ErrorType::TooFew, path, Value::from(actual), detail)
    }

    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Internal, path, Value::Null, detail)
    }

    /// The text without the field, as in `details.causes[].message`.
    pub fn body(&self) -> String {
        let text = self.kind.text();
        let silent = matches!(
            self.kind,
            ErrorType::Required | ErrorType::Forbidden | ErrorType::TooLong | ErrorType::TooShort | ErrorType::Internal
        );
        let head = match &self.value {
            Some(value) if !silent => format!("{text}: {}", go_value(value)),
            _ => text.to_owned(),
        };
        if self.detail.is_empty() { head } else { format!("{head}: {}", self.detail) }
    }
}

/// `must have at most 3 items`, or `otherwise` for a negative limit.
fn limit(text: &str, limit: i64, unit: &str, otherwise: &str) -> String {
    match limit {
        i64::MIN..=-1 => otherwise.to_owned(),
        1 => format!("{text} 1 {unit}"),
        _ => format!("{text} {limit} {unit}s"),
    }
}

/// Values print as upstream prints them: strings quoted, numbers bare, the rest as JSON.
fn go_value(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text).to_string(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => go_float(float, -4),
            _ => number.to_string(),
        },
        other => go_json(other),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// All faults found in an object, in the order of the walk.
pub type ErrorList = Vec<Error>;

/// Joins as upstream's aggregate does: one error bare, several in brackets, equal ones once.
pub fn aggregate(errors: &[Error]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}
