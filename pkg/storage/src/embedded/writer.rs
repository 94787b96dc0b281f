//! The one writer of an embedded store: a thread that turns waiting requests into one durable batch.
//!
//! Inputs: requests from a bounded queue. Outputs: batches in the log; the index, the watchers and the replies
//! after each batch is durable.
//!
//! One round: take what waits, check preconditions, fill a batch, write it, sync it, apply it, answer. What
//! arrives meanwhile is the next round. Between rounds, and beside them in proportion to what was written, the
//! thread does a bounded piece of housekeeping, so that space is reclaimed at least as fast as it is used.
//!
//! **Invariant:** nothing is answered with success, applied or published before its batch is durable.
//! **Invariant:** after a failed sync the segment is never written again: its pages may be in any state. The
//! next segment's header says where it ended, which voids what was not acknowledged.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::EmbeddedOptions;
use super::cleaner::{Cleaner, Relocation};
use super::disk::{Disk, DiskFile};
use super::format::{Batch, Location, Position, RecordKind, SEGMENT_HEADER, SegmentHeader};
use super::housekeeping::Checkpointer;
use super::read::Wanted;
use super::recovery::Recovered;
use super::state::{Segment, Shared, State, segment_name};
use crate::{Change, ChangeKind, Precondition, Revision, StorageError};

/// A batch takes requests until it has this many bytes, or this many of them.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
const BATCH_REQUESTS: usize = 1024;
/// The buffer of a batch is kept up to this size.
const KEEP_BYTES: usize = 256 * 1024;
/// Changes that are dropped from history per round, at least.
const DROP_BUDGET: usize = 4 * 1024;
/// Bytes that the cleaner moves per round, beside twice what was written.
const CLEAN_BYTES: usize = 256 * 1024;

#[derive(Debug)]
pub(crate) enum Request {
    Write {
        key: String,
        /// `None` deletes.
        value: Option<Bytes>,
        precondition: Precondition,
        reply: oneshot::Sender<Result<Written, StorageError>>,
    },
    Compact {
        revision: Revision,
        reply: oneshot::Sender<Result<(), StorageError>>,
    },
    /// A checkpoint has ended.
    Checkpointed,
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// The outcome of a write, before the value that stood in its way is read.
#[derive(Debug)]
pub(crate) enum Written {
    Done(Revision),
    Failed(Option<Wanted>),
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    options: EmbeddedOptions,
    requests: mpsc::Receiver<Request>,
    log: Log,
    batch: Batch,
    round: Round,
    cleaner: Cleaner,
    checkpointer: Checkpointer,
    /// Set for good when the disk failed: what was acknowledged can be read, nothing more is written.
    failed: Option<StorageError>,
}

/// The newest segment.
struct Log {
    number: u32,
    file: Arc<dyn DiskFile>,
    salt: u32,
    /// Where the next batch goes.
    end: u64,
    sequence: u64,
    /// What lies after `end` is not known, so nothing may be written there.
    dirty: bool,
}

/// What the batch that is being filled will change.
#[derive(Default)]
struct Round {
    entries: Vec<Entry>,
    /// The last entry of each key.
    pending: HashMap<Arc<str>, usize>,
    relocations: Vec<Relocation>,
    compact: Option<Revision>,
    /// Why nothing can be written in this round.
    refusal: Option<StorageError>,
    /// Bytes on disk when it began.
    used_bytes: u64,
    replies: Vec<Reply>,
    close: Option<oneshot::Sender<()>>,
}

struct Entry {
    key: Arc<str>,
    revision: Revision,
    value: Option<Bytes>,
    location: Option<Location>,
}

enum Reply {
    Write(oneshot::Sender<Result<Written, StorageError>>, Outcome),
    Compact(oneshot::Sender<Result<(), StorageError>>),
}

enum Outcome {
    Done(Revision),
    Failed { key: String, existing: Option<(Revision, Location)> },
    Refused(StorageError),
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        options: EmbeddedOptions,
        requests: mpsc::Receiver<Request>,
        sender: mpsc::WeakSender<Request>,
        recovered: &Recovered,
    ) -> Result<Self, StorageError> {
        let end = recovered.end;
        let Some(file) = shared.state.read().segments.get(&end.segment).map(|segment| segment.file.clone()) else {
            return Err(StorageError::Corrupt { detail: "the newest segment is missing".to_owned() });
        };
        let log = Log {
            number: end.segment,
            file,
            salt: recovered.salt,
            end: end.offset,
            sequence: recovered.sequence,
            dirty: false,
        };
        Ok(Self {
            checkpointer: Checkpointer::new(shared.clone(), sender, options.clone(), recovered),
            cleaner: Cleaner::default(),
            shared,
            options,
            requests,
            log,
            batch: Batch::default(),
            round: Round::default(),
            failed: None,
        })
    }

