//! Watches over an in-process store: who wants which changes, and how each gets them.
//!
//! A watcher is *live* or *lagging*. The writer puts changes into the queue of a live watcher. A lagging one
//! (just begun, or its queue was full) reads history at its own pace until it has caught up. Nobody waits
//! for a watcher, and a slow one costs no more than a full queue.
//!
//! **Invariant:** changes are applied to the index and given to the watchers under one write lock of the
//! index, and a watcher becomes live under its read lock. So the changes in its queue begin right after the
//! last one it read from history.
//! **Invariant:** everything in the queue of a live watcher is after everything that was delivered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::{Change, ChangeKind, Revision, StorageError, WatchItem, WatchStream};

/// A queue longer than this many changes, or bytes of values, makes its watcher lag.
const QUEUE_CHANGES: usize = 8 * 1024;
const QUEUE_BYTES: usize = 16 * 1024 * 1024;

/// Where a lagging watcher reads.
pub(crate) trait History: Send + Sync + 'static {
    /// A part of the changes after `after` for `watcher`, and how far it reaches. When that is the newest
    /// revision, calls `Watcher::caught_up` under the lock it read under.
    fn replay(
        self: Arc<Self>,
        watcher: Arc<Watcher>,
        after: Revision,
    ) -> BoxFuture<'static, Result<(Vec<Change>, Revision), StorageError>>;
}

#[derive(Debug)]
pub(crate) struct Watcher {
    prefix: String,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    live: bool,
    was_live: bool,
    queue: VecDeque<Change>,
    queued_bytes: usize,
    /// Where to go on when lagging, if that is later than what was delivered: nothing for this watcher
    /// happened in between.
    resume: Revision,
    progress: Option<Revision>,
    end: Option<StorageError>,
}

impl Watcher {
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// From now on the writer fills the queue. See the invariants for when this may be called.
    pub(crate) fn caught_up(&self) {
        let mut state = self.state.lock();
        state.live = true;
        state.was_live = true;
    }

    fn push(&self, change: &Change) {
        let mut state = self.state.lock();
        if !state.live {
            return;
        }
        let bytes = size_of_change(change);
        if state.queue.len() >= QUEUE_CHANGES || state.queued_bytes + bytes > QUEUE_BYTES {
            let first = state.queue.front().map_or(change.revision, |first| first.revision);
            state.resume = first.before();
            state.queue = VecDeque::new();
            state.queued_bytes = 0;
            state.live = false;
        } else {
            state.queue.push_back(change.clone());
            state.queued_bytes += bytes;
        }
        drop(state);
        self.wake.notify_one();
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.wake.notify_one();
    }
}

fn size_of_change(change: &Change) -> usize {
    let value = match &change.kind {
        ChangeKind::Put(value) => value.len(),
        ChangeKind::Delete => 0,
    };
    value + change.key.len()
}

/// The watchers of one prefix, by id.
type Group = Vec<(u64, Arc<Watcher>)>;

/// All watchers of a store.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    by_prefix: RwLock<BTreeMap<String, Group>>,
    next_id: AtomicU64,
}

impl Hub {
    /// Whether anyone watches `key`.
    pub(crate) fn is_watched(&self, key: &str) -> bool {
        self.by_prefix.read().keys().any(|prefix| key.starts_with(prefix.as_str()))
    }

    /// Gives a change to those who want it. The caller holds the write lock of the index.
    pub(crate) fn publish(&self, change: &Change) {
        for (prefix, watchers) in self.by_prefix.read().iter() {
            if change.key.starts_with(prefix.as_str()) {
                watchers.iter().for_each(|(_, watcher)| watcher.push(change));
            }
        }
    }

    /// Asks all watchers to report. The caller holds a lock of the index, whose newest revision is `current`.
    pub(crate) fn request_progress(&self, current: Revision) {
        self.for_each(|watcher| watcher.tell(|state| state.progress = Some(current)));
    }

    /// Ends all watches.
    pub(crate) fn close(&self, error: &StorageError) {
        self.for_each(|watcher| watcher.tell(|state| state.end = Some(error.clone())));
    }

    fn for_each(&self, visit: impl Fn(&Watcher)) {
        self.by_prefix.read().values().flatten().for_each(|(_, watcher)| visit(watcher));
    }

    /// A watch of the changes after `from`. The caller has checked that the history has them.
    pub(crate) fn watch(self: &Arc<Self>, prefix: String, from: Revision, history: Arc<dyn History>) -> WatchStream {
        let watcher = Arc::new(Watcher { prefix: prefix.clone(), state: Mutex::default(), wake: Notify::new() });
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.by_prefix.write().entry(prefix).or_default().push((id, watcher.clone()));
        let cursor = Cursor { hub: self.clone(), id, watcher, history, delivered: from, ended: false };
        stream::unfold(cursor, |mut cursor| async move {
            if cursor.ended {
                return None;
            }
            let item = cursor.next().await;
            cursor.ended = item.is_err();
            Some((item, cursor))
        })
        .boxed()
    }
}

/// The reading end of a watch. Leaves the hub when it is dropped.
struct Cursor {
    hub: Arc<Hub>,
    id: u64,
    watcher: Arc<Watcher>,
    history: Arc<dyn History>,
    delivered: Revision,
    ended: bool,
}

enum Step {
    Deliver(WatchItem),
    Replay { was_live: bool },
    Wait,
}

impl Cursor {
    async fn next(&mut self) -> Result<WatchItem, StorageError> {
        loop {
            match self.step()? {
                Step::Deliver(item) => return Ok(item),
                Step::Wait => self.watcher.wake.notified().await,
                Step::Replay { was_live } => {
                    let replayed = self.history.clone().replay(self.watcher.clone(), self.delivered).await;
                    let (changes, through) = replayed.map_err(|error| match error {
                        StorageError::Compacted { .. } if was_live => StorageError::SlowWatcher,
                        other => other,
                    })?;
                    self.delivered = through;
                    if !changes.is_empty() {
                        return Ok(WatchItem::Changes(changes));
                    }
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step, StorageError> {
        let mut state = self.watcher.state.lock();
        if let Some(error) = state.end.take() {
            return Err(error);
        }
        if !state.live {
            self.delivered = self.delivered.max(state.resume);
            return Ok(Step::Replay { was_live: state.was_live });
        }
        if !state.queue.is_empty() {
            state.queued_bytes = 0;
            let changes = Vec::from(std::mem::take(&mut state.queue));
            self.delivered = changes.last().map_or(self.delivered, |last| last.revision);
            return Ok(Step::Deliver(WatchItem::Changes(changes)));
        }
        if let Some(revision) = state.progress.take() {
            self.delivered = self.delivered.max(revision);
            return Ok(Step::Deliver(WatchItem::Progress(self.delivered)));
        }
        Ok(Step::Wait)
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let mut by_prefix = self.hub.by_prefix.write();
        if let Some(watchers) = by_prefix.get_mut(self.watcher.prefix()) {
            watchers.retain(|(id, _)| *id != self.id);
            if watchers.is_empty() {
                by_prefix.remove(self.watcher.prefix());
            }
        }
    }
}
