//! What happens to a pod between the client's words and validation: fields behind gates that are off are dropped,
//! and the server's own are filled in.
//!
//! Behaves as pkg/registry/core/pod/strategy.go and DropDisabledPodFields of pkg/api/pod/util.go, v1.36.

use std::collections::BTreeMap;

use rkube_api::k8s::core::v1::{
    AppArmorProfile, Container, Lifecycle, Pod, PodAffinityTerm, PodCondition, PodSpec, PodStatus, PodTemplateSpec,
};
use rkube_api::meta::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use rkube_apimachinery::field::Path;

use super::pod_annotations::APP_ARMOR_PREFIX;
use super::qos;
use super::security::is_windows;
use crate::common::report::{OptList, semantic_eq};

/// Gives warnings about what it had to rewrite.
pub fn prepare_for_create(pod: &mut Pod) -> Vec<String> {
    pod.metadata.generation = Some(1);
    let class = pod.spec.as_ref().map_or("BestEffort", qos::compute);
    let spec = pod.spec.get_or_insert_default();
    drop_disabled(spec, None);
    let mut status =
        PodStatus { phase: Some("Pending".to_owned()), qos_class: Some(class.to_owned()), ..PodStatus::default() };
    if !spec.scheduling_gates.items().is_empty() {
        status.conditions = Some(vec![PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("SchedulingGated".to_owned()),
            message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
            ..PodCondition::default()
        }]);
    }
    merge_label_keys(spec, pod.metadata.labels.as_ref());
    let warnings = take_app_armor_annotations(spec, pod.metadata.annotations.as_ref());
    pod.status = Some(status);
    warnings
}

pub fn prepare_for_update(new: &mut Pod, old: &Pod) {
    new.status.clone_from(&old.status);
    drop_disabled(new.spec.get_or_insert_default(), old.spec.as_ref());
    raise_generation(new, old);
}

fn raise_generation(new: &mut Pod, old: &Pod) {
    if !semantic_eq(&new.spec, &old.spec) {
        new.metadata.generation = Some(old.metadata.generation.unwrap_or(0).saturating_add(1));
    }
}

pub fn prepare_for_status_update(new: &mut Pod, old: &Pod) {
    new.spec.clone_from(&old.spec);
    new.metadata.deletion_timestamp.clone_from(&old.metadata.deletion_timestamp);
    new.metadata.owner_references.clone_from(&old.metadata.owner_references);
    let default = PodStatus::default();
    let old_status = old.status.as_ref().unwrap_or(&default);
    let status = new.status.get_or_insert_default();
    if status.qos_class.as_deref().unwrap_or_default().is_empty() {
        status.qos_class.clone_from(&old_status.qos_class);
    }
    // Writers that do not know observed generations keep the ones that are there.
    if status.observed_generation.unwrap_or(0) == 0 {
        status.observed_generation = old_status.observed_generation;
    }
    let mut old_generations: BTreeMap<&str, Vec<Option<i64>>> = BTreeMap::new();
    for condition in old_status.conditions.items().iter().rev() {
        old_generations.entry(&condition.type_).or_default().push(condition.observed_generation);
    }
    for condition in status.conditions.iter_mut().flatten() {
        let generation = old_generations.get_mut(condition.type_.as_str()).and_then(Vec::pop).flatten();
        if condition.observed_generation.unwrap_or(0) == 0 {
            condition.observed_generation = generation;
        }
    }
    if old_status.node_allocatable_resource_claim_statuses.items().is_empty() {
        status.node_allocatable_resource_claim_statuses = None;
    }
}

/// Only the ephemeral containers come from the client.
pub fn prepare_for_ephemeral_containers_update(new: &mut Pod, old: &Pod) {
    let containers = new.spec.take().and_then(|spec| spec.ephemeral_containers);
    keep_all_but_spec(new, old);
    new.spec.clone_from(&old.spec);
    let spec = new.spec.get_or_insert_default();
    spec.ephemeral_containers = containers;
    drop_disabled(spec, old.spec.as_ref());
    raise_generation(new, old);
}

/// Only resources and resize policies come from the client.
pub fn prepare_for_resize(new: &mut Pod, old: &Pod) {
    let old_spec = old.spec.clone().unwrap_or_default();
    let spec = new.spec.clone().unwrap_or_default();
    let same_length = spec.containers.len() == old_spec.containers.len()
        && spec.init_containers.items().len() == old_spec.init_containers.items().len();
    if same_length {
        keep_all_but_spec(new, old);
        let containers = resized(&spec.containers, &old_spec.containers);
        let init = spec.init_containers.as_ref().map(|init| resized(init, old_spec.init_containers.items()));
        new.spec = Some(PodSpec { containers, init_containers: init, resources: spec.resources, ..old_spec });
    }
    drop_disabled(new.spec.get_or_insert_default(), old.spec.as_ref());
    raise_generation(new, old);
}

fn keep_all_but_spec(new: &mut Pod, old: &Pod) {
    let (version, managed) = (new.metadata.resource_version.take(), new.metadata.managed_fields.take());
    new.metadata.clone_from(&old.metadata);
    new.metadata.resource_version = version;
    new.metadata.managed_fields = managed;
    new.status.clone_from(&old.status);
}

fn resized(new: &[Container], old: &[Container]) -> Vec<Container> {
    if new.iter().zip(old).any(|(new, old)| new.name != old.name) {
        return new.to_vec();
    }
    new.iter()
        .zip(old)
        .map(|(new, old)| Container {
            resources: new.resources.clone(),
            resize_policy: new.resize_policy.clone(),
            ..old.clone()
        })
        .collect()
}

