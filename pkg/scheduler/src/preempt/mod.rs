//! DefaultPreemption: making room for an important pod by taking less important ones away.
//!
//! In: the cluster and why the pod fits nowhere. Out: a node, the pods that must leave it, and nothing written yet.
//! Invariant: every victim is less important than the pod, and without any one of them gone the pod would not fit.
//! Behaves as pkg/scheduler/framework/plugins/defaultpreemption and framework/preemption, v1.36.

mod act;
mod budgets;
mod choose;
mod victims;

use std::sync::Arc;

use rkube_apimachinery::random::{self, Random};

pub(crate) use budgets::Budgets;
use choose::Candidate;

use crate::cluster::Cluster;
use crate::cluster::slots::Slot;
use crate::config::Profile;
use crate::decide::Decider;
use crate::decide::diagnosis::{Diagnosis, Rejection};
use crate::decide::eval::Eval;
use crate::model::pod::PodInfo;
use crate::plugins::{Plugin, Point};

pub(crate) const PREEMPTED: &str = "PreemptionByScheduler";

/// A node that would do, once the victims are gone.
#[derive(Debug)]
pub(crate) struct Preemption {
    pub(crate) node: Arc<str>,
    /// The most important first.
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// Less important pods that were promised the node, and are not any more.
    pub(crate) demoted: Vec<Arc<PodInfo>>,
}

/// What came of an attempt.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) preemption: Option<Preemption>,
    /// Why there is none.
    pub(crate) message: String,
    pub(crate) clear_nomination: bool,
}

impl Outcome {
    fn refused(message: impl std::fmt::Display) -> Self {
        Self { message: format!("preemption: {message}"), ..Self::default() }
    }
}

/// Finds the node where the least is lost.
pub(crate) fn preempt(
    decider: &mut Decider,
    cluster: &mut Cluster,
    budgets: &Budgets,
    profile: (usize, &Profile),
    pod: &Arc<PodInfo>,
    diagnosis: &Diagnosis,
) -> Outcome {
    if !profile.1.enabled(Point::PostFilter, Plugin::DefaultPreemption) {
        return Outcome::default();
    }
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        return Outcome::refused("not eligible due to preemptionPolicy=Never.");
    }
    let nodes = cluster.node_count();
    let random = decider.random();
    let mut failures = Diagnosis::new(nodes);
    let mut candidates = Vec::new();
    if diagnosis.resolvable > 0 {
        // Where nobody is less important there is no point in looking at each node.
        let hopeless = cluster.lowest_priority().is_none_or(|lowest| lowest >= pod.priority);
        let Ok(mut eval) = decider.eval(cluster, profile, pod) else { return Outcome::default() };
        if is_making_room(&eval, diagnosis) {
            return Outcome::refused("not eligible due to a terminating pod on the nominated node.");
        }
        if hopeless {
            failures.add(&no_victims(), diagnosis.resolvable);
        } else {
            candidates = find(&mut eval, budgets, diagnosis, random.as_ref(), &mut failures);
        }
    }
    let Some(best) = choose::best(candidates) else {
        let looked_at = failures.counted();
        failures.count("Preemption is not helpful for scheduling", nodes.saturating_sub(looked_at));
        return Outcome { clear_nomination: true, ..Outcome::refused(failures) };
    };
    let demoted = cluster.nominated_on(&best.node).into_iter().filter(|other| other.priority < pod.priority).collect();
    let preemption = Preemption { node: best.node, victims: best.victims, demoted };
    Outcome { preemption: Some(preemption), ..Outcome::default() }
}

/// Whether pods are leaving the node the pod was promised already, on its behalf.
fn is_making_room(eval: &Eval<'_>, diagnosis: &Diagnosis) -> bool {
    let (cluster, pod) = (eval.cluster, eval.pod);
    let promised = cluster.nomination(&pod.uid).map(|name| &**name).or(pod.nominated_node());
    let Some(slot) = promised.and_then(|name| cluster.slot_of(name)) else { return false };
    // If the node would not do in any case, there is nothing to wait for.
    if !eval.is_resolvable(diagnosis, slot) {
        return false;
    }
    let Some(node) = cluster.node(slot) else { return false };
    node.pods.iter().any(|other| other.priority < pod.priority && is_being_preempted(cluster, other))
}

fn is_being_preempted(cluster: &Cluster, pod: &PodInfo) -> bool {
    if cluster.is_condemned(&pod.uid) {
        return true;
    }
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.is_terminating()
        && conditions.into_iter().flatten().any(|condition| {
            condition.type_ == "DisruptionTarget"
                && condition.status == "True"
                && condition.reason.as_deref() == Some(PREEMPTED)
        })
}

/// Enough nodes that would do, beginning anywhere so that not always the same pods pay.
fn find(
    eval: &mut Eval<'_>,
    budgets: &Budgets,
    diagnosis: &Diagnosis,
    random: &dyn Random,
    failures: &mut Diagnosis,
) -> Vec<Candidate> {
    let budgets = budgets.now();
    let percentage = diagnosis.resolvable * eval.profile.min_candidate_nodes_percentage / 100;
    let enough = percentage.max(eval.profile.min_candidate_nodes_absolute).min(diagnosis.resolvable);
    let slots = Slot::try_from(eval.cluster.slots()).unwrap_or(Slot::MAX);
    let offset = Slot::try_from(random::below(random, slots.into())).unwrap_or(0);
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut without_violations = 0;
    for slot in (offset..slots).chain(0..offset) {
        let Some(node) = eval.cluster.node(slot).filter(|_| eval.is_resolvable(diagnosis, slot)) else { continue };
        match victims::select(eval, &budgets, slot, node) {
            Ok(candidate) => {
                without_violations += usize::from(candidate.violations == 0);
                candidates.push(candidate);
                if without_violations > 0 && candidates.len() >= enough {
                    break;
                }
            }
            Err(rejection) => failures.add(&rejection, 1),
        }
    }
    candidates
}

fn no_victims() -> Rejection {
    Rejection::unresolvable(Plugin::DefaultPreemption, "No preemption victims found for incoming pod")
}
