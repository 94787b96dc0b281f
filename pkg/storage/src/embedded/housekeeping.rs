//! When checkpoints are made and when segments go away.
//!
//! A checkpoint is made by a thread of its own, beside the writer, once the log after the last one is long
//! enough that opening would be slow, or once segments wait for it to be removed.
//!
//! **Invariant:** a segment goes away only when the index names nothing in it and replay does not begin in it
//! or before it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

use super::EmbeddedOptions;
use super::checkpoint::{self, Mark};
use super::format::Position;
use super::recovery::Recovered;
use super::state::{Shared, segment_name};
use super::writer::Request;

/// Segments removed per round; removing a large file takes the file system a while.
const REMOVALS: usize = 2;

pub(crate) struct Checkpointer {
    shared: Arc<Shared>,
    requests: mpsc::WeakSender<Request>,
    options: EmbeddedOptions,
    replay_from: Position,
    /// Bytes of log after `replay_from`, or after the running checkpoint's.
    since: u64,
    /// Nothing is begun before there are this many, after one has failed.
    not_before: u64,
    running: Option<(JoinHandle<io::Result<Option<u64>>>, Position)>,
}

impl Checkpointer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        requests: mpsc::WeakSender<Request>,
        options: EmbeddedOptions,
        recovered: &Recovered,
    ) -> Self {
        let (replay_from, since) = (recovered.replay_from, recovered.replayed_bytes);
        Self { shared, requests, options, replay_from, since, not_before: 0, running: None }
    }

    pub(crate) fn appended(&mut self, bytes: u64) {
        self.since += bytes;
    }

    /// Removes what can go, and begins a checkpoint at `next` if one is due.
    pub(crate) fn run(&mut self, next: Position, sequence: u64) {
        self.remove_free();
        if self.running.is_some() || self.since == 0 || !self.is_due() {
            return;
        }
        let mark = self.mark(next, sequence);
        if self.shared.disk.is_serial() {
            self.since = 0;
            let written = checkpoint::write(&self.shared, mark);
            self.take(written, next);
            return;
        }
        let (shared, requests) = (self.shared.clone(), self.requests.clone());
        let spawned = thread::Builder::new().name("datastore-checkpoint".to_owned()).spawn(move || {
            let written = checkpoint::write(&shared, mark);
            if let Some(requests) = requests.upgrade() {
                // A writer that is gone joins this thread itself.
                let _ = requests.blocking_send(Request::Checkpointed);
            }
            written
        });
        match spawned {
            Ok(thread) => {
                self.running = Some((thread, next));
                self.since = 0;
                self.not_before = 0;
            }
            Err(error) => self.failed(&error),
        }
    }

    fn is_due(&self) -> bool {
        let state = self.shared.state.read();
        let segment = self.options.segment_target(state.bytes_live());
        let interval = (2 * segment).max(4 * self.shared.checkpoint_bytes.load(Ordering::Relaxed));
        let waiting: u64 = state
            .segments
            .range(self.replay_from.segment..state.end.segment)
            .filter(|(_, free)| free.live == 0)
            .map(|(_, free)| free.len)
            .sum();
        self.since >= self.not_before && (self.since >= interval || waiting >= 2 * segment)
    }

    fn mark(&self, next: Position, sequence: u64) -> Mark {
        let state = self.shared.state.read();
        Mark { replay_from: next, sequence, revision: state.index.current(), compacted: state.index.compacted() }
    }

    /// Takes the result of the checkpoint that has said it ended.
    pub(crate) fn ended(&mut self) {
        let Some((thread, replay_from)) = self.running.take() else { return };
        let written = thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended unexpectedly")));
        self.take(written, replay_from);
    }

    fn take(&mut self, written: io::Result<Option<u64>>, replay_from: Position) {
        match written {
            Ok(Some(bytes)) => {
                self.shared.checkpoint_bytes.store(bytes, Ordering::Relaxed);
                self.replay_from = replay_from;
            }
            Ok(None) => {}
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &io::Error) {
        tracing::warn!(%error, "Could not write a checkpoint of the datastore; trying again later");
        let segment = self.options.segment_target(self.shared.state.read().bytes_live());
        self.not_before = self.since + segment / 4;
    }

    /// Waits for the checkpoint that is being made.
    pub(crate) fn wait(&mut self) {
        self.ended();
    }

    /// Leaves a checkpoint behind that covers everything, if there is room for it. It only saves time.
    pub(crate) fn finish(&mut self, next: Position, sequence: u64) {
        self.wait();
        if self.since > 0 || self.not_before > 0 {
            let written = checkpoint::write(&self.shared, self.mark(next, sequence));
            self.take(written, next);
        }
    }

    fn remove_free(&self) {
        let free: Vec<u32> = {
            let state = self.shared.state.read();
            let before = state.segments.range(..self.replay_from.segment);
            before.filter(|(_, segment)| segment.live == 0).map(|(number, _)| *number).take(REMOVALS).collect()
        };
        for number in free {
            self.shared.state.write().segments.remove(&number);
            // One that stays, or comes back after a crash, is removed at the next opening.
            if let Err(error) = self.shared.disk.remove(&segment_name(number)) {
                tracing::warn!(segment = number, %error, "Could not remove a segment of the datastore");
            }
        }
    }

    /// Whether segments can be removed at once.
    pub(crate) fn has_work(&self) -> bool {
        let state = self.shared.state.read();
        let mut before = state.segments.range(..self.replay_from.segment);
        before.any(|(_, segment)| segment.live == 0)
    }
}
