//! core/v1 Service.
//!
//! Addresses and node ports are allocated between defaulting and validation; the pure rules are here.
//!
//! Behaves as validateService of pkg/apis/core/validation/validation.go, pkg/apis/core/v1/defaults.go and
//! pkg/api/service, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::core::v1::{
    ClientIPConfig, LoadBalancerStatus, Service, ServicePort, ServiceSpec, SessionAffinityConfig,
};
use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names::{self, ip};
use serde_json::json;

use super::containers::PROTOCOLS;
use super::endpoints::validate_endpoint_ip;
use crate::common::defaults::{default_to, text_default};
use crate::common::meta::{validate_labels, validate_object_meta, validate_object_meta_update};
use crate::common::names::{
    dns_label, is_dual_stack, is_ipv6, validate_cidr, validate_dns1123_label, validate_dns1123_subdomain, validate_ip,
    validate_port, validate_port_num_or_name, validate_qualified_name,
};
use crate::common::report::{OptList, OptMap, OptText, Report};

/// Three hours, and a day.
const CLIENT_IP_AFFINITY_SECONDS_DEFAULT: i32 = 10800;
const CLIENT_IP_AFFINITY_SECONDS_MAX: i32 = 86400;
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";
const MAY_NOT_CHANGE: &str = "may not change once set";
const NONE: &str = "None";

pub fn set_defaults(service: &mut Service) {
    let spec = service.spec.get_or_insert_default();
    text_default(&mut spec.session_affinity, "None");
    match spec.session_affinity.text() {
        "None" => spec.session_affinity_config = None,
        "ClientIP" => {
            let given = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            if given.and_then(|client| client.timeout_seconds).is_none() {
                let client_ip = ClientIPConfig { timeout_seconds: Some(CLIENT_IP_AFFINITY_SECONDS_DEFAULT) };
                spec.session_affinity_config = Some(SessionAffinityConfig { client_ip: Some(client_ip) });
            }
        }
        _ => {}
    }
    text_default(&mut spec.type_, "ClusterIP");
    for port in spec.ports.iter_mut().flatten() {
        text_default(&mut port.protocol, "TCP");
        let unset = match &port.target_port {
            None | Some(IntOrString::Int(0)) => true,
            Some(IntOrString::String(name)) => name.is_empty(),
            Some(_) => false,
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    if is_externally_accessible(spec) {
        text_default(&mut spec.external_traffic_policy, "Cluster");
    }
    if matches!(spec.type_.text(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        default_to(&mut spec.internal_traffic_policy, "Cluster".to_owned());
    }
    let load_balanced = is_load_balancer(spec);
    if load_balanced {
        default_to(&mut spec.allocate_load_balancer_node_ports, true);
    }
    let status = service.status.get_or_insert_default().load_balancer.get_or_insert_default();
    if load_balanced {
        for ingress in status.ingress.iter_mut().flatten().filter(|ingress| !ingress.ip.is_blank()) {
            default_to(&mut ingress.ip_mode, "VIP".to_owned());
        }
    }
}

fn is_load_balancer(spec: &ServiceSpec) -> bool {
    spec.type_.text() == "LoadBalancer"
}

/// `clusterIP: None`.
pub fn is_headless(spec: &ServiceSpec) -> bool {
    matches!(spec.cluster_ips.items(), [only] if only == NONE)
}

/// Reachable from outside of the cluster.
pub fn is_externally_accessible(spec: &ServiceSpec) -> bool {
    match spec.type_.text() {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !spec.external_ips.items().is_empty(),
        _ => false,
    }
}

/// Load balancers ask nodes whether they have an endpoint, at a port of its own.
pub fn needs_health_check(spec: &ServiceSpec) -> bool {
    is_load_balancer(spec) && spec.external_traffic_policy.text() == "Local"
}

pub fn validate(service: &Service) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&service.metadata, true, dns_label, &Path::new("metadata"), &mut errors);
    validate_service(service, None, &mut errors);
    errors
}

pub fn validate_update(new: &Service, old: &Service) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (new_spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let path = Path::new("spec");
    if new_spec.type_.text() != "ExternalName" && old_spec.type_.text() != "ExternalName" {
        validate_cluster_ips_change(&new_spec, &old_spec, &path, &mut errors);
        validate_families_change(&new_spec, &old_spec, &path, &mut errors);
    }
    if is_load_balancer(&new_spec)
        && is_load_balancer(&old_spec)
        && new_spec.load_balancer_class != old_spec.load_balancer_class
    {
        errors.invalid(path.child("loadBalancerClass"), json!(new_spec.load_balancer_class), MAY_NOT_CHANGE);
    }
    validate_load_balancer_class(&new_spec, &path, &mut errors);
    if needs_health_check(&new_spec)
        && needs_health_check(&old_spec)
        && new_spec.health_check_node_port.unwrap_or(0) != old_spec.health_check_node_port.unwrap_or(0)
    {
        errors.forbidden(path.child("healthCheckNodePort"), "field is immutable");
    }
    validate_service(new, Some(&old_spec), &mut errors);
    errors
}

fn validate_service(service: &Service, old: Option<&ServiceSpec>, errors: &mut ErrorList) {
    let default = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&default);
    let annotations = &service.metadata.annotations;
    if let (Some(hints), Some(mode)) = (annotations.value(TOPOLOGY_HINTS), annotations.value(TOPOLOGY_MODE))
        && hints != mode
    {
        let detail = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.invalid(Path::new("metadata").child("annotations").key(TOPOLOGY_MODE), mode.as_str(), detail);
    }
    let path = Path::new("spec");
    let (ports, kind) = (spec.ports.items(), spec.type_.text());
    if ports.is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.required(path.child("ports"), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.invalid(path.child("clusterIPs").index(0), NONE, detail);
        }
        "ExternalName" => validate_external_name(spec, &path, errors),
        _ => {}
    }
    let mut taken = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        validate_service_port(port, ports.len() > 1, &mut taken, &path.child("ports").index(index), errors);
    }
    validate_labels(spec.selector.as_ref(), &path.child("selector"), errors);
    validate_session_affinity(spec, &path, errors);
    if kind != "ExternalName" {
        validate_cluster_ips(spec, old, &path, errors);
    }
    let known: Vec<&str> = old.into_iter().flat_map(|old| old.external_ips.items()).map(String::as_str).collect();
    for (index, external) in spec.external_ips.items().iter().enumerate() {
        let path = path.child("externalIPs").index(index);
        let found = errors.len();
        validate_ip(external, &known, &path, errors);
        if errors.len() == found {
            validate_endpoint_ip(external, &path, errors);
        }
    }
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    errors.required_one_of(path.child("type"), kind, &types);
    validate_node_ports(spec, &path.child("ports"), errors);
    validate_source_ranges(service, spec, old, &path, errors);
    if spec.allocate_load_balancer_node_ports.is_some() && !is_load_balancer(spec) {
        errors.forbidden(path.child("allocateLoadBalancerNodePorts"), ONLY_LOAD_BALANCER);
    }
    if spec.allocate_load_balancer_node_ports.is_none() && is_load_balancer(spec) {
        errors.required(Path::new("allocateLoadBalancerNodePorts"), "");
    }
    validate_load_balancer_class(spec, &path, errors);
    validate_traffic_policies(spec, &path, errors);
}

