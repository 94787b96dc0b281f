//! What each node is to a kind of pod, kept between decisions.
//!
//! Pods that are alike as far as one node can tell (same requests, ports, tolerations, node affinity, images)
//! share a view of the cluster: per node the verdict and the scores that depend on it alone. A decision
//! renews the views of the nodes that changed since the last one of its kind.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use crate::cluster::slots::Slot;
use crate::cluster::{Cluster, NodeState};
use crate::config::Profile;
use crate::decide::diagnosis::Rejection;
use crate::decide::local;
use crate::model::pod::PodInfo;
use crate::plugins::Plugin;

/// Node views over all kinds; at 20 bytes each.
const VIEWS_MAX: usize = 400_000;
/// Kinds kept however many nodes there are.
const KINDS_MIN: usize = 8;
const KINDS_MAX: usize = 1024;

/// There is no such node.
const ABSENT: u16 = u16::MAX;

/// One node to one kind of pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeView {
    /// 0 for none; otherwise one more than the index into the kind's rejections.
    rejection: u16,
    /// The pod's own node selector and affinity allow the node.
    pub(crate) affinity: bool,
    /// The node's taints let the pod in.
    pub(crate) taints: bool,
    pub(crate) soft_taints: u8,
    pub(crate) images: u8,
    pub(crate) fit: u8,
    pub(crate) balanced: u8,
    pub(crate) preference: i32,
    /// The weighted sum of the scores that are not relative to other nodes.
    total: i32,
}

impl NodeView {
    const NONE: Self = Self {
        rejection: ABSENT,
        affinity: false,
        taints: false,
        soft_taints: 0,
        images: 0,
        fit: 0,
        balanced: 0,
        preference: 0,
        total: 0,
    };

    pub(crate) fn exists(self) -> bool {
        self.rejection != ABSENT
    }

    pub(crate) fn fits(self) -> bool {
        self.rejection == 0
    }
}

/// One kind of pod.
#[derive(Debug, Default)]
pub(crate) struct View {
    cursor: Option<u64>,
    image_epoch: u64,
    pub(crate) nodes: Vec<NodeView>,
    /// Nodes that fit by total, in no order, so that the best need not be looked for.
    ranks: BTreeMap<i32, Vec<Slot>>,
    /// Where in its rank a node is.
    places: Vec<u32>,
    /// Nodes that fit whose score is relative to that of others.
    uneven: usize,
    rejections: Vec<Rejection>,
    /// How many nodes each of them is said to.
    rejected: Vec<usize>,
    used: u64,
}

impl View {
    pub(crate) fn node(&self, slot: Slot) -> NodeView {
        self.nodes.get(slot as usize).copied().unwrap_or(NodeView::NONE)
    }

    pub(crate) fn rejection(&self, view: NodeView) -> Option<&Rejection> {
        self.rejections.get(usize::from(view.rejection).checked_sub(1)?)
    }

    /// The different reasons of nodes that do not fit, and how many nodes each is said to.
    pub(crate) fn rejections(&self) -> impl Iterator<Item = (&Rejection, usize)> {
        self.rejections.iter().zip(self.rejected.iter().copied()).filter(|(_, nodes)| *nodes > 0)
    }

    /// Nodes that fit, in no order.
    pub(crate) fn fitting(&self) -> impl Iterator<Item = Slot> {
        self.ranks.values().flatten().copied()
    }

    /// Nodes that fit, the best first, if that does not depend on which nodes are compared.
    pub(crate) fn ranked(&self) -> Option<impl Iterator<Item = &Vec<Slot>>> {
        (self.uneven == 0).then(|| self.ranks.values().rev())
    }

    /// Replaces the view of a node.
    fn set(&mut self, slot: Slot, view: NodeView) {
        let index = slot as usize;
        let old = std::mem::replace(&mut self.nodes[index], view);
        let uneven = |view: NodeView| usize::from(view.fits() && (view.soft_taints > 0 || view.preference != 0));
        self.uneven = self.uneven + uneven(view) - uneven(old);
        for (view, change) in [(view, 1), (old, -1)] {
            let index = usize::from(view.rejection).checked_sub(1);
            if let Some(count) = index.and_then(|index| self.rejected.get_mut(index)) {
                *count = count.saturating_add_signed(change);
            }
        }
        if old.fits() && view.fits() && old.total == view.total {
            return;
        }
        if old.fits()
            && let Some(rank) = self.ranks.get_mut(&old.total)
        {
            let place = self.places[index] as usize;
            rank.swap_remove(place);
            if let Some(moved) = rank.get(place) {
                self.places[*moved as usize] = self.places[index];
            }
            if rank.is_empty() {
                self.ranks.remove(&old.total);
            }
        }
        if view.fits() {
            let rank = self.ranks.entry(view.total).or_default();
            self.places[index] = u32::try_from(rank.len()).unwrap_or(u32::MAX);
            rank.push(slot);
        }
    }

    /// No node, for so many slots.
    fn clear(&mut self, slots: usize) {
        self.rejections.clear();
        self.rejected.clear();
        self.nodes.clear();
        self.nodes.resize(slots, NodeView::NONE);
        self.places.clear();
        self.places.resize(slots, 0);
        self.ranks.clear();
        self.uneven = 0;
    }

