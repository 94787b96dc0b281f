//! What each node is to a kind of pod, kept between decisions.
//!
//! Pods that are alike as far as one node can tell (same requests, ports, tolerations, node affinity, images)
//! share a view of the cluster: per node the verdict and the scores that depend on it alone. A decision
//! renews the views of the nodes that changed since the last one of its kind.

use std::collections::HashMap;
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
    rejections: Vec<Rejection>,
    used: u64,
}

impl View {
    pub(crate) fn node(&self, slot: Slot) -> NodeView {
        self.nodes.get(slot as usize).copied().unwrap_or(NodeView::NONE)
    }

    pub(crate) fn rejection(&self, view: NodeView) -> Option<&Rejection> {
        self.rejections.get(usize::from(view.rejection).checked_sub(1)?)
    }

    fn make(&mut self, cluster: &Cluster, profile: &Profile, pod: &PodInfo, node: &NodeState, moot: bool) -> NodeView {
        let rejection = local::check_node(profile, pod, node).or_else(|| local::check_room(profile, pod, node));
        let rejected = rejection.is_some();
        let small = |score: i64| u8::try_from(score.clamp(0, 255)).unwrap_or(u8::MAX);
        let scored = |plugin: Plugin| !rejected && profile.weight(plugin) > 0;
        let score = |plugin: Plugin, score: fn(&Profile, &PodInfo, &NodeState) -> i64| {
            if scored(plugin) { small(score(profile, pod, node)) } else { 0 }
        };
        NodeView {
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
        }
    }

    fn number(&mut self, rejection: Rejection) -> u16 {
        let known = self.rejections.iter().position(|known| *known == rejection);
        let index = known.unwrap_or_else(|| {
            self.rejections.push(rejection);
            self.rejections.len() - 1
        });
        // Far fewer combinations of reasons exist than fit.
        u16::try_from(index + 1).unwrap_or(ABSENT - 1)
    }

    fn renew(&mut self, cluster: &Cluster, profile: &Profile, pod: &PodInfo) {
        let moot = local::balance_is_moot(profile, pod);
        self.nodes.resize(cluster.slots(), NodeView::NONE);
        let images = self.image_epoch != cluster.image_epoch;
        let changed = self.cursor.filter(|_| !images).and_then(|cursor| cluster.changed_since(cursor));
        match changed {
            Some(changed) => {
                for slot in changed {
                    let view = cluster.node(slot).map(|node| self.make(cluster, profile, pod, node, moot));
                    if let Some(place) = self.nodes.get_mut(slot as usize) {
                        *place = view.unwrap_or(NodeView::NONE);
                    }
                }
            }
            None => {
                self.rejections.clear();
                self.nodes.fill(NodeView::NONE);
                for (slot, node) in cluster.nodes() {
                    self.nodes[slot as usize] = self.make(cluster, profile, pod, node, moot);
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
        self.few.rejections.clear();
        self.few.nodes.clear();
        self.few.nodes.resize(cluster.slots(), NodeView::NONE);
        for slot in slots {
            if let Some(node) = cluster.node(slot) {
                self.few.nodes[slot as usize] = self.few.make(cluster, profile, pod, node, moot);
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
