//! The cluster as the scheduler knows it, kept up to date by every change and never rebuilt.
//!
//! In: nodes, pods on nodes (seen or assumed) and namespaces. Out: node states by slot, counts of pods by node,
//! held affinity terms, topology domains, and a log of the nodes that changed.
//! Invariant: every pod counts on exactly one node, in every table or in none.
//! Behaves as pkg/scheduler/backend/cache, v1.36.

pub(crate) mod counts;
pub(crate) mod held;
mod index;
mod node;
pub(crate) mod slots;
pub(crate) mod topology;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use rkube_api::k8s::core::v1::{Node, Pod};

use crate::cluster::counts::{CountId, CountKey, CountTable};
use crate::cluster::held::HeldTerms;
pub(crate) use crate::cluster::node::{NodeState, Taken};
use crate::cluster::slots::Slot;
use crate::cluster::topology::{Topologies, TopologyId};
use crate::model::pod::{Namespaces, PodInfo, claim_names};
use crate::volumes::claim_key;

/// Changes remembered. Whoever is further behind looks at every node.
const CHANGES_MAX: usize = 8192;

#[derive(Debug)]
struct Placed {
    info: Arc<PodInfo>,
    slot: Slot,
    /// Decided here, not yet seen on the API.
    assumed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Cluster {
    nodes: Vec<Option<NodeState>>,
    free: Vec<Slot>,
    by_name: HashMap<Arc<str>, Slot>,
    node_count: usize,
    pods: HashMap<Arc<str>, Placed>,
    /// How many pods on nodes have a priority.
    priorities: BTreeMap<i32, usize>,
    /// How many of them are assumed.
    assumed: usize,
    pub(crate) namespaces: Namespaces,
    counts: CountTable,
    pub(crate) held: HeldTerms,
    topologies: Topologies,
    /// On how many nodes an image is.
    images: HashMap<String, usize>,
    /// Goes up when image scores may have changed on nodes that did not change.
    pub(crate) image_epoch: u64,
    changes: VecDeque<Slot>,
    /// Changes ever noted.
    changes_end: u64,
    /// Pods that were promised a node, by uid; those lower in priority must leave them room.
    nominated: HashMap<Arc<str>, (Arc<PodInfo>, Arc<str>)>,
    nominated_by_node: HashMap<Arc<str>, HashSet<Arc<str>>>,
    /// How many pods on nodes use a claim, by `namespace/name`.
    claims: HashMap<String, usize>,
    /// Pods on nodes whose deletion was decided here and is not seen yet.
    condemned: HashSet<Arc<str>>,
}

impl Cluster {
    // === nodes ===

    pub(crate) fn set_node(&mut self, node: &Arc<Node>) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let slot = self.slot_for(name);
        self.replace_node(slot, Some(Arc::clone(node)));
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.by_name.get(name).copied() else { return };
        self.replace_node(slot, None);
        self.release_if_unused(slot);
        self.topologies.compact(self.node_count);
    }

    fn replace_node(&mut self, slot: Slot, node: Option<Arc<Node>>) {
        let Some(Some(state)) = self.nodes.get_mut(slot as usize) else { return };
        let (had, has) = (state.node.is_some(), node.is_some());
        let images_before = Arc::clone(&state.images);
        let images_changed = state.set(node);
        let images_now = Arc::clone(&state.images);
        self.topologies.node_changed(slot, state.node.as_deref());
        if images_changed {
            for name in images_before.keys() {
                if let Some(count) = self.images.get_mut(name) {
                    *count -= 1;
                    if *count == 0 {
                        self.images.remove(name);
                    }
                }
            }
            for name in images_now.keys() {
                *self.images.entry(name.clone()).or_insert(0) += 1;
            }
        }
        if had != has {
            self.node_count = if has { self.node_count + 1 } else { self.node_count - 1 };
        }
        if images_changed || (had != has && !self.images.is_empty()) {
            self.image_epoch += 1;
        }
        self.note(slot);
    }

    fn slot_for(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let state = NodeState::new(name);
        let key = Arc::clone(&state.name);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.nodes[slot as usize] = Some(state);
                slot
            }
            None => {
                self.nodes.push(Some(state));
                u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.by_name.insert(key, slot);
        slot
    }

    fn release_if_unused(&mut self, slot: Slot) {
        let unused = |state: &NodeState| state.node.is_none() && state.pods.is_empty();
        if let Some(Some(state)) = self.nodes.get(slot as usize)
            && unused(state)
        {
            self.by_name.remove(&state.name);
            self.nodes[slot as usize] = None;
            self.free.push(slot);
        }
    }

