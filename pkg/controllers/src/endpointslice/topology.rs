//! Topology-aware routing: ready endpoints are dealt out to zones in proportion to the CPU of the zones' nodes.
//!
//! In: what share of the CPU each zone has, and the slices of one Service and address family. Out: the slices with
//! hints, or why there are none. Slices whose hints still hold are left as they are.
//!
//! Behaves as staging/endpointslice/topologycache, v1.36.
//!
//! // Differs from upstream: nothing is remembered between syncs. Whether a Service had hints is read off its slices,
//! and a change of the nodes' CPU queues every Service that asks for this, not only the overloaded ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{Node, Service};
use rkube_api::k8s::discovery::v1::{Endpoint, EndpointHints, EndpointSlice, ForZone};
use rkube_apimachinery::quantity::Quantity;

use crate::common::nodes::ready_status;

const ANNOTATION: &str = "service.kubernetes.io/topology-mode";
const DEPRECATED_ANNOTATION: &str = "service.kubernetes.io/topology-aware-hints";
/// Nodes with one of these labels are no capacity for pods.
const EXCLUDED: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// How much more than its share of the traffic an endpoint may get.
const OVERLOAD_MAX: f64 = 0.2;

/// Each zone's part of the CPU of all nodes that count; the parts add up to 1.
pub(super) type Shares = BTreeMap<String, f64>;

/// What one node adds to its zone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Capacity {
    /// It is not ready, or takes no pods.
    Excluded,
    /// Its zone or CPU is not known, so nothing can be said of the cluster.
    Unknown,
    Milli(String, i64),
}

/// Why a Service that asks for hints has none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes")]
    Nodes,
    #[error("Insufficient number of endpoints ({endpoints} endpoints, {zones} zones)")]
    TooFew { endpoints: usize, zones: usize },
    #[error(
        "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold \
         ({endpoints} endpoints, {zones} zones)"
    )]
    Overload { endpoints: usize, zones: usize },
    #[error("One or more endpoints do not have a zone specified")]
    NoZone,
}

/// The slices of one Service and address family.
#[derive(Debug, Default)]
pub(super) struct Family {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) unchanged: Vec<Arc<EndpointSlice>>,
}

/// How many endpoints a zone is to get.
struct Allocation {
    maximum: usize,
    desired: f64,
}

pub(super) fn is_wanted(service: &Service) -> bool {
    let annotations = service.metadata.annotations.as_ref();
    let value = annotations.and_then(|all| all.get(DEPRECATED_ANNOTATION).or_else(|| all.get(ANNOTATION)));
    value.is_some_and(|value| value == "Auto" || value == "auto")
}

pub(super) fn capacity(node: &Node) -> Capacity {
    let labels = node.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|labels| labels.get(name));
    if EXCLUDED.iter().any(|name| label(name).is_some()) || ready_status(node) != Some("True") {
        return Capacity::Excluded;
    }
    let cpu = node.status.as_ref().and_then(|status| status.allocatable.as_ref()?.get("cpu"));
    let milli = cpu.and_then(|cpu| Quantity::parse(&cpu.0).ok()).map_or(0, |cpu| cpu.milli_value());
    match label("topology.kubernetes.io/zone").filter(|zone| !zone.is_empty()) {
        Some(zone) if milli > 0 => Capacity::Milli(zone.clone(), milli),
        _ => Capacity::Unknown,
    }
}

/// `None` if there are fewer than two zones, or too little is known of a node.
pub(super) fn shares<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Option<Shares> {
    let mut by_zone: BTreeMap<String, i64> = BTreeMap::new();
    for node in nodes {
        match capacity(node) {
            Capacity::Excluded => {}
            Capacity::Unknown => return None,
            Capacity::Milli(zone, milli) => *by_zone.entry(zone).or_default() += milli,
        }
    }
    let total: i64 = by_zone.values().sum();
    (by_zone.len() > 1).then(|| by_zone.into_iter().map(|(zone, milli)| (zone, milli as f64 / total as f64)).collect())
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
}

