//! ObjectMeta, label selectors, conditions and owner references of any kind.
//!
//! Behaves as apimachinery/pkg/api/validation/objectmeta.go, apimachinery/pkg/apis/meta/v1/validation and
//! validateKubeFinalizerName of pkg/apis/core/validation, v1.36.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;
use rkube_api::meta::pkg::apis::meta::v1::{
    Condition, LabelSelector, LabelSelectorRequirement, ManagedFieldsEntry, ObjectMeta, OwnerReference, Time,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;
use serde_json::Value;

use super::names::NameFn;
use super::report::{FIELD_IMMUTABLE, OptList, OptMap, OptText, Report, shown};

/// 256 kB.
pub(crate) const ANNOTATIONS_SIZE_MAX: usize = 256 * (1 << 10);
const FIELD_MANAGER_LENGTH_MAX: usize = 128;
const SUBRESOURCE_LENGTH_MAX: usize = 256;
const CONDITION_REASON_LENGTH_MAX: usize = 1024;
const CONDITION_MESSAGE_LENGTH_MAX: usize = 32 * 1024;

const ORPHAN_DEPENDENTS: &str = "orphan";
const DELETE_DEPENDENTS: &str = "foregroundDeletion";

/// Validates the metadata of a new object, or of an object whose metadata is checked as if it were new.
pub(crate) fn validate_object_meta(
    meta: &ObjectMeta,
    namespaced: bool,
    name_fn: NameFn,
    path: &Path,
    errors: &mut ErrorList,
) {
    let generate_name = meta.generate_name.text();
    if !generate_name.is_empty() {
        errors.invalid_each(path.child("generateName"), generate_name, name_fn(generate_name, true));
    }
    let name = meta.name.text();
    if name.is_empty() {
        errors.required(path.child("name"), "name or generateName is required");
    } else {
        errors.invalid_each(path.child("name"), name, name_fn(name, false));
    }
    let namespace = meta.namespace.text();
    if namespaced {
        if namespace.is_empty() {
            errors.required(path.child("namespace"), "");
        } else {
            errors.invalid_each(path.child("namespace"), namespace, names::is_dns1123_label(namespace));
        }
    } else if !namespace.is_empty() {
        errors.forbidden(path.child("namespace"), "not allowed on this type");
    }
    if let Some(generation) = meta.generation {
        errors.not_negative(path.child("generation"), generation);
    }
    validate_labels(meta.labels.as_ref(), &path.child("labels"), errors);
    validate_annotations(meta.annotations.as_ref(), &path.child("annotations"), errors);
    validate_owner_references(meta.owner_references.items(), &path.child("ownerReferences"), errors);
    validate_finalizers(meta.finalizers.items(), &path.child("finalizers"), errors);
    validate_managed_fields(meta.managed_fields.items(), &path.child("managedFields"), errors);
    validate_kube_finalizers(meta.finalizers.items(), &path.child("finalizers"), errors);
}

/// What an update may not change in the metadata, and the parts that are checked again.
pub(crate) fn validate_object_meta_update(new: &ObjectMeta, old: &ObjectMeta, path: &Path, errors: &mut ErrorList) {
    if old.deletion_timestamp.is_some() {
        validate_no_new_finalizers(new.finalizers.items(), old.finalizers.items(), &path.child("finalizers"), errors);
    }
    if new.resource_version.is_blank() {
        errors.invalid(path.child("resourceVersion"), new.resource_version.text(), "must be specified for an update");
    }
    let (new_generation, old_generation) = (new.generation.unwrap_or(0), old.generation.unwrap_or(0));
    if new_generation < old_generation {
        errors.invalid(path.child("generation"), new_generation, "must not be decremented");
    }
    for (field, new, old) in
        [("name", &new.name, &old.name), ("namespace", &new.namespace, &old.namespace), ("uid", &new.uid, &old.uid)]
    {
        if new.text() != old.text() {
            errors.invalid(path.child(field), new.text(), FIELD_IMMUTABLE);
        }
    }
    for (field, new, old) in [
        ("creationTimestamp", &new.creation_timestamp, &old.creation_timestamp),
        ("deletionTimestamp", &new.deletion_timestamp, &old.deletion_timestamp),
    ] {
        // The API's times have whole seconds; anything finer is an artefact of the writer.
        if new.as_ref().map(seconds) != old.as_ref().map(seconds) {
            errors.invalid(path.child(field), shown(new), FIELD_IMMUTABLE);
        }
    }
    if new.deletion_grace_period_seconds != old.deletion_grace_period_seconds {
        errors.invalid(
            path.child("deletionGracePeriodSeconds"),
            new.deletion_grace_period_seconds.map_or(Value::Null, Value::from),
            FIELD_IMMUTABLE,
        );
    }
    validate_labels(new.labels.as_ref(), &path.child("labels"), errors);
    validate_annotations(new.annotations.as_ref(), &path.child("annotations"), errors);
    validate_owner_references(new.owner_references.items(), &path.child("ownerReferences"), errors);
    validate_managed_fields(new.managed_fields.items(), &path.child("managedFields"), errors);
    validate_kube_finalizers(new.finalizers.items(), &path.child("finalizers"), errors);
}

fn seconds(time: &Time) -> i64 {
    time.0.as_second()
}

/// The metadata of a template (`volumeClaimTemplate`): labels and annotations only.
pub(crate) fn validate_template_object_meta(meta: &ObjectMeta, path: &Path, errors: &mut ErrorList) {
    validate_annotations(meta.annotations.as_ref(), &path.child("annotations"), errors);
    validate_labels(meta.labels.as_ref(), &path.child("labels"), errors);
    let set = [
        ("name", meta.name.is_some()),
        ("generateName", meta.generate_name.is_some()),
        ("namespace", meta.namespace.is_some()),
        ("selfLink", meta.self_link.is_some()),
        ("uID", meta.uid.is_some()),
        ("resourceVersion", meta.resource_version.is_some()),
        ("generation", meta.generation.is_some_and(|generation| generation != 0)),
        ("creationTimestamp", meta.creation_timestamp.is_some()),
        ("deletionTimestamp", meta.deletion_timestamp.is_some()),
        ("deletionGracePeriodSeconds", meta.deletion_grace_period_seconds.is_some()),
        ("ownerReferences", !meta.owner_references.items().is_empty()),
        ("finalizers", !meta.finalizers.items().is_empty()),
        ("managedFields", !meta.managed_fields.items().is_empty()),
    ];
    for (field, _) in set.iter().filter(|(_, set)| *set) {
        errors.forbidden(path.child(field), "cannot be set");
    }
}

pub(crate) fn validate_label_name(name: &str, path: &Path, errors: &mut ErrorList) {
    errors.invalid_each(path, name, names::is_qualified_name(name));
}

pub(crate) fn validate_labels(labels: Option<&BTreeMap<String, String>>, path: &Path, errors: &mut ErrorList) {
    for (key, value) in labels.into_iter().flatten() {
        validate_label_name(key, path, errors);
        errors.invalid_each(path, value, names::is_label_value(value));
    }
}

pub(crate) fn validate_annotations(
    annotations: Option<&BTreeMap<String, String>>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        errors.invalid_each(path, key, names::is_qualified_name(&key.to_lowercase()));
        size += key.len() + value.len();
    }
    if size > ANNOTATIONS_SIZE_MAX {
        errors.too_long(path, ANNOTATIONS_SIZE_MAX);
    }
}

