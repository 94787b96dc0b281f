//! Listing: a page of keys at one revision, and how many are left after it.

use std::collections::VecDeque;

use super::read::{Wanted, read_all};
use super::state::Shared;
use crate::{ListRange, Page, Revision, StorageError};

/// Keys looked up under one lock.
pub(crate) const SCAN_KEYS: usize = 8 * 1024;
/// Lists that go on page by page at the same time, and still know what is left without counting.
const COUNTS: usize = 64;

/// How many keys were left after recent pages, so that reading page by page counts them once, not each time.
#[derive(Debug, Default)]
pub(crate) struct Counts(VecDeque<Count>);

#[derive(Debug)]
struct Count {
    prefix: String,
    revision: Revision,
    after: String,
    remaining: u64,
}

impl Counts {
    /// What was left where `range` goes on.
    fn known(&self, range: &ListRange, revision: Revision) -> Option<u64> {
        let after = range.after.as_deref()?;
        let known = self
            .0
            .iter()
            .find(|count| count.revision == revision && count.after == after && count.prefix == range.prefix)?;
        Some(known.remaining)
    }

    fn remember(&mut self, prefix: &str, revision: Revision, after: &str, remaining: u64) {
        if self.0.len() >= COUNTS {
            self.0.pop_front();
        }
        self.0.push_back(Count { prefix: prefix.to_owned(), revision, after: after.to_owned(), remaining });
    }
}

/// Keeps a revision readable while it is read in several steps.
struct Pin<'a> {
    shared: &'a Shared,
    revision: Revision,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.shared.state.write().index.unpin(self.revision);
    }
}

impl Shared {
    /// A page. For blocking threads.
    pub(crate) fn list(&self, range: &ListRange) -> Result<Page, StorageError> {
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let pin = {
            let mut state = self.state.write();
            let revision = range.at.unwrap_or(state.index.current());
            state.index.check_readable(revision)?;
            state.index.pin(revision);
            Pin { shared: self, revision }
        };
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut after = range.after.clone();
        let mut remaining = 0;
        loop {
            let max = SCAN_KEYS.min(limit - wanted.len());
            let state = self.state.read();
            let found = state.index.scan(&range.prefix, after.as_deref(), pin.revision, max);
            let is_end = found.len() < max;
            for visible in found {
                wanted.push(state.wanted(&visible.key, visible.revision, visible.value)?);
            }
            after = wanted.last().map(|last| last.key.clone()).or(after);
            if is_end {
                break;
            }
            if wanted.len() == limit {
                let after = after.as_deref().unwrap_or_default();
                remaining = match self.counts.lock().known(range, pin.revision) {
                    Some(before) => before.saturating_sub(wanted.len() as u64),
                    None => state.index.count(&range.prefix, Some(after), pin.revision),
                };
                self.counts.lock().remember(&range.prefix, pin.revision, after, remaining);
                break;
            }
        }
        let revision = pin.revision;
        // The files stay open for us, so the places stay readable.
        drop(pin);
        Ok(Page { items: read_all(wanted)?, revision, remaining })
    }
}
