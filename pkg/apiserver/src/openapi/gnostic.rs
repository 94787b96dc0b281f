//! The v2 document in gnostic's protobuf form, which is what kubectl asks for.
//!
//! In   the document as JSON, as [`super::builtin`] writes it
//! Out  an `openapi.v2.Document`
//! Behaves as `github.com/google/gnostic-models/openapiv2`: maps are lists of named values in the order of the JSON,
//! and values of no fixed type (defaults, `x-` members) are text that a YAML parser reads.
//!
//! **Invariant:** a member that the form has no place for is an error, never left out.

use rkube_codec::protobuf::wire::{put_bytes, put_double, put_int, put_nested};
use serde_json::{Map, Value};

/// A document that gnostic's form cannot hold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GnosticError {
    #[error("no place for the member {0:?}")]
    Member(String),
    #[error("the member {0:?} is of another type")]
    Type(String),
}

/// A message: where its members go.
struct Message {
    fields: &'static [(&'static str, u32, Form)],
    /// The number of the list that members of any other name are put in, and their form.
    named: Option<(u32, Form)>,
    /// The number of the list of `x-` members; zero where they are members like others.
    extensions: u32,
}

#[derive(Clone, Copy)]
enum Form {
    Text,
    Bool,
    Int,
    Double,
    Texts,
    /// One text or several, in a message of their own.
    TextList,
    /// Any value, as text.
    Any,
    Anys,
    Message(&'static Message),
    Messages(&'static Message),
    /// As the value says: the numbers of the messages around it, outermost first.
    Choice(Choose),
    Choices(Choose),
}

/// What a value is.
type Choose = fn(&Value) -> (&'static [u32], Form);

use Form::{Any, Anys, Bool, Choice, Choices, Double, Int, Text, TextList, Texts};

const fn message(fields: &'static [(&'static str, u32, Form)], extensions: u32) -> Message {
    Message { fields, named: None, extensions }
}

const fn map(number: u32, form: Form, extensions: u32) -> Message {
    Message { fields: &[], named: Some((number, form)), extensions }
}

static DOCUMENT: Message = message(
    &[
        ("swagger", 1, Text),
        ("info", 2, Form::Message(&INFO)),
        ("host", 3, Text),
        ("basePath", 4, Text),
        ("schemes", 5, Texts),
        ("consumes", 6, Texts),
        ("produces", 7, Texts),
        ("paths", 8, Form::Message(&PATHS)),
        ("definitions", 9, Form::Message(&DEFINITIONS)),
        ("parameters", 10, Form::Message(&PARAMETERS)),
        ("security", 12, Form::Messages(&SECURITY_REQUIREMENT)),
        ("securityDefinitions", 13, Form::Message(&SECURITY_DEFINITIONS)),
    ],
    16,
);

static INFO: Message = message(&[("title", 1, Text), ("version", 2, Text), ("description", 3, Text)], 7);

static PATHS: Message = map(2, Form::Message(&PATH_ITEM), 1);

static PATH_ITEM: Message = message(
    &[
        ("$ref", 1, Text),
        ("get", 2, Form::Message(&OPERATION)),
        ("put", 3, Form::Message(&OPERATION)),
        ("post", 4, Form::Message(&OPERATION)),
        ("delete", 5, Form::Message(&OPERATION)),
        ("options", 6, Form::Message(&OPERATION)),
        ("head", 7, Form::Message(&OPERATION)),
        ("patch", 8, Form::Message(&OPERATION)),
        ("parameters", 9, Choices(parameter_or_reference)),
    ],
    10,
);

static OPERATION: Message = message(
    &[
        ("tags", 1, Texts),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("externalDocs", 4, Form::Message(&EXTERNAL_DOCS)),
        ("operationId", 5, Text),
        ("produces", 6, Texts),
        ("consumes", 7, Texts),
        ("parameters", 8, Choices(parameter_or_reference)),
        ("responses", 9, Form::Message(&RESPONSES)),
        ("schemes", 10, Texts),
        ("deprecated", 11, Bool),
        ("security", 12, Form::Messages(&SECURITY_REQUIREMENT)),
    ],
    13,
);

static RESPONSES: Message = map(1, Choice(response_or_reference), 2);

static RESPONSE: Message = message(&[("description", 1, Text), ("schema", 2, Choice(schema_item))], 5);

static REFERENCE: Message = message(&[("$ref", 1, Text), ("description", 2, Text)], 0);

static PARAMETERS: Message = map(1, Choice(parameter), 0);

static BODY: Message = message(
    &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Bool),
        ("schema", 5, Form::Message(&SCHEMA)),
    ],
    6,
);

