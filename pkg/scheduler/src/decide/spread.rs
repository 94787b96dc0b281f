//! PodTopologySpread: how evenly pods of a kind are over zones, hosts, or whatever label a constraint names.
//!
//! In: counts by node, kept elsewhere. Out: for hard constraints whether a node's domain has room, for soft
//! ones a score. A decision adds up one number per node and constraint.
//! Behaves as pkg/scheduler/framework/plugins/podtopologyspread, v1.36.

use std::sync::Arc;

use rkube_api::k8s::core::v1::TopologySpreadConstraint;
use rkube_apimachinery::labels::{Operator, Requirement, Selector};

use crate::cluster::Cluster;
use crate::cluster::counts::{CountId, CountKey};
use crate::cluster::slots::Slot;
use crate::cluster::topology::TopologyId;
use crate::config::Profile;
use crate::decide::diagnosis::Rejection;
use crate::decide::local::SCORE_MAX;
use crate::decide::owners::Owners;
use crate::decide::views::{NodeView, View};
use crate::model::pod::PodInfo;
use crate::model::selector::{LabelsOf, compile};
use crate::model::term::PodSet;
use crate::plugins::Plugin;

const HOSTNAME: &str = "kubernetes.io/hostname";

/// One constraint, resolved.
#[derive(Debug)]
struct Constraint {
    max_skew: i64,
    min_domains: usize,
    topology: TopologyId,
    hostname: bool,
    counted: CountKey,
    counts: CountId,
    self_match: i64,
    honor_affinity: bool,
    honor_taints: bool,
}

impl Constraint {
    /// Whether pods on the node count.
    fn includes(&self, view: NodeView) -> bool {
        view.exists() && (!self.honor_affinity || view.affinity) && (!self.honor_taints || view.taints)
    }
}

/// A pod's constraints.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    hard: Vec<Constraint>,
    soft: Vec<Constraint>,
    /// Nodes without all the labels of the soft constraints get no score.
    all_topologies: bool,
}

impl Plan {
    pub(crate) fn new(cluster: &mut Cluster, profile: &Profile, pod: &PodInfo, owners: &dyn Owners) -> Self {
        let own = pod.spec().topology_spread_constraints.as_deref().unwrap_or_default();
        let (constraints, default_selector) = if own.is_empty() {
            if profile.default_constraints.is_empty() {
                return Self::default();
            }
            let selector = owners.selector_for(pod);
            if selector.is_everything() {
                return Self::default();
            }
            (profile.default_constraints.as_slice(), Some(selector))
        } else {
            (own, None)
        };
        let mut plan = Self { all_topologies: !own.is_empty() || !profile.system_defaulted, ..Self::default() };
        for constraint in constraints {
            let hard = constraint.when_unsatisfiable == "DoNotSchedule";
            let wanted = if hard {
                profile.filters(Plugin::PodTopologySpread)
            } else {
                profile.weight(Plugin::PodTopologySpread) > 0
            };
            if !wanted {
                continue;
            }
            let selector = default_selector.clone().unwrap_or_else(|| selector_of(constraint, pod));
            let resolved = resolve(cluster, constraint, selector, pod);
            if hard { plan.hard.push(resolved) } else { plan.soft.push(resolved) }
        }
        plan
    }

    pub(crate) fn has_hard(&self) -> bool {
        !self.hard.is_empty()
    }

    pub(crate) fn has_soft(&self) -> bool {
        !self.soft.is_empty()
    }
}

fn selector_of(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> Selector {
    let mut selector = compile(constraint.label_selector.as_ref());
    for key in constraint.match_label_keys.iter().flatten() {
        let value = pod.labels().and_then(|labels| labels.get(key));
        let requirement = value.and_then(|value| Requirement::new(key, Operator::In, vec![value.clone()]).ok());
        if let Some(requirement) = requirement {
            selector = selector.and(requirement);
        }
    }
    selector
}

fn resolve(
    cluster: &mut Cluster,
    constraint: &TopologySpreadConstraint,
    selector: Selector,
    pod: &PodInfo,
) -> Constraint {
    let self_match = i64::from(selector.matches(&LabelsOf(pod.labels())));
    // An empty selector counts no pods, though it matches them all.
    let counted = if selector.is_everything() { Selector::nothing() } else { selector };
    let set = Arc::new(PodSet::in_namespace(pod.namespace(), counted));
    let counted = CountKey { sets: vec![set], live_only: true };
    Constraint {
        max_skew: i64::from(constraint.max_skew),
        min_domains: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1),
        topology: cluster.ensure_topology(&constraint.topology_key),
        hostname: constraint.topology_key == HOSTNAME,
        counts: cluster.ensure_counts(&counted),
        counted,
        self_match,
        honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
    }
}

/// Whether a node has the labels of all constraints.
fn has_all(cluster: &Cluster, constraints: &[Constraint], slot: Slot) -> bool {
    constraints.iter().all(|constraint| cluster.topology(constraint.topology).domain(slot).is_some())
}

/// The pods in each domain of each hard constraint, at the time of one decision.
#[derive(Debug)]
pub(crate) struct Hard {
    constraints: Vec<Domains>,
}

#[derive(Debug)]
struct Domains {
    /// By domain; `None` for domains without a node that counts.
    pods: Vec<Option<i64>>,
    present: usize,
    least: i64,
}

impl Domains {
    fn update_least(&mut self) {
        self.least = self.pods.iter().flatten().copied().min().unwrap_or(i64::from(i32::MAX));
    }
}

