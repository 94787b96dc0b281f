//! apiregistration.k8s.io/v1 APIService.
//!
//! Behaves as kube-aggregator/pkg/apis/apiregistration/validation/validation.go, v1.36.

use rkube_api::apiregistration::pkg::apis::apiregistration::v1::APIService;
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use crate::common::defaults::default_to;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::report::{OptList, OptText, Report};

const HTTPS_PORT: i32 = 443;

pub fn set_defaults(service: &mut APIService) {
    if let Some(reference) = service.spec.as_mut().and_then(|spec| spec.service.as_mut()) {
        default_to(&mut reference.port, HTTPS_PORT);
    }
    service.status.get_or_insert_default();
}

pub fn validate(service: &APIService) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = service.spec.clone().unwrap_or_default();
    let (group, version) = (spec.group.text(), spec.version.text());
    validate_name(service, &format!("{version}.{group}"), &mut errors);
    let path = Path::new("spec");
    if group.is_empty() && version != "v1" {
        let detail = "only v1 may have an empty group and it better be legacy kube";
        errors.required(path.child("group"), detail);
    }
    if !group.is_empty() {
        errors.invalid_each(path.child("group"), group, names::is_dns1123_subdomain(group));
    }
    errors.invalid_each(path.child("version"), version, names::is_dns1035_label(version));
    if !(1..=20_000).contains(&spec.group_priority_minimum) {
        let path = path.child("groupPriorityMinimum");
        errors.invalid(path, spec.group_priority_minimum, "must be positive and less than 20000");
    }
    if !(1..=1000).contains(&spec.version_priority) {
        let path = path.child("versionPriority");
        errors.invalid(path, spec.version_priority, "must be positive and less than 1000");
    }
    let bundle = spec.ca_bundle.as_ref().map_or(0, |bundle| bundle.0.len());
    let insecure = spec.insecure_skip_tls_verify == Some(true);
    let insecure_path = path.child("insecureSkipTLSVerify");
    let Some(reference) = &spec.service else {
        if bundle > 0 {
            let detail = "local APIServices may not have a caBundle";
            errors.invalid(path.child("caBundle"), format!("{bundle} bytes"), detail);
        }
        if insecure {
            errors.invalid(insecure_path, true, "local APIServices may not have insecureSkipTLSVerify");
        }
        return errors;
    };
    let path = path.child("service");
    errors.not_empty(path.child("namespace"), reference.namespace.text());
    errors.not_empty(path.child("name"), reference.name.text());
    let port = reference.port.unwrap_or(0);
    let faults = names::is_valid_port_num(i64::from(port));
    if !faults.is_empty() {
        errors.invalid(path.child("port"), port, format!("port is not valid: {}", faults.join(", ")));
    }
    if insecure && bundle > 0 {
        errors.invalid(insecure_path, true, "may not be true if caBundle is present");
    }
    errors
}

/// The name says version and group, which generic metadata rules cannot know.
fn validate_name(service: &APIService, required: &str, errors: &mut ErrorList) {
    let path = Path::new("metadata");
    validate_object_meta(&service.metadata, false, names::name_is_path_segment, &path, errors);
    let name = service.metadata.name.text();
    if !name.is_empty() && names::is_path_segment_name(name).is_empty() && name != required {
        let detail = format!("must be `spec.version+\".\"+spec.group`: \"{required}\"");
        errors.invalid(path.child("name"), name, detail);
    }
}

pub fn validate_update(new: &APIService, old: &APIService) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors.extend(validate(new));
    errors
}

pub fn validate_status_update(new: &APIService, old: &APIService) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let status = new.status.clone().unwrap_or_default();
    for (index, condition) in status.conditions.items().iter().enumerate() {
        let path = Path::new("status").child("conditions").index(index).child("status");
        errors.one_of(path, &condition.status, &["True", "False", "Unknown"]);
    }
    errors
}