fn validate_external_name(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let set = [
        ("clusterIPs", !spec.cluster_ips.items().is_empty()),
        ("ipFamilies", !spec.ip_families.items().is_empty()),
        ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
    ];
    for (field, _) in set.iter().filter(|(_, set)| *set) {
        errors.forbidden(path.child(field), "may not be set for ExternalName services");
    }
    let name = spec.external_name.text();
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        errors.required(path.child("externalName"), "");
    } else {
        validate_dns1123_subdomain(name, path.child("externalName"), errors);
    }
}

fn validate_service_port<'a>(
    port: &'a ServicePort,
    name_required: bool,
    taken: &mut BTreeSet<&'a str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let name = port.name.text();
    if !name.is_empty() {
        validate_dns1123_label(name, path.child("name"), errors);
        if !taken.insert(name) {
            errors.duplicate(path.child("name"), name);
        }
    } else if name_required {
        errors.required(path.child("name"), "");
    }
    validate_port(port.port, path.child("port"), errors);
    errors.required_one_of(path.child("protocol"), port.protocol.text(), &PROTOCOLS);
    let target = port.target_port.clone().unwrap_or_default();
    validate_port_num_or_name(&target, path.child("targetPort"), errors);
    if let Some(protocol) = &port.app_protocol {
        validate_qualified_name(protocol, path.child("appProtocol"), errors);
    }
}