    /// Runs until the store is closed or dropped.
    pub(crate) fn run(mut self) {
        loop {
            let first = if self.has_work() {
                match self.requests.try_recv() {
                    Ok(request) => Some(request),
                    Err(mpsc::error::TryRecvError::Empty) => None,
                    Err(mpsc::error::TryRecvError::Disconnected) => break,
                }
            } else {
                match self.requests.blocking_recv() {
                    Some(request) => Some(request),
                    None => break,
                }
            };
            let idle = first.is_none();
            self.prepare();
            self.collect(first);
            self.plan_housekeeping(idle);
            self.commit();
            self.housekeeping();
            if let Some(reply) = self.round.close.take() {
                self.close(reply);
                return;
            }
        }
        self.end();
    }

    fn has_work(&self) -> bool {
        if self.failed.is_some() || self.log.dirty {
            return false;
        }
        if self.checkpointer.has_work() {
            return true;
        }
        let state = self.shared.state.read();
        state.index.has_droppable()
            || state.index.excess(self.options.history_changes).is_some()
            || self.cleaner.has_work(&state, self.log.number, &self.options)
    }

    /// Begins a round: the batch must know where it will lie.
    fn prepare(&mut self) {
        let (used, live) = {
            let state = self.shared.state.read();
            (state.bytes_on_disk(), state.bytes_live())
        };
        self.round.used_bytes = used;
        self.round.refusal = self.failed.clone();
        let full = self.log.end >= self.options.segment_target(live);
        if self.failed.is_none() && (full || self.log.dirty) {
            self.round.refusal = self.log.roll_over(&self.shared).err().map(|error| self.refuse(error));
        }
    }

    /// What writers are told after `error`, which is remembered if it is no passing one.
    fn refuse(&mut self, error: io::Error) -> StorageError {
        let (is_full, source) = (is_full(&error), Arc::new(error));
        if is_full {
            tracing::warn!(error = %source, "The disk of the datastore is full");
            return StorageError::Full(Some(source));
        }
        tracing::error!(error = %source, "The disk of the datastore failed, it is read-only from now on");
        let error = StorageError::Unavailable(source);
        self.failed = Some(error.clone());
        error
    }

    /// Fills the batch with what waits.
    fn collect(&mut self, first: Option<Request>) {
        let mut next = first;
        let mut taken = 0;
        while let Some(request) = next {
            match request {
                Request::Write { key, value, precondition, reply } => self.add_write(key, value, precondition, reply),
                Request::Compact { revision, reply } => self.add_compact(revision, reply),
                Request::Checkpointed => self.checkpointer.ended(),
                Request::Close { reply } => {
                    self.round.close = Some(reply);
                    break;
                }
            }
            taken += 1;
            let full = self.batch.len() >= BATCH_BYTES || taken >= BATCH_REQUESTS;
            next = if full { None } else { self.requests.try_recv().ok() };
        }
    }

    fn add_write(
        &mut self,
        key: String,
        value: Option<Bytes>,
        precondition: Precondition,
        reply: oneshot::Sender<Result<Written, StorageError>>,
    ) {
        let (existing, newest) = {
            let state = self.shared.state.read();
            let existing = match self.round.pending.get(key.as_str()).and_then(|at| self.round.entries.get(*at)) {
                Some(entry) => entry.location.map(|location| (entry.revision, location)),
                None => state.index.get(&key).map(|(revision, location)| (revision, *location)),
            };
            (existing, self.round.entries.last().map_or(state.index.current(), |last| last.revision))
        };
        if !precondition.holds(existing.map(|(revision, _)| revision)) {
            self.round.replies.push(Reply::Write(reply, Outcome::Failed { key, existing }));
            return;
        }
        if let Some(error) = self.round.refusal.clone().or_else(|| self.over_quota(&key, value.as_ref())) {
            self.round.replies.push(Reply::Write(reply, Outcome::Refused(error)));
            return;
        }
        let revision = newest.next();
        let kind = if value.is_some() { RecordKind::Put } else { RecordKind::Delete };
        let range = self.batch.add(kind, revision, &key, value.as_deref().unwrap_or_default());
        let location = value.is_some().then(|| self.log.location(&range));
        let key: Arc<str> = key.into();
        self.round.pending.insert(key.clone(), self.round.entries.len());
        self.round.entries.push(Entry { key, revision, value, location });
        self.round.replies.push(Reply::Write(reply, Outcome::Done(revision)));
    }

