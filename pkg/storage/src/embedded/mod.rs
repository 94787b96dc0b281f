//! The default store: a log of checksummed records and an index of it in memory, on one machine's disk.
//!
//! Inputs: a directory that belongs to the store. Outputs: `Storage`, durable at each answer.
//!
//! ```text
//! write   queue -> writer thread: one batch, one sync -> index, watchers, answers
//! read    index (memory) -> one positioned read -> checksum
//! watch   changes as they happen; from history in the log where a watcher is behind
//! ```
//!
//! Values stay on disk and in the page cache; the index takes about 100 bytes per key. `docs/adr/0001` says why
//! this is not a general-purpose engine. File formats are in `format` and `checkpoint`, the rules that keep a
//! crash harmless in `writer`, `recovery` and `housekeeping`.
//!
//! **Invariant:** an idle store reads and writes nothing.

mod checkpoint;
mod cleaner;
mod disk;
mod format;
mod housekeeping;
mod list;
mod read;
mod recovery;
mod state;
mod writer;

#[cfg(test)]
mod tests;

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};

use self::disk::{Directory, Disk, LockError};
use self::format::{Location, Position, SEGMENT_HEADER};
use self::read::{Wanted, read_one, run_blocking};
use self::recovery::Recovered;
use self::state::{Segment, Shared, State};
use self::writer::{Request, Writer, Written};
use crate::index::{Index, Past, Replay};
use crate::types::check_limits;
use crate::watch::{History, Hub, Watcher};
use crate::{
    Change, ChangeKind, KeyValue, ListRange, Page, Precondition, Revision, Size, Storage, StorageError, WatchStream,
    WriteOutcome,
};

/// Writes that may wait for the writer; more wait for a place.
const QUEUE: usize = 4 * 1024;
/// What a watcher that catches up reads at once: changes looked at, and bytes of values.
const REPLAY_CHANGES: usize = 4 * 1024;
const REPLAY_BYTES: u64 = 8 * 1024 * 1024;
/// Segments grow with the data, so that there are neither many files nor large ones.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 16 * 1024 * 1024..=64 * 1024 * 1024;
const SEGMENTS: u64 = 32;

/// Limits of an embedded store.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Puts that would make the files larger than this fail with `Full`, until deletions and compaction have
    /// made room.
    pub quota_bytes: u64,
    /// History longer than this is compacted without being asked.
    pub history_changes: usize,
    /// Bytes of one file of the log; by default chosen by the amount of data.
    pub segment_bytes: Option<u64>,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { quota_bytes: 8 * 1024 * 1024 * 1024, history_changes: 1_000_000, segment_bytes: None }
    }
}

impl EmbeddedOptions {
    fn segment_target(&self, live: u64) -> u64 {
        let by_data = || (live / SEGMENTS).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end());
        self.segment_bytes.unwrap_or_else(by_data)
    }
}

/// See the module. Dropping it is safe at any time; `close` also makes the next opening fast.
#[derive(Debug)]
pub struct EmbeddedStorage {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedStorage {
    /// Opens the store in `directory`, which is made where it is missing.
    ///
    /// # Errors
    /// `InUse` while another process has it open, `Corrupt` if something that was durable is damaged or
    /// missing, `Unavailable` if the disk cannot be read or written.
    pub async fn open(directory: &Path, options: EmbeddedOptions) -> Result<Self, StorageError> {
        let directory = directory.to_owned();
        run_blocking(move || {
            let disk = Directory::new(&directory).map_err(|error| StorageError::Unavailable(Arc::new(error)))?;
            Self::open_on(Arc::new(disk), options)
        })
        .await
    }

