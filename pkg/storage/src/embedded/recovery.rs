//! Opening a store: the checkpoint, then the log after it.
//!
//! Inputs: the directory as a crash at any instruction left it. Outputs: the state that all acknowledged writes
//! made, durable; or `Corrupt`, when something that was durable is missing or damaged.
//!
//! Only the last batch of the newest segment may be incomplete. It is cut off.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::checkpoint::{self, Mark};
use super::disk::{Disk, DiskFile};
use super::format::{
    self, BATCH_HEADER, BatchHeader, Location, Position, RecordKind, SEGMENT_HEADER, SegmentHeader, Tail,
};
use super::state::{Segment, State, segment_name, segment_number};
use crate::index::Rebuild;
use crate::{Revision, StorageError};

const FIRST_SEGMENT: u32 = 1;

#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) state: State,
    /// Where the next batch goes.
    pub(crate) end: Position,
    /// The salt of the newest segment.
    pub(crate) salt: u32,
    /// The sequence number of the next batch.
    pub(crate) sequence: u64,
    /// Where the next opening would start to replay.
    pub(crate) replay_from: Position,
    pub(crate) checkpoint_bytes: u64,
    /// Bytes that had to be replayed.
    pub(crate) replayed_bytes: u64,
}

/// Opens what is in the directory; `None` if that is nothing.
pub(crate) fn recover(disk: &dyn Disk) -> Result<Option<Recovered>, StorageError> {
    let names = disk.names().map_err(unavailable)?;
    if names.iter().any(|name| name == checkpoint::UNFINISHED) {
        disk.remove(checkpoint::UNFINISHED).map_err(unavailable)?;
    }
    let checkpoint = checkpoint::load(disk)?;
    let mut segments = open_segments(disk, &names)?;
    if segments.is_empty() && checkpoint.is_none() {
        return Ok(None);
    }
    let (mark, durable_end, keys, checkpoint_bytes) = match checkpoint {
        Some(loaded) => (loaded.mark, loaded.durable_end, loaded.keys, loaded.bytes),
        None => {
            let replay_from = Position { segment: FIRST_SEGMENT, offset: SEGMENT_HEADER as u64 };
            (Mark { replay_from, sequence: 1, ..Mark::default() }, replay_from, Vec::new(), 0)
        }
    };
    let mut replay = Replay {
        rebuild: Rebuild::new(keys),
        sequence: mark.sequence,
        current: mark.revision,
        compacted: mark.compacted,
        durable_end,
        bytes: 0,
    };
    let newest = replay.log(disk, &mut segments, mark.replay_from)?;
    let end = Position { segment: newest.number, offset: segments.get(&newest.number).map_or(0, |(_, len)| *len) };
    let index = replay.rebuild.finish(replay.current, replay.compacted);
    let segments = segments.into_iter().map(|(number, (file, len))| (number, Segment { file, len, live: 0 })).collect();
    let mut state = State { index, segments, end };
    count_live(&mut state)?;
    Ok(Some(Recovered {
        state,
        end,
        salt: newest.salt,
        sequence: replay.sequence,
        replay_from: mark.replay_from,
        checkpoint_bytes,
        replayed_bytes: replay.bytes,
    }))
}

type Files = BTreeMap<u32, (Arc<dyn DiskFile>, u64)>;

/// Opens the segments. The newest may be one whose creation was interrupted; it is removed.
fn open_segments(disk: &dyn Disk, names: &[String]) -> Result<Files, StorageError> {
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let mut files = Files::new();
    let newest = numbers.last().copied();
    for number in numbers {
        let file = disk.open(&segment_name(number)).map_err(unavailable)?;
        let len = file.len().map_err(unavailable)?;
        let mut header = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(SEGMENT_HEADER)];
        file.read_at(&mut header, 0).map_err(unavailable)?;
        let never_written = header.len() < SEGMENT_HEADER || header.iter().all(|byte| *byte == 0);
        if Some(number) == newest && never_written {
            disk.remove(&segment_name(number)).map_err(unavailable)?;
            continue;
        }
        // What follows the end that the next segment states was never acknowledged, and is never read.
        let previous_end = SegmentHeader::decode(&header).map(|header| header.previous_end);
        if let (Some(end), Some((_, len))) = (previous_end, files.get_mut(&number.wrapping_sub(1))) {
            *len = end.min(*len);
        }
        files.insert(number, (file, len));
    }
    Ok(files)
}

fn count_live(state: &mut State) -> Result<(), StorageError> {
    let places: Vec<Location> = state
        .index
        .versions_after(None)
        .flat_map(|(_, versions)| versions.iter().filter_map(|version| version.value).collect::<Vec<_>>())
        .collect();
    for place in places {
        let end = u64::from(place.offset) + u64::from(place.len);
        if state.segments.get(&place.segment).is_none_or(|segment| segment.len < end) {
            return Err(corrupt(place.segment, u64::from(place.offset), "the index names a record that is missing"));
        }
        state.add_live(place);
    }
    Ok(())
}

struct Replay {
    rebuild: Rebuild<Location>,
    sequence: u64,
    current: Revision,
    compacted: Revision,
    /// The log was durable up to here once.
    durable_end: Position,
    bytes: u64,
}

