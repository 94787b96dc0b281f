//! Which of the nodes that fit is best.
//!
//! Behaves as pkg/scheduler/schedule_one.go (`prioritizeNodes`, `selectHost`), v1.36: each plugin's score from 0
//! to 100, times its weight, summed up; among equals the choice is random.

use rkube_apimachinery::random::{self, Random};

use crate::cluster::slots::Slot;
use crate::decide::eval::Eval;
use crate::decide::local::SCORE_MAX;
use crate::decide::{affinity, spread};
use crate::plugins::Plugin;

/// The best node that fits, if no score is relative to other nodes: the first in order of rank. `None` if some is.
pub(crate) fn best_ranked(eval: &mut Eval<'_>, random: &dyn Random) -> Option<Option<Slot>> {
    if eval.round.spread.has_soft() || eval.round.affinity.has_scores() || eval.names_nodes() {
        return None;
    }
    for rank in eval.view.ranked()? {
        let first = usize::try_from(random::below(random, rank.len() as u64)).unwrap_or(0);
        let (before, after) = rank.split_at(first.min(rank.len()));
        for slot in after.iter().chain(before) {
            if eval.check(*slot).is_none() {
                return Some(Some(*slot));
            }
        }
    }
    Some(None)
}

/// The best of the feasible nodes.
pub(crate) fn best(eval: &Eval<'_>, feasible: &[Slot], random: &dyn Random) -> Option<Slot> {
    if let [only] = feasible {
        return Some(*only);
    }
    let totals = totals(eval, feasible);
    let most = totals.iter().copied().max()?;
    let ties = totals.iter().filter(|total| **total == most).count();
    let chosen = usize::try_from(random::below(random, ties as u64)).unwrap_or(0);
    let mut best = feasible.iter().zip(&totals).filter(|(_, total)| **total == most).map(|(slot, _)| *slot);
    best.nth(chosen)
}

/// The total score of each feasible node.
pub(crate) fn totals(eval: &Eval<'_>, feasible: &[Slot]) -> Vec<i64> {
    let weight = |plugin| eval.profile.weight(plugin);
    let weights = (
        weight(Plugin::TaintToleration),
        weight(Plugin::NodeAffinity),
        weight(Plugin::NodeResourcesFit),
        weight(Plugin::NodeResourcesBalancedAllocation),
        weight(Plugin::ImageLocality),
    );
    let view = eval.view;
    let (mut taints_most, mut preference_most) = (0, 0);
    for slot in feasible {
        let node = view.node(*slot);
        taints_most = taints_most.max(i64::from(node.soft_taints));
        preference_most = preference_most.max(i64::from(node.preference));
    }
    let mut totals: Vec<i64> = feasible
        .iter()
        .map(|slot| {
            let node = view.node(*slot);
            // Fewer unwelcoming taints are better, more preferences met are better; both relative to the most.
            let taints = match taints_most {
                0 => SCORE_MAX,
                most => SCORE_MAX - SCORE_MAX * i64::from(node.soft_taints) / most,
            };
            let preference = match preference_most {
                0 => 0,
                most => SCORE_MAX * i64::from(node.preference) / most,
            };
            weights.0 * taints
                + weights.1 * preference
                + weights.2 * i64::from(node.fit)
                + weights.3 * i64::from(node.balanced)
                + weights.4 * i64::from(node.images)
        })
        .collect();
    if eval.round.spread.has_soft() {
        let weight = weight(Plugin::PodTopologySpread);
        spread::score(eval.cluster, &eval.round.spread, view, feasible, weight, &mut totals);
    }
    if eval.round.affinity.has_scores() {
        affinity::score(eval.cluster, &eval.round.affinity, feasible, weight(Plugin::InterPodAffinity), &mut totals);
    }
    totals
}
