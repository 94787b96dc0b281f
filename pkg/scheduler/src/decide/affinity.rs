//! InterPodAffinity: pods that want to be with or away from other pods, and what pods already placed want.
//!
//! Behaves as pkg/scheduler/framework/plugins/interpodaffinity, v1.36.

use std::sync::Arc;

use crate::cluster::Cluster;
use crate::cluster::counts::{CountId, CountKey};
use crate::cluster::held::{Hold, holds};
use crate::cluster::slots::Slot;
use crate::cluster::topology::TopologyId;
use crate::config::Profile;
use crate::decide::diagnosis::Rejection;
use crate::decide::local::SCORE_MAX;
use crate::model::pod::PodInfo;
use crate::model::term::{Term, Terms};
use crate::plugins::Plugin;

/// What bears on one pod.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Topologies of the pod's required terms; the pods counted match all of them.
    required: Vec<TopologyId>,
    required_counts: Option<(CountKey, CountId)>,
    self_match: bool,
    anti: Vec<(TopologyId, CountKey, CountId)>,
    /// Held by pods on nodes: ids of terms that keep the pod away.
    held_anti: Vec<(TopologyId, u32)>,
    /// For scores: own preferences, and terms of others, by weight.
    preferred: Vec<(i64, TopologyId, CountId)>,
    held_preferred: Vec<(i64, TopologyId, u32)>,
}

fn counted(term: &Term) -> CountKey {
    CountKey { sets: vec![Arc::clone(&term.pods)], live_only: false }
}

impl Plan {
    pub(crate) fn new(cluster: &mut Cluster, profile: &Profile, pod: &PodInfo) -> Self {
        let mut plan = Self::default();
        let filters = profile.filters(Plugin::InterPodAffinity);
        let scores = profile.weight(Plugin::InterPodAffinity) > 0;
        static NO_TERMS: Terms = Terms { required: Vec::new(), required_anti: Vec::new(), preferred: Vec::new() };
        let own = pod.terms.as_deref().unwrap_or(&NO_TERMS);
        if filters && !own.required.is_empty() {
            let mut sets: Vec<_> = own.required.iter().map(|term| Arc::clone(&term.pods)).collect();
            sets.dedup();
            let key = CountKey { sets, live_only: false };
            plan.self_match = key.contains(pod.member(&cluster.namespaces), false);
            plan.required = own.required.iter().map(|term| cluster.ensure_topology(&term.topology_key)).collect();
            let id = cluster.ensure_counts(&key);
            plan.required_counts = Some((key, id));
        }
        if filters {
            for term in &own.required_anti {
                let key = counted(term);
                let id = cluster.ensure_counts(&key);
                plan.anti.push((cluster.ensure_topology(&term.topology_key), key, id));
            }
        }
        if scores {
            for (weight, term) in &own.preferred {
                let id = cluster.ensure_counts(&counted(term));
                plan.preferred.push((*weight, cluster.ensure_topology(&term.topology_key), id));
            }
        }
        plan.add_held(cluster, profile, pod, filters, scores);
        plan
    }

    fn add_held(&mut self, cluster: &mut Cluster, profile: &Profile, pod: &PodInfo, filters: bool, scores: bool) {
        let about = cluster.held.about(pod.member(&cluster.namespaces));
        let ignored = profile.ignore_preferred_terms_of_existing_pods && self.preferred.is_empty();
        for id in about {
            let Some(held) = cluster.held.get(id) else { continue };
            let (hold, key) = (held.hold, Arc::clone(&held.term.topology_key));
            let topology = cluster.ensure_topology(&key);
            match hold {
                Hold::RequiredAnti if filters => self.held_anti.push((topology, id)),
                Hold::Required if scores && !ignored && profile.hard_pod_affinity_weight > 0 => {
                    self.held_preferred.push((profile.hard_pod_affinity_weight, topology, id));
                }
                Hold::Preferred(weight) if scores && !ignored => self.held_preferred.push((weight, topology, id)),
                _ => {}
            }
        }
    }

    pub(crate) fn has_filters(&self) -> bool {
        !(self.required.is_empty() && self.anti.is_empty() && self.held_anti.is_empty())
    }

    pub(crate) fn has_scores(&self) -> bool {
        !(self.preferred.is_empty() && self.held_preferred.is_empty())
    }
}

/// Pods by domain of one topology.
#[derive(Debug)]
struct Domains {
    topology: TopologyId,
    pods: Vec<i64>,
}

impl Domains {
    fn new(cluster: &Cluster, topology: TopologyId) -> Self {
        Self { topology, pods: vec![0; cluster.topology(topology).domain_count()] }
    }

    fn count(cluster: &Cluster, topology: TopologyId, counts: CountId) -> Self {
        let mut domains = Self::new(cluster, topology);
        cluster.counts(counts).for_each(|slot, count| {
            domains.add(cluster, slot, i64::from(count));
        });
        domains
    }

    /// What was added: nothing on a node that is in no domain.
    fn add(&mut self, cluster: &Cluster, slot: Slot, amount: i64) -> i64 {
        let domain = cluster.topology(self.topology).domain(slot);
        match domain.and_then(|domain| self.pods.get_mut(domain)) {
            Some(pods) => {
                *pods += amount;
                amount
            }
            None => 0,
        }
    }

    fn at(&self, cluster: &Cluster, slot: Slot) -> Option<i64> {
        let domain = cluster.topology(self.topology).domain(slot)?;
        self.pods.get(domain).copied()
    }
}

