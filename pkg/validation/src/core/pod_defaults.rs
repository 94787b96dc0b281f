//! Defaults of pods and pod templates.
//!
//! Behaves as SetObjectDefaults_Pod and SetObjectDefaults_PodTemplate of pkg/apis/core/v1, v1.36.

use std::collections::BTreeMap;

use rkube_api::image_name::default_pull_policy;
use rkube_api::k8s::core::v1::{
    Container, EmptyDirVolumeSource, EphemeralContainer, HTTPGetAction, Lifecycle, Pod, PodSpec, PodTemplate,
    PodTemplateSpec, Probe, ResourceRequirements, Volume,
};
use rkube_api::meta::pkg::api::resource::Quantity;

use super::resources::{ResourceList, aggregate, is_huge_page, is_overcommit_allowed, is_pod_level_resource};
use crate::common::defaults::{default_to, text_default};
use crate::common::quantity::amount;
use crate::common::report::{OptMap, OptText};

pub fn set_defaults(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    // A pod always gets the moment that a process needs to end.
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        spec.termination_grace_period_seconds = Some(1);
    }
    // Requests default to limits before anything else looks at them.
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let resources = container.resources.get_or_insert_default();
        if let Some(limits) = &resources.limits {
            let requests = resources.requests.get_or_insert_default();
            for (name, limit) in limits {
                requests.entry(name.clone()).or_insert_with(|| limit.clone());
            }
        }
    }
    default_pod_level_resources(spec);
    default_to(&mut spec.enable_service_links, true);
    if spec.host_network == Some(true) {
        let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        for port in containers.flat_map(|container| container.ports.iter_mut().flatten()) {
            if port.host_port.unwrap_or(0) == 0 {
                port.host_port = Some(port.container_port);
            }
        }
    }
    set_spec_defaults(spec);
    pod.status.get_or_insert_default();
}

pub fn set_pod_template_defaults(object: &mut PodTemplate) {
    set_template_defaults(object.template.get_or_insert_default());
}

/// A template gets the defaults of the spec, and not those of a pod as a whole.
pub(crate) fn set_template_defaults(template: &mut PodTemplateSpec) {
    template.metadata.get_or_insert_default();
    set_spec_defaults(template.spec.get_or_insert_default());
}

/// Pod-level requests default to what the containers need together, then to the pod's limits.
fn default_pod_level_resources(spec: &mut PodSpec) {
    let Some(resources) = spec.resources.clone() else { return };
    let mut limits = resources.limits.clone();
    if resources.limits.count() + resources.requests.count() > 0 {
        let mut huge = limits.clone().unwrap_or_default();
        for (name, sum) in aggregate(spec, |resources| &resources.limits) {
            if is_huge_page(&name) && resources.requests.value(&name).is_none() {
                huge.entry(name).or_insert_with(|| Quantity(sum.to_string()));
            }
        }
        if !huge.is_empty() {
            limits = Some(huge);
        }
    }
    let mut requests = resources.requests.clone();
    if limits.count() > 0 {
        let mut all: BTreeMap<String, Quantity> = requests.clone().unwrap_or_default();
        for (name, sum) in aggregate(spec, |resources| &resources.requests) {
            if is_pod_level_resource(&name) && is_overcommit_allowed(&name) {
                all.entry(name).or_insert_with(|| Quantity(sum.to_string()));
            }
        }
        for (name, limit) in limits.pairs().filter(|(name, _)| is_pod_level_resource(name)) {
            all.entry(name.clone()).or_insert_with(|| limit.clone());
        }
        if !all.is_empty() {
            requests = Some(all);
        }
    }
    spec.resources = Some(ResourceRequirements { limits, requests, ..resources });
}

fn set_spec_defaults(spec: &mut PodSpec) {
    text_default(&mut spec.dns_policy, "ClusterFirst");
    text_default(&mut spec.restart_policy, "Always");
    spec.security_context.get_or_insert_default();
    default_to(&mut spec.termination_grace_period_seconds, 30);
    text_default(&mut spec.scheduler_name, "default-scheduler");
    // The old name of the field is kept in step with the new one.
    match (spec.service_account_name.is_blank(), spec.service_account.is_blank()) {
        (true, false) => spec.service_account_name.clone_from(&spec.service_account),
        (false, _) => spec.service_account.clone_from(&spec.service_account_name),
        (true, true) => {}
    }
    for volume in spec.volumes.iter_mut().flatten() {
        set_volume_defaults(volume);
    }
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        set_container_defaults(container);
    }
    for container in spec.ephemeral_containers.iter_mut().flatten() {
        set_ephemeral_defaults(container);
    }
    round_up(&mut spec.overhead);
    if let Some(resources) = &mut spec.resources {
        round_resources(resources);
    }
}

