//! Which pods go when the node runs short, and in which order. Pure; [`manager`] measures and acts.
//!
//! Behaves as pkg/kubelet/eviction/{helpers,eviction_manager}.go, v1.36.

pub mod manager;

use std::cmp::Reverse;

/// Below these, hard: pods are ended at once. Bytes, or percent of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    pub memory_available: i64,
    pub nodefs_available_percent: i64,
    pub nodefs_inodes_free_percent: i64,
    pub imagefs_available_percent: i64,
    pub pids_available_percent: i64,
}

impl Default for Thresholds {
    /// Upstream's on Linux, but for disks: as k3s does, 5 percent may be left, since one disk carries everything on
    /// small machines, and a tenth of a large one is no shortage.
    fn default() -> Self {
        Self {
            memory_available: 100 << 20,
            nodefs_available_percent: 5,
            nodefs_inodes_free_percent: 5,
            imagefs_available_percent: 5,
            pids_available_percent: 0,
        }
    }
}

/// What runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    PidAvailable,
    NodeFsAvailable,
    NodeFsInodesFree,
}

impl Signal {
    /// The resource in messages.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::PidAvailable => "pids",
            Self::NodeFsAvailable => "ephemeral-storage",
            Self::NodeFsInodesFree => "inodes",
        }
    }

    pub fn condition(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "MemoryPressure",
            Self::PidAvailable => "PIDPressure",
            Self::NodeFsAvailable | Self::NodeFsInodesFree => "DiskPressure",
        }
    }
}

/// The node's figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    pub memory_available: i64,
    pub nodefs_available: i64,
    pub nodefs_total: i64,
    pub inodes_free: i64,
    pub inodes_total: i64,
    pub pids_free: i64,
    pub pids_total: i64,
}

/// The signals below their thresholds, worst first. A figure whose whole is unknown says nothing.
pub fn below(observation: &Observation, thresholds: &Thresholds) -> Vec<(Signal, i64, i64)> {
    let percent = |total: i64, percent: i64| (total > 0).then(|| total / 100 * percent);
    let checks = [
        (Signal::MemoryAvailable, observation.memory_available, Some(thresholds.memory_available)),
        (
            Signal::PidAvailable,
            observation.pids_free,
            percent(observation.pids_total, thresholds.pids_available_percent),
        ),
        (
            Signal::NodeFsAvailable,
            observation.nodefs_available,
            percent(observation.nodefs_total, thresholds.nodefs_available_percent),
        ),
        (
            Signal::NodeFsInodesFree,
            observation.inodes_free,
            percent(observation.inodes_total, thresholds.nodefs_inodes_free_percent),
        ),
    ];
    let short = checks.into_iter().filter_map(|(signal, is, needed)| {
        let needed = needed?;
        (is < needed).then_some((signal, is, needed))
    });
    short.collect()
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

    #[test]
    fn thresholds_are_amounts_or_percent() {
        let fine = Observation {
            memory_available: 1 << 30,
            nodefs_available: 50,
            nodefs_total: 100,
            inodes_free: 50,
            inodes_total: 100,
            pids_free: 1,
            pids_total: 100,
        };
        assert_eq!(below(&fine, &Thresholds::default()), []);
        let short = Observation { memory_available: 1, nodefs_available: 400, nodefs_total: 10_000, ..fine };
        let signals: Vec<_> = below(&short, &Thresholds::default()).into_iter().map(|(signal, ..)| signal).collect();
        assert_eq!(signals, [Signal::MemoryAvailable, Signal::NodeFsAvailable]);
        // A file system without inodes, as btrfs.
        assert_eq!(below(&Observation { inodes_total: 0, inodes_free: 0, ..fine }, &Thresholds::default()), []);
    }
}