    /// Deletions are always let through: they are how space comes back.
    fn over_quota(&self, key: &str, value: Option<&Bytes>) -> Option<StorageError> {
        let adds = key.len() + value?.len();
        let used = self.round.used_bytes + (self.batch.len() + adds) as u64;
        (used > self.options.quota_bytes).then_some(StorageError::Full(None))
    }

    fn add_compact(&mut self, revision: Revision, reply: oneshot::Sender<Result<(), StorageError>>) {
        let state = self.shared.state.read();
        let (current, compacted) = (state.index.current(), state.index.compacted());
        drop(state);
        let answer = if revision > current {
            Err(StorageError::FutureRevision { requested: revision, current })
        } else if revision <= compacted {
            Ok(())
        } else if let Some(error) = self.round.refusal.clone() {
            Err(error)
        } else {
            self.plan_compact(revision);
            self.round.replies.push(Reply::Compact(reply));
            return;
        };
        let _ = reply.send(answer);
    }

    fn plan_compact(&mut self, revision: Revision) {
        self.round.compact = self.round.compact.max(Some(revision));
        self.batch.add(RecordKind::Compact, revision, "", &[]);
    }

    /// Adds to the batch what keeps history and space bounded.
    fn plan_housekeeping(&mut self, idle: bool) {
        if self.round.refusal.is_some() {
            return;
        }
        let excess = self.shared.state.read().index.excess(self.options.history_changes);
        if let Some(revision) = excess {
            self.plan_compact(revision);
        }
        if !idle && self.batch.is_empty() {
            // Only reads of what is there: nobody should pay for them with a sync.
            return;
        }
        let budget = 2 * self.batch.len() + CLEAN_BYTES;
        let log = &self.log;
        let batch = &mut self.batch;
        let planned =
            self.cleaner.plan(&self.shared, self.log.number, &self.options, budget, |revision, key, value| {
                log.location(&batch.add(RecordKind::Move, revision, key, value))
            });
        self.round.relocations = planned;
    }

    /// Makes the batch durable and visible, then answers.
    fn commit(&mut self) {
        if self.batch.is_empty() {
            self.answer();
            return;
        }
        let bytes = self.batch.len();
        match self.log.append(&mut self.batch) {
            Ok(()) => {
                self.apply();
                self.checkpointer.appended(bytes as u64);
                self.answer();
            }
            Err(failure) => self.fail(failure),
        }
        self.batch.clear(KEEP_BYTES);
    }

    fn apply(&mut self) {
        let changes = self.changes();
        let mut state = self.shared.state.write();
        state.end = Position { segment: self.log.number, offset: self.log.end };
        if let Some(segment) = state.segments.get_mut(&self.log.number) {
            segment.len = self.log.end;
        }
        let entries = std::mem::take(&mut self.round.entries);
        let drop_budget = DROP_BUDGET.max(entries.len() * 4);
        self.round.pending.clear();
        for entry in entries {
            state.index.apply(entry.key, entry.revision, entry.location);
            if let Some(location) = entry.location {
                state.add_live(location);
            }
        }
        for moved in self.round.relocations.drain(..) {
            moved.apply(&mut state);
        }
        if let Some(revision) = self.round.compact.take() {
            // The revision was checked when the record was planned.
            let _ = state.index.compact(revision);
        }
        drop_history(&mut state, drop_budget);
        for change in &changes {
            self.shared.hub.publish(change);
        }
    }

    /// The changes of this round that someone watches.
    fn changes(&self) -> Vec<Change> {
        let watched = self.round.entries.iter().filter(|entry| self.shared.hub.is_watched(&entry.key));
        watched
            .map(|entry| Change {
                key: entry.key.as_ref().to_owned(),
                revision: entry.revision,
                kind: entry.value.clone().map_or(ChangeKind::Delete, ChangeKind::Put),
            })
            .collect()
    }

    fn answer(&mut self) {
        let state = self.shared.state.read();
        for reply in self.round.replies.drain(..) {
            // Whoever asked may be gone. What was written stays.
            match reply {
                Reply::Write(reply, Outcome::Done(revision)) => {
                    let _ = reply.send(Ok(Written::Done(revision)));
                }
                Reply::Write(reply, Outcome::Failed { key, existing }) => {
                    let existing = existing.map(|(revision, location)| state.wanted(&key, revision, location));
                    let _ = reply.send(existing.transpose().map(Written::Failed));
                }
                Reply::Write(reply, Outcome::Refused(error)) => {
                    let _ = reply.send(Err(error));
                }
                Reply::Compact(reply) => {
                    let _ = reply.send(Ok(()));
                }
            }
        }
    }

