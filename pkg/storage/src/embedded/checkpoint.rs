//! The index on disk, so that opening a store reads little more than its index.
//!
//! ```text
//! header (64 bytes), blocks of keys with the places of their versions, footer (32 bytes)
//! ```
//!
//! A checkpoint is made while the writer goes on. It holds the index as of some moment after `replay_from`,
//! a different one for each block; replaying the log from there makes all of it the same moment, since adding
//! a change twice is adding it once.
//!
//! **Invariant:** a file under its final name is whole and durable. One that does not check is corrupt.
//! **Invariant:** it names only records before `durable_end`, so a log that ends earlier has lost something.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::disk::{Disk, DiskFile};
use super::format::{Location, Position, u16_at, u32_at, u64_at};
use super::state::Shared;
use crate::index::{Version, Versions};
use crate::{Revision, StorageError};

pub(crate) const NAME: &str = "checkpoint";
pub(crate) const UNFINISHED: &str = "checkpoint.new";

const MAGIC: &[u8; 8] = b"rkubechk";
const FORMAT: u32 = 1;
const HEADER: usize = 64;
const FOOTER: usize = 32;
const BLOCK_HEADER: usize = 8;
const ENTRY_HEADER: usize = 8;
const VERSION: usize = 20;
/// Keys taken under one lock, which makes one block.
const KEYS_PER_BLOCK: usize = 2048;
/// No block of ours comes near; a length beyond it is not one.
const MAX_BLOCK: u32 = 1 << 30;

/// What a checkpoint says about the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) replay_from: Position,
    /// The sequence number of the batch at `replay_from`.
    pub(crate) sequence: u64,
    /// The newest and the compacted revision at `replay_from`.
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
}

#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) mark: Mark,
    pub(crate) durable_end: Position,
    pub(crate) keys: Vec<(Arc<str>, Versions<Location>)>,
    pub(crate) bytes: u64,
}

/// Writes the index as a checkpoint; its size. `Ok(None)` if the store is closing and it gave up.
pub(crate) fn write(shared: &Shared, mark: Mark) -> io::Result<Option<u64>> {
    let file = shared.disk.create(UNFINISHED)?;
    let mut offset = HEADER as u64;
    file.write_at(&encode_header(mark), 0)?;
    let mut after: Option<Arc<str>> = None;
    let mut block = Vec::new();
    let mut count = 0_u64;
    let durable_end = loop {
        if shared.closed.load(Ordering::Relaxed) {
            shared.disk.remove(UNFINISHED)?;
            return Ok(None);
        }
        block.clear();
        block.extend_from_slice(&[0; BLOCK_HEADER]);
        let mut taken = 0;
        let end = {
            let state = shared.state.read();
            let mut previous = String::new();
            for (key, versions) in state.index.versions_after(after.as_deref()).take(KEYS_PER_BLOCK) {
                encode_entry(&mut block, &previous, key, versions);
                previous = key.as_ref().to_owned();
                taken += 1;
            }
            if taken > 0 {
                after = Some(Arc::from(previous));
            }
            state.end
        };
        if taken == 0 {
            break end;
        }
        count += taken;
        let len = (block.len() - BLOCK_HEADER) as u32;
        let crc = crc32fast::hash(&block[BLOCK_HEADER..]);
        block[..4].copy_from_slice(&len.to_le_bytes());
        block[4..BLOCK_HEADER].copy_from_slice(&crc.to_le_bytes());
        file.write_at(&block, offset)?;
        offset += block.len() as u64;
    };
    file.write_at(&encode_footer(durable_end, count), offset)?;
    file.sync()?;
    shared.disk.rename(UNFINISHED, NAME)?;
    shared.disk.sync_directory()?;
    Ok(Some(offset + FOOTER as u64))
}

