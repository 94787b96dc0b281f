//! The checks behind `+k8s:format` tags, which count in bytes.
//!
//! Behaves as apimachinery/pkg/api/validate/strfmt.go and pkg/api/validate/content, v1.36.

use crate::field::{Error, ErrorList, Path};
use crate::quote::quote;

use super::{SUBDOMAIN_FORMAT, is_c_identifier, is_qualified_name, matches_subdomain, regex_error};

/// `must be no more than N bytes`.
pub fn max_len_error(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

/// `k8s-short-name`.
pub fn is_dns1123_label(value: &str) -> Vec<String> {
    super::dns1123_label(value, max_len_error)
}

/// `k8s-long-name`.
pub fn is_dns1123_subdomain(value: &str) -> Vec<String> {
    super::dns1123_subdomain(value, max_len_error)
}

/// `k8s-long-name-caseless`: names of drivers, which have always been allowed upper case.
pub fn is_dns1123_subdomain_caseless(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > super::DNS1123_SUBDOMAIN_MAX_LENGTH {
        errors.push(max_len_error(super::DNS1123_SUBDOMAIN_MAX_LENGTH));
    }
    if !matches_subdomain(&value.to_ascii_lowercase()) {
        errors.push(regex_error(
            "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with \
             an alphanumeric character",
            SUBDOMAIN_FORMAT,
            &["Example.com"],
        ));
    }
    errors
}

/// A decimal integer without leading zeros or a plus sign.
pub fn is_decimal_integer(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec![super::empty_error()];
    }
    let digits = value.strip_prefix('-').unwrap_or(value);
    let canonical = match digits.as_bytes() {
        [] => false,
        [b'0'] => value == "0",
        [b'0', ..] => false,
        digits => digits.iter().all(u8::is_ascii_digit),
    };
    if canonical { Vec::new() } else { vec!["must be a valid decimal integer in canonical form".to_owned()] }
}

/// `k8s-uuid`.
pub fn is_uuid(value: &str) -> Vec<String> {
    let valid = value.len() == 36
        && value.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        });
    if valid { Vec::new() } else { vec!["must be a lowercase UUID in 8-4-4-4-12 format".to_owned()] }
}

/// `k8s-resource-pool-name`: DNS subdomains joined with slashes.
pub fn resource_pool_name(path: &Path, value: &str) -> ErrorList {
    let mut errors = ErrorList::new();
    if value.len() > 253 {
        errors.push(Error::too_long(path, 253));
    }
    for (index, part) in value.split('/').enumerate() {
        if part.is_empty() {
            errors.push(Error::invalid(path, value, format!("segment {index}: must not be empty")));
            continue;
        }
        for fault in is_dns1123_subdomain(part) {
            errors.push(Error::invalid(path, part, format!("segment {index}: {fault}")));
        }
    }
    errors
}

/// `k8s-extended-resource-name`.
pub fn extended_resource_name(path: &Path, value: &str) -> ErrorList {
    let mut errors = ErrorList::new();
    if !value.contains('/') {
        let detail = "a name must be a domain-prefixed path, such as 'example.com/my-prop'";
        errors.push(Error::invalid(path, value, detail));
    } else if value.contains("kubernetes.io/") {
        errors.push(Error::invalid(path, value, format!("must not have {} domain", quote("kubernetes.io/"))));
    }
    if value.starts_with("requests.") {
        errors.push(Error::invalid(path, value, format!("must not have {} prefix", quote("requests."))));
    }
    for fault in is_qualified_name(&format!("requests.{value}")) {
        errors.push(Error::invalid(path, value, fault));
    }
    errors
}

/// `k8s-resource-fully-qualified-name`: a domain, a slash and a C identifier.
pub fn resource_fully_qualified_name(path: &Path, value: &str) -> ErrorList {
    let mut errors = ErrorList::new();
    let parts: Vec<&str> = value.split('/').collect();
    match parts.as_slice() {
        [name] => {
            errors.extend(identifier(path, name));
            let detail = "a fully qualified name must be a domain and a name separated by a slash";
            errors.push(Error::invalid(path, value, detail));
        }
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push(Error::invalid(path, "", "prefix must not be empty"));
            } else {
                if prefix.len() > 63 {
                    errors.push(Error::too_long(path, 63));
                }
                for fault in is_dns1123_subdomain(prefix) {
                    errors.push(Error::invalid(path, *prefix, format!("prefix: {fault}")));
                }
            }
            if name.is_empty() {
                errors.push(Error::invalid(path, "", "name must not be empty"));
            } else {
                errors.extend(identifier(path, name));
            }
        }
        // More slashes pass, as they do upstream.
        _ => {}
    }
    errors
}

/// Device attributes and capacities are C identifiers of at most 32 bytes.
fn identifier(path: &Path, name: &str) -> ErrorList {
    let mut errors = ErrorList::new();
    if name.len() > 32 {
        errors.push(Error::too_long(path, 32));
    }
    errors.extend(is_c_identifier(name).into_iter().map(|fault| Error::invalid(path, name, fault)));
    errors
}
