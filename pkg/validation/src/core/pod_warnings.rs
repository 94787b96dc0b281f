//! What is accepted in a pod and yet is probably a mistake.
//!
//! Behaves as pkg/api/pod/warnings.go and pkg/api/node/util.go, v1.36.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::k8s::core::v1::{
    ContainerPort, KeyToPath, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, PodTemplateSpec, Volume,
    VolumeProjection, WeightedPodAffinityTerm,
};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::field::Path;
use rkube_apimachinery::names::{self, ip};

use super::containers::{View, all_containers};
use super::pod_annotations::{APP_ARMOR_PREFIX, SECCOMP_CONTAINER_PREFIX, SECCOMP_POD};
use super::resources::ResourceList;
use crate::common::quantity::{amount, canonical};
use crate::common::report::{OptList, OptMap, OptText};

const DEPRECATED_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];
const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";

pub fn warnings(pod: &Pod) -> Vec<String> {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    Walk { spec, meta: &pod.metadata, path: Path::root(), template: false, warnings: Vec::new() }.run()
}

/// Upstream takes the old template and ignores it; callers say whether the template changed.
pub(crate) fn template_warnings(
    template: &PodTemplateSpec,
    _old: Option<&PodTemplateSpec>,
    path: &Path,
) -> Vec<String> {
    let (no_spec, no_meta) = (PodSpec::default(), ObjectMeta::default());
    let (spec, meta) = (template.spec.as_ref().unwrap_or(&no_spec), template.metadata.as_ref().unwrap_or(&no_meta));
    Walk { spec, meta, path: path.clone(), template: true, warnings: Vec::new() }.run()
}

/// What replaced a node label, as a sentence.
pub(crate) fn deprecated_node_label(label: &str) -> Option<&'static str> {
    match label {
        "beta.kubernetes.io/arch" => Some("deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
        "beta.kubernetes.io/os" => Some("deprecated since v1.14; use \"kubernetes.io/os\" instead"),
        "failure-domain.beta.kubernetes.io/region" => {
            Some("deprecated since v1.17; use \"topology.kubernetes.io/region\" instead")
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            Some("deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead")
        }
        "beta.kubernetes.io/instance-type" => {
            Some("deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead")
        }
        _ => None,
    }
}

/// Warnings about node affinity of any object. `check_values` is for preferences, whose values are not validated.
pub(crate) fn node_selector_term_warnings(
    term: &NodeSelectorTerm,
    check_values: bool,
    path: &Path,
    warnings: &mut Vec<String>,
) {
    let expressions = term.match_expressions.items();
    for (index, expression) in expressions.iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let key_path = path.child("key");
        if let Some(message) = deprecated_node_label(&expression.key) {
            warnings.push(format!("{key_path}: {} is {message}", expression.key));
        }
        if check_values {
            for (index, value) in expression.values.items().iter().enumerate() {
                for message in names::is_label_value(value) {
                    let path = path.child("values").index(index);
                    warnings.push(format!("{path}: {value} is invalid, {message}"));
                }
            }
        }
    }
}

struct Walk<'a> {
    spec: &'a PodSpec,
    meta: &'a ObjectMeta,
    path: Path,
    template: bool,
    warnings: Vec<String>,
}

