//! discovery.k8s.io/v1 EndpointSlice.
//!
//! Behaves as pkg/apis/discovery/validation/validation.go and pkg/apis/discovery/v1/defaults.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::discovery::v1::{Endpoint, EndpointHints, EndpointPort, EndpointSlice};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names::{self, ip};

use crate::common::defaults::default_to;
use crate::common::meta::{validate_labels, validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_subdomain, is_ipv6, validate_dns1123_label, validate_ip, validate_qualified_name};
use crate::common::report::{FIELD_IMMUTABLE, OptList, OptMap, OptText, Report};
use crate::core::containers::PROTOCOLS;
use crate::core::endpoints::validate_endpoint_ip;

const TOPOLOGY_LABELS_MAX: usize = 16;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const ENDPOINTS_MAX: usize = 1000;
const HINTS_MAX: usize = 8;

pub fn set_defaults(slice: &mut EndpointSlice) {
    for port in slice.ports.iter_mut().flatten() {
        default_to(&mut port.name, String::new());
        default_to(&mut port.protocol, "TCP".to_owned());
    }
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.conditions.get_or_insert_default();
    }
}

pub fn validate(slice: &EndpointSlice) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_slice(slice, None, &mut errors);
    errors
}

pub fn validate_update(new: &EndpointSlice, old: &EndpointSlice) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_slice(new, Some(old), &mut errors);
    if new.address_type != old.address_type {
        errors.invalid(Path::new("addressType"), new.address_type.as_str(), FIELD_IMMUTABLE);
    }
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors
}

fn validate_slice(slice: &EndpointSlice, old: Option<&EndpointSlice>, errors: &mut ErrorList) {
    validate_object_meta(&slice.metadata, true, dns_subdomain, &Path::new("metadata"), errors);
    errors.required_one_of(Path::new("addressType"), &slice.address_type, &["FQDN", "IPv4", "IPv6"]);
    validate_ports(slice.ports.items(), &Path::new("ports"), errors);
    // What is stored stays writable, however it was accepted.
    let unchanged = old.is_some_and(|old| old.endpoints.items() == slice.endpoints.items());
    let endpoints = slice.endpoints.items();
    let path = Path::new("endpoints");
    if unchanged {
        return;
    }
    if endpoints.len() > ENDPOINTS_MAX {
        errors.too_many(path, endpoints.len(), ENDPOINTS_MAX);
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        validate_endpoint(endpoint, &slice.address_type, &path.index(index), errors);
    }
}

fn validate_endpoint(endpoint: &Endpoint, address_type: &str, path: &Path, errors: &mut ErrorList) {
    let addresses_path = path.child("addresses");
    let addresses = &endpoint.addresses;
    if addresses.is_empty() {
        errors.required(&addresses_path, "must contain at least 1 address");
    } else if addresses.len() > ADDRESSES_MAX {
        errors.too_many(&addresses_path, addresses.len(), ADDRESSES_MAX);
    }
    for (index, address) in addresses.iter().enumerate() {
        let item = addresses_path.index(index);
        let found = errors.len();
        match address_type {
            "IPv4" => validate_ip(address, &[], &item, errors),
            "IPv6" => errors.extend(ip::is_valid_ip(&item, address)),
            "FQDN" => errors.extend(names::is_fully_qualified_domain_name(&item, address)),
            _ => {}
        }
        if matches!(address_type, "IPv4" | "IPv6") && errors.len() == found {
            if is_ipv6(address) != (address_type == "IPv6") {
                errors.invalid(&addresses_path, address.as_str(), format!("must be an {address_type} address"));
            }
            validate_endpoint_ip(address, &item, errors);
        }
    }
    if let Some(node) = &endpoint.node_name {
        errors.invalid_each(path.child("nodeName"), node, dns_subdomain(node, false));
    }
    let topology_path = path.child("deprecatedTopology");
    if endpoint.deprecated_topology.count() > TOPOLOGY_LABELS_MAX {
        errors.too_many(&topology_path, endpoint.deprecated_topology.count(), TOPOLOGY_LABELS_MAX);
    }
    validate_labels(endpoint.deprecated_topology.as_ref(), &topology_path, errors);
    if let Some(hostname) = &endpoint.hostname {
        validate_dns1123_label(hostname, path.child("hostname"), errors);
    }
    if let Some(hints) = &endpoint.hints {
        validate_hints(hints, &path.child("hints"), errors);
    }
}

