//! From Endpoints to slices.
//!
//! Behaves as `reconciler.go` of pkg/controller/endpointslicemirroring and `RepackSubsets` of
//! `pkg/api/v1/endpoints/util.go`, v1.36.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{EndpointAddress, EndpointPort as SubsetPort, EndpointSubset, Endpoints};
use rkube_api::k8s::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_client::owner::{new_controller_ref, uid_of};

use super::MANAGED_BY;
use crate::common::slices::{Changes, MANAGED_BY_LABEL, SERVICE_NAME_LABEL, name_prefix};
use crate::common::trigger_time::LAST_CHANGE_TRIGGER_TIME;
use crate::endpointslice::endpoints::{EndpointKey, PortKey, endpoint_key, port_key, same_state};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What mirroring does, and what it leaves out.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) changes: Changes,
    pub(super) invalid: usize,
    /// Beyond what one slice may hold.
    pub(super) skipped: usize,
}

/// Slices are told apart by family and ports.
type SliceKey = (&'static str, PortKey);
type Wanted = BTreeMap<SliceKey, (Vec<EndpointPort>, BTreeMap<EndpointKey, Endpoint>)>;

/// Deterministic: equal inputs give equal plans.
pub(super) fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>], per_subset_max: usize) -> Plan {
    let mut plan = Plan::default();
    let wanted = wanted(endpoints, per_subset_max, &mut plan);
    let mut by_key: BTreeMap<(String, PortKey), Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        let key = (slice.address_type.clone(), port_key(slice.ports.as_deref().unwrap_or_default()));
        by_key.entry(key).or_default().push(slice);
    }
    let changes = &mut plan.changes;
    for ((family, ports_key), (ports, addresses)) in wanted {
        let mut slices = by_key.remove(&(family.to_owned(), ports_key)).unwrap_or_default().into_iter();
        if addresses.is_empty() {
            changes.delete.extend(slices.cloned());
            continue;
        }
        let kept = slices.next();
        changes.delete.extend(slices.cloned());
        match kept {
            Some(kept) if is_current(endpoints, kept, &addresses) => {}
            Some(kept) => changes.update.push(slice(endpoints, family, ports, addresses, Some(&kept.metadata))),
            None => changes.create.push(slice(endpoints, family, ports, addresses, None)),
        }
    }
    changes.delete.extend(by_key.into_values().flatten().cloned());
    recycle(changes);
    plan
}

/// What the subsets say, put in one form: every set of ports once, every address in a set once.
fn wanted(endpoints: &Endpoints, per_subset_max: usize, plan: &mut Plan) -> Wanted {
    let mut wanted = Wanted::new();
    for subset in repack(endpoints.subsets.as_deref().unwrap_or_default()) {
        let keys = ["IPv4", "IPv6"].map(|family| (family, port_key(&subset.ports)));
        for key in &keys {
            wanted.entry(key.clone()).or_insert_with(|| (subset.ports.clone(), BTreeMap::new()));
        }
        let mut added = 0;
        // Ready ones come first where not all fit.
        for (address, ready) in subset
            .addresses
            .iter()
            .filter(|(_, ready)| *ready)
            .chain(subset.addresses.iter().filter(|(_, ready)| !ready))
        {
            if added >= per_subset_max {
                plan.skipped += 1;
                continue;
            }
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                plan.invalid += 1;
                continue;
            };
            let [ipv4, ipv6] = &keys;
            let endpoint = endpoint(address, ip, *ready);
            if let Some((_, set)) = wanted.get_mut(if ip.is_ipv4() { ipv4 } else { ipv6 }) {
                set.insert(endpoint_key(&endpoint), endpoint);
            }
            added += 1;
        }
    }
    wanted
}

/// A subset in canonical form.
struct Repacked<'a> {
    ports: Vec<EndpointPort>,
    addresses: Vec<(&'a EndpointAddress, bool)>,
}

