//! Reading values back: one, or many at once, each checked against its checksum and its key.

use std::thread;

use bytes::Bytes;

use super::format::{self, RECORD_HEADER, RecordKind};
use super::state::Place;
use crate::{KeyValue, Revision, StorageError};

/// Reads of more bytes than this are spread over threads.
const PARALLEL_BYTES: u64 = 4 * 1024 * 1024;
const MAX_THREADS: usize = 4;

/// What is to be read.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) key: String,
    pub(crate) revision: Revision,
    pub(crate) place: Place,
}

impl Wanted {
    fn key_value(self, value: Bytes) -> KeyValue {
        KeyValue { key: self.key, value, mod_revision: self.revision }
    }

    fn corrupt(&self, why: &str) -> StorageError {
        let location = self.place.location;
        StorageError::Corrupt {
            detail: format!(
                "{why}: record of revision {} at offset {} of segment {}",
                self.revision.0, location.offset, location.segment
            ),
        }
    }

    /// Takes the value out of the bytes of the record.
    fn open(self, record: Vec<u8>) -> Result<KeyValue, StorageError> {
        let Some(found) = format::record_at(&record, 0) else {
            return Err(self.corrupt("checksum mismatch"));
        };
        let has_value = matches!(found.kind, RecordKind::Put | RecordKind::Move);
        if !has_value || found.revision != self.revision || found.key != self.key {
            return Err(self.corrupt("not the expected record"));
        }
        let value_at = RECORD_HEADER + found.key.len();
        let value = Bytes::from(record).slice(value_at..);
        Ok(self.key_value(value))
    }

    fn buffer(&self) -> Vec<u8> {
        vec![0; self.place.location.len as usize]
    }

    /// Reads, waiting for the device where needed.
    pub(crate) fn read(self) -> Result<KeyValue, StorageError> {
        let mut record = self.buffer();
        match self.place.file.read_at(&mut record, u64::from(self.place.location.offset)) {
            Ok(()) => self.open(record),
            Err(error) => Err(self.unreadable(error)),
        }
    }

    /// Reads what is in memory already; gives itself back if that would wait.
    pub(crate) fn read_at_once(self) -> Result<Result<KeyValue, StorageError>, Self> {
        let mut record = self.buffer();
        match self.place.file.read_at_once(&mut record, u64::from(self.place.location.offset)) {
            Ok(true) => Ok(self.open(record)),
            Ok(false) => Err(self),
            Err(error) => Ok(Err(self.unreadable(error))),
        }
    }

    fn unreadable(&self, error: std::io::Error) -> StorageError {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return self.corrupt("the file ends early");
        }
        StorageError::Unavailable(std::sync::Arc::new(error))
    }
}

/// Reads one value from async code: at once where it is in memory, else off the async threads.
pub(crate) async fn read_one(wanted: Wanted) -> Result<KeyValue, StorageError> {
    match wanted.read_at_once() {
        Ok(done) => done,
        Err(wanted) => run_blocking(|| wanted.read()).await,
    }
}

/// Reads all, in order. For blocking threads.
pub(crate) fn read_all(wanted: Vec<Wanted>) -> Result<Vec<KeyValue>, StorageError> {
    let bytes: u64 = wanted.iter().map(|wanted| u64::from(wanted.place.location.len)).sum();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    if bytes < PARALLEL_BYTES || threads == 1 {
        return wanted.into_iter().map(Wanted::read).collect();
    }
    let part = wanted.len().div_ceil(threads);
    let mut parts = Vec::with_capacity(threads);
    let mut rest = wanted;
    while rest.len() > part {
        let tail = rest.split_off(part);
        parts.push(std::mem::replace(&mut rest, tail));
    }
    thread::scope(|scope| {
        let others: Vec<_> = parts
            .into_iter()
            .map(|part| scope.spawn(|| part.into_iter().map(Wanted::read).collect::<Result<Vec<_>, _>>()))
            .collect();
        let last = rest.into_iter().map(Wanted::read).collect::<Result<Vec<_>, _>>();
        let mut all = Vec::new();
        for other in others {
            all.append(&mut other.join().map_err(|_| reader_panicked())??);
        }
        all.append(&mut last?);
        Ok(all)
    })
}

/// Runs what may wait for the device off the async threads.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(reader_panicked()))
}

fn reader_panicked() -> StorageError {
    StorageError::Unavailable(std::sync::Arc::new(std::io::Error::other("a reading thread ended unexpectedly")))
}
