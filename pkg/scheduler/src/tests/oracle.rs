//! The slow, obvious filters and scores, and random clusters on which the fast ones must agree with them.
//!
//! The oracle walks all pods for every node and remembers nothing. The fast side lives through the same history of
//! pods and nodes that come, change and go, with decisions in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Node, Pod, PodAffinityTerm, TopologySpreadConstraint};
use rkube_api::pod_resources::{Side, of_pod};
use rkube_apimachinery::clock::FakeClock;
use rkube_apimachinery::labels::Selector;
use rkube_apimachinery::quantity::Quantity;
use rkube_apimachinery::random::{Random, SeededRandom, below};
use rkube_client::fake::FakeApi;
use rkube_client::{Client, InformerFactory};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::config::Profile;
use crate::decide::owners::Owners;
use crate::decide::{Decider, Verdict, score};
use crate::model::pod::PodInfo;
use crate::model::selector::{LabelsOf, compile};
use crate::volumes::Storage;

struct Nobody;

impl Owners for Nobody {
    fn selector_for(&self, pod: &PodInfo) -> Selector {
        // Pods that say so go by defaults.
        match pod.labels().and_then(|labels| labels.get("service")) {
            Some(value) => Selector::from_set([("service", value.as_str())]),
            None => Selector::everything(),
        }
    }
}

/// Caches of an empty cluster.
pub(super) fn no_objects() -> InformerFactory {
    let clock = FakeClock::new("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
    let api = FakeApi::new(clock.shared());
    let client = Client::new(api.connect(), clock.shared(), SeededRandom::shared(1));
    InformerFactory::new(client, CancellationToken::new())
}

pub(super) fn decider() -> Decider {
    Decider::new(Box::new(Nobody), Storage::new(&no_objects()), SeededRandom::shared(2))
}

// === random objects ===

pub(super) struct Dice(pub(super) SeededRandom);

impl Dice {
    pub(super) fn below(&self, limit: u64) -> u64 {
        below(&self.0 as &dyn Random, limit)
    }

    pub(super) fn one_in(&self, limit: u64) -> bool {
        self.below(limit) == 0
    }

    fn pick<'a>(&self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

pub(super) fn random_node(dice: &Dice, name: &str) -> Value {
    let mut labels = json!({"disk": dice.pick(&["ssd", "hdd"])});
    if !dice.one_in(8) {
        labels["kubernetes.io/hostname"] = name.into();
    }
    if !dice.one_in(5) {
        labels["topology.kubernetes.io/zone"] = dice.pick(&["z1", "z2", "z3"]).into();
    }
    let mut taints = Vec::new();
    if dice.one_in(4) {
        taints.push(json!({"key": "t", "value": dice.pick(&["x", "y"]), "effect": dice.pick(&["NoSchedule", "PreferNoSchedule", "NoExecute"])}));
    }
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints, "unschedulable": dice.one_in(10)},
        "status": {
            "allocatable": {"cpu": format!("{}", 1 + dice.below(8)), "memory": format!("{}Gi", 1 + dice.below(8)), "pods": format!("{}", 2 + dice.below(8))},
            "images": [{"names": ["image:latest"], "sizeBytes": dice.below(900) * 1024 * 1024}],
        },
    })
}

fn selector(dice: &Dice) -> Value {
    match dice.below(4) {
        0 => json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}),
        1 => json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}),
        2 => json!({"matchLabels": {"app": dice.pick(&["a", "b"]), "tier": "web"}}),
        _ => json!({"matchLabels": {"app": dice.pick(&["a", "b", "c"])}}),
    }
}

fn term(dice: &Dice) -> Value {
    let mut term = json!({
        "labelSelector": selector(dice),
        "topologyKey": dice.pick(&["kubernetes.io/hostname", "topology.kubernetes.io/zone"]),
    });
    match dice.below(5) {
        0 => term["namespaces"] = json!(["other"]),
        1 => term["namespaceSelector"] = json!({"matchLabels": {"team": "x"}}),
        2 => term["namespaceSelector"] = json!({}),
        _ => {}
    }
    term
}

