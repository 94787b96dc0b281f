//! The restricted level: hardened as current practice has it. It includes the baseline.
//!
//! Behaves as `pod-security-admission/policy/check_*.go`, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::core::v1::{PodSpec, Volume};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;

use super::baseline::{self, is_seccomp_allowed, proc_mount};
use super::evaluate::{Check, Violation};
use super::view::{bad, has_user_namespace, is_windows, list, named, plural, quoted, setters};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "allowPrivilegeEscalation",
        forms: &[(8, privilege_escalation), (25, privilege_escalation_1_25)],
        overrides: None,
    },
    Check {
        id: "capabilities_restricted",
        forms: &[(22, capabilities), (25, capabilities_1_25)],
        overrides: Some("capabilities_baseline"),
    },
    Check { id: "procMount_restricted", forms: &[(35, proc_mount)], overrides: Some("procMount") },
    Check { id: "restrictedVolumes", forms: &[(0, volumes)], overrides: Some("hostPathVolumes") },
    Check { id: "runAsNonRoot", forms: &[(0, run_as_non_root), (35, run_as_non_root_1_35)], overrides: None },
    Check { id: "runAsUser", forms: &[(23, run_as_user), (35, run_as_user_1_35)], overrides: None },
    Check {
        id: "seccompProfile_restricted",
        forms: &[(19, seccomp), (25, seccomp_1_25)],
        overrides: Some("seccompProfile_baseline"),
    },
];

fn privilege_escalation(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let names = bad(spec, |container| {
        container.security.and_then(|security| security.allow_privilege_escalation) != Some(false)
    });
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&names));
    Violation::new("allowPrivilegeEscalation != false", detail)
}

fn privilege_escalation_1_25(metadata: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    if is_windows(spec) { None } else { privilege_escalation(metadata, spec) }
}

fn capabilities(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let keeping = bad(spec, |container| {
        let capabilities = container.security.and_then(|security| security.capabilities.as_ref());
        let mut dropped = capabilities.iter().flat_map(|capabilities| capabilities.drop.iter().flatten());
        !dropped.any(|capability| capability == "ALL")
    });
    let mut added = BTreeSet::new();
    let adding = bad(spec, |container| {
        let capabilities = container.security.and_then(|security| security.capabilities.as_ref());
        let others: Vec<&str> = capabilities
            .iter()
            .flat_map(|capabilities| capabilities.add.iter().flatten())
            .map(String::as_str)
            .filter(|capability| *capability != "NET_BIND_SERVICE")
            .collect();
        let is_bad = !others.is_empty();
        added.extend(others);
        is_bad
    });
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named(&keeping)));
    }
    if !adding.is_empty() {
        let added = quoted(&list(&added));
        details.push(format!("{} must not include {added} in securityContext.capabilities.add", named(&adding)));
    }
    if details.is_empty() { None } else { Violation::new("unrestricted capabilities", details.join("; ")) }
}

fn capabilities_1_25(metadata: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    if is_windows(spec) { None } else { capabilities(metadata, spec) }
}

fn volumes(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let mut types = BTreeSet::new();
    let mut names = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        if let Some(kind) = restricted_type(volume) {
            types.insert(kind);
            names.push(volume.name.as_str());
        }
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", names.len()),
        quoted(&names),
        plural("uses", "use", names.len()),
        plural("restricted volume type", "restricted volume types", types.len()),
        quoted(&list(&types))
    );
    Violation::new("restricted volume types", detail)
}

/// The type of a volume that is not allowed.
fn restricted_type(volume: &Volume) -> Option<&'static str> {
    let is_allowed = volume.config_map.is_some()
        || volume.csi.is_some()
        || volume.downward_api.is_some()
        || volume.empty_dir.is_some()
        || volume.ephemeral.is_some()
        || volume.image.is_some()
        || volume.persistent_volume_claim.is_some()
        || volume.projected.is_some()
        || volume.secret.is_some();
    if is_allowed {
        return None;
    }
    let types = [
        (volume.host_path.is_some(), "hostPath"),
        (volume.gce_persistent_disk.is_some(), "gcePersistentDisk"),
        (volume.aws_elastic_block_store.is_some(), "awsElasticBlockStore"),
        (volume.git_repo.is_some(), "gitRepo"),
        (volume.nfs.is_some(), "nfs"),
        (volume.iscsi.is_some(), "iscsi"),
        (volume.glusterfs.is_some(), "glusterfs"),
        (volume.rbd.is_some(), "rbd"),
        (volume.flex_volume.is_some(), "flexVolume"),
        (volume.cinder.is_some(), "cinder"),
        (volume.cephfs.is_some(), "cephfs"),
        (volume.flocker.is_some(), "flocker"),
        (volume.fc.is_some(), "fc"),
        (volume.azure_file.is_some(), "azureFile"),
        (volume.vsphere_volume.is_some(), "vsphereVolume"),
        (volume.quobyte.is_some(), "quobyte"),
        (volume.azure_disk.is_some(), "azureDisk"),
        (volume.photon_persistent_disk.is_some(), "photonPersistentDisk"),
        (volume.portworx_volume.is_some(), "portworxVolume"),
        (volume.scale_io.is_some(), "scaleIO"),
        (volume.storageos.is_some(), "storageos"),
    ];
    Some(types.into_iter().find(|(is_set, _)| *is_set).map_or("unknown", |(_, name)| name))
}

fn run_as_non_root(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let pod = spec.security_context.as_ref().and_then(|security| security.run_as_non_root);
    let of =
        |container: &super::view::ContainerView<'_>| container.security.and_then(|security| security.run_as_non_root);
    let explicit = bad(spec, |container| of(container) == Some(false));
    if let Some(who) = setters(pod == Some(false), &explicit) {
        let detail = format!("{who} must not set securityContext.runAsNonRoot=false");
        return Violation::new("runAsNonRoot != true", detail);
    }
    let implicit = bad(spec, |container| of(container).is_none() && pod != Some(true));
    if implicit.is_empty() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", named(&implicit));
    Violation::new("runAsNonRoot != true", detail)
}

fn run_as_non_root_1_35(metadata: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    if has_user_namespace(spec) { None } else { run_as_non_root(metadata, spec) }
}

fn run_as_user(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let pod = spec.security_context.as_ref().and_then(|security| security.run_as_user) == Some(0);
    let names = bad(spec, |container| container.security.and_then(|security| security.run_as_user) == Some(0));
    let who = setters(pod, &names)?;
    Violation::new("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

fn run_as_user_1_35(metadata: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    if has_user_namespace(spec) { None } else { run_as_user(metadata, spec) }
}

fn seccomp(metadata: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    if let Some(violation) = baseline::seccomp(metadata, spec) {
        return Some(violation);
    }
    let pod = spec.security_context.as_ref().and_then(|security| security.seccomp_profile.as_ref());
    if pod.is_some_and(|profile| is_seccomp_allowed(&profile.type_)) {
        return None;
    }
    let names = bad(spec, |container| container.security.is_none_or(|security| security.seccomp_profile.is_none()));
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        named(&names)
    );
    Violation::new("seccompProfile", detail)
}

fn seccomp_1_25(metadata: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    if is_windows(spec) { None } else { seccomp(metadata, spec) }
}