fn validate_owner_references(references: &[OwnerReference], path: &Path, errors: &mut ErrorList) {
    let mut controller: Option<String> = None;
    for reference in references {
        let version = match reference.api_version.split_once('/') {
            Some((_, version)) => version,
            None => &reference.api_version,
        };
        if version.is_empty() {
            errors.invalid(path.child("apiVersion"), reference.api_version.as_str(), "version must not be empty");
        }
        for (field, value) in [("kind", &reference.kind), ("name", &reference.name), ("uid", &reference.uid)] {
            if value.is_empty() {
                errors.invalid(path.child(field), "", "must not be empty");
            }
        }
        // Events are garbage of their own; nothing may hang on them.
        if reference.api_version == "v1" && reference.kind == "Event" {
            errors.invalid(path, shown(reference), "/v1, Kind=Event is disallowed from being an owner");
        }
        if reference.controller == Some(true) {
            let current = format!("{}/{}", reference.kind, reference.name);
            if let Some(first) = &controller {
                errors.invalid(
                    path,
                    Value::Array(references.iter().map(shown).collect()),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {current}"
                    ),
                );
            } else {
                controller = Some(current);
            }
        }
    }
}

fn validate_finalizers(finalizers: &[String], path: &Path, errors: &mut ErrorList) {
    for finalizer in finalizers {
        errors.invalid_each(path, finalizer, names::is_qualified_name(finalizer));
    }
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    if has(ORPHAN_DEPENDENTS) && has(DELETE_DEPENDENTS) {
        let detail = format!("finalizer {ORPHAN_DEPENDENTS} and {DELETE_DEPENDENTS} cannot be both set");
        errors.invalid(path, finalizers.to_vec(), detail);
    }
}

