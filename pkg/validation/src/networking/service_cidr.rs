//! networking.k8s.io/v1 ServiceCIDR and IPAddress.
//!
//! Behaves as ValidateServiceCIDR and ValidateIPAddress of pkg/apis/networking/validation/validation.go, v1.36.

use rkube_api::k8s::networking::v1::{IPAddress, ServiceCIDR};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names::{self, ip};
use serde_json::json;

use super::ingress::validate_required_segment;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_subdomain, is_ipv6};
use crate::common::report::{FIELD_IMMUTABLE, OptText, Report, immutable};

pub fn set_defaults(cidr: &mut ServiceCIDR) {
    cidr.spec.get_or_insert_default();
    cidr.status.get_or_insert_default();
}

pub fn validate(cidr: &ServiceCIDR) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&cidr.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_cidrs(&cidrs(cidr), &mut errors);
    errors
}

fn cidrs(cidr: &ServiceCIDR) -> Vec<String> {
    cidr.spec.clone().unwrap_or_default().cidrs.unwrap_or_default()
}

fn validate_cidrs(cidrs: &[String], errors: &mut ErrorList) {
    let path = Path::new("spec").child("cidrs");
    if cidrs.is_empty() {
        errors.required(path, "at least one CIDR required");
        return;
    }
    if cidrs.len() > 2 {
        errors.invalid(path, json!({ "CIDRs": cidrs }), "may only hold up to 2 values");
        return;
    }
    for (index, cidr) in cidrs.iter().enumerate() {
        errors.extend(ip::is_valid_cidr(&path.index(index), cidr));
    }
    if let [first, second] = cidrs
        && is_ipv6(first) == is_ipv6(second)
        && cidrs.iter().all(|cidr| ip::parse_cidr_sloppy(cidr).is_some())
    {
        let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.invalid(path, cidrs.to_vec(), detail);
    }
}

/// A second family may be added, and nothing else changes.
pub fn validate_update(new: &ServiceCIDR, old: &ServiceCIDR) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (new, old) = (cidrs(new), cidrs(old));
    let path = Path::new("spec").child("cidrs");
    if new.len() != old.len() && (old.len(), new.len()) != (1, 2) {
        errors.invalid(path, new, FIELD_IMMUTABLE);
        return errors;
    }
    for (index, (new, _)) in new.iter().zip(&old).enumerate().filter(|(_, (new, old))| new != old) {
        errors.invalid(path.index(index), new.as_str(), FIELD_IMMUTABLE);
    }
    if new.len() != old.len() {
        validate_cidrs(&new, &mut errors);
    }
    errors
}

fn address_name(name: &str, _prefix: bool) -> Vec<String> {
    ip::is_valid_ip(&Path::root(), name).into_iter().map(|error| error.detail).collect()
}

pub fn validate_address(address: &IPAddress) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&address.metadata, false, address_name, &Path::new("metadata"), &mut errors);
    let parent = &address.spec.parent_ref;
    let path = Path::new("spec").child("parentRef");
    if *parent == Default::default() {
        errors.required(path, "");
        return errors;
    }
    let group = parent.group.text();
    if !group.is_empty() {
        errors.invalid_each(path.child("group"), group, names::is_dns1123_subdomain(group));
    }
    validate_required_segment(&parent.resource, &path.child("resource"), &mut errors);
    validate_required_segment(&parent.name, &path.child("name"), &mut errors);
    let namespace = parent.namespace.text();
    if !namespace.is_empty() {
        errors.invalid_each(path.child("namespace"), namespace, names::is_path_segment_name(namespace));
    }
    errors
}

pub fn validate_address_update(new: &IPAddress, old: &IPAddress) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let path = Path::new("spec").child("parentRef");
    immutable(&new.spec.parent_ref, &old.spec.parent_ref, path, &mut errors);
    errors
}
