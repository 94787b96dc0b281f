//! Updates of a pod: the few fields that may change, ephemeral containers, resizing.
//!
//! Behaves as ValidatePodUpdate, ValidatePodEphemeralContainersUpdate and ValidatePodResize of
//! pkg/apis/core/validation/validation.go, v1.36.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::k8s::core::v1::{Affinity, Container, NodeSelectorTerm, Pod, PodSpec, ResourceRequirements};
use rkube_api::meta::pkg::api::resource::Quantity;
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::names;

use super::containers::is_restartable_init;
use super::pod::validate_metadata_and_spec;
use super::pod_annotations::{is_mirror, validate_pod_annotation_updates};
use super::pod_options::PodOptions;
use super::qos;
use super::resources::ResourceList;
use super::scheduling::validate_only_added_tolerations;
use super::security::is_windows;
use crate::common::diff::diff;
use crate::common::meta::validate_object_meta_update;
use crate::common::report::{OptList, OptMap, OptText, Report, semantic_eq, shown};

const UPDATABLE_FIELDS: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn options_for(old: &Pod) -> PodOptions {
    let default = PodSpec::default();
    PodOptions::for_pod(Some((old.spec.as_ref().unwrap_or(&default), &old.metadata)))
}

/// An error about the object as a whole, whose field is empty.
fn about_pod(detail: &str) -> Error {
    let mut error = Error::forbidden(&Path::root(), detail);
    error.field = String::new();
    error
}

/// `PUT pods/x`.
pub fn validate_update(new: &Pod, old: &Pod) -> ErrorList {
    let mut errors = ErrorList::new();
    let options = options_for(old);
    let (meta_path, path) = (Path::new("metadata"), Path::new("spec"));
    validate_object_meta_update(&new.metadata, &old.metadata, &meta_path, &mut errors);
    validate_metadata_and_spec(new, &options, &mut errors);
    validate_pod_annotation_updates(new, old, &meta_path.child("annotations"), &options, &mut errors);

    let (default_new, default_old) = (PodSpec::default(), PodSpec::default());
    let new_spec = new.spec.as_ref().unwrap_or(&default_new);
    let old_spec = old.spec.as_ref().unwrap_or(&default_old);
    let lists = [
        ("containers", new_spec.containers.as_slice(), old_spec.containers.as_slice()),
        ("initContainers", new_spec.init_containers.items(), old_spec.init_containers.items()),
    ];
    for (list, new, old) in lists {
        let path = path.child(list);
        if new.len() != old.len() {
            errors.forbidden(path, "pod updates may not add or remove containers");
            return errors;
        }
        for (index, container) in new.iter().enumerate() {
            let path = path.index(index).child("image");
            let image = container.image.text();
            errors.not_empty(&path, image);
            if image.trim() != image {
                errors.invalid(&path, image, "must not have leading or trailing whitespace");
            }
        }
    }
    if !validate_active_deadline(new_spec, old_spec, &path.child("activeDeadlineSeconds"), &mut errors) {
        return errors;
    }
    let tolerations_path = path.child("tolerations");
    let (new_tolerations, old_tolerations) = (new_spec.tolerations.items(), old_spec.tolerations.items());
    validate_only_added_tolerations(new_tolerations, old_tolerations, &tolerations_path, &mut errors);
    let old_gates: BTreeSet<&str> = old_spec.scheduling_gates.items().iter().map(|gate| gate.name.as_str()).collect();
    for (index, gate) in new_spec.scheduling_gates.items().iter().enumerate() {
        if !old_gates.contains(gate.name.as_str()) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name);
            errors.forbidden(path.child("schedulingGates").index(index).child("name"), detail);
        }
    }
    if new_spec == old_spec {
        return errors;
    }

    let mut munged = new_spec.clone();
    take_images(&mut munged.containers, &old_spec.containers);
    if let Some(containers) = &mut munged.init_containers {
        take_images(containers, old_spec.init_containers.items());
    }
    munged.active_deadline_seconds = old_spec.active_deadline_seconds;
    munged.scheduling_gates.clone_from(&old_spec.scheduling_gates);
    munged.tolerations.clone_from(&old_spec.tolerations);
    if old_spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0)
        && munged.termination_grace_period_seconds == Some(1)
    {
        munged.termination_grace_period_seconds = old_spec.termination_grace_period_seconds;
    }
    if !old_spec.scheduling_gates.items().is_empty() {
        allow_narrowing(&mut munged, old_spec, &path, &mut errors);
    }
    if !semantic_eq(&munged, old_spec) {
        let difference = diff(old_spec, &munged);
        let detail = format!("pod updates may not change fields other than {UPDATABLE_FIELDS}\n{difference}");
        errors.forbidden(path, detail);
    }
    errors
}

