//! Security contexts of pods and containers, Windows and Linux.
//!
//! Behaves as validatePodSpecSecurityContext, ValidateSecurityContext and validateWindowsSecurityContextOptions
//! of pkg/apis/core/validation/validation.go, v1.36. Privileged containers are allowed, as every distribution
//! allows them: pod security admission decides who may have them.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use rkube_api::k8s::core::v1::{
    AppArmorProfile, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext, WindowsSecurityContextOptions,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use super::containers::all_containers;
use super::pod_options::PodOptions;
use super::volume::validate_local_descending_path;
use crate::common::report::{OptList, Report, shown};

const SYSCTL_PATTERN: &str = r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
const SYSCTL_LENGTH_MAX: usize = 253;
/// `PATH_MAX - 1`.
const APP_ARMOR_PROFILE_LENGTH_MAX: usize = 4095;
const GMSA_SPEC_LENGTH_MAX: usize = 64 * 1024;
const WINDOWS_DOMAIN_LENGTH_MAX: usize = 256;
const WINDOWS_USER_LENGTH_MAX: usize = 104;

static SYSCTL: LazyLock<Regex> = LazyLock::new(|| Regex::new(SYSCTL_PATTERN).expect("a constant pattern"));
static NETBIOS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"^[^\\/:\*\?"<>|\.][^\\/:\*\?"<>|]{0,14}$"#).expect("a constant pattern"));
static WINDOWS_DNS: LazyLock<Regex> = LazyLock::new(|| {
    let label = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";
    Regex::new(&format!(r"^{label}(?:\.{label})*$")).expect("a constant pattern")
});

fn validate_user(id: Option<i64>, path: Path, errors: &mut ErrorList) {
    for message in id.into_iter().flat_map(names::is_valid_user_id) {
        errors.invalid(&path, id, message);
    }
}

fn validate_group(id: Option<i64>, path: Path, errors: &mut ErrorList) {
    for message in id.into_iter().flat_map(names::is_valid_group_id) {
        errors.invalid(&path, id, message);
    }
}

pub(crate) fn validate_pod_security_context(spec: &PodSpec, path: &Path, options: &PodOptions, errors: &mut ErrorList) {
    let default = PodSecurityContext::default();
    let security = spec.security_context.as_ref().unwrap_or(&default);
    validate_group(security.fs_group, path.child("fsGroup"), errors);
    validate_user(security.run_as_user, path.child("runAsUser"), errors);
    validate_group(security.run_as_group, path.child("runAsGroup"), errors);
    for (index, group) in security.supplemental_groups.items().iter().enumerate() {
        validate_group(Some(*group), path.child("supplementalGroups").index(index), errors);
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(path.child("shareProcessNamespace"), true, detail);
    }
    validate_sysctls(spec, security, &path.child("sysctls"), options, errors);
    if let Some(policy) = &security.fs_group_change_policy {
        errors.one_of(path.child("fsGroupChangePolicy"), policy, &["Always", "OnRootMismatch"]);
    }
    validate_seccomp_profile(security.seccomp_profile.as_ref(), &path.child("seccompProfile"), errors);
    validate_windows_options(security.windows_options.as_ref(), &path.child("windowsOptions"), errors);
    validate_app_armor_profile(security.app_armor_profile.as_ref(), &path.child("appArmorProfile"), errors);
    if let Some(policy) = &security.supplemental_groups_policy {
        errors.one_of(path.child("supplementalGroupsPolicy"), policy, &["Merge", "Strict"]);
    }
    if let Some(policy) = &security.se_linux_change_policy {
        let allowed: &[&str] =
            if options.allow_any_se_linux_change_policy { &["MountOption", "Recursive"] } else { &["Recursive"] };
        errors.one_of(path.child("seLinuxChangePolicy"), policy, allowed);
    }
}

fn validate_sysctls(
    spec: &PodSpec,
    security: &PodSecurityContext,
    path: &Path,
    options: &PodOptions,
    errors: &mut ErrorList,
) {
    let mut taken = BTreeSet::new();
    for (index, sysctl) in security.sysctls.items().iter().enumerate() {
        let path = path.index(index).child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            errors.required(&path, "");
        } else if name.len() > SYSCTL_LENGTH_MAX || !SYSCTL.is_match(name) {
            let detail = format!("must have at most {SYSCTL_LENGTH_MAX} characters and match regex {SYSCTL_PATTERN}");
            errors.invalid(&path, name, detail);
        } else if taken.contains(name) {
            errors.duplicate(&path, name);
        }
        if !options.allow_namespaced_sysctls_for_host_net_and_host_ipc
            && let Some(detail) = host_sysctl_error(name, spec)
        {
            errors.invalid(&path, name, detail);
        }
        taken.insert(name);
    }
}