pub(super) fn random_pod(dice: &Dice, name: &str) -> Value {
    let mut labels = BTreeMap::new();
    if !dice.one_in(4) {
        labels.insert("app", dice.pick(&["a", "b", "c"]));
    }
    if dice.one_in(2) {
        labels.insert("tier", "web");
    }
    if dice.one_in(3) {
        labels.insert("service", dice.pick(&["s", "t"]));
    }
    let mut pod = json!({
        "metadata": {"name": name, "namespace": dice.pick(&["default", "default", "other"]), "uid": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "image": dice.pick(&["image", "elsewhere"])}]},
    });
    let spec = &mut pod["spec"];
    if !dice.one_in(4) {
        spec["containers"][0]["resources"] = json!({"requests": {"cpu": format!("{}m", 100 * (1 + dice.below(15))), "memory": format!("{}Mi", 64 * (1 + dice.below(15)))}});
    }
    if dice.one_in(6) {
        spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 8000 + dice.below(2), "hostIP": dice.pick(&["", "127.0.0.1", "10.0.0.1"])}]);
    }
    if dice.one_in(3) {
        spec["tolerations"] = json!([{"key": "t", "operator": dice.pick(&["Exists", "Equal"]), "value": "x"}]);
        if spec["tolerations"][0]["operator"] == "Exists" {
            spec["tolerations"][0].as_object_mut().expect("an object").remove("value");
        }
    }
    if dice.one_in(6) {
        spec["nodeSelector"] = json!({"disk": "ssd"});
    }
    let mut affinity = json!({});
    if dice.one_in(4) {
        affinity["nodeAffinity"] = json!({"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1 + dice.below(100), "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}},
        ]});
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        if dice.one_in(4) {
            affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([term(dice)]);
        }
        if dice.one_in(4) {
            affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"] =
                json!([{"weight": 1 + dice.below(100), "podAffinityTerm": term(dice)}]);
        }
    }
    spec["affinity"] = affinity;
    let constraints: Vec<Value> = (0..dice.below(3))
        .map(|_| {
            let mut constraint = json!({
                "maxSkew": 1 + dice.below(2),
                "topologyKey": dice.pick(&["kubernetes.io/hostname", "topology.kubernetes.io/zone"]),
                "whenUnsatisfiable": dice.pick(&["DoNotSchedule", "ScheduleAnyway"]),
                "labelSelector": selector(dice),
            });
            if dice.one_in(3) {
                constraint["nodeTaintsPolicy"] = "Honor".into();
            }
            if dice.one_in(3) {
                constraint["nodeAffinityPolicy"] = "Ignore".into();
            }
            if dice.one_in(4) && constraint["whenUnsatisfiable"] == "DoNotSchedule" {
                constraint["minDomains"] = (1 + dice.below(4)).into();
            }
            constraint
        })
        .collect();
    if !constraints.is_empty() {
        spec["topologySpreadConstraints"] = constraints.into();
    }
    pod
}

// === the oracle ===

/// All there is: nodes with their pods.
#[derive(Clone)]
pub(super) struct World {
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) pods: BTreeMap<String, (Pod, String)>,
    pub(super) namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

fn labels(pod: &Pod) -> LabelsOf<'_> {
    LabelsOf(pod.metadata.labels.as_ref())
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn amount(pod: &Pod, resource: &str) -> i64 {
    let requests = of_pod(pod.spec.as_ref().expect("a spec"), Side::Requests);
    let quantity = requests.get(resource).cloned().unwrap_or_default();
    if resource == "cpu" { quantity.milli_value() } else { quantity.value() }
}

fn offered(node: &Node, resource: &str) -> i64 {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref()).expect("allocatable");
    let quantity = Quantity::parse(&allocatable[resource].0).expect("a quantity");
    if resource == "cpu" { quantity.milli_value() } else { quantity.value() }
}

fn tolerated(pod: &Pod, effects: &[&str], node: &Node) -> usize {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let bad = taints.iter().filter(|taint| effects.contains(&taint.effect.as_str())).filter(|taint| {
        !tolerations.iter().any(|toleration| {
            toleration.key.as_deref() == Some(&taint.key)
                && (toleration.operator.as_deref() == Some("Exists") || toleration.value == taint.value)
        })
    });
    bad.count()
}

fn selected_by_node(pod: &Pod, node: &Node) -> bool {
    let wanted = pod.spec.as_ref().and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
    wanted.iter().all(|(key, value)| label(node, key) == Some(value))
}

