//! Reclaims space: moves what is still needed out of the segment that holds least of it, so that the segment
//! can be removed.
//!
//! Inputs: the live bytes of each segment. Outputs: records to write again, a bounded amount per round.
//!
//! A segment is cleaned only once dead bytes outweigh live ones, so moving costs at most about one byte per
//! byte gained, and the files stay within about twice the live data.
//!
//! **Invariant:** a record is moved only when its checksum holds. A damaged segment is left alone, not copied.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::EmbeddedOptions;
use super::disk::DiskFile;
use super::format::{self, BATCH_HEADER, BatchHeader, Location, RecordKind, SEGMENT_HEADER, SegmentHeader};
use super::state::{Shared, State};
use crate::Revision;

/// A segment with less to gain than this part of it is not worth moving.
const MIN_GAIN: u64 = 8;
/// Bytes read in one round, at least.
const SCAN_BYTES: usize = 1024 * 1024;

/// A record that is written again elsewhere.
#[derive(Debug)]
pub(crate) struct Relocation {
    key: String,
    revision: Revision,
    from: Location,
    to: Location,
}

impl Relocation {
    pub(crate) fn apply(self, state: &mut State) {
        let Some(place) = state.index.version_mut(&self.key, self.revision).filter(|place| **place == self.from) else {
            return;
        };
        *place = self.to;
        state.remove_live(self.from);
        state.add_live(self.to);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Cleaner {
    victim: Option<Victim>,
    /// Segments that cannot be cleaned, since they are damaged.
    unusable: BTreeSet<u32>,
}

#[derive(Debug)]
struct Victim {
    number: u32,
    file: Arc<dyn DiskFile>,
    salt: u32,
    offset: u64,
    end: u64,
}

impl Cleaner {
    pub(crate) fn has_work(&self, state: &State, newest: u32, options: &EmbeddedOptions) -> bool {
        self.victim.is_some() || self.choose(state, newest, options).is_some()
    }

    /// Begins the victim anew; what has been moved durably is then skipped.
    pub(crate) fn restart(&mut self) {
        self.victim = None;
    }

    /// Calls `add` for records to be moved, about `budget` bytes of them.
    pub(crate) fn plan(
        &mut self,
        shared: &Shared,
        newest: u32,
        options: &EmbeddedOptions,
        budget: usize,
        mut add: impl FnMut(Revision, &str, &[u8]) -> Location,
    ) -> Vec<Relocation> {
        let mut relocations = Vec::new();
        let (mut moved, mut scanned) = (0, 0);
        while moved < budget && scanned < budget.max(SCAN_BYTES) {
            if self.victim.is_none() && !self.begin(shared, newest, options) {
                break;
            }
            let Some(victim) = &mut self.victim else { break };
            if victim.offset >= victim.end {
                let number = victim.number;
                self.victim = None;
                if relocations.is_empty() && shared.state.read().segments.get(&number).is_some_and(|s| s.live > 0) {
                    // Everything in it was looked at, so what the index names there cannot be found.
                    self.set_aside(number);
                }
                if !relocations.is_empty() {
                    break;
                }
                continue;
            }
            let Some(payload) = victim.next_batch() else {
                let number = victim.number;
                self.set_aside(number);
                continue;
            };
            scanned += payload.len();
            let base = victim.offset - payload.len() as u64;
            let mut at = 0;
            while let Some(record) = format::record_at(&payload, at) {
                at = record.range.end;
                if !matches!(record.kind, RecordKind::Put | RecordKind::Move) {
                    continue;
                }
                let from = Location {
                    segment: victim.number,
                    offset: (base + record.range.start as u64) as u32,
                    len: record.range.len() as u32,
                };
                let needed = shared.state.read().index.version(record.key, record.revision) == Some(&from);
                if needed {
                    let to = add(record.revision, record.key, record.value);
                    moved += record.range.len();
                    relocations.push(Relocation { key: record.key.to_owned(), revision: record.revision, from, to });
                }
            }
        }
        relocations
    }

    fn set_aside(&mut self, number: u32) {
        tracing::error!(segment = number, "A segment of the datastore is damaged, its space is not reclaimed");
        self.unusable.insert(number);
        self.victim = None;
    }

    fn begin(&mut self, shared: &Shared, newest: u32, options: &EmbeddedOptions) -> bool {
        let chosen = {
            let state = shared.state.read();
            self.choose(&state, newest, options).and_then(|number| {
                state.segments.get(&number).map(|segment| (number, segment.file.clone(), segment.len))
            })
        };
        let Some((number, file, end)) = chosen else { return false };
        let mut header = [0; SEGMENT_HEADER];
        let read = file.read_at(&mut header, 0).ok().and_then(|()| SegmentHeader::decode(&header));
        match read {
            Some(SegmentHeader { salt, .. }) => {
                self.victim = Some(Victim { number, file, salt, offset: SEGMENT_HEADER as u64, end });
            }
            None => self.set_aside(number),
        }
        true
    }

    /// The segment with most to gain, if there is reason to clean.
    fn choose(&self, state: &State, newest: u32, options: &EmbeddedOptions) -> Option<u32> {
        let live = state.bytes_live();
        let candidates = || {
            let usable = |number: &u32| *number != newest && !self.unusable.contains(number);
            state.segments.iter().filter(move |(number, segment)| usable(number) && segment.live > 0)
        };
        let dead: u64 = candidates().map(|(_, segment)| segment.len.saturating_sub(segment.live)).sum();
        let slack = 2 * options.segment_target(live);
        let crowded = state.bytes_on_disk() > options.quota_bytes / 4 * 3 && dead > options.quota_bytes / 16;
        if dead <= live.max(slack) && !crowded {
            return None;
        }
        let (number, best) = candidates().min_by_key(|(_, segment)| segment.live * 1024 / segment.len.max(1))?;
        let gain = best.len.saturating_sub(best.live);
        (gain >= best.len / MIN_GAIN).then_some(*number)
    }
}

impl Victim {
    /// The payload of the next batch; `None` if it does not check.
    fn next_batch(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; BATCH_HEADER];
        self.file.read_at(&mut header, self.offset).ok()?;
        let header = BatchHeader::decode(&header, self.salt)?;
        if self.offset + header.len() > self.end {
            return None;
        }
        let mut payload = vec![0; header.payload_len as usize];
        self.file.read_at(&mut payload, self.offset + BATCH_HEADER as u64).ok()?;
        self.offset += header.len();
        (crc32fast::hash(&payload) == header.payload_crc).then_some(payload)
    }
}