/// Why a pod that shares a namespace with its host may not set the sysctl.
pub(crate) fn host_sysctl_error(sysctl: &str, spec: &PodSpec) -> Option<&'static str> {
    let name = normalized_sysctl(sysctl);
    let ipc = name.starts_with("kernel.shm")
        || name.starts_with("kernel.msg")
        || name.starts_with("fs.mqueue.")
        || name == "kernel.sem";
    if spec.host_network == Some(true) && name.starts_with("net.") {
        Some("may not be specified when 'hostNetwork' is true")
    } else if spec.host_ipc == Some(true) && ipc {
        Some("may not be specified when 'hostIPC' is true")
    } else {
        None
    }
}

/// With dots between the parts: where the first separator is a slash, the two change places.
fn normalized_sysctl(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name[first..].starts_with('/') => name
            .chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

pub(crate) fn validate_security_context(
    security: &SecurityContext,
    host_users: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    validate_user(security.run_as_user, path.child("runAsUser"), errors);
    validate_group(security.run_as_group, path.child("runAsGroup"), errors);
    if let Some(mount) = &security.proc_mount {
        errors.one_of(path.child("procMount"), mount, &["Default", "Unmasked"]);
        if host_users && mount == "Unmasked" {
            let detail = "`hostUsers` must be false to use `Unmasked`";
            errors.invalid(path.child("procMount"), mount.as_str(), detail);
        }
    }
    validate_seccomp_profile(security.seccomp_profile.as_ref(), &path.child("seccompProfile"), errors);
    if security.allow_privilege_escalation == Some(false) {
        if security.privileged == Some(true) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(path, shown(security), detail);
        }
        let added = security.capabilities.iter().flat_map(|capabilities| capabilities.add.items());
        for _ in added.filter(|capability| *capability == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path, shown(security), detail);
        }
    }
    validate_windows_options(security.windows_options.as_ref(), &path.child("windowsOptions"), errors);
    validate_app_armor_profile(security.app_armor_profile.as_ref(), &path.child("appArmorProfile"), errors);
}

fn validate_seccomp_profile(profile: Option<&SeccompProfile>, path: &Path, errors: &mut ErrorList) {
    let Some(profile) = profile else { return };
    if profile.type_.is_empty() {
        errors.required(path.child("type"), "type is required when seccompProfile is set");
    } else {
        errors.one_of(path.child("type"), &profile.type_, &["Localhost", "RuntimeDefault", "Unconfined"]);
    }
    let path = path.child("localhostProfile");
    match (&profile.localhost_profile, profile.type_ == "Localhost") {
        (None, true) => errors.required(path, "must be set when seccomp type is Localhost"),
        (Some(local), true) => validate_local_descending_path(local, &path, errors),
        (Some(_), false) => errors.invalid(path, shown(profile), "can only be set when seccomp type is Localhost"),
        (None, false) => {}
    }
}