fn validate_session_affinity(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let affinity = spec.session_affinity.text();
    errors.required_one_of(path.child("sessionAffinity"), affinity, &["ClientIP", "None"]);
    let path = path.child("sessionAffinityConfig");
    match (affinity, &spec.session_affinity_config) {
        ("ClientIP", config) => {
            const DETAIL: &str = "when session affinity type is ClientIP";
            let Some(config) = config else { return errors.required(path, DETAIL) };
            let path = path.child("clientIP");
            let Some(client) = &config.client_ip else { return errors.required(path, DETAIL) };
            let path = path.child("timeoutSeconds");
            match client.timeout_seconds {
                None => errors.required(path, DETAIL),
                Some(seconds) if !(1..=CLIENT_IP_AFFINITY_SECONDS_MAX).contains(&seconds) => {
                    let detail = format!("must be greater than 0 and less than {CLIENT_IP_AFFINITY_SECONDS_MAX}");
                    errors.invalid(path, seconds, detail);
                }
                Some(_) => {}
            }
        }
        ("None", Some(_)) => errors.forbidden(path, "must not be set when session affinity is None"),
        _ => {}
    }
}

/// The rules between `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`, which allocation relies on.
pub fn validate_cluster_ips_related_fields(service: &Service, old: Option<&Service>) -> ErrorList {
    let mut errors = ErrorList::new();
    let Some(spec) = &service.spec else { return errors };
    if spec.type_.text() != "ExternalName" {
        let old = old.and_then(|old| old.spec.as_ref());
        validate_cluster_ips(spec, old, &Path::new("spec"), &mut errors);
    }
    errors
}

fn validate_cluster_ips(spec: &ServiceSpec, old: Option<&ServiceSpec>, path: &Path, errors: &mut ErrorList) {
    let (ips, families) = (spec.cluster_ips.items(), spec.ip_families.items());
    let (ips_path, families_path) = (path.child("clusterIPs"), path.child("ipFamilies"));
    let primary = spec.cluster_ip.text();
    match (primary.is_empty(), ips.first()) {
        (false, None) => errors.required(&ips_path, ""),
        (false, Some(first)) if first != primary => {
            errors.invalid(&ips_path, ips.to_vec(), "first value must match `clusterIP`");
        }
        (true, Some(_)) => errors.invalid(&ips_path, ips.to_vec(), "must be empty when `clusterIP` is not specified"),
        _ => {}
    }
    let mut seen = BTreeSet::new();
    for (index, family) in families.iter().enumerate() {
        errors.one_of(families_path.index(index), family, &["IPv4", "IPv6"]);
        if !seen.insert(family) {
            errors.duplicate(families_path.index(index), family.as_str());
        }
    }
    if let Some(policy) = &spec.ip_family_policy {
        errors.one_of(path.child("ipFamilyPolicy"), policy, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    }
    let known: Vec<&str> = old.into_iter().flat_map(|old| old.cluster_ips.items()).map(String::as_str).collect();
    let mut invalid = false;
    for (index, address) in ips.iter().enumerate() {
        if index == 0 && address == NONE {
            if ips.len() > 1 {
                invalid = true;
                errors.invalid(&ips_path, ips.to_vec(), "'None' must be the first and only value");
            }
            continue;
        }
        let found = errors.len();
        validate_ip(address, &known, ips_path.index(index), errors);
        invalid |= errors.len() > found;
    }
    if ips.len() > 2 {
        errors.invalid(&ips_path, ips.to_vec(), "may only hold up to 2 values");
    }
    if invalid {
        return;
    }
    if ips.len() > 1 && !is_dual_stack(ips.iter().map(String::as_str)) {
        errors.invalid(&ips_path, ips.to_vec(), "may specify no more than one IP for each IP family");
    }
    if is_headless(spec) {
        return;
    }
    for (index, (address, family)) in ips.iter().zip(families).enumerate() {
        let wrong = match family.as_str() {
            "IPv4" => is_ipv6(address),
            "IPv6" => !is_ipv6(address),
            _ => false,
        };
        if wrong {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.invalid(ips_path.index(index), address.as_str(), detail);
        }
    }
}

fn validate_node_ports(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let ports = spec.ports.items();
    let node_port = |port: &ServicePort| port.node_port.filter(|number| *number != 0);
    if spec.type_.text() == "ClusterIP" {
        for (index, _) in ports.iter().enumerate().filter(|(_, port)| node_port(port).is_some()) {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errors.forbidden(path.index(index).child("nodePort"), detail);
        }
    }
    let mut taken = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let Some(number) = node_port(port) else { continue };
        if !taken.insert((port.protocol.text(), number)) {
            errors.duplicate(path.index(index).child("nodePort"), number);
        }
    }
    let mut taken = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        if !taken.insert((port.protocol.text(), port.port)) {
            // The value is a port of the internal version, which has no JSON names.
            let key = json!({
                "Name": "", "Protocol": port.protocol.text(), "AppProtocol": null, "Port": port.port,
                "TargetPort": 0, "NodePort": 0,
            });
            errors.duplicate(path.index(index), key);
        }
    }
}

