//! Which sysctls a pod may set: those that are its own and cannot hurt others, and what the administrator allows.
//!
//! Behaves as pkg/kubelet/sysctl/{allowlist,safe_sysctls}.go, v1.36.

use rkube_api::k8s::core::v1::Pod;

use super::{Refusal, refuse};
use crate::pod::PodExt;
use crate::runtime::sandbox::dotted;

const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

pub(super) fn check(pod: &Pod, allowed: &[String]) -> Result<(), Refusal> {
    let spec = pod.pod_spec();
    let context = spec.security_context.as_ref();
    for sysctl in context.and_then(|context| context.sysctls.as_deref()).unwrap_or_default() {
        let name = dotted(&sysctl.name);
        let is_allowed = allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        });
        if !is_allowed && !SAFE.contains(&name.as_str()) {
            return refuse("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        // In a namespace of the host it would be the host's.
        let shared = match namespace(&name) {
            Some(space @ "net") if spec.host_network == Some(true) => Some(space),
            Some(space @ "ipc") if spec.host_ipc == Some(true) => Some(space),
            _ => None,
        };
        if let Some(space) = shared {
            let message = format!("forbidden sysctl: {name:?} not allowed with host {space} enabled");
            return refuse("SysctlForbidden", message);
        }
    }
    Ok(())
}

/// The namespace that a sysctl belongs to.
fn namespace(name: &str) -> Option<&'static str> {
    let is_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix));
    if name.starts_with("net.") {
        Some("net")
    } else if is_ipc || name == "kernel.sem" {
        Some("ipc")
    } else {
        None
    }
}
