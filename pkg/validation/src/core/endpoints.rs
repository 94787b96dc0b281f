//! core/v1 Endpoints.
//!
//! Behaves as ValidateEndpoints of pkg/apis/core/validation/validation.go, v1.36.

use rkube_api::k8s::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names::ip;

use super::containers::PROTOCOLS;
use crate::common::defaults::text_default;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::{
    dns_subdomain, validate_dns1123_label, validate_ip, validate_port, validate_qualified_name,
};
use crate::common::report::{OptList, OptText, Report};

pub fn set_defaults(endpoints: &mut Endpoints) {
    for port in endpoints.subsets.iter_mut().flatten().flat_map(|subset| subset.ports.iter_mut().flatten()) {
        text_default(&mut port.protocol, "TCP");
    }
}

pub fn validate(endpoints: &Endpoints) -> ErrorList {
    let mut errors = validate_meta(endpoints);
    validate_subsets(endpoints.subsets.items(), &mut errors);
    errors
}

fn validate_meta(endpoints: &Endpoints) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&endpoints.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    errors
}

pub fn validate_update(new: &Endpoints, old: &Endpoints) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors.extend(validate_meta(new));
    // What is stored stays writable, however it was accepted.
    if new.subsets.items() != old.subsets.items() {
        validate_subsets(new.subsets.items(), &mut errors);
    }
    errors
}

fn validate_subsets(subsets: &[EndpointSubset], errors: &mut ErrorList) {
    for (index, subset) in subsets.iter().enumerate() {
        let path = Path::new("subsets").index(index);
        let (ready, not_ready) = (subset.addresses.items(), subset.not_ready_addresses.items());
        if ready.is_empty() && not_ready.is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for (field, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            for (index, address) in addresses.iter().enumerate() {
                validate_address(address, &path.child(field).index(index), errors);
            }
        }
        let ports = subset.ports.items();
        for (index, port) in ports.iter().enumerate() {
            validate_endpoint_port(port, ports.len() > 1, &path.child("ports").index(index), errors);
        }
    }
}

fn validate_address(address: &EndpointAddress, path: &Path, errors: &mut ErrorList) {
    validate_ip(&address.ip, &[], path.child("ip"), errors);
    if !address.hostname.is_blank() {
        validate_dns1123_label(address.hostname.text(), path.child("hostname"), errors);
    }
    if let Some(node) = &address.node_name {
        errors.invalid_each(path.child("nodeName"), node, dns_subdomain(node, false));
    }
    validate_endpoint_ip(&address.ip, &path.child("ip"), errors);
}

/// Traffic may not be sent to addresses that mean the sender or its link.
pub(crate) fn validate_endpoint_ip(text: &str, path: &Path, errors: &mut ErrorList) {
    let Some(address) = ip::parse_ip_sloppy(text) else {
        errors.invalid(path, text, "must be a valid IP address");
        return;
    };
    let (link_local, link_local_multicast) = match address {
        std::net::IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if address.is_unspecified() {
        errors.invalid(path, text, format!("may not be unspecified ({text})"));
    }
    if address.is_loopback() {
        errors.invalid(path, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        errors.invalid(path, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_multicast {
        errors.invalid(path, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

fn validate_endpoint_port(port: &EndpointPort, name_required: bool, path: &Path, errors: &mut ErrorList) {
    let name = port.name.text();
    if !name.is_empty() {
        validate_dns1123_label(name, path.child("name"), errors);
    } else if name_required {
        errors.required(path.child("name"), "");
    }
    validate_port(port.port, path.child("port"), errors);
    errors.required_one_of(path.child("protocol"), port.protocol.text(), &PROTOCOLS);
    if let Some(protocol) = &port.app_protocol {
        validate_qualified_name(protocol, path.child("appProtocol"), errors);
    }
}

pub fn warnings(endpoints: &Endpoints) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, subset) in endpoints.subsets.items().iter().enumerate() {
        let path = Path::new("subsets").index(index);
        for (field, addresses) in
            [("addresses", subset.addresses.items()), ("notReadyAddresses", subset.not_ready_addresses.items())]
        {
            for (index, address) in addresses.iter().enumerate() {
                warnings.extend(ip::warnings_for_ip(&path.child(field).index(index).child("ip"), &address.ip));
            }
        }
    }
    warnings
}