fn validate_kube_finalizers(finalizers: &[String], path: &Path, errors: &mut ErrorList) {
    for (index, finalizer) in finalizers.iter().enumerate() {
        validate_kube_finalizer(finalizer, &path.index(index), errors);
    }
}

/// Unqualified finalizers are the ones Kubernetes itself knows.
pub(crate) fn validate_kube_finalizer(finalizer: &str, path: &Path, errors: &mut ErrorList) {
    const STANDARD: [&str; 3] = ["kubernetes", ORPHAN_DEPENDENTS, DELETE_DEPENDENTS];
    if !finalizer.contains('/') && !STANDARD.contains(&finalizer) {
        errors.invalid(path, finalizer, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

fn validate_no_new_finalizers(new: &[String], old: &[String], path: &Path, errors: &mut ErrorList) {
    let extra: BTreeSet<&String> = new.iter().filter(|finalizer| !old.contains(finalizer)).collect();
    if !extra.is_empty() {
        let list: Vec<String> = extra.iter().map(|finalizer| format!("{finalizer:?}")).collect();
        errors.forbidden(
            path,
            format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            ),
        );
    }
}

fn validate_managed_fields(entries: &[ManagedFieldsEntry], path: &Path, errors: &mut ErrorList) {
    for (index, entry) in entries.iter().enumerate() {
        let path = path.index(index);
        if !matches!(entry.operation.text(), "Apply" | "Update") {
            errors.invalid(path.child("operation"), entry.operation.text(), "must be `Apply` or `Update`");
        }
        if !matches!(entry.fields_type.text(), "" | "FieldsV1") {
            errors.invalid(path.child("fieldsType"), entry.fields_type.text(), "must be `FieldsV1`");
        }
        validate_field_manager(entry.manager.text(), &path.child("manager"), errors);
        if entry.subresource.text().len() > SUBRESOURCE_LENGTH_MAX {
            errors.too_long(path.child("subresource"), SUBRESOURCE_LENGTH_MAX);
        }
    }
}

/// The name of a field manager, in `managedFields` and in requests.
pub(crate) fn validate_field_manager(manager: &str, path: &Path, errors: &mut ErrorList) {
    if manager.len() > FIELD_MANAGER_LENGTH_MAX {
        errors.too_long(path, FIELD_MANAGER_LENGTH_MAX);
    }
    for (position, character) in manager.char_indices() {
        if character.is_control() || (character.is_whitespace() && character != ' ') {
            let detail = format!("invalid character U+{:04X} (at position {position})", character as u32);
            errors.invalid(path, manager, detail);
        }
    }
}

/// How strictly selectors are read: old objects keep what older servers allowed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SelectorOptions {
    pub(crate) allow_invalid_label_value: bool,
    pub(crate) allow_unknown_operator: bool,
}

pub(crate) fn has_invalid_label_value(selector: Option<&LabelSelector>) -> bool {
    selector
        .into_iter()
        .flat_map(|selector| selector.match_expressions.items())
        .flat_map(|expression| expression.values.items())
        .any(|value| !names::is_label_value(value).is_empty())
}

pub(crate) fn validate_label_selector(
    selector: Option<&LabelSelector>,
    options: SelectorOptions,
    path: &Path,
    errors: &mut ErrorList,
) {
    let Some(selector) = selector else { return };
    validate_labels(selector.match_labels.as_ref(), &path.child("matchLabels"), errors);
    let path = path.child("matchExpressions");
    for (index, requirement) in selector.match_expressions.items().iter().enumerate() {
        validate_label_selector_requirement(requirement, options, &path.index(index), errors);
    }
}

pub(crate) fn validate_label_selector_requirement(
    requirement: &LabelSelectorRequirement,
    options: SelectorOptions,
    path: &Path,
    errors: &mut ErrorList,
) {
    let values = requirement.values.items();
    match requirement.operator.as_str() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(path.child("values"), detail);
            }
        }
        other => {
            if !options.allow_unknown_operator {
                errors.invalid(path.child("operator"), other, "not a valid selector operator");
            }
        }
    }
    validate_label_name(&requirement.key, &path.child("key"), errors);
    if !options.allow_invalid_label_value {
        for (index, value) in values.iter().enumerate() {
            errors.invalid_each(path.child("values").index(index), value, names::is_label_value(value));
        }
    }
}

