//! resource.k8s.io/v1 ResourceClaim, ResourceClaimTemplate and DeviceClass.
//!
//! Behaves as ValidateResourceClaim and ValidateDeviceClass of pkg/apis/resource/validation/validation.go and
//! pkg/apis/resource/v1/defaults.go, v1.36.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::k8s::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceClass, DeviceClassSpec, DeviceConstraint, DeviceRequest,
    DeviceRequestAllocationResult, DeviceSelector, DeviceToleration, ResourceClaim, ResourceClaimConsumerReference,
    ResourceClaimSpec, ResourceClaimStatus, ResourceClaimTemplate,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names::ip;
use serde_json::Value;

use super::parts::{
    duplicates, fits, validate_binding_conditions, validate_configuration, validate_fully_qualified_name,
    validate_pool_name, validate_raw, validate_selectors, validate_toleration, validate_uid,
};
use crate::common::defaults::text_default;
use crate::common::meta::{
    validate_conditions, validate_object_meta, validate_object_meta_update, validate_template_object_meta,
};
use crate::common::names::{dns_subdomain, validate_dns1123_label, validate_dns1123_subdomain};
use crate::common::report::{OptList, OptText, Report, immutable};
use crate::core::resources::is_extended;
use crate::core::scheduling::validate_node_selector;
use crate::core::volume::validate_csi_driver_name;

const REQUESTS_MAX: usize = 32;
const CONSTRAINTS_MAX: usize = 32;
const CONFIG_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const CONSUMERS_MAX: usize = 256;
const RESULTS_MAX: usize = 32;
const STATUS_CONDITIONS_MAX: usize = 8;
const STATUS_DATA_MAX: usize = 10 * 1024;
const NETWORK_IPS_MAX: usize = 16;
const INTERFACE_NAME_MAX: usize = 256;
const HARDWARE_ADDRESS_MAX: usize = 128;

fn set_request_defaults(
    mode: &mut Option<String>,
    count: &mut Option<i64>,
    tolerations: &mut Option<Vec<DeviceToleration>>,
) {
    for toleration in tolerations.iter_mut().flatten() {
        text_default(&mut toleration.operator, "Equal");
    }
    text_default(mode, "ExactCount");
    if mode.text() == "ExactCount" && count.unwrap_or(0) == 0 {
        *count = Some(1);
    }
}

fn set_spec_defaults(spec: &mut ResourceClaimSpec) {
    let requests = spec.devices.iter_mut().flat_map(|devices| devices.requests.iter_mut().flatten());
    for request in requests {
        if let Some(exactly) = &mut request.exactly {
            set_request_defaults(&mut exactly.allocation_mode, &mut exactly.count, &mut exactly.tolerations);
        }
        for alternative in request.first_available.iter_mut().flatten() {
            let (mode, count) = (&mut alternative.allocation_mode, &mut alternative.count);
            set_request_defaults(mode, count, &mut alternative.tolerations);
        }
    }
}

pub fn set_defaults(claim: &mut ResourceClaim) {
    set_spec_defaults(&mut claim.spec);
    claim.status.get_or_insert_default();
}

pub fn set_template_defaults(template: &mut ResourceClaimTemplate) {
    set_spec_defaults(&mut template.spec.spec);
}

pub fn validate(claim: &ResourceClaim) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&claim.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_spec(&claim.spec, &Path::new("spec"), &mut errors);
    errors
}

pub fn validate_update(new: &ResourceClaim, old: &ResourceClaim) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("metadata");
    validate_object_meta(&new.metadata, true, dns_subdomain, &path, &mut errors);
    validate_object_meta_update(&new.metadata, &old.metadata, &path, &mut errors);
    immutable(&new.spec, &old.spec, Path::new("spec"), &mut errors);
    errors
}

pub fn validate_template(template: &ResourceClaimTemplate) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&template.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    let path = Path::new("spec");
    let meta = template.spec.metadata.clone().unwrap_or_default();
    validate_template_object_meta(&meta, &path.child("metadata"), &mut errors);
    validate_spec(&template.spec.spec, &path.child("spec"), &mut errors);
    errors
}

pub fn validate_template_update(new: &ResourceClaimTemplate, old: &ResourceClaimTemplate) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    immutable(&new.spec, &old.spec, Path::new("spec"), &mut errors);
    errors
}

pub fn validate_class(class: &DeviceClass) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&class.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_class_spec(&class.spec, &Path::new("spec"), &mut errors);
    errors
}

pub fn validate_class_update(new: &DeviceClass, old: &DeviceClass) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("metadata");
    validate_object_meta(&new.metadata, false, dns_subdomain, &path, &mut errors);
    validate_object_meta_update(&new.metadata, &old.metadata, &path, &mut errors);
    validate_class_spec(&new.spec, &Path::new("spec"), &mut errors);
    errors
}