fn validate_source_ranges(
    service: &Service,
    spec: &ServiceSpec,
    old: Option<&ServiceSpec>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let ranges = spec.load_balancer_source_ranges.items();
    if !ranges.is_empty() {
        let path = path.child("LoadBalancerSourceRanges");
        if !is_load_balancer(spec) {
            errors.forbidden(&path, ONLY_LOAD_BALANCER);
        }
        let known: Vec<&str> =
            old.into_iter().flat_map(|old| old.load_balancer_source_ranges.items()).map(|range| range.trim()).collect();
        for (index, range) in ranges.iter().enumerate() {
            validate_cidr(range.trim(), &known, path.index(index), errors);
        }
    } else if let Some(ranges) = service.metadata.annotations.value(SOURCE_RANGES) {
        let path = Path::new("metadata").child("annotations").key(SOURCE_RANGES);
        if !is_load_balancer(spec) {
            errors.forbidden(&path, ONLY_LOAD_BALANCER);
        }
        for range in ranges.trim().split(',').filter(|_| old.is_none() && !ranges.trim().is_empty()) {
            validate_cidr(range.trim(), &[], &path, errors);
        }
    }
}

fn validate_load_balancer_class(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let Some(class) = &spec.load_balancer_class else { return };
    let path = path.child("loadBalancerClass");
    if is_load_balancer(spec) {
        validate_qualified_name(class, path, errors);
    } else {
        errors.forbidden(path, ONLY_LOAD_BALANCER);
    }
}

fn validate_traffic_policies(spec: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    let external = spec.external_traffic_policy.text();
    let external_path = path.child("externalTrafficPolicy");
    if is_externally_accessible(spec) {
        errors.required_one_of(external_path, external, &["Cluster", "Local"]);
    } else if !external.is_empty() {
        errors.invalid(external_path, external, "may only be set for externally-accessible services");
    }
    let port = spec.health_check_node_port.unwrap_or(0);
    let port_path = path.child("healthCheckNodePort");
    match (needs_health_check(spec), port) {
        (true, 0) => errors.required(port_path, ""),
        (true, port) => validate_port(port, port_path, errors),
        (false, 0) => {}
        (false, port) => {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.invalid(port_path, port, detail);
        }
    }
    let internal_path = path.child("internalTrafficPolicy");
    match &spec.internal_traffic_policy {
        None if matches!(spec.type_.text(), "NodePort" | "LoadBalancer" | "ClusterIP") => {
            errors.required(internal_path, "");
        }
        None => {}
        Some(policy) => errors.one_of(internal_path, policy, &["Cluster", "Local"]),
    }
    if let Some(distribution) = &spec.traffic_distribution {
        let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        errors.one_of(path.child("trafficDistribution"), distribution, &known);
    }
}

fn validate_cluster_ips_change(new: &ServiceSpec, old: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    if is_headless(new) && is_headless(old) {
        return;
    }
    let (new_ips, old_ips) = (new.cluster_ips.items(), old.cluster_ips.items());
    let path_of_ips = path.child("clusterIPs");
    if new_ips.len() == old_ips.len() {
        for (index, _) in old_ips.iter().zip(new_ips).enumerate().filter(|(_, (old, new))| old != new) {
            errors.invalid(path_of_ips.index(index), new_ips.to_vec(), MAY_NOT_CHANGE);
        }
        return;
    }
    let shrinks = old_ips.len() > new_ips.len();
    if shrinks && new_ips.is_empty() {
        errors.invalid(path_of_ips.index(0), new_ips.to_vec(), "primary clusterIP can not be unset");
    }
    if let (Some(old), Some(new)) = (old_ips.first(), new_ips.first())
        && old != new
    {
        errors.invalid(path_of_ips.index(0), new_ips.to_vec(), MAY_NOT_CHANGE);
    }
    if shrinks && new_ips.len() == 1 {
        require_single_stack(new, path, "secondary clusterIP", errors);
    }
}