fn endpoints(slice: &EndpointSlice) -> impl Iterator<Item = &Endpoint> {
    slice.endpoints.iter().flatten()
}

pub(super) fn has_hints(slice: &EndpointSlice) -> bool {
    endpoints(slice).any(|endpoint| endpoint.hints.is_some())
}

fn allocations(shares: Option<&Shares>, total: usize) -> Result<BTreeMap<String, Allocation>, Refusal> {
    let shares = shares.ok_or(Refusal::Nodes)?;
    let zones = shares.len();
    if zones > total {
        return Err(Refusal::TooFew { endpoints: total, zones });
    }
    let wanted = |share: f64| share * total as f64;
    let minimum = |share: f64| (wanted(share) / (1.0 + OVERLOAD_MAX)).ceil() as usize;
    let needed: usize = shares.values().map(|share| minimum(*share)).sum();
    let spare = total.checked_sub(needed).ok_or(Refusal::Overload { endpoints: total, zones })?;
    let allocation = |share: f64| {
        let minimum = minimum(share);
        Allocation { maximum: minimum + spare, desired: wanted(share).max(minimum as f64) }
    };
    Ok(shares.iter().map(|(zone, share)| (zone.clone(), allocation(*share))).collect())
}

impl Family {
    /// Gives every ready endpoint the zone it is for, or takes all hints away and says why.
    pub(super) fn deal_out(&mut self, shares: Option<&Shares>) -> Result<(), Refusal> {
        let dealt = self.try_deal_out(shares);
        if dealt.is_err() {
            self.strip();
        }
        dealt
    }

    fn try_deal_out(&mut self, shares: Option<&Shares>) -> Result<(), Refusal> {
        let slices = self.create.iter().chain(&self.update).chain(self.unchanged.iter().map(|slice| &**slice));
        let total = slices.flat_map(endpoints).filter(|endpoint| is_ready(endpoint)).count();
        let allocations = allocations(shares, total)?;

        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for slice in std::mem::take(&mut self.unchanged) {
            match counts_with(&slice, &counts, &allocations) {
                Some(new) => {
                    counts = new;
                    self.unchanged.push(slice);
                }
                None => self.update.push((*slice).clone()),
            }
        }

        // Everyone's own zone first; then those that have too many give to those that have too few.
        let mut dealt: Vec<&mut Endpoint> = Vec::new();
        let slices = self.create.iter_mut().chain(&mut self.update);
        for endpoint in slices.flat_map(|slice| slice.endpoints.iter_mut().flatten()) {
            endpoint.hints = None;
            if is_ready(endpoint) {
                let zone = endpoint.zone.clone().filter(|zone| !zone.is_empty()).ok_or(Refusal::NoZone)?;
                endpoint.hints = Some(hint(&zone));
                *counts.entry(zone).or_default() += 1;
                dealt.push(endpoint);
            }
        }
        let (mut givers, mut takers) = givers_and_takers(&allocations, &counts);
        for endpoint in dealt {
            let Some(left) = endpoint.zone.as_ref().and_then(|zone| givers.get_mut(zone)).filter(|left| **left > 0)
            else {
                continue;
            };
            let Some((zone, wanted)) = takers.iter_mut().find(|(_, wanted)| **wanted > 0) else { break };
            endpoint.hints = Some(hint(zone));
            *left -= 1;
            *wanted -= 1;
        }
        Ok(())
    }

    fn strip(&mut self) {
        let (hinted, plain): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unchanged).into_iter().partition(|slice| has_hints(slice));
        self.unchanged = plain;
        self.update.extend(hinted.iter().map(|slice| (**slice).clone()));
        for slice in self.create.iter_mut().chain(&mut self.update) {
            slice.endpoints.iter_mut().flatten().for_each(|endpoint| endpoint.hints = None);
        }
    }
}

fn hint(zone: &str) -> EndpointHints {
    EndpointHints { for_zones: Some(vec![ForZone { name: zone.to_owned() }]), for_nodes: None }
}