fn validate_class_spec(spec: &DeviceClassSpec, path: &Path, errors: &mut ErrorList) {
    validate_selectors(spec.selectors.items(), &path.child("selectors"), errors);
    let config_path = path.child("config");
    if fits(spec.config.items(), CONFIG_MAX, &config_path, errors) {
        for (index, config) in spec.config.items().iter().enumerate() {
            validate_configuration(config.opaque.as_ref(), &config_path.index(index), errors);
        }
    }
    if let Some(name) = spec.extended_resource_name.as_ref().filter(|name| !is_extended(name)) {
        let detail = "must be a valid extended resource name";
        errors.invalid(path.child("extendedResourceName"), name.as_str(), detail);
    }
}

/// Names of requests, each with those of its alternatives.
type RequestNames<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn request_names(spec: &ResourceClaimSpec) -> RequestNames<'_> {
    let requests = spec.devices.iter().flat_map(|devices| devices.requests.items());
    requests
        .map(|request| {
            let inner = request.first_available.iter().flatten().map(|alternative| alternative.name.as_str());
            (request.name.as_str(), inner.collect())
        })
        .collect()
}

fn validate_spec(spec: &ResourceClaimSpec, path: &Path, errors: &mut ErrorList) {
    let devices = spec.devices.clone().unwrap_or_default();
    let names = request_names(spec);
    let path = path.child("devices");
    let requests_path = path.child("requests");
    let requests = devices.requests.items();
    if fits(requests, REQUESTS_MAX, &requests_path, errors) {
        for (index, request) in requests.iter().enumerate() {
            validate_request(request, &requests_path.index(index), errors);
        }
        duplicates(requests.iter().map(|request| request.name.as_str()), &requests_path, errors);
    }
    let constraints_path = path.child("constraints");
    if fits(devices.constraints.items(), CONSTRAINTS_MAX, &constraints_path, errors) {
        for (index, constraint) in devices.constraints.items().iter().enumerate() {
            validate_constraint(constraint, &names, &constraints_path.index(index), errors);
        }
    }
    let config_path = path.child("config");
    if fits(devices.config.items(), CONFIG_MAX, &config_path, errors) {
        for (index, config) in devices.config.items().iter().enumerate() {
            let path = config_path.index(index);
            validate_references(config.requests.items(), &names, &path.child("requests"), errors);
            validate_configuration(config.opaque.as_ref(), &path, errors);
        }
    }
}

/// What is asked for, exactly or as one of several alternatives.
struct Wanted<'a> {
    class: &'a str,
    selectors: &'a [DeviceSelector],
    mode: &'a str,
    count: i64,
    tolerations: &'a [DeviceToleration],
}

fn validate_request(request: &DeviceRequest, path: &Path, errors: &mut ErrorList) {
    validate_dns1123_label(&request.name, path.child("name"), errors);
    let alternatives = request.first_available.items();
    match (&request.exactly, alternatives) {
        (None, []) => errors.required(path, "exactly one of `exactly` or `firstAvailable` is required"),
        (Some(_), [_, ..]) => {
            let detail = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.invalid(path, Value::Null, detail);
        }
        (Some(exactly), []) => {
            let wanted = Wanted {
                class: &exactly.device_class_name,
                selectors: exactly.selectors.items(),
                mode: exactly.allocation_mode.text(),
                count: exactly.count.unwrap_or(0),
                tolerations: exactly.tolerations.items(),
            };
            validate_wanted(&wanted, &path.child("exactly"), errors);
        }
        (None, alternatives) => {
            let path = path.child("firstAvailable");
            if !fits(alternatives, ALTERNATIVES_MAX, &path, errors) {
                return;
            }
            for (index, alternative) in alternatives.iter().enumerate() {
                let path = path.index(index);
                validate_dns1123_label(&alternative.name, path.child("name"), errors);
                let wanted = Wanted {
                    class: &alternative.device_class_name,
                    selectors: alternative.selectors.items(),
                    mode: alternative.allocation_mode.text(),
                    count: alternative.count.unwrap_or(0),
                    tolerations: alternative.tolerations.items(),
                };
                validate_wanted(&wanted, &path, errors);
            }
            duplicates(alternatives.iter().map(|alternative| alternative.name.as_str()), &path, errors);
        }
    }
}

