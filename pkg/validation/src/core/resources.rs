//! Compute resources: names, quantities, requests and limits of containers and pods.
//!
//! Behaves as validateResourceRequirements of pkg/apis/core/validation/validation.go and
//! pkg/apis/core/helper/helpers.go, v1.36.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use rkube_api::k8s::core::v1::{PodSpec, ResourceClaim, ResourceRequirements};
use rkube_api::meta::pkg::api::resource::Quantity;
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::names;

use super::containers::is_restartable_init;
use super::pod_options::PodOptions;
use crate::common::names::validate_dns1123_label;
use crate::common::quantity::{self, amount, canonical, compare};
use crate::common::report::{
    MUST_BE_INTEGER, MUST_BE_POSITIVE, MUST_NOT_BE_NEGATIVE, OptList, OptMap, OptText, Report,
};

pub(crate) type ResourceList = Option<BTreeMap<String, Quantity>>;

pub(crate) fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_quota_huge_page(name: &str) -> bool {
    is_huge_page(name) || name.starts_with("requests.hugepages-")
}

/// Resources of Kubernetes itself: without a domain or in its own.
pub(crate) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::is_qualified_name(&format!("requests.{name}")).is_empty()
}

pub(crate) fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

pub(crate) fn is_standard_quota_resource(name: &str) -> bool {
    is_quota_huge_page(name)
        || matches!(
            name,
            "cpu"
                | "memory"
                | "ephemeral-storage"
                | "requests.cpu"
                | "requests.memory"
                | "requests.storage"
                | "requests.ephemeral-storage"
                | "limits.cpu"
                | "limits.memory"
                | "limits.ephemeral-storage"
        )
        || is_object_count(name)
}

fn is_object_count(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "persistentvolumeclaims"
            | "configmaps"
            | "services.nodeports"
            | "services.loadbalancers"
    )
}

fn is_standard_resource(name: &str) -> bool {
    name == "storage" || is_standard_quota_resource(name)
}

fn is_integer(name: &str) -> bool {
    is_object_count(name) || is_extended(name)
}

fn is_standard_container_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_page(name)
}

/// Resources a pod as a whole may ask for.
pub(crate) fn is_pod_level_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_huge_page(name)
}

pub(crate) fn validate_resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    let messages = names::is_qualified_name(name);
    if !messages.is_empty() {
        errors.invalid_each(path, name, messages);
    } else if !name.contains('/') && !is_standard_resource(name) {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
    }
}

pub(crate) fn validate_container_resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    validate_resource_name(name, path, errors);
    if !name.contains('/') {
        if !is_standard_container_resource(name) {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

fn validate_pod_resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    let found = errors.len();
    validate_resource_name(name, path, errors);
    if errors.len() == found && !is_pod_level_resource(name) {
        errors.not_supported(path, name, &["cpu", "hugepages-", "memory"]);
    }
}

pub(crate) fn validate_quota_resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    validate_resource_name(name, path, errors);
    if !name.contains('/') && !is_standard_quota_resource(name) {
        errors.invalid(path, name, "must be a standard resource for quota");
    }
}

/// Not negative, and whole where the resource cannot be divided.
pub(crate) fn validate_quantity_value(name: &str, value: &Quantity, path: &Path, errors: &mut ErrorList) {
    if quantity::is_negative(value) {
        errors.invalid(path, canonical(value), MUST_NOT_BE_NEGATIVE);
    }
    if is_integer(name) && amount(value).milli_value() % 1000 != 0 {
        errors.invalid(path, canonical(value), MUST_BE_INTEGER);
    }
}

pub(crate) fn validate_positive_quantity(value: &Quantity, path: &Path, errors: &mut ErrorList) {
    if !quantity::is_positive(value) {
        errors.invalid(path, canonical(value), MUST_BE_POSITIVE);
    }
}

/// Not negative, in the words used for capacities.
pub(crate) fn validate_basic_resource(value: &Quantity, path: &Path, errors: &mut ErrorList) {
    let number = amount(value).value();
    if number < 0 {
        errors.invalid(path, number, "must be a valid resource quantity");
    }
}

