//! The rules about metadata that hold for every kind.
//!
//! Behaves as `apiserver/pkg/registry/rest/{meta,create,update}.go` and
//! `apimachinery/pkg/api/validation/objectmeta.go`, v1.36.

use std::collections::BTreeSet;

use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::meta::{Meta, MetaMut, OwnerReference};
use rkube_apimachinery::names;
use rkube_apimachinery::status::ApiStatus;
use serde_json::{Map, Value};

pub(crate) const ORPHAN_DEPENDENTS: &str = "orphan";
pub(crate) const DELETE_DEPENDENTS: &str = "foregroundDeletion";

const IMMUTABLE: &str = "field is immutable";
/// 256 KiB.
const ANNOTATIONS_BYTES_MAX: usize = 256 * (1 << 10);
const FIELD_MANAGER_BYTES_MAX: usize = 128;
const SUBRESOURCE_BYTES_MAX: usize = 256;

/// Removes what only the server sets.
pub(crate) fn wipe_system_fields(object: &mut Value) {
    for field in ["creationTimestamp", "uid", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        object.set_meta_field(field, Value::Null);
    }
}

/// Fills in the request's namespace, or refuses another one.
pub(crate) fn ensure_namespace(object: &mut Value, namespaced: bool, namespace: &str) -> Result<(), ApiStatus> {
    let expected = if namespaced { namespace } else { "" };
    let given = object.namespace();
    if given == expected {
        return Ok(());
    }
    if given.is_empty() || expected.is_empty() {
        object.set_namespace(expected);
        return Ok(());
    }
    Err(ApiStatus::bad_request("the namespace of the provided object does not match the namespace sent on the request"))
}

/// The name in the body must be that of the URL.
pub(crate) fn check_name(object: &Value, name: &str) -> Result<(), ApiStatus> {
    let given = object.name();
    if given == name {
        return Ok(());
    }
    if given.is_empty() {
        let text = format!("the name of the object ({name} based on URL) was undeterminable: name must be provided");
        return Err(ApiStatus::bad_request(text));
    }
    Err(ApiStatus::bad_request(format!("the name of the object ({given}) does not match the name on the URL ({name})")))
}

/// Owner references that say the same twice are merged, with a warning.
pub(crate) fn dedup_owner_references(object: &mut Value, after_admission: bool) -> Option<String> {
    let references = object.meta_field("ownerReferences")?.as_array()?;
    let mut duplicates: Vec<String> = Vec::new();
    let mut kept: Vec<Value> = Vec::with_capacity(references.len());
    for reference in references {
        if kept.contains(reference) {
            duplicates.push(reference.get("uid").and_then(Value::as_str).unwrap_or_default().to_owned());
        } else {
            kept.push(reference.clone());
        }
    }
    if duplicates.is_empty() {
        return None;
    }
    object.set_owner_references(kept);
    let uids = duplicates.join(", ");
    Some(if after_admission {
        format!(
            ".metadata.ownerReferences contains duplicate entries after mutating admission happens; \
             API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; \
             please fix your requests; duplicate UID(s) observed: {uids}"
        )
    } else {
        format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, \
             and may reject such requests as early as 1.24; please fix your requests; \
             duplicate UID(s) observed: {uids}"
        )
    })
}

/// Checks the metadata of a new object. Names are checked as path segments; kinds have narrower rules.
pub(crate) fn validate_new(object: &Value, namespaced: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("metadata");
    let generate_name = object.generate_name();
    if !generate_name.is_empty() {
        for text in names::is_path_segment_prefix(generate_name) {
            errors.push(Error::invalid(&path.child("generateName"), generate_name, text));
        }
    }
    let name = object.name();
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), "name or generateName is required"));
    } else {
        for text in names::is_path_segment_name(name) {
            errors.push(Error::invalid(&path.child("name"), name, text));
        }
    }
    common(object, namespaced, &path, &mut errors);
    errors
}

fn common(object: &Value, namespaced: bool, path: &Path, errors: &mut ErrorList) {
    let namespace = object.namespace();
    if namespaced {
        if namespace.is_empty() {
            errors.push(Error::required(&path.child("namespace"), ""));
        } else {
            for text in names::is_dns1123_label(namespace) {
                errors.push(Error::invalid(&path.child("namespace"), namespace, text));
            }
        }
    } else if !namespace.is_empty() {
        errors.push(Error::forbidden(&path.child("namespace"), "not allowed on this type"));
    }
    if object.generation() < 0 {
        let detail = "must be greater than or equal to 0";
        errors.push(Error::invalid(&path.child("generation"), object.generation(), detail));
    }
    labels(object, path, errors);
    annotations(object, path, errors);
    owner_references(object, path, errors);
    finalizers(object, path, errors);
    managed_fields(object, path, errors);
}