impl World {
    fn pods_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.pods.values().filter(move |(_, on)| on == node).map(|(pod, _)| pod)
    }

    /// Whether a term of `holder` speaks of `other`.
    fn speaks_of(&self, term: &PodAffinityTerm, holder: &Pod, other: &Pod) -> bool {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace(holder).to_owned());
        }
        let chosen = term
            .namespace_selector
            .as_ref()
            .is_some_and(|selector| compile(Some(selector)).matches(&LabelsOf(self.namespaces.get(namespace(other)))));
        (chosen || namespaces.iter().any(|name| name == namespace(other)))
            && compile(term.label_selector.as_ref()).matches(&labels(other))
    }

    /// Whether one of the pods is in the node's domain.
    fn met(&self, matches: impl Fn(&Pod) -> bool, key: &str, node: &Node) -> bool {
        let Some(domain) = label(node, key) else { return false };
        self.pods
            .values()
            .any(|(other, on)| self.nodes.get(on).is_some_and(|on| label(on, key) == Some(domain)) && matches(other))
    }

    fn included(&self, constraint: &TopologySpreadConstraint, pod: &Pod, node: &Node) -> bool {
        let affinity = constraint.node_affinity_policy.as_deref() == Some("Ignore") || selected_by_node(pod, node);
        let taints = constraint.node_taints_policy.as_deref() != Some("Honor")
            || tolerated(pod, &["NoSchedule", "NoExecute"], node) == 0;
        affinity && taints
    }

    pub(super) fn fits(&self, pod: &Pod, name: &str) -> bool {
        let node = &self.nodes[name];
        let spec = pod.spec.as_ref().expect("a spec");
        if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
            || tolerated(pod, &["NoSchedule", "NoExecute"], node) > 0
            || !selected_by_node(pod, node)
        {
            return false;
        }
        let ports = |pod: &Pod| -> Vec<(String, i32)> {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.filter_map(|port| Some((port.host_ip.clone().unwrap_or_default(), port.host_port?))).collect()
        };
        for (ip, port) in ports(pod) {
            for (held_ip, held) in self.pods_on(name).flat_map(ports) {
                if port == held && (ip.is_empty() || held_ip.is_empty() || ip == held_ip) {
                    return false;
                }
            }
        }
        if self.pods_on(name).count() as i64 + 1 > offered(node, "pods") {
            return false;
        }
        for resource in ["cpu", "memory"] {
            let used: i64 = self.pods_on(name).map(|other| amount(other, resource)).sum();
            let wanted = amount(pod, resource);
            if wanted > 0 && used + wanted > offered(node, resource) {
                return false;
            }
        }
        self.spreads(pod, node, &spec.topology_spread_constraints.clone().unwrap_or_default())
            && self.may_join(pod, node)
    }

    fn spreads(&self, pod: &Pod, node: &Node, constraints: &[TopologySpreadConstraint]) -> bool {
        let hard: Vec<_> =
            constraints.iter().filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule").collect();
        let complete = |node: &Node| hard.iter().all(|constraint| label(node, &constraint.topology_key).is_some());
        hard.iter().all(|constraint| {
            let selector = compile(constraint.label_selector.as_ref());
            let mut domains: BTreeMap<&str, i64> = BTreeMap::new();
            for (other_name, other) in &self.nodes {
                if complete(other) && self.included(constraint, pod, other) {
                    let matching = self
                        .pods_on(other_name)
                        .filter(|placed| namespace(placed) == namespace(pod) && selector.matches(&labels(placed)));
                    let domain = label(other, &constraint.topology_key).unwrap_or_default();
                    *domains.entry(domain).or_insert(0) += matching.count() as i64;
                }
            }
            let Some(domain) = label(node, &constraint.topology_key) else { return false };
            let enough = domains.len() >= constraint.min_domains.unwrap_or(1) as usize;
            let least = if enough { domains.values().copied().min().unwrap_or(i64::from(i32::MAX)) } else { 0 };
            let own = i64::from(selector.matches(&labels(pod)));
            domains.get(domain).copied().unwrap_or(0) + own - least <= i64::from(constraint.max_skew)
        })
    }

    fn may_join(&self, pod: &Pod, node: &Node) -> bool {
        let required = |pod: &Pod, anti: bool| -> Vec<PodAffinityTerm> {
            let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.clone()).unwrap_or_default();
            let terms = if anti {
                affinity.pod_anti_affinity.and_then(|anti| anti.required_during_scheduling_ignored_during_execution)
            } else {
                affinity.pod_affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution)
            };
            terms.unwrap_or_default()
        };
        let own = required(pod, false);
        let all = |other: &Pod| own.iter().all(|term| self.speaks_of(term, pod, other));
        if own.iter().any(|term| label(node, &term.topology_key).is_none()) {
            return false;
        }
        if !own.iter().all(|term| self.met(all, &term.topology_key, node)) {
            let anybody =
                self.nodes.values().any(|node| own.iter().any(|term| self.met(all, &term.topology_key, node)));
            if anybody || !all(pod) {
                return false;
            }
        }
        let anti = required(pod, true);
        if anti.iter().any(|term| self.met(|other| self.speaks_of(term, pod, other), &term.topology_key, node)) {
            return false;
        }
        !self.pods.values().any(|(other, on)| {
            required(other, true).iter().any(|term| {
                let here = label(node, &term.topology_key);
                let there = self.nodes.get(on).and_then(|on| label(on, &term.topology_key));
                here.is_some() && here == there && self.speaks_of(term, other, pod)
            })
        })
    }

    fn scores(&self, pod: &Pod, feasible: &[&str]) -> Vec<i64> {
        let taints: Vec<i64> =
            feasible.iter().map(|name| tolerated(pod, &["PreferNoSchedule"], &self.nodes[*name]) as i64).collect();
        let most = taints.iter().copied().max().unwrap_or(0);
        let taints = taints.iter().map(|count| if most == 0 { 100 } else { 100 - 100 * count / most });
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.clone()).unwrap_or_default();
        let preferred = affinity.node_affinity.clone().unwrap_or_default();
        let weight = preferred.preferred_during_scheduling_ignored_during_execution.unwrap_or_default();
        let weight: i64 = weight.iter().map(|term| i64::from(term.weight)).sum();
        let met: Vec<i64> = feasible
            .iter()
            .map(|name| if label(&self.nodes[*name], "disk") == Some("ssd") { weight } else { 0 })
            .collect();
        let most = met.iter().copied().max().unwrap_or(0);
        let met = met.iter().map(|met| if most == 0 { 0 } else { 100 * met / most });
        let spread = self.spread_scores(pod, feasible);
        let inter = self.affinity_scores(pod, feasible);
        let local = feasible.iter().map(|name| self.local_score(pod, name));
        let parts = taints.zip(met).zip(local).zip(spread).zip(inter);
        parts
            .map(|((((taints, met), local), spread), inter)| 3 * taints + 2 * met + local + 2 * spread + 2 * inter)
            .collect()
    }

    fn local_score(&self, pod: &Pod, name: &str) -> i64 {
        let node = &self.nodes[name];
        let default = |pod: &Pod, resource: &str| {
            let requests = pod.spec.as_ref().and_then(|spec| spec.containers[0].resources.clone());
            let asked = requests.and_then(|resources| resources.requests).is_some();
            let default = if resource == "cpu" { 100 } else { 200 * 1024 * 1024 };
            if asked { amount(pod, resource) } else { default }
        };
        let least: i64 = ["cpu", "memory"]
            .iter()
            .map(|resource| {
                let used: i64 = self.pods_on(name).chain([pod]).map(|pod| default(pod, resource)).sum();
                let all = offered(node, resource);
                if used > all { 0 } else { (all - used) * 100 / all }
            })
            .sum();
        let balanced = if amount(pod, "cpu") == 0 && amount(pod, "memory") == 0 {
            0
        } else {
            let evenness = |extra: bool| {
                let fraction = |resource: &str| {
                    let mut used: i64 = self.pods_on(name).map(|pod| amount(pod, resource)).sum();
                    used += if extra { amount(pod, resource) } else { 0 };
                    (used as f64 / offered(node, resource) as f64).min(1.0)
                };
                ((1.0 - ((fraction("cpu") - fraction("memory")) / 2.0).abs()) * 100.0) as i64
            };
            50 + (50 + evenness(true) - evenness(false)) / 2
        };
        least / 2 + balanced + self.image_score(pod, node)
    }

    fn image_score(&self, pod: &Pod, node: &Node) -> i64 {
        let size = |node: &Node| {
            let images = node.status.as_ref().and_then(|status| status.images.clone()).unwrap_or_default();
            images.first().and_then(|image| image.size_bytes).unwrap_or(0)
        };
        let has = pod.spec.as_ref().is_some_and(|spec| spec.containers[0].image.as_deref() == Some("image"));
        // Every node has the image.
        let sum = if has { size(node) } else { 0 };
        let (min, max) = (23 * 1024 * 1024, 1000 * 1024 * 1024);
        100 * (sum.clamp(min, max) - min) / (max - min)
    }

    fn spread_scores(&self, pod: &Pod, feasible: &[&str]) -> Vec<i64> {
        let own = pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.clone()).unwrap_or_default();
        let service = pod.metadata.labels.as_ref().and_then(|labels| labels.get("service"));
        let (soft, all): (Vec<(TopologySpreadConstraint, Selector)>, bool) = if own.is_empty() {
            let Some(service) = service else { return vec![0; feasible.len()] };
            let selector = Selector::from_set([("service", service.as_str())]);
            let defaults = Profile::default().default_constraints;
            (defaults.into_iter().map(|constraint| (constraint, selector.clone())).collect(), false)
        } else {
            let soft = own.into_iter().filter(|constraint| constraint.when_unsatisfiable == "ScheduleAnyway");
            let with = soft.map(|constraint| {
                let selector = compile(constraint.label_selector.as_ref());
                (constraint, selector)
            });
            (with.collect(), true)
        };
        if soft.is_empty() {
            return vec![0; feasible.len()];
        }
        let complete = |node: &Node| soft.iter().all(|(constraint, _)| label(node, &constraint.topology_key).is_some());
        let scored: Vec<bool> = feasible.iter().map(|name| !all || complete(&self.nodes[*name])).collect();
        let count = |name: &str, selector: &Selector| {
            let matching = self.pods_on(name);
            matching.filter(|other| namespace(other) == namespace(pod) && selector.matches(&labels(other))).count()
                as f64
        };
        let raw: Vec<i64> = feasible
            .iter()
            .zip(&scored)
            .map(|(name, is_scored)| {
                if !is_scored {
                    return 0;
                }
                let mut sum = 0.0_f64;
                for (constraint, selector) in &soft {
                    let key = constraint.topology_key.as_str();
                    let Some(domain) = label(&self.nodes[*name], key) else { continue };
                    let candidates = || feasible.iter().zip(&scored).filter(|(_, scored)| **scored);
                    let (pods, size) = if key == "kubernetes.io/hostname" {
                        (count(name, selector), candidates().count())
                    } else {
                        let domains: std::collections::BTreeSet<_> =
                            candidates().map(|(name, _)| label(&self.nodes[*name], key)).collect();
                        let in_domain = self.nodes.iter().filter(|(_, node)| {
                            label(node, key) == Some(domain)
                                && (!all || complete(node))
                                && self.included(constraint, pod, node)
                        });
                        (in_domain.map(|(name, _)| count(name, selector)).sum(), domains.len())
                    };
                    sum += pods * ((size + 2) as f64).ln() + f64::from(constraint.max_skew - 1);
                }
                sum.round() as i64
            })
            .collect();
        let of_scored = || raw.iter().zip(&scored).filter(|(_, scored)| **scored).map(|(raw, _)| *raw);
        let (least, most) = (of_scored().min().unwrap_or(0), of_scored().max().unwrap_or(0));
        let normalize = |(raw, scored): (&i64, &bool)| match most {
            _ if !scored => 0,
            0 => 100,
            most => 100 * (most + least - raw) / most,
        };
        raw.iter().zip(&scored).map(normalize).collect()
    }

    fn affinity_scores(&self, pod: &Pod, feasible: &[&str]) -> Vec<i64> {
        let terms = |pod: &Pod| -> Vec<(i64, PodAffinityTerm, bool)> {
            let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.clone()).unwrap_or_default();
            let (with, away) =
                (affinity.pod_affinity.unwrap_or_default(), affinity.pod_anti_affinity.unwrap_or_default());
            let preferred = with.preferred_during_scheduling_ignored_during_execution.unwrap_or_default();
            let unwanted = away.preferred_during_scheduling_ignored_during_execution.unwrap_or_default();
            let required = with.required_during_scheduling_ignored_during_execution.unwrap_or_default();
            let preferred = preferred.into_iter().map(|term| (i64::from(term.weight), term.pod_affinity_term, false));
            let unwanted = unwanted.into_iter().map(|term| (-i64::from(term.weight), term.pod_affinity_term, false));
            let required = required.into_iter().map(|term| (1, term, true));
            preferred.chain(unwanted).chain(required).collect()
        };
        let raw: Vec<i64> = feasible
            .iter()
            .map(|name| {
                let node = &self.nodes[*name];
                let mut sum = 0;
                for (other, on) in self.pods.values() {
                    let Some(there) = self.nodes.get(on) else { continue };
                    let together = |key: &str| label(node, key).is_some() && label(node, key) == label(there, key);
                    for (weight, term, required) in terms(pod) {
                        if !required && together(&term.topology_key) && self.speaks_of(&term, pod, other) {
                            sum += weight;
                        }
                    }
                    for (weight, term, _) in terms(other) {
                        if together(&term.topology_key) && self.speaks_of(&term, other, pod) {
                            sum += weight;
                        }
                    }
                }
                sum
            })
            .collect();
        let (least, most) = (raw.iter().copied().min().unwrap_or(0), raw.iter().copied().max().unwrap_or(0));
        let normalize = |raw: &i64| match most - least {
            0 => 0,
            range => (100.0 * ((raw - least) as f64 / range as f64)) as i64,
        };
        raw.iter().map(normalize).collect()
    }
}

