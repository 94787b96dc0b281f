//! IP addresses and CIDRs as objects may hold them. Old fields accept what Go accepted for years (leading
//! zeros, IPv4-mapped IPv6); new fields want canonical text.
//!
//! Behaves as apimachinery/pkg/util/validation/ip.go and k8s.io/utils/net, v1.36.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::field::{Error, ErrorList, Path};
use crate::quote::quote;

/// Parses an address leniently: leading zeros are decimal, an IPv4-mapped IPv6 address is IPv4.
pub fn parse_ip_sloppy(text: &str) -> Option<IpAddr> {
    if let Some(ip) = parse_v4_sloppy(text) {
        return Some(IpAddr::V4(ip));
    }
    parse_v6_sloppy(text).map(unmapped)
}

/// An address in its block: `10.9.8.7/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    /// As written, host bits and all.
    pub address: IpAddr,
    pub prefix_len: u8,
}

impl Cidr {
    /// The first address of the block.
    pub fn network(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask))
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix_len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask))
            }
        }
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let other = Cidr { address: ip, prefix_len: self.prefix_len };
        self.address.is_ipv4() == ip.is_ipv4() && self.network() == other.network()
    }

    /// The block without host bits, in canonical text.
    fn canonical(&self) -> String {
        format!("{}/{}", self.network(), self.prefix_len)
    }
}

/// Parses a block leniently, as [`parse_ip_sloppy`] does.
pub fn parse_cidr_sloppy(text: &str) -> Option<Cidr> {
    let (address, length) = text.split_once('/')?;
    let length = decimal(length)?;
    if let Some(ip) = parse_v4_sloppy(address) {
        let prefix_len = u8::try_from(length).ok().filter(|length| *length <= 32)?;
        return Some(Cidr { address: IpAddr::V4(ip), prefix_len });
    }
    let ip = parse_v6_sloppy(address)?;
    let prefix_len = u8::try_from(length).ok().filter(|length| *length <= 128)?;
    // A mapped block is IPv4 as long as its mask leaves the mapping prefix.
    if let (Some(v4), Some(prefix_len)) = (ip.to_ipv4_mapped(), prefix_len.checked_sub(96)) {
        return Some(Cidr { address: IpAddr::V4(v4), prefix_len });
    }
    Some(Cidr { address: IpAddr::V6(ip), prefix_len })
}

fn unmapped(ip: Ipv6Addr) -> IpAddr {
    ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
}

fn decimal(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| *number < 0xFF_FFFF)
}

fn parse_v4_sloppy(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = u8::try_from(decimal(parts.next()?)?).ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// IPv6 text, with groups of any number of digits and an IPv4 tail with leading zeros.
fn parse_v6_sloppy(text: &str) -> Option<Ipv6Addr> {
    let (head, tail) = match text.split_once("::") {
        // Dotted text can only be the end of the whole.
        Some((head, tail)) if !head.contains('.') => (groups(head)?, Some(groups(tail)?)),
        Some(_) => return None,
        None => (groups(text)?, None),
    };
    let mut all = [0_u16; 8];
    match tail {
        None if head.len() == 8 => all.copy_from_slice(&head),
        None => return None,
        Some(tail) => {
            // The ellipsis stands for at least one group.
            if head.len() + tail.len() >= 8 {
                return None;
            }
            for (slot, group) in all.iter_mut().zip(&head) {
                *slot = *group;
            }
            for (slot, group) in all.iter_mut().rev().zip(tail.iter().rev()) {
                *slot = *group;
            }
        }
    }
    Some(Ipv6Addr::from(all))
}

fn groups(text: &str) -> Option<Vec<u16>> {
    let mut groups = Vec::with_capacity(8);
    if text.is_empty() {
        return Some(groups);
    }
    let mut parts = text.split(':').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() && part.contains('.') {
            let bits = parse_v4_sloppy(part)?.to_bits();
            groups.push((bits >> 16) as u16);
            groups.push((bits & 0xFFFF) as u16);
            break;
        }
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        groups.push(if digits.is_empty() { 0 } else { u16::from_str_radix(digits, 16).ok()? });
        if groups.len() > 8 {
            return None;
        }
    }
    (groups.len() <= 8).then_some(groups)
}

fn is_mapped(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
}

fn parse_ip(path: &Path, value: &str, strict: bool) -> (Option<IpAddr>, ErrorList) {
    let Some(ip) = parse_ip_sloppy(value) else {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        return (None, vec![Error::invalid(path, value, detail)]);
    };
    let mut errors = ErrorList::new();
    if strict {
        match value.parse::<IpAddr>() {
            Err(_) => errors.push(Error::invalid(path, value, "must not have leading 0s")),
            Ok(ip) if is_mapped(&ip) => {
                errors.push(Error::invalid(path, value, "must not be an IPv4-mapped IPv6 address"));
            }
            Ok(_) => {}
        }
    }
    (Some(ip), errors)
}

/// For fields that have always accepted lenient text. `known` are values the stored object already has.
pub fn is_valid_ip_for_legacy_field(path: &Path, value: &str, strict: bool, known: &[&str]) -> ErrorList {
    if known.contains(&value) {
        return ErrorList::new();
    }
    parse_ip(path, value, strict).1
}