macro_rules! container_defaults {
    ($container:expr) => {{
        let container = $container;
        let policy = default_pull_policy(container.image.text());
        text_default(&mut container.image_pull_policy, policy);
        text_default(&mut container.termination_message_path, "/dev/termination-log");
        text_default(&mut container.termination_message_policy, "File");
        for port in container.ports.iter_mut().flatten() {
            text_default(&mut port.protocol, "TCP");
        }
        for source in container.env.iter_mut().flatten().filter_map(|var| var.value_from.as_mut()) {
            if let Some(field) = &mut source.field_ref {
                text_default(&mut field.api_version, "v1");
            }
            if let Some(file) = &mut source.file_key_ref {
                default_to(&mut file.optional, false);
            }
            if let Some(resource) = &mut source.resource_field_ref {
                // Go prints a zero quantity, which is how the field's absence is stored.
                resource.divisor.get_or_insert_with(|| Quantity("0".to_owned()));
            }
        }
        round_resources(container.resources.get_or_insert_default());
        for probe in [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe] {
            if let Some(probe) = probe {
                set_probe_defaults(probe);
            }
        }
        if let Some(lifecycle) = &mut container.lifecycle {
            set_lifecycle_defaults(lifecycle);
        }
    }};
}

fn set_container_defaults(container: &mut Container) {
    container_defaults!(container);
}

fn set_ephemeral_defaults(container: &mut EphemeralContainer) {
    container_defaults!(container);
}

fn set_probe_defaults(probe: &mut Probe) {
    for (field, value) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        if field.unwrap_or(0) == 0 {
            *field = Some(value);
        }
    }
    if let Some(http) = &mut probe.http_get {
        set_http_get_defaults(http);
    }
    if let Some(grpc) = &mut probe.grpc {
        default_to(&mut grpc.service, String::new());
    }
}

fn set_lifecycle_defaults(lifecycle: &mut Lifecycle) {
    for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
        if let Some(http) = &mut handler.http_get {
            set_http_get_defaults(http);
        }
    }
}

fn set_http_get_defaults(http: &mut HTTPGetAction) {
    text_default(&mut http.path, "/");
    text_default(&mut http.scheme, "HTTP");
}

fn set_volume_defaults(volume: &mut Volume) {
    let named = Volume { name: volume.name.clone(), ..Volume::default() };
    if *volume == named {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(image) = &mut volume.image {
        let policy = default_pull_policy(image.reference.text());
        text_default(&mut image.pull_policy, policy);
    }
    if let Some(host_path) = &mut volume.host_path {
        default_to(&mut host_path.type_, String::new());
    }
    if let Some(secret) = &mut volume.secret {
        default_to(&mut secret.default_mode, 0o644);
    }
    if let Some(config_map) = &mut volume.config_map {
        default_to(&mut config_map.default_mode, 0o644);
    }
    if let Some(iscsi) = &mut volume.iscsi {
        text_default(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(rbd) = &mut volume.rbd {
        text_default(&mut rbd.pool, "rbd");
        text_default(&mut rbd.user, "admin");
        text_default(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(downward) = &mut volume.downward_api {
        default_to(&mut downward.default_mode, 0o644);
        for field in downward.items.iter_mut().flatten().filter_map(|file| file.field_ref.as_mut()) {
            text_default(&mut field.api_version, "v1");
        }
    }
    if let Some(disk) = &mut volume.azure_disk {
        set_azure_disk_defaults(disk);
    }
    if let Some(projected) = &mut volume.projected {
        default_to(&mut projected.default_mode, 0o644);
        for source in projected.sources.iter_mut().flatten() {
            let files = source.downward_api.iter_mut().flat_map(|downward| downward.items.iter_mut().flatten());
            for field in files.filter_map(|file| file.field_ref.as_mut()) {
                text_default(&mut field.api_version, "v1");
            }
            if let Some(token) = &mut source.service_account_token {
                default_to(&mut token.expiration_seconds, 3600);
            }
        }
    }
    if let Some(scale_io) = &mut volume.scale_io {
        text_default(&mut scale_io.storage_mode, "ThinProvisioned");
        text_default(&mut scale_io.fs_type, "xfs");
    }
    if let Some(template) = volume.ephemeral.as_mut().and_then(|source| source.volume_claim_template.as_mut()) {
        super::persistent_volume_claim::set_spec_defaults(&mut template.spec);
    }
}

pub(crate) fn set_azure_disk_defaults(disk: &mut rkube_api::k8s::core::v1::AzureDiskVolumeSource) {
    default_to(&mut disk.caching_mode, "ReadWrite".to_owned());
    default_to(&mut disk.fs_type, "ext4".to_owned());
    default_to(&mut disk.read_only, false);
    default_to(&mut disk.kind, "Shared".to_owned());
}

fn round_resources(resources: &mut ResourceRequirements) {
    round_up(&mut resources.limits);
    round_up(&mut resources.requests);
}

/// Quantities are stored with at most three decimal places.
pub(crate) fn round_up(list: &mut ResourceList) {
    for quantity in list.iter_mut().flat_map(BTreeMap::values_mut) {
        let mut rounded = amount(quantity);
        if !rounded.round_up(-3) {
            *quantity = Quantity(rounded.to_string());
        }
    }
}