    /// How many slots there are, used or not.
    pub(crate) fn slots(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn node_count(&self) -> usize {
        self.node_count
    }

    /// The node of a slot, if the node exists.
    pub(crate) fn node(&self, slot: Slot) -> Option<&NodeState> {
        self.nodes.get(slot as usize)?.as_ref().filter(|state| state.node.is_some())
    }

    pub(crate) fn slot_of(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (Slot, &NodeState)> {
        let states = (0..).zip(&self.nodes);
        states
            .filter_map(|(slot, state)| state.as_ref().filter(|state| state.node.is_some()).map(|state| (slot, state)))
    }

    pub(crate) fn nodes_with_image(&self, name: &str) -> usize {
        self.images.get(name).copied().unwrap_or(0)
    }

    // === changes ===

    fn note(&mut self, slot: Slot) {
        self.changes_end += 1;
        self.changes.push_back(slot);
        if self.changes.len() > CHANGES_MAX {
            self.changes.pop_front();
        }
    }

    /// How many changes there have been.
    pub(crate) fn changes_end(&self) -> u64 {
        self.changes_end
    }

    /// The nodes changed since, or `None` if that is not known any more.
    pub(crate) fn changed_since(&self, cursor: u64) -> Option<impl Iterator<Item = Slot> + '_> {
        let behind = usize::try_from(self.changes_end - cursor).ok()?;
        let first = self.changes.len().checked_sub(behind)?;
        Some(self.changes.range(first..).copied())
    }

    // === pods ===

    /// A pod on a node, as the API has it. Whether anything that matters to other pods changed.
    pub(crate) fn set_pod(&mut self, pod: &Arc<Pod>, node: &str) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(placed) = self.pods.get_mut(uid)
            && self.nodes.get(placed.slot as usize).and_then(Option::as_ref).is_some_and(|state| &*state.name == node)
            && same_for_scheduling(&placed.info.pod, pod)
        {
            self.assumed -= usize::from(std::mem::take(&mut placed.assumed));
            if Arc::ptr_eq(&placed.info.pod, pod) {
                return;
            }
            let info = placed.info.with_pod(Arc::clone(pod));
            placed.info = Arc::clone(&info);
            let state = self.nodes.get_mut(placed.slot as usize).and_then(Option::as_mut);
            let known = state.and_then(|state| state.pods.iter_mut().find(|known| *known.uid == *info.uid));
            if let Some(known) = known {
                *known = info;
            }
            return;
        }
        let condemned = self.condemned.take(uid);
        self.remove_pod(uid);
        self.place(PodInfo::new(Arc::clone(pod)), node, false);
        self.condemned.extend(condemned);
    }

    /// A pod this scheduler has decided on.
    pub(crate) fn assume(&mut self, info: Arc<PodInfo>, node: &str) {
        self.remove_pod(&info.uid);
        self.place(info, node, true);
    }

    /// Takes back an assumption; nothing happens if the API has the pod on a node by now.
    pub(crate) fn forget(&mut self, uid: &str) {
        if self.is_assumed(uid) {
            self.remove_pod(uid);
        }
    }