fn validate_ports(ports: &[EndpointPort], path: &Path, errors: &mut ErrorList) {
    if ports.len() > PORTS_MAX {
        errors.too_many(path, ports.len(), PORTS_MAX);
        return;
    }
    let mut taken = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = port.name.text();
        if !name.is_empty() {
            validate_dns1123_label(name, path.child("name"), errors);
        }
        if !taken.insert(name) {
            errors.duplicate(path.child("name"), name);
        }
        errors.required_one_of(path.child("protocol"), port.protocol.text(), &PROTOCOLS);
        if let Some(protocol) = &port.app_protocol {
            validate_qualified_name(protocol, path.child("appProtocol"), errors);
        }
    }
}

fn validate_hints(hints: &EndpointHints, path: &Path, errors: &mut ErrorList) {
    let zones: Vec<&str> = hints.for_zones.items().iter().map(|zone| zone.name.as_str()).collect();
    let nodes: Vec<&str> = hints.for_nodes.items().iter().map(|node| node.name.as_str()).collect();
    for (field, hints, is_zone) in [("forZones", zones, true), ("forNodes", nodes, false)] {
        let path = path.child(field);
        if hints.len() > HINTS_MAX {
            errors.too_many(path, hints.len(), HINTS_MAX);
            return;
        }
        let mut taken = BTreeSet::new();
        for (index, name) in hints.iter().enumerate() {
            let path = path.index(index).child("name");
            if !taken.insert(*name) {
                errors.duplicate(&path, *name);
            }
            let messages = if is_zone { names::is_label_value(name) } else { dns_subdomain(name, false) };
            errors.invalid_each(path, name, messages);
        }
    }
}

/// Our own controllers write addresses in their canonical form, so their slices are not searched.
pub fn warnings(slice: &EndpointSlice, old: Option<&EndpointSlice>) -> Vec<String> {
    const MANAGER_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
    const OWN_MANAGERS: [&str; 2] = ["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"];
    let mut warnings = Vec::new();
    if old.is_none() && slice.address_type == "FQDN" {
        warnings.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
    }
    if slice.metadata.labels.value(MANAGER_LABEL).is_some_and(|manager| OWN_MANAGERS.contains(&manager.as_str())) {
        return warnings;
    }
    for (index, endpoint) in slice.endpoints.items().iter().enumerate() {
        let path = Path::new("endpoints").index(index).child("addresses");
        for (index, address) in endpoint.addresses.iter().enumerate() {
            warnings.extend(ip::warnings_for_ip(&path.index(index), address));
        }
    }
    warnings
}

/// The topology of v1beta1 cannot be written any more, except that a node name which was kept there stays.
pub fn drop_deprecated_topology(new: &mut EndpointSlice, old: Option<&EndpointSlice>) {
    const HOSTNAME: &str = "kubernetes.io/hostname";
    if old.is_some_and(|old| old.endpoints == new.endpoints) {
        return;
    }
    let kept: BTreeSet<&String> = old
        .into_iter()
        .flat_map(|old| old.endpoints.items())
        .filter_map(|endpoint| endpoint.deprecated_topology.value(HOSTNAME))
        .filter(|name| !name.is_empty())
        .collect();
    for endpoint in new.endpoints.iter_mut().flatten() {
        let Some(mut topology) = endpoint.deprecated_topology.take() else { continue };
        if endpoint.node_name.is_none() {
            endpoint.node_name =
                topology.remove(HOSTNAME).filter(|name| kept.contains(name) && dns_subdomain(name, false).is_empty());
        }
    }
}