/// Checks the metadata of an update.
pub(crate) fn validate_update(new: &Value, old: &Value, namespaced: bool) -> ErrorList {
    let mut errors = validate_new(new, namespaced);
    let path = Path::new("metadata");
    if old.is_terminating() {
        let known: BTreeSet<&str> = old.finalizers().collect();
        let extra: BTreeSet<&str> = new.finalizers().filter(|finalizer| !known.contains(finalizer)).collect();
        if !extra.is_empty() {
            let quoted: Vec<String> = extra.iter().map(|finalizer| format!("{finalizer:?}")).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                quoted.join(", ")
            );
            errors.push(Error::forbidden(&path.child("finalizers"), detail));
        }
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (new, old) = (new.meta_field(field), old.meta_field(field));
        if new.filter(|value| !value.is_null()) != old.filter(|value| !value.is_null()) {
            errors.push(Error::invalid(&path.child(field), new.cloned().unwrap_or(Value::Null), IMMUTABLE));
        }
    }
    errors
}

fn labels(object: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("labels");
    for (name, value) in object.labels().into_iter().flatten() {
        for text in names::is_qualified_name(name) {
            errors.push(Error::invalid(&path, name.as_str(), text));
        }
        let value = value.as_str().unwrap_or_default();
        for text in names::is_label_value(value) {
            errors.push(Error::invalid(&path, value, text));
        }
    }
}

fn annotations(object: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("annotations");
    let mut bytes = 0;
    for (name, value) in object.annotations().into_iter().flatten() {
        for text in names::is_qualified_name(&name.to_lowercase()) {
            errors.push(Error::invalid(&path, name.as_str(), text));
        }
        bytes += name.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(Error::too_long(&path, ANNOTATIONS_BYTES_MAX as i64));
    }
}

fn owner_references(object: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("ownerReferences");
    let mut controller: Option<OwnerReference<'_>> = None;
    for owner in object.owner_references() {
        let version = owner.api_version.rsplit('/').next().unwrap_or_default();
        if version.is_empty() {
            errors.push(Error::invalid(&path.child("apiVersion"), owner.api_version, "version must not be empty"));
        }
        for (field, value) in [("kind", owner.kind), ("name", owner.name), ("uid", owner.uid)] {
            if value.is_empty() {
                errors.push(Error::invalid(&path.child(field), value, "must not be empty"));
            }
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(Error::invalid(&path, owner.name, detail));
        }
        if owner.controller {
            if let Some(first) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. \
                     Found \"true\" in references for {}/{} and {}/{}",
                    first.kind, first.name, owner.kind, owner.name
                );
                let all = object.meta_field("ownerReferences").cloned().unwrap_or(Value::Null);
                errors.push(Error::invalid(&path, all, detail));
            } else {
                controller = Some(owner);
            }
        }
    }
}

fn finalizers(object: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("finalizers");
    let (mut orphan, mut foreground) = (false, false);
    for finalizer in object.finalizers() {
        for text in names::is_qualified_name(finalizer) {
            errors.push(Error::invalid(&path, finalizer, text));
        }
        orphan |= finalizer == ORPHAN_DEPENDENTS;
        foreground |= finalizer == DELETE_DEPENDENTS;
    }
    if orphan && foreground {
        let detail = format!("finalizer {ORPHAN_DEPENDENTS} and {DELETE_DEPENDENTS} cannot be both set");
        let all: Vec<&str> = object.finalizers().collect();
        errors.push(Error::invalid(&path, all, detail));
    }
}

fn managed_fields(object: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("managedFields");
    let text = |entry: &Map<String, Value>, name: &str| -> String {
        entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    for (index, entry) in object.managed_fields().iter().enumerate() {
        let path = path.index(index);
        let Some(entry) = entry.as_object() else {
            continue;
        };
        let operation = text(entry, "operation");
        if !matches!(operation.as_str(), "Apply" | "Update") {
            errors.push(Error::invalid(&path.child("operation"), operation, "must be `Apply` or `Update`"));
        }
        let fields_type = text(entry, "fieldsType");
        if !matches!(fields_type.as_str(), "" | "FieldsV1") {
            errors.push(Error::invalid(&path.child("fieldsType"), fields_type, "must be `FieldsV1`"));
        }
        if text(entry, "manager").len() > FIELD_MANAGER_BYTES_MAX {
            errors.push(Error::too_long(&path.child("manager"), FIELD_MANAGER_BYTES_MAX as i64));
        }
        if text(entry, "subresource").len() > SUBRESOURCE_BYTES_MAX {
            errors.push(Error::too_long(&path.child("subresource"), SUBRESOURCE_BYTES_MAX as i64));
        }
    }
}