/// The pods that matter to the filters, at the time of one decision.
#[derive(Debug)]
pub(crate) struct Filters {
    required: Vec<Domains>,
    /// Pods in any domain of the required terms.
    joined: i64,
    anti: Vec<Domains>,
    /// Holders of terms that keep the pod away, one entry per topology.
    held: Vec<Domains>,
}

impl Filters {
    pub(crate) fn new(cluster: &Cluster, plan: &Plan) -> Self {
        let required = plan
            .required_counts
            .iter()
            .flat_map(|(_, counts)| plan.required.iter().map(|topology| Domains::count(cluster, *topology, *counts)));
        let anti = plan.anti.iter().map(|(topology, _, counts)| Domains::count(cluster, *topology, *counts));
        let mut held: Vec<Domains> = Vec::new();
        for (topology, id) in &plan.held_anti {
            let index = held.iter().position(|domains| domains.topology == *topology).unwrap_or_else(|| {
                held.push(Domains::new(cluster, *topology));
                held.len() - 1
            });
            if let Some(term) = cluster.held.get(*id) {
                term.nodes.for_each(|slot, count| {
                    held[index].add(cluster, slot, i64::from(count));
                });
            }
        }
        let required: Vec<Domains> = required.collect();
        let joined = required.iter().flat_map(|domains| &domains.pods).sum();
        Self { required, joined, anti: anti.collect(), held }
    }

    /// Adds `other` to a node, or with -1 takes it away, to see what would be for `pod`.
    pub(crate) fn apply(
        &mut self,
        cluster: &Cluster,
        plan: &Plan,
        pod: &PodInfo,
        other: &PodInfo,
        slot: Slot,
        delta: i64,
    ) {
        let member = other.member(&cluster.namespaces);
        if plan.required_counts.as_ref().is_some_and(|(key, _)| key.contains(member, false)) {
            for domains in &mut self.required {
                self.joined += domains.add(cluster, slot, delta);
            }
        }
        for ((_, key, _), domains) in plan.anti.iter().zip(&mut self.anti) {
            if key.contains(member, false) {
                domains.add(cluster, slot, delta);
            }
        }
        let own = pod.member(&cluster.namespaces);
        for (_, term) in holds(other).filter(|(hold, _)| *hold == Hold::RequiredAnti) {
            // A topology that is not known here is one that no node was ever asked about: nothing held over it
            // is counted, so nothing is taken away.
            let Some(topology) = cluster.known_topology(&term.topology_key) else { continue };
            if !term.pods.contains(own) {
                continue;
            }
            let index = self.held.iter().position(|domains| domains.topology == topology).unwrap_or_else(|| {
                self.held.push(Domains::new(cluster, topology));
                self.held.len() - 1
            });
            self.held[index].add(cluster, slot, delta);
        }
    }

    pub(crate) fn check(&self, cluster: &Cluster, plan: &Plan, slot: Slot) -> Option<Rejection> {
        let plugin = Plugin::InterPodAffinity;
        if !self.meets_required(cluster, plan, slot) {
            return Some(Rejection::unresolvable(plugin, "node(s) didn't match pod affinity rules"));
        }
        if self.anti.iter().any(|domains| domains.at(cluster, slot).is_some_and(|pods| pods > 0)) {
            return Some(Rejection::resolvable(plugin, "node(s) didn't match pod anti-affinity rules"));
        }
        if self.held.iter().any(|domains| domains.at(cluster, slot).is_some_and(|pods| pods > 0)) {
            return Some(Rejection::resolvable(plugin, "node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        None
    }

    fn meets_required(&self, cluster: &Cluster, plan: &Plan, slot: Slot) -> bool {
        let mut with_others = true;
        for domains in &self.required {
            match domains.at(cluster, slot) {
                None => return false,
                Some(pods) => with_others &= pods > 0,
            }
        }
        // The first pod of a group that wants to be together has nobody to join.
        with_others || (plan.self_match && self.joined == 0)
    }
}

/// Adds the normalized, weighted score to `totals`, which goes by `feasible`.
pub(crate) fn score(cluster: &Cluster, plan: &Plan, feasible: &[Slot], weight: i64, totals: &mut [i64]) {
    let mut topologies: Vec<Domains> = Vec::new();
    let mut add = |topology: TopologyId, slot: Slot, amount: i64| {
        let index = topologies.iter().position(|domains| domains.topology == topology).unwrap_or_else(|| {
            topologies.push(Domains::new(cluster, topology));
            topologies.len() - 1
        });
        topologies[index].add(cluster, slot, amount);
    };
    for (weight, topology, counts) in &plan.preferred {
        cluster.counts(*counts).for_each(|slot, count| add(*topology, slot, weight * i64::from(count)));
    }
    for (weight, topology, id) in &plan.held_preferred {
        if let Some(held) = cluster.held.get(*id) {
            held.nodes.for_each(|slot, count| add(*topology, slot, weight * i64::from(count)));
        }
    }
    let raw: Vec<i64> =
        feasible.iter().map(|slot| topologies.iter().filter_map(|domains| domains.at(cluster, *slot)).sum()).collect();
    let least = raw.iter().copied().min().unwrap_or(0);
    let range = raw.iter().copied().max().unwrap_or(0) - least;
    if range == 0 {
        return;
    }
    for (raw, total) in raw.iter().zip(totals) {
        let normalized = SCORE_MAX as f64 * ((raw - least) as f64 / range as f64);
        *total += weight * normalized as i64;
    }
}
