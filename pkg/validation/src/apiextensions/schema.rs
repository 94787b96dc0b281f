//! The schema of a custom resource, as an OpenAPI schema with Kubernetes' extensions.
//!
//! Rules in CEL are checked for their outer form; they are compiled by whoever evaluates them. Defaults are not
//! validated against the schema they are in.
//!
//! Behaves as ValidateCustomResourceDefinitionOpenAPISchema of
//! apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go, v1.36.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::apiextensions::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, JSONSchemaPropsOrStringArray, ValidationRule,
};
use rkube_apimachinery::field::{ErrorList, Path};
use serde_json::Value;

use super::field_path;
use super::structural::{self, children, item};
use crate::common::report::{OptList, OptText, Report, shown};

/// What old schemas may keep.
#[derive(Clone, Copy)]
pub(super) struct Options {
    pub(super) valid_types: bool,
    pub(super) structural: bool,
    pub(super) atomic_sets: bool,
    pub(super) map_keys: bool,
}

impl Options {
    pub(super) const STRICT: Self = Self { valid_types: true, structural: true, atomic_sets: true, map_keys: true };

    /// As strict as the schemas that were there before have proved to be.
    pub(super) fn of(old: &[&JSONSchemaProps]) -> Self {
        let any = |check: fn(&JSONSchemaProps) -> bool| old.iter().any(|schema| has(schema, check));
        let is_structural = |schema: &&JSONSchemaProps| {
            structural::unsupported(schema).is_none() && structural::validate(schema, &Path::root()).is_empty()
        };
        Self {
            valid_types: !any(|schema| !schema.type_.is_blank() && !TYPES.contains(&schema.type_.text())),
            structural: old.iter().all(is_structural),
            atomic_sets: !any(|schema| {
                let mut errors = ErrorList::new();
                validate_set_items(schema, &Path::root(), &mut errors);
                !errors.is_empty()
            }),
            map_keys: !any(|schema| {
                let mut errors = ErrorList::new();
                validate_map_keys(schema, &Path::root(), &mut errors);
                !errors.is_empty()
            }),
        }
    }
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Whether a schema or one inside of it is such.
pub(super) fn has(schema: &JSONSchemaProps, check: fn(&JSONSchemaProps) -> bool) -> bool {
    check(schema) || children(schema).into_iter().any(|child| has(child, check))
}

/// Where in an object a schema is.
#[derive(Clone, Default)]
struct Position {
    root: bool,
    inside_meta: bool,
    /// Why there may be no default.
    no_defaults: Option<String>,
}

/// `path` is that of the version's `schema`.
pub(super) fn validate(
    schema: &JSONSchemaProps,
    status_subresource: bool,
    options: Options,
    path: &Path,
    errors: &mut ErrorList,
) {
    let path = path.child("openAPIV3Schema");
    let before = errors.len();
    if status_subresource {
        validate_root(schema, &path, errors);
    }
    if schema.nullable == Some(true) {
        // The path is upstream's.
        errors.forbidden(path.child("nullable"), "nullable cannot be true at the root");
    }
    let unsupported = structural::unsupported(schema).filter(|_| options.structural);
    if options.structural && unsupported.is_none() {
        errors.extend(structural::validate(schema, &path));
    }
    let position = Position { root: true, ..Position::default() };
    validate_schema(schema, &position, options, &path, errors);
    if let Some(reason) = unsupported.filter(|_| errors.len() == before) {
        errors.invalid(path, "", reason);
    }
}

/// With a status subresource, validation of spec and status must not depend on each other.
fn validate_root(schema: &JSONSchemaProps, path: &Path, errors: &mut ErrorList) {
    const ALLOWED: &str = "[Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength \
                           MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties \
                           ExternalDocs Example XPreserveUnknownFields XValidations]";
    let kind = schema.type_.text();
    if !kind.is_empty() && kind != "object" {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is \
                      enabled";
        errors.invalid(path.child("type"), kind, detail);
        return;
    }
    let allowed = JSONSchemaProps {
        id: None,
        schema: None,
        ref_path: None,
        default: None,
        enum_: None,
        max_properties: None,
        min_properties: None,
        all_of: None,
        one_of: None,
        any_of: None,
        not: None,
        additional_properties: None,
        pattern_properties: None,
        dependencies: None,
        additional_items: None,
        definitions: None,
        nullable: schema.nullable.filter(|nullable| !nullable),
        x_kubernetes_embedded_resource: None,
        x_kubernetes_int_or_string: None,
        x_kubernetes_list_map_keys: None,
        x_kubernetes_list_type: None,
        x_kubernetes_map_type: None,
        ..schema.clone()
    };
    if allowed != *schema {
        let detail =
            format!("only {ALLOWED} fields are allowed at the root of the schema if the status subresource is enabled");
        errors.invalid(path, shown(schema), detail);
    }
}

fn validate_schema(
    schema: &JSONSchemaProps,
    position: &Position,
    options: Options,
    path: &Path,
    errors: &mut ErrorList,
) {
    validate_keywords(schema, position, options, path, errors);
    if schema.unique_items == Some(true) {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.forbidden(path.child("uniqueItems"), detail);
    }
    let inner = Position { root: false, ..position.clone() };
    let has_properties = schema.properties.as_ref().is_some_and(|properties| !properties.is_empty());
    if let Some(additional) = &schema.additional_properties {
        let path = path.child("additionalProperties");
        if has_properties && *additional != JSONSchemaPropsOrBool::Bool(true) {
            errors.forbidden(&path, "additionalProperties and properties are mutual exclusive");
        }
        if let JSONSchemaPropsOrBool::Schema(additional) = additional {
            let reason = "inside additionalProperties applying to object metadata";
            let mut inner = inner.clone();
            if inner.inside_meta {
                inner.no_defaults = Some(reason.to_owned());
            }
            validate_schema(additional, &inner, options, &path, errors);
        }
    }
    let embedded = schema.x_kubernetes_embedded_resource == Some(true);
    for (name, property) in schema.properties.iter().flatten() {
        let mut inner = inner.clone();
        if (position.root || embedded) && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            inner.inside_meta = true;
            if position.root {
                inner.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        validate_schema(property, &inner, options, &path.child("properties").key(name), errors);
    }
    if let Some(not) = &schema.not {
        validate_schema(not, &inner, options, &path.child("not"), errors);
    }
    for (field, list) in [("allOf", &schema.all_of), ("oneOf", &schema.one_of), ("anyOf", &schema.any_of)] {
        for (index, schema) in list.items().iter().enumerate() {
            validate_schema(schema, &inner, options, &path.child(field).index(index), errors);
        }
    }
    for (name, schema) in schema.definitions.iter().flatten() {
        validate_schema(schema, &inner, options, &path.child("definitions").key(name), errors);
    }
    let items_path = path.child("items");
    match &schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => validate_schema(item, &inner, options, &items_path, errors),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => {
            for (index, item) in items.iter().enumerate() {
                validate_schema(item, &inner, options, &items_path.index(index), errors);
            }
        }
        None => {}
    }
    for (name, dependency) in schema.dependencies.iter().flatten() {
        if let JSONSchemaPropsOrStringArray::Schema(schema) = dependency {
            validate_schema(schema, &inner, options, &path.child("dependencies").key(name), errors);
        }
    }
    validate_extensions(schema, options, path, errors);
    for (index, rule) in schema.x_kubernetes_validations.items().iter().enumerate() {
        validate_rule(rule, schema, &path.child("x-kubernetes-validations").index(index), errors);
    }
}

fn validate_keywords(
    schema: &JSONSchemaProps,
    position: &Position,
    options: Options,
    path: &Path,
    errors: &mut ErrorList,
) {
    let kind = schema.type_.text();
    if options.valid_types && !kind.is_empty() {
        errors.one_of(path.child("type"), kind, &TYPES);
    }
    if let Some(reason) = position.no_defaults.as_ref().filter(|_| schema.default.is_some()) {
        errors.forbidden(path.child("default"), format!("must not be set {reason}"));
    }
    let filled = |map: Option<&BTreeMap<String, JSONSchemaProps>>| map.is_some_and(|map| !map.is_empty());
    let unsupported = [
        (!schema.id.is_blank(), "id"),
        (schema.additional_items.is_some(), "additionalItems"),
        (filled(schema.pattern_properties.as_ref()), "patternProperties"),
        (filled(schema.definitions.as_ref()), "definitions"),
        (schema.dependencies.is_some(), "dependencies"),
        (schema.ref_path.is_some(), "$ref"),
    ];
    for (_, field) in unsupported.into_iter().filter(|(found, _)| *found) {
        errors.forbidden(path.child(field), format!("{field} is not supported"));
    }
    if kind == "null" {
        errors.forbidden(path.child("type"), "type cannot be set to null, use nullable as an alternative");
    }
    if matches!(&schema.items, Some(JSONSchemaPropsOrArray::Schemas(items)) if !items.is_empty()) {
        errors.forbidden(path.child("items"), "items must be a schema object and not an array");
    }
    if position.inside_meta && schema.x_kubernetes_embedded_resource == Some(true) {
        errors.forbidden(path.child("x-kubernetes-embedded-resource"), "must not be used inside of resource meta");
    }
}

/// An extension that makes sense for one type only.
fn validate_type_for(extension: &str, kind: &str, wanted: &str, path: &Path, errors: &mut ErrorList) {
    let detail = format!("must be {wanted} if {extension} is specified");
    if kind.is_empty() {
        errors.required(path.child("type"), detail);
    } else {
        errors.invalid(path.child("type"), kind, detail);
    }
}

fn validate_extensions(schema: &JSONSchemaProps, options: Options, path: &Path, errors: &mut ErrorList) {
    const MAP_TYPE: &str = "x-kubernetes-map-type";
    const LIST_TYPE: &str = "x-kubernetes-list-type";
    const LIST_KEYS: &str = "x-kubernetes-list-map-keys";
    let kind = schema.type_.text();
    if schema.x_kubernetes_preserve_unknown_fields == Some(false) {
        errors.invalid(path.child("x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined");
    }
    if let Some(map_type) = &schema.x_kubernetes_map_type {
        if kind != "object" {
            validate_type_for(MAP_TYPE, kind, "object", path, errors);
        }
        errors.one_of(path.child(MAP_TYPE), map_type, &["atomic", "granular"]);
    }
    let list_type = schema.x_kubernetes_list_type.as_deref();
    if list_type.is_some() && kind != "array" {
        validate_type_for(LIST_TYPE, kind, "array", path, errors);
    } else if options.atomic_sets {
        validate_set_items(schema, path, errors);
    }
    if let Some(list_type) = list_type {
        errors.one_of(path.child(LIST_TYPE), list_type, &["atomic", "set", "map"]);
    }
    let keys = schema.x_kubernetes_list_map_keys.items();
    if !keys.is_empty() && list_type != Some("map") {
        let detail = format!("must be map if {LIST_KEYS} is non-empty");
        match list_type {
            None => errors.required(path.child(LIST_TYPE), detail),
            Some(other) => errors.invalid(path.child(LIST_TYPE), other, detail),
        }
    }
    if list_type == Some("map") {
        validate_list_map(schema, keys, path, errors);
    }
    if options.map_keys {
        validate_map_keys(schema, path, errors);
    }
}

/// Elements of a set are compared as a whole, so nobody may own a part of one.
fn validate_set_items(schema: &JSONSchemaProps, path: &Path, errors: &mut ErrorList) {
    const DETAIL: &str = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let Some(item) = item(schema).filter(|_| schema.x_kubernetes_list_type.text() == "set") else { return };
    let list_type = item.x_kubernetes_list_type.as_deref();
    let path = path.child("items");
    match item.type_.text() {
        "array" if list_type.is_some_and(|kind| kind != "atomic") => {
            errors.invalid(path.child("x-kubernetes-list-type"), shown(&list_type), DETAIL);
        }
        "object" if item.x_kubernetes_map_type.text() != "atomic" => {
            errors.invalid(path.child("x-kubernetes-map-type"), shown(&list_type), DETAIL);
        }
        _ => {}
    }
}

fn validate_list_map(schema: &JSONSchemaProps, keys: &[String], path: &Path, errors: &mut ErrorList) {
    let (keys_path, items_path) = (path.child("x-kubernetes-list-map-keys"), path.child("items"));
    if keys.is_empty() {
        errors.required(&keys_path, "must not be empty if x-kubernetes-list-type is map");
    }
    let item = match &schema.items {
        None => {
            errors.required(items_path, "must have a schema if x-kubernetes-list-type is map");
            return;
        }
        Some(JSONSchemaPropsOrArray::Schemas(items)) => {
            let detail = "must only have a single schema if x-kubernetes-list-type is map";
            errors.invalid(items_path, shown(items), detail);
            return;
        }
        Some(JSONSchemaPropsOrArray::Schema(item)) => item,
    };
    let kind = item.type_.text();
    if kind != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errors.invalid(items_path.child("type"), kind, detail);
        return;
    }
    let mut taken = BTreeSet::new();
    for key in keys {
        match item.properties.as_ref().and_then(|properties| properties.get(key)) {
            Some(property) if matches!(property.type_.text(), "array" | "object") => {
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.invalid(items_path.child("properties").key(key).child("type"), kind, detail);
            }
            Some(_) => {}
            None => errors.invalid(&keys_path, keys.to_vec(), "entries must all be names of item properties"),
        }
        if !taken.insert(key) {
            errors.invalid(&keys_path, keys.to_vec(), "must not contain duplicate entries");
        }
    }
}

/// Elements and keys that identify them are always there.
fn validate_map_keys(schema: &JSONSchemaProps, path: &Path, errors: &mut ErrorList) {
    let list_type = schema.x_kubernetes_list_type.text();
    let Some(item) = item(schema).filter(|_| matches!(list_type, "set" | "map")) else { return };
    let path = path.child("items");
    if item.nullable == Some(true) {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.forbidden(path.child("nullable"), detail);
    }
    if list_type != "map" {
        return;
    }
    for key in schema.x_kubernetes_list_map_keys.items() {
        let Some(property) = item.properties.as_ref().and_then(|properties| properties.get(key)) else { continue };
        let path = path.child("properties").key(key);
        if !item.required.items().contains(key) && property.default.is_none() {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                          property";
            errors.required(path.child("default"), detail);
        }
        if property.nullable == Some(true) {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.forbidden(path.child("nullable"), detail);
        }
    }
}

fn validate_rule(rule: &ValidationRule, schema: &JSONSchemaProps, path: &Path, errors: &mut ErrorList) {
    const BLANK: &str = "must be non-empty if specified";
    const ONE_LINE: &str = "must not contain line breaks";
    let lines = |text: &str| text.contains(['\n', '\r']);
    let blank = |text: &str| !text.is_empty() && text.trim().is_empty();
    let (message, message_expression) = (rule.message.text(), rule.message_expression.text());
    if rule.rule.trim().is_empty() {
        errors.required(path.child("rule"), "rule is not specified");
    } else if blank(message) {
        errors.invalid(path.child("message"), message, BLANK);
    } else if lines(message.trim()) {
        errors.invalid(path.child("message"), message, ONE_LINE);
    } else if lines(rule.rule.trim()) && message.is_empty() {
        errors.required(path.child("message"), "message must be specified if rule contains line breaks");
    }
    if blank(message_expression) {
        let detail = format!("messageExpression {BLANK}");
        errors.required(path.child("messageExpression"), detail);
    }
    if let Some(reason) = &rule.reason {
        const REASONS: [&str; 4] =
            ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
        errors.one_of(path.child("reason"), reason, &REASONS);
    }
    let (field, path) = (rule.field_path.text(), path.child("fieldPath"));
    if blank(field) {
        errors.invalid(&path, field, BLANK);
    }
    if lines(field) {
        errors.invalid(&path, field, ONE_LINE);
    }
    if !field.is_empty()
        && structural::unsupported(schema).is_none()
        && field_path::resolve(field, schema, true).is_err()
    {
        errors.invalid(path, Value::from(field), "must be a valid path");
    }
}