fn validate_wanted(wanted: &Wanted<'_>, path: &Path, errors: &mut ErrorList) {
    let class_path = path.child("deviceClassName");
    if wanted.class.is_empty() {
        errors.required(class_path, "");
    } else {
        validate_dns1123_subdomain(wanted.class, class_path, errors);
    }
    validate_selectors(wanted.selectors, &path.child("selectors"), errors);
    let count_path = path.child("count");
    match wanted.mode {
        "All" => {
            if wanted.count != 0 {
                let detail = "must not be specified when allocationMode is 'All'";
                errors.invalid(count_path, wanted.count, detail);
            }
        }
        "ExactCount" => errors.positive(count_path, wanted.count),
        other => errors.not_supported(path.child("allocationMode"), other, &["All", "ExactCount"]),
    }
    for (index, toleration) in wanted.tolerations.iter().enumerate() {
        validate_toleration(toleration, &path.child("tolerations").index(index), errors);
    }
}

fn validate_references(references: &[String], names: &RequestNames<'_>, path: &Path, errors: &mut ErrorList) {
    if !fits(references, REQUESTS_MAX, path, errors) {
        return;
    }
    for (index, reference) in references.iter().enumerate() {
        validate_reference(reference, names, &path.index(index), errors);
    }
    duplicates(references.iter().map(String::as_str), path, errors);
}

fn validate_reference(reference: &str, names: &RequestNames<'_>, path: &Path, errors: &mut ErrorList) {
    const UNKNOWN: &str =
        "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let segments: Vec<&str> = reference.split('/').collect();
    let known = match segments.as_slice() {
        [request] => names.contains_key(request),
        [request, alternative] => names.get(request).is_some_and(|inner| inner.contains(alternative)),
        _ => {
            errors.invalid(path, reference, UNKNOWN);
            return;
        }
    };
    for segment in segments {
        validate_dns1123_label(segment, path, errors);
    }
    if !known {
        errors.invalid(path, reference, UNKNOWN);
    }
}

fn validate_constraint(constraint: &DeviceConstraint, names: &RequestNames<'_>, path: &Path, errors: &mut ErrorList) {
    validate_references(constraint.requests.items(), names, &path.child("requests"), errors);
    match (&constraint.match_attribute, &constraint.distinct_attribute) {
        (Some(name), _) => validate_fully_qualified_name(name, &path.child("matchAttribute"), errors),
        (None, Some(name)) => validate_fully_qualified_name(name, &path.child("distinctAttribute"), errors),
        (None, None) => {
            let detail = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields \
                          are set";
            errors.required(path, detail);
        }
    }
}

/// Driver, pool, device, and the share of it.
type DeviceId<'a> = (&'a str, &'a str, &'a str, Option<&'a str>);

fn result_id(result: &DeviceRequestAllocationResult) -> DeviceId<'_> {
    (&result.driver, &result.pool, &result.device, result.share_id.as_deref())
}

fn status_id(status: &AllocatedDeviceStatus) -> DeviceId<'_> {
    (&status.driver, &status.pool, &status.device, status.share_id.as_deref())
}

fn allocated(status: &ResourceClaimStatus) -> BTreeSet<DeviceId<'_>> {
    let devices = status.allocation.as_ref().and_then(|allocation| allocation.devices.as_ref());
    devices.into_iter().flat_map(|devices| devices.results.items()).map(result_id).collect()
}

/// What is said of a device goes with it when it is given back.
pub fn drop_deallocated_devices(new: &mut ResourceClaim, old: &ResourceClaim) {
    let (Some(new_status), Some(old_status)) = (&mut new.status, &old.status) else { return };
    let kept = new_status.clone();
    let (before, after) = (allocated(old_status), allocated(&kept));
    if let Some(devices) = &mut new_status.devices {
        devices.retain(|device| !before.contains(&status_id(device)) || after.contains(&status_id(device)));
        if devices.is_empty() {
            new_status.devices = None;
        }
    }
}

pub fn validate_status_update(new: &ResourceClaim, old: &ResourceClaim) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (status, old_status) = (new.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
    let path = Path::new("status");
    let deleted = new.metadata.deletion_timestamp.is_some();
    validate_consumers(&status, &old_status, deleted, &path.child("reservedFor"), &mut errors);
    let known = allocated(&status);
    let devices_path = path.child("devices");
    let mut taken = BTreeSet::new();
    for (index, device) in status.devices.items().iter().enumerate() {
        let path = devices_path.index(index);
        validate_device_status(device, &known, &path, &mut errors);
        if !taken.insert(status_id(device)) {
            errors.duplicate(path, id_text(device));
        }
    }
    match (&status.allocation, &old_status.allocation) {
        (Some(new), Some(old)) => immutable(new, old, path.child("allocation"), &mut errors),
        (Some(allocation), None) => {
            validate_allocation(allocation, &request_names(&new.spec), &path.child("allocation"), &mut errors);
        }
        (None, _) => {}
    }
    errors
}