    fn make(&mut self, cluster: &Cluster, profile: &Profile, pod: &PodInfo, node: &NodeState, moot: bool) -> NodeView {
        let rejection = local::check_node(profile, pod, node).or_else(|| local::check_room(profile, pod, node));
        let rejected = rejection.is_some();
        let small = |score: i64| u8::try_from(score.clamp(0, 255)).unwrap_or(u8::MAX);
        let scored = |plugin: Plugin| !rejected && profile.weight(plugin) > 0;
        let score = |plugin: Plugin, score: fn(&Profile, &PodInfo, &NodeState) -> i64| {
            if scored(plugin) { small(score(profile, pod, node)) } else { 0 }
        };
        let mut view = NodeView {
            rejection: rejection.map_or(0, |rejection| self.number(rejection)),
            affinity: local::affinity_allows(pod, node),
            taints: local::taints_allow(pod, node),
            soft_taints: score(Plugin::TaintToleration, |_, pod, node| local::soft_taints(pod, node)),
            images: if scored(Plugin::ImageLocality) { small(local::image_score(cluster, pod, node)) } else { 0 },
            fit: score(Plugin::NodeResourcesFit, local::fit_score),
            balanced: if moot { 0 } else { score(Plugin::NodeResourcesBalancedAllocation, local::balanced_score) },
            preference: if scored(Plugin::NodeAffinity) {
                i32::try_from(local::preference(profile, pod, node)).unwrap_or(i32::MAX)
            } else {
                0
            },
            total: 0,
        };
        let weighted = |plugin: Plugin, score: u8| profile.weight(plugin) * i64::from(score);
        let total = weighted(Plugin::NodeResourcesFit, view.fit)
            + weighted(Plugin::NodeResourcesBalancedAllocation, view.balanced)
            + weighted(Plugin::ImageLocality, view.images);
        view.total = i32::try_from(total).unwrap_or(i32::MAX);
        view
    }

    fn number(&mut self, rejection: Rejection) -> u16 {
        let known = self.rejections.iter().position(|known| *known == rejection);
        let index = known.unwrap_or_else(|| {
            self.rejections.push(rejection);
            self.rejected.push(0);
            self.rejections.len() - 1
        });
        // Far fewer combinations of reasons exist than fit.
        u16::try_from(index + 1).unwrap_or(ABSENT - 1)
    }

    fn renew(&mut self, cluster: &Cluster, profile: &Profile, pod: &PodInfo) {
        let moot = local::balance_is_moot(profile, pod);
        self.nodes.resize(cluster.slots(), NodeView::NONE);
        self.places.resize(cluster.slots(), 0);
        let images = self.image_epoch != cluster.image_epoch;
        let changed = self.cursor.filter(|_| !images).and_then(|cursor| cluster.changed_since(cursor));
        match changed {
            Some(changed) => {
                for slot in changed {
                    let view = cluster.node(slot).map(|node| self.make(cluster, profile, pod, node, moot));
                    self.set(slot, view.unwrap_or(NodeView::NONE));
                }
            }
            None => {
                self.clear(cluster.slots());
                for (slot, node) in cluster.nodes() {
                    let view = self.make(cluster, profile, pod, node, moot);
                    self.set(slot, view);
                }
            }
        }
        self.cursor = Some(cluster.changes_end());
        self.image_epoch = cluster.image_epoch;
    }
}

/// The views of all kinds of pods seen lately.
#[derive(Debug, Default)]
pub(crate) struct Views {
    /// Of a pod that named its nodes; made for it and not kept up to date.
    few: View,
    kinds: HashMap<String, View>,
    tick: u64,
    /// Scratch for keys.
    key: String,
}

impl Views {
    /// The up-to-date view of the pod's kind.
    pub(crate) fn of(&mut self, cluster: &Cluster, profile_index: usize, profile: &Profile, pod: &PodInfo) -> &View {
        self.tick += 1;
        let mut key = std::mem::take(&mut self.key);
        write_key(&mut key, profile_index, pod);
        if !self.kinds.contains_key(&key) {
            self.make_room(cluster.slots());
        }
        let view = self.kinds.entry(key.clone()).or_default();
        self.key = key;
        view.used = self.tick;
        view.renew(cluster, profile, pod);
        view
    }

    /// A view of a few nodes, for this decision only; the others seem absent.
    pub(crate) fn of_few(
        &mut self,
        cluster: &Cluster,
        profile: &Profile,
        pod: &PodInfo,
        slots: impl Iterator<Item = Slot>,
    ) -> &View {
        let moot = local::balance_is_moot(profile, pod);
        self.few.clear(cluster.slots());
        for slot in slots {
            if let Some(node) = cluster.node(slot) {
                let view = self.few.make(cluster, profile, pod, node, moot);
                self.few.set(slot, view);
            }
        }
        &self.few
    }

    fn make_room(&mut self, slots: usize) {
        let most = (VIEWS_MAX / slots.max(1)).clamp(KINDS_MIN, KINDS_MAX);
        while self.kinds.len() >= most {
            let oldest = self.kinds.iter().min_by_key(|(_, view)| view.used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            self.kinds.remove(&oldest);
        }
    }
}

/// All that local filters and scores read of a pod.
fn write_key(key: &mut String, profile: usize, pod: &PodInfo) {
    key.clear();
    let spec = pod.spec();
    // Writing to a string does not fail.
    let _ = write!(key, "{profile}|{:?}|{:?}|{:?}", pod.requests, pod.non_zero, pod.ports);
    let _ = write!(key, "|{:?}|{:?}|{:?}", spec.node_name, spec.node_selector, spec.tolerations);
    let node_affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let _ = write!(key, "|{node_affinity:?}");
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let _ = write!(key, "|{:?}", container.image);
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(image) = &volume.image {
            let _ = write!(key, "|{:?}", image.reference);
        }
    }
}
