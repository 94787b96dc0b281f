//! What an object uses of a resource quota, and which quotas it falls under. Admission charges by it and
//! the quota controller recounts by it, so they cannot disagree.
//!
//! Behaves as `pkg/quota/v1/evaluator/core`, v1.36.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, PodAffinityTerm, ResourceQuota, ScopedResourceSelectorRequirement, Service,
};
use rkube_apimachinery::quantity::{Format, Quantity};

use crate::Kind;
use crate::kind::DecodeError;
use crate::object::StoredObject;
use crate::pod_resources::{self, ResourceList, Side};
use crate::volumes;

/// An object as quota sees it.
#[derive(Clone, Debug)]
pub enum Subject<'a> {
    Pod(&'a Pod),
    Service(&'a Service),
    Claim(&'a PersistentVolumeClaim),
    /// Any other kind is only counted.
    Other,
}

/// Kinds whose objects use more than their count.
pub fn is_measured(group: &str, plural: &str) -> bool {
    group.is_empty() && matches!(plural, "pods" | "services" | "persistentvolumeclaims")
}

/// `count/deployments.apps`, `count/pods`
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// Kinds that quotas could count before all kinds could be, under their plain names.
const LEGACY_COUNTS: [&str; 4] = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];

/// What a stored object uses.
pub fn usage_of(object: &StoredObject, group: &str, plural: &str, now: Timestamp) -> Result<ResourceList, DecodeError> {
    Ok(match (group, plural) {
        ("", Pod::PLURAL) => usage(&Subject::Pod(object.typed::<Pod>()?.as_ref()), group, plural, now),
        ("", Service::PLURAL) => usage(&Subject::Service(object.typed::<Service>()?.as_ref()), group, plural, now),
        ("", PersistentVolumeClaim::PLURAL) => {
            usage(&Subject::Claim(object.typed::<PersistentVolumeClaim>()?.as_ref()), group, plural, now)
        }
        _ => usage(&Subject::Other, group, plural, now),
    })
}

/// What an object uses, its own count included.
pub fn usage(subject: &Subject<'_>, group: &str, plural: &str, now: Timestamp) -> ResourceList {
    let mut used = ResourceList::from([(count_name(group, plural), one())]);
    match subject {
        Subject::Pod(pod) => {
            if is_charged(pod, now) {
                pod_resources::add_all(&mut used, &pod_usage(pod));
            }
        }
        Subject::Service(service) => pod_resources::add_all(&mut used, &service_usage(service)),
        Subject::Claim(claim) => pod_resources::add_all(&mut used, &claim_usage(claim)),
        Subject::Other => {
            if group.is_empty() && LEGACY_COUNTS.contains(&plural) {
                used.insert(plural.to_owned(), one());
            }
        }
    }
    used
}

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

/// Finished pods, and pods past their grace period, hold nothing.
fn is_charged(pod: &Pod, now: Timestamp) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Failed" | "Succeeded")) {
        return false;
    }
    match (&pod.metadata.deletion_timestamp, pod.metadata.deletion_grace_period_seconds) {
        (Some(deleted), Some(grace)) => {
            let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
            deleted.0.checked_add(grace).is_ok_and(|gone| now <= gone)
        }
        _ => true,
    }
}

fn pod_usage(pod: &Pod) -> ResourceList {
    let mut used = ResourceList::from([("pods".to_owned(), one())]);
    let Some(spec) = pod.spec.as_ref() else { return used };
    requested(&mut used, &pod_resources::of_pod(spec, Side::Requests));
    limited(&mut used, &pod_resources::of_pod(spec, Side::Limits));
    used
}

fn requested(used: &mut ResourceList, requests: &ResourceList) {
    for (name, amount) in requests {
        let is_plain =
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if is_plain {
            used.insert(name.clone(), amount.clone());
        }
        if is_plain || is_extended(name) {
            used.insert(format!("requests.{name}"), amount.clone());
        }
    }
}

fn limited(used: &mut ResourceList, limits: &ResourceList) {
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), amount.clone());
        }
    }
}

/// `example.com/gpu`: a name with a domain that is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io")) && !name.starts_with("requests.")
}

fn service_usage(service: &Service) -> ResourceList {
    let mut used = ResourceList::from([("services".to_owned(), one())]);
    let Some(spec) = service.spec.as_ref() else { return used };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let count = |n: usize| Quantity::new(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSi);
    match spec.type_.as_deref() {
        Some("NodePort") => {
            used.insert("services.nodeports".to_owned(), count(ports.len()));
        }
        Some("LoadBalancer") => {
            used.insert("services.loadbalancers".to_owned(), one());
            let allocated = if spec.allocate_load_balancer_node_ports == Some(false) {
                ports.iter().filter(|port| port.node_port.is_some_and(|port| port != 0)).count()
            } else {
                ports.len()
            };
            used.insert("services.nodeports".to_owned(), count(allocated));
        }
        _ => {}
    }
    used
}

