//! What the files of the embedded store look like. All numbers are little-endian.
//!
//! ```text
//! segment   header (64 bytes), then batches
//! batch     header (32 bytes), then records; written and made durable as one
//! record    header (20 bytes), key, value
//! ```
//!
//! Everything that is read back is covered by a CRC-32: segment headers, batch headers, the records of a batch
//! together (replay) and each record alone (reading one value). The CRC of batch headers is salted per
//! segment, so that no value can look like a batch.

use std::ops::Range;

use crate::Revision;

pub(crate) const SEGMENT_HEADER: usize = 64;
pub(crate) const BATCH_HEADER: usize = 32;
pub(crate) const RECORD_HEADER: usize = 20;

/// The unit that disks write as a whole, and the unit in which a lost write shows as zeros.
const SECTOR: u64 = 512;

const SEGMENT_MAGIC: &[u8; 8] = b"rkubelog";
const BATCH_MAGIC: [u8; 4] = *b"rkB1";
const VERSION: u32 = 1;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    /// Bytes of the whole record.
    pub(crate) len: u32,
}

/// A place between two batches of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) segment: u32,
    pub(crate) offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    Put,
    Delete,
    /// A value written again elsewhere, with the revision it had.
    Move,
    /// History up to the revision is forgotten. Has no key.
    Compact,
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Put,
            2 => Self::Delete,
            3 => Self::Move,
            4 => Self::Compact,
            _ => return None,
        })
    }

    fn byte(self) -> u8 {
        match self {
            Self::Put => 1,
            Self::Delete => 2,
            Self::Move => 3,
            Self::Compact => 4,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u32,
    pub(crate) salt: u32,
    /// Where the segment before this one ends. What lies after that there was never acknowledged.
    pub(crate) previous_end: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.number.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.salt.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.previous_end.to_le_bytes());
        let crc = crc32fast::hash(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let valid = bytes.len() >= SEGMENT_HEADER
            && bytes.get(..8)? == SEGMENT_MAGIC
            && u32_at(bytes, 8)? == VERSION
            && u32_at(bytes, 12)? == crc32fast::hash(bytes.get(16..SEGMENT_HEADER)?);
        if !valid {
            return None;
        }
        Some(Self { number: u32_at(bytes, 16)?, salt: u32_at(bytes, 20)?, previous_end: u64_at(bytes, 24)? })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) payload_len: u32,
    pub(crate) payload_crc: u32,
    /// One more than that of the batch before.
    pub(crate) sequence: u64,
}

impl BatchHeader {
    pub(crate) fn decode(bytes: &[u8], salt: u32) -> Option<Self> {
        let bytes = bytes.get(..BATCH_HEADER)?;
        if bytes.get(..4)? != BATCH_MAGIC || u32_at(bytes, 4)? != salted_crc(salt, bytes.get(8..)?) {
            return None;
        }
        Some(Self { payload_len: u32_at(bytes, 8)?, payload_crc: u32_at(bytes, 12)?, sequence: u64_at(bytes, 16)? })
    }

    /// Bytes of the whole batch.
    pub(crate) fn len(&self) -> u64 {
        BATCH_HEADER as u64 + u64::from(self.payload_len)
    }
}

/// A batch that is being filled. The buffer is kept for the next.
#[derive(Debug)]
pub(crate) struct Batch {
    buffer: Vec<u8>,
}