/// `hugepages-2Mi` only comes in whole pages.
fn is_huge_page_value_divisible(name: &str, value: &Quantity) -> bool {
    let Some(size) = name.strip_prefix("hugepages-").and_then(quantity::parse) else { return false };
    size.value() > 0 && size.milli_value() % 1000 == 0 && amount(value).value() % size.value() == 0
}

pub(crate) fn huge_page_values_are_divisible(list: &ResourceList) -> bool {
    list.pairs().all(|(name, value)| !is_huge_page(name) || is_huge_page_value_divisible(name, value))
}

pub(crate) fn validate_container_resources(
    resources: &ResourceRequirements,
    claim_names: Option<&BTreeSet<&str>>,
    path: &Path,
    options: &PodOptions,
    errors: &mut ErrorList,
) {
    validate_requirements(resources, validate_container_resource_name, claim_names, path, options, errors);
}

fn validate_requirements(
    resources: &ResourceRequirements,
    name_fn: fn(&str, &Path, &mut ErrorList),
    claim_names: Option<&BTreeSet<&str>>,
    path: &Path,
    options: &PodOptions,
    errors: &mut ErrorList,
) {
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let (mut compute, mut huge_pages) = (false, false);
    let mut validate_one = |name: &str, value: &Quantity, path: &Path, errors: &mut ErrorList| {
        name_fn(name, path, errors);
        validate_quantity_value(name, value, path, errors);
        compute |= matches!(name, "cpu" | "memory");
    };
    let mut validate_huge_page = |name: &str, value: &Quantity, path: &Path, errors: &mut ErrorList| {
        if !is_huge_page(name) {
            return;
        }
        huge_pages = true;
        if !options.allow_indivisible_huge_pages_values && !is_huge_page_value_divisible(name, value) {
            let shown = canonical(value);
            let detail = format!("{shown} is not positive integer multiple of {name}");
            errors.invalid(path, shown, detail);
        }
    };
    for (name, value) in resources.limits.pairs() {
        let path = limits_path.key(name);
        validate_one(name, value, &path, errors);
        validate_huge_page(name, value, &path, errors);
    }
    for (name, value) in resources.requests.pairs() {
        let path = requests_path.key(name);
        validate_one(name, value, &path, errors);
        match resources.limits.value(name) {
            Some(limit) => {
                let order = compare(value, limit);
                if order != Ordering::Equal && !is_overcommit_allowed(name) {
                    let detail = format!("must be equal to {name} limit of {}", canonical(limit));
                    errors.invalid(&requests_path, canonical(value), detail);
                } else if order == Ordering::Greater {
                    let detail = format!("must be less than or equal to {name} limit of {}", canonical(limit));
                    errors.invalid(&requests_path, canonical(value), detail);
                }
            }
            None if !is_overcommit_allowed(name) => {
                errors.required(&limits_path, "Limit must be set for non overcommitable resources");
            }
            None => {}
        }
        validate_huge_page(name, value, &path, errors);
    }
    if huge_pages && !compute {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
    validate_claims(resources.claims.items(), claim_names, &path.child("claims"), errors);
}

fn validate_claims(claims: &[ResourceClaim], pod_claims: Option<&BTreeSet<&str>>, path: &Path, errors: &mut ErrorList) {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for (index, claim) in claims.iter().enumerate() {
        let path = path.index(index);
        let name = claim.name.as_str();
        if name.is_empty() {
            errors.required(path, "");
            continue;
        }
        if taken.contains(name) {
            errors.duplicate(&path, name);
        } else {
            let request = claim.request.text();
            let mut key = name.to_owned();
            if !request.is_empty() {
                validate_dns1123_label(request, path.child("request"), errors);
                key = format!("{name}/{request}");
            }
            if taken.contains(&key) {
                errors.duplicate(&path, key.as_str());
            } else if request.is_empty() {
                for _ in taken.iter().filter(|key| key.split_once('/').is_some_and(|(claim, _)| claim == name)) {
                    errors.duplicate(&path, name);
                }
            }
            taken.insert(key);
        }
        if !pod_claims.is_some_and(|claims| claims.contains(name)) {
            let mut error = Error::not_found(&path, name);
            let known: Vec<&str> = pod_claims.into_iter().flatten().copied().collect();
            error.detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
            error.detail +=
                &if known.is_empty() { " which is empty".to_owned() } else { format!(": {}", known.join(", ")) };
            errors.push(error);
        }
    }
}

pub(crate) fn validate_pod_resources(
    spec: &PodSpec,
    claim_names: &BTreeSet<&str>,
    path: &Path,
    options: &PodOptions,
    errors: &mut ErrorList,
) {
    let Some(resources) = &spec.resources else { return };
    let path = path.child("resources");
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        errors.forbidden(path, "may not be set for a windows pod");
        return;
    }
    if resources.claims.is_some() {
        errors.forbidden(path.child("claims"), "claims may not be set for Resources at pod-level");
    }
    validate_requirements(resources, validate_pod_resource_name, Some(claim_names), &path, options, errors);

    for (name, containers) in &aggregate(spec, |resources| &resources.requests) {
        if let Some(pod) = resources.requests.value(name).filter(|pod| *containers > amount(pod)) {
            let detail = format!("must be greater than or equal to aggregate container requests of {containers}");
            errors.invalid(path.child("requests").key(name), canonical(pod), detail);
        }
    }
    for (name, containers) in &aggregate(spec, |resources| &resources.limits) {
        if !is_huge_page(name) {
            continue;
        }
        if let Some(pod) = resources.limits.value(name).filter(|pod| *containers > amount(pod)) {
            let detail = format!("must be greater than or equal to aggregate container limits of {containers}");
            errors.invalid(path.child("limits").key(name), canonical(pod), detail);
        }
    }
    for (index, container) in spec.containers.iter().enumerate() {
        for (name, limit) in container.resources.iter().flat_map(|resources| resources.limits.pairs()) {
            if let Some(pod) = resources.limits.value(name).filter(|pod| compare(limit, pod) == Ordering::Greater) {
                let path = path.child("containers").index(index).key(name).child("limits");
                let detail = format!("must be less than or equal to pod limits of {}", canonical(pod));
                errors.invalid(path, canonical(limit), detail);
            }
        }
    }
}