fn take_images(new: &mut [Container], old: &[Container]) {
    for (new, old) in new.iter_mut().zip(old) {
        new.image.clone_from(&old.image);
    }
}

/// False when nothing after it is worth checking.
fn validate_active_deadline(new: &PodSpec, old: &PodSpec, path: &Path, errors: &mut ErrorList) -> bool {
    match (new.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            errors.invalid(path, new, names::inclusive_range_error(0, i64::from(i32::MAX)));
            false
        }
        (Some(new), Some(old)) if old < new => {
            errors.invalid(path, new, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.invalid(path, serde_json::Value::Null, detail);
            true
        }
        _ => true,
    }
}

/// A pod that waits behind scheduling gates may have its node selection narrowed.
fn allow_narrowing(munged: &mut PodSpec, old: &PodSpec, path: &Path, errors: &mut ErrorList) {
    if munged.node_selector != old.node_selector {
        let kept = old.node_selector.pairs().all(|(key, value)| munged.node_selector.value(key) == Some(value));
        if !kept {
            let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.invalid(path.child("nodeSelector"), shown(&munged.node_selector), detail);
        }
        munged.node_selector.clone_from(&old.node_selector);
    }
    let old_affinity = old.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let new_affinity = munged.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    if old_affinity == new_affinity {
        return;
    }
    let terms = |affinity: Option<&rkube_api::k8s::core::v1::NodeAffinity>| {
        affinity
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.clone())
            .map(|selector| selector.node_selector_terms)
    };
    if let Some(old_terms) = terms(old_affinity) {
        let new_terms = terms(new_affinity).unwrap_or_default();
        let path = path
            .child("affinity")
            .child("nodeAffinity")
            .child("requiredDuringSchedulingIgnoredDuringExecution")
            .child("nodeSelectorTerms");
        if !old_terms.is_empty() && old_terms.len() != new_terms.len() {
            let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
            errors.invalid(path, shown(&new_terms), detail);
        } else {
            for (index, (old, new)) in old_terms.iter().zip(&new_terms).enumerate() {
                if !has_only_additions(new, old) {
                    let detail = "only additions are allowed (no mutations or deletions)";
                    errors.invalid(path.index(index), shown(new), detail);
                }
            }
        }
    }
    let old_affinity = old_affinity.cloned();
    match (&mut munged.affinity, old_affinity) {
        (None, None) => {}
        (None, old) => munged.affinity = Some(Affinity { node_affinity: old, ..Affinity::default() }),
        (Some(affinity), _)
            if old.affinity.is_none() && affinity.pod_affinity.is_none() && affinity.pod_anti_affinity.is_none() =>
        {
            munged.affinity = None;
        }
        (Some(affinity), old) => affinity.node_affinity = old,
    }
}

fn has_only_additions(new: &NodeSelectorTerm, old: &NodeSelectorTerm) -> bool {
    let pairs = [
        (new.match_expressions.items(), old.match_expressions.items()),
        (new.match_fields.items(), old.match_fields.items()),
    ];
    // An empty term selects nothing; anything added to it selects more.
    let old_is_empty = pairs.iter().all(|(_, old)| old.is_empty());
    let new_is_empty = pairs.iter().all(|(new, _)| new.is_empty());
    (!old_is_empty || new_is_empty) && pairs.iter().all(|(new, old)| new.starts_with(old))
}