fn validate_app_armor_profile(profile: Option<&AppArmorProfile>, path: &Path, errors: &mut ErrorList) {
    const MISSING: &str = "must be set when AppArmor type is Localhost";
    let Some(profile) = profile else { return };
    let local_path = path.child("localhostProfile");
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Localhost", None) => errors.required(local_path, MISSING),
        ("Localhost", Some(local)) => {
            if local.trim() != local {
                errors.invalid(&local_path, local.as_str(), "must not be padded with whitespace");
            } else if local.is_empty() {
                errors.required(&local_path, MISSING);
            }
            if local.len() > APP_ARMOR_PROFILE_LENGTH_MAX {
                errors.too_long(&local_path, APP_ARMOR_PROFILE_LENGTH_MAX);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(local)) => {
            errors.invalid(local_path, local.as_str(), "can only be set when AppArmor type is Localhost");
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => errors.required(path.child("type"), "type is required when appArmorProfile is set"),
        (other, _) => {
            errors.not_supported(path.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
}

fn validate_windows_options(options: Option<&WindowsSecurityContextOptions>, path: &Path, errors: &mut ErrorList) {
    let Some(options) = options else { return };
    if let Some(name) = &options.gmsa_credential_spec_name {
        errors.invalid_each(path.child("gmsaCredentialSpecName"), name, names::is_dns1123_subdomain(name));
    }
    if let Some(spec) = &options.gmsa_credential_spec {
        let path = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.invalid(path, "", "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > GMSA_SPEC_LENGTH_MAX {
            errors.invalid(path, spec.as_str(), "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if let Some(name) = &options.run_as_user_name {
        for detail in windows_user_errors(name) {
            errors.invalid(path.child("runAsUserName"), name.as_str(), detail);
        }
    }
}

fn windows_user_errors(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string".to_owned()];
    }
    if name.chars().any(|character| character.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters".to_owned()];
    }
    if name.matches('\\').count() > 1 {
        return vec!["runAsUserName cannot contain more than one backslash".to_owned()];
    }
    let (domain, user) = match name.split_once('\\') {
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    let mut details = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= WINDOWS_DOMAIN_LENGTH_MAX {
            let detail = format!("runAsUserName's Domain length must be under {WINDOWS_DOMAIN_LENGTH_MAX} characters");
            details.push(detail);
        }
        if !NETBIOS.is_match(domain) && !WINDOWS_DNS.is_match(domain) {
            details.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format".to_owned());
        }
    }
    if user.is_empty() {
        details.push("runAsUserName's User cannot be empty".to_owned());
    } else if user.len() > WINDOWS_USER_LENGTH_MAX {
        let detail =
            format!("runAsUserName's User length must not be longer than {WINDOWS_USER_LENGTH_MAX} characters");
        details.push(detail);
    }
    if !user.is_empty() && user.chars().all(|character| matches!(character, '.' | ' ')) {
        details.push("runAsUserName's User cannot contain only periods or spaces".to_owned());
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        let detail = "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]";
        details.push(detail.to_owned());
    }
    details
}

/// Host process containers are all or nothing in a pod, and share the host's network.
pub(crate) fn validate_windows_host_process(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let of = |options: Option<&WindowsSecurityContextOptions>| options.and_then(|options| options.host_process);
    let pod = of(spec.security_context.as_ref().and_then(|security| security.windows_options.as_ref()));
    let containers = all_containers(spec);
    let mut host_processes = 0;
    for container in &containers {
        let own = of(container.security_context.and_then(|security| security.windows_options.as_ref()));
        if let (Some(pod), Some(own)) = (pod, own)
            && pod != own
        {
            let path = container.path(path).child("securityContext").child("windowsOptions").child("hostProcess");
            let detail = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            errors.invalid(path, own, detail);
        }
        if own.or(pod) == Some(true) {
            host_processes += 1;
        }
    }
    if host_processes == 0 {
        return;
    }
    if host_processes != containers.len() {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.invalid(path, "", detail);
    }
    if spec.host_network != Some(true) {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid(path.child("hostNetwork"), false, detail);
    }
}

/// Linux pods have no Windows options.
pub(crate) fn validate_linux(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    const DETAIL: &str = "windows options cannot be set for a linux pod";
    if spec.security_context.as_ref().is_some_and(|security| security.windows_options.is_some()) {
        errors.forbidden(path.child("securityContext").child("windowsOptions"), DETAIL);
    }
    for container in all_containers(spec) {
        if container.security_context.is_some_and(|security| security.windows_options.is_some()) {
            errors.forbidden(container.path(path).child("securityContext").child("windowsOptions"), DETAIL);
        }
    }
}

/// Windows pods have none of what only Linux knows.
pub(crate) fn validate_windows(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    const DETAIL: &str = "cannot be set for a windows pod";
    let default = PodSecurityContext::default();
    let security = spec.security_context.as_ref().unwrap_or(&default);
    let of_pod = [
        ("securityContext.appArmorProfile", security.app_armor_profile.is_some()),
        ("securityContext.seLinuxOptions", security.se_linux_options.is_some()),
        ("hostUsers", spec.host_users.is_some()),
        ("hostPID", spec.host_pid == Some(true)),
        ("hostIPC", spec.host_ipc == Some(true)),
        ("securityContext.seccompProfile", security.seccomp_profile.is_some()),
        ("securityContext.fsGroup", security.fs_group.is_some()),
        ("securityContext.fsGroupChangePolicy", security.fs_group_change_policy.is_some()),
        ("securityContext.sysctls", !security.sysctls.items().is_empty()),
        ("shareProcessNamespace", spec.share_process_namespace.is_some()),
        ("securityContext.runAsUser", security.run_as_user.is_some()),
        ("securityContext.runAsGroup", security.run_as_group.is_some()),
        ("securityContext.supplementalGroups", security.supplemental_groups.is_some()),
        ("securityContext.supplementalGroupsPolicy", security.supplemental_groups_policy.is_some()),
        ("securityContext.seLinuxChangePolicy", security.se_linux_change_policy.is_some()),
    ];
    for (field, _) in of_pod.iter().filter(|(_, set)| *set) {
        errors.forbidden(path.child(field), DETAIL);
    }
    for container in all_containers(spec) {
        let Some(security) = container.security_context else { continue };
        let path = container.path(path).child("securityContext");
        let set = [
            ("appArmorProfile", security.app_armor_profile.is_some()),
            ("seLinuxOptions", security.se_linux_options.is_some()),
            ("seccompProfile", security.seccomp_profile.is_some()),
            ("capabilities", security.capabilities.is_some()),
            ("readOnlyRootFilesystem", security.read_only_root_filesystem.is_some()),
            ("privileged", security.privileged.is_some()),
            ("allowPrivilegeEscalation", security.allow_privilege_escalation.is_some()),
            ("procMount", security.proc_mount.is_some()),
            ("runAsUser", security.run_as_user.is_some()),
            ("runAsGroup", security.run_as_group.is_some()),
        ];
        for (field, _) in set.iter().filter(|(_, set)| *set) {
            errors.forbidden(path.child(field), DETAIL);
        }
    }
}

/// A pod with its own users cannot share other namespaces with the host.
pub(crate) fn validate_host_users(spec: &PodSpec, path: &Path, options: &PodOptions, errors: &mut ErrorList) {
    const DETAIL: &str = "when `hostUsers` is false";
    if spec.host_users != Some(false) {
        return;
    }
    // The capitals are upstream's.
    for (field, shared) in [("hostNetwork", spec.host_network), ("HostPID", spec.host_pid), ("HostIPC", spec.host_ipc)]
    {
        if shared == Some(true) {
            errors.forbidden(path.child(field), DETAIL);
        }
    }
    if options.allow_user_namespaces_with_volume_devices {
        return;
    }
    for container in all_containers(spec).iter().filter(|container| container.has_volume_devices) {
        errors.forbidden(container.path(path).child("volumeDevices"), DETAIL);
    }
}

pub(crate) fn is_windows(spec: &PodSpec) -> bool {
    spec.os.as_ref().is_some_and(|os| os.name == "windows")
}
