//! networking.k8s.io/v1 NetworkPolicy.
//!
//! Behaves as ValidateNetworkPolicy of pkg/apis/networking/validation/validation.go, v1.36.

use rkube_api::k8s::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};
use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names::{self, ip};

use crate::common::defaults::default_to;
use crate::common::meta::{
    SelectorOptions, validate_label_selector, validate_object_meta, validate_object_meta_update,
};
use crate::common::names::{dns_subdomain, validate_cidr, validate_port};
use crate::common::report::{OptList, Report};

pub fn set_defaults(policy: &mut NetworkPolicy) {
    let spec = policy.spec.get_or_insert_default();
    spec.pod_selector.get_or_insert_default();
    if spec.policy_types.items().is_empty() {
        let mut types = vec!["Ingress".to_owned()];
        if !spec.egress.items().is_empty() {
            types.push("Egress".to_owned());
        }
        spec.policy_types = Some(types);
    }
    let ingress = spec.ingress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut().flatten());
    let egress = spec.egress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut().flatten());
    for port in ingress.chain(egress) {
        default_to(&mut port.protocol, "TCP".to_owned());
    }
}

pub fn validate(policy: &NetworkPolicy) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&policy.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    let spec = policy.spec.clone().unwrap_or_default();
    validate_spec(&spec, SelectorOptions::default(), &[], &mut errors);
    errors
}

pub fn validate_update(new: &NetworkPolicy, old: &NetworkPolicy) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let ingress = old_spec.ingress.items().iter().flat_map(|rule| rule.from.items());
    let egress = old_spec.egress.items().iter().flat_map(|rule| rule.to.items());
    let blocks: Vec<&IPBlock> = ingress.chain(egress).filter_map(|peer| peer.ip_block.as_ref()).collect();
    let known: Vec<&str> = blocks
        .iter()
        .flat_map(|block| std::iter::once(&block.cidr).chain(block.except.items()))
        .map(String::as_str)
        .collect();
    let mut old_errors = ErrorList::new();
    let options = SelectorOptions::default();
    validate_label_selector(old_spec.pod_selector.as_ref(), options, &Path::root(), &mut old_errors);
    let options = SelectorOptions { allow_invalid_label_value: !old_errors.is_empty(), ..options };
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_spec(&spec, options, &known, &mut errors);
    errors
}

fn validate_spec(spec: &NetworkPolicySpec, options: SelectorOptions, known: &[&str], errors: &mut ErrorList) {
    let path = Path::new("spec");
    validate_label_selector(spec.pod_selector.as_ref(), options, &path.child("podSelector"), errors);
    let ingress = spec.ingress.items().iter().map(|rule| (rule.ports.items(), rule.from.items()));
    let egress = spec.egress.items().iter().map(|rule| (rule.ports.items(), rule.to.items()));
    let rules = ingress
        .enumerate()
        .map(|(index, rule)| ("ingress", "from", index, rule))
        .chain(egress.enumerate().map(|(index, rule)| ("egress", "to", index, rule)));
    for (direction, peers_field, index, (ports, peers)) in rules {
        let path = path.child(direction).index(index);
        for (index, port) in ports.iter().enumerate() {
            validate_policy_port(port, &path.child("ports").index(index), errors);
        }
        for (index, peer) in peers.iter().enumerate() {
            validate_peer(peer, options, known, &path.child(peers_field).index(index), errors);
        }
    }
    let types = spec.policy_types.items();
    if types.len() > 2 {
        errors.invalid(path.child("policyTypes"), types.to_vec(), "may not specify more than two policyTypes");
        return;
    }
    for (index, kind) in types.iter().enumerate() {
        errors.one_of(path.child("policyTypes").index(index), kind, &["Ingress", "Egress"]);
    }
}

fn validate_policy_port(port: &NetworkPolicyPort, path: &Path, errors: &mut ErrorList) {
    if let Some(protocol) = &port.protocol {
        errors.one_of(path.child("protocol"), protocol, &["TCP", "UDP", "SCTP"]);
    }
    let end_path = path.child("endPort");
    match (&port.port, port.end_port) {
        (Some(IntOrString::Int(number)), end) => {
            validate_port(*number, path.child("port"), errors);
            if let Some(end) = end {
                if end < *number {
                    errors.invalid(&end_path, *number, "must be greater than or equal to `port`");
                }
                validate_port(end, &end_path, errors);
            }
        }
        (Some(IntOrString::String(name)), end) => {
            if let Some(end) = end {
                errors.invalid(&end_path, end, "may not be specified when `port` is non-numeric");
            }
            errors.invalid_each(path.child("port"), name, names::is_valid_port_name(name));
        }
        (None, Some(end)) => errors.invalid(&end_path, end, "may not be specified when `port` is not specified"),
        (None, None) => {}
    }
}

fn validate_peer(
    peer: &NetworkPolicyPeer,
    options: SelectorOptions,
    known: &[&str],
    path: &Path,
    errors: &mut ErrorList,
) {
    validate_label_selector(peer.pod_selector.as_ref(), options, &path.child("podSelector"), errors);
    validate_label_selector(peer.namespace_selector.as_ref(), options, &path.child("namespaceSelector"), errors);
    let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
    match &peer.ip_block {
        Some(block) => {
            validate_ip_block(block, known, &path.child("ipBlock"), errors);
            if selects {
                errors.forbidden(path, "may not specify both ipBlock and another peer");
            }
        }
        None if !selects => errors.required(path, "must specify a peer"),
        None => {}
    }
}

fn validate_ip_block(block: &IPBlock, known: &[&str], path: &Path, errors: &mut ErrorList) {
    if block.cidr.is_empty() {
        errors.required(path.child("cidr"), "");
        return;
    }
    validate_cidr(&block.cidr, known, path.child("cidr"), errors);
    let Some(cidr) = ip::parse_cidr_sloppy(&block.cidr) else { return };
    for (index, except) in block.except.items().iter().enumerate() {
        let path = path.child("except").index(index);
        validate_cidr(except, known, &path, errors);
        let Some(inner) = ip::parse_cidr_sloppy(except) else { continue };
        if !cidr.contains(inner.network()) || cidr.prefix_len >= inner.prefix_len {
            errors.invalid(path, except.as_str(), "must be a strict subset of `cidr`");
        }
    }
}

/// Ranges that are not written in their canonical form.
pub fn warnings(policy: &NetworkPolicy) -> Vec<String> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let path = Path::new("spec");
    let ingress = spec.ingress.items().iter().map(|rule| rule.from.items()).enumerate();
    let ingress = ingress.map(|(index, peers)| (path.child("ingress").index(index).child("from"), peers));
    let egress = spec.egress.items().iter().map(|rule| rule.to.items()).enumerate();
    let egress = egress.map(|(index, peers)| (path.child("egress").index(index).child("to"), peers));
    let mut warnings = Vec::new();
    for (path, peers) in ingress.chain(egress) {
        for (index, peer) in peers.iter().enumerate() {
            let Some(block) = &peer.ip_block else { continue };
            let path = path.index(index).child("ipBlock");
            warnings.extend(ip::warnings_for_cidr(&path.child("cidr"), &block.cidr));
            for (index, except) in block.except.items().iter().enumerate() {
                warnings.extend(ip::warnings_for_cidr(&path.child("except").index(index), except));
            }
        }
    }
    warnings
}
