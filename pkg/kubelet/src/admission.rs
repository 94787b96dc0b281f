//! Whether a pod may run here: room, sysctls, pressure. Pure but for the node's figures.
//!
//! Behaves as pkg/kubelet/lifecycle/predicate.go, pkg/kubelet/sysctl and the eviction manager's Admit, v1.36.

use std::sync::Arc;

use rkube_api::k8s::core::v1::Pod;

use crate::config::KubeletConfig;
use crate::node::NodeManager;
use crate::pod::{PodExt, QosClass, pod_request};
use crate::runtime::sandbox::dotted;
use crate::shutdown::{NOT_ADMITTED_MESSAGE, NOT_ADMITTED_REASON};
use crate::status::Verdict;

/// Sysctls that are the pod's own and cannot hurt others.
const SAFE_SYSCTLS: [&str; 14] = [
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
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_notsent_lowat",
];

fn refuse(reason: &str, message: String) -> Verdict {
    Verdict { reason: reason.to_owned(), message, disruption: None }
}

/// `others` are the pods that take part of the node already.
pub fn admit(config: &KubeletConfig, pod: &Pod, others: &[Arc<Pod>], node: &NodeManager) -> Result<(), Verdict> {
    if node.is_shutting_down() {
        return Err(refuse(NOT_ADMITTED_REASON, NOT_ADMITTED_MESSAGE.to_owned()));
    }
    check_os(pod)?;
    check_sysctls(pod, &config.allowed_unsafe_sysctls)?;
    check_pressure(pod, node)?;
    check_room(config, pod, others, node)
}

fn check_os(pod: &Pod) -> Result<(), Verdict> {
    match pod.pod_spec().os.as_ref().map(|os| os.name.as_str()) {
        None | Some("linux") => Ok(()),
        Some(_) => {
            Err(refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS".to_owned()))
        }
    }
}

fn check_sysctls(pod: &Pod, allowed: &[String]) -> Result<(), Verdict> {
    let context = pod.pod_spec().security_context.as_ref();
    for sysctl in context.and_then(|context| context.sysctls.as_deref()).unwrap_or_default() {
        let name = dotted(&sysctl.name);
        let permitted = allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        });
        if !permitted && !SAFE_SYSCTLS.contains(&name.as_str()) {
            return Err(refuse("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted")));
        }
    }
    Ok(())
}

fn check_pressure(pod: &Pod, node: &NodeManager) -> Result<(), Verdict> {
    let pressure = node.pressure();
    if pod.is_critical() || pressure.is_empty() {
        return Ok(());
    }
    // Memory pressure alone spares pods that reserved theirs.
    if pressure == ["MemoryPressure"] && pod.qos() != QosClass::BestEffort {
        return Ok(());
    }
    let message = format!("The node had condition: [{}]. ", pressure.join(" "));
    Err(refuse("Evicted", message))
}

fn check_room(config: &KubeletConfig, pod: &Pod, others: &[Arc<Pod>], node: &NodeManager) -> Result<(), Verdict> {
    let short = |resource: &str, requested: i64, used: i64, capacity: i64| {
        let message = format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        Err(refuse(&format!("OutOf{resource}"), message))
    };
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if count >= i64::from(config.pods_max) {
        return short("pods", 1, count, i64::from(config.pods_max));
    }
    let allocatable = node.allocatable();
    for (name, capacity, milli) in [
        ("cpu", allocatable.cpu_milli, true),
        ("memory", allocatable.memory, false),
        ("ephemeral-storage", allocatable.ephemeral_storage, false),
    ] {
        let of = |pod: &Pod| {
            let request = pod_request(pod.pod_spec(), name);
            if milli { request.milli_value() } else { request.value() }
        };
        let requested = of(pod);
        let used: i64 = others.iter().map(|other| of(other)).sum();
        if requested > 0 && requested > capacity.saturating_sub(used) {
            return short(name, requested, used, capacity);
        }
    }
    Ok(())
}
