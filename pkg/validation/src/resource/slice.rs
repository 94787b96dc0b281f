//! resource.k8s.io/v1 ResourceSlice.
//!
//! Behaves as ValidateResourceSlice of pkg/apis/resource/validation/validation.go, v1.36.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use rkube_api::k8s::core::v1::NodeSelector;
use rkube_api::k8s::resource::v1::{
    CapacityRequestPolicy, CapacityRequestPolicyRange, Counter, CounterSet, Device, DeviceAttribute, DeviceCapacity,
    ResourceSlice, ResourceSliceSpec,
};
use rkube_api::meta::pkg::api::resource::Quantity;
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::field::{ErrorList, Path};
use serde_json::Value;

use super::parts::{
    duplicates, fits, validate_binding_conditions, validate_pool_name, validate_qualified_name, validate_taint,
};
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_subdomain, validate_dns1123_label};
use crate::common::quantity::{amount, canonical, compare, sum};
use crate::common::report::{MUST_BE_POSITIVE, OptList, OptMap, Report, immutable, shown};
use crate::core::scheduling::validate_node_selector;
use crate::core::volume::validate_csi_driver_name;

const DEVICES_MAX: usize = 128;
const ADVANCED_DEVICES_MAX: usize = 64;
const COUNTER_SETS_MAX: usize = 8;
const COUNTERS_MAX: usize = 32;
const CONSUMED_SETS_MAX: usize = 2;
const ATTRIBUTES_MAX: usize = 32;
const ATTRIBUTE_VALUES_MAX: usize = 48;
const VALUE_LENGTH_MAX: usize = 64;
const TAINTS_MAX: usize = 16;
const OPTIONS_MAX: usize = 10;
const ONE_OF: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";

static SEMVER: LazyLock<Regex> = LazyLock::new(|| {
    let number = r"(0|[1-9]\d*)";
    let pre = r"(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)";
    let build = "[0-9a-zA-Z-]+";
    Regex::new(&format!(r"^{number}\.{number}\.{number}(-{pre}(\.{pre})*)?(\+{build}(\.{build})*)?$"))
        .expect("the pattern is a constant")
});

/// Taints get the time at which they came.
pub fn set_taint_times(slice: &mut ResourceSlice, now: &Time) {
    for device in slice.spec.devices.iter_mut().flatten() {
        for taint in device.taints.iter_mut().flatten() {
            taint.time_added.get_or_insert_with(|| now.clone());
        }
    }
}

/// Fields behind gates that are off, unless the old slice has them.
pub fn drop_disabled_fields(new: &mut ResourceSlice, old: Option<&ResourceSlice>) {
    let old_devices = || old.into_iter().flat_map(|old| old.spec.devices.items());
    let mapped = old_devices().any(|device| device.node_allocatable_resource_mappings.count() > 0);
    let lists = old_devices().flat_map(|device| device.attributes.pairs()).any(|(_, value)| has_list(value));
    for device in new.spec.devices.iter_mut().flatten() {
        if !mapped {
            device.node_allocatable_resource_mappings = None;
        }
        if !lists {
            for attribute in device.attributes.iter_mut().flat_map(BTreeMap::values_mut) {
                attribute.bools = None;
                attribute.ints = None;
                attribute.strings = None;
                attribute.versions = None;
            }
        }
    }
}

fn has_list(value: &DeviceAttribute) -> bool {
    value.bools.is_some() || value.ints.is_some() || value.strings.is_some() || value.versions.is_some()
}

pub fn warnings(slice: &ResourceSlice) -> Vec<String> {
    let driver = &slice.spec.driver;
    if *driver == driver.to_lowercase() {
        return Vec::new();
    }
    vec![format!("spec.driver: driver names should be lowercase; \"{driver}\" contains uppercase characters")]
}

pub fn validate(slice: &ResourceSlice) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&slice.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_spec(&slice.spec, None, &mut errors);
    errors
}

pub fn validate_update(new: &ResourceSlice, old: &ResourceSlice) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_spec(&new.spec, Some(&old.spec), &mut errors);
    errors
}

