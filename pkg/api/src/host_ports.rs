//! Host ports and which of them exclude one another. The scheduler and the kubelet must agree on it.
//!
//! Behaves as kube-scheduler/framework/types.go (`HostPortInfo`), v1.36.

use k8s_openapi::api::core::v1::PodSpec;

use crate::pod_resources::is_sidecar;

/// A port of the node that a container wants for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    ip: Box<str>,
    protocol: Box<str>,
    port: i32,
}

const ANY: &str = "0.0.0.0";

impl HostPort {
    fn new(ip: Option<&str>, protocol: Option<&str>, port: i32) -> Self {
        let or = |text: Option<&str>, default: &str| text.filter(|text| !text.is_empty()).unwrap_or(default).into();
        Self { ip: or(ip, ANY), protocol: or(protocol, "TCP"), port }
    }

    /// One address in common is enough.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || &*self.ip == ANY || &*other.ip == ANY)
    }
}

/// The ports of the pod's containers and sidecars.
pub fn host_ports_of(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(HostPort::new(port.host_ip.as_deref(), port.protocol.as_deref(), number))
        })
        .collect()
}