/// Path and header parameters have the same numbers.
static PATH_PARAMETER: Message = message(
    &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
        ("default", 9, Any),
        ("pattern", 16, Text),
        ("uniqueItems", 19, Bool),
        ("enum", 20, Anys),
    ],
    22,
);

/// Query and form parameters have the same numbers.
static QUERY_PARAMETER: Message = message(
    &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("allowEmptyValue", 5, Bool),
        ("type", 6, Text),
        ("format", 7, Text),
        ("default", 10, Any),
        ("pattern", 17, Text),
        ("uniqueItems", 20, Bool),
        ("enum", 21, Anys),
    ],
    23,
);

static DEFINITIONS: Message = map(1, Form::Message(&SCHEMA), 0);

static PROPERTIES: Message = map(1, Form::Message(&SCHEMA), 0);

static SCHEMA: Message = message(
    &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("multipleOf", 6, Double),
        ("maximum", 7, Double),
        ("exclusiveMaximum", 8, Bool),
        ("minimum", 9, Double),
        ("exclusiveMinimum", 10, Bool),
        ("maxLength", 11, Int),
        ("minLength", 12, Int),
        ("pattern", 13, Text),
        ("maxItems", 14, Int),
        ("minItems", 15, Int),
        ("uniqueItems", 16, Bool),
        ("maxProperties", 17, Int),
        ("minProperties", 18, Int),
        ("required", 19, Texts),
        ("enum", 20, Anys),
        ("additionalProperties", 21, Choice(additional_properties)),
        ("type", 22, TextList),
        ("items", 23, Choice(items)),
        ("allOf", 24, Form::Messages(&SCHEMA)),
        ("properties", 25, Form::Message(&PROPERTIES)),
        ("discriminator", 26, Text),
        ("readOnly", 27, Bool),
        ("externalDocs", 29, Form::Message(&EXTERNAL_DOCS)),
        ("example", 30, Any),
    ],
    31,
);

static EXTERNAL_DOCS: Message = message(&[("description", 1, Text), ("url", 2, Text)], 3);

static SECURITY_REQUIREMENT: Message = map(1, TextList, 0);

static SECURITY_DEFINITIONS: Message = map(1, Choice(api_key), 0);

static API_KEY: Message =
    message(&[("type", 1, Text), ("name", 2, Text), ("in", 3, Text), ("description", 4, Text)], 5);

fn is_reference(value: &Value) -> bool {
    value.get("$ref").is_some()
}

fn parameter_or_reference(value: &Value) -> (&'static [u32], Form) {
    if is_reference(value) {
        return (&[2], Form::Message(&REFERENCE));
    }
    match value.get("in").and_then(Value::as_str) {
        Some("body") => (&[1, 1], Form::Message(&BODY)),
        Some("path") => (&[1, 2, 4], Form::Message(&PATH_PARAMETER)),
        Some("header") => (&[1, 2, 1], Form::Message(&PATH_PARAMETER)),
        Some("formData") => (&[1, 2, 2], Form::Message(&QUERY_PARAMETER)),
        _ => (&[1, 2, 3], Form::Message(&QUERY_PARAMETER)),
    }
}

/// As within an operation, without the choice of a reference around it.
fn parameter(value: &Value) -> (&'static [u32], Form) {
    let (around, form) = parameter_or_reference(value);
    (around.get(1..).unwrap_or_default(), form)
}