fn require_single_stack(spec: &ServiceSpec, path: &Path, what: &str, errors: &mut ErrorList) {
    if spec.ip_family_policy.as_deref() != Some("SingleStack") {
        let detail = format!("must be set to 'SingleStack' when releasing the {what}");
        errors.invalid(path.child("ipFamilyPolicy"), json!(spec.ip_family_policy), detail);
    }
}

fn validate_families_change(new: &ServiceSpec, old: &ServiceSpec, path: &Path, errors: &mut ErrorList) {
    if is_headless(new) || is_headless(old) {
        return;
    }
    let (new_families, old_families) = (new.ip_families.items(), old.ip_families.items());
    let first = path.child("ipFamilies").index(0);
    if new_families.len() == old_families.len() {
        for _ in old_families.iter().zip(new_families).filter(|(old, new)| old != new) {
            errors.invalid(&first, new_families.to_vec(), MAY_NOT_CHANGE);
        }
        return;
    }
    let shrinks = old_families.len() > new_families.len();
    if shrinks && new.cluster_ips.items().is_empty() {
        errors.invalid(&first, new_families.to_vec(), "primary ipFamily can not be unset");
    }
    if let (Some(old), Some(now)) = (old_families.first(), new_families.first())
        && old != now
    {
        errors.invalid(&first, new.cluster_ips.items().to_vec(), MAY_NOT_CHANGE);
    }
    if shrinks && new_families.len() == 1 {
        require_single_stack(new, path, "secondary ipFamily", errors);
    }
}

/// `PUT services/x/status`.
pub fn validate_status_update(new: &Service, old: &Service) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let status = |service: &Service| service.status.as_ref().and_then(|status| status.load_balancer.clone());
    let allowed = new.spec.as_ref().is_some_and(is_load_balancer);
    let path = Path::new("status").child("loadBalancer");
    let (new, old) = (status(new).unwrap_or_default(), status(old).unwrap_or_default());
    validate_load_balancer_status(&new, &old, allowed, &path, &mut errors);
    errors
}

fn validate_load_balancer_status(
    new: &LoadBalancerStatus,
    old: &LoadBalancerStatus,
    allowed: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let path = path.child("ingress");
    if !allowed && !new.ingress.items().is_empty() {
        errors.forbidden(path, "may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    let known: Vec<&str> = old.ingress.items().iter().map(|ingress| ingress.ip.text()).collect();
    for (index, ingress) in new.ingress.items().iter().enumerate() {
        let path = path.index(index);
        let address = ingress.ip.text();
        if !address.is_empty() {
            validate_ip(address, &known, path.child("ip"), errors);
        }
        match (&ingress.ip_mode, address.is_empty()) {
            (None, false) => errors.required(path.child("ipMode"), "must be specified when `ip` is set"),
            (Some(_), true) => errors.forbidden(path.child("ipMode"), "may not be specified when `ip` is not set"),
            (Some(mode), false) => errors.one_of(path.child("ipMode"), mode, &["Proxy", "VIP"]),
            (None, true) => {}
        }
        validate_ingress_hostname(ingress.hostname.text(), &path.child("hostname"), errors);
    }
}

/// A name, and not an address written as one. Ingress has the same.
pub(crate) fn validate_ingress_hostname(hostname: &str, path: &Path, errors: &mut ErrorList) {
    if hostname.is_empty() {
        return;
    }
    errors.invalid_each(path, hostname, names::is_dns1123_subdomain(hostname));
    if ip::parse_ip_sloppy(hostname).is_some() {
        errors.invalid(path, hostname, "must be a DNS name, not an IP address");
    }
}

pub fn warnings(service: &Service) -> Vec<String> {
    let mut warnings = Vec::new();
    let default = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&default);
    let path = Path::new("spec");
    if service.metadata.annotations.value(TOPOLOGY_HINTS).is_some() {
        warnings.push(format!("annotation {TOPOLOGY_HINTS} is deprecated, please use {TOPOLOGY_MODE} instead"));
    }
    let (primary, externals) = (spec.cluster_ip.text(), spec.external_ips.items());
    if !primary.is_empty() && primary != NONE {
        for (index, address) in spec.cluster_ips.items().iter().enumerate() {
            warnings.extend(ip::warnings_for_ip(&path.child("clusterIPs").index(index), address));
        }
    }
    let headless = spec.type_.text() == "ClusterIP" && primary == NONE;
    if headless {
        for (field, ignored) in [
            ("loadBalancerIP", !spec.load_balancer_ip.is_blank()),
            ("externalIPs", !externals.is_empty()),
            ("SessionAffinity", spec.session_affinity.text() != "None"),
        ] {
            if ignored {
                warnings.push(format!("spec.{field} is ignored for headless services"));
            }
        }
    }
    for (index, address) in externals.iter().enumerate() {
        warnings.extend(ip::warnings_for_ip(&path.child("externalIPs").index(index), address));
    }
    let external_name = spec.type_.text() == "ExternalName";
    if !externals.is_empty() && !headless && !external_name {
        warnings.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned());
    }
    if !spec.load_balancer_ip.is_blank() {
        warnings.extend(ip::warnings_for_ip(&path.child("loadBalancerIP"), spec.load_balancer_ip.text()));
    }
    for (index, range) in spec.load_balancer_source_ranges.items().iter().enumerate() {
        warnings.extend(ip::warnings_for_cidr(&path.child("loadBalancerSourceRanges").index(index), range));
    }
    if external_name && !externals.is_empty() {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !external_name && !spec.external_name.is_blank() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.traffic_distribution.as_deref() == Some("PreferClose") {
        warnings.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned());
    }
    warnings
}

