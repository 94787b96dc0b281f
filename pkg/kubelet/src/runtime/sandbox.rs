//! The configuration of a pod's sandbox.
//!
//! Behaves as pkg/kubelet/kuberuntime/kuberuntime_sandbox{,_linux}.go, v1.36.

use std::path::{Path, PathBuf};

use rkube_api::k8s::core::v1::Pod;
use rkube_cri::v1::{
    DnsConfig, LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping,
    Protocol,
};

use crate::pod::{PodExt, all_containers, all_limited, pod_limit, pod_request, quantity};
use crate::runtime::{labels, resources, security};

/// What a sandbox needs from outside its pod.
pub struct SandboxInputs<'a> {
    pub attempt: u32,
    pub hostname: String,
    pub dns: DnsConfig,
    pub logs_root: &'a Path,
    pub cgroup_parent: String,
    pub seccomp_root: &'a Path,
    pub volume_groups: &'a [i64],
}

/// `/var/log/pods/<namespace>_<name>_<uid>`
pub fn log_directory(root: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    root.join(format!("{namespace}_{name}_{uid}"))
}

pub fn config(pod: &Pod, inputs: SandboxInputs<'_>) -> PodSandboxConfig {
    let uid = pod.uid();
    let log_directory = log_directory(inputs.logs_root, pod.namespace(), pod.name(), uid.as_str());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.name().to_owned(),
            namespace: pod.namespace().to_owned(),
            uid: uid.to_string(),
            attempt: inputs.attempt,
        }),
        // On the host's network the host's name is seen, so none is set.
        hostname: if pod.is_host_network() { String::new() } else { inputs.hostname },
        log_directory: log_directory.to_string_lossy().into_owned(),
        dns_config: Some(inputs.dns),
        port_mappings: port_mappings(pod),
        labels: labels::pod_labels(pod),
        annotations: labels::pod_annotations(pod),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: inputs.cgroup_parent,
            security_context: Some(security::sandbox(pod, inputs.seccomp_root, inputs.volume_groups)),
            sysctls: sysctls(pod),
            overhead: Some(overhead(pod)),
            resources: Some(total(pod)),
        }),
    }
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if pod.is_host_network() {
        return vec![];
    }
    let mut mappings: Vec<PortMapping> = vec![];
    for (_, container) in all_containers(pod.pod_spec()) {
        for port in container.ports.as_deref().unwrap_or_default() {
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            let mapping = PortMapping {
                protocol: protocol.into(),
                container_port: port.container_port,
                host_port: port.host_port.unwrap_or(0),
                host_ip: port.host_ip.clone().unwrap_or_default(),
            };
            let same = |known: &PortMapping| {
                (known.protocol, known.container_port, known.host_port, &known.host_ip)
                    == (mapping.protocol, mapping.container_port, mapping.host_port, &mapping.host_ip)
            };
            if !mappings.iter().any(same) {
                mappings.push(mapping);
            }
        }
    }
    mappings
}

fn sysctls(pod: &Pod) -> std::collections::HashMap<String, String> {
    let context = pod.pod_spec().security_context.as_ref();
    let sysctls = context.and_then(|context| context.sysctls.as_deref()).unwrap_or_default();
    // runtimes know sysctls by dots only
    sysctls.iter().map(|sysctl| (dotted(&sysctl.name), sysctl.value.clone())).collect()
}

/// `net/ipv4/ip_forward` is `net.ipv4.ip_forward`, unless a dot came first.
pub fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn overhead(pod: &Pod) -> LinuxContainerResources {
    let of = |name: &str| quantity(pod.pod_spec().overhead.as_ref().and_then(|map| map.get(name)));
    numbers(
        Some(of("cpu").milli_value()).filter(|v| *v > 0),
        Some(of("cpu").milli_value()).filter(|v| *v > 0),
        of("memory").value(),
    )
}

/// The sum over the pod, without overhead: runtimes size virtual machines by it.
fn total(pod: &Pod) -> LinuxContainerResources {
    let mut spec = pod.pod_spec().clone();
    spec.overhead = None;
    let request = Some(pod_request(&spec, "cpu").milli_value());
    let limit = all_limited(&spec, "cpu").then(|| pod_limit(&spec, "cpu").milli_value());
    let memory = if all_limited(&spec, "memory") { pod_limit(&spec, "memory").value() } else { 0 };
    numbers(request, limit, memory)
}

fn numbers(cpu_request: Option<i64>, cpu_limit: Option<i64>, memory: i64) -> LinuxContainerResources {
    let quota = cpu_limit.map_or(0, resources::quota);
    LinuxContainerResources {
        cpu_shares: cpu_request.map_or(0, resources::shares),
        cpu_quota: quota,
        cpu_period: if quota == 0 { 0 } else { resources::QUOTA_PERIOD },
        memory_limit_in_bytes: memory,
        ..LinuxContainerResources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_are_named_with_dots() {
        for (given, dots) in [
            ("net.ipv4.ip_forward", "net.ipv4.ip_forward"),
            ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            ("net.ipv4.conf.eth0/1.x", "net.ipv4.conf.eth0/1.x"),
            ("net/ipv4/conf/eth0.1/x", "net.ipv4.conf.eth0/1.x"),
        ] {
            assert_eq!(dotted(given), dots);
        }
    }
}