impl Walk<'_> {
    fn run(mut self) -> Vec<String> {
        let spec_path = self.path.child("spec");
        self.placement(&spec_path);
        self.annotations();
        for (index, volume) in self.spec.volumes.items().iter().enumerate() {
            self.volume(volume, &spec_path.child("volumes").index(index));
        }
        overlapping_paths(self.spec.volumes.items(), &mut self.warnings);
        self.duplicates(&spec_path);
        self.fractional(&self.spec.overhead.clone(), &spec_path.child("overhead"));
        let security = self.spec.security_context.as_ref();
        if security.is_none_or(|security| security.seccomp_profile.is_none()) {
            self.seccomp_annotation(SECCOMP_POD);
        }
        let containers = all_containers(self.spec);
        for container in &containers {
            self.container(container, &container.path(&spec_path));
        }
        self.ports(&containers, &spec_path);
        if self.spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
            let path = spec_path.child("terminationGracePeriodSeconds");
            self.warn(&path, "must be >= 0; negative values are invalid and will be treated as 1");
        }
        self.pod_affinity(&spec_path.child("affinity"));
        for (index, server) in self.spec.dns_config.iter().flat_map(|config| config.nameservers.items()).enumerate() {
            let path = spec_path.child("dnsConfig").child("nameservers").index(index);
            self.warnings.extend(ip::warnings_for_ip(&path, server));
        }
        for (index, alias) in self.spec.host_aliases.items().iter().enumerate() {
            let path = spec_path.child("hostAliases").index(index).child("ip");
            self.warnings.extend(ip::warnings_for_ip(&path, &alias.ip));
        }
        self.warnings
    }

    fn warn(&mut self, path: &Path, message: &str) {
        self.warnings.push(format!("{path}: {message}"));
    }

    fn placement(&mut self, path: &Path) {
        for (key, _) in self.spec.node_selector.pairs() {
            if let Some(message) = deprecated_node_label(key) {
                self.warnings.push(format!("{}: {message}", path.child("nodeSelector").key(key)));
            }
        }
        if let Some(affinity) = self.spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()) {
            let path = path.child("affinity").child("nodeAffinity");
            let required = affinity.required_during_scheduling_ignored_during_execution.iter();
            for (index, term) in required.flat_map(|selector| &selector.node_selector_terms).enumerate() {
                let path = path
                    .child("requiredDuringSchedulingIgnoredDuringExecution")
                    .child("nodeSelectorTerms")
                    .index(index);
                node_selector_term_warnings(term, false, &path, &mut self.warnings);
            }
            let preferred = affinity.preferred_during_scheduling_ignored_during_execution.items();
            for (index, term) in preferred.iter().enumerate() {
                let path =
                    path.child("preferredDuringSchedulingIgnoredDuringExecution").index(index).child("preference");
                node_selector_term_warnings(&term.preference, true, &path, &mut self.warnings);
            }
        }
        for (index, constraint) in self.spec.topology_spread_constraints.items().iter().enumerate() {
            let path = path.child("topologySpreadConstraints").index(index);
            if let Some(message) = deprecated_node_label(&constraint.topology_key) {
                self.warn(&path.child("topologyKey"), &format!("{} is {message}", constraint.topology_key));
            }
            if constraint.label_selector.is_none() {
                self.warn(&path.child("labelSelector"), NULL_SELECTOR);
            }
        }
    }

    fn annotations(&mut self) {
        for (key, message) in DEPRECATED_ANNOTATIONS {
            if self.meta.annotations.value(key).is_some() {
                let path = self.path.child("metadata").child("annotations").key(key);
                self.warn(&path, message);
            }
        }
    }

    fn volume(&mut self, volume: &Volume, path: &Path) {
        for (field, used, message) in [
            (
                "photonPersistentDisk",
                volume.photon_persistent_disk.is_some(),
                "deprecated in v1.11, non-functional in v1.16+",
            ),
            ("gitRepo", volume.git_repo.is_some(), "deprecated in v1.11, and disabled by default in v1.33+"),
            ("scaleIO", volume.scale_io.is_some(), "deprecated in v1.16, non-functional in v1.22+"),
            ("flocker", volume.flocker.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
            ("storageOS", volume.storageos.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
            ("quobyte", volume.quobyte.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
            ("glusterfs", volume.glusterfs.is_some(), "deprecated in v1.25, non-functional in v1.26+"),
        ] {
            if used {
                self.warn(&path.child(field), message);
            }
        }
        if let Some(template) = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.as_ref()) {
            let path = path.child("ephemeral").child("volumeClaimTemplate").child("spec");
            let found = super::persistent_volume_claim::spec_warnings(&template.spec, &path);
            self.warnings.extend(found);
        }
        for (field, used) in [("cephfs", volume.cephfs.is_some()), ("rbd", volume.rbd.is_some())] {
            if used {
                self.warn(&path.child(field), "deprecated in v1.28, non-functional in v1.31+");
            }
        }
    }

    fn duplicates(&mut self, path: &Path) {
        let mut taken = BTreeSet::new();
        for (index, alias) in self.spec.host_aliases.items().iter().enumerate() {
            if !taken.insert(alias.ip.as_str()) {
                let path = path.child("hostAliases").index(index).child("ip");
                self.warn(&path, &format!("duplicate ip {:?}", alias.ip));
            }
        }
        let secrets = self.spec.image_pull_secrets.items();
        let path = |index| path.child("imagePullSecrets").index(index).child("name");
        let mut taken = BTreeSet::new();
        for (index, secret) in secrets.iter().enumerate() {
            if !taken.insert(secret.name.as_str()) {
                self.warn(&path(index), &format!("duplicate name {:?}", secret.name));
            }
        }
        for (index, secret) in secrets.iter().enumerate().filter(|(_, secret)| secret.name.is_empty()) {
            self.warn(&path(index), &format!("invalid empty name {:?}", secret.name));
        }
    }

    fn fractional(&mut self, list: &ResourceList, path: &Path) {
        for name in ["memory", "ephemeral-storage"] {
            if let Some(value) = list.value(name).filter(|value| amount(value).milli_value() % 1000 != 0) {
                let message = format!("fractional byte value {:?} is invalid, must be an integer", canonical(value));
                self.warn(&path.key(name), &message);
            }
        }
    }

    fn seccomp_annotation(&mut self, key: &str) {
        if self.meta.annotations.value(key).is_some() {
            let path = self.path.child("metadata").child("annotations").key(key);
            self.warn(&path, "non-functional in v1.27+; use the \"seccompProfile\" field instead");
        }
    }

    fn container(&mut self, container: &View<'_>, path: &Path) {
        let security = container.security_context;
        if security.is_none_or(|security| security.seccomp_profile.is_none()) {
            self.seccomp_annotation(&format!("{SECCOMP_CONTAINER_PREFIX}{}", container.name));
        }
        if self.template && security.is_none_or(|security| security.app_armor_profile.is_none()) {
            let key = format!("{APP_ARMOR_PREFIX}{}", container.name);
            if self.meta.annotations.value(&key).is_some() {
                let path = self.path.child("metadata").child("annotations").key(&key);
                self.warn(&path, "deprecated since v1.30; use the \"appArmorProfile\" field instead");
            }
        }
        if let Some(resources) = container.resources {
            // Memory of both lists first, as upstream has it.
            let path = path.child("resources");
            let lists = [("limits", &resources.limits), ("requests", &resources.requests)];
            for name in ["memory", "ephemeral-storage"] {
                for (field, list) in lists {
                    let only = list.value(name).map(|value| BTreeMap::from([(name.to_owned(), value.clone())]));
                    self.fractional(&only, &path.child(field));
                }
            }
        }
        let mut taken = BTreeSet::new();
        for (index, var) in container.env.iter().enumerate() {
            if taken.insert(var.name.as_str()) {
                continue;
            }
            // `PATH=$(PATH):/more` builds on the earlier definition; anything else hides it.
            let reference = format!("$({})", var.name);
            let value = var.value.text();
            if var.value_from.is_some() || value == reference || !value.contains(&reference) {
                let message =
                    format!("hides previous definition of {:?}, which may be dropped when using apply", var.name);
                self.warn(&path.child("env").index(index), &message);
            }
        }
    }

    fn ports(&mut self, containers: &[View<'_>], spec_path: &Path) {
        let ports = || {
            containers.iter().flat_map(|container| {
                let path = container.path(spec_path).child("ports");
                container.ports.iter().enumerate().map(move |(index, port)| (path.index(index), port))
            })
        };
        let host_port = |port: &ContainerPort| port.host_port.unwrap_or(0);
        let mut known: BTreeMap<String, Vec<(Path, &ContainerPort)>> = BTreeMap::new();
        for (path, port) in ports() {
            if !port.host_ip.is_blank() && host_port(port) == 0 {
                let shown = format!(
                    "hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{}}}",
                    port.name.text(),
                    port.container_port,
                    port.protocol.text(),
                    port.host_ip.text()
                );
                self.warn(&path, &shown);
            }
            let same = known.entry(format!("{}/{}", port.container_port, port.protocol.text())).or_default();
            for (other_path, other) in same.iter() {
                let (own_port, other_port) = (host_port(port), host_port(other));
                let (own_any, other_any) = (port.host_ip.is_blank(), other.host_ip.is_blank());
                let what = if port.host_ip.text() == other.host_ip.text() && own_port == other_port {
                    "duplicate"
                } else if own_port == 0 || other_port == 0 {
                    "overlapping"
                } else if own_port == other_port && own_any != other_any {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                self.warnings.push(format!("{path}: {what} port definition with {other_path}"));
            }
            same.push((path, port));
        }
        let mut names: BTreeMap<&str, Path> = BTreeMap::new();
        for (path, port) in ports().filter(|(_, port)| !port.name.is_blank()) {
            let name = port.name.text();
            if let Some(other) = names.get(name) {
                self.warnings.push(format!(
                    "{path}: duplicate port name {name:?} with {other}, services and probes that select ports by name will use {other}"
                ));
            } else {
                names.insert(name, path);
            }
        }
    }

    fn pod_affinity(&mut self, path: &Path) {
        let Some(affinity) = &self.spec.affinity else { return };
        let mut terms = |field: &str, required: &[PodAffinityTerm], preferred: &[WeightedPodAffinityTerm]| {
            let path = path.child(field);
            for (index, _) in required.iter().enumerate().filter(|(_, term)| term.label_selector.is_none()) {
                let path = path.child("requiredDuringSchedulingIgnoredDuringExecution").index(index);
                self.warnings.push(format!("{}: {NULL_SELECTOR}", path.child("labelSelector")));
            }
            let preferred = preferred.iter().enumerate();
            for (index, _) in preferred.filter(|(_, term)| term.pod_affinity_term.label_selector.is_none()) {
                let path = path.child("preferredDuringSchedulingIgnoredDuringExecution").index(index);
                let path = path.child("podAffinityTerm").child("labelSelector");
                self.warnings.push(format!("{path}: {NULL_SELECTOR}"));
            }
        };
        if let Some(pod) = &affinity.pod_affinity {
            terms(
                "podAffinity",
                pod.required_during_scheduling_ignored_during_execution.items(),
                pod.preferred_during_scheduling_ignored_during_execution.items(),
            );
        }
        if let Some(anti) = &affinity.pod_anti_affinity {
            terms(
                "podAntiAffinity",
                anti.required_during_scheduling_ignored_during_execution.items(),
                anti.preferred_during_scheduling_ignored_during_execution.items(),
            );
        }
    }
}

/// A path in a volume, and what puts something there.
#[derive(Clone, PartialEq)]
struct Placed {
    path: String,
    source: String,
}

impl std::fmt::Display for Placed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.path)?;
        if self.source.is_empty() { Ok(()) } else { write!(f, " ({})", self.source) }
    }
}