/// An address is told apart by its text and the object behind it.
type AddressKey<'a> = (&'a str, Option<&'a str>);
type Members<'a> = BTreeMap<AddressKey<'a>, (&'a EndpointAddress, bool)>;

/// Ports with the same addresses go together, whatever subsets they were written in. An address that is
/// ready in one subset and not in another is not ready.
fn repack(subsets: &[EndpointSubset]) -> Vec<Repacked<'_>> {
    let mut by_port: BTreeMap<Option<PortKey>, (Option<EndpointPort>, Members<'_>)> = BTreeMap::new();
    for subset in subsets {
        let ports: Vec<Option<EndpointPort>> = match subset.ports.as_deref().unwrap_or_default() {
            // Addresses without ports are endpoints too.
            [] => vec![None],
            ports => ports.iter().map(|port| Some(slice_port(port))).collect(),
        };
        for port in ports {
            let key = port.as_ref().map(|port| port_key(std::slice::from_ref(port)));
            let (_, members) = by_port.entry(key).or_insert_with(|| (port, Members::new()));
            let ready = subset.addresses.iter().flatten().map(|address| (address, true));
            let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
            for (address, ready) in ready.chain(not_ready) {
                let uid = address.target_ref.as_ref().and_then(|target| target.uid.as_deref());
                members.entry((&address.ip, uid)).and_modify(|known| known.1 &= ready).or_insert((address, ready));
            }
        }
    }
    let mut by_members: BTreeMap<Vec<(AddressKey<'_>, bool)>, Repacked<'_>> = BTreeMap::new();
    for (port, members) in by_port.into_values() {
        let key = members.iter().map(|(key, (_, ready))| (*key, *ready)).collect();
        let group = by_members
            .entry(key)
            .or_insert_with(|| Repacked { ports: Vec::new(), addresses: members.into_values().collect() });
        group.ports.extend(port);
    }
    by_members.into_values().collect()
}

fn slice_port(port: &SubsetPort) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    }
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        target_ref: address.target_ref.clone(),
        node_name: address.node_name.clone(),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        ..Endpoint::default()
    }
}

fn is_current(endpoints: &Endpoints, slice: &EndpointSlice, wanted: &BTreeMap<EndpointKey, Endpoint>) -> bool {
    let have = slice.endpoints.as_deref().unwrap_or_default();
    let same = |endpoint: &Endpoint| wanted.get(&endpoint_key(endpoint)).is_some_and(|one| same_state(one, endpoint));
    let owners = slice.metadata.owner_references.iter().flatten();
    let mut strangers = owners.filter(|owner| {
        owner.kind == "Endpoints"
            && Some(&owner.name) == endpoints.metadata.name.as_ref()
            && owner.uid != uid_of(endpoints)
    });
    have.len() == wanted.len()
        && have.iter().all(same)
        && slice.metadata.labels.as_ref() == Some(&labels(endpoints))
        && slice.metadata.annotations.clone().unwrap_or_default() == annotations(endpoints)
        && strangers.next().is_none()
}

fn labels(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME_LABEL.to_owned(), endpoints.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    labels
}

fn annotations(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| name != LAST_CHANGE_TRIGGER_TIME && name != LAST_APPLIED);
    annotations
}

/// A new slice, or what the slice with this metadata becomes.
fn slice(
    endpoints: &Endpoints,
    family: &str,
    ports: Vec<EndpointPort>,
    addresses: BTreeMap<EndpointKey, Endpoint>,
    existing: Option<&ObjectMeta>,
) -> EndpointSlice {
    let mut metadata = match existing {
        Some(existing) => existing.clone(),
        None => ObjectMeta {
            generate_name: Some(name_prefix(endpoints.metadata.name.as_deref().unwrap_or_default())),
            namespace: endpoints.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
    };
    metadata.labels = Some(labels(endpoints));
    metadata.annotations = Some(annotations(endpoints)).filter(|annotations| !annotations.is_empty());
    metadata.owner_references = Some(vec![new_controller_ref(endpoints)]);
    EndpointSlice {
        metadata,
        address_type: family.to_owned(),
        endpoints: Some(addresses.into_values().collect()),
        ports: Some(ports),
    }
}

/// A slice to be deleted becomes one to be created: one write instead of two.
fn recycle(changes: &mut Changes) {
    for new in std::mem::take(&mut changes.create) {
        match changes.delete.iter().position(|old| old.address_type == new.address_type) {
            Some(index) => {
                let old = changes.delete.remove(index);
                let ObjectMeta { labels, annotations, owner_references, .. } = new.metadata;
                let metadata = ObjectMeta { labels, annotations, owner_references, ..old.metadata.clone() };
                changes.update.push(EndpointSlice { metadata, ..new });
            }
            None => changes.create.push(new),
        }
    }
}
