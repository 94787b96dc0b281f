//! The baseline level: nothing known to lead to the host.
//!
//! Behaves as `pod-security-admission/policy/check_*.go`, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::core::v1::{PodSpec, SELinuxOptions};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;

use super::evaluate::{Check, Violation};
use super::view::{bad, containers, has_user_namespace, list, named, plural, quoted, setters};

pub(super) const CHECKS: &[Check] = &[
    Check { id: "appArmorProfile", forms: &[(0, app_armor)], overrides: None },
    Check { id: "capabilities_baseline", forms: &[(0, capabilities)], overrides: None },
    Check { id: "hostNamespaces", forms: &[(0, host_namespaces)], overrides: None },
    Check { id: "hostPathVolumes", forms: &[(0, host_path_volumes)], overrides: None },
    Check { id: "hostPorts", forms: &[(0, host_ports)], overrides: None },
    Check { id: "hostProbesAndHostLifecycle", forms: &[(34, probe_hosts)], overrides: None },
    Check { id: "privileged", forms: &[(0, privileged)], overrides: None },
    Check { id: "procMount", forms: &[(0, proc_mount), (35, proc_mount_1_35)], overrides: None },
    Check { id: "seLinuxOptions", forms: &[(0, selinux_1_0), (31, selinux_1_31)], overrides: None },
    Check { id: "seccompProfile_baseline", forms: &[(0, seccomp_annotations), (19, seccomp)], overrides: None },
    Check {
        id: "sysctls",
        forms: &[(0, sysctls_1_0), (27, sysctls_1_27), (29, sysctls_1_29), (32, sysctls_1_32)],
        overrides: None,
    },
    Check { id: "windowsHostProcess", forms: &[(0, windows_host_process)], overrides: None },
];

const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

fn app_armor(metadata: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut is_bad = |profile: Option<&str>| {
        let bad = profile.filter(|profile| !matches!(*profile, "RuntimeDefault" | "Localhost"));
        values.extend(bad.map(str::to_owned));
        bad.is_some()
    };
    let pod = spec.security_context.as_ref().and_then(|security| security.app_armor_profile.as_ref());
    let pod_is_bad = is_bad(pod.map(|profile| profile.type_.as_str()));
    let names = bad(spec, |container| {
        let profile = container.security.and_then(|security| security.app_armor_profile.as_ref());
        is_bad(profile.map(|profile| profile.type_.as_str()))
    });
    let mut values = list(&values);
    let is_allowed = |value: &str| value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
    let annotations: Vec<String> = metadata
        .annotations
        .iter()
        .flatten()
        .filter(|(name, value)| name.starts_with(APP_ARMOR_ANNOTATION) && !is_allowed(value))
        .map(|(name, value)| format!("{name}={value:?}"))
        .collect();
    let mut who: Vec<String> = setters(pod_is_bad, &names).into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
        values.extend(annotations);
    }
    if who.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    Violation::new(reason, format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&values)))
}

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn capabilities(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let mut others = BTreeSet::new();
    let names = bad(spec, |container| {
        let capabilities = container.security.and_then(|security| security.capabilities.as_ref());
        let added = capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
        let before = others.len();
        let mut is_bad = false;
        for capability in added.filter(|capability| !CAPABILITIES.contains(&capability.as_str())) {
            others.insert(capability.as_str());
            is_bad = true;
        }
        is_bad || others.len() > before
    });
    if names.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not include {} in securityContext.capabilities.add", named(&names), quoted(&list(&others)));
    Violation::new("non-default capabilities", detail)
}

fn host_namespaces(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let used: Vec<&str> =
        [(spec.host_network, "hostNetwork=true"), (spec.host_pid, "hostPID=true"), (spec.host_ipc, "hostIPC=true")]
            .into_iter()
            .filter(|(field, _)| *field == Some(true))
            .map(|(_, text)| text)
            .collect();
    if used.is_empty() { None } else { Violation::new("host namespaces", used.join(", ")) }
}

fn host_path_volumes(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let names: Vec<&str> = spec
        .volumes
        .iter()
        .flatten()
        .filter(|volume| volume.host_path.is_some())
        .map(|volume| volume.name.as_str())
        .collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names));
    Violation::new("hostPath volumes", detail)
}

fn host_ports(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    // Sorted as text, as upstream sorts them.
    let mut ports = BTreeSet::new();
    let names = bad(spec, |container| {
        let used = container.ports.iter().filter_map(|port| port.host_port.filter(|&port| port != 0));
        let used: Vec<String> = used.map(|port| port.to_string()).collect();
        let is_bad = !used.is_empty();
        ports.extend(used);
        is_bad
    });
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {}",
        named(&names),
        plural("uses", "use", names.len()),
        plural("hostPort", "hostPorts", ports.len()),
        list(&ports).join(", ")
    );
    Violation::new("hostPort", detail)
}

fn probe_hosts(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let mut hosts = BTreeSet::new();
    let mut names = BTreeSet::new();
    for container in containers(spec) {
        let probes = container.probes.into_iter().flatten().flat_map(|probe| {
            let http = probe.http_get.as_ref().and_then(|action| action.host.as_deref());
            [http, probe.tcp_socket.as_ref().and_then(|action| action.host.as_deref())]
        });
        let hooks = container.lifecycle.into_iter().flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]);
        let hooks = hooks.flatten().flat_map(|hook| {
            let http = hook.http_get.as_ref().and_then(|action| action.host.as_deref());
            [http, hook.tcp_socket.as_ref().and_then(|action| action.host.as_deref())]
        });
        for host in probes.chain(hooks).flatten().filter(|host| !host.is_empty()) {
            hosts.insert(host);
            names.insert(container.name);
        }
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {}",
        named(&list(&names)),
        plural("uses", "use", names.len()),
        plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len()),
        quoted(&list(&hosts))
    );
    Violation::new("probe or lifecycle host", detail)
}

