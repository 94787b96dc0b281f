//! Updates of a pod's status, which come from the kubelet and the scheduler.
//!
//! Behaves as ValidatePodStatusUpdate of pkg/apis/core/validation/validation.go, v1.36.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::k8s::core::v1::{
    Container, ContainerStatus, LinuxContainerUser, Pod, PodExtendedResourceClaimStatus, PodSpec, PodStatus,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use super::pod_annotations::validate_pod_annotation_updates;
use super::pod_options::PodOptions;
use crate::common::meta::validate_object_meta_update;
use crate::common::names::{
    dns_subdomain, is_dual_stack, validate_dns1123_label, validate_ip, validate_qualified_name,
};
use crate::common::report::{FIELD_IMMUTABLE, OptList, OptMap, OptText, Report, shown};

const HEALTH_MESSAGE_LENGTH_MAX: usize = 1024;

/// `PUT pods/x/status`.
pub fn validate_status_update(new: &Pod, old: &Pod) -> ErrorList {
    let mut errors = ErrorList::new();
    let (new_spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let (new_status, old_status) = (new.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
    let options = PodOptions::for_pod(Some((&old_spec, &old.metadata)));
    let meta_path = Path::new("metadata");
    validate_object_meta_update(&new.metadata, &old.metadata, &meta_path, &mut errors);
    validate_pod_annotation_updates(new, old, &meta_path.child("annotations"), &options, &mut errors);

    let path = Path::new("status");
    for (index, condition) in new_status.conditions.items().iter().enumerate() {
        let path = path.child("conditions").index(index);
        if let Some(generation) = condition.observed_generation.filter(|generation| *generation < 0) {
            errors.invalid(path.child("observedGeneration"), generation, "must be a non-negative integer");
        }
        if !matches!(condition.type_.as_str(), "PodScheduled" | "Ready" | "Initialized") {
            validate_qualified_name(&condition.type_, path.child("Type"), &mut errors);
        }
    }
    if new_spec.node_name.text() != old_spec.node_name.text() {
        errors.forbidden(path.child("nodeName"), "may not be changed directly");
    }
    validate_nomination(&new_status, &old_status, &old_spec, &path.child("nominatedNodeName"), &mut errors);
    if let Some(generation) = new_status.observed_generation.filter(|generation| *generation < 0) {
        errors.invalid(path.child("observedGeneration"), generation, "must be a non-negative integer");
    }
    if new_status.qos_class.text() != old_status.qos_class.text() {
        errors.invalid(path.child("qosClass"), new_status.qos_class.text(), FIELD_IMMUTABLE);
    }
    let lists = |status: &PodStatus| {
        [
            ("containerStatuses", status.container_statuses.clone().unwrap_or_default()),
            ("initContainerStatuses", status.init_container_statuses.clone().unwrap_or_default()),
            ("ephemeralContainerStatuses", status.ephemeral_container_statuses.clone().unwrap_or_default()),
        ]
    };
    let (new_lists, old_lists) = (lists(&new_status), lists(&old_status));
    let containers = [Some(old_spec.containers.as_slice()), Some(old_spec.init_containers.items()), None];
    for (((list, new), (_, old)), containers) in new_lists.iter().zip(&old_lists).zip(containers) {
        validate_transitions(new, old, containers, &old_spec, &path.child(list), &mut errors);
    }
    validate_claim_statuses(&new_status, &new_spec, &path, &mut errors);
    let new_ips: Vec<&str> = new_status.pod_ips.items().iter().map(|ip| ip.ip.as_str()).collect();
    let old_ips: Vec<&str> = old_status.pod_ips.items().iter().map(|ip| ip.ip.as_str()).collect();
    validate_ips(&new_ips, &old_ips, shown(&new_status.pod_ips), &path.child("podIPs"), &mut errors);
    let new_ips: Vec<&str> = new_status.host_ips.items().iter().map(|ip| ip.ip.as_str()).collect();
    let old_ips: Vec<&str> = old_status.host_ips.items().iter().map(|ip| ip.ip.as_str()).collect();
    let host_path = path.child("hostIPs");
    if let Some(first) = new_ips.first()
        && *first != new_status.host_ip.text()
    {
        errors.invalid(host_path.index(0).child("ip"), *first, "must be equal to `hostIP`");
    }
    validate_ips(&new_ips, &old_ips, shown(&new_status.host_ips), &host_path, &mut errors);
    for (list, statuses) in &new_lists {
        validate_users(statuses, &new_spec, &path.child(list), &mut errors);
    }
    let containers = [Some(new_spec.containers.as_slice()), Some(new_spec.init_containers.items()), None];
    for ((list, statuses), containers) in new_lists.iter().zip(containers) {
        validate_allocated(statuses, containers, &path.child(list), &mut errors);
    }
    errors
}

fn validate_nomination(new: &PodStatus, old: &PodStatus, old_spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let nominated = new.nominated_node_name.text();
    if nominated.is_empty() || nominated == old.nominated_node_name.text() {
        return;
    }
    errors.invalid_each(path, nominated, dns_subdomain(nominated, false));
    if !old_spec.node_name.is_blank() {
        errors.forbidden(path, "may not be set on pods that are already bound to a node");
    }
}

/// A terminated container stays so, unless its restart policy or rules say otherwise.
/// `containers` is none for ephemeral containers, which never restart.
fn validate_transitions(
    new: &[ContainerStatus],
    old: &[ContainerStatus],
    containers: Option<&[Container]>,
    spec: &PodSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    if containers.is_some() && all_containers_could_restart(spec) {
        return;
    }
    let terminated = |status: &ContainerStatus| status.state.as_ref().and_then(|state| state.terminated.clone());
    for (index, old) in old.iter().enumerate() {
        let Some(end) = terminated(old) else { continue };
        let revived = new.iter().any(|new| new.name == old.name && terminated(new).is_none());
        let container = containers.and_then(|list| list.iter().find(|container| container.name == old.name));
        if revived && !container.is_some_and(|container| should_restart(container, spec, end.exit_code)) {
            errors.forbidden(path.index(index).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

/// A rule that restarts every container makes any transition possible.
fn all_containers_could_restart(spec: &PodSpec) -> bool {
    spec.containers
        .iter()
        .chain(spec.init_containers.items())
        .flat_map(|container| container.restart_policy_rules.items())
        .any(|rule| rule.action == "RestartAllContainers")
}

/// The container's rules first, in order; then its policy; then the pod's.
fn should_restart(container: &Container, spec: &PodSpec, exit_code: i32) -> bool {
    if let Some(policy) = &container.restart_policy {
        let matching = container.restart_policy_rules.items().iter().find(|rule| {
            rule.exit_codes.as_ref().is_some_and(|codes| {
                let listed = codes.values.items().contains(&exit_code);
                match codes.operator.as_str() {
                    "In" => listed,
                    "NotIn" => !listed,
                    _ => false,
                }
            })
        });
        if matching.is_some_and(|rule| matches!(rule.action.as_str(), "Restart" | "RestartAllContainers")) {
            return true;
        }
        match policy.as_str() {
            "Always" => return true,
            "OnFailure" => return exit_code != 0,
            "Never" => return false,
            _ => {}
        }
    }
    match spec.restart_policy.text() {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    }
}

fn validate_ips(new: &[&str], old: &[&str], value: serde_json::Value, path: &Path, errors: &mut ErrorList) {
    for (index, ip) in new.iter().enumerate() {
        validate_ip(ip, old, path.index(index), errors);
    }
    if new.len() > 1 && (new.len() > 2 || !is_dual_stack(new.iter().copied())) {
        errors.invalid(path, value, "may specify no more than one IP for each IP family");
    }
}

fn validate_claim_statuses(status: &PodStatus, spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let mut taken = BTreeSet::new();
    for (index, claim) in status.resource_claim_statuses.items().iter().enumerate() {
        let path = path.child("resourceClaimStatuses").index(index);
        if !spec.resource_claims.items().iter().any(|known| known.name == claim.name) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            errors.invalid(path.child("name"), claim.name.as_str(), detail);
        }
        if !taken.insert(claim.name.as_str()) {
            errors.duplicate(path.child("name"), claim.name.as_str());
        }
        if let Some(name) = &claim.resource_claim_name {
            errors.invalid_each(path.child("resourceClaimName"), name, dns_subdomain(name, false));
        }
    }
    if let Some(extended) = &status.extended_resource_claim_status {
        validate_extended_claim(extended, spec, &path.child("extendedResourceClaimStatus"), errors);
    }
}

fn validate_extended_claim(
    status: &PodExtendedResourceClaimStatus,
    spec: &PodSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    let containers: BTreeMap<&str, &Container> = spec
        .init_containers
        .items()
        .iter()
        .chain(&spec.containers)
        .map(|container| (container.name.as_str(), container))
        .collect();
    let mappings_path = path.child("requestMappings");
    if status.request_mappings.is_empty() {
        errors.required(&mappings_path, "at least one request mapping is required");
    }
    let mut taken = BTreeSet::new();
    for (index, mapping) in status.request_mappings.iter().enumerate() {
        let item = mappings_path.index(index);
        match containers.get(mapping.container_name.as_str()) {
            None => {
                let detail = "must match the name of an entry in spec.initContainers.name or spec.containers.name";
                errors.invalid(item.child("containerName"), mapping.container_name.as_str(), detail);
            }
            Some(container) => {
                let mut requests = container.resources.iter().flat_map(|resources| resources.requests.pairs());
                if !requests.any(|(name, _)| *name == mapping.resource_name) {
                    let detail = "must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests";
                    errors.invalid(item.child("resourceName"), mapping.resource_name.as_str(), detail);
                }
            }
        }
        validate_dns1123_label(&mapping.request_name, path.child("requestName"), errors);
        if !taken.insert((&mapping.container_name, &mapping.resource_name, &mapping.request_name)) {
            errors.duplicate(item.child("containerName"), mapping.container_name.as_str());
            errors.duplicate(item.child("resourceName"), mapping.resource_name.as_str());
            errors.duplicate(item.child("requestName"), mapping.request_name.as_str());
        }
    }
    let name = status.resource_claim_name.as_str();
    if name.is_empty() {
        errors.required(path.child("resourceClaimName"), "");
    } else {
        errors.invalid_each(path.child("resourceClaimName"), name, dns_subdomain(name, false));
    }
}

fn validate_users(statuses: &[ContainerStatus], spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let os = spec.os.as_ref().map_or("linux", |os| os.name.as_str());
    for (index, status) in statuses.iter().enumerate() {
        let Some(user) = status.user.as_ref().and_then(|user| user.linux.as_ref()) else { continue };
        let path = path.index(index).child("user").child("linux");
        match os {
            "windows" => errors.forbidden(path, "cannot be set for a windows pod"),
            "linux" => validate_linux_user(user, &path, errors),
            _ => {}
        }
    }
}

fn validate_linux_user(user: &LinuxContainerUser, path: &Path, errors: &mut ErrorList) {
    for message in names::is_valid_user_id(user.uid) {
        errors.invalid(path.child("uid"), user.uid, message);
    }
    for message in names::is_valid_group_id(user.gid) {
        errors.invalid(path.child("gid"), user.gid, message);
    }
    for (index, group) in user.supplemental_groups.items().iter().enumerate() {
        for message in names::is_valid_group_id(*group) {
            errors.invalid(path.child("supplementalGroups").index(index), *group, message);
        }
    }
}

fn validate_allocated(
    statuses: &[ContainerStatus],
    containers: Option<&[Container]>,
    path: &Path,
    errors: &mut ErrorList,
) {
    for (index, status) in statuses.iter().enumerate() {
        let path = path.index(index).child("allocatedResourcesStatus");
        let allocated = status.allocated_resources_status.items();
        let Some(containers) = containers else {
            if !allocated.is_empty() {
                errors.forbidden(path, "must not be specified in container status");
            }
            continue;
        };
        let container = containers.iter().find(|container| container.name == status.name);
        for (index, resource) in allocated.iter().enumerate() {
            let path = path.index(index);
            if let Some(container) = container
                && let Some(detail) = unknown_resource(container, &resource.name)
            {
                errors.invalid(path.child("name"), resource.name.as_str(), detail);
            }
            let mut taken = BTreeSet::new();
            for (index, unit) in resource.resources.items().iter().enumerate() {
                let path = path.child("resources").index(index);
                errors.one_of(path.child("health"), unit.health.text(), &["Healthy", "Unhealthy", "Unknown"]);
                if let Some(message) = &unit.message {
                    if message.is_empty() {
                        errors.required(path.child("message"), "must be non-empty if specified");
                    } else if message.len() > HEALTH_MESSAGE_LENGTH_MAX {
                        errors.too_long(path.child("message"), HEALTH_MESSAGE_LENGTH_MAX);
                    }
                }
                if !taken.insert(unit.resource_id.as_str()) {
                    errors.duplicate(path.child("resourceID"), unit.resource_id.as_str());
                }
            }
        }
    }
}

fn unknown_resource(container: &Container, name: &str) -> Option<&'static str> {
    let resources = container.resources.as_ref();
    if let Some(wanted) = name.strip_prefix("claim:") {
        let known = resources.into_iter().flat_map(|resources| resources.claims.items()).any(|claim| {
            match claim.request.text() {
                "" => claim.name == wanted,
                request => {
                    wanted.strip_prefix(claim.name.as_str()).and_then(|rest| rest.strip_prefix('/')) == Some(request)
                }
            }
        });
        let detail = "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty";
        return (!known).then_some(detail);
    }
    let known = resources.is_some_and(|resources| resources.requests.value(name).is_some());
    (!known).then_some("must match one of the container's resource requests")
}
