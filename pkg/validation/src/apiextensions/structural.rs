//! Structural schemas: every field has a type outside of logical operators, and operators only restrict what is
//! declared outside of them.
//!
//! Behaves as apiextensions-apiserver/pkg/apiserver/schema/{convert,validation,complete}.go, v1.36.

use std::collections::BTreeMap;

use regex::Regex;
use rkube_api::apiextensions::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use rkube_apimachinery::field::{ErrorList, Path};

use crate::common::report::{OptList, OptText, Report};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What keeps a schema from being read as a structural one at all.
pub(super) fn unsupported(schema: &JSONSchemaProps) -> Option<String> {
    let found = [
        (!schema.id.is_blank(), "id"),
        (!schema.schema.is_blank(), "schema"),
        (!schema.ref_path.is_blank(), "$ref"),
        (has_entries(schema.pattern_properties.as_ref()), "patternProperties"),
        (schema.dependencies.as_ref().is_some_and(|map| !map.is_empty()), "dependencies"),
        (schema.additional_items.is_some(), "additionalItems"),
        (has_entries(schema.definitions.as_ref()), "definitions"),
    ];
    if let Some((_, name)) = found.into_iter().find(|(found, _)| *found) {
        return Some(format!("OpenAPIV3Schema '{name}' is not supported"));
    }
    if let Some(JSONSchemaPropsOrArray::Schemas(_)) = &schema.items {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
    }
    children(schema).into_iter().find_map(unsupported)
}

fn has_entries(map: Option<&BTreeMap<String, JSONSchemaProps>>) -> bool {
    map.is_some_and(|map| !map.is_empty())
}

/// Every schema directly inside of one.
pub(super) fn children(schema: &JSONSchemaProps) -> Vec<&JSONSchemaProps> {
    let mut all = Vec::new();
    match &schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => all.push(&**item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => all.extend(items),
        None => {}
    }
    for list in [&schema.all_of, &schema.any_of, &schema.one_of] {
        all.extend(list.items());
    }
    all.extend(schema.not.as_deref());
    all.extend(schema.properties.iter().flat_map(BTreeMap::values));
    all.extend(additional(schema));
    all
}

/// The schema of properties that are not named.
pub(super) fn additional(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match &schema.additional_properties {
        Some(JSONSchemaPropsOrBool::Schema(schema)) => Some(schema),
        _ => None,
    }
}

pub(super) fn item(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match &schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => Some(item),
        _ => None,
    }
}

/// The faults in the order of their texts, as upstream sorts them.
pub(super) fn validate(schema: &JSONSchemaProps, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    invariants(schema, Level::Root, path, &mut errors);
    completeness_of_operators(schema, schema, path, path, &mut errors);
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

fn set(flag: Option<bool>) -> bool {
    flag == Some(true)
}

fn invariants(schema: &JSONSchemaProps, level: Level, path: &Path, errors: &mut ErrorList) {
    let kind = schema.type_.text();
    let type_path = path.child("type");
    let embedded = set(schema.x_kubernetes_embedded_resource);
    let int_or_string = set(schema.x_kubernetes_int_or_string);
    let preserves = set(schema.x_kubernetes_preserve_unknown_fields);
    if kind == "array" && schema.items.is_none() {
        errors.required(path.child("items"), "must be specified");
    }
    if let Some(item) = item(schema) {
        invariants(item, Level::Item, &path.child("items"), errors);
    }
    for (name, property) in schema.properties.iter().flatten() {
        invariants(property, Level::Field, &path.child("properties").key(name), errors);
    }
    if schema.additional_properties.is_some() {
        let path = path.child("additionalProperties");
        if level == Level::Root {
            errors.forbidden(&path, "must not be used at the root");
        }
        if embedded {
            errors.forbidden(&path, "must not be used if x-kubernetes-embedded-resource is set");
        }
        if let Some(schema) = additional(schema) {
            invariants(schema, Level::Field, &path, errors);
        }
    }
    const NOT_FOR_INT_OR_STRING: &str = "must be false if x-kubernetes-int-or-string is true";
    if int_or_string && preserves {
        errors.invalid(path.child("x-kubernetes-preserve-unknown-fields"), true, NOT_FOR_INT_OR_STRING);
    }
    if int_or_string && embedded {
        errors.invalid(path.child("x-kubernetes-embedded-resource"), true, NOT_FOR_INT_OR_STRING);
    }
    let skip_any = is_int_or_string(schema.any_of.items());
    let skip_first_all = schema.all_of.items().first().is_some_and(|first| is_int_or_string(first.any_of.items()));
    operators(schema, skip_any, skip_first_all, path, errors);
    if embedded && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        if kind.is_empty() {
            errors.required(&type_path, detail);
        } else {
            errors.invalid(&type_path, kind, detail);
        }
    } else if kind.is_empty() && !int_or_string && !preserves {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.required(&type_path, detail);
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.invalid(type_path, kind, "must be object at the root");
    }
    metadata(schema, level, embedded, path, errors);
    if embedded && !preserves && !has_entries(schema.properties.as_ref()) {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                      x-kubernetes-preserve-unknown-fields";
        errors.required(path.child("properties"), detail);
    }
}