impl Replay {
    /// Replays everything from `start`; the header of the newest segment. Leaves its length as it then is.
    fn log(&mut self, disk: &dyn Disk, files: &mut Files, start: Position) -> Result<SegmentHeader, StorageError> {
        let newest = files.keys().next_back().copied().unwrap_or_default().max(start.segment);
        let mut headers = Vec::new();
        for number in start.segment..=newest {
            let Some((file, _)) = files.get(&number) else {
                return Err(corrupt(number, 0, "the segment is missing"));
            };
            headers.push(read_header(&**file, number)?);
        }
        let ends: Vec<Option<u64>> =
            headers.iter().skip(1).map(|header| Some(header.previous_end)).chain([None]).collect();
        let mut last = None;
        for (header, end) in headers.into_iter().zip(ends) {
            let Some((file, len)) = files.get_mut(&header.number) else { continue };
            let from = if header.number == start.segment { start.offset } else { SEGMENT_HEADER as u64 };
            let replayed = self.segment(&**file, *len, header, from, end)?;
            if end.is_none() {
                // Whoever reads from now on must not see what a power loss could take back.
                if replayed < *len {
                    file.truncate(replayed).map_err(unavailable)?;
                }
                file.sync().map_err(unavailable)?;
                disk.sync_directory().map_err(unavailable)?;
            }
            *len = replayed;
            last = Some(header);
        }
        let newest = last.ok_or_else(|| corrupt(start.segment, start.offset, "the log is missing"))?;
        let end = Position { segment: newest.number, offset: files.get(&newest.number).map_or(0, |(_, len)| *len) };
        if end < self.durable_end {
            return Err(corrupt(end.segment, end.offset, "the log ends before the checkpoint does"));
        }
        Ok(newest)
    }

    /// Replays one segment from `from` to `end`, or as far as it is whole. Returns where it stopped.
    fn segment(
        &mut self,
        file: &dyn DiskFile,
        len: u64,
        header: SegmentHeader,
        from: u64,
        end: Option<u64>,
    ) -> Result<u64, StorageError> {
        let number = header.number;
        let limit = end.unwrap_or(len);
        if len < limit || from > limit {
            return Err(corrupt(number, len, "the segment ends early"));
        }
        let mut bytes = vec![0; usize::try_from(limit - from).unwrap_or(usize::MAX)];
        file.read_at(&mut bytes, from).map_err(unavailable)?;
        let mut at = 0;
        while at < bytes.len() {
            let offset = from + at as u64;
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(payload) = self.whole_batch(rest, header.salt) else {
                let position = Position { segment: number, offset };
                let may_be_torn = end.is_none() && position >= self.durable_end;
                if may_be_torn && format::judge_tail(rest, offset, header.salt, self.sequence) == Tail::Torn {
                    tracing::info!(segment = number, offset, bytes = rest.len(), "Cut off an unfinished write");
                    return Ok(offset);
                }
                return Err(corrupt(number, offset, "checksum mismatch"));
            };
            self.batch(number, offset + BATCH_HEADER as u64, payload)?;
            at += BATCH_HEADER + payload.len();
            self.sequence += 1;
            self.bytes += (BATCH_HEADER + payload.len()) as u64;
        }
        Ok(limit)
    }

    fn whole_batch<'a>(&self, bytes: &'a [u8], salt: u32) -> Option<&'a [u8]> {
        let header = BatchHeader::decode(bytes, salt).filter(|header| header.sequence == self.sequence)?;
        let payload = bytes.get(BATCH_HEADER..usize::try_from(header.len()).ok()?)?;
        (crc32fast::hash(payload) == header.payload_crc).then_some(payload)
    }

    fn batch(&mut self, number: u32, offset: u64, payload: &[u8]) -> Result<(), StorageError> {
        let mut at = 0;
        while at < payload.len() {
            let Some(record) = format::record_at(payload, at) else {
                return Err(corrupt(number, offset + at as u64, "a record that does not check"));
            };
            let place =
                Location { segment: number, offset: (offset + at as u64) as u32, len: record.range.len() as u32 };
            match record.kind {
                RecordKind::Put | RecordKind::Delete if record.revision <= self.current => {
                    return Err(corrupt(number, offset + at as u64, "a revision that is not newer"));
                }
                RecordKind::Put => {
                    self.current = record.revision;
                    self.rebuild.change(record.key, record.revision, Some(place));
                }
                RecordKind::Delete => {
                    self.current = record.revision;
                    self.rebuild.change(record.key, record.revision, None);
                }
                RecordKind::Move => self.rebuild.relocate(record.key, record.revision, place),
                RecordKind::Compact => self.compacted = self.compacted.max(record.revision),
            }
            at = record.range.end;
        }
        Ok(())
    }
}

fn read_header(file: &dyn DiskFile, number: u32) -> Result<SegmentHeader, StorageError> {
    let mut bytes = [0; SEGMENT_HEADER];
    file.read_at(&mut bytes, 0).map_err(unavailable)?;
    SegmentHeader::decode(&bytes)
        .filter(|header| header.number == number)
        .ok_or_else(|| corrupt(number, 0, "the header of the segment does not check"))
}

fn corrupt(segment: u32, offset: u64, why: &str) -> StorageError {
    StorageError::Corrupt { detail: format!("{why}: offset {offset} of segment {segment}") }
}

fn unavailable(error: io::Error) -> StorageError {
    StorageError::Unavailable(Arc::new(error))
}
