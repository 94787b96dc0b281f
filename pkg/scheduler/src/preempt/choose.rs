//! Which of several sets of victims is the least loss.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;

use crate::model::pod::PodInfo;

/// A node with the pods that must leave it.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) node: Arc<str>,
    /// The most important first; at least one.
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// How many of them have a disruption budget that is used up.
    pub(crate) violations: usize,
}

fn start_time(pod: &PodInfo) -> Timestamp {
    // What has not started yet has the least to lose.
    let status = pod.pod.status.as_ref();
    status.and_then(|status| status.start_time.as_ref()).map_or(Timestamp::MAX, |time| time.0)
}

/// Greater is more important: by priority, then by age.
pub(crate) fn importance(pod: &PodInfo) -> (i32, Reverse<Timestamp>) {
    (pod.priority, Reverse(start_time(pod)))
}

/// Fewest violated budgets, then lowest highest priority, then lowest sum of priorities, then fewest pods, then
/// those whose most important started last.
pub(crate) fn best(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|candidate| {
        let highest = candidate.victims.first().map_or(i32::MIN, |victim| victim.priority);
        // Shifted to be positive, so that one more victim never makes the sum smaller.
        let sum: i64 = candidate.victims.iter().map(|victim| i64::from(victim.priority) - i64::from(i32::MIN)).sum();
        let of_highest = candidate.victims.iter().filter(|victim| victim.priority == highest);
        let earliest = of_highest.map(|victim| start_time(victim)).min();
        (candidate.violations, highest, sum, candidate.victims.len(), Reverse(earliest))
    })
}
