//! Recent history and the watchers of one resource.
//!
//! A watcher that selects one namespace, one object or one value of a field is in a group of its own
//! kind, so an event costs only the watchers that may want it. For each of those it costs a check of the
//! selection, one reference count and one push.
//!
//! Behaves as `apiserver/pkg/storage/cacher/{cacher,cache_watcher}.go`, v1.36.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::StoredObject;
use rkube_apimachinery::key::ObjectKey;

use super::at_revision;
use crate::selector::Filter;
use crate::store::watch::WatchEvent;

/// A watcher this far behind is closed; it may begin again from the last version it saw.
const QUEUE_EVENTS_MAX: usize = 16 * 1024;

/// One change of one object.
pub(crate) struct Event {
    pub(crate) revision: u64,
    kind: EventKind,
    /// The object after the change; for a deletion the last state, at the revision of the deletion.
    object: Arc<StoredObject>,
    previous: Option<Arc<StoredObject>>,
    /// `previous` at `revision`, for watchers whose selection the object left.
    left: OnceLock<Option<Arc<StoredObject>>>,
    at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    Added,
    Modified,
    Deleted,
}

impl Event {
    pub(crate) fn new(
        revision: u64,
        kind: EventKind,
        object: Arc<StoredObject>,
        previous: Option<Arc<StoredObject>>,
        at: Duration,
    ) -> Self {
        Self { revision, kind, object, previous, left: OnceLock::new(), at }
    }

    /// What a watcher with this filter is told, if anything. An object that leaves the selection is
    /// deleted to the watcher, one that enters it is added.
    pub(crate) fn seen_through(&self, filter: &Filter) -> Option<WatchEvent> {
        let before = self.previous.as_ref().is_some_and(|previous| filter.matches(previous));
        if self.kind == EventKind::Deleted {
            return before.then(|| WatchEvent::Deleted(self.object.clone()));
        }
        match (before, filter.matches(&self.object)) {
            (true, true) => Some(WatchEvent::Modified(self.object.clone())),
            (false, true) => Some(WatchEvent::Added(self.object.clone())),
            (true, false) => {
                let left = self.left.get_or_init(|| at_revision(self.previous.as_ref()?, self.revision));
                left.clone().map(WatchEvent::Deleted)
            }
            (false, false) => None,
        }
    }

    /// Lets go of decoded forms that nobody uses. Whether there are any left.
    pub(crate) fn forget_unused(&self) -> bool {
        let previous = self.previous.as_ref().is_some_and(|previous| previous.forget_unused());
        self.object.forget_unused() | previous
    }

    /// What is kept for this event. The state before may be kept for the event before as well; then it counts twice.
    fn bytes(&self) -> usize {
        let object = |object: &Arc<StoredObject>| size_of::<StoredObject>() + object.json.len();
        size_of::<Self>() + object(&self.object) + self.previous.as_ref().map_or(0, object)
    }
}

/// So much history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl Amount {
    /// Whether history is not more than this.
    pub(crate) fn holds(self, history: &[Arc<Event>]) -> bool {
        history.len() <= self.events && history.iter().map(|event| event.bytes()).sum::<usize>() <= self.bytes
    }
}

/// One watcher, as the cache sees it.
pub(crate) struct Subscription {
    filter: Filter,
    /// Events up to this revision are not for this watcher.
    after: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<WatchEvent>,
    closed: bool,
    waker: Option<Waker>,
}

impl Subscription {
    pub(crate) fn new(filter: Filter) -> Arc<Self> {
        Arc::new(Self { filter, after: AtomicU64::new(0), queue: Mutex::default() })
    }

    pub(crate) fn filter(&self) -> &Filter {
        &self.filter
    }

    pub(crate) fn start_after(&self, revision: u64) {
        self.after.store(revision, Ordering::Relaxed);
    }

    pub(crate) fn after(&self) -> u64 {
        self.after.load(Ordering::Relaxed)
    }

