//! Why a pod fits nowhere, in upstream's words.
//!
//! Behaves as pkg/scheduler/framework/types.go (`FitError`), v1.36.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use smallvec::{SmallVec, smallvec};

use crate::cluster::slots::Slot;
use crate::plugins::{Plugin, PluginSet};

/// A plugin's no to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) plugin: Plugin,
    /// Whether other pods' leaving the node could change it.
    pub(crate) resolvable: bool,
    pub(crate) reasons: SmallVec<[Cow<'static, str>; 1]>,
}

impl Rejection {
    pub(crate) fn unresolvable(plugin: Plugin, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, resolvable: false, reasons: smallvec![reason.into()] }
    }

    pub(crate) fn resolvable(plugin: Plugin, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, resolvable: true, reasons: smallvec![reason.into()] }
    }
}

/// What a decision without a node found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    pub(crate) nodes: usize,
    /// Said before any node was looked at.
    pub(crate) prefilter: Option<String>,
    reasons: BTreeMap<String, usize>,
    /// Who said no; events that concern them bring the pod back.
    pub(crate) plugins: PluginSet,
    /// How many nodes there are where preemption may help.
    pub(crate) resolvable: usize,
    /// Those of them that have the room, and were refused for what is on other nodes.
    pub(crate) with_room: BTreeSet<Slot>,
    pub(crate) postfilter: String,
    /// How many nodes were looked at.
    looked_at: usize,
}

impl Diagnosis {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { nodes, ..Self::default() }
    }

    /// No to every node, by one plugin before any was looked at.
    pub(crate) fn before_nodes(nodes: usize, plugin: Plugin, message: impl Into<String>) -> Box<Self> {
        let mut diagnosis = Box::new(Self { nodes, prefilter: Some(message.into()), ..Self::default() });
        diagnosis.plugins.insert(plugin);
        diagnosis
    }

    /// So many nodes are refused for the same reasons.
    pub(crate) fn add(&mut self, rejection: &Rejection, nodes: usize) {
        self.looked_at += nodes;
        self.plugins.insert(rejection.plugin);
        if rejection.resolvable {
            self.resolvable += nodes;
        }
        for reason in &rejection.reasons {
            self.count(reason, nodes);
        }
    }

    /// How many nodes were added.
    pub(crate) fn counted(&self) -> usize {
        self.looked_at
    }

    pub(crate) fn count(&mut self, reason: &str, nodes: usize) {
        if nodes == 0 {
            return;
        }
        match self.reasons.get_mut(reason) {
            Some(count) => *count += nodes,
            None => {
                self.reasons.insert(reason.to_owned(), nodes);
            }
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0/{} nodes are available:", self.nodes)?;
        if let Some(message) = &self.prefilter {
            write!(f, " {message}.")?;
        } else if !self.reasons.is_empty() {
            let mut reasons: Vec<String> =
                self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            // By text, numbers included, as upstream.
            reasons.sort();
            write!(f, " {}.", reasons.join(", "))?;
        }
        if !self.postfilter.is_empty() {
            write!(f, " {}", self.postfilter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn messages_are_upstreams() {
        let mut diagnosis = Diagnosis::new(5);
        diagnosis.add(&Rejection::resolvable(Plugin::NodeResourcesFit, "Insufficient cpu"), 2);
        diagnosis.add(&Rejection::unresolvable(Plugin::TaintToleration, "node(s) had untolerated taint(s)"), 3);
        diagnosis.postfilter = "preemption: 0/5 nodes are available: 2 No preemption victims found for incoming pod, 3 Preemption is not helpful for scheduling.".to_owned();
        expect!["0/5 nodes are available: 2 Insufficient cpu, 3 node(s) had untolerated taint(s). preemption: 0/5 nodes are available: 2 No preemption victims found for incoming pod, 3 Preemption is not helpful for scheduling."].assert_eq(&diagnosis.to_string());
        let conflict = Diagnosis::before_nodes(3, Plugin::NodeAffinity, "pod affinity terms conflict");
        expect!["0/3 nodes are available: pod affinity terms conflict."].assert_eq(&conflict.to_string());
    }
}
