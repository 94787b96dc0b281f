//! All filters of one pod over the cluster of one moment, with what-ifs.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cluster::slots::Slot;
use crate::cluster::{Cluster, NodeState};
use crate::config::Profile;
use crate::decide::diagnosis::{Diagnosis, Rejection};
use crate::decide::views::View;
use crate::decide::{affinity, local, spread};
use crate::model::pod::PodInfo;
use crate::plugins::Plugin;
use crate::volumes::{self, Storage};

/// What bears on one pod across nodes.
pub(crate) struct Round {
    pub(crate) spread: spread::Plan,
    pub(crate) affinity: affinity::Plan,
    hard: Option<spread::Hard>,
    filters: Option<affinity::Filters>,
}

impl Round {
    pub(crate) fn new(cluster: &Cluster, view: &View, spread: spread::Plan, affinity: affinity::Plan) -> Self {
        let hard = spread.has_hard().then(|| spread::Hard::new(cluster, &spread, view));
        let filters = affinity.has_filters().then(|| affinity::Filters::new(cluster, &affinity));
        Self { spread, affinity, hard, filters }
    }

    fn check(&self, cluster: &Cluster, slot: Slot) -> Option<Rejection> {
        let spread = self.hard.as_ref().and_then(|hard| hard.check(cluster, &self.spread, slot));
        spread.or_else(|| self.filters.as_ref().and_then(|filters| filters.check(cluster, &self.affinity, slot)))
    }
}

/// One pod against the cluster.
pub(crate) struct Eval<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) profile: &'a Profile,
    pub(crate) pod: &'a Arc<PodInfo>,
    pub(crate) view: &'a View,
    pub(crate) round: Round,
    volumes: Option<(&'a Storage, volumes::Plan)>,
    named: Option<BTreeSet<String>>,
    /// Whether nodes are promised to other pods.
    has_promises: bool,
}