/// `metav1.LabelSelectorAsSelector` fails, with its text.
pub(crate) fn selector_error(selector: &LabelSelector) -> Option<String> {
    let mut errors = ErrorList::new();
    validate_label_selector(Some(selector), SelectorOptions::default(), &Path::root(), &mut errors);
    errors.first().map(|error| format!("{error}"))
}

/// An empty selector, which selects everything.
pub(crate) fn selects_all(selector: &LabelSelector) -> bool {
    selector.match_labels.count() == 0 && selector.match_expressions.items().is_empty()
}

/// Whether labels satisfy a selector. An invalid selector matches nothing.
pub(crate) fn selector_matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    selector.match_labels.pairs().all(|(key, wanted)| value(key) == Some(wanted))
        && selector.match_expressions.items().iter().all(|expression| {
            let present = value(&expression.key);
            let listed = present.is_some_and(|value| expression.values.items().contains(value));
            match expression.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => present.is_some(),
                "DoesNotExist" => present.is_none(),
                _ => false,
            }
        })
}

static CONDITION_REASON: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$").expect("a constant pattern"));

const CONDITION_REASON_ERROR: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";

/// `[]metav1.Condition`, as newer kinds have it.
pub(crate) fn validate_conditions(conditions: &[Condition], path: &Path, errors: &mut ErrorList) {
    let mut types = BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        if !types.insert(condition.type_.as_str()) {
            errors.duplicate(path.child("type"), condition.type_.as_str());
        }
        validate_label_name(&condition.type_, &path.child("type"), errors);
        errors.one_of(path.child("status"), &condition.status, &["False", "True", "Unknown"]);
        if let Some(generation) = condition.observed_generation.filter(|generation| *generation < 0) {
            errors.invalid(path.child("observedGeneration"), generation, "must be greater than or equal to zero");
        }
        if is_zero_time(&condition.last_transition_time) {
            errors.required(path.child("lastTransitionTime"), "");
        }
        if condition.reason.is_empty() {
            errors.required(path.child("reason"), "");
        } else {
            if !CONDITION_REASON.is_match(&condition.reason) {
                errors.invalid(path.child("reason"), condition.reason.as_str(), CONDITION_REASON_ERROR);
            }
            if condition.reason.len() > CONDITION_REASON_LENGTH_MAX {
                errors.too_long(path.child("reason"), CONDITION_REASON_LENGTH_MAX);
            }
        }
        if condition.message.len() > CONDITION_MESSAGE_LENGTH_MAX {
            errors.too_long(path.child("message"), CONDITION_MESSAGE_LENGTH_MAX);
        }
    }
}

/// A required time that was not given decodes to the epoch; Go's zero time is year 1.
pub(crate) fn is_zero_time(time: &Time) -> bool {
    time.0.as_second() == 0 || time.0.as_second() == -62_135_596_800
}
