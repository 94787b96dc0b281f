//! Which addresses each Service of type `LoadBalancer` gets: those of the nodes that take connections for it.
//!
//! Invariant: no two Services have the same address and port, and none has a port that a node itself listens on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{Node, Service};
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::object_key;

use crate::common::nodes::ready_status;

const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The value of `spec.loadBalancerClass` that asks for this controller by name.
const CLASS: &str = "rkube.io/servicelb";

/// A node that takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taker {
    pub(super) name: String,
    /// What clients outside use: external addresses if the node has any.
    pub(super) addresses: Vec<Ipv4Addr>,
}

/// What a Service gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) addresses: BTreeSet<Ipv4Addr>,
    /// Why it got none, if it did not.
    pub(super) refusal: Option<Refusal>,
}

/// Why a Service has no address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no ready node has an IPv4 address for it")]
    NoNode,
    #[error("no node with a ready endpoint, which externalTrafficPolicy Local asks for")]
    NoLocalEndpoint,
    #[error("port {port} of every node is used by {by}")]
    Taken { port: i32, by: String },
}

/// `None` for a node that should get no connections from outside.
pub(super) fn taker(node: &Node) -> Option<Taker> {
    let metadata = &node.metadata;
    let excluded = metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDE_LABEL));
    if excluded || ready_status(node) != Some("True") || metadata.deletion_timestamp.is_some() {
        return None;
    }
    let of = |kind: &str| -> Vec<Ipv4Addr> {
        let all = node.status.as_ref().and_then(|status| status.addresses.as_ref());
        let addresses = all.into_iter().flatten().filter(|address| address.type_ == kind);
        addresses.filter_map(|address| address.address.parse().ok()).collect()
    };
    let addresses = Some(of("ExternalIP")).filter(|all| !all.is_empty()).unwrap_or_else(|| of("InternalIP"));
    Some(Taker { name: metadata.name.clone()?, addresses })
}

/// Whether the Service is a load balancer of no other controller's.
pub(super) fn is_ours(service: &Service) -> bool {
    let Some(spec) = service.spec.as_ref() else { return false };
    spec.type_.as_deref() == Some("LoadBalancer")
        && spec.load_balancer_class.as_deref().is_none_or(|class| class == CLASS)
        && service.metadata.deletion_timestamp.is_none()
}

/// Whether only nodes with endpoints of its own may take connections.
pub(super) fn is_local(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local")
}

/// Shares the nodes' addresses out. Who was first keeps what it has.
///
/// `near` says on which nodes a Service has ready endpoints, `reserved` which TCP ports nodes listen on.
pub(super) fn share_out(
    services: &[Arc<Service>],
    takers: &[Taker],
    reserved: &BTreeMap<i32, &str>,
    near: impl Fn(&ObjectKey) -> BTreeSet<String>,
) -> BTreeMap<ObjectKey, Share> {
    let mut ours: Vec<_> = services.iter().filter(|service| is_ours(service)).collect();
    ours.sort_by_key(|service| {
        (service.metadata.creation_timestamp.as_ref().map(|time| time.0), object_key(&***service))
    });
    let mut taken: BTreeMap<(Ipv4Addr, String, i32), ObjectKey> = BTreeMap::new();
    let mut shares = BTreeMap::new();
    for service in ours {
        let key = object_key(&**service);
        let near = is_local(service).then(|| near(&key));
        let nodes = takers.iter().filter(|taker| near.as_ref().is_none_or(|near| near.contains(&taker.name)));
        let addresses: BTreeSet<_> = nodes.flat_map(|taker| taker.addresses.iter().copied()).collect();
        let ports: Vec<_> = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).collect();
        let claims = |address: Ipv4Addr| {
            ports
                .iter()
                .map(move |port| (address, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), port.port))
        };
        let conflict = |address: Ipv4Addr| {
            claims(address).find_map(|claim| {
                let own = reserved.get(&claim.2).filter(|_| claim.1 == "TCP").map(|by| (*by).to_owned());
                let by = own.or_else(|| taken.get(&claim).map(|key| format!("Service {key}")))?;
                Some(Refusal::Taken { port: claim.2, by })
            })
        };
        let mut share = Share::default();
        if addresses.is_empty() {
            share.refusal = Some(if near.is_some() { Refusal::NoLocalEndpoint } else { Refusal::NoNode });
        }
        for address in addresses {
            match conflict(address) {
                None => {
                    share.addresses.insert(address);
                }
                Some(refusal) => share.refusal = Some(refusal),
            }
        }
        if !share.addresses.is_empty() {
            share.refusal = None;
        }
        let new: Vec<_> = share.addresses.iter().flat_map(|address| claims(*address)).collect();
        taken.extend(new.into_iter().map(|claim| (claim, key.clone())));
        shares.insert(key, share);
    }
    shares
}

