//! What claims, classes and slices are made of.
//!
//! Behaves as pkg/apis/resource/validation/validation.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::resource::v1::{DeviceSelector, DeviceTaint, DeviceToleration, OpaqueDeviceConfiguration};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use crate::common::meta::validate_label_name;
use crate::common::names::validate_dns1123_subdomain;
use crate::common::report::{OptList, OptText, Report};
use crate::core::volume::validate_csi_driver_name;

const POOL_NAME_MAX: usize = 253;
const ID_MAX: usize = 32;
const SELECTORS_MAX: usize = 32;
const EXPRESSION_MAX: usize = 10 * 1024;
const PARAMETERS_MAX: usize = 10 * 1024;
const BINDING_CONDITIONS_MAX: usize = 4;
const TAINT_EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

/// True when there are not too many; otherwise the list is not looked at any further.
pub(super) fn fits<T>(items: &[T], maximum: usize, path: &Path, errors: &mut ErrorList) -> bool {
    if items.len() > maximum {
        errors.too_many(path, items.len(), maximum);
    }
    items.len() <= maximum
}

pub(super) fn duplicates<'a>(keys: impl Iterator<Item = &'a str>, path: &Path, errors: &mut ErrorList) {
    let mut taken = BTreeSet::new();
    for (index, key) in keys.enumerate() {
        if !taken.insert(key) {
            errors.duplicate(path.index(index), key);
        }
    }
}

pub(super) fn validate_pool_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > POOL_NAME_MAX {
        errors.too_long(path, POOL_NAME_MAX);
    }
    for part in name.split('/') {
        validate_dns1123_subdomain(part, path, errors);
    }
}

pub(super) fn validate_uid(uid: &str, path: &Path, errors: &mut ErrorList) {
    let groups: Vec<&str> = uid.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let normalized = lengths == [8, 4, 4, 4, 12]
        && uid.chars().all(|digit| digit == '-' || digit.is_ascii_digit() || ('a'..='f').contains(&digit));
    if !normalized {
        let detail = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase \
                      hexadecimal characters";
        errors.invalid(path, uid, detail);
    }
}

/// Expressions are compiled by whoever evaluates them.
pub(super) fn validate_selectors(selectors: &[DeviceSelector], path: &Path, errors: &mut ErrorList) {
    if !fits(selectors, SELECTORS_MAX, path, errors) {
        return;
    }
    for (index, selector) in selectors.iter().enumerate() {
        let path = path.index(index).child("cel");
        match &selector.cel {
            None => errors.required(path, ""),
            Some(cel) if cel.expression.len() > EXPRESSION_MAX => {
                errors.too_long(path.child("expression"), EXPRESSION_MAX);
            }
            Some(_) => {}
        }
    }
}

pub(super) fn validate_configuration(opaque: Option<&OpaqueDeviceConfiguration>, path: &Path, errors: &mut ErrorList) {
    let path = path.child("opaque");
    let Some(opaque) = opaque else {
        errors.required(path, "");
        return;
    };
    validate_csi_driver_name(&opaque.driver, &path.child("driver"), errors);
    validate_raw(&opaque.parameters.0, PARAMETERS_MAX, &path.child("parameters"), errors);
}

/// Data that only its writer and its reader understand: an object of limited size.
pub(super) fn validate_raw(value: &serde_json::Value, maximum: usize, path: &Path, errors: &mut ErrorList) {
    if value.is_null() {
        errors.required(path, "");
    } else if value.to_string().len() > maximum {
        errors.too_long(path, maximum);
    } else if !value.is_object() {
        errors.invalid(path, "<value omitted>", "must be a valid JSON object");
    }
}

fn validate_label_value(value: &str, path: &Path, errors: &mut ErrorList) {
    errors.invalid_each(path, value, names::is_label_value(value));
}

pub(super) fn validate_toleration(toleration: &DeviceToleration, path: &Path, errors: &mut ErrorList) {
    let (key, value) = (toleration.key.text(), toleration.value.text());
    if !key.is_empty() {
        validate_label_name(key, &path.child("key"), errors);
    }
    match toleration.operator.text() {
        "Exists" => {
            if !value.is_empty() {
                errors.invalid(path.child("value"), value, "must be empty for operator `Exists`");
            }
        }
        "Equal" => validate_label_value(value, &path.child("value"), errors),
        other => errors.required_one_of(path.child("operator"), other, &["Equal", "Exists"]),
    }
    let effect = toleration.effect.text();
    if !effect.is_empty() {
        errors.one_of(path.child("effect"), effect, &TAINT_EFFECTS);
    }
}

pub(super) fn validate_taint(taint: &DeviceTaint, path: &Path, errors: &mut ErrorList) {
    validate_label_name(&taint.key, &path.child("key"), errors);
    if !taint.value.is_blank() {
        validate_label_value(taint.value.text(), &path.child("value"), errors);
    }
    errors.required_one_of(path.child("effect"), &taint.effect, &TAINT_EFFECTS);
}

pub(super) fn validate_binding_conditions(
    conditions: Option<&Vec<String>>,
    failures: Option<&Vec<String>>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let (conditions, failures) = (conditions.cloned(), failures.cloned());
    let (conditions_path, failures_path) = (path.child("bindingConditions"), path.child("bindingFailureConditions"));
    for (list, path) in [(&conditions, &conditions_path), (&failures, &failures_path)] {
        if fits(list.items(), BINDING_CONDITIONS_MAX, path, errors) {
            for (index, name) in list.items().iter().enumerate() {
                validate_label_name(name, &path.index(index), errors);
            }
        }
    }
    let (conditions, failures) = (conditions.items(), failures.items());
    duplicates(conditions.iter().map(String::as_str), &conditions_path, errors);
    let mut taken = BTreeSet::new();
    for (index, name) in failures.iter().enumerate() {
        if !taken.insert(name) {
            errors.duplicate(failures_path.index(index), name.as_str());
        }
        if conditions.contains(name) {
            let detail = "bindingFailureConditions must not overlap with bindingConditions";
            errors.invalid(failures_path.index(index), name.as_str(), detail);
        }
    }
    if conditions.is_empty() && !failures.is_empty() {
        let detail = "bindingConditions are required to use bindingFailureConditions";
        errors.invalid(conditions_path, conditions.to_vec(), detail);
    } else if failures.is_empty() && !conditions.is_empty() {
        let detail = "bindingFailureConditions are required to use bindingConditions";
        errors.invalid(failures_path, failures.to_vec(), detail);
    }
}

/// `domain/identifier`; the domain may be left out and is then the driver's.
pub(super) fn validate_qualified_name(name: &str, path: &Path, errors: &mut ErrorList) {
    let identifier = |id: &str, errors: &mut ErrorList| {
        if id.len() > ID_MAX {
            errors.too_long(path, ID_MAX);
        }
        errors.invalid_each(path, id, names::is_c_identifier(id));
    };
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [id] => identifier(id, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.invalid(path, "", "the domain must not be empty");
            } else {
                validate_csi_driver_name(domain, path, errors);
            }
            if id.is_empty() {
                errors.invalid(path, "", "the name must not be empty");
            } else {
                identifier(id, errors);
            }
        }
        _ => {}
    }
}

pub(super) fn validate_fully_qualified_name(name: &str, path: &Path, errors: &mut ErrorList) {
    validate_qualified_name(name, path, errors);
    if !name.contains('/') {
        errors.invalid(path, name, "a fully qualified name must be a domain and a name separated by a slash");
    }
}
