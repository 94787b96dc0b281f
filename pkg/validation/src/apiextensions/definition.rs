//! apiextensions.k8s.io/v1 CustomResourceDefinition.
//!
//! What all versions have in common is one level higher in upstream's internal form, and so are the paths of
//! faults in it: `spec.validation.openAPIV3Schema`, not `spec.versions[0].schema.openAPIV3Schema`.
//!
//! Behaves as apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go and v1/defaults.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::apiextensions::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceConversion, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionStatus, CustomResourceDefinitionVersion,
    CustomResourceSubresources, JSONSchemaProps, SelectableField,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use super::field_path;
use super::schema::{self, Options, has};
use crate::admission_registration::rules::{ServiceTarget, validate_service, validate_url};
use crate::admission_registration::webhooks::validate_version_names;
use crate::common::defaults::{default_to, text_default};
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::dns_subdomain;
use crate::common::report::{OptList, OptMap, OptText, Report, immutable, shown};

const HTTPS_PORT: i32 = 443;
const WARNING_LENGTH_MAX: usize = 256;
const SELECTABLE_FIELDS_MAX: usize = 8;
const APPROVAL: &str = "api-approved.kubernetes.io";
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

pub fn set_defaults(definition: &mut CustomResourceDefinition) {
    let spec = &mut definition.spec;
    let names = &mut spec.names;
    let kind = names.kind.clone();
    text_default(&mut names.singular, &kind.to_lowercase());
    if !kind.is_empty() {
        text_default(&mut names.list_kind, &format!("{kind}List"));
    }
    spec.conversion.get_or_insert_with(|| CustomResourceConversion { strategy: "None".to_owned(), webhook: None });
    let webhook = spec.conversion.as_mut().and_then(|conversion| conversion.webhook.as_mut());
    let client = webhook.and_then(|webhook| webhook.client_config.as_mut());
    if let Some(service) = client.and_then(|client| client.service.as_mut()) {
        default_to(&mut service.port, HTTPS_PORT);
    }
    if definition.status.as_ref().is_none_or(|status| status.stored_versions.items().is_empty()) {
        remember_storage_version(definition);
    }
}

/// Objects may be stored in every version that ever was the storage version.
pub fn remember_storage_version(definition: &mut CustomResourceDefinition) {
    let Some(version) = definition.spec.versions.iter().find(|version| version.storage) else { return };
    let stored = definition.status.get_or_insert_default().stored_versions.get_or_insert_default();
    if !stored.contains(&version.name) {
        stored.push(version.name.clone());
    }
}

fn schema_of(version: &CustomResourceDefinitionVersion) -> Option<&JSONSchemaProps> {
    version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref())
}

fn schemas(spec: &CustomResourceDefinitionSpec) -> Vec<&JSONSchemaProps> {
    spec.versions.iter().filter_map(schema_of).collect()
}

pub fn validate(definition: &CustomResourceDefinition) -> ErrorList {
    let mut errors = ErrorList::new();
    let meta_path = Path::new("metadata");
    validate_object_meta(&definition.metadata, false, dns_subdomain, &meta_path, &mut errors);
    let spec = &definition.spec;
    let name = definition.metadata.name.text();
    if !name.is_empty() && name != format!("{}.{}", spec.names.plural, spec.group) {
        errors.invalid(meta_path.child("name"), name, "must be spec.names.plural+\".\"+spec.group");
    }
    let rules = SpecRules { schema: Options::STRICT, recognized_review: true, schema_required: true, old: None };
    validate_spec(spec, &rules, &mut errors);
    validate_status(definition, &mut errors);
    validate_stored_versions(definition, &mut errors);
    validate_approval(definition, None, &mut errors);
    if spec.preserve_unknown_fields == Some(true) {
        preserve_unknown_fields_error(&mut errors);
    }
    errors
}

fn preserve_unknown_fields_error(errors: &mut ErrorList) {
    let detail =
        "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
    errors.invalid(Path::new("spec").child("preserveUnknownFields"), true, detail);
}