fn claim_usage(claim: &PersistentVolumeClaim) -> ResourceList {
    let mut used = ResourceList::from([("persistentvolumeclaims".to_owned(), one())]);
    let Some(spec) = claim.spec.as_ref() else { return used };
    let class = Some(volumes::claim_class(claim)).filter(|class| !class.is_empty());
    let by_class = |name: &str| class.map(|class| format!("{class}.storageclass.storage.k8s.io/{name}"));
    used.extend(by_class("persistentvolumeclaims").map(|name| (name, one())));
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    if let Some(storage) = pod_resources::parse(requests).remove("storage") {
        // A volume that is being expanded, or could not be, holds what was allocated for it.
        let status = claim.status.as_ref();
        let allocated = pod_resources::parse(status.and_then(|status| status.allocated_resources.as_ref()));
        let mut storage =
            allocated.get("storage").filter(|allocated| **allocated > storage).unwrap_or(&storage).clone();
        storage.round_up(0);
        used.extend(by_class("requests.storage").map(|name| (name, storage.clone())));
        used.insert("requests.storage".to_owned(), storage);
    }
    used
}

/// Whether a quota with these scopes is about the object. Pods have scopes, and claims one of their own; a quota
/// that has some is about nothing else.
pub fn in_scope(quota: &ResourceQuota, subject: &Subject<'_>) -> bool {
    let Some(spec) = quota.spec.as_ref() else { return true };
    let plain = spec.scopes.iter().flatten().map(|scope| ScopedResourceSelectorRequirement {
        scope_name: scope.clone(),
        operator: "Exists".to_owned(),
        values: None,
    });
    let selected = spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten().cloned());
    plain.chain(selected).all(|requirement| match subject {
        Subject::Pod(pod) => pod_in_scope(pod, &requirement),
        Subject::Claim(claim) => claim_in_scope(claim, &requirement),
        Subject::Service(_) | Subject::Other => false,
    })
}

fn pod_in_scope(pod: &Pod, requirement: &ScopedResourceSelectorRequirement) -> bool {
    let spec = pod.spec.as_ref();
    let has_deadline = spec.is_some_and(|spec| spec.active_deadline_seconds.is_some_and(|seconds| seconds >= 0));
    match requirement.scope_name.as_str() {
        "Terminating" => has_deadline,
        "NotTerminating" => !has_deadline,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => in_priority_class(pod, requirement),
        "CrossNamespacePodAffinity" => has_cross_namespace_affinity(pod),
        _ => false,
    }
}

fn in_priority_class(pod: &Pod, requirement: &ScopedResourceSelectorRequirement) -> bool {
    let class =
        pod.spec.as_ref().and_then(|spec| spec.priority_class_name.as_deref()).filter(|class| !class.is_empty());
    let is_listed = class.is_some_and(|class| requirement.values.iter().flatten().any(|value| value == class));
    match requirement.operator.as_str() {
        "Exists" => class.is_some(),
        "DoesNotExist" => class.is_none(),
        "In" => is_listed,
        "NotIn" => !is_listed,
        _ => false,
    }
}

fn claim_in_scope(claim: &PersistentVolumeClaim, requirement: &ScopedResourceSelectorRequirement) -> bool {
    if requirement.scope_name != "VolumeAttributesClass" {
        return false;
    }
    let mut classes = volumes::attributes_classes(claim);
    let is_listed = |class: &String| requirement.values.iter().flatten().any(|value| value == class);
    match requirement.operator.as_str() {
        "Exists" => classes.next().is_some(),
        "DoesNotExist" => classes.next().is_none(),
        "In" => classes.any(is_listed),
        "NotIn" => {
            let mut classes = classes.peekable();
            classes.peek().is_none() || classes.any(|class| !is_listed(class))
        }
        _ => false,
    }
}

/// No container asks for CPU or memory, nor does the pod.
fn is_best_effort(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return true };
    let asks = |resources| {
        [Side::Requests, Side::Limits].into_iter().any(|side| {
            let list = pod_resources::of(resources, side);
            ["cpu", "memory"].iter().any(|name| list.get(*name).is_some_and(|amount| !amount.is_zero()))
        })
    };
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    !asks(spec.resources.as_ref()) && !containers.any(|container| asks(container.resources.as_ref()))
}