// === agreement ===

fn history(seed: u64, steps: usize) -> Result<(), TestCaseError> {
    let dice = Dice(SeededRandom::new(seed));
    let profile = Profile::default();
    let mut decider = decider();
    let mut cluster = Cluster::default();
    let namespaces: BTreeMap<String, BTreeMap<String, String>> = [
        ("default".to_owned(), BTreeMap::from([("team".to_owned(), "x".to_owned())])),
        ("other".to_owned(), BTreeMap::new()),
    ]
    .into();
    let mut world = World { nodes: BTreeMap::new(), pods: BTreeMap::new(), namespaces };
    for (name, labels) in &world.namespaces {
        cluster.set_namespace(name, Some(labels.clone()));
    }
    for step in 0..steps {
        match dice.below(10) {
            0..=1 => {
                let name = format!("n{}", dice.below(8));
                let node = Node::from_value(random_node(&dice, &name)).expect("a node");
                cluster.set_node(&Arc::new(node.clone()));
                world.nodes.insert(name, node);
            }
            2 if dice.one_in(3) => {
                let name = format!("n{}", dice.below(8));
                cluster.remove_node(&name);
                world.nodes.remove(&name);
            }
            2 => {
                if let Some(uid) = world.pods.keys().next().cloned() {
                    cluster.remove_pod(&uid);
                    world.pods.remove(&uid);
                }
            }
            3 if dice.one_in(6) => {
                let labels: BTreeMap<String, String> =
                    if dice.one_in(2) { BTreeMap::new() } else { [("team".to_owned(), "x".to_owned())].into() };
                cluster.set_namespace("other", Some(labels.clone()));
                world.namespaces.insert("other".to_owned(), labels);
            }
            _ => {
                let mut pod = Pod::from_value(random_pod(&dice, &format!("p{step}"))).expect("a pod");
                let info = PodInfo::new(Arc::new(pod.clone()));
                if world.nodes.is_empty() {
                    continue;
                }
                let (fast, totals) = {
                    let mut eval = decider.eval(&mut cluster, (0, &profile), &info).expect("no conflict");
                    let slots = eval.feasible();
                    let totals = score::totals(&eval, &slots);
                    let names =
                        slots.iter().filter_map(|slot| eval.cluster.node(*slot)).map(|node| node.name.to_string());
                    let fast: Vec<String> = names.collect();
                    (fast, totals)
                };
                let slow: Vec<&str> =
                    world.nodes.keys().map(String::as_str).filter(|name| world.fits(&pod, name)).collect();
                let mut sorted = fast.clone();
                sorted.sort();
                prop_assert_eq!(&sorted, &slow, "step {} feasible for {:?}", step, pod);
                let expected: BTreeMap<&str, i64> = slow.iter().copied().zip(world.scores(&pod, &slow)).collect();
                let actual: BTreeMap<&str, i64> = fast.iter().map(String::as_str).zip(totals).collect();
                prop_assert_eq!(&actual, &expected, "step {} scores for {:?}", step, pod);
                let most = expected.values().max();
                match decider.decide(&mut cluster, (0, &profile), &info) {
                    Verdict::Node(name) => prop_assert_eq!(expected.get(&*name), most, "step {} chose {}", step, name),
                    other => prop_assert!(slow.is_empty(), "step {} got {:?}", step, other),
                }
                // Mostly where it fits, sometimes anywhere, as other schedulers do.
                let target = match fast.first() {
                    Some(_) if !dice.one_in(5) => fast[dice.below(fast.len() as u64) as usize].clone(),
                    _ => format!("n{}", dice.below(8)),
                };
                if world.nodes.contains_key(&target) {
                    pod.spec.get_or_insert_default().node_name = Some(target.clone());
                    cluster.set_pod(&Arc::new(pod.clone()), &target);
                    world.pods.insert(format!("p{step}"), (pod, target));
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fast_and_slow_agree(seed in any::<u64>(), steps in 10_usize..70) {
        history(seed, steps)?;
    }
}
