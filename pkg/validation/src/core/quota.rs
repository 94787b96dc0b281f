//! core/v1 ResourceQuota and LimitRange.
//!
//! Behaves as ValidateResourceQuota and ValidateLimitRange of pkg/apis/core/validation/validation.go, v1.36.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use rkube_api::k8s::core::v1::{LimitRange, LimitRangeItem, ResourceQuota, ResourceQuotaSpec};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;
use rkube_apimachinery::quantity::{Format, Quantity as Amount};

use super::pod_defaults::round_up;
use super::resources::{
    ResourceList, is_overcommit_allowed, is_standard_quota_resource, validate_container_resource_name,
    validate_quantity_value, validate_quota_resource_name, validate_resource_name,
};
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::dns_subdomain;
use crate::common::quantity::{amount, canonical, compare};
use crate::common::report::{FIELD_IMMUTABLE, OptList, OptMap, Report, shown};

pub fn set_quota_defaults(quota: &mut ResourceQuota) {
    round_up(&mut quota.spec.get_or_insert_default().hard);
    let status = quota.status.get_or_insert_default();
    round_up(&mut status.hard);
    round_up(&mut status.used);
}

pub fn validate_quota(quota: &ResourceQuota) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&quota.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_quota_spec(&quota.spec.clone().unwrap_or_default(), &mut errors);
    validate_quota_status(quota, &mut errors);
    errors
}

fn validate_amounts(list: &ResourceList, path: &Path, errors: &mut ErrorList) {
    for (name, value) in list.pairs() {
        let path = path.key(name);
        validate_quota_resource_name(name, &path, errors);
        validate_quantity_value(name, value, &path, errors);
    }
}

fn validate_quota_status(quota: &ResourceQuota, errors: &mut ErrorList) {
    let status = quota.status.clone().unwrap_or_default();
    let path = Path::new("status");
    validate_amounts(&status.hard, &path.child("hard"), errors);
    validate_amounts(&status.used, &path.child("used"), errors);
}

fn is_scope(scope: &str) -> bool {
    matches!(
        scope,
        "Terminating"
            | "NotTerminating"
            | "BestEffort"
            | "NotBestEffort"
            | "PriorityClass"
            | "VolumeAttributesClass"
            | "CrossNamespacePodAffinity"
    )
}

/// Whether a scope can limit the resource: most count pods, one counts volumes.
fn scope_fits(scope: &str, resource: &str) -> bool {
    let of_pods = matches!(
        resource,
        "pods" | "cpu" | "memory" | "limits.cpu" | "limits.memory" | "requests.cpu" | "requests.memory"
    );
    match scope {
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => of_pods,
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

fn validate_quota_spec(spec: &ResourceQuotaSpec, errors: &mut ErrorList) {
    let path = Path::new("spec");
    validate_amounts(&spec.hard, &path.child("hard"), errors);
    let misfits = |scope: &str| {
        spec.hard.pairs().filter(|(name, _)| is_standard_quota_resource(name) && !scope_fits(scope, name)).count()
    };
    let scopes = spec.scopes.items();
    let scopes_path = path.child("scopes");
    for scope in scopes {
        if !is_scope(scope) {
            errors.invalid(&scopes_path, scopes.to_vec(), "unsupported scope");
        }
        for _ in 0..misfits(scope) {
            errors.invalid(&scopes_path, scopes.to_vec(), "unsupported scope applied to resource");
        }
    }
    let conflicts = |names: &BTreeSet<&str>| {
        [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]]
            .iter()
            .filter(|pair| pair.iter().all(|name| names.contains(name)))
            .count()
    };
    for _ in 0..conflicts(&scopes.iter().map(String::as_str).collect()) {
        errors.invalid(&scopes_path, scopes.to_vec(), "conflicting scopes");
    }

    let Some(selector) = &spec.scope_selector else { return };
    let path = path.child("scopeSelector").child("matchExpressions");
    let mut names = BTreeSet::new();
    for requirement in selector.match_expressions.items() {
        let (scope, values) = (requirement.scope_name.as_str(), requirement.values.items());
        if !is_scope(scope) {
            errors.invalid(path.child("scopeName"), scope, "unsupported scope");
        }
        for _ in 0..misfits(scope) {
            errors.invalid(&path, shown(selector), "unsupported scope applied to resource");
        }
        let only_exists = is_scope(scope) && !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if only_exists && requirement.operator != "Exists" {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.invalid(path.child("operator"), requirement.operator.as_str(), detail);
        }
        match requirement.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.required(path.child("values"), detail);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.invalid(path.child("values"), values.to_vec(), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(path.child("operator"), other, "not a valid selector operator"),
        }
        names.insert(scope);
    }
    for _ in 0..conflicts(&names) {
        errors.invalid(&path, scopes.to_vec(), "conflicting scopes");
    }
}

pub fn validate_quota_update(new: &ResourceQuota, old: &ResourceQuota) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    validate_quota_spec(&spec, &mut errors);
    let set = |spec: &ResourceQuotaSpec| spec.scopes.items().iter().cloned().collect::<BTreeSet<_>>();
    if set(&spec) != set(&old_spec) {
        errors.invalid(Path::new("spec").child("scopes"), spec.scopes.items().to_vec(), FIELD_IMMUTABLE);
    }
    errors
}

