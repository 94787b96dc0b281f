//! Limit ranges: defaults for containers that say nothing, bounds for those that do.
//!
//! Behaves as `plugin/pkg/admission/limitranger/admission.go`, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::{
    Container, LimitRange, LimitRangeItem, PersistentVolumeClaim, Pod, PodSpec, ResourceRequirements,
};
use rkube_api::meta::pkg::api::resource::Quantity as Text;
use rkube_api::pod_resources::{self, ResourceList, Side};
use rkube_apimachinery::quantity::Quantity;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Objects, Plugin, aggregate, forbidden, object};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
const CONTAINER: &str = "Container";
const POD: &str = "Pod";
const CLAIM: &str = "PersistentVolumeClaim";

type Amounts = BTreeMap<String, Text>;

pub(super) struct LimitRanger {
    objects: Objects,
}

impl LimitRanger {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    /// The limit ranges of the namespace, for requests they apply to.
    async fn limits(&self, attributes: &Attributes) -> Result<Vec<Arc<LimitRange>>, ApiStatus> {
        let is_deleting = match &attributes.old_object {
            Some(old) => old.value().is_ok_and(|old| !old["metadata"]["deletionTimestamp"].is_null()),
            None => false,
        };
        if is_deleting || target(attributes).is_none() {
            return Ok(Vec::new());
        }
        self.objects.list::<LimitRange>(&attributes.namespace).await
    }

    async fn mutate(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        if target(attributes) != Some(Target::Pod) {
            return Ok(());
        }
        for range in self.limits(attributes).await? {
            set_defaults(object!(attributes, Pod), &range);
        }
        Ok(())
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        for range in self.limits(attributes).await? {
            let items = range.spec.as_ref().map(|spec| spec.limits.as_slice()).unwrap_or_default();
            let errors = match target(attributes) {
                Some(Target::Pod) => check_pod(items, object!(attributes, Pod)),
                Some(Target::Claim) => check_claim(items, object!(attributes, PersistentVolumeClaim)),
                None => Vec::new(),
            };
            if !errors.is_empty() {
                return Err(forbidden(attributes, aggregate(&errors)));
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Pod,
    Claim,
}

/// Pods when they are made or resized (their resources cannot change otherwise), and claims.
fn target(attributes: &Attributes) -> Option<Target> {
    let is_core = attributes.resource.group.is_empty();
    match (attributes.resource.plural.as_ref(), attributes.subresource.as_str(), attributes.operation) {
        ("pods", "", Operation::Create) | ("pods", "resize", Operation::Update) if is_core => Some(Target::Pod),
        ("persistentvolumeclaims", "", _) if is_core => Some(Target::Claim),
        _ => None,
    }
}

fn set_defaults(pod: &mut Pod, range: &LimitRange) {
    let mut requests = Amounts::new();
    let mut limits = Amounts::new();
    for item in range.spec.iter().flat_map(|spec| &spec.limits).filter(|item| item.type_ == CONTAINER) {
        requests.extend(item.default_request.iter().flatten().map(|(name, amount)| (name.clone(), amount.clone())));
        limits.extend(item.default.iter().flatten().map(|(name, amount)| (name.clone(), amount.clone())));
    }
    let mut notes = Vec::new();
    let spec = pod.spec.get_or_insert_default();
    for container in &mut spec.containers {
        fill(container, "container", &requests, &limits, &mut notes);
    }
    for container in spec.init_containers.iter_mut().flatten() {
        fill(container, "init container", &requests, &limits, &mut notes);
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod.metadata.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), text);
    }
}

fn fill(container: &mut Container, kind: &str, requests: &Amounts, limits: &Amounts, notes: &mut Vec<String>) {
    if requests.is_empty() && limits.is_empty() {
        return;
    }
    let resources = container.resources.get_or_insert_default();
    let mut add = |what: &str, have: &mut Option<Amounts>, defaults: &Amounts| {
        let missing = |have: &Amounts| -> Vec<String> {
            defaults.keys().filter(|name| !have.contains_key(*name)).cloned().collect()
        };
        let have = have.get_or_insert_default();
        let set = missing(have);
        have.extend(defaults.iter().filter(|(name, _)| set.contains(name)).map(|(n, a)| (n.clone(), a.clone())));
        if !set.is_empty() {
            notes.push(format!("{} {what} for {kind} {}", set.join(", "), container.name));
        }
    };
    let ResourceRequirements { requests: have_requests, limits: have_limits, .. } = resources;
    add("request", have_requests, requests);
    add("limit", have_limits, limits);
}

fn check_pod(items: &[LimitRangeItem], pod: &Pod) -> Vec<String> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let mut errors = Vec::new();
    for item in items {
        match item.type_.as_str() {
            CONTAINER => {
                for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
                    let requests = pod_resources::of(container.resources.as_ref(), Side::Requests);
                    let limits = pod_resources::of(container.resources.as_ref(), Side::Limits);
                    check(item, &requests, &limits, &mut errors);
                }
            }
            POD => {
                check(item, &of_pod(spec, Side::Requests), &of_pod(spec, Side::Limits), &mut errors);
            }
            _ => {}
        }
    }
    errors
}

