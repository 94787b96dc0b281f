//! What a Service's addresses are to be: families, policy, and values carried over from before.
//!
//! Pure: a Service and its predecessor in, the Service completed or the faults found.
//!
//! Behaves as `initIPFamilyFields` of `pkg/registry/core/service/storage/alloc.go` and the normalizations of
//! `storage.go`, v1.36.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rkube_api::k8s::core::v1::{Service, ServiceSpec};
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_validation::core::service::validate_cluster_ips_related_fields;

pub(super) const NONE: &str = "None";

/// Short views of a spec's optional fields.
pub(super) trait Spec {
    fn kind(&self) -> &str;
    fn primary(&self) -> &str;
    fn addresses(&self) -> &[String];
    fn families(&self) -> &[String];
    fn policy(&self) -> &str;

    fn is_external(&self) -> bool {
        self.kind() == "ExternalName"
    }

    fn is_headless(&self) -> bool {
        self.addresses().first().is_some_and(|first| first == NONE)
    }
}

impl Spec for ServiceSpec {
    fn kind(&self) -> &str {
        self.type_.as_deref().unwrap_or("ClusterIP")
    }

    fn primary(&self) -> &str {
        self.cluster_ip.as_deref().unwrap_or_default()
    }

    fn addresses(&self) -> &[String] {
        self.cluster_ips.as_deref().unwrap_or_default()
    }

    fn families(&self) -> &[String] {
        self.ip_families.as_deref().unwrap_or_default()
    }

    fn policy(&self) -> &str {
        self.ip_family_policy.as_deref().unwrap_or_default()
    }
}

/// The families this cluster has, the default one first.
#[derive(Clone, Debug)]
pub(super) struct Configured(pub(super) Vec<&'static str>);

impl Configured {
    fn has(&self, family: &str) -> bool {
        self.0.contains(&family)
    }
}

pub(super) fn family_of(address: &str) -> &'static str {
    if address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()) { "IPv6" } else { "IPv4" }
}

fn other(family: &str) -> String {
    if family == "IPv4" { "IPv6" } else { "IPv4" }.to_owned()
}

/// Brings `clusterIPs` in line with `clusterIP`, for clients that know only the latter.
pub(super) fn normalize_cluster_ips(new: &mut ServiceSpec, old: Option<&ServiceSpec>) {
    let Some(old) = old else {
        if !new.primary().is_empty() && new.addresses().is_empty() {
            new.cluster_ips = Some(vec![new.primary().to_owned()]);
        }
        return;
    };
    if !old.addresses().is_empty() && new.addresses().is_empty() && old.primary() == new.primary() {
        new.cluster_ips.clone_from(&old.cluster_ips);
    }
    if old.primary() == new.primary() || old.addresses() != new.addresses() {
        return;
    }
    let cleared = !old.primary().is_empty() && new.primary().is_empty();
    new.cluster_ips = (!cleared).then(|| vec![new.primary().to_owned()]);
}