pub fn validate_update(new: &CustomResourceDefinition, old: &CustomResourceDefinition) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let reviews = old.spec.conversion.as_ref().and_then(|conversion| conversion.webhook.as_ref());
    let reviews = reviews.map_or(&[] as &[String], |webhook| &webhook.conversion_review_versions);
    let rules = SpecRules {
        schema: Options::of(&schemas(&old.spec)),
        recognized_review: reviews.is_empty() || reviews.iter().any(|version| is_review_version(version)),
        schema_required: old.spec.versions.iter().all(|version| schema_of(version).is_some()),
        old: Some(&old.spec),
    };
    validate_spec(&new.spec, &rules, &mut errors);
    let path = Path::new("spec");
    if is_established(old) {
        immutable(&new.spec.scope, &old.spec.scope, path.child("scope"), &mut errors);
        immutable(&new.spec.names.kind, &old.spec.names.kind, path.child("names").child("kind"), &mut errors);
    }
    immutable(&new.spec.group, &old.spec.group, path.child("group"), &mut errors);
    immutable(&new.spec.names.plural, &old.spec.names.plural, path.child("names").child("plural"), &mut errors);
    validate_status(new, &mut errors);
    validate_stored_versions(new, &mut errors);
    validate_approval(new, Some(old), &mut errors);
    if new.spec.preserve_unknown_fields == Some(true) && old.spec.preserve_unknown_fields != Some(true) {
        preserve_unknown_fields_error(&mut errors);
    }
    errors
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
}

pub fn validate_status_update(new: &CustomResourceDefinition, old: &CustomResourceDefinition) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_status(new, &mut errors);
    errors
}

struct SpecRules<'a> {
    schema: Options,
    recognized_review: bool,
    schema_required: bool,
    old: Option<&'a CustomResourceDefinitionSpec>,
}

fn validate_spec(spec: &CustomResourceDefinitionSpec, rules: &SpecRules<'_>, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let (group, group_path) = (spec.group.as_str(), path.child("group"));
    let faults = names::is_dns1123_subdomain(group);
    if group.is_empty() {
        errors.required(group_path, "");
    } else if !faults.is_empty() {
        errors.invalid(group_path, group, faults.join(","));
    } else if !group.contains('.') {
        errors.invalid(group_path, group, "should be a domain with at least one dot");
    }
    errors.required_one_of(path.child("scope"), &spec.scope, &["Cluster", "Namespaced"]);
    let pruning = spec.preserve_unknown_fields != Some(true);
    let versions_path = path.child("versions");
    for (index, version) in spec.versions.iter().enumerate().filter(|(_, version)| schema_of(version).is_none()) {
        let path = versions_path.index(index).child("schema").child("openAPIV3Schema");
        if rules.schema_required {
            errors.required(path, "");
        } else if pruning && version.served {
            errors.required(path, "because otherwise all fields are pruned");
        }
    }
    let extended = schemas(spec).iter().any(|schema| has(schema, needs_structure));
    let options = Options { structural: rules.schema.structural || pruning || extended, ..rules.schema };
    validate_versions(spec, options, rules.old, errors);
    validate_names(&spec.names, true, &path.child("names"), errors);
    if let Some(conversion) = &spec.conversion {
        validate_conversion(conversion, rules.recognized_review, &path.child("conversion"), errors);
    }
}

/// Defaults and Kubernetes' extensions are defined for structural schemas only.
fn needs_structure(schema: &JSONSchemaProps) -> bool {
    schema.default.is_some()
        || schema.x_kubernetes_embedded_resource == Some(true)
        || schema.x_kubernetes_preserve_unknown_fields.is_some()
        || schema.x_kubernetes_int_or_string == Some(true)
        || !schema.x_kubernetes_list_map_keys.items().is_empty()
        || schema.x_kubernetes_list_type.is_some()
        || !schema.x_kubernetes_validations.items().is_empty()
}

