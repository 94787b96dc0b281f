//! How many pods of a set are on each node, for every set some pending pod has asked about lately.
//!
//! In: pods that come and go. Out: counts by node. Counting from the start happens once per set; after that
//! a pod costs a look at the sets that may contain it. Sets not asked about for longest are forgotten.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cluster::index::PodSetIndex;
use crate::cluster::slots::{Slot, SlotCounts};
use crate::model::pod::{Namespaces, PodInfo};
use crate::model::term::{Member, PodSet};

/// Sets that are counted at once.
const SETS_MAX: usize = 1024;

/// A set of pods to count: those in all of `sets`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CountKey {
    pub(crate) sets: Vec<Arc<PodSet>>,
    /// Leaves out pods that are being deleted.
    pub(crate) live_only: bool,
}

impl CountKey {
    pub(crate) fn contains(&self, pod: Member<'_>, terminating: bool) -> bool {
        !(self.live_only && terminating) && self.sets.iter().all(|set| set.contains(pod))
    }

    fn follows_namespaces(&self) -> bool {
        self.sets.iter().any(|set| set.namespace_selector.is_some())
    }
}

pub(crate) type CountId = u32;

#[derive(Debug)]
struct Counted {
    key: CountKey,
    counts: SlotCounts,
    used: u64,
}

#[derive(Debug, Default)]
pub(crate) struct CountTable {
    ids: HashMap<CountKey, CountId>,
    entries: Vec<Option<Counted>>,
    free: Vec<CountId>,
    index: PodSetIndex,
    tick: u64,
}

impl CountTable {
    pub(crate) fn get(&self, id: CountId) -> &SlotCounts {
        static NONE: std::sync::LazyLock<SlotCounts> = std::sync::LazyLock::new(SlotCounts::default);
        self.entries.get(id as usize).and_then(Option::as_ref).map_or(&NONE, |entry| &entry.counts)
    }

    /// The id of a set, valid until the next decision. `pods` are all pods on nodes, counted if the set is new.
    pub(crate) fn ensure<'a>(
        &mut self,
        key: &CountKey,
        slots: usize,
        namespaces: &Namespaces,
        pods: impl Iterator<Item = (Slot, &'a Arc<PodInfo>)>,
    ) -> CountId {
        self.tick += 1;
        if let Some(id) = self.ids.get(key) {
            if let Some(Some(entry)) = self.entries.get_mut(*id as usize) {
                entry.used = self.tick;
            }
            return *id;
        }
        if self.ids.len() >= SETS_MAX {
            self.forget_oldest();
        }
        let mut counts = SlotCounts::default();
        for (slot, pod) in pods {
            if key.contains(pod.member(namespaces), pod.is_terminating()) {
                counts.increment(slot, slots);
            }
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(first) = key.sets.first() {
            self.index.insert(first, id);
        }
        self.ids.insert(key.clone(), id);
        self.entries[id as usize] = Some(Counted { key: key.clone(), counts, used: self.tick });
        id
    }

    fn forget_oldest(&mut self) {
        let oldest = self.entries.iter().flatten().min_by_key(|entry| entry.used).map(|entry| entry.key.clone());
        if let Some(key) = oldest {
            self.forget(&key);
        }
    }

    fn forget(&mut self, key: &CountKey) {
        let Some(id) = self.ids.remove(key) else { return };
        if let Some(first) = key.sets.first() {
            self.index.remove(first, id);
        }
        self.entries[id as usize] = None;
        self.free.push(id);
    }

    /// A namespace's labels changed: sets chosen by such labels are counted anew when asked for.
    pub(crate) fn namespaces_changed(&mut self) {
        let stale: Vec<_> = self.ids.keys().filter(|key| key.follows_namespaces()).cloned().collect();
        stale.iter().for_each(|key| self.forget(key));
    }

    pub(crate) fn add(&mut self, pod: &PodInfo, slot: Slot, slots: usize, namespaces: &Namespaces) {
        self.each_set_of(pod, namespaces, |counts| counts.increment(slot, slots));
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo, slot: Slot, namespaces: &Namespaces) {
        self.each_set_of(pod, namespaces, |counts| counts.decrement(slot));
    }

    fn each_set_of(&mut self, pod: &PodInfo, namespaces: &Namespaces, mut change: impl FnMut(&mut SlotCounts)) {
        let (member, terminating) = (pod.member(namespaces), pod.is_terminating());
        let entries = &mut self.entries;
        self.index.candidates(member, |id| {
            if let Some(Some(entry)) = entries.get_mut(id as usize)
                && entry.key.contains(member, terminating)
            {
                change(&mut entry.counts);
            }
        });
    }
}
