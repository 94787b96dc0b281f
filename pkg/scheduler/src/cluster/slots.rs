//! A number per node, most of them zero.

use std::collections::HashMap;

/// The index of a node in the cluster's tables. A slot is used again after its node is gone.
pub(crate) type Slot = u32;

/// Above this share of nodes (one in so many) a table is smaller than a map.
const DENSE_SHARE: usize = 8;

/// Counts by node. Small sets are maps, so that many rare terms cost little.
#[derive(Debug)]
pub(crate) enum SlotCounts {
    Sparse(HashMap<Slot, u32>),
    Dense(Vec<u32>),
}

impl Default for SlotCounts {
    fn default() -> Self {
        Self::Sparse(HashMap::new())
    }
}

impl SlotCounts {
    pub(crate) fn get(&self, slot: Slot) -> u32 {
        match self {
            Self::Sparse(counts) => counts.get(&slot).copied().unwrap_or(0),
            Self::Dense(counts) => counts.get(slot as usize).copied().unwrap_or(0),
        }
    }

    /// Adds one; `slots` is how many there are in the cluster.
    pub(crate) fn increment(&mut self, slot: Slot, slots: usize) {
        match self {
            Self::Sparse(counts) => {
                *counts.entry(slot).or_insert(0) += 1;
                if counts.len() > 16 && counts.len() > slots / DENSE_SHARE {
                    let mut dense = vec![0; slots.max(slot as usize + 1)];
                    for (slot, count) in counts {
                        dense[*slot as usize] = *count;
                    }
                    *self = Self::Dense(dense);
                }
            }
            Self::Dense(counts) => {
                if counts.len() <= slot as usize {
                    counts.resize(slots.max(slot as usize + 1), 0);
                }
                counts[slot as usize] += 1;
            }
        }
    }

    pub(crate) fn decrement(&mut self, slot: Slot) {
        match self {
            Self::Sparse(counts) => {
                if let Some(count) = counts.get_mut(&slot) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        counts.remove(&slot);
                    }
                }
            }
            Self::Dense(counts) => {
                if let Some(count) = counts.get_mut(slot as usize) {
                    *count = count.saturating_sub(1);
                }
            }
        }
    }

    /// Calls `each` for every node with a count.
    pub(crate) fn for_each(&self, mut each: impl FnMut(Slot, u32)) {
        match self {
            Self::Sparse(counts) => counts.iter().for_each(|(slot, count)| each(*slot, *count)),
            Self::Dense(counts) => {
                for (slot, count) in (0..).zip(counts) {
                    if *count > 0 {
                        each(slot, *count);
                    }
                }
            }
        }
    }
}
