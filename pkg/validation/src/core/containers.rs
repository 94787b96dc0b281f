//! Containers of a pod: regular, init and ephemeral.
//!
//! Behaves as validateContainers, validateInitContainers and validateEphemeralContainers of
//! pkg/apis/core/validation/validation.go, v1.36.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::k8s::core::v1::{
    Container, ContainerPort, ContainerResizePolicy, ContainerRestartRule, EnvFromSource, EnvVar, EphemeralContainer,
    PodSpec, ResourceRequirements, SecurityContext, VolumeDevice, VolumeMount,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use super::env::{validate_env, validate_env_from};
use super::pod_options::PodOptions;
use super::probe::{validate_lifecycle, validate_liveness_probe, validate_readiness_probe};
use super::resources::validate_container_resources;
use super::security::validate_security_context;
use super::volume::{Volumes, has_backsteps, validate_local_descending_path};
use crate::common::names::{validate_dns1123_label, validate_port};
use crate::common::report::{OptList, OptText, Report};

pub(crate) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

/// What the three sorts of container have in common, as upstream's `EphemeralContainerCommon`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    /// `containers`, `initContainers` or `ephemeralContainers`, and the place in it.
    pub(crate) list: &'static str,
    pub(crate) index: usize,
    pub(crate) name: &'a str,
    pub(crate) image: &'a str,
    pub(crate) ports: &'a [ContainerPort],
    pub(crate) env: &'a [EnvVar],
    pub(crate) env_from: &'a [EnvFromSource],
    pub(crate) resources: Option<&'a ResourceRequirements>,
    pub(crate) resize_policy: &'a [ContainerResizePolicy],
    pub(crate) volume_mounts: &'a [VolumeMount],
    pub(crate) volume_devices: &'a [VolumeDevice],
    pub(crate) has_volume_devices: bool,
    pub(crate) image_pull_policy: &'a str,
    pub(crate) termination_message_policy: &'a str,
    pub(crate) security_context: Option<&'a SecurityContext>,
}

macro_rules! view {
    ($container:expr, $list:expr, $index:expr) => {
        View {
            list: $list,
            index: $index,
            name: &$container.name,
            image: $container.image.text(),
            ports: $container.ports.items(),
            env: $container.env.items(),
            env_from: $container.env_from.items(),
            resources: $container.resources.as_ref(),
            resize_policy: $container.resize_policy.items(),
            volume_mounts: $container.volume_mounts.items(),
            volume_devices: $container.volume_devices.items(),
            has_volume_devices: !$container.volume_devices.items().is_empty(),
            image_pull_policy: $container.image_pull_policy.text(),
            termination_message_policy: $container.termination_message_policy.text(),
            security_context: $container.security_context.as_ref(),
        }
    };
}

impl View<'_> {
    pub(crate) fn path(&self, spec: &Path) -> Path {
        spec.child(self.list).index(self.index)
    }
}

/// Init containers, then containers, then ephemeral ones: the order in which upstream visits them.
pub(crate) fn all_containers(spec: &PodSpec) -> Vec<View<'_>> {
    let init = spec.init_containers.items().iter().enumerate();
    let regular = spec.containers.iter().enumerate();
    let ephemeral = spec.ephemeral_containers.items().iter().enumerate();
    init.map(|(index, container)| view!(container, "initContainers", index))
        .chain(regular.map(|(index, container)| view!(container, "containers", index)))
        .chain(ephemeral.map(|(index, container)| view!(container, "ephemeralContainers", index)))
        .collect()
}

/// What containers are checked against.
pub(crate) struct PodContext<'a> {
    pub(crate) spec: &'a PodSpec,
    pub(crate) volumes: &'a Volumes<'a>,
    pub(crate) claim_names: &'a BTreeSet<&'a str>,
    pub(crate) options: &'a PodOptions,
}

impl PodContext<'_> {
    fn grace(&self) -> Option<i64> {
        self.spec.termination_grace_period_seconds
    }
}

pub(crate) fn is_restartable_init(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(crate) fn validate_containers(pod: &PodContext<'_>, path: &Path, errors: &mut ErrorList) {
    let containers = &pod.spec.containers;
    if containers.is_empty() {
        errors.required(path, "");
        return;
    }
    let mut taken = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        validate_common(&view!(container, "containers", index), pod, &path, errors);
        if !taken.insert(container.name.as_str()) {
            errors.duplicate(path.child("name"), container.name.as_str());
        }
        validate_handlers(container, pod, &path, errors);
        let policy = container.restart_policy.as_deref();
        validate_restart_policy(policy, container.restart_policy_rules.items(), &path, errors);
    }
    validate_host_port_conflicts(containers.iter(), path, errors);
}

