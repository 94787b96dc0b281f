//! The body of a request to an object of an expected kind, with upstream's answers to bodies that are none.
//!
//! Behaves as apiserver/pkg/endpoints/handlers/{create,update,rest}.go and apimachinery's serializers, v1.36.

use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::quote::quote;
use rkube_apimachinery::schema::{SchemaSet, TypeId};
use rkube_apimachinery::status::ApiStatus;
use serde::Deserialize;
use serde_json::Value;

use crate::json::decode::{self as json, JsonError, Typed};
use crate::media::Media;
use crate::protobuf::{self, Unknown};
use crate::yaml;

/// The name upstream's errors give to the list of known kinds.
const SCHEME: &str = "pkg/api/legacyscheme/scheme.go:30";

/// What to do about fields that are unknown or come twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// The query parameter; empty means `Warn`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Ignore" => Some(Self::Ignore),
            "" | "Warn" => Some(Self::Warn),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// A decoded body: pruned, canonical, with `apiVersion` and `kind`.
#[derive(Debug)]
pub struct Decoded {
    pub value: Value,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
}

/// Decodes a body that should hold an object of the kind `expected`, whose type is `ty`. A body without `apiVersion` or
/// `kind` gets them.
pub fn decode(
    body: &[u8],
    media: Media,
    expected: &GroupVersionKind,
    schema: &SchemaSet,
    ty: TypeId,
    validation: FieldValidation,
) -> Result<Decoded, ApiStatus> {
    let check = validation != FieldValidation::Ignore;
    let mut extra = None;
    let typed = match media {
        Media::Json => json::from_slice(body, schema, ty, check),
        Media::Yaml => match yaml::parse(body) {
            Ok(parsed) => {
                extra = parsed.duplicate.filter(|_| check);
                json::from_value(&parsed.value, schema, ty, check)
            }
            Err(error) => return Err(unrecognized(expected, &error.to_string(), body)),
        },
        Media::Protobuf => return decode_protobuf(body, expected, schema, ty),
    };
    let mut typed = match typed {
        Ok(typed) => typed,
        Err(error) => return Err(refuse(&error, body, media, expected)),
    };
    if !typed.value.is_object() {
        return Err(unrecognized(expected, &not_an_object("null"), body));
    }
    complete(&mut typed.value, expected)?;
    if let Some(duplicate) = extra {
        typed.problems.insert(0, duplicate);
    }
    finish(typed, expected, validation)
}

fn strict(problems: &[String]) -> String {
    format!("strict decoding error: {}", problems.join(", "))
}

fn finish(typed: Typed, expected: &GroupVersionKind, validation: FieldValidation) -> Result<Decoded, ApiStatus> {
    if validation == FieldValidation::Strict && !typed.problems.is_empty() {
        return Err(cannot_be_handled(expected, expected, &strict(&typed.problems)));
    }
    Ok(Decoded { value: typed.value, warnings: typed.problems })
}

/// Fills in the expected kind where the body leaves it out, and refuses another one.
fn complete(value: &mut Value, expected: &GroupVersionKind) -> Result<(), ApiStatus> {
    let Value::Object(members) = value else { return Ok(()) };
    let text = |name: &str| members.get(name).and_then(Value::as_str).unwrap_or_default();
    let found = with_defaults(text("apiVersion"), text("kind"), expected);
    check_kind(&found, expected)?;
    let api_version = expected.group_version().to_string();
    let (has_version, has_kind) = (text("apiVersion") == api_version, text("kind") == expected.kind);
    if !has_version {
        members.insert("apiVersion".to_owned(), Value::String(api_version));
    }
    if !has_kind {
        members.insert("kind".to_owned(), Value::String(expected.kind.clone()));
    }
    Ok(())
}

fn with_defaults(api_version: &str, kind: &str, expected: &GroupVersionKind) -> GroupVersionKind {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let kind = if kind.is_empty() { expected.kind.as_str() } else { kind };
    if version.is_empty() && (group.is_empty() || group == expected.group) {
        return GroupVersionKind::new(expected.group.as_str(), expected.version.as_str(), kind);
    }
    GroupVersionKind::new(group, version, kind)
}

