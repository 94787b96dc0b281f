//! Which pods go when the node runs short, and in which order. Pure; [`manager`] measures and acts.
//!
//! [`thresholds`] says what short is, [`Pressure`] remembers since when it has been so.
//! Behaves as pkg/kubelet/eviction/{helpers,eviction_manager}.go, v1.36.

pub mod manager;
pub mod thresholds;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

pub use thresholds::{Signal, Threshold, Thresholds};

/// One figure of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figure {
    pub available: i64,
    pub whole: i64,
}

/// The node's figures at one moment. What could not be measured is absent and says nothing.
pub type Observation = BTreeMap<Signal, Figure>;

/// A threshold that is crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossed {
    pub threshold: Threshold,
    pub figure: Figure,
}

fn crossed(threshold: &Threshold, observation: &Observation, with_reclaim: bool) -> Option<Crossed> {
    // A file system without inodes, as btrfs, has none to run short of.
    let figure = *observation.get(&threshold.signal).filter(|figure| figure.whole > 0)?;
    let extra = threshold.reclaim_min.filter(|_| with_reclaim).map_or(0, |amount| amount.of(figure.whole));
    let needed = threshold.value.of(figure.whole).saturating_add(extra);
    (figure.available < needed).then_some(Crossed { threshold: *threshold, figure })
}

/// What is crossed, since when, and what the node's conditions are because of it.
#[derive(Debug, Default)]
pub struct Pressure {
    /// Thresholds by their place in the configuration, and when each was first seen crossed.
    since: BTreeMap<usize, Duration>,
    /// Those that acted in the last round: they hold until enough is reclaimed.
    acted: Vec<usize>,
    last_true: BTreeMap<&'static str, Duration>,
}

impl Pressure {
    /// Takes the figures of one moment. Gives the thresholds to act on, those of memory first.
    pub fn observe(&mut self, thresholds: &Thresholds, observation: &Observation, now: Duration) -> Vec<Crossed> {
        let all = thresholds.all.iter().enumerate();
        let found: BTreeMap<usize, Crossed> = all
            .filter_map(|(at, threshold)| Some((at, crossed(threshold, observation, self.acted.contains(&at))?)))
            .collect();
        self.since.retain(|at, _| found.contains_key(at));
        for (at, crossed) in &found {
            self.since.entry(*at).or_insert(now);
            self.last_true.insert(crossed.threshold.signal.condition(), now);
        }
        self.last_true.retain(|_, last| *last == now || now.saturating_sub(*last) < thresholds.transition);
        let due = found.into_iter().filter(|(at, crossed)| {
            let lasted = self.since.get(at).map_or(Duration::ZERO, |since| now.saturating_sub(*since));
            crossed.threshold.grace.is_none_or(|grace| lasted >= grace)
        });
        let mut due: Vec<(usize, Crossed)> = due.collect();
        self.acted = due.iter().map(|(at, _)| *at).collect();
        // A hard threshold goes before a soft one of the same signal: it gives less time.
        due.sort_by_key(|(at, crossed)| (crossed.threshold.signal, !crossed.threshold.is_hard(), *at));
        due.into_iter().map(|(_, crossed)| crossed).collect()
    }

    /// Conditions that are true, sorted.
    pub fn conditions(&self) -> Vec<&'static str> {
        self.last_true.keys().copied().collect()
    }
}

/// One pod's part in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<P> {
    pub pod: P,
    pub priority: i32,
    pub usage: i64,
    pub request: i64,
}

/// The order pods go in: those over their request first, then by priority, then by how far over.
pub fn rank<P>(mut candidates: Vec<Candidate<P>>) -> Vec<Candidate<P>> {
    candidates.sort_by_key(|candidate| {
        let over = candidate.usage - candidate.request;
        (Reverse(candidate.usage > candidate.request), candidate.priority, Reverse(over))
    });
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_over_their_request_go_first_then_the_unimportant() {
        let candidate = |pod, priority, usage, request| Candidate { pod, priority, usage, request };
        let ranked = rank(vec![
            candidate("within", 0, 50, 100),
            candidate("important", 1000, 900, 100),
            candidate("little", 0, 110, 100),
            candidate("much", 0, 400, 100),
        ]);
        let names: Vec<_> = ranked.iter().map(|candidate| candidate.pod).collect();
        assert_eq!(names, ["much", "little", "important", "within"]);
    }

    fn thresholds(hard: &str, soft: &str, grace: &str, reclaim: &str) -> Thresholds {
        let mut thresholds = Thresholds::none();
        thresholds.set_hard(hard).unwrap();
        thresholds.set_soft(soft).unwrap();
        thresholds.set_soft_grace(grace).unwrap();
        thresholds.set_reclaim_min(reclaim).unwrap();
        thresholds
    }

    /// Feeds memory and disk figures, each of 100, second by second: `conditions -> what is acted on`.
    fn check(thresholds: &Thresholds, seconds: &[(u64, i64, i64)], expected: &[&str]) {
        let mut pressure = Pressure::default();
        let lines: Vec<String> = seconds
            .iter()
            .map(|(second, memory, disk)| {
                let figure = |available: &i64| Figure { available: *available, whole: 100 };
                let observation =
                    [(Signal::MemoryAvailable, figure(memory)), (Signal::NodeFsAvailable, figure(disk))].into();
                let due = pressure.observe(thresholds, &observation, Duration::from_secs(*second));
                let due: Vec<_> = due
                    .iter()
                    .map(|crossed| {
                        let kind = if crossed.threshold.is_hard() { "hard" } else { "soft" };
                        format!("{kind} {}", crossed.threshold.signal.name())
                    })
                    .collect();
                format!("{} -> {}", pressure.conditions().join(","), due.join(","))
            })
            .collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_hard_threshold_acts_at_once_and_its_condition_stays_a_while() {
        check(
            &thresholds("memory.available<10,nodefs.available<10%", "", "", ""),
            &[(0, 50, 50), (10, 9, 50), (20, 9, 9), (30, 50, 50), (319, 50, 50), (320, 50, 50)],
            &[
                " -> ",
                "MemoryPressure -> hard memory.available",
                "DiskPressure,MemoryPressure -> hard memory.available,hard nodefs.available",
                "DiskPressure,MemoryPressure -> ",
                "DiskPressure,MemoryPressure -> ",
                " -> ",
            ],
        );
    }

    #[test]
    fn a_soft_threshold_waits_and_starts_over_when_relieved() {
        check(
            &thresholds("", "memory.available<20", "memory.available=30s", ""),
            &[(0, 15, 50), (20, 15, 50), (25, 30, 50), (30, 15, 50), (59, 15, 50), (60, 15, 50)],
            &[
                "MemoryPressure -> ",
                "MemoryPressure -> ",
                "MemoryPressure -> ",
                "MemoryPressure -> ",
                "MemoryPressure -> ",
                "MemoryPressure -> soft memory.available",
            ],
        );
    }

    #[test]
    fn what_acted_holds_until_enough_is_reclaimed() {
        check(
            &thresholds("nodefs.available<10%", "", "", "nodefs.available=5%"),
            &[(0, 50, 12), (10, 50, 9), (20, 50, 14), (30, 50, 15), (40, 50, 14)],
            &[
                " -> ",
                "DiskPressure -> hard nodefs.available",
                "DiskPressure -> hard nodefs.available",
                "DiskPressure -> ",
                "DiskPressure -> ",
            ],
        );
    }
}