fn encode_header(mark: Mark) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..20].copy_from_slice(&mark.replay_from.segment.to_le_bytes());
    bytes[24..32].copy_from_slice(&mark.replay_from.offset.to_le_bytes());
    bytes[32..40].copy_from_slice(&mark.sequence.to_le_bytes());
    bytes[40..48].copy_from_slice(&mark.revision.0.to_le_bytes());
    bytes[48..56].copy_from_slice(&mark.compacted.0.to_le_bytes());
    let crc = crc32fast::hash(&bytes[16..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn encode_footer(end: Position, count: u64) -> [u8; FOOTER] {
    // A block length of zero says that this is no block.
    let mut bytes = [0; FOOTER];
    bytes[8..16].copy_from_slice(&end.offset.to_le_bytes());
    bytes[16..20].copy_from_slice(&end.segment.to_le_bytes());
    bytes[24..32].copy_from_slice(&count.to_le_bytes());
    let crc = crc32fast::hash(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Keys share their beginnings with the one before; only the rest is written.
fn encode_entry(block: &mut Vec<u8>, previous: &str, key: &str, versions: &Versions<Location>) {
    let shared = previous.bytes().zip(key.bytes()).take_while(|(a, b)| a == b).count();
    let rest = key.as_bytes().get(shared..).unwrap_or_default();
    let count = versions.older.len() + 1;
    block.extend_from_slice(&(shared as u16).to_le_bytes());
    block.extend_from_slice(&(rest.len() as u16).to_le_bytes());
    block.extend_from_slice(&(count as u32).to_le_bytes());
    block.extend_from_slice(rest);
    for version in versions.iter() {
        // Segments count from 1, so 0 is a deletion.
        let place = version.value.unwrap_or(Location { segment: 0, offset: 0, len: 0 });
        block.extend_from_slice(&version.revision.0.to_le_bytes());
        block.extend_from_slice(&place.segment.to_le_bytes());
        block.extend_from_slice(&place.offset.to_le_bytes());
        block.extend_from_slice(&place.len.to_le_bytes());
    }
}

/// Reads the checkpoint of a store; `None` if it has none yet.
pub(crate) fn load(disk: &dyn Disk) -> Result<Option<Loaded>, StorageError> {
    let file = match disk.open(NAME) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StorageError::Unavailable(Arc::new(error))),
    };
    let bytes = file.len().map_err(|error| StorageError::Unavailable(Arc::new(error)))?;
    let mut reader = Reader { file: &*file, offset: 0, buffer: Vec::new() };
    let mark = decode_header(reader.take(HEADER)?).ok_or_else(|| corrupt("header"))?;
    let mut keys = Vec::new();
    loop {
        let head = reader.take(BLOCK_HEADER)?;
        let (len, crc) = (u32_at(head, 0).unwrap_or(0), u32_at(head, 4).unwrap_or(0));
        if len == 0 {
            let footer = decode_footer(reader.take(FOOTER - BLOCK_HEADER)?, crc, keys.len());
            let durable_end = footer.filter(|_| reader.offset == bytes).ok_or_else(|| corrupt("footer"))?;
            return Ok(Some(Loaded { mark, durable_end, keys, bytes }));
        }
        if len > MAX_BLOCK || reader.offset + u64::from(len) > bytes {
            return Err(corrupt("block length"));
        }
        let block = reader.take(len as usize)?;
        if crc != crc32fast::hash(block) {
            return Err(corrupt("checksum mismatch"));
        }
        decode_block(block, &mut keys).ok_or_else(|| corrupt("block"))?;
    }
}

/// The part of the footer after what looks like the header of a block.
fn decode_footer(bytes: &[u8], crc: u32, count: usize) -> Option<Position> {
    let valid = crc == crc32fast::hash(bytes) && u64_at(bytes, 16)? == count as u64;
    valid.then_some(Position { segment: u32_at(bytes, 8)?, offset: u64_at(bytes, 0)? })
}

fn decode_header(bytes: &[u8]) -> Option<Mark> {
    let valid = bytes.get(..8)? == MAGIC
        && u32_at(bytes, 8)? == FORMAT
        && u32_at(bytes, 12)? == crc32fast::hash(bytes.get(16..)?);
    valid.then_some(Mark {
        replay_from: Position { segment: u32_at(bytes, 16)?, offset: u64_at(bytes, 24)? },
        sequence: u64_at(bytes, 32)?,
        revision: Revision(u64_at(bytes, 40)?),
        compacted: Revision(u64_at(bytes, 48)?),
    })
}

fn decode_block(mut block: &[u8], keys: &mut Vec<(Arc<str>, Versions<Location>)>) -> Option<()> {
    let mut key = Vec::new();
    while !block.is_empty() {
        let (shared, rest) = (usize::from(u16_at(block, 0)?), usize::from(u16_at(block, 2)?));
        let count = u32_at(block, 4)? as usize;
        block = block.get(ENTRY_HEADER..)?;
        if shared > key.len() {
            return None;
        }
        key.truncate(shared);
        key.extend_from_slice(block.get(..rest)?);
        block = block.get(rest..)?;
        let places = block.get(..count.checked_mul(VERSION)?)?;
        block = block.get(places.len()..)?;
        let mut versions = places.chunks_exact(VERSION).map(decode_version);
        let newest = versions.next_back()??;
        let older = versions.collect::<Option<Vec<_>>>()?;
        keys.push((Arc::from(std::str::from_utf8(&key).ok()?), Versions { newest, older }));
    }
    Some(())
}

fn decode_version(bytes: &[u8]) -> Option<Version<Location>> {
    let segment = u32_at(bytes, 8)?;
    let place = Location { segment, offset: u32_at(bytes, 12)?, len: u32_at(bytes, 16)? };
    Some(Version { revision: Revision(u64_at(bytes, 0)?), value: (segment != 0).then_some(place) })
}

fn corrupt(what: &str) -> StorageError {
    StorageError::Corrupt { detail: format!("checkpoint: {what}") }
}

struct Reader<'a> {
    file: &'a dyn DiskFile,
    offset: u64,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    fn take(&mut self, len: usize) -> Result<&[u8], StorageError> {
        self.buffer.resize(len, 0);
        match self.file.read_at(&mut self.buffer, self.offset) {
            Ok(()) => {
                self.offset += len as u64;
                Ok(&self.buffer)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(corrupt("the file ends early")),
            Err(error) => Err(StorageError::Unavailable(Arc::new(error))),
        }
    }
}