/// The counts by zone with a slice's hints added; `None` if an endpoint has no hint, or a zone would get more than
/// it may.
fn counts_with(
    slice: &EndpointSlice,
    counts: &BTreeMap<String, usize>,
    allocations: &BTreeMap<String, Allocation>,
) -> Option<BTreeMap<String, usize>> {
    let mut new = counts.clone();
    for endpoint in endpoints(slice).filter(|endpoint| is_ready(endpoint)) {
        let zones = endpoint.hints.as_ref()?.for_zones.as_ref().filter(|zones| !zones.is_empty())?;
        for zone in zones {
            let count = new.entry(zone.name.clone()).or_default();
            *count += 1;
            if *count > allocations.get(&zone.name)?.maximum {
                return None;
            }
        }
    }
    Some(new)
}

type Counts = BTreeMap<String, usize>;

/// How many endpoints each zone gives away, and how many each is to get.
fn givers_and_takers(allocations: &BTreeMap<String, Allocation>, counts: &Counts) -> (Counts, Counts) {
    let difference = |(zone, allocation): (&String, &Allocation)| {
        (zone.clone(), counts.get(zone).copied().unwrap_or(0) as f64 - allocation.desired)
    };
    let mut differences: BTreeMap<String, f64> = allocations.iter().map(difference).collect();
    let (mut givers, mut takers) = (Counts::new(), Counts::new());
    loop {
        let by_difference = |a: &(&String, &f64), b: &(&String, &f64)| a.1.total_cmp(b.1);
        let most = differences.iter().max_by(by_difference).map(|(zone, number)| (zone.clone(), *number));
        let least = differences.iter().min_by(by_difference).map(|(zone, number)| (zone.clone(), -*number));
        let (Some((giver, give)), Some((taker, take))) = (most, least) else { break };
        if give < 0.5 || take < 0.5 || (give < 1.0 && take < 1.0) {
            break;
        }
        *differences.entry(giver.clone()).or_default() -= 1.0;
        *differences.entry(taker.clone()).or_default() += 1.0;
        *givers.entry(giver).or_default() += 1;
        *takers.entry(taker).or_default() += 1;
    }
    (givers, takers)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};
    use rkube_api::Kind;
    use serde_json::json;

    use super::*;

    fn slice(zones: &[&str]) -> EndpointSlice {
        let endpoint = |zone: &&str| json!({"addresses": ["10.42.0.1"], "zone": zone, "conditions": {"ready": true}});
        let endpoints: Vec<_> = zones.iter().map(endpoint).collect();
        EndpointSlice::from_value(json!({"addressType": "IPv4", "endpoints": endpoints})).expect("a slice")
    }

    fn shares(pairs: &[(&str, f64)]) -> Shares {
        pairs.iter().map(|(zone, share)| ((*zone).to_owned(), *share)).collect()
    }

    fn describe(slice: &EndpointSlice) -> String {
        let hints = endpoints(slice).map(|endpoint| {
            let zones = endpoint.hints.iter().flat_map(|hints| hints.for_zones.iter().flatten());
            let zones: Vec<_> = zones.map(|zone| zone.name.as_str()).collect();
            format!("{}>{}", endpoint.zone.as_deref().unwrap_or_default(), zones.join("+"))
        });
        hints.collect::<Vec<_>>().join(" ")
    }

    fn check(mut family: Family, shares: Option<&Shares>, expected: Expect) -> Family {
        let mut text = String::new();
        if let Err(refusal) = family.deal_out(shares) {
            let _ = writeln!(text, "{refusal}");
        }
        let groups = [("create", &family.create), ("update", &family.update)];
        let changed = groups.iter().flat_map(|(name, slices)| slices.iter().map(move |slice| (*name, slice)));
        for (name, slice) in changed.chain(family.unchanged.iter().map(|slice| ("unchanged", &**slice))) {
            let _ = writeln!(text, "{name} {}", describe(slice));
        }
        expected.assert_eq(&text);
        family
    }

    #[test]
    fn endpoints_are_dealt_out_by_cpu_and_stay_while_they_may() {
        let even = shares(&[("a", 0.5), ("b", 0.5)]);
        let new = |zones: &[&str]| Family { create: vec![slice(zones)], ..Family::default() };
        check(
            new(&["a", "a", "b", "b"]),
            Some(&even),
            expect![[r#"
            create a>a a>a b>b b>b
        "#]],
        );
        check(
            new(&["a", "a", "a", "b"]),
            Some(&even),
            expect![[r#"
            create a>b a>a a>a b>b
        "#]],
        );
        let dealt = check(
            new(&["a", "a", "a", "a"]),
            Some(&even),
            expect![[r#"
            create a>b a>b a>a a>a
        "#]],
        );
        let kept = || Family { unchanged: dealt.create.iter().cloned().map(Arc::new).collect(), ..Family::default() };
        check(
            kept(),
            Some(&even),
            expect![[r#"
            unchanged a>b a>b a>a a>a
        "#]],
        );
        // A little more for one zone is no reason to change anything; a lot more is.
        check(
            kept(),
            Some(&shares(&[("a", 0.55), ("b", 0.45)])),
            expect![[r#"
            unchanged a>b a>b a>a a>a
        "#]],
        );
        check(
            kept(),
            Some(&shares(&[("a", 0.8), ("b", 0.2)])),
            expect![[r#"
            update a>b a>a a>a a>a
        "#]],
        );
    }

    #[test]
    fn without_enough_endpoints_or_knowledge_there_are_no_hints() {
        let even = shares(&[("a", 0.5), ("b", 0.5)]);
        let new = |zones: &[&str]| Family { create: vec![slice(zones)], ..Family::default() };
        check(
            new(&["a", "b"]),
            None,
            expect![[r#"
            Insufficient Node information: allocatable CPU or zone not specified on one or more nodes
            create a> b>
        "#]],
        );
        check(
            new(&["a"]),
            Some(&even),
            expect![[r#"
            Insufficient number of endpoints (1 endpoints, 2 zones)
            create a>
        "#]],
        );
        check(
            new(&["a", ""]),
            Some(&even),
            expect![[r#"
            One or more endpoints do not have a zone specified
            create a> >
        "#]],
        );
        check(
            new(&["a", "b", "c"]),
            Some(&shares(&[("a", 0.45), ("b", 0.45), ("c", 0.1)])),
            expect![[r#"
            Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (3 endpoints, 3 zones)
            create a> b> c>
        "#]],
        );
        let mut hinted = slice(&["a"]);
        hinted.endpoints.iter_mut().flatten().for_each(|endpoint| endpoint.hints = Some(hint("a")));
        let old = Family { unchanged: vec![Arc::new(hinted)], ..Family::default() };
        check(
            old,
            Some(&even),
            expect![[r#"
            Insufficient number of endpoints (1 endpoints, 2 zones)
            update a>
        "#]],
        );
    }

    #[test]
    fn zones_share_by_the_cpu_of_their_ready_workers() {
        let node = |zone: &str, cpu: &str, ready: &str, role: &str| {
            let labels = json!({"topology.kubernetes.io/zone": zone, role: ""});
            let status = json!({"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}]});
            Node::from_value(json!({"metadata": {"labels": labels}, "status": status})).expect("a node")
        };
        let worker = "role";
        let of = |nodes: &[Node]| format!("{:?}", super::shares(nodes));
        let nodes = [
            node("a", "1", "True", worker),
            node("b", "1500m", "True", worker),
            node("b", "1500m", "True", worker),
            node("c", "8", "False", worker),
            node("c", "8", "True", "node-role.kubernetes.io/control-plane"),
        ];
        expect![[r#"Some({"a": 0.25, "b": 0.75})"#]].assert_eq(&of(&nodes));
        expect!["None"].assert_eq(&of(&nodes[1..3]));
        expect!["None"].assert_eq(&of(&[node("a", "1", "True", worker), node("", "1", "True", worker)]));
    }
}