fn privileged(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let names = bad(spec, |container| container.security.is_some_and(|security| security.privileged == Some(true)));
    if names.is_empty() {
        return None;
    }
    Violation::new("privileged", format!("{} must not set securityContext.privileged=true", named(&names)))
}

pub(super) fn proc_mount(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let mut types = BTreeSet::new();
    let names = bad(spec, |container| {
        let mount = container.security.and_then(|security| security.proc_mount.as_deref());
        let other = mount.filter(|mount| *mount != "Default");
        types.extend(other);
        other.is_some()
    });
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.procMount to {}", named(&names), quoted(&list(&types)));
    Violation::new("procMount", detail)
}

fn proc_mount_1_35(metadata: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    if has_user_namespace(spec) { None } else { proc_mount(metadata, spec) }
}

const SELINUX_TYPES_1_0: &[&str] = &["", "container_t", "container_init_t", "container_kvm_t"];
const SELINUX_TYPES_1_31: &[&str] = &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

fn selinux_1_0(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    selinux(spec, SELINUX_TYPES_1_0)
}

fn selinux_1_31(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    selinux(spec, SELINUX_TYPES_1_31)
}

fn selinux(spec: &PodSpec, allowed: &[&str]) -> Option<Violation> {
    let mut types = BTreeSet::new();
    let (mut sets_user, mut sets_role) = (false, false);
    let mut is_bad = |options: Option<&SELinuxOptions>| {
        let Some(options) = options else { return false };
        let type_ = options.type_.as_deref().unwrap_or_default();
        let bad_type = !allowed.contains(&type_);
        if bad_type {
            types.insert(type_.to_owned());
        }
        let is_set = |field: &Option<String>| field.as_ref().is_some_and(|text| !text.is_empty());
        sets_user |= is_set(&options.user);
        sets_role |= is_set(&options.role);
        bad_type || is_set(&options.user) || is_set(&options.role)
    };
    let pod = is_bad(spec.security_context.as_ref().and_then(|security| security.se_linux_options.as_ref()));
    let names =
        bad(spec, |container| is_bad(container.security.and_then(|security| security.se_linux_options.as_ref())));
    let who = setters(pod, &names)?;
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!("{} {}", plural("type", "types", types.len()), quoted(&list(&types))));
    }
    if sets_user {
        what.push("user may not be set".to_owned());
    }
    if sets_role {
        what.push("role may not be set".to_owned());
    }
    let detail = format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; "));
    Violation::new("seLinuxOptions", detail)
}

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// Before 1.19 seccomp was asked for by annotation.
fn seccomp_annotations(metadata: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let keys = containers(spec).map(|container| format!("{SECCOMP_CONTAINER}{}", container.name));
    let annotations = metadata.annotations.as_ref()?;
    let is_allowed =
        |value: &str| matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
    let forbidden: BTreeSet<String> = std::iter::once(SECCOMP_POD.to_owned())
        .chain(keys)
        .filter_map(|key| {
            let value = annotations.get(&key).filter(|value| !is_allowed(value))?;
            Some(format!("{key}={value:?}"))
        })
        .collect();
    if forbidden.is_empty() {
        return None;
    }
    let detail =
        format!("forbidden {} {}", plural("annotation", "annotations", forbidden.len()), list(&forbidden).join(", "));
    Violation::new("seccompProfile", detail)
}

pub(super) fn is_seccomp_allowed(profile: &str) -> bool {
    matches!(profile, "RuntimeDefault" | "Localhost")
}

pub(super) fn seccomp(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut is_bad = |profile: Option<&str>| {
        let other = profile.filter(|profile| !is_seccomp_allowed(profile));
        values.extend(other.map(str::to_owned));
        other.is_some()
    };
    let pod = spec.security_context.as_ref().and_then(|security| security.seccomp_profile.as_ref());
    let pod = is_bad(pod.map(|profile| profile.type_.as_str()));
    let names = bad(spec, |container| {
        let profile = container.security.and_then(|security| security.seccomp_profile.as_ref());
        is_bad(profile.map(|profile| profile.type_.as_str()))
    });
    let who = setters(pod, &names)?;
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(&list(&values)));
    Violation::new("seccompProfile", detail)
}

/// Safe sysctls, with the minor version each is safe from.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

fn sysctls(spec: &PodSpec, minor: u32) -> Option<Violation> {
    let set = spec.security_context.iter().flat_map(|security| security.sysctls.iter().flatten());
    let is_safe = |name: &str| SYSCTLS.iter().any(|(known, from)| *known == name && *from <= minor);
    let forbidden: Vec<&str> = set.map(|sysctl| sysctl.name.as_str()).filter(|name| !is_safe(name)).collect();
    if forbidden.is_empty() { None } else { Violation::new("forbidden sysctls", forbidden.join(", ")) }
}

fn sysctls_1_0(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    sysctls(spec, 0)
}

fn sysctls_1_27(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    sysctls(spec, 27)
}

fn sysctls_1_29(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    sysctls(spec, 29)
}

fn sysctls_1_32(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    sysctls(spec, 32)
}

fn windows_host_process(_: &ObjectMeta, spec: &PodSpec) -> Option<Violation> {
    let pod = spec.security_context.as_ref().and_then(|security| security.windows_options.as_ref());
    let pod = pod.is_some_and(|options| options.host_process == Some(true));
    let names = bad(spec, |container| {
        let options = container.security.and_then(|security| security.windows_options.as_ref());
        options.is_some_and(|options| options.host_process == Some(true))
    });
    let who = setters(pod, &names)?;
    Violation::new("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}