/// `PUT resourcequotas/x/status`.
pub fn validate_quota_status_update(new: &ResourceQuota, old: &ResourceQuota) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_quota_status(new, &mut errors);
    errors
}

/// A container's limits default to its maximum, its requests to its limits and then its minimum.
pub fn set_limit_range_defaults(range: &mut LimitRange) {
    for limit in &mut range.spec.get_or_insert_default().limits {
        if limit.type_ == "Container" {
            let defaults = limit.default.get_or_insert_default();
            for (name, value) in limit.max.iter().flatten() {
                defaults.entry(name.clone()).or_insert_with(|| value.clone());
            }
            let requests = limit.default_request.get_or_insert_default();
            for (name, value) in defaults.iter().chain(limit.min.iter().flatten()) {
                requests.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        for list in [
            &mut limit.max,
            &mut limit.min,
            &mut limit.default,
            &mut limit.default_request,
            &mut limit.max_limit_request_ratio,
        ] {
            round_up(list);
        }
    }
}

pub fn validate_limit_range(range: &LimitRange) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&range.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    let mut types = BTreeSet::new();
    for (index, limit) in range.spec.iter().flat_map(|spec| &spec.limits).enumerate() {
        let path = Path::new("spec").child("limits").index(index);
        let kind = limit.type_.as_str();
        let messages = names::is_qualified_name(kind);
        if !messages.is_empty() {
            errors.invalid_each(path.child("type"), kind, messages);
        } else if !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
            errors.invalid(path.child("type"), kind, "must be a standard limit type or fully qualified");
        }
        if !types.insert(kind) {
            errors.duplicate(path.child("type"), kind);
        }
        validate_limit(limit, &path, &mut errors);
    }
    errors
}

pub fn validate_limit_range_update(new: &LimitRange, old: &LimitRange) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors.extend(validate_limit_range(new));
    errors
}