fn placed<'a>(paths: impl Iterator<Item = &'a String>, source: &str) -> Vec<Placed> {
    paths.map(|path| Placed { path: path.trim_end_matches('/').to_owned(), source: source.to_owned() }).collect()
}

fn overlaps(known: &[Placed], new: &Placed) -> Vec<Placed> {
    if new.path.is_empty() {
        return Vec::new();
    }
    let inside = |inner: &str, outer: &str| format!("{inner}/").starts_with(&format!("{outer}/"));
    known
        .iter()
        .filter(|item| !item.path.is_empty() && (inside(&item.path, &new.path) || inside(&new.path, &item.path)))
        .cloned()
        .collect()
}

fn overlapping_paths(volumes: &[Volume], warnings: &mut Vec<String>) {
    let keys = |items: &[KeyToPath], source: &str| placed(items.iter().map(|item| &item.path), source);
    let mut check = |volume: &Volume, what: &str, known: &mut Vec<Placed>, new: Vec<Placed>| {
        for item in new {
            for other in overlaps(known, &item) {
                warnings.push(format!("volume {:?} ({what}): overlapping paths: {item} with {other}", volume.name));
            }
            known.push(item);
        }
    };
    for volume in volumes {
        if let Some(source) = &volume.config_map {
            let what = format!("ConfigMap {:?}", source.name);
            check(volume, &what, &mut Vec::new(), keys(source.items.items(), ""));
        }
        if let Some(source) = &volume.secret {
            let what = format!("Secret {:?}", source.secret_name.text());
            check(volume, &what, &mut Vec::new(), keys(source.items.items(), ""));
        }
        if let Some(source) = &volume.downward_api {
            let paths = placed(source.items.items().iter().map(|file| &file.path), "");
            check(volume, "DownwardAPI", &mut Vec::new(), paths);
        }
        let mut known = Vec::new();
        for source in volume.projected.iter().flat_map(|projected| projected.sources.items()) {
            check(volume, "Projected", &mut known, projected_paths(source, &keys));
        }
    }
    for volume in volumes {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.items());
        for _ in sources.filter(|source| **source == VolumeProjection::default()) {
            warnings.push(format!("volume {:?} (Projected) has no sources provided", volume.name));
        }
    }
}

fn projected_paths(source: &VolumeProjection, keys: &dyn Fn(&[KeyToPath], &str) -> Vec<Placed>) -> Vec<Placed> {
    if let Some(source) = source.config_map.as_ref().filter(|source| source.items.is_some()) {
        return keys(source.items.items(), &format!("ConfigMap {:?}", source.name));
    }
    if let Some(source) = source.secret.as_ref().filter(|source| source.items.is_some()) {
        return keys(source.items.items(), &format!("Secret {:?}", source.name));
    }
    if let Some(source) = source.downward_api.as_ref().filter(|source| source.items.is_some()) {
        return placed(source.items.items().iter().map(|file| &file.path), "DownwardAPI");
    }
    placed(source.service_account_token.iter().map(|token| &token.path), "ServiceAccountToken")
}