fn has_cross_namespace_affinity(pod: &Pod) -> bool {
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) else { return false };
    let crosses = |term: &PodAffinityTerm| {
        term.namespaces.as_ref().is_some_and(|names| !names.is_empty()) || term.namespace_selector.is_some()
    };
    let near = affinity.pod_affinity.as_ref();
    let far = affinity.pod_anti_affinity.as_ref();
    let required = near
        .iter()
        .flat_map(|rules| rules.required_during_scheduling_ignored_during_execution.iter().flatten())
        .chain(far.iter().flat_map(|rules| rules.required_during_scheduling_ignored_during_execution.iter().flatten()));
    let preferred = near
        .iter()
        .flat_map(|rules| rules.preferred_during_scheduling_ignored_during_execution.iter().flatten())
        .chain(
            far.iter().flat_map(|rules| rules.preferred_during_scheduling_ignored_during_execution.iter().flatten()),
        );
    required.into_iter().any(crosses) || preferred.into_iter().any(|weighted| crosses(&weighted.pod_affinity_term))
}

/// Compute resources a quota limits but a pod's container does not mention, as
/// `must specify limits.cpu for: a,b; requests.memory for: c`. Limits can only be kept by who has some.
pub fn missing_constraints<'a>(pod: &Pod, limited: impl Iterator<Item = &'a str>) -> Option<String> {
    const ENFORCED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
    let spec = pod.spec.as_ref()?;
    let has_pod_level = spec.resources.as_ref().is_some_and(|resources| {
        resources.requests.as_ref().is_some_and(|list| !list.is_empty())
            || resources.limits.as_ref().is_some_and(|list| !list.is_empty())
    });
    if has_pod_level {
        return None;
    }
    let required: Vec<&str> = limited.filter(|name| ENFORCED.contains(name)).collect();
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let mut given = ResourceList::new();
        requested(&mut given, &pod_resources::of(container.resources.as_ref(), Side::Requests));
        limited_by(&mut given, container.resources.as_ref());
        for name in required.iter().filter(|name| !given.contains_key(**name)) {
            missing.entry(name).or_default().push(&container.name);
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts = missing.into_iter().map(|(name, mut containers)| {
        containers.sort_unstable();
        format!("{name} for: {}", containers.join(","))
    });
    Some(format!("must specify {}", parts.collect::<Vec<_>>().join("; ")))
}

fn limited_by(used: &mut ResourceList, resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>) {
    limited(used, &pod_resources::of(resources, Side::Limits));
}

/// The group and plural of the kind that `name` in a quota is about, if it is a name that quotas have.
pub fn kind_of(name: &str) -> Option<(&str, &str)> {
    if let Some(counted) = name.strip_prefix("count/") {
        return Some(counted.split_once('.').map_or(("", counted), |(plural, group)| (group, plural)));
    }
    let plural = match name {
        "services" | "services.nodeports" | "services.loadbalancers" => "services",
        "persistentvolumeclaims" | "requests.storage" => "persistentvolumeclaims",
        "pods" | "cpu" | "memory" | "ephemeral-storage" => "pods",
        "limits.cpu" | "limits.memory" | "limits.ephemeral-storage" => "pods",
        _ if LEGACY_COUNTS.contains(&name) => name,
        _ if name.starts_with("hugepages-") => "pods",
        _ if name.ends_with(".storageclass.storage.k8s.io/requests.storage")
            || name.ends_with(".storageclass.storage.k8s.io/persistentvolumeclaims") =>
        {
            "persistentvolumeclaims"
        }
        _ => is_pod_request(name.strip_prefix("requests.")?).then_some("pods")?,
    };
    Some(("", plural))
}

/// What may follow `requests.` in the name of a pod's resource.
fn is_pod_request(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
        || name.starts_with("hugepages-")
        || name.starts_with("deviceclass.resource.kubernetes.io/")
        || is_extended(name)
}

/// Whether `name` in a quota is about objects of this kind.
pub fn is_about(name: &str, group: &str, plural: &str) -> bool {
    kind_of(name) == Some((group, plural))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn pod(value: Value) -> Pod {
        Pod::from_value(value).unwrap()
    }

    fn show(used: &ResourceList) -> String {
        used.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_running_pod_uses_what_it_asks_for_and_a_finished_one_only_its_count() {
        let resources = json!({ "requests": { "cpu": "100m", "example.com/gpu": "2" }, "limits": { "memory": "1Gi" } });
        let mut value = json!({ "spec": { "containers": [{ "name": "a", "resources": resources }] } });
        assert_eq!(
            show(&usage(&Subject::Pod(&pod(value.clone())), "", "pods", now())),
            "count/pods=1 cpu=100m limits.memory=1Gi pods=1 requests.cpu=100m requests.example.com/gpu=2"
        );
        value["status"] = json!({ "phase": "Succeeded" });
        assert_eq!(show(&usage(&Subject::Pod(&pod(value)), "", "pods", now())), "count/pods=1");
    }

    #[test]
    fn a_load_balancer_uses_node_ports_unless_it_takes_none() {
        let service = |extra: Value| {
            let mut value = json!({ "spec": { "type": "LoadBalancer", "ports": [{ "port": 1 }, { "port": 2 }] } });
            value["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let service = Service::from_value(value).unwrap();
            show(&usage(&Subject::Service(&service), "", "services", now()))
        };
        assert_eq!(service(json!({})), "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2");
        assert_eq!(
            service(json!({ "allocateLoadBalancerNodePorts": false })),
            "count/services=1 services=1 services.loadbalancers=1 services.nodeports=0"
        );
    }

    #[test]
    fn every_name_is_about_one_kind() {
        let cases = [
            ("count/deployments.apps", Some(("apps", "deployments"))),
            ("count/pods", Some(("", "pods"))),
            ("secrets", Some(("", "secrets"))),
            ("requests.example.com/gpu", Some(("", "pods"))),
            ("requests.hugepages-2Mi", Some(("", "pods"))),
            ("requests.storage", Some(("", "persistentvolumeclaims"))),
            ("gold.storageclass.storage.k8s.io/requests.storage", Some(("", "persistentvolumeclaims"))),
            ("limits.example.com/gpu", None),
            ("example.com/gpu", None),
        ];
        for (name, kind) in cases {
            assert_eq!(kind_of(name), kind, "{name}");
        }
        assert_eq!(show(&usage(&Subject::Other, "", "secrets", now())), "count/secrets=1 secrets=1");
    }

    #[test]
    fn a_claim_holds_what_is_allocated_and_counts_for_its_attributes_class() {
        let claim = PersistentVolumeClaim::from_value(json!({
            "spec": { "storageClassName": "gold", "volumeAttributesClassName": "fast",
                "resources": { "requests": { "storage": "1Gi" } } },
            "status": { "allocatedResources": { "storage": "2Gi" } },
        }))
        .unwrap();
        assert_eq!(
            show(&usage(&Subject::Claim(&claim), "", "persistentvolumeclaims", now())),
            "count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
             gold.storageclass.storage.k8s.io/requests.storage=2Gi persistentvolumeclaims=1 requests.storage=2Gi"
        );
        let scoped = |operator: &str, values: &[&str]| {
            let selector = json!({ "scopeName": "VolumeAttributesClass", "operator": operator, "values": values });
            let quota = json!({ "spec": { "scopeSelector": { "matchExpressions": [selector] } } });
            in_scope(&ResourceQuota::from_value(quota).unwrap(), &Subject::Claim(&claim))
        };
        assert!(scoped("In", &["fast"]) && scoped("Exists", &[]) && scoped("NotIn", &["slow"]));
        assert!(!scoped("In", &["slow"]) && !scoped("DoesNotExist", &[]));
    }

    #[test]
    fn scopes_select_pods() {
        let quota = |scopes: Value| ResourceQuota::from_value(json!({ "spec": scopes })).unwrap();
        let plain = pod(json!({ "spec": { "containers": [{ "name": "a" }] } }));
        let short =
            pod(json!({ "spec": { "activeDeadlineSeconds": 5, "priorityClassName": "high", "containers": [] } }));
        let matches = |scopes: Value, pod: &Pod| in_scope(&quota(scopes), &Subject::Pod(pod));
        assert!(matches(json!({ "scopes": ["BestEffort", "NotTerminating"] }), &plain));
        assert!(!matches(json!({ "scopes": ["Terminating"] }), &plain));
        assert!(matches(json!({ "scopes": ["Terminating"] }), &short));
        let high = json!({ "scopeSelector": { "matchExpressions": [{ "scopeName": "PriorityClass", "operator": "In", "values": ["high"] }] } });
        assert!(matches(high.clone(), &short));
        assert!(!matches(high.clone(), &plain));
        assert!(!in_scope(&quota(high), &Subject::Other));
    }

    #[test]
    fn containers_must_mention_what_the_quota_limits() {
        let value = json!({ "spec": { "containers": [
            { "name": "b" }, { "name": "a", "resources": { "requests": { "cpu": "1" }, "limits": { "cpu": "1" } } }
        ] } });
        let text = missing_constraints(&pod(value), ["limits.cpu", "requests.memory", "pods"].into_iter());
        assert_eq!(text.as_deref(), Some("must specify limits.cpu for: b; requests.memory for: a,b"));
    }
}