/// The fields every object has are known, and schemas may say little about them.
fn metadata(schema: &JSONSchemaProps, level: Level, embedded: bool, path: &Path, errors: &mut ErrorList) {
    let property = |name: &str| schema.properties.as_ref().and_then(|properties| properties.get(name));
    let path = path.child("properties");
    if level == Level::Root || embedded {
        for name in ["kind", "apiVersion"] {
            if let Some(property) = property(name).filter(|property| property.type_.text() != "string") {
                errors.invalid(path.key(name).child("type"), property.type_.text(), "must be string");
            }
        }
        if let Some(metadata) = property("metadata").filter(|metadata| metadata.type_.text() != "object") {
            errors.invalid(path.key("metadata").child("type"), metadata.type_.text(), "must be object");
        }
    }
    if level != Level::Root {
        return;
    }
    let Some(metadata) = property("metadata") else { return };
    let names_only =
        metadata.properties.iter().flatten().all(|(name, _)| matches!(name.as_str(), "name" | "generateName"));
    let rest = JSONSchemaProps { type_: None, default: None, properties: None, ..metadata.clone() };
    if !names_only || rest != JSONSchemaProps::default() {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.forbidden(path.key("metadata"), detail);
    }
}

/// `anyOf: [{type: integer}, {type: string}]`, which is how kubectl knows them.
fn is_int_or_string(any_of: &[JSONSchemaProps]) -> bool {
    let only = |kind: &str| JSONSchemaProps { type_: Some(kind.to_owned()), ..JSONSchemaProps::default() };
    matches!(any_of, [first, second] if *first == only("integer") && *second == only("string"))
}

fn operators(schema: &JSONSchemaProps, skip_any: bool, skip_first_all: bool, path: &Path, errors: &mut ErrorList) {
    if !skip_any {
        for (index, nested_schema) in schema.any_of.items().iter().enumerate() {
            nested(nested_schema, false, &path.child("anyOf").index(index), errors);
        }
    }
    for (index, nested_schema) in schema.all_of.items().iter().enumerate() {
        nested(nested_schema, skip_first_all && index == 0, &path.child("allOf").index(index), errors);
    }
    for (index, nested_schema) in schema.one_of.items().iter().enumerate() {
        nested(nested_schema, false, &path.child("oneOf").index(index), errors);
    }
    if let Some(not) = &schema.not {
        nested(not, false, &path.child("not"), errors);
    }
    let pattern = schema.pattern.text();
    if let Err(fault) = Regex::new(pattern) {
        // The last line says what is wrong; those before it repeat the pattern.
        let fault = fault.to_string();
        let reason = fault.lines().last().unwrap_or_default().trim_start_matches("error: ");
        let detail =
            format!("must be a valid regular expression, but isn't: error parsing regexp: {reason}: `{pattern}`");
        errors.invalid(path.child("pattern"), pattern, detail);
    }
}