/// For kinds with a pod template.
pub fn drop_disabled_template_fields(template: &mut PodTemplateSpec, old: Option<&PodTemplateSpec>) {
    if let Some(spec) = &mut template.spec {
        drop_disabled(spec, old.and_then(|old| old.spec.as_ref()));
    }
}

/// Gates that are off: ClusterTrustBundleProjection, PodCertificateRequest, GenericWorkload, ContainerStopSignals.
/// A field that the old object uses stays.
fn drop_disabled(spec: &mut PodSpec, old: Option<&PodSpec>) {
    let old_sources = || {
        old.into_iter()
            .flat_map(|old| old.volumes.items())
            .flat_map(|volume| volume.projected.iter().flat_map(|projected| projected.sources.items()))
    };
    let bundles = old_sources().any(|source| source.cluster_trust_bundle.is_some());
    let certificates = old_sources().any(|source| source.pod_certificate.is_some());
    let projected = spec.volumes.iter_mut().flatten().filter_map(|volume| volume.projected.as_mut());
    for source in projected.flat_map(|projected| projected.sources.iter_mut().flatten()) {
        if !bundles {
            source.cluster_trust_bundle = None;
        }
        if !certificates {
            source.pod_certificate = None;
        }
    }
    if old.is_none_or(|old| old.scheduling_group.is_none()) {
        spec.scheduling_group = None;
    }
    let signals = old.is_some_and(|old| {
        let containers = old.containers.iter().chain(old.init_containers.items());
        containers
            .map(|container| &container.lifecycle)
            .chain(old.ephemeral_containers.items().iter().map(|container| &container.lifecycle))
            .flatten()
            .any(|lifecycle| lifecycle.stop_signal.is_some())
    });
    if !signals {
        let regular = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        regular
            .map(|container| &mut container.lifecycle)
            .chain(spec.ephemeral_containers.iter_mut().flatten().map(|container| &mut container.lifecycle))
            .for_each(drop_stop_signal);
    }
}

fn drop_stop_signal(lifecycle: &mut Option<Lifecycle>) {
    if let Some(own) = lifecycle
        && own.stop_signal.take().is_some()
        && *own == Lifecycle::default()
    {
        *lifecycle = None;
    }
}

/// `matchLabelKeys` become requirements on the values that this pod has.
fn merge_label_keys(spec: &mut PodSpec, labels: Option<&BTreeMap<String, String>>) {
    if let Some(affinity) = &mut spec.affinity {
        let mut merge = |term: &mut PodAffinityTerm| {
            let (matching, mismatching) = (term.match_label_keys.clone(), term.mismatch_label_keys.clone());
            if let Some(selector) = &mut term.label_selector {
                require_values(selector, matching.items(), "In", labels);
                require_values(selector, mismatching.items(), "NotIn", labels);
            }
        };
        if let Some(pod) = &mut affinity.pod_affinity {
            let preferred = pod.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
            preferred.for_each(|term| merge(&mut term.pod_affinity_term));
            pod.required_during_scheduling_ignored_during_execution.iter_mut().flatten().for_each(&mut merge);
        }
        if let Some(anti) = &mut affinity.pod_anti_affinity {
            let preferred = anti.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
            preferred.for_each(|term| merge(&mut term.pod_affinity_term));
            anti.required_during_scheduling_ignored_during_execution.iter_mut().flatten().for_each(&mut merge);
        }
    }
    for constraint in spec.topology_spread_constraints.iter_mut().flatten() {
        let keys = constraint.match_label_keys.clone();
        if let Some(selector) = &mut constraint.label_selector {
            require_values(selector, keys.items(), "In", labels);
        }
    }
}

fn require_values(
    selector: &mut LabelSelector,
    keys: &[String],
    operator: &str,
    labels: Option<&BTreeMap<String, String>>,
) {
    for key in keys {
        if let Some(value) = labels.and_then(|labels| labels.get(key)) {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            });
        }
    }
}

/// Profiles given by the old annotation move into the field. Gives a warning for each.
fn take_app_armor_annotations(spec: &mut PodSpec, annotations: Option<&BTreeMap<String, String>>) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(annotations) = annotations.filter(|_| !is_windows(spec)) else { return warnings };
    let pod_profile = spec.security_context.as_ref().and_then(|security| security.app_armor_profile.clone());
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let key = format!("{APP_ARMOR_PREFIX}{}", container.name);
        let own = container.security_context.as_ref().and_then(|security| security.app_armor_profile.as_ref());
        let Some(annotation) = annotations.get(&key).filter(|_| own.is_none()) else { continue };
        let profile = app_armor_profile(annotation);
        if profile.is_some() && profile == pod_profile {
            continue;
        }
        if profile.is_some() {
            container.security_context.get_or_insert_default().app_armor_profile = profile;
        }
        let path = Path::new("metadata").child("annotations").key(&key);
        warnings.push(format!("{path}: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
    }
    warnings
}

fn app_armor_profile(annotation: &str) -> Option<AppArmorProfile> {
    let of_type = |kind: &str| AppArmorProfile { type_: kind.to_owned(), localhost_profile: None };
    match annotation {
        "unconfined" => Some(of_type("Unconfined")),
        "runtime/default" => Some(of_type("RuntimeDefault")),
        _ => {
            let profile = annotation.strip_prefix("localhost/").filter(|profile| !profile.is_empty())?;
            Some(AppArmorProfile { localhost_profile: Some(profile.to_owned()), ..of_type("Localhost") })
        }
    }
}
