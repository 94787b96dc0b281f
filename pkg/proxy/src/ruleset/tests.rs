//! Rules from Services and endpoints: what packets meet, and that changes lead where starting over does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use expect_test::expect;
use proptest::prelude::*;
use rkube_apimachinery::key::ObjectKey;
use rkube_network::nft::{Datum, Op, TCP, UDP};

use super::*;
use crate::endpoints::Endpoint;

/// A table that is as strict as the kernel: what is added must be new, what is deleted must be there.
#[derive(Default)]
struct Table {
    chains: BTreeMap<String, Vec<String>>,
    sets: BTreeMap<&'static str, BTreeMap<Vec<Datum>, String>>,
}

impl Table {
    fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::AddTable | Op::DeleteTable => {}
                Op::AddChain { name, .. } => {
                    self.chains.entry(name.clone()).or_default();
                }
                Op::FlushChain(name) => self.chains.get_mut(name).unwrap().clear(),
                Op::DeleteChain(name) => {
                    assert!(self.chains.remove(name).unwrap().is_empty());
                    let suffix = format!("goto {name}");
                    let users = self.sets.values().flat_map(BTreeMap::values).chain(self.chains.values().flatten());
                    assert!(!users.into_iter().any(|text| text.ends_with(&suffix)), "{name} is in use");
                }
                Op::AddRule(rule) => self.chains.get_mut(&rule.chain).unwrap().push(rule.to_string()),
                Op::AddSet(set) => {
                    self.sets.entry(set.name).or_default();
                }
                Op::FlushSet(name) => self.sets.get_mut(name).unwrap().clear(),
                Op::AddElements { set, elements } => {
                    for element in elements {
                        let text = element.to_string();
                        if let Some(chain) = text.split("goto ").nth(1) {
                            assert!(self.chains.contains_key(chain), "{text}");
                        }
                        let old = self.sets.get_mut(set).unwrap().insert(element.key.clone(), text);
                        assert_eq!(old, None, "in {set}");
                    }
                }
                Op::DeleteElements { set, elements } => {
                    for element in elements {
                        let old = self.sets.get_mut(set).unwrap().remove(&element.key);
                        assert_eq!(old, Some(element.to_string()), "in {set}");
                    }
                }
            }
        }
    }

    /// The elements, with what numbers stand for in their place. Of an endpoint's own number only the group
    /// counts, and that the numbers have no gaps.
    fn elements(&self) -> BTreeSet<String> {
        let named = |set: &str| -> BTreeMap<String, String> {
            let elements = self.sets.get(set).into_iter().flatten();
            elements.filter_map(|(_, text)| text.split_once(" : ")).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
        };
        let classes = named("classes");
        let ids: BTreeMap<_, _> =
            named("service-ids").into_iter().map(|(frontend, id)| (id.replace("0 . ", ""), frontend)).collect();
        let mut all = BTreeSet::new();
        for (set, elements) in &self.sets {
            for (key, text) in elements {
                let (left, right) = text.split_once(" : ").unwrap_or((text, ""));
                let right = right.strip_prefix("0 . ").unwrap_or(right);
                let line = match *set {
                    "classes" => format!("{set} {right}"),
                    "services" | "externals" | "node-ports" => format!("{set} {left} {}", classes[right]),
                    "external-ids" | "node-port-ids" => format!("{set} {left} {}", ids[right]),
                    "service-ids" => format!("{set} {left}"),
                    "endpoints" | "endpoint-addresses" => {
                        let [Datum::Number(id), Datum::Number(slot)] = key[..] else { unreachable!() };
                        all.insert(format!("{set} {} has number {slot}", ids[&id.to_string()]));
                        format!("{set} {} {} {right}", ids[&id.to_string()], slot >> 24)
                    }
                    "affinity-cluster" | "affinity-local" => {
                        let (id, address) = left.split_once(" . ").unwrap();
                        format!("{set} {} {address} {right}", ids[id])
                    }
                    _ => format!("{set} {text}"),
                };
                all.insert(line);
            }
        }
        all
    }
}