/// What was allocated before stays, when a client sends its own form of the object again.
pub(super) fn patch_allocated_values(new: &mut ServiceSpec, old: &ServiceSpec) {
    if !old.is_external() && !new.is_external() {
        if new.primary().is_empty() {
            new.cluster_ip.clone_from(&old.cluster_ip);
        }
        if new.addresses().is_empty() && !old.addresses().is_empty() {
            new.cluster_ips.clone_from(&old.cluster_ips);
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let ports = |spec: &ServiceSpec| -> BTreeSet<i32> { node_ports(spec).into_iter().collect() };
        let used: BTreeSet<i32> = ports(old).intersection(&ports(new)).copied().collect();
        let by_name: BTreeMap<Option<String>, i32> = old
            .ports
            .iter()
            .flatten()
            .map(|port| (port.name.clone().filter(|name| !name.is_empty()), port.node_port.unwrap_or(0)))
            .collect();
        for port in new.ports.iter_mut().flatten().filter(|port| port.node_port.unwrap_or(0) == 0) {
            let name = port.name.clone().filter(|name| !name.is_empty());
            let before = by_name.get(&name).copied().filter(|before| *before != 0 && !used.contains(before));
            port.node_port = before.or(port.node_port);
        }
    }
    let local =
        |spec: &ServiceSpec| spec.kind() == "LoadBalancer" && spec.external_traffic_policy.as_deref() == Some("Local");
    if local(old) && local(new) && new.health_check_node_port.unwrap_or(0) == 0 {
        new.health_check_node_port = old.health_check_node_port;
    }
}

/// Whether ports of the Service get node ports when they name none.
pub(super) fn needs_node_port(spec: &ServiceSpec) -> bool {
    spec.kind() == "NodePort" || spec.kind() == "LoadBalancer" && spec.allocate_load_balancer_node_ports.unwrap_or(true)
}

/// A port on each node that says whether the Service has local endpoints.
pub(super) fn needs_health_check(spec: &ServiceSpec) -> bool {
    spec.kind() == "LoadBalancer" && spec.external_traffic_policy.as_deref() == Some("Local")
}

pub(super) fn node_ports(spec: &ServiceSpec) -> Vec<i32> {
    spec.ports.iter().flatten().filter_map(|port| port.node_port).filter(|port| *port != 0).collect()
}

/// A PreferDualStack Service whose addresses nobody touched is left as it is, whatever the cluster has become.
pub(super) fn keeps_preferred(new: &ServiceSpec, old: Option<&ServiceSpec>) -> bool {
    old.is_some_and(|old| {
        new.ip_family_policy.is_some()
            && old.kind() == new.kind()
            && matches!(new.kind(), "ClusterIP" | "NodePort" | "LoadBalancer")
            && new.policy() == "PreferDualStack"
            && matches!(old.policy(), "" | "PreferDualStack")
            && old.addresses() == new.addresses()
            && old.families() == new.families()
    })
}

/// Completes policy and families, or says why they cannot be.
pub(super) fn init_families(
    service: &mut Service,
    before: Option<&Service>,
    configured: &Configured,
) -> Result<(), ErrorList> {
    let old = before.and_then(|before| before.spec.as_ref());
    let spec = service.spec.get_or_insert_default();
    if spec.is_external() || keeps_preferred(spec, old) {
        return Ok(());
    }
    let selectorless = spec.selector.as_ref().is_none_or(BTreeMap::is_empty);
    let free = spec.primary() == NONE && selectorless;
    if spec.ip_family_policy.is_none() {
        let inherited = old.and_then(|old| old.ip_family_policy.clone());
        let default = if free { "RequireDualStack" } else { "SingleStack" };
        spec.ip_family_policy = Some(inherited.unwrap_or_else(|| default.to_owned()));
    }
    let faults = validate_cluster_ips_related_fields(service, before);
    if !faults.is_empty() {
        return Err(faults);
    }
    let spec = service.spec.get_or_insert_default();
    let mut errors = ErrorList::new();
    if let Some(old) = old {
        reconcile_with_old(spec, old, &mut errors);
    }
    let path = Path::new("spec");
    let policy_path = path.child("ipFamilyPolicy");
    if spec.policy() == "SingleStack" {
        let detail = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
        if spec.addresses().len() == 2 {
            errors.push(Error::invalid(&policy_path, spec.policy(), format!("{detail} cluster IPs are specified")));
        }
        if spec.families().len() == 2 {
            errors.push(Error::invalid(&policy_path, spec.policy(), format!("{detail} IP families are specified")));
        }
    }
    infer_families(spec, configured, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let default = configured.0.first().copied().unwrap_or("IPv4");
    let mut families = spec.families().to_vec();
    if free {
        // Whoever makes its endpoints decides their families; the cluster's do not matter.
        if families.is_empty() {
            families.push(default.to_owned());
        }
        if families.len() < 2 && spec.policy() != "SingleStack" {
            families.extend(families.first().map(|first| other(first)));
        }
        spec.ip_families = Some(families);
        return Ok(());
    }
    if spec.policy() == "RequireDualStack" && configured.0.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        errors.push(Error::invalid(&policy_path, spec.policy(), detail));
    }
    for (index, family) in families.iter().enumerate().filter(|(_, family)| !configured.has(family)) {
        let path = path.child("ipFamilies").index(index);
        errors.push(Error::invalid(&path, family.as_str(), "not configured on this cluster"));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    if families.is_empty() {
        families.push(default.to_owned());
    }
    if spec.policy() != "SingleStack" && families.len() == 1 && configured.0.len() == 2 {
        families.extend(families.first().map(|first| other(first)));
    }
    spec.ip_families = Some(families);
    Ok(())
}

/// A change to SingleStack drops what is second; any other reduction must say so.
fn reconcile_with_old(spec: &mut ServiceSpec, old: &ServiceSpec, errors: &mut ErrorList) {
    let path = Path::new("spec").child("ipFamilyPolicy");
    if spec.policy() == "SingleStack" {
        if old.addresses() == spec.addresses()
            && let Some(addresses) = &mut spec.cluster_ips
        {
            addresses.truncate(1);
        }
        if old.families() == spec.families()
            && let Some(families) = &mut spec.ip_families
        {
            families.truncate(1);
        }
        return;
    }
    let reduced = |new: &[String], old: &[String]| !new.is_empty() && new.len() < old.len();
    if reduced(spec.addresses(), old.addresses()) {
        let detail = "must be 'SingleStack' to release the secondary cluster IP";
        errors.push(Error::invalid(&path, spec.policy(), detail));
    }
    if reduced(spec.families(), old.families()) {
        let detail = "must be 'SingleStack' to release the secondary IP family";
        errors.push(Error::invalid(&path, spec.policy(), detail));
    }
}

/// Families follow from addresses that were given.
fn infer_families(spec: &mut ServiceSpec, configured: &Configured, errors: &mut ErrorList) {
    let mut families = spec.families().to_vec();
    for (index, address) in spec.addresses().iter().enumerate() {
        if address == NONE {
            break;
        }
        if index < families.len() {
            continue;
        }
        let family = family_of(address);
        if configured.has(family) {
            families.push(family.to_owned());
        } else {
            let path = Path::new("spec").child("clusterIPs").index(index);
            let detail = format!("{family} is not configured on this cluster");
            errors.push(Error::invalid(&path, spec.addresses().to_vec(), detail));
        }
    }
    if !families.is_empty() {
        spec.ip_families = Some(families);
    }
}