/// `PUT pods/x/ephemeralcontainers`.
pub fn validate_ephemeral_containers_update(new: &Pod, old: &Pod) -> ErrorList {
    let mut errors = ErrorList::new();
    let options = options_for(old);
    let meta_path = Path::new("metadata");
    validate_object_meta_update(&new.metadata, &old.metadata, &meta_path, &mut errors);
    validate_metadata_and_spec(new, &options, &mut errors);
    validate_pod_annotation_updates(new, old, &meta_path.child("annotations"), &options, &mut errors);
    if is_mirror(&old.metadata) {
        return vec![about_pod("static pods do not support ephemeral containers")];
    }
    let path = Path::new("spec").child("ephemeralContainers");
    let containers = |pod: &Pod| pod.spec.clone().and_then(|spec| spec.ephemeral_containers).unwrap_or_default();
    let new_containers = containers(new);
    for old in containers(old) {
        let name = &old.name;
        match new_containers.iter().rfind(|new| new.name == *name) {
            None => errors.forbidden(&path, format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(new) if !semantic_eq(new, &old) => {
                let difference = diff(&old, new);
                let detail = format!("existing ephemeral containers {name:?} may not be changed\n{difference}");
                errors.forbidden(&path, detail);
            }
            Some(_) => {}
        }
    }
    errors
}

/// `PUT pods/x/resize`.
pub fn validate_resize(new: &Pod, old: &Pod) -> ErrorList {
    let mut errors = ErrorList::new();
    let options = options_for(old);
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_metadata_and_spec(new, &options, &mut errors);
    let (default_new, default_old) = (PodSpec::default(), PodSpec::default());
    let new_spec = new.spec.as_ref().unwrap_or(&default_new);
    let old_spec = old.spec.as_ref().unwrap_or(&default_old);
    if is_mirror(&old.metadata) {
        return vec![about_pod("static pods cannot be resized")];
    }
    if is_windows(old_spec) {
        return vec![about_pod("windows pods cannot be resized")];
    }
    let path = Path::new("spec");
    if qos::get(old) != qos::compute(new_spec) {
        let class = new.status.as_ref().map_or("", |status| status.qos_class.text());
        errors.invalid(&path, class, "Pod QOS Class may not change as a result of resizing");
    }
    let running = old
        .status
        .iter()
        .flat_map(|status| status.container_statuses.items())
        .find(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()));
    if running.is_some_and(|container| container.resources.is_none()) {
        errors.forbidden(&path, "Pod running on node without support for resize");
    }
    let mut munged = new_spec.clone();
    resize_pod_level(new_spec, old_spec, &mut munged, &path, &mut errors);
    let allocated = old.status.iter().flat_map(|status| status.node_allocatable_resource_claim_statuses.items());
    if allocated.count() > 0 {
        errors.forbidden(&path, "pods with node allocatable resource claims cannot be resized");
    }
    if !validate_container_order(new_spec, old_spec, &path, &mut errors) {
        return errors;
    }
    for (list, new, old) in [
        ("initContainers", new_spec.init_containers.items(), old_spec.init_containers.items()),
        ("containers", new_spec.containers.as_slice(), old_spec.containers.as_slice()),
    ] {
        for (index, (new, old)) in new.iter().zip(old).enumerate() {
            let path = path.child(list).index(index).child("resources");
            let default = ResourceRequirements::default();
            let new = new.resources.as_ref().unwrap_or(&default);
            let old = old.resources.as_ref().unwrap_or(&default);
            validate_none_removed(new, old, "resource", &path, &mut errors);
        }
    }
    for (container, old) in munged.containers.iter_mut().zip(&old_spec.containers) {
        take_cpu_and_memory(container, old);
        if !semantic_eq(container, old) {
            errors.forbidden(&path, "only cpu and memory resources are mutable");
        }
    }
    let init = munged.init_containers.iter_mut().flatten().zip(old_spec.init_containers.items());
    for (index, (container, old)) in init.enumerate() {
        let path = path.child("initContainers").index(index);
        let modified = !semantic_eq(container, old);
        take_cpu_and_memory(container, old);
        if !semantic_eq(container, old) {
            let detail = "only cpu and memory resources for init or sidecar containers are mutable";
            errors.forbidden(&path, detail);
        }
        if modified && !is_restartable_init(container) {
            let restarts = container.resize_policy.items().iter();
            for _ in restarts.filter(|policy| policy.restart_policy == "RestartContainer") {
                let detail = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                errors.forbidden(&path, detail);
            }
        }
    }
    if errors.is_empty() && !semantic_eq(&munged, old_spec) {
        errors.forbidden(path, "only cpu and memory resources are mutable");
    }
    errors
}

