//! The affinity terms that pods on nodes hold, each once, with the nodes it is held on.
//!
//! A pending pod asks which of them speak of it; the answer does not depend on how many pods hold them.

use std::collections::HashMap;

use crate::cluster::index::PodSetIndex;
use crate::cluster::slots::{Slot, SlotCounts};
use crate::model::pod::PodInfo;
use crate::model::term::{Member, Term};

/// How a held term bears on the pods it speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Hold {
    /// They must stay away.
    RequiredAnti,
    /// They are welcome, by the profile's weight.
    Required,
    /// They are welcome or unwelcome, by the term's weight.
    Preferred(i64),
}

#[derive(Debug)]
pub(crate) struct HeldTerm {
    pub(crate) hold: Hold,
    pub(crate) term: Term,
    pub(crate) nodes: SlotCounts,
    holders: usize,
}

#[derive(Debug, Default)]
pub(crate) struct HeldTerms {
    ids: HashMap<(Hold, Term), u32>,
    entries: Vec<Option<HeldTerm>>,
    free: Vec<u32>,
    index: PodSetIndex,
}

pub(crate) fn holds(pod: &PodInfo) -> impl Iterator<Item = (Hold, &Term)> {
    pod.terms.iter().flat_map(|terms| {
        let anti = terms.required_anti.iter().map(|term| (Hold::RequiredAnti, term));
        let required = terms.required.iter().map(|term| (Hold::Required, term));
        let preferred = terms.preferred.iter().map(|(weight, term)| (Hold::Preferred(*weight), term));
        anti.chain(required).chain(preferred)
    })
}

impl HeldTerms {
    pub(crate) fn add(&mut self, pod: &PodInfo, slot: Slot, slots: usize) {
        for (hold, term) in holds(pod) {
            let id = self.id_of(hold, term);
            if let Some(Some(entry)) = self.entries.get_mut(id as usize) {
                entry.nodes.increment(slot, slots);
                entry.holders += 1;
            }
        }
    }

    fn id_of(&mut self, hold: Hold, term: &Term) -> u32 {
        let key = (hold, term.clone());
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let entry = HeldTerm { hold, term: term.clone(), nodes: SlotCounts::default(), holders: 0 };
        let id = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        self.entries[id as usize] = Some(entry);
        self.index.insert(&term.pods, id);
        self.ids.insert(key, id);
        id
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo, slot: Slot) {
        for (hold, term) in holds(pod) {
            let key = (hold, term.clone());
            let Some(id) = self.ids.get(&key).copied() else { continue };
            let Some(Some(entry)) = self.entries.get_mut(id as usize) else { continue };
            entry.nodes.decrement(slot);
            entry.holders = entry.holders.saturating_sub(1);
            if entry.holders == 0 {
                self.index.remove(&term.pods, id);
                self.ids.remove(&key);
                self.entries[id as usize] = None;
                self.free.push(id);
            }
        }
    }

    /// The terms that speak of the pod, by ids that hold until the next change.
    pub(crate) fn about(&self, pod: Member<'_>) -> Vec<u32> {
        let mut found = Vec::new();
        self.index.candidates(pod, |id| {
            if self.get(id).is_some_and(|entry| entry.term.pods.contains(pod)) {
                found.push(id);
            }
        });
        found
    }

    pub(crate) fn get(&self, id: u32) -> Option<&HeldTerm> {
        self.entries.get(id as usize)?.as_ref()
    }
}
