//! Which names a kind may have.
//!
//! Behaves as apimachinery/pkg/api/validation/generic.go, v1.36.

use std::borrow::Borrow;

use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names::{self, ip};
pub(crate) use rkube_apimachinery::names::{name_is_dns_label as dns_label, name_is_dns_subdomain as dns_subdomain};

use super::report::Report;

/// Says what is wrong with a name; with `prefix` it is a `generateName`, which may end in a dash.
pub(crate) type NameFn = fn(name: &str, prefix: bool) -> Vec<String>;

pub(crate) fn validate_dns1123_label(value: &str, path: impl Borrow<Path>, errors: &mut ErrorList) {
    errors.invalid_each(path, value, names::is_dns1123_label(value));
}

pub(crate) fn validate_dns1123_subdomain(value: &str, path: impl Borrow<Path>, errors: &mut ErrorList) {
    errors.invalid_each(path, value, names::is_dns1123_subdomain(value));
}

pub(crate) fn validate_qualified_name(value: &str, path: impl Borrow<Path>, errors: &mut ErrorList) {
    errors.invalid_each(path, value, names::is_qualified_name(value));
}

/// A port as a number or as the name of a container port.
pub(crate) fn validate_port_num_or_name(port: &IntOrString, path: impl Borrow<Path>, errors: &mut ErrorList) {
    match port {
        IntOrString::Int(number) => validate_port(*number, path, errors),
        IntOrString::String(name) => errors.invalid_each(path, name, names::is_valid_port_name(name)),
    }
}

pub(crate) fn validate_port(port: i32, path: impl Borrow<Path>, errors: &mut ErrorList) {
    for message in names::is_valid_port_num(i64::from(port)) {
        errors.invalid(path.borrow(), port, message);
    }
}

/// `known` are the values that were there before, which older servers may have read more loosely.
pub(crate) fn validate_ip(value: &str, known: &[&str], path: impl Borrow<Path>, errors: &mut ErrorList) {
    errors.extend(ip::is_valid_ip_for_legacy_field(path.borrow(), value, true, known));
}

pub(crate) fn validate_cidr(value: &str, known: &[&str], path: impl Borrow<Path>, errors: &mut ErrorList) {
    errors.extend(ip::is_valid_cidr_for_legacy_field(path.borrow(), value, true, known));
}

/// Two addresses or ranges of different families.
pub(crate) fn is_dual_stack<'a>(values: impl IntoIterator<Item = &'a str>) -> bool {
    let (mut v4, mut v6) = (false, false);
    for value in values {
        if is_ipv6(value) { v6 = true } else { v4 = true }
    }
    v4 && v6
}

pub(crate) fn is_ipv6(value: &str) -> bool {
    value.contains(':')
}