/// Whether all versions say the same, so that it counts as said once.
fn common<T: PartialEq>(spec: &CustomResourceDefinitionSpec, part: fn(&CustomResourceDefinitionVersion) -> &T) -> bool {
    spec.versions.windows(2).all(|pair| matches!(pair, [first, second] if part(first) == part(second)))
}

fn validate_versions(
    spec: &CustomResourceDefinitionSpec,
    options: Options,
    old: Option<&CustomResourceDefinitionSpec>,
    errors: &mut ErrorList,
) {
    let path = Path::new("spec");
    let versions_path = path.child("versions");
    let shared_schema = common(spec, |version| &version.schema);
    let shared_subresources = common(spec, |version| &version.subresources);
    let shared_columns = common(spec, |version| &version.additional_printer_columns);
    let shared_fields = common(spec, |version| &version.selectable_fields);
    let mut taken = BTreeSet::new();
    let mut unique = true;
    for (index, version) in spec.versions.iter().enumerate() {
        let path = versions_path.index(index);
        unique &= taken.insert(version.name.as_str());
        let faults = names::is_dns1035_label(&version.name);
        if !faults.is_empty() {
            errors.invalid(path.child("name"), version.name.as_str(), faults.join(","));
        }
        validate_deprecation(version, &path.child("deprecationWarning"), errors);
        if !shared_schema {
            validate_version_schema(version, options, &path.child("schema"), errors);
        }
        if !shared_subresources {
            validate_subresources(version.subresources.as_ref(), &path.child("subresources"), errors);
        }
        if !shared_columns {
            validate_columns(version, &path.child("additionalPrinterColumns"), errors);
        }
        if !shared_fields {
            validate_selectable_fields(version, old, &path.child("selectableFields"), errors);
        }
    }
    if !unique {
        errors.invalid(&versions_path, shown(&spec.versions), "must contain unique version names");
    }
    if spec.versions.iter().filter(|version| version.storage).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.invalid(versions_path, shown(&spec.versions), detail);
    }
    let Some(first) = spec.versions.first() else { return };
    if shared_schema {
        validate_version_schema(first, options, &path.child("validation"), errors);
    }
    if shared_subresources {
        validate_subresources(first.subresources.as_ref(), &path.child("subresources"), errors);
    }
    if shared_columns {
        validate_columns(first, &path.child("additionalPrinterColumns"), errors);
    }
    if shared_fields {
        validate_selectable_fields(first, old, &path.child("selectableFields"), errors);
    }
}

fn validate_version_schema(
    version: &CustomResourceDefinitionVersion,
    options: Options,
    path: &Path,
    errors: &mut ErrorList,
) {
    let status = version.subresources.as_ref().is_some_and(|subresources| subresources.status.is_some());
    if let Some(schema) = schema_of(version) {
        schema::validate(schema, status, options, path, errors);
    }
}

fn validate_deprecation(version: &CustomResourceDefinitionVersion, path: &Path, errors: &mut ErrorList) {
    let Some(warning) = &version.deprecation_warning else { return };
    if version.deprecated != Some(true) {
        errors.invalid(path, warning.as_str(), "can only be set for deprecated versions");
        return;
    }
    if warning.len() > WARNING_LENGTH_MAX {
        errors.invalid(path, warning.as_str(), format!("must be <= {WARNING_LENGTH_MAX} characters long"));
    }
    if warning.is_empty() {
        errors.invalid(path, warning.as_str(), "must not be an empty string");
    }
    if let Some((index, _)) = warning.char_indices().find(|(_, character)| character.is_control()) {
        let detail =
            format!("must only contain printable UTF-8 characters; non-printable character found at index {index}");
        errors.invalid(path, warning.as_str(), detail);
    }
}