fn id_text(device: &AllocatedDeviceStatus) -> String {
    let (driver, pool, name, share) = status_id(device);
    let share = share.map(|share| format!("/{share}")).unwrap_or_default();
    format!("{driver}/{pool}/{name}{share}")
}

fn validate_consumers(
    status: &ResourceClaimStatus,
    old: &ResourceClaimStatus,
    deleted: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let consumers = status.reserved_for.items();
    if fits(consumers, CONSUMERS_MAX, path, errors) {
        for (index, ResourceClaimConsumerReference { resource, name, uid, .. }) in consumers.iter().enumerate() {
            for (field, value) in [("resource", resource), ("name", name), ("uid", uid)] {
                errors.not_empty(path.index(index).child(field), value);
            }
        }
        duplicates(consumers.iter().map(|consumer| consumer.uid.as_str()), path, errors);
    }
    if !consumers.is_empty() && status.allocation.is_none() {
        errors.forbidden(path, "may not be specified when `allocated` is not set");
    } else if deleted && consumers.iter().any(|consumer| !old.reserved_for.items().contains(consumer)) {
        let detail = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        errors.forbidden(path, detail);
    }
}

fn validate_device_status(
    device: &AllocatedDeviceStatus,
    known: &BTreeSet<DeviceId<'_>>,
    path: &Path,
    errors: &mut ErrorList,
) {
    validate_csi_driver_name(&device.driver, &path.child("driver"), errors);
    validate_pool_name(&device.pool, &path.child("pool"), errors);
    validate_dns1123_label(&device.device, path.child("device"), errors);
    if let Some(share) = &device.share_id {
        validate_uid(share, &path.child("shareID"), errors);
    }
    if !known.contains(&status_id(device)) {
        errors.invalid(path, id_text(device), "must be an allocated device in the claim");
    }
    let conditions_path = path.child("conditions");
    fits(device.conditions.items(), STATUS_CONDITIONS_MAX, &conditions_path, errors);
    validate_conditions(device.conditions.items(), &conditions_path, errors);
    if let Some(data) = &device.data {
        validate_raw(&data.0, STATUS_DATA_MAX, &path.child("data"), errors);
    }
    let Some(network) = &device.network_data else { return };
    let path = path.child("networkData");
    if network.interface_name.text().len() > INTERFACE_NAME_MAX {
        errors.too_long(path.child("interfaceName"), INTERFACE_NAME_MAX);
    }
    if network.hardware_address.text().len() > HARDWARE_ADDRESS_MAX {
        errors.too_long(path.child("hardwareAddress"), HARDWARE_ADDRESS_MAX);
    }
    let (ips, path) = (network.ips.items(), path.child("ips"));
    if fits(ips, NETWORK_IPS_MAX, &path, errors) {
        for (index, address) in ips.iter().enumerate() {
            errors.extend(ip::is_valid_interface_address(&path.index(index), address));
        }
        duplicates(ips.iter().map(String::as_str), &path, errors);
    }
}

fn validate_allocation(allocation: &AllocationResult, names: &RequestNames<'_>, path: &Path, errors: &mut ErrorList) {
    let devices = allocation.devices.clone().unwrap_or_default();
    let devices_path = path.child("devices");
    let results_path = devices_path.child("results");
    if fits(devices.results.items(), RESULTS_MAX, &results_path, errors) {
        for (index, result) in devices.results.items().iter().enumerate() {
            let path = results_path.index(index);
            validate_reference(&result.request, names, &path.child("request"), errors);
            validate_csi_driver_name(&result.driver, &path.child("driver"), errors);
            validate_pool_name(&result.pool, &path.child("pool"), errors);
            validate_dns1123_label(&result.device, path.child("device"), errors);
            let (conditions, failures) = (&result.binding_conditions, &result.binding_failure_conditions);
            validate_binding_conditions(conditions.as_ref(), failures.as_ref(), &path, errors);
            if let Some(share) = &result.share_id {
                validate_uid(share, &path.child("shareID"), errors);
            }
        }
    }
    let config_path = devices_path.child("config");
    if fits(devices.config.items(), 2 * CONFIG_MAX, &config_path, errors) {
        for (index, config) in devices.config.items().iter().enumerate() {
            let path = config_path.index(index);
            errors.required_one_of(path.child("source"), &config.source, &["FromClaim", "FromClass"]);
            validate_references(config.requests.items(), names, &path.child("requests"), errors);
            validate_configuration(config.opaque.as_ref(), &path, errors);
        }
    }
    if let Some(selector) = &allocation.node_selector {
        validate_node_selector(selector, false, &path.child("nodeSelector"), errors);
    }
}
