//! securityContext of pods and containers for the runtime.
//!
//! Behaves as pkg/kubelet/kuberuntime/{security_context,helpers}.go and pkg/securitycontext/util.go, v1.36.

use std::path::Path;

use rkube_api::k8s::core::v1::{Container, Pod, PodSecurityContext, SecurityContext};
use rkube_cri::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, security_profile::ProfileType,
};

use crate::pod::{PodExt, all_containers};

/// Parts of /proc and /sys that show or change the host.
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const MASKED_DEVICES: [&str; 1] = ["/sys/devices/virtual/powercap"];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A container that must not run as root and would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunAsError {
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    User { pod: String, container: String },
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    Image { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    ImageUserName { user: String, pod: String, container: String },
    #[error("localhostProfile must be set if seccompProfile type is Localhost")]
    SeccompWithoutPath,
}

/// The user an image says it runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

fn pod_context(pod: &Pod) -> PodSecurityContext {
    pod.pod_spec().security_context.clone().unwrap_or_default()
}

pub fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
}

/// Namespaces of a pod's sandbox; a container that looks into another one names it as `target`.
pub fn namespaces(pod: &Pod, target: Option<&str>) -> NamespaceOption {
    let spec = pod.pod_spec();
    let on_node = |wanted: Option<bool>| if wanted == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = match (target, spec.host_pid, spec.share_process_namespace) {
        (Some(_), ..) => NamespaceMode::Target,
        (None, Some(true), _) => NamespaceMode::Node,
        (None, _, Some(true)) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOption {
        network: on_node(spec.host_network).into(),
        pid: pid.into(),
        ipc: on_node(spec.host_ipc).into(),
        target_id: target.unwrap_or_default().to_owned(),
        userns_options: None,
    }
}

pub fn sandbox(pod: &Pod, seccomp_root: &Path, volume_groups: &[i64]) -> LinuxSandboxSecurityContext {
    let context = pod_context(pod);
    let privileged = all_containers(pod.pod_spec()).any(|(_, container)| is_privileged(&container));
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        selinux_options: context.se_linux_options.as_ref().map(selinux),
        run_as_user: context.run_as_user.map(|value| Int64Value { value }),
        run_as_group: context.run_as_group.map(|value| Int64Value { value }),
        readonly_rootfs: false,
        supplemental_groups: groups(&context, volume_groups),
        supplemental_groups_policy: groups_policy(&context).into(),
        privileged,
        // The pause process needs nothing a profile would take from it.
        seccomp: Some(seccomp_of_sandbox(&context, seccomp_root)),
        apparmor: None,
    }
}

fn seccomp_of_sandbox(context: &PodSecurityContext, root: &Path) -> SecurityProfile {
    let profile = context.seccomp_profile.as_ref();
    let default = SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), localhost_ref: String::new() };
    profile
        .and_then(|profile| seccomp(&profile.type_, profile.localhost_profile.as_deref(), root).ok())
        .unwrap_or(default)
}

fn seccomp(kind: &str, path: Option<&str>, root: &Path) -> Result<SecurityProfile, RunAsError> {
    let profile = |kind: ProfileType| SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() };
    match (kind, path) {
        ("RuntimeDefault", _) => Ok(profile(ProfileType::RuntimeDefault)),
        ("Localhost", Some(path)) if !path.is_empty() => Ok(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: root.join(path).to_string_lossy().into_owned(),
        }),
        // Unconfined where a path is missing would be less than was asked for.
        ("Localhost", _) => Err(RunAsError::SeccompWithoutPath),
        _ => Ok(profile(ProfileType::Unconfined)),
    }
}

fn groups(context: &PodSecurityContext, volume_groups: &[i64]) -> Vec<i64> {
    let mut groups: Vec<i64> = context.fs_group.into_iter().collect();
    groups.extend(context.supplemental_groups.iter().flatten());
    groups.extend(volume_groups);
    groups
}

fn groups_policy(context: &PodSecurityContext) -> SupplementalGroupsPolicy {
    match context.supplemental_groups_policy.as_deref() {
        Some("Strict") => SupplementalGroupsPolicy::Strict,
        _ => SupplementalGroupsPolicy::Merge,
    }
}

fn selinux(options: &rkube_api::k8s::core::v1::SELinuxOptions) -> SeLinuxOption {
    SeLinuxOption {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        r#type: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    }
}

/// The container's context; what it does not say, the pod says.
fn effective(pod: &PodSecurityContext, container: &Container) -> SecurityContext {
    let own = container.security_context.clone().unwrap_or_default();
    SecurityContext {
        run_as_user: own.run_as_user.or(pod.run_as_user),
        run_as_group: own.run_as_group.or(pod.run_as_group),
        run_as_non_root: own.run_as_non_root.or(pod.run_as_non_root),
        se_linux_options: own.se_linux_options.or(pod.se_linux_options.clone()),
        seccomp_profile: own.seccomp_profile.or(pod.seccomp_profile.clone()),
        app_armor_profile: own.app_armor_profile.or(pod.app_armor_profile.clone()),
        ..own
    }
}

/// What of the node decides about profiles.
#[derive(Clone, Copy, Debug)]
pub struct Profiles<'a> {
    pub seccomp_root: &'a Path,
    pub apparmor_enabled: bool,
}