#[derive(Clone, Debug)]
struct Change {
    service: u8,
    /// None deletes the Service.
    view: Option<ServiceView>,
}

fn frontend(service: u8, protocol: u8) -> Frontend {
    Frontend { address: Ipv4Addr::new(10, 43, 0, service), protocol, port: 80 }
}

fn any_endpoint() -> impl Strategy<Value = (Target, Endpoint)> {
    (0..6u8, any::<bool>(), 0..4u8).prop_map(|(number, is_local, state)| {
        let endpoint =
            Endpoint { is_local, ready: state > 1, serving: state > 0, terminating: state < 2, ..Endpoint::default() };
        ((Ipv4Addr::new(10, 42, 0, number), 8080), endpoint)
    })
}

fn any_view(service: u8) -> impl Strategy<Value = ServiceView> {
    let endpoints = prop::collection::btree_map(0..6u8, any_endpoint(), 0..6);
    let flags = prop::array::uniform6(any::<bool>());
    let shared = (prop::option::of(30_000..30_002u16), prop::option::of(1..3u8));
    (endpoints, flags, shared).prop_map(move |(endpoints, flags, (node_port, outside))| {
        let [affinity, internal_local, external_local, udp, balanced, guarded] = flags;
        let outside: Vec<_> = outside.into_iter().map(|number| Ipv4Addr::new(203, 0, 113, number)).collect();
        let port = ServicePort {
            name: String::new(),
            frontend: frontend(service, if udp { UDP } else { TCP }),
            node_port,
            external_ips: if balanced { Vec::new() } else { outside.clone() },
            load_balancer_ips: if balanced { outside } else { Vec::new() },
            source_ranges: if guarded { vec!["198.51.100.0/24".parse().unwrap()] } else { Vec::new() },
            affinity: affinity.then_some(Duration::from_secs(60)),
            internal_local,
            external_local,
        };
        let endpoints = BTreeMap::from([(String::new(), endpoints.into_values().collect())]);
        ServiceView { ports: vec![port], endpoints }
    })
}

fn any_change() -> impl Strategy<Value = Change> {
    (1..5u8).prop_flat_map(|service| {
        prop::option::weighted(0.85, any_view(service)).prop_map(move |view| Change { service, view })
    })
}

fn ruleset() -> Ruleset {
    let own_addresses = BTreeSet::from([Ipv4Addr::new(10, 43, 0, 10)]);
    Ruleset::new(RulesetConfig { cluster: "10.42.0.0/16".parse().unwrap(), own_addresses })
}