fn validate_spec(spec: &ResourceSliceSpec, old: Option<&ResourceSliceSpec>, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let pool_path = path.child("pool");
    validate_csi_driver_name(&spec.driver, &path.child("driver"), errors);
    validate_pool_name(&spec.pool.name, &pool_path.child("name"), errors);
    if spec.pool.resource_slice_count <= 0 {
        errors.invalid(pool_path.child("resourceSliceCount"), spec.pool.resource_slice_count, MUST_BE_POSITIVE);
    }
    if spec.pool.generation < 0 {
        let detail = "must be greater than or equal to zero";
        errors.invalid(pool_path.child("generation"), spec.pool.generation, detail);
    }
    if let Some(old) = old {
        immutable(&spec.pool.name, &old.pool.name, pool_path.child("name"), errors);
        immutable(&spec.driver, &old.driver, path.child("driver"), errors);
        immutable(&spec.node_name, &old.node_name, path.child("nodeName"), errors);
    }
    validate_where(spec, &path, errors);
    if spec.shared_counters.is_some() && spec.devices.is_some() {
        errors.invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    validate_devices(spec, old, &path.child("devices"), errors);
    let (sets, path) = (spec.shared_counters.items(), path.child("sharedCounters"));
    if fits(sets, COUNTER_SETS_MAX, &path, errors) {
        for (index, CounterSet { name, counters }) in sets.iter().enumerate() {
            validate_counters("name", name, counters, &path.index(index), errors);
        }
        duplicates(sets.iter().map(|set| set.name.as_str()), &path, errors);
    }
}

fn validate_counters(
    field: &str,
    name: &str,
    counters: &BTreeMap<String, Counter>,
    path: &Path,
    errors: &mut ErrorList,
) {
    if name.is_empty() {
        errors.required(path.child(field), "");
    } else {
        validate_dns1123_label(name, path.child(field), errors);
    }
    let path = path.child("counters");
    if counters.is_empty() {
        errors.required(path, "");
    } else if counters.len() > COUNTERS_MAX {
        errors.too_many(path, counters.len(), COUNTERS_MAX);
    } else {
        for name in counters.keys() {
            validate_dns1123_label(name, &path, errors);
        }
    }
}

/// Which nodes can use the devices, said in exactly one way.
fn validate_where(spec: &ResourceSliceSpec, path: &Path, errors: &mut ErrorList) {
    let mut given = Vec::new();
    match spec.node_name.as_deref() {
        Some("") => {
            errors.invalid(path.child("nodeName"), "", "must be either unset or set to a non-empty string");
        }
        Some(name) => {
            given.push("`nodeName`");
            errors.invalid_each(path.child("nodeName"), name, dns_subdomain(name, false));
        }
        None => {}
    }
    if let Some(selector) = &spec.node_selector {
        given.push("`nodeSelector`");
        let path = path.child("nodeSelector");
        validate_node_selector(selector, false, &path, errors);
        if selector.node_selector_terms.len() != 1 {
            let path = path.child("nodeSelectorTerms");
            errors.invalid(path, shown(&selector.node_selector_terms), "must have exactly one node selector term");
        }
    }
    for (field, value, name) in [
        ("allNodes", spec.all_nodes, "`allNodes`"),
        ("perDeviceNodeSelection", spec.per_device_node_selection, "`perDeviceNodeSelection`"),
    ] {
        match value {
            Some(true) => given.push(name),
            Some(false) => errors.invalid(path.child(field), false, "must be either unset or set to true"),
            None => {}
        }
    }
    if given.is_empty() {
        errors.required(path, ONE_OF);
    } else if given.len() > 1 {
        let value = format!("{{{}}}", given.join(", "));
        errors.invalid(path, value, format!("{ONE_OF}, but multiple fields are set"));
    }
}

fn validate_devices(spec: &ResourceSliceSpec, old: Option<&ResourceSliceSpec>, path: &Path, errors: &mut ErrorList) {
    let devices = spec.devices.items();
    let advanced = devices.iter().any(|device| {
        !device.taints.items().is_empty()
            || !device.consumes_counters.items().is_empty()
            || device.attributes.pairs().any(|(_, value)| has_list(value))
    });
    if !fits(devices, if advanced { ADVANCED_DEVICES_MAX } else { DEVICES_MAX }, path, errors) {
        return;
    }
    let per_device = spec.per_device_node_selection == Some(true);
    for (index, device) in devices.iter().enumerate() {
        let known = old.into_iter().flat_map(|old| old.devices.items()).find(|old| old.name == device.name);
        validate_device(device, known, per_device, &path.index(index), errors);
    }
    duplicates(devices.iter().map(|device| device.name.as_str()), path, errors);
}

fn validate_device(device: &Device, old: Option<&Device>, per_device: bool, path: &Path, errors: &mut ErrorList) {
    validate_dns1123_label(&device.name, path.child("name"), errors);
    let total = device.attributes.count() + device.capacity.count();
    if total > ATTRIBUTES_MAX {
        let detail = format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}");
        errors.invalid(path, total, detail);
    }
    let length = |value: &DeviceAttribute| {
        let lists = value.bools.items().len()
            + value.ints.items().len()
            + value.strings.items().len()
            + value.versions.items().len();
        lists.max(1)
    };
    let values: usize = device.attributes.pairs().map(|(_, value)| length(value)).sum();
    if values > ATTRIBUTE_VALUES_MAX {
        let detail = format!("the total number of attribute values must not exceed {ATTRIBUTE_VALUES_MAX}");
        errors.invalid(path, values, detail);
    }
    let attributes_path = path.child("attributes");
    for (name, value) in device.attributes.pairs() {
        validate_qualified_name(name, &attributes_path, errors);
        validate_attribute(value, &attributes_path.key(name), errors);
    }
    let capacity_path = path.child("capacity");
    for (name, capacity) in device.capacity.pairs() {
        validate_qualified_name(name, &capacity_path, errors);
        let path = capacity_path.key(name).child("requestPolicy");
        match &capacity.request_policy {
            None => {}
            Some(policy) if device.allow_multiple_allocations == Some(true) => {
                validate_policy(capacity, policy, &path, errors);
            }
            Some(_) => errors.forbidden(path, "allowMultipleAllocations must be true"),
        }
    }
    let taints = device.taints.items();
    let taints_path = path.child("taints");
    if old.is_none_or(|old| old.taints.items() != taints) && fits(taints, TAINTS_MAX, &taints_path, errors) {
        for (index, taint) in taints.iter().enumerate() {
            validate_taint(taint, &taints_path.index(index), errors);
        }
    }
    let (consumed, consumed_path) = (device.consumes_counters.items(), path.child("consumesCounters"));
    if fits(consumed, CONSUMED_SETS_MAX, &consumed_path, errors) {
        for (index, set) in consumed.iter().enumerate() {
            validate_counters("counterSet", &set.counter_set, &set.counters, &consumed_path.index(index), errors);
        }
        duplicates(consumed.iter().map(|set| set.counter_set.as_str()), &consumed_path, errors);
    }
    validate_device_nodes(device, per_device, path, errors);
    let (conditions, failures) = (&device.binding_conditions, &device.binding_failure_conditions);
    validate_binding_conditions(conditions.as_ref(), failures.as_ref(), path, errors);
}