/// For new fields: canonical text only.
pub fn is_valid_ip(path: &Path, value: &str) -> ErrorList {
    let (ip, errors) = parse_ip(path, value, true);
    match ip {
        Some(ip) if errors.is_empty() && value != ip.to_string() => {
            let detail = format!("must be in canonical form ({})", quote(&ip.to_string()));
            vec![Error::invalid(path, value, detail)]
        }
        _ => errors,
    }
}

/// Warnings for a value that passed [`is_valid_ip_for_legacy_field`].
pub fn warnings_for_ip(path: &Path, value: &str) -> Vec<String> {
    let Some(ip) = parse_ip_sloppy(value) else { return Vec::new() };
    match value.parse::<IpAddr>() {
        Ok(strict) if !is_mapped(&strict) => {
            if strict.is_ipv6() && strict.to_string() != value {
                let (value, canonical) = (quote(value), strict.to_string());
                let canonical = quote(&canonical);
                return vec![format!(
                    "{path}: IPv6 address {value} should be in RFC 5952 canonical format ({canonical})"
                )];
            }
            Vec::new()
        }
        _ => {
            let (value, canonical) = (quote(value), ip.to_string());
            vec![format!("{path}: non-standard IP address {value} is invalid: use {}", quote(&canonical))]
        }
    }
}

/// A block as Go's strict parser reads it: no leading zeros anywhere.
fn parse_prefix_strict(text: &str) -> Option<Cidr> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    if length.len() > 1 && length.starts_with('0') {
        return None;
    }
    let limit = if address.is_ipv4() { 32 } else { 128 };
    let prefix_len = u8::try_from(decimal(length)?).ok().filter(|length| *length <= limit)?;
    Some(Cidr { address, prefix_len })
}

fn parse_cidr(path: &Path, value: &str, strict: bool) -> (Option<Cidr>, ErrorList) {
    let Some(cidr) = parse_cidr_sloppy(value) else {
        let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        return (None, vec![Error::invalid(path, value, detail)]);
    };
    let mut errors = ErrorList::new();
    if strict {
        match parse_prefix_strict(value) {
            None => errors.push(Error::invalid(path, value, "must not have leading 0s in IP or prefix length")),
            Some(prefix) if is_mapped(&prefix.address) => {
                errors.push(Error::invalid(path, value, "must not have an IPv4-mapped IPv6 address"));
            }
            Some(prefix) if prefix.address != prefix.network() => {
                errors.push(Error::invalid(path, value, "must not have bits set beyond the prefix length"));
            }
            Some(_) => {}
        }
    }
    (Some(cidr), errors)
}

/// As [`is_valid_ip_for_legacy_field`], for blocks.
pub fn is_valid_cidr_for_legacy_field(path: &Path, value: &str, strict: bool, known: &[&str]) -> ErrorList {
    if known.contains(&value) {
        return ErrorList::new();
    }
    parse_cidr(path, value, strict).1
}

/// As [`is_valid_ip`], for blocks.
pub fn is_valid_cidr(path: &Path, value: &str) -> ErrorList {
    let (cidr, errors) = parse_cidr(path, value, true);
    match cidr {
        Some(cidr) if errors.is_empty() && value != cidr.canonical() => {
            let detail = format!("must be in canonical form ({})", quote(&cidr.canonical()));
            vec![Error::invalid(path, value, detail)]
        }
        _ => errors,
    }
}

/// Warnings for a value that passed [`is_valid_cidr_for_legacy_field`].
pub fn warnings_for_cidr(path: &Path, value: &str) -> Vec<String> {
    let Some(cidr) = parse_cidr_sloppy(value) else { return Vec::new() };
    let canonical = cidr.canonical();
    let (shown, canonical) = (quote(value), quote(&canonical));
    let mut warnings = Vec::new();
    if cidr.address != cidr.network() {
        let bits = if cidr.address.is_ipv4() { 32 } else { 128 };
        let single = format!("{}/{bits}", cidr.address);
        warnings.push(format!(
            "{path}: CIDR value {shown} is ambiguous in this context (should be {canonical} or {}?)",
            quote(&single)
        ));
    }
    match parse_prefix_strict(value) {
        Some(prefix) if !is_mapped(&prefix.address) => {
            let text = format!("{}/{}", prefix.address, prefix.prefix_len);
            if warnings.is_empty() && prefix.address.is_ipv6() && text != value {
                let text = quote(&text);
                warnings
                    .push(format!("{path}: IPv6 CIDR value {shown} should be in RFC 5952 canonical format ({text})"));
            }
        }
        _ => warnings.push(format!("{path}: non-standard CIDR value {shown} is invalid: use {canonical}")),
    }
    warnings
}

/// An address with its prefix length, host bits kept: addresses of network devices.
pub fn is_valid_interface_address(path: &Path, value: &str) -> ErrorList {
    let Some(cidr) = parse_cidr_sloppy(value) else {
        let detail = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
        return vec![Error::invalid(path, value, detail)];
    };
    let canonical = format!("{}/{}", cidr.address, cidr.prefix_len);
    if value == canonical {
        return ErrorList::new();
    }
    vec![Error::invalid(path, value, format!("must be in canonical form ({})", quote(&canonical)))]
}