fn name(service: u8) -> ObjectKey {
    ObjectKey::new("default", format!("s{service}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_ends_where_a_fresh_start_does(
        batches in prop::collection::vec(prop::collection::vec(any_change(), 1..4), 1..25)
    ) {
        let place = Place::default();
        let mut rules = ruleset();
        let mut table = Table::default();
        table.apply(&rules.full_ops());
        let mut state = BTreeMap::new();
        for batch in &batches {
            for Change { service, view } in batch {
                rules.set(&name(*service), &view.clone().unwrap_or_default(), &place);
                state.insert(*service, view.clone().unwrap_or_default());
            }
            table.apply(&rules.take_ops());
            table.apply(&forget_chains(&rules.take_retired()));
        }
        let mut fresh = ruleset();
        for (service, view) in &state {
            fresh.set(&name(*service), view, &place);
        }
        let mut expected = Table::default();
        expected.apply(&fresh.full_ops());
        prop_assert_eq!(table.elements(), expected.elements());
        for (chain, rules) in &expected.chains {
            prop_assert_eq!(table.chains.get(chain), Some(rules));
        }
        let extra = table.chains.len() - expected.chains.len();
        prop_assert!(extra < RETIRED_MAX);
        // Writing everything again changes nothing but the chains that nothing leads to.
        table.apply(&rules.full_ops());
        prop_assert_eq!(table.elements(), expected.elements());
    }
}

fn simple(endpoints: std::ops::Range<u8>) -> ServiceView {
    let port = ServicePort {
        name: String::new(),
        frontend: frontend(1, TCP),
        node_port: None,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        internal_local: false,
        external_local: false,
    };
    let ready = Endpoint { ready: true, serving: true, ..Endpoint::default() };
    let endpoints = endpoints.map(|number| ((Ipv4Addr::new(10, 42, 0, number), 8080), ready.clone())).collect();
    ServiceView { ports: vec![port], endpoints: BTreeMap::from([(String::new(), endpoints)]) }
}

fn text(ops: &[Op]) -> String {
    ops.iter().map(|op| format!("{op}\n")).collect()
}

#[test]
fn one_endpoint_more_or_less_changes_few_elements() {
    let mut rules = ruleset();
    let place = Place::default();
    rules.set(&name(1), &simple(0..3), &place);
    rules.set(&name(2), &ServiceView { ports: Vec::new(), ..simple(0..4) }, &place);
    rules.full_ops();
    rules.set(&name(1), &simple(0..4), &place);
    expect![[r#"
        add chain pick-ip-cluster-4-0
        add rule pick-ip-cluster-4-0 dnat to ((ip daddr . meta l4proto . th dport) map @service-ids . numgen random mod 4) map @endpoints
        delete element classes { 911779656 : goto pick-ip-cluster-3-0 }
        delete element services { 10.43.0.1 . tcp . 80 : 0 . 911779656 }
        add element classes { 1379519105 : goto pick-ip-cluster-4-0 }
        add element endpoints { 3339687562 . 3 : 10.42.0.3 . 8080 }
        add element services { 10.43.0.1 . tcp . 80 : 0 . 1379519105 }
    "#]]
    .assert_eq(&text(&rules.take_ops()));

    // The first goes: the last takes its number. The chain for three is still there.
    rules.set(&name(1), &simple(1..4), &place);
    expect![[r#"
        delete element classes { 1379519105 : goto pick-ip-cluster-4-0 }
        delete element endpoints { 3339687562 . 0 : 10.42.0.0 . 8080, 3339687562 . 3 : 10.42.0.3 . 8080 }
        delete element services { 10.43.0.1 . tcp . 80 : 0 . 1379519105 }
        add element classes { 911779656 : goto pick-ip-cluster-3-0 }
        add element endpoints { 3339687562 . 0 : 10.42.0.3 . 8080 }
        add element services { 10.43.0.1 . tcp . 80 : 0 . 911779656 }
    "#]]
    .assert_eq(&text(&rules.take_ops()));
}

#[test]
fn the_nodes_own_address_is_left_alone() {
    let mut rules = ruleset();
    let mut view = simple(0..0);
    view.ports[0].frontend.address = Ipv4Addr::new(10, 43, 0, 10);
    rules.set(&name(1), &view, &Place::default());
    assert_eq!(text(&rules.take_ops()), "");
}

#[test]
fn the_first_by_name_keeps_a_shared_external_address() {
    let mut rules = ruleset();
    let place = Place::default();
    let view = |service: u8| {
        let mut view = simple(0..1);
        view.ports[0].frontend = frontend(service, TCP);
        view.ports[0].external_ips = vec![Ipv4Addr::new(203, 0, 113, 1)];
        view
    };
    let backends = |rules: &mut Ruleset| {
        let ops = rules.take_ops();
        let about = ops.iter().map(ToString::to_string).filter(|op| op.contains("external-ids")).collect::<Vec<_>>();
        about.join("; ")
    };
    rules.set(&name(2), &view(2), &place);
    rules.take_ops();
    rules.set(&name(1), &view(1), &place);
    expect!["delete element external-ids { 203.0.113.1 . tcp . 80 : 0 . 4269976143 }; add element external-ids { 203.0.113.1 . tcp . 80 : 0 . 3339687562 }"].assert_eq(&backends(&mut rules));
    rules.set(&name(1), &ServiceView::default(), &place);
    expect!["delete element external-ids { 203.0.113.1 . tcp . 80 : 0 . 3339687562 }; add element external-ids { 203.0.113.1 . tcp . 80 : 0 . 4269976143 }"].assert_eq(&backends(&mut rules));
}