pub fn container(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
    target: Option<&str>,
    volume_groups: &[i64],
    profiles: Profiles<'_>,
) -> Result<LinuxContainerSecurityContext, RunAsError> {
    let pod_context = pod_context(pod);
    let context = effective(&pod_context, container);
    verify_non_root(pod, container, &context, image)?;
    let privileged = context.privileged == Some(true);
    let (run_as_user, run_as_username) = match (context.run_as_user, image.uid) {
        (Some(value), _) | (None, Some(value)) => (Some(Int64Value { value }), String::new()),
        (None, None) => (None, image.name.clone()),
    };
    let seccomp = match (&context.seccomp_profile, privileged) {
        (Some(profile), false) => seccomp(&profile.type_, profile.localhost_profile.as_deref(), profiles.seccomp_root)?,
        _ => SecurityProfile { profile_type: ProfileType::Unconfined.into(), localhost_ref: String::new() },
    };
    let unmasked = context.proc_mount.as_deref() == Some("Unmasked") || privileged;
    let paths = |paths: Vec<&str>| if unmasked { vec![] } else { paths.into_iter().map(str::to_owned).collect() };
    Ok(LinuxContainerSecurityContext {
        capabilities: context.capabilities.as_ref().map(|capabilities| Capability {
            add_capabilities: capabilities.add.clone().unwrap_or_default(),
            drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
            ..Capability::default()
        }),
        privileged,
        namespace_options: Some(namespaces(pod, target)),
        selinux_options: context.se_linux_options.as_ref().map(selinux),
        run_as_user,
        run_as_username,
        run_as_group: context.run_as_group.map(|value| Int64Value { value }),
        readonly_rootfs: context.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&pod_context, volume_groups),
        supplemental_groups_policy: groups_policy(&pod_context).into(),
        no_new_privs: context.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED_PATHS.into_iter().chain(MASKED_DEVICES).collect()),
        readonly_paths: paths(READONLY_PATHS.to_vec()),
        seccomp: Some(seccomp),
        apparmor: apparmor(pod, container, &context, profiles.apparmor_enabled),
    })
}

fn apparmor(pod: &Pod, container: &Container, context: &SecurityContext, enabled: bool) -> Option<SecurityProfile> {
    if !enabled {
        return None;
    }
    if let Some(profile) = &context.app_armor_profile {
        let kind = match profile.type_.as_str() {
            "RuntimeDefault" => ProfileType::RuntimeDefault,
            "Localhost" => ProfileType::Localhost,
            _ => ProfileType::Unconfined,
        };
        let localhost_ref = profile.localhost_profile.clone().unwrap_or_default();
        return Some(SecurityProfile { profile_type: kind.into(), localhost_ref });
    }
    let annotation = pod.annotation(&format!("{APPARMOR_ANNOTATION}{}", container.name))?;
    let (kind, localhost_ref) = match annotation.strip_prefix("localhost/") {
        Some(name) => (ProfileType::Localhost, name.to_owned()),
        None if annotation == "unconfined" => (ProfileType::Unconfined, String::new()),
        None => (ProfileType::RuntimeDefault, String::new()),
    };
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref })
}

fn verify_non_root(
    pod: &Pod,
    container: &Container,
    context: &SecurityContext,
    image: &ImageUser,
) -> Result<(), RunAsError> {
    if context.run_as_non_root != Some(true) {
        return Ok(());
    }
    let (pod, container) = (pod.full_text(), container.name.clone());
    match (context.run_as_user, image.uid) {
        (Some(0), _) => Err(RunAsError::User { pod, container }),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(RunAsError::Image { pod, container }),
        (None, None) if !image.name.is_empty() => {
            Err(RunAsError::ImageUserName { user: image.name.clone(), pod, container })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rkube_api::k8s::core::v1::PodSpec;

    use super::*;

    fn profiles() -> Profiles<'static> {
        Profiles { seccomp_root: Path::new("/seccomp"), apparmor_enabled: false }
    }

    fn pod(non_root: bool) -> Pod {
        let context = PodSecurityContext { run_as_non_root: Some(non_root), fs_group: Some(7), ..Default::default() };
        Pod { spec: Some(PodSpec { security_context: Some(context), ..Default::default() }), ..Default::default() }
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let check = |user: Option<i64>, uid: Option<i64>, name: &str| {
            let security_context = Some(SecurityContext { run_as_user: user, ..Default::default() });
            let subject = Container { security_context, ..Default::default() };
            let image = ImageUser { uid, name: name.into() };
            container(&pod(true), &subject, &image, None, &[], profiles())
                .map(|context| context.run_as_user.map(|u| u.value))
        };
        assert_eq!(check(Some(5), Some(0), ""), Ok(Some(5)));
        assert_eq!(check(None, Some(5), ""), Ok(Some(5)));
        assert!(matches!(check(Some(0), None, ""), Err(RunAsError::User { .. })));
        assert!(matches!(check(None, Some(0), ""), Err(RunAsError::Image { .. })));
        assert!(matches!(check(None, None, "web"), Err(RunAsError::ImageUserName { .. })));
    }

    #[test]
    fn groups_come_from_the_pod_and_its_volumes() {
        let context =
            container(&pod(false), &Container::default(), &ImageUser::default(), None, &[9], profiles()).unwrap();
        assert_eq!(context.supplemental_groups, [7, 9]);
        assert!(!context.masked_paths.is_empty());
    }
}