/// The addresses that the Service shows.
pub(super) fn shown(service: &Service) -> Vec<String> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    ingress.map(|ingress| ingress.ip.clone().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use rkube_api::Kind;
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, day: u8, mut spec: Value) -> Arc<Service> {
        spec["type"] = "LoadBalancer".into();
        let created = format!("2026-01-{day:02}T00:00:00Z");
        let metadata = json!({"namespace": "default", "name": name, "creationTimestamp": created});
        Arc::new(Service::from_value(json!({"metadata": metadata, "spec": spec})).expect("a Service"))
    }

    fn node(name: &str, ready: &str, addresses: Value) -> Option<Taker> {
        let status = json!({"conditions": [{"type": "Ready", "status": ready}], "addresses": addresses});
        taker(&Node::from_value(json!({"metadata": {"name": name}, "status": status})).expect("a Node"))
    }

    #[test]
    fn who_was_first_has_the_port_and_the_nodes_keep_their_own() {
        let internal = |ip: &str| json!({"type": "InternalIP", "address": ip});
        let nodes = [
            node("a", "True", json!([internal("192.0.2.1"), {"type": "ExternalIP", "address": "203.0.113.1"}])),
            node("b", "True", json!([internal("192.0.2.2")])),
            node("c", "False", json!([internal("192.0.2.3")])),
        ];
        let takers: Vec<_> = nodes.into_iter().flatten().collect();
        let web = json!([{"port": 80, "protocol": "TCP"}]);
        let services = [
            service("late", 2, json!({"ports": web})),
            service("first", 1, json!({"ports": web, "externalTrafficPolicy": "Local"})),
            service("nothing-left", 4, json!({"ports": web})),
            service("nowhere", 5, json!({"ports": [{"port": 81}], "externalTrafficPolicy": "Local"})),
            service("datagrams", 3, json!({"ports": [{"port": 80, "protocol": "UDP"}]})),
            service("kubelet", 3, json!({"ports": [{"port": 10250}]})),
            service("other", 1, json!({"ports": web, "loadBalancerClass": "example.com/lb"})),
        ];
        let near = |key: &ObjectKey| -> BTreeSet<String> {
            if &*key.name == "first" { BTreeSet::from(["b".to_owned()]) } else { BTreeSet::new() }
        };
        let shares = share_out(&services, &takers, &BTreeMap::from([(10250, "the kubelet")]), near);
        let text: String = shares
            .iter()
            .map(|(key, share)| match &share.refusal {
                None => format!("{key} {:?}\n", share.addresses),
                Some(refusal) => format!("{key}: {refusal}\n"),
            })
            .collect();
        expect![[r#"
            default/datagrams {192.0.2.2, 203.0.113.1}
            default/first {192.0.2.2}
            default/kubelet: port 10250 of every node is used by the kubelet
            default/late {203.0.113.1}
            default/nothing-left: port 80 of every node is used by Service default/late
            default/nowhere: no node with a ready endpoint, which externalTrafficPolicy Local asks for
        "#]]
        .assert_eq(&text);
    }
}