impl Default for Batch {
    fn default() -> Self {
        Self { buffer: vec![0; BATCH_HEADER] }
    }
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.len() == BATCH_HEADER
    }

    /// Bytes it will take in the file.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Empties it, and gives memory back that only an unusual batch needed.
    pub(crate) fn clear(&mut self, keep: usize) {
        self.buffer.truncate(BATCH_HEADER);
        self.buffer.shrink_to(keep);
    }

    /// Adds a record; returns where in the batch it lies and its length.
    pub(crate) fn add(&mut self, kind: RecordKind, revision: Revision, key: &str, value: &[u8]) -> Range<usize> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&[kind.byte(), 0]);
        // Keys and values are far below these limits, see `check_limits`.
        self.buffer.extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.buffer.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&revision.0.to_le_bytes());
        self.buffer.extend_from_slice(key.as_bytes());
        self.buffer.extend_from_slice(value);
        let crc = crc32fast::hash(&self.buffer[start + 4..]);
        self.buffer[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        start..self.buffer.len()
    }

    /// The batch as it goes to the file.
    pub(crate) fn seal(&mut self, sequence: u64, salt: u32) -> &[u8] {
        let payload_len = (self.buffer.len() - BATCH_HEADER) as u32;
        let payload_crc = crc32fast::hash(&self.buffer[BATCH_HEADER..]);
        self.buffer[..4].copy_from_slice(&BATCH_MAGIC);
        self.buffer[8..12].copy_from_slice(&payload_len.to_le_bytes());
        self.buffer[12..16].copy_from_slice(&payload_crc.to_le_bytes());
        self.buffer[16..24].copy_from_slice(&sequence.to_le_bytes());
        self.buffer[24..32].fill(0);
        let crc = salted_crc(salt, &self.buffer[8..BATCH_HEADER]);
        self.buffer[4..8].copy_from_slice(&crc.to_le_bytes());
        &self.buffer
    }
}

/// One record inside a buffer.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) kind: RecordKind,
    pub(crate) revision: Revision,
    pub(crate) key: &'a str,
    pub(crate) value: &'a [u8],
    /// Where the whole record lies in the buffer.
    pub(crate) range: Range<usize>,
}

/// The record at `start` of `buffer`, if it is whole and its checksum holds.
pub(crate) fn record_at(buffer: &[u8], start: usize) -> Option<Record<'_>> {
    let bytes = buffer.get(start..)?;
    let key_end = RECORD_HEADER + usize::from(u16_at(bytes, 6)?);
    let end = key_end.checked_add(u32_at(bytes, 8)? as usize)?;
    if u32_at(bytes, 0)? != crc32fast::hash(bytes.get(4..end)?) {
        return None;
    }
    Some(Record {
        kind: RecordKind::from_byte(*bytes.get(4)?)?,
        revision: Revision(u64_at(bytes, 12)?),
        key: std::str::from_utf8(bytes.get(RECORD_HEADER..key_end)?).ok()?,
        value: bytes.get(key_end..end)?,
        range: start..start + end,
    })
}

/// What follows the last whole batch of the newest segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// A batch that was being written when the machine or the process stopped. It was never acknowledged.
    Torn,
    /// Bytes that no interrupted write leaves behind.
    Corrupt,
}

/// Tells a batch that was interrupted from one that was damaged later.
///
/// `tail` begins where the batch should, at `offset` of the file, and reaches to the end of the file. Only the
/// last batch can be incomplete, since each is durable before the next is written. A batch that was
/// interrupted is short, or has a sector that never reached the disk and reads as zeros.
pub(crate) fn judge_tail(tail: &[u8], offset: u64, salt: u32, sequence: u64) -> Tail {
    let header = BatchHeader::decode(tail, salt);
    let rest = header.map_or(1, |header| usize::try_from(header.len()).unwrap_or(usize::MAX));
    let mut later = tail.get(rest..).unwrap_or_default();
    while let Some(at) = find(later, &BATCH_MAGIC) {
        later = later.get(at..).unwrap_or_default();
        if BatchHeader::decode(later, salt).is_some_and(|header| header.sequence > sequence) {
            return Tail::Corrupt;
        }
        later = later.get(1..).unwrap_or_default();
    }
    match header {
        Some(header) if header.sequence != sequence => Tail::Corrupt,
        Some(header) if (tail.len() as u64) < header.len() => Tail::Torn,
        None if tail.len() < BATCH_HEADER => Tail::Torn,
        _ if has_zero_sector(tail, offset) => Tail::Torn,
        _ => Tail::Corrupt,
    }
}

fn has_zero_sector(bytes: &[u8], offset: u64) -> bool {
    let first = ((SECTOR - offset % SECTOR) as usize).min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    let is_zero = |piece: &[u8]| !piece.is_empty() && piece.iter().all(|byte| *byte == 0);
    is_zero(head) || rest.chunks(SECTOR as usize).any(is_zero)
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

fn salted_crc(salt: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    hasher.update(bytes);
    hasher.finalize()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}