/// `all`: of a spec, where nothing may be missing; a status has names only once they are accepted.
fn validate_names(names: &CustomResourceDefinitionNames, all: bool, path: &Path, errors: &mut ErrorList) {
    const MIXED: &str = "may have mixed case, but should otherwise match: ";
    let (singular, list_kind) = (names.singular.text(), names.list_kind.text());
    let values = [
        ("plural", names.plural.as_str(), ""),
        ("singular", singular, ""),
        ("kind", names.kind.as_str(), MIXED),
        ("listKind", list_kind, MIXED),
    ];
    if all {
        for (field, value, _) in values {
            errors.not_empty(path.child(field), value);
        }
    }
    let mut check = |path: Path, value: &str, introduction: &str| {
        let lower = value.to_lowercase();
        let faults = names::is_dns1035_label(if introduction.is_empty() { value } else { &lower });
        if !faults.is_empty() {
            errors.invalid(path, value, format!("{introduction}{}", faults.join(",")));
        }
    };
    for (field, value, introduction) in values.into_iter().filter(|(_, value, _)| !value.is_empty()) {
        check(path.child(field), value, introduction);
    }
    for (index, name) in names.short_names.items().iter().enumerate() {
        check(path.child("shortNames").index(index), name, "");
    }
    for (index, name) in names.categories.items().iter().enumerate() {
        check(path.child("categories").index(index), name, "");
    }
    if !names.kind.is_empty() && names.kind == list_kind {
        errors.invalid(path.child("listKind"), list_kind, "kind and listKind may not be the same");
    }
}

fn validate_columns(version: &CustomResourceDefinitionVersion, path: &Path, errors: &mut ErrorList) {
    for (index, column) in version.additional_printer_columns.items().iter().enumerate() {
        validate_column(column, &path.index(index), errors);
    }
}

fn validate_column(column: &CustomResourceColumnDefinition, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child("name"), &column.name);
    let kind = column.type_.as_str();
    let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
    if kind.is_empty() {
        errors.required(path.child("type"), detail);
    } else if !COLUMN_TYPES.contains(&kind) {
        errors.invalid(path.child("type"), kind, detail);
    }
    let format = column.format.text();
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        errors.invalid(path.child("format"), format, format!("must be one of {}", COLUMN_FORMATS.join(",")));
    }
    validate_json_path(&column.json_path, None, &path.child("JSONPath"), errors);
}

/// A path in dots. `under`: where it must begin, and how to say so.
fn validate_json_path(value: &str, under: Option<(&[&str], &str)>, path: &Path, errors: &mut ErrorList) {
    if value.is_empty() {
        errors.required(path, "");
    } else if !value.starts_with('.') {
        errors.invalid(path, value, "must be a simple json path starting with .");
    } else if let Some((_, place)) = under.filter(|(starts, _)| !starts.iter().any(|start| value.starts_with(start))) {
        errors.invalid(path, value, format!("should be a json path under {place}"));
    }
}

fn validate_subresources(subresources: Option<&CustomResourceSubresources>, path: &Path, errors: &mut ErrorList) {
    let Some(scale) = subresources.and_then(|subresources| subresources.scale.as_ref()) else { return };
    let path = path.child("scale");
    let (spec, status) = (".spec.", ".status.");
    validate_json_path(&scale.spec_replicas_path, Some((&[spec], ".spec")), &path.child("specReplicasPath"), errors);
    let status_path = path.child("statusReplicasPath");
    validate_json_path(&scale.status_replicas_path, Some((&[status], ".status")), &status_path, errors);
    let selector = scale.label_selector_path.text();
    if !selector.is_empty() {
        let under: (&[&str], &str) = (&[spec, status], "either .spec or .status");
        validate_json_path(selector, Some(under), &path.child("labelSelectorPath"), errors);
    }
}