fn check_kind(found: &GroupVersionKind, expected: &GroupVersionKind) -> Result<(), ApiStatus> {
    if found == expected {
        return Ok(());
    }
    if rkube_api::type_of(found).is_none() {
        let reason = format!(
            "no kind {} is registered for version {} in scheme {}",
            quote(&found.kind),
            quote(&found.group_version().to_string()),
            quote(SCHEME)
        );
        return Err(cannot_be_handled(found, expected, &reason));
    }
    if found.group == expected.group && found.version == expected.version {
        let reason =
            format!("converting ({0}.{1}) to ({0}.{2}): unknown conversion", found.version, found.kind, expected.kind);
        return Err(cannot_be_handled(found, expected, &reason));
    }
    Err(ApiStatus::bad_request(format!(
        "the API version in the data ({}) does not match the expected API version ({})",
        found.group_version(),
        expected.group_version()
    )))
}

/// The answer to a body that did not decode: by its kind where that can still be read.
fn refuse(error: &JsonError, body: &[u8], media: Media, expected: &GroupVersionKind) -> ApiStatus {
    let head = match media {
        Media::Yaml => yaml::parse(body).ok().and_then(|parsed| serde_json::from_value::<Head>(parsed.value).ok()),
        _ => serde_json::from_slice::<Head>(body).ok(),
    };
    match (error, head) {
        (JsonError::Type(text), Some(head)) => {
            let (api_version, kind) = (head.api_version.unwrap_or_default(), head.kind.unwrap_or_default());
            let found = with_defaults(&api_version, &kind, expected);
            match check_kind(&found, expected) {
                Ok(()) => cannot_be_handled(&found, expected, text),
                Err(status) => status,
            }
        }
        (JsonError::Syntax(text), _) => {
            unrecognized(expected, &format!("couldn't get version/kind; json parse error: {text}"), body)
        }
        (JsonError::Type(_), None) => {
            let found = match body.trim_ascii_start().first() {
                Some(b'[') => "array",
                Some(b'"') => "string",
                Some(b't' | b'f') => "bool",
                Some(b'{') => "object",
                _ => "number",
            };
            unrecognized(expected, &not_an_object(found), body)
        }
    }
}

fn not_an_object(found: &str) -> String {
    format!(
        "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go value of type \
         struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
    )
}

fn cannot_be_handled(found: &GroupVersionKind, expected: &GroupVersionKind, reason: &str) -> ApiStatus {
    ApiStatus::bad_request(format!(
        "{} in version {} cannot be handled as a {}: {reason}",
        found.kind,
        quote(&found.version),
        expected.kind
    ))
}

fn unrecognized(expected: &GroupVersionKind, reason: &str, body: &[u8]) -> ApiStatus {
    ApiStatus::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {reason} ({})",
        expected.kind,
        summarize(body, 30)
    ))
}

/// The beginning of a body for an error: text if it looks like JSON, else hexadecimal.
fn summarize(body: &[u8], most: usize) -> String {
    let head = body.get(..most).unwrap_or(body);
    let dots = if body.len() > most { " ..." } else { "" };
    if body.is_empty() {
        return "<empty>".to_owned();
    }
    if body.first() == Some(&b'{') {
        return format!("{}{dots}", String::from_utf8_lossy(head));
    }
    let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}{dots}")
}

fn decode_protobuf(
    body: &[u8],
    expected: &GroupVersionKind,
    schema: &SchemaSet,
    ty: TypeId,
) -> Result<Decoded, ApiStatus> {
    let unknown = Unknown::parse(body).map_err(|error| unrecognized(expected, &error.to_string(), body))?;
    let found = with_defaults(&unknown.api_version, &unknown.kind, expected);
    check_kind(&found, expected)?;
    let mut value = protobuf::decode(unknown.raw, schema, ty)
        .map_err(|error| cannot_be_handled(&found, expected, &error.to_string()))?;
    complete(&mut value, expected)?;
    Ok(Decoded { value, warnings: Vec::new() })
}