impl Hard {
    pub(crate) fn new(cluster: &Cluster, plan: &Plan, view: &View) -> Self {
        let slots =
            || (0..).zip(&view.nodes).filter(|(slot, _)| plan.hard.len() == 1 || has_all(cluster, &plan.hard, *slot));
        let constraints = plan.hard.iter().map(|constraint| {
            let topology = cluster.topology(constraint.topology);
            let counts = cluster.counts(constraint.counts);
            let mut pods = vec![None; topology.domain_count()];
            let mut present = 0;
            for (slot, node) in slots() {
                if let Some(domain) = topology.domain(slot)
                    && constraint.includes(*node)
                {
                    let count = pods[domain].get_or_insert_with(|| {
                        present += 1;
                        0
                    });
                    *count += i64::from(counts.get(slot));
                }
            }
            let mut domains = Domains { pods, present, least: 0 };
            domains.update_least();
            domains
        });
        Self { constraints: constraints.collect() }
    }

    /// Adds a pod to a node, or with -1 takes it away, to see what would be.
    pub(crate) fn apply(&mut self, cluster: &Cluster, plan: &Plan, view: &View, pod: &PodInfo, slot: Slot, delta: i64) {
        if !has_all(cluster, &plan.hard, slot) {
            return;
        }
        for (constraint, domains) in plan.hard.iter().zip(&mut self.constraints) {
            let member = pod.member(&cluster.namespaces);
            if !constraint.includes(view.node(slot)) || !constraint.counted.contains(member, pod.is_terminating()) {
                continue;
            }
            let domain = cluster.topology(constraint.topology).domain(slot);
            if let Some(Some(count)) = domain.and_then(|domain| domains.pods.get_mut(domain)) {
                *count += delta;
                if *count < domains.least {
                    domains.least = *count;
                } else if *count - delta == domains.least {
                    domains.update_least();
                }
            }
        }
    }

    pub(crate) fn check(&self, cluster: &Cluster, plan: &Plan, slot: Slot) -> Option<Rejection> {
        for (constraint, domains) in plan.hard.iter().zip(&self.constraints) {
            let Some(domain) = cluster.topology(constraint.topology).domain(slot) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Some(Rejection::unresolvable(Plugin::PodTopologySpread, reason));
            };
            let least = if domains.present < constraint.min_domains { 0 } else { domains.least };
            let here = domains.pods.get(domain).copied().flatten().unwrap_or(0);
            if here + constraint.self_match - least > constraint.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Some(Rejection::resolvable(Plugin::PodTopologySpread, reason));
            }
        }
        None
    }
}

/// Adds the normalized, weighted score of the soft constraints to `totals`, which goes by `feasible`.
pub(crate) fn score(cluster: &Cluster, plan: &Plan, view: &View, feasible: &[Slot], weight: i64, totals: &mut [i64]) {
    let ignored = |slot: Slot| plan.all_topologies && !has_all(cluster, &plan.soft, slot);
    let scored: Vec<bool> = feasible.iter().map(|slot| !ignored(*slot)).collect();
    let scored_count = scored.iter().filter(|scored| **scored).count();
    let mut raw = vec![0_f64; feasible.len()];
    for constraint in &plan.soft {
        let topology = cluster.topology(constraint.topology);
        let counts = cluster.counts(constraint.counts);
        let skew = (constraint.max_skew - 1) as f64;
        if constraint.hostname {
            let factor = ((scored_count + 2) as f64).ln();
            for ((slot, _), raw) in feasible.iter().zip(&scored).zip(&mut raw).filter(|((_, scored), _)| **scored) {
                if topology.domain(*slot).is_some() {
                    *raw += f64::from(counts.get(*slot)) * factor + skew;
                }
            }
            continue;
        }
        // Domains of feasible nodes; without the label, nodes share one that no node is counted in.
        let mut pods: Vec<Option<i64>> = vec![None; topology.domain_count()];
        let (mut size, mut unlabelled) = (0, false);
        for (slot, _) in feasible.iter().zip(&scored).filter(|(_, scored)| **scored) {
            match topology.domain(*slot) {
                Some(domain) => {
                    pods[domain].get_or_insert_with(|| {
                        size += 1;
                        0
                    });
                }
                None => unlabelled = true,
            }
        }
        for (slot, node) in (0..).zip(&view.nodes) {
            if let Some(domain) = topology.domain(slot)
                && let Some(count) = &mut pods[domain]
                && constraint.includes(*node)
                && (!plan.all_topologies || has_all(cluster, &plan.soft, slot))
            {
                *count += i64::from(counts.get(slot));
            }
        }
        let factor = ((size + usize::from(unlabelled) + 2) as f64).ln();
        for ((slot, _), raw) in feasible.iter().zip(&scored).zip(&mut raw).filter(|((_, scored), _)| **scored) {
            if let Some(domain) = topology.domain(*slot) {
                *raw += pods[domain].unwrap_or(0) as f64 * factor + skew;
            }
        }
    }
    let raw: Vec<i64> = raw.into_iter().map(|score| score.round() as i64).collect();
    let of_scored = || raw.iter().zip(&scored).filter(|(_, scored)| **scored).map(|(raw, _)| *raw);
    let (least, most) = (of_scored().min().unwrap_or(0), of_scored().max().unwrap_or(0));
    for ((raw, scored), total) in raw.iter().zip(&scored).zip(totals) {
        let normalized = match most {
            _ if !scored => 0,
            0 => SCORE_MAX,
            most => SCORE_MAX * (most + least - raw) / most,
        };
        *total += weight * normalized;
    }
}