fn validate_handlers(container: &Container, pod: &PodContext<'_>, path: &Path, errors: &mut ErrorList) {
    let grace = pod.grace();
    if let Some(lifecycle) = &container.lifecycle {
        validate_lifecycle(lifecycle, grace, &path.child("lifecycle"), errors);
    }
    validate_liveness_probe(container.liveness_probe.as_ref(), grace, &path.child("livenessProbe"), errors);
    validate_readiness_probe(container.readiness_probe.as_ref(), grace, &path.child("readinessProbe"), errors);
    validate_liveness_probe(container.startup_probe.as_ref(), grace, &path.child("startupProbe"), errors);
}

pub(crate) fn validate_init_containers(pod: &PodContext<'_>, path: &Path, errors: &mut ErrorList) {
    let mut taken: BTreeSet<&str> = pod.spec.containers.iter().map(|container| container.name.as_str()).collect();
    for (index, container) in pod.spec.init_containers.items().iter().enumerate() {
        let item_path = path.index(index);
        validate_common(&view!(container, "initContainers", index), pod, &item_path, errors);
        let policy = container.restart_policy.as_deref();
        validate_restart_policy(policy, container.restart_policy_rules.items(), &item_path, errors);
        if taken.contains(container.name.as_str()) {
            errors.duplicate(item_path.child("name"), container.name.as_str());
        } else if !container.name.is_empty() {
            taken.insert(&container.name);
        }
        validate_host_port_conflicts([container].into_iter(), path, errors);
        let restartable = is_restartable_init(container);
        if restartable {
            validate_handlers(container, pod, &item_path, errors);
        } else {
            let set = [
                ("lifecycle", container.lifecycle.is_some()),
                ("livenessProbe", container.liveness_probe.is_some()),
                ("readinessProbe", container.readiness_probe.is_some()),
                ("startupProbe", container.startup_probe.is_some()),
            ];
            for (field, _) in set.iter().filter(|(_, set)| *set) {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.forbidden(item_path.child(field), detail);
            }
        }
        if !restartable && !pod.options.allow_existing_restart_container_for_init_container {
            for (policy_index, policy) in container.resize_policy.items().iter().enumerate() {
                if policy.restart_policy == "RestartContainer" {
                    errors.invalid(
                        item_path.child("resizePolicy").index(policy_index).child("restartPolicy"),
                        policy.restart_policy.as_str(),
                        "must not be set to 'RestartContainer' for non-sidecar initContainers",
                    );
                }
            }
        }
    }
}

