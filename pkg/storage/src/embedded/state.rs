//! What the writer, the readers and the checkpointer of an embedded store share.
//!
//! **Invariant:** the index names only records that are durable. The writer alone changes it, after a sync.
//! **Invariant:** a segment is removed only when the index names no record in it. Readers that found a place
//! before keep the file open.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Mutex, RwLock};

use super::disk::{Disk, DiskFile};
use super::format::{Location, Position};
use super::list::Counts;
use crate::index::Index;
use crate::watch::Hub;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) disk: Arc<dyn Disk>,
    /// Set once nothing may be read or written any more.
    pub(crate) closed: AtomicBool,
    pub(crate) checkpoint_bytes: AtomicU64,
    pub(crate) counts: Mutex<Counts>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) index: Index<Location>,
    pub(crate) segments: BTreeMap<u32, Segment>,
    /// Where the durable log ends.
    pub(crate) end: Position,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) len: u64,
    /// Bytes of records that the index names.
    pub(crate) live: u64,
}

/// A record and the file it lies in.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) location: Location,
}

impl State {
    pub(crate) fn place(&self, location: Location) -> Option<Place> {
        let segment = self.segments.get(&location.segment)?;
        Some(Place { file: segment.file.clone(), location })
    }

    pub(crate) fn add_live(&mut self, location: Location) {
        if let Some(segment) = self.segments.get_mut(&location.segment) {
            segment.live += u64::from(location.len);
        }
    }

    pub(crate) fn remove_live(&mut self, location: Location) {
        if let Some(segment) = self.segments.get_mut(&location.segment) {
            segment.live = segment.live.saturating_sub(u64::from(location.len));
        }
    }

    pub(crate) fn bytes_on_disk(&self) -> u64 {
        self.segments.values().map(|segment| segment.len).sum()
    }

    pub(crate) fn bytes_live(&self) -> u64 {
        self.segments.values().map(|segment| segment.live).sum()
    }
}

pub(crate) fn segment_name(number: u32) -> String {
    format!("{number:08x}.log")
}

pub(crate) fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok()
}