fn validate_selectable_fields(
    version: &CustomResourceDefinitionVersion,
    old: Option<&CustomResourceDefinitionSpec>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let fields = version.selectable_fields.items();
    if fields.is_empty() {
        return;
    }
    let Some(schema) = schema_of(version) else {
        errors.invalid(path, "", "may only be set when `version.schema.openAPIV3Schema` is not included");
        return;
    };
    let mut found = BTreeSet::new();
    for (index, SelectableField { json_path }) in fields.iter().enumerate() {
        let path = path.index(index).child("jsonPath");
        if json_path.is_empty() {
            errors.required(path, "");
            continue;
        }
        match field_path::resolve(json_path, schema, false) {
            Err(fault) => errors.invalid(path, json_path.as_str(), format!("is an invalid path: {fault}")),
            Ok((field, target)) => {
                let text = field.to_string();
                if text == "metadata" || text.starts_with("metadata.") {
                    errors.invalid(&path, json_path.as_str(), "must not point to fields in metadata");
                }
                if !matches!(target.type_.text(), "string" | "boolean" | "integer") {
                    let detail = "must point to a field of type string, boolean or integer. Enum string fields and \
                                  strings with formats are allowed.";
                    errors.invalid(&path, json_path.as_str(), detail);
                }
                if !found.insert(text) {
                    errors.duplicate(path, json_path.as_str());
                }
            }
        }
    }
    let kept = old.is_some_and(|old| {
        old.versions.iter().any(|old| old.name == version.name && old.selectable_fields == version.selectable_fields)
    });
    if found.len() > SELECTABLE_FIELDS_MAX && !kept {
        errors.too_many(path, found.len(), SELECTABLE_FIELDS_MAX);
    }
}

fn is_review_version(version: &str) -> bool {
    matches!(version, "v1" | "v1beta1")
}

fn validate_conversion(conversion: &CustomResourceConversion, recognized: bool, path: &Path, errors: &mut ErrorList) {
    errors.required_one_of(path.child("strategy"), &conversion.strategy, &["None", "Webhook"]);
    // In upstream's internal form the webhook's client is a field of the conversion itself.
    let client_path = path.child("webhookClientConfig");
    let reviews_path = path.child("conversionReviewVersions");
    let client = conversion.webhook.as_ref().and_then(|webhook| webhook.client_config.as_ref());
    let reviews = conversion.webhook.as_ref().map_or(&[] as &[String], |webhook| &webhook.conversion_review_versions);
    if conversion.strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            errors.forbidden(client_path, detail);
        }
        if !reviews.is_empty() {
            errors.forbidden(reviews_path, detail);
        }
        return;
    }
    match client.map(|client| (&client.url, &client.service)) {
        None => errors.required(client_path, "required when strategy is set to Webhook"),
        Some((Some(url), None)) => validate_url(url, &client_path.child("url"), errors),
        Some((None, Some(service))) => {
            let target = ServiceTarget {
                namespace: &service.namespace,
                name: &service.name,
                path: service.path.as_deref(),
                port: service.port.unwrap_or(HTTPS_PORT),
            };
            validate_service(&target, &client_path.child("service"), errors);
        }
        Some(_) => errors.required(client_path, "exactly one of url or service is required"),
    }
    if reviews.is_empty() {
        errors.required(reviews_path, "");
        return;
    }
    validate_version_names(reviews, &reviews_path, errors);
    if recognized && !reviews.iter().any(|version| is_review_version(version)) {
        errors.invalid(reviews_path, reviews.to_vec(), "must include at least one of v1, v1beta1");
    }
}

fn status_of(definition: &CustomResourceDefinition) -> CustomResourceDefinitionStatus {
    definition.status.clone().unwrap_or_default()
}

fn validate_status(definition: &CustomResourceDefinition, errors: &mut ErrorList) {
    if let Some(names) = &status_of(definition).accepted_names {
        validate_names(names, false, &Path::new("status").child("acceptedNames"), errors);
    }
}

fn validate_stored_versions(definition: &CustomResourceDefinition, errors: &mut ErrorList) {
    let path = Path::new("status").child("storedVersions");
    let stored = status_of(definition).stored_versions.unwrap_or_default();
    if stored.is_empty() {
        errors.invalid(path, stored, "must have at least one stored version");
        return;
    }
    let versions = &definition.spec.versions;
    for version in versions.iter().filter(|version| version.storage && !stored.contains(&version.name)) {
        errors.invalid(&path, stored.clone(), format!("must have the storage version {}", version.name));
    }
    for (index, name) in stored.iter().enumerate() {
        if versions.iter().all(|version| version.name != *name) {
            let detail = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in \
                 spec.versions until a storage migration ensures no data remains persisted in {name} and removes \
                 {name} from status.storedVersions"
            );
            errors.invalid(path.index(index), name.as_str(), detail);
        }
    }
}