pub(crate) fn validate_ephemeral_containers(pod: &PodContext<'_>, path: &Path, errors: &mut ErrorList) {
    let containers = pod.spec.ephemeral_containers.items();
    if containers.is_empty() {
        return;
    }
    let others: BTreeSet<&str> = pod
        .spec
        .containers
        .iter()
        .chain(pod.spec.init_containers.items())
        .map(|container| container.name.as_str())
        .collect();
    let mut taken = others.clone();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        let view = view!(container, "ephemeralContainers", index);
        validate_common(&view, pod, &path, errors);
        validate_image_whitespace(view.image, &path, errors);
        if !taken.insert(&container.name) {
            errors.duplicate(path.child("name"), container.name.as_str());
        }
        let target = container.target_container_name.text();
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(path.child("targetContainerName"), target);
        }
        for field in forbidden_fields(container) {
            errors.forbidden(path.child(field), "cannot be set for an Ephemeral Container");
        }
        for (index, mount) in container.volume_mounts.items().iter().enumerate() {
            let path = path.child("volumeMounts").index(index);
            for (field, value) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
                if !value.is_blank() {
                    errors.forbidden(path.child(field), "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

/// Fields an ephemeral container has and may not use, in the order of the type.
fn forbidden_fields(container: &EphemeralContainer) -> impl Iterator<Item = &'static str> {
    let resources = container.resources.as_ref().is_some_and(|resources| *resources != ResourceRequirements::default());
    [
        ("ports", !container.ports.items().is_empty()),
        ("resources", resources),
        ("resizePolicy", !container.resize_policy.items().is_empty()),
        ("restartPolicy", container.restart_policy.is_some()),
        ("restartPolicyRules", !container.restart_policy_rules.items().is_empty()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
        ("lifecycle", container.lifecycle.is_some()),
    ]
    .into_iter()
    .filter_map(|(field, set)| set.then_some(field))
}

pub(crate) fn validate_image_whitespace(image: &str, path: &Path, errors: &mut ErrorList) {
    if image.trim() != image {
        errors.invalid(path.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn validate_common(container: &View<'_>, pod: &PodContext<'_>, path: &Path, errors: &mut ErrorList) {
    if container.name.is_empty() {
        errors.required(path.child("name"), "");
    } else {
        validate_dns1123_label(container.name, path.child("name"), errors);
    }
    errors.not_empty(path.child("image"), container.image);
    errors.required_one_of(
        path.child("terminationMessagePolicy"),
        container.termination_message_policy,
        &["File", "FallbackToLogsOnError"],
    );
    validate_ports(container.ports, &path.child("ports"), errors);
    validate_env(container.env, &path.child("env"), errors);
    validate_env_from(container.env_from, &path.child("envFrom"), errors);
    validate_volume_mounts(container, pod.volumes, &path.child("volumeMounts"), errors);
    validate_volume_devices(container, pod.volumes, &path.child("volumeDevices"), errors);
    let policies = ["Always", "IfNotPresent", "Never"];
    errors.required_one_of(path.child("imagePullPolicy"), container.image_pull_policy, &policies);
    if let Some(resources) = container.resources {
        let claims = Some(pod.claim_names);
        validate_container_resources(resources, claims, &path.child("resources"), pod.options, errors);
    }
    let restart_policy = pod.spec.restart_policy.text();
    validate_resize_policy(container.resize_policy, restart_policy, &path.child("resizePolicy"), errors);
    if let Some(security) = container.security_context {
        let host_users = pod.spec.host_users.unwrap_or(true);
        validate_security_context(security, host_users, &path.child("securityContext"), errors);
    }
}

fn validate_ports(ports: &[ContainerPort], path: &Path, errors: &mut ErrorList) {
    let mut taken = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = port.name.text();
        if !name.is_empty() {
            let messages = names::is_valid_port_name(name);
            if !messages.is_empty() {
                errors.invalid_each(path.child("name"), name, messages);
            } else if !taken.insert(name) {
                errors.duplicate(path.child("name"), name);
            }
        }
        if port.container_port == 0 {
            errors.required(path.child("containerPort"), "");
        } else {
            validate_port(port.container_port, path.child("containerPort"), errors);
        }
        if let Some(host_port) = port.host_port.filter(|host_port| *host_port != 0) {
            validate_port(host_port, path.child("hostPort"), errors);
        }
        errors.required_one_of(path.child("protocol"), port.protocol.text(), &PROTOCOLS);
    }
}

fn validate_host_port_conflicts<'a>(
    containers: impl Iterator<Item = &'a Container>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let mut taken = BTreeSet::new();
    for (index, container) in containers.enumerate() {
        for (port_index, port) in container.ports.items().iter().enumerate() {
            let Some(host_port) = port.host_port.filter(|host_port| *host_port != 0) else { continue };
            let key = format!("{}/{}/{host_port}", port.protocol.text(), port.host_ip.text());
            let path = path.index(index).child("ports").index(port_index).child("hostPort");
            if taken.contains(&key) {
                errors.duplicate(path, key);
            } else {
                taken.insert(key);
            }
        }
    }
}

fn validate_volume_mounts(container: &View<'_>, volumes: &Volumes<'_>, path: &Path, errors: &mut ErrorList) {
    let devices: BTreeMap<&str, &str> =
        container.volume_devices.iter().map(|device| (device.name.as_str(), device.device_path.as_str())).collect();
    let mut taken = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let item = path.index(index);
        let (name, target) = (mount.name.as_str(), mount.mount_path.as_str());
        errors.not_empty(item.child("name"), name);
        if !volumes.contains_key(name) {
            errors.not_found(item.child("name"), name);
        }
        errors.not_empty(item.child("mountPath"), target);
        if !taken.insert(target) {
            errors.invalid(item.child("mountPath"), target, "must be unique");
        }
        if devices.contains_key(name) {
            errors.invalid(item.child("name"), name, "must not already exist in volumeDevices");
        }
        if devices.values().any(|path| *path == target) {
            errors.invalid(item.child("mountPath"), target, "must not already exist as a path in volumeDevices");
        }
        // From here on upstream leaves the index out of the path.
        let sub_path = mount.sub_path.text();
        if !sub_path.is_empty() {
            validate_local_descending_path(sub_path, &path.child("subPath"), errors);
        }
        let expression = mount.sub_path_expr.text();
        if !expression.is_empty() {
            if !sub_path.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(item.child("subPathExpr"), expression, detail);
            }
            validate_local_descending_path(expression, &path.child("subPathExpr"), errors);
        }
        validate_propagation(mount, container.security_context, path, errors);
    }
}

fn validate_propagation(mount: &VolumeMount, security: Option<&SecurityContext>, path: &Path, errors: &mut ErrorList) {
    if let Some(propagation) = &mount.mount_propagation {
        let path = path.child("mountPropagation");
        errors.one_of(&path, propagation, &["Bidirectional", "HostToContainer", "None"]);
        let privileged = security.is_some_and(|security| security.privileged == Some(true));
        if propagation == "Bidirectional" && !privileged {
            errors.forbidden(path, "Bidirectional mount propagation is available only to privileged containers");
        }
    }
    let path = path.child("recursiveReadOnly");
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if mount.read_only != Some(true) {
                errors.forbidden(&path, "may only be specified when readOnly is true");
            }
            if mount.mount_propagation.as_deref().is_some_and(|propagation| propagation != "None") {
                errors.forbidden(&path, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(other) => errors.not_supported(&path, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn validate_volume_devices(container: &View<'_>, volumes: &Volumes<'_>, path: &Path, errors: &mut ErrorList) {
    let mounts: BTreeMap<&str, &str> =
        container.volume_mounts.iter().map(|mount| (mount.name.as_str(), mount.mount_path.as_str())).collect();
    let (mut paths, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for (index, device) in container.volume_devices.iter().enumerate() {
        let item = path.index(index);
        let (name_path, path_path) = (item.child("name"), item.child("devicePath"));
        let (name, target) = (device.name.as_str(), device.device_path.as_str());
        errors.not_empty(&name_path, name);
        if taken.contains(name) {
            errors.invalid(&name_path, name, "must be unique");
        }
        match volumes.get(name) {
            Some(volume) if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() => {}
            Some(_) => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&name_path, name, detail);
            }
            None => errors.not_found(&name_path, name),
        }
        errors.not_empty(&path_path, target);
        if paths.contains(target) {
            errors.invalid(&path_path, target, "must be unique");
        }
        if has_backsteps(target) {
            errors.invalid(&path_path, target, "can not contain backsteps ('..')");
        } else {
            paths.insert(target);
        }
        if mounts.contains_key(name) {
            errors.invalid(&name_path, name, "must not already exist in volumeMounts");
        }
        if mounts.values().any(|mounted| *mounted == target) {
            errors.invalid(&path_path, target, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            taken.insert(name);
        }
    }
}

fn validate_resize_policy(
    policies: &[ContainerResizePolicy],
    pod_restart_policy: &str,
    path: &Path,
    errors: &mut ErrorList,
) {
    let mut taken = BTreeSet::new();
    for (index, policy) in policies.iter().enumerate() {
        if !taken.insert(policy.resource_name.as_str()) {
            errors.duplicate(path.index(index), policy.resource_name.as_str());
        }
        errors.required_one_of(path, &policy.resource_name, &["cpu", "memory"]);
        errors.required_one_of(path, &policy.restart_policy, &["NotRequired", "RestartContainer"]);
        if pod_restart_policy == "Never" && policy.restart_policy != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.invalid(path, policy.restart_policy.as_str(), detail);
        }
    }
}

fn validate_restart_policy(policy: Option<&str>, rules: &[ContainerRestartRule], path: &Path, errors: &mut ErrorList) {
    match policy {
        None if rules.is_empty() => return,
        None => errors.required(path.child("restartPolicy"), "must specify restartPolicy when restart rules are used"),
        Some(policy) => errors.one_of(path.child("restartPolicy"), policy, &["Always", "Never", "OnFailure"]),
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > RESTART_RULES_MAX {
        errors.too_many(&path, rules.len(), RESTART_RULES_MAX);
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        errors.one_of(path.child("action"), &rule.action, &["Restart", "RestartAllContainers"]);
        let path = path.child("exitCodes");
        match &rule.exit_codes {
            None => errors.required(path, "must be specified"),
            Some(codes) => {
                errors.one_of(path.child("operator"), &codes.operator, &["In", "NotIn"]);
                let count = codes.values.items().len();
                if count > EXIT_CODES_MAX {
                    errors.too_many(path.child("values"), count, EXIT_CODES_MAX);
                }
            }
        }
    }
}