/// Fields that belonged to the old type and that the client left as they were go away with it.
///
/// Behaves as dropTypeDependentFields of pkg/registry/core/service/strategy.go, v1.36.
pub fn drop_type_dependent_fields(new: &mut Service, old: &Service) {
    let (Some(spec), Some(old_spec)) = (&mut new.spec, &old.spec) else { return };
    let needs_cluster_ip = |spec: &ServiceSpec| matches!(spec.type_.text(), "ClusterIP" | "NodePort" | "LoadBalancer");
    let allocates = |spec: &ServiceSpec| spec.allocate_load_balancer_node_ports.unwrap_or(true);
    let needs_node_port =
        |spec: &ServiceSpec| spec.type_.text() == "NodePort" || (is_load_balancer(spec) && allocates(spec));
    if needs_cluster_ip(old_spec) && !needs_cluster_ip(spec) {
        if spec.cluster_ip.text() == old_spec.cluster_ip.text()
            && spec.cluster_ips.items() == old_spec.cluster_ips.items()
        {
            spec.cluster_ip = None;
            spec.cluster_ips = None;
        }
        if spec.ip_families.items() == old_spec.ip_families.items() {
            spec.ip_families = None;
        }
        if spec.ip_family_policy == old_spec.ip_family_policy {
            spec.ip_family_policy = None;
        }
    }
    let node_ports = |spec: &ServiceSpec| -> BTreeSet<i32> {
        spec.ports.items().iter().map(|port| port.node_port.unwrap_or(0)).collect()
    };
    if needs_node_port(old_spec) && !needs_node_port(spec) && node_ports(spec) == node_ports(old_spec) {
        for port in spec.ports.iter_mut().flatten() {
            port.node_port = None;
        }
    }
    if needs_health_check(old_spec)
        && !needs_health_check(spec)
        && spec.health_check_node_port == old_spec.health_check_node_port
    {
        spec.health_check_node_port = None;
    }
    if is_load_balancer(old_spec) && !is_load_balancer(spec) {
        if spec.allocate_load_balancer_node_ports == old_spec.allocate_load_balancer_node_ports {
            spec.allocate_load_balancer_node_ports = None;
        }
        if spec.load_balancer_class == old_spec.load_balancer_class {
            spec.load_balancer_class = None;
        }
    }
    if is_externally_accessible(old_spec)
        && !is_externally_accessible(spec)
        && spec.external_traffic_policy.text() == old_spec.external_traffic_policy.text()
    {
        spec.external_traffic_policy = None;
    }
    if !is_load_balancer(spec) {
        new.status.get_or_insert_default().load_balancer = Some(LoadBalancerStatus::default());
    }
}