fn validate_limit(limit: &LimitRangeItem, path: &Path, errors: &mut ErrorList) {
    let kind = limit.type_.as_str();
    let mut keys = BTreeSet::new();
    let mut collect = |list: &ResourceList, field: &str, errors: &mut ErrorList| {
        for (name, _) in list.pairs() {
            let path = path.child(field).key(name);
            if matches!(kind, "Pod" | "Container") {
                validate_container_resource_name(name, &path, errors);
            } else {
                validate_resource_name(name, &path, errors);
            }
            keys.insert(name.clone());
        }
    };
    collect(&limit.max, "max", errors);
    collect(&limit.min, "min", errors);
    for (field, list) in [("default", &limit.default), ("defaultRequest", &limit.default_request)] {
        if kind != "Pod" {
            collect(list, field, errors);
        } else if list.count() > 0 {
            errors.forbidden(path.child(field), "may not be specified when `type` is 'Pod'");
        }
    }
    let storage = limit.min.value("storage").or(limit.max.value("storage"));
    if kind == "PersistentVolumeClaim" && storage.is_none() {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        errors.required(path.child("limits"), detail);
    }
    collect(&limit.max_limit_request_ratio, "maxLimitRequestRatio", errors);
    let of_pod = kind == "Pod";
    for name in &keys {
        validate_limit_order(limit, name, of_pod, path, errors);
    }
}

/// `min <= defaultRequest <= default <= max`, each where given.
fn validate_limit_order(limit: &LimitRangeItem, name: &str, of_pod: bool, path: &Path, errors: &mut ErrorList) {
    let (min, max) = (limit.min.value(name), limit.max.value(name));
    let default = limit.default.value(name).filter(|_| !of_pod);
    let request = limit.default_request.value(name).filter(|_| !of_pod);
    let pairs = [
        ("min", min, "min value", max, "max value", min),
        ("defaultRequest", min, "min value", request, "default request value", request),
        ("defaultRequest", request, "default request value", max, "max value", request),
        ("defaultRequest", request, "default request value", default, "default limit value", request),
        ("default", min, "min value", default, "default value", min),
        ("default", default, "default value", max, "max value", max),
    ];
    for (field, low, low_name, high, high_name, value) in pairs {
        if let (Some(low), Some(high), Some(value)) = (low, high, value)
            && compare(low, high) == Ordering::Greater
        {
            let detail = format!("{low_name} {} is greater than {high_name} {}", canonical(low), canonical(high));
            errors.invalid(path.child(field).key(name), canonical(value), detail);
        }
    }
    if let Some(ratio) = limit.max_limit_request_ratio.value(name) {
        let path = path.child("maxLimitRequestRatio").key(name);
        if amount(ratio) < Amount::new(1, Format::DecimalSi) {
            errors.invalid(&path, canonical(ratio), format!("ratio {} is less than 1", canonical(ratio)));
        }
        if let (Some(min), Some(max)) = (min, max) {
            let largest = amount(max).as_f64() / amount(min).as_f64();
            if amount(ratio).as_f64() > largest {
                let detail = format!("ratio {} is greater than max/min = {largest:.6}", canonical(ratio));
                errors.invalid(&path, canonical(ratio), detail);
            }
        }
    }
    if let (Some(default), Some(request)) = (default, request)
        && !is_overcommit_allowed(name)
        && compare(default, request) != Ordering::Equal
    {
        let detail = format!(
            "default value {} must equal to defaultRequest value {} in {name}",
            canonical(default),
            canonical(request)
        );
        errors.invalid(path.child("defaultRequest").key(name), canonical(request), detail);
    }
}

/// A request that is larger than the limit of the same resource can never be used up.
pub fn quota_warnings(quota: &ResourceQuota) -> Vec<String> {
    let hard = quota.spec.clone().unwrap_or_default().hard;
    let mut warnings = Vec::new();
    for name in ["cpu", "memory", "ephemeral-storage"] {
        let mut request_name = format!("requests.{name}");
        if hard.value(&request_name).is_none() && name != "ephemeral-storage" {
            name.clone_into(&mut request_name);
        }
        let limit_name = format!("limits.{name}");
        if let (Some(request), Some(limit)) = (hard.value(&request_name), hard.value(&limit_name))
            && compare(request, limit) == Ordering::Greater
        {
            warnings.push(format!(
                "ResourceQuota {request_name} ({}) should be less than {limit_name} ({})",
                canonical(request),
                canonical(limit)
            ));
        }
    }
    warnings
}