/// A pod's amounts as limits see them: overhead, which its author does not set, is not counted.
fn of_pod(spec: &PodSpec, side: Side) -> ResourceList {
    let mut total = pod_resources::of_containers(spec, side);
    let own = pod_resources::of(spec.resources.as_ref(), side);
    total.extend(own.into_iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")));
    total
}

/// Claims have requests only.
fn check_claim(items: &[LimitRangeItem], claim: &PersistentVolumeClaim) -> Vec<String> {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = pod_resources::parse(resources.and_then(|resources| resources.requests.as_ref()));
    let mut errors = Vec::new();
    for item in items.iter().filter(|item| item.type_ == CLAIM) {
        for (name, bound) in pod_resources::parse(item.min.as_ref()) {
            errors.extend(below_minimum(CLAIM, &name, &bound, requests.get(&name), None));
        }
        for (name, bound) in pod_resources::parse(item.max.as_ref()) {
            let head = format!("maximum {name} usage per {CLAIM} is {bound}");
            match requests.get(&name) {
                None => errors.push(format!("{head}.  No request is specified")),
                Some(request) if *request > bound => errors.push(format!("{head}, but request is {request}")),
                Some(_) => {}
            }
        }
    }
    errors
}

fn check(item: &LimitRangeItem, requests: &ResourceList, limits: &ResourceList, errors: &mut Vec<String>) {
    let kind = item.type_.as_str();
    for (name, bound) in pod_resources::parse(item.min.as_ref()) {
        errors.extend(below_minimum(kind, &name, &bound, requests.get(&name), limits.get(&name)));
    }
    for (name, bound) in pod_resources::parse(item.max.as_ref()) {
        errors.extend(above_maximum(kind, &name, &bound, requests.get(&name), limits.get(&name)));
    }
    for (name, bound) in pod_resources::parse(item.max_limit_request_ratio.as_ref()) {
        errors.extend(above_ratio(kind, &name, &bound, requests.get(&name), limits.get(&name)));
    }
}

fn below_minimum(
    kind: &str,
    name: &str,
    bound: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let head = format!("minimum {name} usage per {kind} is {bound}");
    match (request, limit) {
        (None, _) => Some(format!("{head}.  No request is specified")),
        (Some(request), _) if request < bound => Some(format!("{head}, but request is {request}")),
        (_, Some(limit)) if limit < bound => Some(format!("{head}, but limit is {limit}")),
        _ => None,
    }
}

fn above_maximum(
    kind: &str,
    name: &str,
    bound: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let head = format!("maximum {name} usage per {kind} is {bound}");
    match (limit, request) {
        (None, _) => Some(format!("{head}.  No limit is specified")),
        (Some(limit), _) if limit > bound => Some(format!("{head}, but limit is {limit}")),
        (_, Some(request)) if request > bound => Some(format!("{head}, but request is {request}")),
        _ => None,
    }
}

fn above_ratio(
    kind: &str,
    name: &str,
    bound: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let head = format!("{name} max limit to request ratio per {kind} is {bound}");
    let Some(request) = request.filter(|request| !request.is_zero()) else {
        return Some(format!("{head}, but no request is specified or request is 0"));
    };
    let Some(limit) = limit.filter(|limit| !limit.is_zero()) else {
        return Some(format!("{head}, but no limit is specified or limit is 0"));
    };
    let ratio = limit.as_f64() / request.as_f64();
    (ratio > bound.as_f64()).then(|| format!("{head}, but provided ratio is {ratio:.6}"))
}

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.mutate(attributes))
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}
