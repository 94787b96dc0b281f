//! Which pods are behind which Services, and under which ports.
//!
//! Behaves as staging/endpointslice/util/controller_utils.go and `FindPort`, v1.36.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{Pod, Service, ServicePort};
use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::object_key;
use rkube_client::{Delta, Lister};

use super::pods;

/// Whether a Service selects pods with these labels. One without selector selects none.
pub(crate) fn selects(service: &Service, labels: Option<&BTreeMap<String, String>>) -> bool {
    let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else { return false };
    selector.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
}

/// The Services whose endpoints a change of a pod may concern.
pub(crate) fn affected_services(services: &Lister<Service>, delta: &Delta<Arc<Pod>>) -> Vec<ObjectKey> {
    let pod = delta.object();
    let old = delta.old();
    let relabelled = old.is_some_and(|old| moved(old, pod));
    if old.is_some_and(|old| !relabelled && !endpoint_changed(old, pod)) {
        return Vec::new();
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let concerned = |service: &Arc<Service>| {
        selects(service, pod.metadata.labels.as_ref())
            || (relabelled && old.is_some_and(|old| selects(service, old.metadata.labels.as_ref())))
    };
    services.list_all(namespace).into_iter().filter(concerned).map(|service| object_key(&*service)).collect()
}

/// Whether the pod may have other Services, or another name in them.
fn moved(old: &Pod, new: &Pod) -> bool {
    let name = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        (spec.and_then(|spec| spec.hostname.clone()), spec.and_then(|spec| spec.subdomain.clone()))
    };
    old.metadata.labels != new.metadata.labels || name(old) != name(new)
}

fn endpoint_changed(old: &Pod, new: &Pod) -> bool {
    old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
        || pods::is_ready(old) != pods::is_ready(new)
        || pods::is_terminal(old) != pods::is_terminal(new)
        || addresses(old) != addresses(new)
        || pods::node_name(old) != pods::node_name(new)
}

pub(crate) fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = pod.status.as_ref();
    let all = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
    all.filter_map(|address| address.ip.parse().ok()).collect()
}

/// Whether the pod is an endpoint at all, ready or not.
pub(crate) fn should_be_in_endpoints(pod: &Pod, include_terminating: bool) -> bool {
    let has_address = pod.status.as_ref().is_some_and(|status| {
        status.pod_ip.as_deref().is_some_and(|ip| !ip.is_empty()) || status.pod_ips.iter().flatten().next().is_some()
    });
    !pods::is_terminal(pod) && has_address && (include_terminating || !pods::is_terminating(pod))
}

/// The name under which the pod has an address of its own in the Service's domain.
pub(crate) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_ref().filter(|hostname| !hostname.is_empty())?;
    let same = spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace;
    same.then(|| hostname.clone())
}

/// The port of the pod that a Service's port leads to.
pub(crate) fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match port.target_port.as_ref() {
        None => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let protocol = |protocol: &Option<String>| protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let wanted = protocol(&port.protocol);
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let found = ports.find(|port| port.name.as_ref() == Some(name) && protocol(&port.protocol) == wanted);
    found.map(|port| port.container_port)
}

pub(crate) fn is_headless(service: &Service) -> bool {
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    address.is_empty() || address == "None"
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

/// Whether endpoints are made for this Service: not without a selector, and not for a mere alias.
pub(crate) fn wants_endpoints(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| spec.selector.is_some() && spec.type_.as_deref() != Some("ExternalName"))
}