impl<'a> Eval<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        profile: &'a Profile,
        pod: &'a Arc<PodInfo>,
        view: &'a View,
        round: Round,
        volumes: Option<(&'a Storage, volumes::Plan)>,
        named: Option<BTreeSet<String>>,
    ) -> Self {
        let has_promises = cluster.has_nominations();
        Self { cluster, profile, pod, view, round, volumes, named, has_promises }
    }

    /// The other pods that are as important and were promised the node.
    fn promised(&self, node: &NodeState) -> Vec<Arc<PodInfo>> {
        if !self.has_promises {
            return Vec::new();
        }
        let mut others = self.cluster.nominated_on(&node.name);
        others.retain(|other| other.priority >= self.pod.priority && other.uid != self.pod.uid);
        others
    }

    /// Whether only nodes that the pod names come into question.
    pub(crate) fn names_nodes(&self) -> bool {
        self.named.is_some()
    }

    /// The node the pod was promised, if it is still good.
    pub(crate) fn own_nomination(&mut self) -> Option<Arc<str>> {
        let slot = self.cluster.slot_of(self.cluster.nomination(&self.pod.uid)?)?;
        let node = self.cluster.node(slot)?;
        let allowed = self.named.as_ref().is_none_or(|named| named.contains(&*node.name));
        (allowed && self.check(slot).is_none()).then(|| Arc::clone(&node.name))
    }

    /// All nodes that will have the pod.
    pub(crate) fn feasible(&mut self) -> Vec<Slot> {
        let plain =
            self.volumes.is_none() && self.round.hard.is_none() && self.round.filters.is_none() && !self.has_promises;
        let view = self.view;
        let fitting = (0..).zip(&view.nodes).filter(|(_, node)| node.fits()).map(|(slot, _)| slot);
        if plain && self.named.is_none() {
            return fitting.collect();
        }
        match self.named.take() {
            None => fitting.filter(|slot| self.check(*slot).is_none()).collect(),
            Some(named) => {
                let slots = self.slots_named(&named).into_iter().filter(|slot| self.check(*slot).is_none()).collect();
                self.named = Some(named);
                slots
            }
        }
    }

    fn slots_named(&self, named: &BTreeSet<String>) -> Vec<Slot> {
        let slots = named.iter().filter_map(|name| self.cluster.slot_of(name));
        slots.filter(|slot| self.view.node(*slot).exists()).collect()
    }

    /// The first no to a node that exists.
    pub(crate) fn check(&mut self, slot: Slot) -> Option<Rejection> {
        let node = self.view.node(slot);
        if !node.fits() {
            return self.view.rejection(node).cloned();
        }
        let volumes = self.cluster.node(slot).and_then(|node| self.check_volumes(node));
        let rejection = volumes.or_else(|| self.round.check(self.cluster, slot));
        if rejection.is_some() || !self.has_promises {
            return rejection;
        }
        self.check_beside_promised(slot)
    }

    /// Whether the pod fits a node even when the pods that were promised it come.
    fn check_beside_promised(&mut self, slot: Slot) -> Option<Rejection> {
        let node = self.cluster.node(slot)?;
        self.check_with_promised(node, slot)
    }

    /// All filters that other pods can make a difference to, with `node` in place of what is at the slot.
    fn check_as(&self, node: &NodeState, slot: Slot) -> Option<Rejection> {
        local::check_room(self.profile, self.pod, node)
            .or_else(|| self.check_volumes(node))
            .or_else(|| self.round.check(self.cluster, slot))
    }

    fn check_volumes(&self, node: &NodeState) -> Option<Rejection> {
        let (storage, plan) = self.volumes.as_ref()?;
        storage.check(self.profile, plan, self.pod, node)
    }

    /// As `check_as`, with the pods the node was promised to on it.
    fn check_with_promised(&mut self, node: &NodeState, slot: Slot) -> Option<Rejection> {
        let others = self.promised(node);
        if others.is_empty() {
            return None;
        }
        let mut crowded = node.clone();
        for other in &others {
            crowded.add(Arc::clone(other));
            self.apply(other, slot, 1);
        }
        let rejection = self.check_as(&crowded, slot);
        for other in &others {
            self.apply(other, slot, -1);
        }
        rejection
    }

    /// As `check_as`, and also with the promised pods: whether these come is not certain, so both must be good.
    pub(crate) fn check_as_promised(&mut self, node: &NodeState, slot: Slot) -> Option<Rejection> {
        self.check_with_promised(node, slot).or_else(|| self.check_as(node, slot))
    }

    /// Whether room is all that the pods on the node, and those it is promised to, can keep from the pod.
    pub(crate) fn only_room_matters(&self, node: &NodeState) -> bool {
        self.volumes.is_none()
            && self.round.hard.is_none()
            && self.round.filters.is_none()
            && self.pod.ports.is_empty()
            && self.promised(node).is_empty()
    }

    /// Pretends that `other` is on the node, or with -1 that it is not, to filters that look across nodes.
    pub(crate) fn apply(&mut self, other: &PodInfo, slot: Slot, delta: i64) {
        if let Some((_, plan)) = &mut self.volumes {
            plan.apply(other, delta);
        }
        let Round { spread, affinity, hard, filters } = &mut self.round;
        if let Some(hard) = hard {
            hard.apply(self.cluster, spread, self.view, other, slot, delta);
        }
        if let Some(filters) = filters {
            filters.apply(self.cluster, affinity, self.pod, other, slot, delta);
        }
    }

    /// Everyone's reasons, for a pod that fits nowhere.
    pub(crate) fn diagnose(&mut self) -> Diagnosis {
        let nodes = self.cluster.node_count();
        let mut diagnosis = Diagnosis::new(nodes);
        let view = self.view;
        match self.named.as_ref().map(|named| self.slots_named(named)) {
            None => {
                for (rejection, nodes) in view.rejections() {
                    diagnosis.add(rejection, nodes);
                }
                for slot in view.fitting() {
                    self.diagnose_fitting(slot, &mut diagnosis);
                }
            }
            Some(named) => {
                diagnosis.plugins.insert(Plugin::NodeAffinity);
                let others = nodes.saturating_sub(named.len());
                diagnosis.count("node(s) didn't satisfy plugin(s) [NodeAffinity]", others);
                for slot in named {
                    match view.rejection(view.node(slot)) {
                        Some(rejection) => diagnosis.add(rejection, 1),
                        None => self.diagnose_fitting(slot, &mut diagnosis),
                    }
                }
            }
        }
        diagnosis
    }

    /// Why a node that has the room is refused.
    fn diagnose_fitting(&mut self, slot: Slot, diagnosis: &mut Diagnosis) {
        if let Some(rejection) = self.check(slot) {
            diagnosis.add(&rejection, 1);
            if rejection.resolvable {
                diagnosis.with_room.insert(slot);
            }
        }
    }

    /// Whether other pods' leaving the node may help a pod with that diagnosis.
    pub(crate) fn is_resolvable(&self, diagnosis: &Diagnosis, slot: Slot) -> bool {
        let refused = self.view.rejection(self.view.node(slot));
        refused.map_or_else(|| diagnosis.with_room.contains(&slot), |rejection| rejection.resolvable)
    }
}