fn resize_pod_level(new: &PodSpec, old: &PodSpec, munged: &mut PodSpec, path: &Path, errors: &mut ErrorList) {
    let is_set = |spec: &PodSpec| {
        spec.resources.as_ref().is_some_and(|resources| resources.requests.count() + resources.limits.count() > 0)
    };
    if !is_set(new) && !is_set(old) {
        return;
    }
    let path_of_resources = path.child("resources");
    if let Some(old) = &old.resources {
        let Some(new) = &new.resources else {
            errors.forbidden(path_of_resources, "pod-level resources cannot be removed");
            return;
        };
        validate_none_removed(new, old, "pod-level resource", &path_of_resources, errors);
    }
    if let Some(resources) = &mut munged.resources {
        let none = None;
        let (requests, limits) =
            old.resources.as_ref().map_or((&none, &none), |resources| (&resources.requests, &resources.limits));
        resources.requests = with_old_cpu_and_memory(&resources.requests, requests);
        resources.limits = with_old_cpu_and_memory(&resources.limits, limits);
        if old.resources.is_none()
            && resources.requests.count() + resources.limits.count() + resources.claims.items().len() == 0
        {
            munged.resources = None;
        }
    }
    if !semantic_eq(&munged.resources, &old.resources) {
        errors.forbidden(path, "only cpu and memory resources are mutable at pod-level");
    }
}

fn validate_none_removed(
    new: &ResourceRequirements,
    old: &ResourceRequirements,
    what: &str,
    path: &Path,
    errors: &mut ErrorList,
) {
    for (field, name, new, old) in
        [("requests", "requests", &new.requests, &old.requests), ("limits", "limits", &new.limits, &old.limits)]
    {
        if old.pairs().any(|(key, _)| new.value(key).is_none()) {
            errors.forbidden(path.child(field), format!("{what} {name} cannot be removed"));
        }
    }
}

fn take_cpu_and_memory(container: &mut Container, old: &Container) {
    let none = None;
    let (old_limits, old_requests) =
        old.resources.as_ref().map_or((&none, &none), |resources| (&resources.limits, &resources.requests));
    let resources = container.resources.clone().unwrap_or_default();
    let kept = ResourceRequirements {
        limits: with_old_cpu_and_memory(&resources.limits, old_limits),
        requests: with_old_cpu_and_memory(&resources.requests, old_requests),
        claims: None,
    };
    container.resources = Some(kept);
}

fn with_old_cpu_and_memory(new: &ResourceList, old: &ResourceList) -> ResourceList {
    if new.is_none() && old.is_none() {
        return None;
    }
    let mut list: BTreeMap<String, Quantity> = new.clone().unwrap_or_default();
    for name in ["cpu", "memory"] {
        list.remove(name);
        if let Some(value) = old.value(name) {
            list.insert(name.to_owned(), value.clone());
        }
    }
    Some(list)
}

fn validate_container_order(new: &PodSpec, old: &PodSpec, path: &Path, errors: &mut ErrorList) -> bool {
    let found = errors.len();
    for (list, new, old) in [
        ("containers", new.containers.as_slice(), old.containers.as_slice()),
        ("initContainers", new.init_containers.items(), old.init_containers.items()),
    ] {
        let path = path.child(list);
        if new.len() != old.len() {
            errors.forbidden(path, format!("{list} may not be added or removed on resize"));
            continue;
        }
        for (index, (new, old)) in new.iter().zip(old).enumerate() {
            if new.name != old.name {
                let detail = format!("{list} may not be renamed or reordered on resize");
                errors.forbidden(path.index(index).child("name"), detail);
            }
        }
    }
    errors.len() == found
}