pub(crate) type Amounts = BTreeMap<String, quantity::Amount>;

/// What all containers together need: the sum of the regular ones and sidecars, or the most that any
/// moment of initialization needs if that is more.
pub(crate) fn aggregate(spec: &PodSpec, list: fn(&ResourceRequirements) -> &ResourceList) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, container.resources.as_ref().map(list));
    }
    let (mut sidecars, mut initialization) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.items() {
        let own = container.resources.as_ref().map(list);
        let mut needed = Amounts::new();
        if is_restartable_init(container) {
            add(&mut total, own);
            add(&mut sidecars, own);
            needed.clone_from(&sidecars);
        } else {
            add(&mut needed, own);
            for (name, sidecar) in &sidecars {
                needed
                    .entry(name.clone())
                    .and_modify(|sum| *sum = quantity::sum(sum, sidecar))
                    .or_insert_with(|| sidecar.clone());
            }
        }
        raise(&mut initialization, needed);
    }
    raise(&mut total, initialization);
    total
}

fn add(sum: &mut Amounts, list: Option<&ResourceList>) {
    for (name, value) in list.into_iter().flat_map(OptMap::pairs) {
        let value = amount(value);
        sum.entry(name.clone()).and_modify(|sum| *sum = quantity::sum(sum, &value)).or_insert(value);
    }
}

fn raise(total: &mut Amounts, other: Amounts) {
    for (name, value) in other {
        match total.get_mut(&name) {
            Some(known) if *known >= value => {}
            Some(known) => *known = value,
            None => {
                total.insert(name, value);
            }
        }
    }
}
