//! Who must leave one node so that a more important pod fits there.
//!
//! A node is judged without those who would leave, then with each of them back. Where room is all they can take from
//! the pod that is a few sums per node; otherwise every filter is asked again.
//! Behaves as pkg/scheduler/framework/plugins/defaultpreemption (`SelectVictimsOnNode`), v1.36.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::cluster::slots::Slot;
use crate::cluster::{NodeState, Taken};
use crate::decide::diagnosis::Rejection;
use crate::decide::eval::Eval;
use crate::decide::local;
use crate::model::pod::PodInfo;
use crate::preempt::budgets::Snapshot;
use crate::preempt::choose::{Candidate, importance};
use crate::preempt::no_victims;

/// A node on which pods come and go in thought.
trait Trial {
    fn add(&mut self, pod: &Arc<PodInfo>);
    fn remove(&mut self, pod: &PodInfo);
    /// Why the node would refuse the pod that wants room.
    fn check(&mut self) -> Option<Rejection>;
}

/// Takes all less important pods off the node, then lets back whom it can, the most important first.
pub(super) fn select(
    eval: &mut Eval<'_>,
    budgets: &Snapshot,
    slot: Slot,
    node: &NodeState,
) -> Result<Candidate, Rejection> {
    let priority = eval.pod.priority;
    let potential: Vec<_> = node.pods.iter().filter(|other| other.priority < priority).cloned().collect();
    if potential.is_empty() {
        return Err(no_victims());
    }
    let selected = if eval.only_room_matters(node) {
        reprieve(&mut OfRoom { eval, node, taken: node.taken() }, budgets, potential)
    } else {
        let mut trial = OfAll { eval, node: node.clone(), slot };
        let selected = reprieve(&mut trial, budgets, potential.clone());
        // The evaluation goes on with other nodes, from how things are.
        let gone: Vec<_> = potential.iter().filter(|pod| !trial.node.pods.iter().any(|on| on.uid == pod.uid)).collect();
        gone.into_iter().for_each(|pod| trial.eval.apply(pod, slot, 1));
        selected
    };
    let (mut victims, violations) = selected?;
    if victims.is_empty() {
        // Only promises to others stand in the way, or the pod fits after all and is tried again.
        return Err(no_victims());
    }
    victims.sort_by_key(|pod| Reverse(importance(pod)));
    Ok(Candidate { node: Arc::clone(&node.name), victims, violations })
}

/// Those of `potential` who cannot stay, and how many of them have a budget that is used up.
fn reprieve(
    trial: &mut impl Trial,
    budgets: &Snapshot,
    mut potential: Vec<Arc<PodInfo>>,
) -> Result<(Vec<Arc<PodInfo>>, usize), Rejection> {
    potential.iter().for_each(|pod| trial.remove(pod));
    if let Some(rejection) = trial.check() {
        return Err(rejection);
    }
    potential.sort_by_key(|pod| Reverse(importance(pod)));
    let (violating, others) = budgets.split(potential);
    let mut violations = 0;
    let mut victims = Vec::new();
    let marked = violating.into_iter().map(|pod| (pod, true)).chain(others.into_iter().map(|pod| (pod, false)));
    for (pod, violates) in marked {
        trial.add(&pod);
        if trial.check().is_some() {
            trial.remove(&pod);
            violations += usize::from(violates);
            victims.push(pod);
        }
    }
    Ok((victims, violations))
}

/// Every filter is asked.
struct OfAll<'e, 'a> {
    eval: &'e mut Eval<'a>,
    node: NodeState,
    slot: Slot,
}

impl Trial for OfAll<'_, '_> {
    fn add(&mut self, pod: &Arc<PodInfo>) {
        self.node.add(Arc::clone(pod));
        self.eval.apply(pod, self.slot, 1);
    }

    fn remove(&mut self, pod: &PodInfo) {
        self.node.remove(&pod.uid);
        self.eval.apply(pod, self.slot, -1);
    }

    fn check(&mut self) -> Option<Rejection> {
        self.eval.check_as_promised(&self.node, self.slot)
    }
}

/// Only sums are looked at.
struct OfRoom<'e, 'a> {
    eval: &'e Eval<'a>,
    node: &'e NodeState,
    taken: Taken,
}

impl Trial for OfRoom<'_, '_> {
    fn add(&mut self, pod: &Arc<PodInfo>) {
        self.taken.add(pod);
    }

    fn remove(&mut self, pod: &PodInfo) {
        self.taken.sub(pod);
    }

    fn check(&mut self) -> Option<Rejection> {
        local::check_taken(self.eval.profile, self.eval.pod, self.node, &self.taken)
    }
}