    fn offer(&self, event: &Event) -> Offered {
        if event.revision <= self.after() {
            return Offered::Unwanted;
        }
        let Some(seen) = event.seen_through(&self.filter) else {
            return Offered::Unwanted;
        };
        let mut offered = Offered::Queued;
        let waker = {
            let mut queue = self.queue.lock();
            if queue.closed {
                return Offered::Unwanted;
            }
            if queue.events.len() == QUEUE_EVENTS_MAX {
                tracing::debug!(revision = event.revision, "Closed a watch that was too slow");
                queue.closed = true;
                offered = Offered::Closed;
            } else {
                queue.events.push_back(seen);
            }
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        offered
    }

    fn close(&self) {
        let waker = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves all queued events to `into`. `Ready(false)`: closed and empty.
    pub(crate) fn poll_drain(&self, context: &mut Context<'_>, into: &mut Vec<WatchEvent>) -> Poll<bool> {
        let mut queue = self.queue.lock();
        if !queue.events.is_empty() {
            into.extend(queue.events.drain(..));
            // A burst must not hold its memory for as long as the watch lives.
            if queue.events.capacity() > 1024 {
                queue.events = VecDeque::new();
            }
            return Poll::Ready(true);
        }
        if queue.closed {
            return Poll::Ready(false);
        }
        match &mut queue.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().events.is_empty()
    }
}

type Group = Vec<Arc<Subscription>>;

enum Offered {
    Unwanted,
    Queued,
    /// The queue was full.
    Closed,
}

/// What became of events, over all watchers.
#[derive(Clone, Copy, Default)]
struct Tally {
    queued: u64,
    closed: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Dispatch {
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    /// The newest revision of which history is not complete.
    floor: u64,
    tally: Tally,
    all: Group,
    by_namespace: HashMap<Arc<str>, Group>,
    by_key: HashMap<ObjectKey, Group>,
    /// By the index of a selectable field, then by its value.
    by_field: HashMap<usize, HashMap<String, Group>>,
}

impl Dispatch {
    pub(crate) fn publish(&mut self, event: Arc<Event>) {
        let key = &event.object.key;
        let tally = &mut self.tally;
        tally.offer(Some(&self.all), &event);
        tally.offer(self.by_namespace.get(&key.namespace), &event);
        if !self.by_key.is_empty() {
            tally.offer(self.by_key.get(key), &event);
        }
        for (index, groups) in &self.by_field {
            let now = event.object.selection.fields.get(*index);
            let before = event.previous.as_ref().and_then(|previous| previous.selection.fields.get(*index));
            tally.offer(now.and_then(|value| groups.get(value)), &event);
            if before != now {
                tally.offer(before.and_then(|value| groups.get(value)), &event);
            }
        }
        self.history_bytes += event.bytes();
        self.history.push_back(event);
    }

    /// Forgets history over `max`, and history before `oldest` over `min`.
    pub(crate) fn forget(&mut self, oldest: Duration, min: Amount, max: Amount) {
        while let Some(first) = self.history.front() {
            let limit = if first.at < oldest { min } else { max };
            if self.history.len() <= limit.events && self.history_bytes <= limit.bytes {
                break;
            }
            self.floor = first.revision;
            self.history_bytes -= first.bytes();
            self.history.pop_front();
        }
        // A burst must not hold its memory for as long as the resource lives.
        if self.history.len() * 4 < self.history.capacity() && self.history.capacity() > 256 {
            self.history.shrink_to(self.history.len() * 2);
        }
    }

    pub(crate) fn history(&self) -> impl Iterator<Item = &Arc<Event>> {
        self.history.iter()
    }

    /// What happened after `revision`, or the oldest revision that can be asked for.
    pub(crate) fn since(&self, revision: u64) -> Result<Vec<Arc<Event>>, u64> {
        if revision < self.floor {
            return Err(self.floor);
        }
        let from = self.history.partition_point(|event| event.revision <= revision);
        Ok(self.history.range(from..).cloned().collect())
    }

    pub(crate) fn add(&mut self, subscription: Arc<Subscription>) {
        self.group(&subscription).push(subscription);
    }

    pub(crate) fn remove(&mut self, subscription: &Arc<Subscription>) {
        let group = self.group(subscription);
        if let Some(at) = group.iter().position(|known| Arc::ptr_eq(known, subscription)) {
            group.swap_remove(at);
        }
        if group.is_empty() {
            self.drop_group(subscription);
        }
    }

    /// The narrowest group that gets every event this watcher may want.
    fn group(&mut self, subscription: &Subscription) -> &mut Group {
        let filter = &subscription.filter;
        match (filter.key(), filter.field_value(), &filter.namespace) {
            (Some(key), _, _) => self.by_key.entry(key).or_default(),
            (None, Some((index, value)), _) => {
                self.by_field.entry(index).or_default().entry(value.to_owned()).or_default()
            }
            (None, None, Some(namespace)) => self.by_namespace.entry(namespace.clone()).or_default(),
            (None, None, None) => &mut self.all,
        }
    }

    fn drop_group(&mut self, subscription: &Subscription) {
        let filter = &subscription.filter;
        match (filter.key(), filter.field_value(), &filter.namespace) {
            (Some(key), _, _) => {
                self.by_key.remove(&key);
            }
            (None, Some((index, value)), _) => {
                if let Some(groups) = self.by_field.get_mut(&index) {
                    groups.remove(value);
                    if groups.is_empty() {
                        self.by_field.remove(&index);
                    }
                }
            }
            (None, None, Some(namespace)) => {
                self.by_namespace.remove(namespace);
            }
            (None, None, None) => {}
        }
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        let fields = self.by_field.values().flat_map(HashMap::values);
        [&self.all].into_iter().chain(self.by_namespace.values()).chain(self.by_key.values()).chain(fields)
    }

    pub(crate) fn close_all(&mut self) {
        self.groups().flatten().for_each(|subscription| subscription.close());
    }

    /// Ends all watches and begins history at `revision`.
    pub(crate) fn reset(&mut self, revision: u64) {
        self.close_all();
        self.history = VecDeque::new();
        self.history_bytes = 0;
        self.floor = revision;
    }

    pub(crate) fn len(&self) -> usize {
        self.groups().map(Vec::len).sum()
    }

    pub(crate) fn history_len(&self) -> usize {
        self.history.len()
    }

    /// Events put into queues.
    pub(crate) fn dispatched(&self) -> u64 {
        self.tally.queued
    }

    /// Watchers closed because they were too slow.
    pub(crate) fn terminated(&self) -> u64 {
        self.tally.closed
    }
}

impl Tally {
    fn offer(&mut self, group: Option<&Group>, event: &Event) {
        for subscription in group.into_iter().flatten() {
            match subscription.offer(event) {
                Offered::Unwanted => {}
                Offered::Queued => self.queued += 1,
                Offered::Closed => self.closed += 1,
            }
        }
    }
}