    pub(crate) fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placed| placed.assumed)
    }

    pub(crate) fn assumed_count(&self) -> usize {
        self.assumed
    }

    pub(crate) fn pod_count(&self) -> usize {
        self.pods.len()
    }

    /// The priority of the least important pod on a node.
    pub(crate) fn lowest_priority(&self) -> Option<i32> {
        self.priorities.first_key_value().map(|(priority, _)| *priority)
    }

    pub(crate) fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|placed| &placed.info)
    }

    /// How many pods on nodes use the claim `namespace/name`.
    pub(crate) fn claim_users(&self, key: &str) -> usize {
        self.claims.get(key).copied().unwrap_or(0)
    }

    pub(crate) fn condemn(&mut self, uid: &Arc<str>) {
        if self.pods.contains_key(uid) {
            self.condemned.insert(Arc::clone(uid));
        }
    }

    pub(crate) fn pardon(&mut self, uid: &str) {
        self.condemned.remove(uid);
    }

    pub(crate) fn is_condemned(&self, uid: &str) -> bool {
        self.condemned.contains(uid)
    }

    fn place(&mut self, info: Arc<PodInfo>, node: &str, assumed: bool) {
        let slot = self.slot_for(node);
        let slots = self.nodes.len();
        self.counts.add(&info, slot, slots, &self.namespaces);
        self.held.add(&info, slot, slots);
        if let Some(Some(state)) = self.nodes.get_mut(slot as usize) {
            state.add(Arc::clone(&info));
        }
        for name in claim_names(&info.pod) {
            *self.claims.entry(claim_key(info.namespace(), &name)).or_insert(0) += 1;
        }
        self.assumed += usize::from(assumed);
        *self.priorities.entry(info.priority).or_insert(0) += 1;
        self.pods.insert(Arc::clone(&info.uid), Placed { info, slot, assumed });
        self.note(slot);
    }

    pub(crate) fn remove_pod(&mut self, uid: &str) {
        let Some(Placed { info, slot, assumed }) = self.pods.remove(uid) else { return };
        self.assumed -= usize::from(assumed);
        self.condemned.remove(uid);
        if let Some(pods) = self.priorities.get_mut(&info.priority) {
            *pods -= 1;
            if *pods == 0 {
                self.priorities.remove(&info.priority);
            }
        }
        for name in claim_names(&info.pod) {
            let key = claim_key(info.namespace(), &name);
            if let Some(users) = self.claims.get_mut(&key) {
                *users -= 1;
                if *users == 0 {
                    self.claims.remove(&key);
                }
            }
        }
        self.counts.remove(&info, slot, &self.namespaces);
        self.held.remove(&info, slot);
        if let Some(Some(state)) = self.nodes.get_mut(slot as usize) {
            state.remove(uid);
        }
        self.note(slot);
        self.release_if_unused(slot);
    }

    // === namespaces ===

    /// Whether the labels changed.
    pub(crate) fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) -> bool {
        let before = self.namespaces.get(name);
        if before == labels.as_ref() {
            return false;
        }
        // Counts subtract what they once added, so sets that follow these labels are dropped before they change.
        self.counts.namespaces_changed();
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        true
    }

    // === indexes ===

    pub(crate) fn ensure_counts(&mut self, key: &CountKey) -> CountId {
        let pods = self.pods.values().map(|placed| (placed.slot, &placed.info));
        self.counts.ensure(key, self.nodes.len(), &self.namespaces, pods)
    }

    pub(crate) fn counts(&self, id: CountId) -> &slots::SlotCounts {
        self.counts.get(id)
    }

    pub(crate) fn ensure_topology(&mut self, key: &str) -> TopologyId {
        let states = (0..).zip(&self.nodes);
        let nodes = states.filter_map(|(slot, state)| Some((slot, state.as_ref()?.node.as_deref()?)));
        self.topologies.ensure(key, nodes)
    }

    pub(crate) fn known_topology(&self, key: &str) -> Option<TopologyId> {
        self.topologies.known(key)
    }

    pub(crate) fn topology(&self, id: TopologyId) -> &topology::Topology {
        self.topologies.get(id)
    }

    // === nominations ===

    /// Promises a node to a pod, or takes the promise back.
    pub(crate) fn nominate(&mut self, info: &Arc<PodInfo>, node: Option<&str>) {
        self.remove_nomination(&info.uid);
        if let Some(node) = node.filter(|node| !node.is_empty()) {
            let node: Arc<str> = node.into();
            // What-ifs with the pod on the node need the topologies its terms name.
            for (_, term) in held::holds(info) {
                self.ensure_topology(&term.topology_key);
            }
            self.nominated.insert(Arc::clone(&info.uid), (Arc::clone(info), Arc::clone(&node)));
            self.nominated_by_node.entry(node).or_default().insert(Arc::clone(&info.uid));
        }
    }

    pub(crate) fn remove_nomination(&mut self, uid: &str) {
        let Some((_, node)) = self.nominated.remove(uid) else { return };
        if let Some(pods) = self.nominated_by_node.get_mut(&node) {
            pods.remove(uid);
            if pods.is_empty() {
                self.nominated_by_node.remove(&node);
            }
        }
    }

    pub(crate) fn nomination(&self, uid: &str) -> Option<&Arc<str>> {
        self.nominated.get(uid).map(|(_, node)| node)
    }

    pub(crate) fn has_nominations(&self) -> bool {
        !self.nominated.is_empty()
    }

    /// The pods that were promised the node.
    pub(crate) fn nominated_on(&self, node: &str) -> Vec<Arc<PodInfo>> {
        let uids = self.nominated_by_node.get(node).into_iter().flatten();
        let mut pods: Vec<_> =
            uids.filter_map(|uid| self.nominated.get(uid)).map(|(info, _)| Arc::clone(info)).collect();
        pods.sort_by(|a, b| a.uid.cmp(&b.uid));
        pods
    }
}

/// Whether two states of a pod on a node are one to all filters and scores of other pods.
fn same_for_scheduling(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels == new.metadata.labels
        && old.metadata.deletion_timestamp.is_some() == new.metadata.deletion_timestamp.is_some()
        && {
            let (Some(old), Some(new)) = (&old.spec, &new.spec) else { return false };
            old.containers == new.containers
                && old.init_containers == new.init_containers
                && old.resources == new.resources
                && old.overhead == new.overhead
                && old.priority == new.priority
        }
}
