//! Environment variables, and the references to pod fields and resources that volumes share with them.
//!
//! Behaves as ValidateEnv and ValidateEnvFrom of pkg/apis/core/validation/validation.go and
//! ConvertDownwardAPIFieldLabel of pkg/apis/core/pods, v1.36.

use rkube_api::k8s::core::v1::{
    EnvFromSource, EnvVar, EnvVarSource, FileKeySelector, ObjectFieldSelector, ResourceFieldSelector,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use super::volume::validate_path_no_backsteps;
use crate::common::names::{dns_subdomain, validate_dns1123_label, validate_qualified_name};
use crate::common::quantity::{amount, canonical};
use crate::common::report::{OptText, Report};

const ENV_FIELD_PATHS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

const BYTE_DIVISORS: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub(crate) fn validate_env(vars: &[EnvVar], path: &Path, errors: &mut ErrorList) {
    for (index, var) in vars.iter().enumerate() {
        let path = path.index(index);
        if var.name.is_empty() {
            errors.required(path.child("name"), "");
        } else {
            errors.invalid_each(path.child("name"), &var.name, names::is_relaxed_env_var_name(&var.name));
        }
        if let Some(source) = &var.value_from {
            validate_source(source, var.value.text(), &path.child("valueFrom"), errors);
        }
    }
}

fn validate_source(source: &EnvVarSource, value: &str, path: &Path, errors: &mut ErrorList) {
    let mut found = 0;
    if let Some(field) = &source.field_ref {
        found += 1;
        validate_object_field_selector(field, &ENV_FIELD_PATHS, &path.child("fieldRef"), errors);
    }
    if let Some(resource) = &source.resource_field_ref {
        found += 1;
        validate_container_resource_field_selector(resource, &path.child("resourceFieldRef"), false, errors);
    }
    let keys = [
        ("configMapKeyRef", source.config_map_key_ref.as_ref().map(|key| (&key.name, &key.key))),
        ("secretKeyRef", source.secret_key_ref.as_ref().map(|key| (&key.name, &key.key))),
    ];
    for (field, reference) in keys {
        let Some((name, key)) = reference else { continue };
        found += 1;
        let path = path.child(field);
        errors.invalid_each(path.child("name"), name, dns_subdomain(name, false));
        if key.is_empty() {
            errors.required(path.child("key"), "");
        } else {
            errors.invalid_each(path.child("key"), key, names::is_config_map_key(key));
        }
    }
    if let Some(file) = &source.file_key_ref {
        found += 1;
        validate_file_key(file, &path.child("fileKeyRef"), errors);
    }
    if found == 0 {
        let detail =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.invalid(path, "", detail);
    } else if !value.is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if found > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

fn validate_file_key(file: &FileKeySelector, path: &Path, errors: &mut ErrorList) {
    if file.key.is_empty() {
        errors.required(path.child("key"), "");
    } else {
        errors.invalid_each(path.child("key"), &file.key, names::is_relaxed_env_var_name(&file.key));
    }
    if file.volume_name.is_empty() {
        errors.required(path.child("volumeName"), "");
    } else {
        validate_dns1123_label(&file.volume_name, path.child("volumeName"), errors);
    }
    if file.path.is_empty() {
        errors.required(path.child("path"), "");
    } else {
        validate_path_no_backsteps(&file.path, &path.child("path"), errors);
    }
}

pub(crate) fn validate_env_from(sources: &[EnvFromSource], path: &Path, errors: &mut ErrorList) {
    for (index, source) in sources.iter().enumerate() {
        let item_path = path.index(index);
        let prefix = source.prefix.text();
        if !prefix.is_empty() {
            errors.invalid_each(item_path.child("prefix"), prefix, names::is_relaxed_env_var_name(prefix));
        }
        let references = [
            ("configMapRef", source.config_map_ref.as_ref().map(|reference| &reference.name)),
            ("secretRef", source.secret_ref.as_ref().map(|reference| &reference.name)),
        ];
        let mut found = 0;
        for (field, name) in references {
            let Some(name) = name else { continue };
            found += 1;
            let path = item_path.child(field).child("name");
            if name.is_empty() {
                errors.required(path, "");
            } else {
                errors.invalid_each(path, name, dns_subdomain(name, true));
            }
        }
        match found {
            0 => errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(path, "", "may not have more than one field specified at a time"),
        }
    }
}

/// A reference to a field of the pod; `allowed` are the paths without subscript, sorted.
pub(crate) fn validate_object_field_selector(
    selector: &ObjectFieldSelector,
    allowed: &[&str],
    path: &Path,
    errors: &mut ErrorList,
) {
    if selector.api_version.is_blank() {
        errors.required(path.child("apiVersion"), "");
        return;
    }
    if selector.field_path.is_empty() {
        errors.required(path.child("fieldPath"), "");
        return;
    }
    let converted = match convert_field_label(selector.api_version.text(), &selector.field_path) {
        Ok(converted) => converted,
        Err(reason) => {
            let detail = format!("error converting fieldPath: {reason}");
            errors.invalid(path.child("fieldPath"), selector.field_path.as_str(), detail);
            return;
        }
    };
    match split_subscript(converted) {
        Some(("metadata.annotations", key)) => validate_qualified_name(&key.to_lowercase(), path, errors),
        Some(("metadata.labels", key)) => validate_qualified_name(key, path, errors),
        Some((field, _)) => errors.invalid(path, field, "does not support subscript"),
        None => errors.one_of(path.child("fieldPath"), converted, allowed),
    }
}

/// The field of the internal version that `label` means, or why it means none.
fn convert_field_label<'a>(version: &str, label: &'a str) -> Result<&'a str, String> {
    if version != "v1" {
        return Err(format!("unsupported pod version: {version}"));
    }
    if let Some((field, _)) = split_subscript(label) {
        return match field {
            "metadata.annotations" | "metadata.labels" => Ok(label),
            _ => Err(format!("field label does not support subscript: {label}")),
        };
    }
    match label {
        "metadata.annotations"
        | "metadata.labels"
        | "metadata.name"
        | "metadata.namespace"
        | "metadata.uid"
        | "spec.nodeName"
        | "spec.restartPolicy"
        | "spec.serviceAccountName"
        | "spec.schedulerName"
        | "status.phase"
        | "status.hostIP"
        | "status.hostIPs"
        | "status.podIP"
        | "status.podIPs" => Ok(label),
        // The name before v1 was called that.
        "spec.host" => Ok("spec.nodeName"),
        _ => Err(format!("field label not supported: {label}")),
    }
}