fn validate_device_nodes(device: &Device, per_device: bool, path: &Path, errors: &mut ErrorList) {
    const ONE_PER_DEVICE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when \
                                  `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    let selector: Option<&NodeSelector> = device.node_selector.as_ref();
    if !per_device {
        if device.node_name.is_some() || selector.is_some() || device.all_nodes.is_some() {
            let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set \
                          to true in the ResourceSlice spec";
            errors.invalid(path, Value::Null, detail);
        }
        return;
    }
    let mut given = Vec::new();
    match device.node_name.as_deref() {
        Some("") => errors.invalid(path.child("nodeName"), "", "must not be empty"),
        Some(name) => {
            given.push("`nodeName`");
            errors.invalid_each(path.child("nodeName"), name, dns_subdomain(name, false));
        }
        None => {}
    }
    if let Some(selector) = selector {
        given.push("`nodeSelector`");
        validate_node_selector(selector, false, &path.child("nodeSelector"), errors);
    }
    match device.all_nodes {
        Some(true) => given.push("`allNodes`"),
        Some(false) => errors.invalid(path.child("allNodes"), false, "must be either unset or set to true"),
        None => {}
    }
    if given.is_empty() {
        errors.required(path, ONE_PER_DEVICE);
    } else if given.len() > 1 {
        errors.invalid(path, format!("{{{}}}", given.join(", ")), ONE_PER_DEVICE);
    }
}

fn validate_attribute(attribute: &DeviceAttribute, path: &Path, errors: &mut ErrorList) {
    const NOT_EMPTY: &str = "must not be empty if specified";
    let text = |value: &str, path: Path, errors: &mut ErrorList| {
        if value.len() > VALUE_LENGTH_MAX {
            errors.too_long(path, VALUE_LENGTH_MAX);
        }
    };
    let version = |value: &str, path: Path, errors: &mut ErrorList| {
        if !SEMVER.is_match(value) {
            errors.invalid(&path, value, "must be a string compatible with semver.org spec 2.0.0");
        }
        text(value, path, errors);
    };
    if let Some(value) = &attribute.string {
        text(value, path.child("string"), errors);
    }
    if let Some(value) = &attribute.version {
        version(value, path.child("version"), errors);
    }
    let empty = [
        ("bools", attribute.bools.as_ref().is_some_and(Vec::is_empty)),
        ("ints", attribute.ints.as_ref().is_some_and(Vec::is_empty)),
        ("strings", attribute.strings.as_ref().is_some_and(Vec::is_empty)),
        ("versions", attribute.versions.as_ref().is_some_and(Vec::is_empty)),
    ];
    for (field, _) in empty.into_iter().filter(|(_, empty)| *empty) {
        errors.invalid(path.child(field), Value::Array(Vec::new()), NOT_EMPTY);
    }
    for (index, value) in attribute.strings.items().iter().enumerate() {
        text(value, path.child("strings").index(index), errors);
    }
    for (index, value) in attribute.versions.items().iter().enumerate() {
        version(value, path.child("versions").index(index), errors);
    }
    let given = [
        attribute.bool.is_some(),
        attribute.int.is_some(),
        attribute.string.is_some(),
        attribute.version.is_some(),
        attribute.bools.is_some(),
        attribute.ints.is_some(),
        attribute.strings.is_some(),
        attribute.versions.is_some(),
    ];
    match given.into_iter().filter(|given| *given).count() {
        0 => errors.invalid(path, "", "exactly one value must be specified"),
        1 => {}
        _ => errors.invalid(path, shown(attribute), "exactly one value must be specified"),
    }
}

fn validate_policy(capacity: &DeviceCapacity, policy: &CapacityRequestPolicy, path: &Path, errors: &mut ErrorList) {
    let values = policy.valid_values.items();
    match (values, &policy.valid_range) {
        ([_, ..], Some(_)) => {
            let detail = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at \
                          the same time";
            errors.forbidden(path, detail);
        }
        ([_, ..], None) => match &policy.default {
            None => errors.required(path.child("default"), "required when validValues is defined"),
            Some(default) => validate_options(default, &capacity.value, values, &path.child("validValues"), errors),
        },
        ([], Some(range)) => match &policy.default {
            None => errors.required(path.child("default"), "required when validRange is defined"),
            Some(default) => validate_range(default, &capacity.value, range, &path.child("validRange"), errors),
        },
        ([], None) => {}
    }
}

fn validate_options(default: &Quantity, capacity: &Quantity, values: &[Quantity], path: &Path, errors: &mut ErrorList) {
    for (index, pair) in values.windows(2).enumerate() {
        if let [first, second] = pair
            && compare(first, second).is_gt()
        {
            let detail = "values must be sorted in ascending order";
            errors.invalid(path.index(index + 1), canonical(second), detail);
        }
    }
    if fits(values, OPTIONS_MAX, path, errors) {
        for (index, value) in values.iter().enumerate() {
            if compare(value, capacity).is_gt() {
                let detail = format!("option is larger than capacity value: {}", canonical(capacity));
                errors.invalid(path.index(index), canonical(value), detail);
            }
        }
        let keys: Vec<String> = values.iter().map(|value| amount(value).value().to_string()).collect();
        duplicates(keys.iter().map(String::as_str), path, errors);
    }
    if !values.iter().any(|value| compare(value, default).is_eq()) {
        errors.invalid(path, canonical(default), "default value is not valid according to the requestPolicy");
    }
}

fn validate_range(
    default: &Quantity,
    capacity: &Quantity,
    range: &CapacityRequestPolicyRange,
    path: &Path,
    errors: &mut ErrorList,
) {
    let min = &range.min;
    let min_path = path.child("min");
    if compare(min, capacity).is_gt() {
        let detail = format!("min is larger than capacity value: {}", canonical(capacity));
        errors.invalid(&min_path, canonical(min), detail);
    }
    if compare(default, min).is_lt() {
        errors.invalid(min_path, canonical(default), format!("default is less than min: {}", canonical(min)));
    }
    if let Some(max) = &range.max {
        let path = path.child("max");
        if compare(min, max).is_gt() {
            errors.invalid(&path, canonical(min), format!("min is larger than max: {}", canonical(max)));
        }
        if compare(max, capacity).is_gt() {
            let detail = format!("max is larger than capacity value: {}", canonical(capacity));
            errors.invalid(&path, canonical(max), detail);
        }
        if compare(default, max).is_gt() {
            errors.invalid(path, canonical(default), format!("default is more than max: {}", canonical(max)));
        }
    }
    let Some(step) = &range.step else { return };
    let path = path.child("step");
    let first = sum(&amount(min), &amount(step));
    if first > amount(capacity) {
        let detail = format!("one step {first} is larger than capacity value: {}", canonical(capacity));
        errors.invalid(&path, canonical(step), detail);
    }
    for value in [Some(default), range.max.as_ref()].into_iter().flatten() {
        let distance = amount(value).value().saturating_sub(amount(min).value());
        // A step of nothing leads nowhere; upstream divides by it.
        if distance.checked_rem(amount(step).value()) != Some(0) {
            let detail =
                format!("value is not a multiple of a given step ({}) from ({})", canonical(step), canonical(min));
            errors.invalid(&path, canonical(value), detail);
        }
    }
}