    fn open_on(disk: Arc<dyn Disk>, options: EmbeddedOptions) -> Result<Self, StorageError> {
        let lock = disk.lock().map_err(|error| match error {
            LockError::Held(error) => error,
            LockError::Io(error) => StorageError::Unavailable(Arc::new(error)),
        })?;
        let mut recovered = match recovery::recover(&*disk)? {
            Some(recovered) => recovered,
            None => create(&*disk)?,
        };
        let state = std::mem::replace(&mut recovered.state, State::empty());
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            hub: Arc::new(Hub::default()),
            disk,
            closed: AtomicBool::new(false),
            checkpoint_bytes: AtomicU64::new(recovered.checkpoint_bytes),
            counts: Mutex::default(),
        });
        let (sender, receiver) = mpsc::channel(QUEUE);
        let writer = Writer::new(shared.clone(), options, receiver, sender.downgrade(), &recovered)?;
        let for_writer = shared.clone();
        let thread = thread::Builder::new()
            .name("datastore".to_owned())
            .spawn(move || run_writer(writer, &for_writer, lock))
            .map_err(|error| StorageError::Unavailable(Arc::new(error)))?;
        Ok(Self { shared, requests: Some(sender), writer: Mutex::new(Some(thread)) })
    }

    /// Finishes what waits, writes a checkpoint and lets go of the directory.
    pub async fn close(&self) -> Result<(), StorageError> {
        let (reply, answer) = oneshot::channel();
        let Some(requests) = &self.requests else { return Ok(()) };
        if requests.send(Request::Close { reply }).await.is_err() {
            return Ok(());
        }
        // No answer is one too: the writer is gone.
        let _ = answer.await;
        let thread = self.writer.lock().take();
        if let Some(thread) = thread {
            run_blocking(move || thread.join().map_err(|_| writer_ended())).await?;
        }
        Ok(())
    }

    /// Reads every value that is kept and checks it. For tests, tools and backups.
    ///
    /// # Errors
    /// `Corrupt` for the first that is damaged.
    pub async fn verify(&self) -> Result<(), StorageError> {
        let shared = self.shared.clone();
        run_blocking(move || {
            let mut after: Option<Arc<str>> = None;
            loop {
                let mut wanted = Vec::new();
                {
                    let state = shared.state.read();
                    for (key, versions) in state.index.versions_after(after.clone().as_deref()).take(list::SCAN_KEYS) {
                        for version in versions.iter() {
                            if let Some(location) = version.value {
                                wanted.push(state.wanted(key, version.revision, location)?);
                            }
                        }
                        after = Some(key.clone());
                    }
                }
                if wanted.is_empty() {
                    return Ok(());
                }
                for one in wanted {
                    one.read()?;
                }
            }
        })
        .await
    }

    fn check_open(&self) -> Result<(), StorageError> {
        if self.shared.closed.load(Ordering::Acquire) { Err(StorageError::Closed) } else { Ok(()) }
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StorageError>>) -> Request,
    ) -> Result<T, StorageError> {
        let (reply, answer) = oneshot::channel();
        let Some(requests) = &self.requests else { return Err(StorageError::Closed) };
        requests.send(request(reply)).await.map_err(|_| StorageError::Closed)?;
        answer.await.unwrap_or_else(|_| Err(StorageError::Unknown(Arc::new(writer_gone()))))
    }

    async fn write(
        &self,
        key: String,
        value: Option<Bytes>,
        precondition: Precondition,
    ) -> Result<WriteOutcome, StorageError> {
        check_limits(&key, value.as_ref().map_or(0, Bytes::len))?;
        match self.ask(|reply| Request::Write { key, value, precondition, reply }).await? {
            Written::Done(revision) => Ok(WriteOutcome::Done(revision)),
            Written::Failed(None) => Ok(WriteOutcome::Failed(None)),
            Written::Failed(Some(existing)) => Ok(WriteOutcome::Failed(Some(read_one(existing).await?))),
        }
    }
}

/// The lock is let go of only when nothing can be written any more. A writer that panics takes the store with it:
/// watchers must not wait for changes that nobody makes.
fn run_writer(writer: Writer, shared: &Shared, lock: Box<dyn Any + Send + Sync>) {
    if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
        tracing::error!("The writer of the datastore ended unexpectedly");
        shared.closed.store(true, Ordering::Release);
        shared.hub.close(&writer_ended());
    }
    drop(lock);
}

fn create(disk: &dyn Disk) -> Result<Recovered, StorageError> {
    let (number, salt) = (1, fresh_salt());
    let file =
        writer::create_segment(disk, number, salt, 0).map_err(|error| StorageError::Unavailable(Arc::new(error)))?;
    let mut state = State::empty();
    let start = Position { segment: number, offset: SEGMENT_HEADER as u64 };
    state.segments.insert(number, Segment { file, len: start.offset, live: 0 });
    state.end = start;
    Ok(Recovered { state, end: start, salt, sequence: 1, replay_from: start, checkpoint_bytes: 0, replayed_bytes: 0 })
}

/// A number that whoever writes values cannot know.
fn fresh_salt() -> u32 {
    RandomState::new().hash_one("segment") as u32
}

fn writer_ended() -> StorageError {
    StorageError::Unavailable(Arc::new(writer_gone()))
}

fn writer_gone() -> std::io::Error {
    std::io::Error::other("the writing thread ended unexpectedly")
}