#[derive(PartialEq, Eq)]
enum Approval {
    Missing,
    Bypassed,
    Approved,
    Invalid,
}

fn approval(definition: &CustomResourceDefinition) -> Approval {
    let Some(value) = definition.metadata.annotations.value(APPROVAL).filter(|value| !value.is_empty()) else {
        return Approval::Missing;
    };
    let host = value.split_once("://").map(|(scheme, rest)| (scheme, rest.split('/').next().unwrap_or_default()));
    if value.starts_with("unapproved") {
        Approval::Bypassed
    } else if host.is_some_and(|(scheme, host)| !scheme.is_empty() && !host.is_empty()) {
        Approval::Approved
    } else {
        Approval::Invalid
    }
}

/// The community's groups are not for everybody.
fn validate_approval(new: &CustomResourceDefinition, old: Option<&CustomResourceDefinition>, errors: &mut ErrorList) {
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let group = new.spec.group.as_str();
    let protected = ["k8s.io", "kubernetes.io"]
        .into_iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    let state = approval(new);
    if !protected || old.is_some_and(|old| approval(old) == state) {
        return;
    }
    let path = Path::new("metadata").child("annotations").key(APPROVAL);
    match state {
        Approval::Missing => {
            errors.required(path, format!("protected groups must have approval annotation \"{APPROVAL}\", {SEE}"));
        }
        Approval::Invalid => {
            let value = new.metadata.annotations.value(APPROVAL).cloned().unwrap_or_default();
            let detail = format!(
                "protected groups must have approval annotation \"{APPROVAL}\" with either a URL or a reason \
                 starting with \"unapproved\", {SEE}"
            );
            errors.invalid(path, value, detail);
        }
        Approval::Bypassed | Approval::Approved => {}
    }
}

/// Formats that nothing checks, except those that were there before.
pub fn warnings(new: &CustomResourceDefinition, old: Option<&CustomResourceDefinition>) -> Vec<String> {
    let known = old.map(|old| unknown_formats(&old.spec)).unwrap_or_default();
    let formats = unknown_formats(&new.spec).into_iter().filter(|format| !known.contains(format));
    formats.map(|format| format!("unrecognized format \"{format}\"")).collect()
}

fn unknown_formats(spec: &CustomResourceDefinitionSpec) -> Vec<String> {
    let mut formats = Vec::new();
    let shared = common(spec, |version| &version.schema);
    let versions = if shared { spec.versions.get(..1).unwrap_or_default() } else { &spec.versions };
    for schema in versions.iter().filter_map(schema_of) {
        collect_unknown_formats(schema, &mut formats);
    }
    formats
}

fn collect_unknown_formats(schema: &JSONSchemaProps, formats: &mut Vec<String>) {
    const OF_TEXT: [&str; 26] = [
        "bsonobjectid",
        "uri",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "cidr",
        "mac",
        "uuid",
        "uuid3",
        "uuid4",
        "uuid5",
        "isbn",
        "isbn10",
        "isbn13",
        "creditcard",
        "ssn",
        "hexcolor",
        "rgbcolor",
        "byte",
        "password",
        "date",
        "duration",
        "datetime",
        "k8sshortname",
        "k8slongname",
    ];
    let format = schema.format.text();
    let known = match schema.type_.text() {
        "" | "string" => OF_TEXT.contains(&format.replace('-', "").as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    };
    if !format.is_empty() && !known {
        formats.push(format.to_owned());
    }
    for child in super::structural::children(schema) {
        collect_unknown_formats(child, formats);
    }
}