    fn fail(&mut self, failure: AppendError) {
        let AppendError { error, written } = failure;
        let source = Arc::new(io::Error::new(error.kind(), error.to_string()));
        let refused = self.refuse(error);
        self.give_up(&if written { StorageError::Unknown(source) } else { refused });
    }

    /// Forgets the round and answers everyone in it with `error`.
    fn give_up(&mut self, error: &StorageError) {
        let close = self.round.close.take();
        for reply in std::mem::take(&mut self.round).replies {
            match reply {
                Reply::Write(reply, _) => {
                    let _ = reply.send(Err(error.clone()));
                }
                Reply::Compact(reply) => {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
        self.round.close = close;
        self.batch.clear(KEEP_BYTES);
        self.cleaner.restart();
    }

    fn housekeeping(&mut self) {
        let has_droppable = self.shared.state.read().index.has_droppable();
        if has_droppable {
            drop_history(&mut self.shared.state.write(), DROP_BUDGET);
        }
        if self.failed.is_none() {
            let next = Position { segment: self.log.number, offset: self.log.end };
            self.checkpointer.run(next, self.log.sequence);
        }
    }

    fn close(mut self, reply: oneshot::Sender<()>) {
        let next = Position { segment: self.log.number, offset: self.log.end };
        if self.failed.is_none() && !self.log.dirty {
            self.checkpointer.finish(next, self.log.sequence);
        }
        self.end();
        let _ = reply.send(());
    }

    /// Refuses what still waits and ends the watches.
    fn end(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.checkpointer.wait();
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            match request {
                Request::Write { reply, .. } => drop(reply.send(Err(StorageError::Closed))),
                Request::Compact { reply, .. } => drop(reply.send(Err(StorageError::Closed))),
                Request::Close { reply } => drop(reply.send(())),
                Request::Checkpointed => {}
            }
        }
        self.shared.hub.close(&StorageError::Closed);
    }
}

fn drop_history(state: &mut State, budget: usize) {
    let (dropped, _) = state.index.drop_history(budget);
    for location in dropped {
        state.remove_live(location);
    }
}

/// Why a batch is not durable.
struct AppendError {
    error: io::Error,
    /// Whether all of it was written, so that it may be found after a crash.
    written: bool,
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Log {
    /// Where a record lies that has this place in the batch.
    fn location(&self, range: &std::ops::Range<usize>) -> Location {
        Location { segment: self.number, offset: self.end as u32 + range.start as u32, len: range.len() as u32 }
    }

    /// Goes on in a new segment.
    fn roll_over(&mut self, shared: &Shared) -> io::Result<()> {
        // Should this fail halfway, the new header may be found after a crash, and would void what were
        // written here after it.
        self.dirty = true;
        let number = self.number + 1;
        let salt = super::fresh_salt();
        let file = create_segment(&*shared.disk, number, salt, self.end)?;
        let end = SEGMENT_HEADER as u64;
        let mut state = shared.state.write();
        state.segments.insert(number, Segment { file: file.clone(), len: end, live: 0 });
        state.end = Position { segment: number, offset: end };
        *self = Self { number, file, salt, end, sequence: self.sequence, dirty: false };
        Ok(())
    }

    fn append(&mut self, batch: &mut Batch) -> Result<(), AppendError> {
        let bytes = batch.seal(self.sequence, self.salt);
        if let Err(error) = self.file.write_at(bytes, self.end) {
            // Half a batch is no batch, and it makes room for others to go away.
            self.dirty = self.file.truncate(self.end).is_err();
            return Err(AppendError { error, written: false });
        }
        if let Err(error) = self.file.sync() {
            self.dirty = true;
            return Err(AppendError { error, written: true });
        }
        self.end += bytes.len() as u64;
        self.sequence += 1;
        Ok(())
    }
}

/// Makes a segment that goes on where `previous_end` of the one before it is; durable, with its name.
pub(crate) fn create_segment(
    disk: &dyn Disk,
    number: u32,
    salt: u32,
    previous_end: u64,
) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.create(&segment_name(number))?;
    file.write_at(&SegmentHeader { number, salt, previous_end }.encode(), 0)?;
    file.sync()?;
    disk.sync_directory()?;
    Ok(file)
}