/// Inside of a logical operator there are restrictions of values and nothing else.
fn nested(schema: &JSONSchemaProps, skip_any: bool, path: &Path, errors: &mut ErrorList) {
    const EMPTY: &str = "must be empty to be structural";
    const UNDEFINED: &str = "must be undefined to be structural";
    const FALSE: &str = "must be false to be structural";
    operators(schema, skip_any, false, path, errors);
    if let Some(item) = item(schema) {
        nested(item, false, &path.child("items"), errors);
    }
    for (name, property) in schema.properties.iter().flatten() {
        nested(property, false, &path.child("properties").key(name), errors);
    }
    let forbidden = [
        (!schema.type_.is_blank(), "type", EMPTY),
        (schema.additional_properties.is_some(), "additionalProperties", UNDEFINED),
        (schema.default.is_some(), "default", UNDEFINED),
        (!schema.title.is_blank(), "title", EMPTY),
        (!schema.description.is_blank(), "description", EMPTY),
        (set(schema.nullable), "nullable", FALSE),
        (set(schema.x_kubernetes_preserve_unknown_fields), "x-kubernetes-preserve-unknown-fields", FALSE),
        (set(schema.x_kubernetes_embedded_resource), "x-kubernetes-embedded-resource", FALSE),
        (set(schema.x_kubernetes_int_or_string), "x-kubernetes-int-or-string", FALSE),
        (!schema.x_kubernetes_list_map_keys.items().is_empty(), "x-kubernetes-list-map-keys", EMPTY),
        (schema.x_kubernetes_list_type.is_some(), "x-kubernetes-list-type", UNDEFINED),
        (schema.x_kubernetes_map_type.is_some(), "x-kubernetes-map-type", UNDEFINED),
        (!schema.x_kubernetes_validations.items().is_empty(), "x-kubernetes-validations", EMPTY),
    ];
    for (_, field, detail) in forbidden.into_iter().filter(|(found, ..)| *found) {
        errors.forbidden(path.child(field), detail);
    }
    if schema.properties.as_ref().is_some_and(|properties| properties.contains_key("metadata")) {
        errors.forbidden(path.child("properties").key("metadata"), "must not be specified in a nested context");
    }
}

/// What an operator restricts is declared outside of it.
fn completeness_of_operators(
    restriction: &JSONSchemaProps,
    declared: &JSONSchemaProps,
    declared_path: &Path,
    path: &Path,
    errors: &mut ErrorList,
) {
    if let Some(not) = &restriction.not {
        completeness(not, declared, declared_path, &path.child("not"), errors);
    }
    for (field, list) in
        [("allOf", &restriction.all_of), ("anyOf", &restriction.any_of), ("oneOf", &restriction.one_of)]
    {
        for (index, schema) in list.items().iter().enumerate() {
            completeness(schema, declared, declared_path, &path.child(field).index(index), errors);
        }
    }
}

fn completeness(
    restriction: &JSONSchemaProps,
    declared: &JSONSchemaProps,
    declared_path: &Path,
    path: &Path,
    errors: &mut ErrorList,
) {
    completeness_of_operators(restriction, declared, declared_path, path, errors);
    let because = |path: &Path| format!("because it is defined in {path}");
    if let Some(restricted) = item(restriction) {
        let (declared_path, path) = (declared_path.child("items"), path.child("items"));
        match item(declared) {
            None => errors.required(declared_path, because(&path)),
            Some(declared) => completeness(restricted, declared, &declared_path, &path, errors),
        }
    }
    for (name, restricted) in restriction.properties.iter().flatten() {
        let declared_path = declared_path.child("properties").key(name);
        let path = path.child("properties").key(name);
        match declared.properties.as_ref().and_then(|properties| properties.get(name)) {
            None => errors.required(declared_path, because(&path)),
            Some(declared) => completeness(restricted, declared, &declared_path, &path, errors),
        }
    }
}