fn response_or_reference(value: &Value) -> (&'static [u32], Form) {
    if is_reference(value) { (&[2], Form::Message(&REFERENCE)) } else { (&[1], Form::Message(&RESPONSE)) }
}

fn schema_item(_: &Value) -> (&'static [u32], Form) {
    (&[1], Form::Message(&SCHEMA))
}

fn items(value: &Value) -> (&'static [u32], Form) {
    (&[1], if value.is_array() { Form::Messages(&SCHEMA) } else { Form::Message(&SCHEMA) })
}

fn additional_properties(value: &Value) -> (&'static [u32], Form) {
    if value.is_boolean() { (&[2], Bool) } else { (&[1], Form::Message(&SCHEMA)) }
}

fn api_key(_: &Value) -> (&'static [u32], Form) {
    (&[2], Form::Message(&API_KEY))
}

/// The document in its protobuf form.
pub(super) fn encode(document: &Value) -> Result<Vec<u8>, GnosticError> {
    let mut out = Vec::new();
    put_members(&mut out, &DOCUMENT, "", document)?;
    Ok(out)
}

fn put_members(out: &mut Vec<u8>, message: &Message, name: &str, value: &Value) -> Result<(), GnosticError> {
    let members: &Map<String, Value> = value.as_object().ok_or_else(|| GnosticError::Type(name.to_owned()))?;
    for (name, member) in members {
        if let Some(&(_, number, form)) = message.fields.iter().find(|(known, ..)| *known == name.as_str()) {
            put(out, number, form, name, member)?;
        } else if message.extensions != 0 && name.starts_with("x-") {
            put_named(out, message.extensions, Any, name, member)?;
        } else if let Some((number, form)) = message.named {
            put_named(out, number, form, name, member)?;
        } else {
            return Err(GnosticError::Member(name.clone()));
        }
    }
    Ok(())
}

/// One entry of a map: a message of name and value.
fn put_named(out: &mut Vec<u8>, number: u32, form: Form, name: &str, value: &Value) -> Result<(), GnosticError> {
    put_nested(out, number, |out| {
        put_bytes(out, 1, name.as_bytes());
        put(out, 2, form, name, value)
    })
}

fn put(out: &mut Vec<u8>, number: u32, form: Form, name: &str, value: &Value) -> Result<(), GnosticError> {
    let wrong = || GnosticError::Type(name.to_owned());
    match form {
        Text => put_bytes(out, number, value.as_str().ok_or_else(wrong)?.as_bytes()),
        Bool => put_int(out, number, i64::from(value.as_bool().ok_or_else(wrong)?)),
        Int => put_int(out, number, value.as_i64().ok_or_else(wrong)?),
        Double => put_double(out, number, value.as_f64().ok_or_else(wrong)?),
        Texts => {
            for item in value.as_array().ok_or_else(wrong)? {
                put_bytes(out, number, item.as_str().ok_or_else(wrong)?.as_bytes());
            }
        }
        TextList if value.is_string() => put_nested(out, number, |out| put(out, 1, Text, name, value))?,
        TextList => put_nested(out, number, |out| put(out, 1, Texts, name, value))?,
        // JSON is YAML.
        Any => put_nested(out, number, |out| {
            put_bytes(out, 2, format!("{value}\n").as_bytes());
            Ok(())
        })?,
        Anys => {
            for item in value.as_array().ok_or_else(wrong)? {
                put(out, number, Any, name, item)?;
            }
        }
        Form::Message(message) => put_nested(out, number, |out| put_members(out, message, name, value))?,
        Form::Messages(message) => {
            for item in value.as_array().ok_or_else(wrong)? {
                put(out, number, Form::Message(message), name, item)?;
            }
        }
        Choice(choose) => {
            let (around, form) = choose(value);
            put_nested(out, number, |out| put_around(out, around, form, name, value))?;
        }
        Choices(choose) => {
            for item in value.as_array().ok_or_else(wrong)? {
                put(out, number, Choice(choose), name, item)?;
            }
        }
    }
    Ok(())
}