impl Drop for EmbeddedStorage {
    fn drop(&mut self) {
        self.requests = None;
        // At most one batch and the end of a checkpoint; then the directory is free for the next.
        self.shared.closed.store(true, Ordering::Release);
        if let Some(thread) = self.writer.lock().take() {
            // A writer that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Storage for EmbeddedStorage {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<KeyValue>, Revision), StorageError>> {
        async move {
            self.check_open()?;
            let (wanted, revision) = {
                let state = self.shared.state.read();
                let found = state.index.get(key).map(|(revision, location)| state.wanted(key, revision, *location));
                (found.transpose()?, state.index.current())
            };
            match wanted {
                Some(wanted) => Ok((Some(read_one(wanted).await?), revision)),
                None => Ok((None, revision)),
            }
        }
        .boxed()
    }

    fn list(&self, range: ListRange) -> BoxFuture<'_, Result<Page, StorageError>> {
        async move {
            self.check_open()?;
            let shared = self.shared.clone();
            run_blocking(move || shared.list(&range)).await
        }
        .boxed()
    }

    fn put(
        &self,
        key: String,
        value: Bytes,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        self.write(key, Some(value), precondition).boxed()
    }

    fn delete(&self, key: String, unchanged: Revision) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        self.write(key, None, Precondition::Unchanged(unchanged)).boxed()
    }

    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<WatchStream, StorageError>> {
        let checked = self.check_open().and_then(|()| self.shared.state.read().index.check_readable(from));
        let stream = checked.map(|()| self.shared.hub.watch(prefix, from, self.shared.clone()));
        ready(stream).boxed()
    }

    fn request_progress(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        let checked = self.check_open();
        if checked.is_ok() {
            let state = self.shared.state.read();
            self.shared.hub.request_progress(state.index.current());
        }
        ready(checked).boxed()
    }

    fn current_revision(&self) -> BoxFuture<'_, Result<Revision, StorageError>> {
        let revision = self.check_open().map(|()| self.shared.state.read().index.current());
        ready(revision).boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StorageError>> {
        self.ask(move |reply| Request::Compact { revision, reply }).boxed()
    }

    fn size(&self) -> BoxFuture<'_, Result<Size, StorageError>> {
        let size = self.check_open().map(|()| {
            let state = self.shared.state.read();
            let checkpoint = self.shared.checkpoint_bytes.load(Ordering::Relaxed);
            Size { on_disk: state.bytes_on_disk() + checkpoint, in_use: state.bytes_live() + checkpoint }
        });
        ready(size).boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Self::close(self).boxed()
    }
}

impl State {
    fn empty() -> Self {
        Self { index: Index::default(), segments: std::collections::BTreeMap::new(), end: Position::default() }
    }

    fn wanted(&self, key: &str, revision: Revision, location: Location) -> Result<Wanted, StorageError> {
        match self.place(location) {
            Some(place) => Ok(Wanted { key: key.to_owned(), revision, place }),
            None => Err(StorageError::Corrupt { detail: format!("segment {} is missing", location.segment) }),
        }
    }
}

impl Shared {
    /// Finds what a watcher has missed, as much as fits one step, and says where that step ends.
    fn missed(&self, watcher: &Watcher, after: Revision) -> Result<(Vec<PastRecord>, Revision), StorageError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StorageError::Closed);
        }
        let state = self.state.read();
        let Replay { changes, mut through } = state.index.replay(watcher.prefix(), after, REPLAY_CHANGES)?;
        let mut found = Vec::with_capacity(changes.len());
        let mut bytes = 0;
        for past in changes {
            if bytes > REPLAY_BYTES {
                through = past.revision.before();
                break;
            }
            let record = PastRecord::new(&state, past)?;
            bytes += record.bytes();
            found.push(record);
        }
        if through == state.index.current() {
            watcher.caught_up();
        }
        Ok((found, through))
    }
}

/// A change found in history, with where its value lies.
struct PastRecord {
    key: Arc<str>,
    revision: Revision,
    value: Option<Wanted>,
}

impl PastRecord {
    fn new(state: &State, past: Past<Location>) -> Result<Self, StorageError> {
        let Past { key, revision, value } = past;
        let value = value.map(|location| state.wanted(&key, revision, location)).transpose()?;
        Ok(Self { key, revision, value })
    }

    fn bytes(&self) -> u64 {
        self.value.as_ref().map_or(0, |wanted| u64::from(wanted.place.location.len))
    }

    fn read(self) -> Result<Change, StorageError> {
        let kind = match self.value {
            Some(wanted) => ChangeKind::Put(wanted.read()?.value),
            None => ChangeKind::Delete,
        };
        Ok(Change { key: self.key.as_ref().to_owned(), revision: self.revision, kind })
    }
}

impl History for Shared {
    fn replay(
        self: Arc<Self>,
        watcher: Arc<Watcher>,
        after: Revision,
    ) -> BoxFuture<'static, Result<(Vec<Change>, Revision), StorageError>> {
        async move {
            let (found, through) = self.missed(&watcher, after)?;
            if found.is_empty() {
                return Ok((Vec::new(), through));
            }
            let changes = run_blocking(|| found.into_iter().map(PastRecord::read).collect()).await?;
            Ok((changes, through))
        }
        .boxed()
    }
}