/// `path['key']` taken apart.
fn split_subscript(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_suffix("']")?;
    let (field, key) = rest.split_once("['")?;
    (!field.is_empty()).then_some((field, key))
}

pub(crate) fn validate_container_resource_field_selector(
    selector: &ResourceFieldSelector,
    path: &Path,
    in_volume: bool,
    errors: &mut ErrorList,
) {
    let resource = selector.resource.as_str();
    let huge_pages = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && selector.container_name.is_blank() {
        errors.required(path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(path.child("resource"), "");
    } else if !huge_pages {
        errors.one_of(path.child("resource"), resource, &RESOURCES);
    }

    let Some(divisor) = selector.divisor.as_ref().filter(|divisor| !amount(divisor).is_zero()) else { return };
    let divisor = canonical(divisor);
    let (allowed, of): (&[&str], &str) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "cpu"),
        "limits.memory" | "requests.memory" => (&BYTE_DIVISORS, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (&BYTE_DIVISORS, "local ephemeral storage"),
        _ if huge_pages => (&BYTE_DIVISORS, "hugepages"),
        _ => return,
    };
    if !allowed.contains(&divisor.as_str()) {
        let values = if of == "cpu" { "1m and 1".to_owned() } else { allowed.join(", ") };
        let detail = format!("only divisor's values {values} are supported with the {of} resource");
        errors.invalid(path.child("divisor"), resource, detail);
    }
}