fn put_around(out: &mut Vec<u8>, around: &[u32], form: Form, name: &str, value: &Value) -> Result<(), GnosticError> {
    match around {
        [] => Err(GnosticError::Type(name.to_owned())),
        [last] => put(out, *last, form, name, value),
        [first, rest @ ..] => put_nested(out, *first, |out| put_around(out, rest, form, name, value)),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    /// A message as text: numbers, and what is in them where it reads as a message, else as text.
    fn show(mut bytes: &[u8], out: &mut String, indent: usize) -> Option<()> {
        fn varint(bytes: &mut &[u8]) -> Option<u64> {
            let mut value = 0;
            for shift in (0..64).step_by(7) {
                let (first, rest) = bytes.split_first()?;
                *bytes = rest;
                value |= u64::from(first & 0x7f) << shift;
                if first & 0x80 == 0 {
                    return Some(value);
                }
            }
            None
        }
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            out.push_str(&format!("{:indent$}{}", "", tag >> 3));
            match tag & 7 {
                0 => out.push_str(&format!(": {}\n", varint(&mut bytes)?)),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)?).ok()?;
                    let (content, rest) = bytes.split_at_checked(length)?;
                    bytes = rest;
                    let mut inner = String::new();
                    if !content.is_empty() && show(content, &mut inner, indent + 2).is_some() {
                        out.push_str(&format!("\n{inner}"));
                    } else {
                        out.push_str(&format!(": {:?}\n", String::from_utf8_lossy(content)));
                    }
                }
                _ => return None,
            }
        }
        Some(())
    }

    #[test]
    fn members_are_where_gnostic_has_them() {
        let document = json!({
            "definitions": {"a.B": {
                "type": "object",
                "properties": {"c": {"items": {"$ref": "#/d"}, "type": "array", "x-kubernetes-list-type": "map"}},
                "additionalProperties": {"type": "string"},
            }},
            "paths": {"/p/": {"get": {
                "operationId": "id",
                "parameters": [
                    {"in": "body", "name": "body", "schema": {"$ref": "#/d"}},
                    {"in": "query", "name": "q", "type": "string"},
                    {"in": "path", "name": "n", "type": "string"},
                ],
                "responses": {"200": {"description": "OK", "schema": {"$ref": "#/d"}}},
                "x-kubernetes-action": "get",
            }}},
            "security": [{"Token": []}],
            "securityDefinitions": {"Token": {"type": "apiKey", "in": "header", "name": "authorization"}},
        });
        let mut text = String::new();
        show(&encode(&document).unwrap(), &mut text, 0).expect("a message");
        expect![[r##"
            9
              1
                1: "a.B"
                2
                  21
                    1
                      22
                        1: "string"
                  25
                    1
                      1: "c"
                      2
                        23
                          1
                            1: "#/d"
                        22
                          1: "array"
                        31
                          1: "x-kubernetes-list-type"
                          2
                            2: "\"map\"\n"
                  22
                    1: "object"
            8
              2
                1: "/p/"
                2
                  2
                    5: "id"
                    8
                      1
                        1
                          3: "body"
                          2: "body"
                          5
                            1: "#/d"
                    8
                      1
                        2
                          3
                            2: "query"
                            4: "q"
                            6: "string"
                    8
                      1
                        2
                          4
                            2: "path"
                            4: "n"
                            5: "string"
                    9
                      1
                        1: "200"
                        2
                          1
                            1: "OK"
                            2
                              1
                                1: "#/d"
                    13
                      1: "x-kubernetes-action"
                      2
                        2: "\"get\"\n"
            12
              1
                1: "Token"
                2: ""
            13
              1
                1: "Token"
                2
                  2
                    3: "header"
                    2: "authorization"
                    1: "apiKey"
        "##]]
        .assert_eq(&text);
    }

    #[test]
    fn what_has_no_place_is_said() {
        let error = encode(&json!({"definitions": {"a": {"oneOf": []}}})).unwrap_err();
        assert_eq!(error, GnosticError::Member("oneOf".to_owned()));
        assert_eq!(encode(&json!({"swagger": 2})).unwrap_err(), GnosticError::Type("swagger".to_owned()));
    }
}
