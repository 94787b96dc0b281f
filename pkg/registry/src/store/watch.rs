//! The receiving end of a watch: initial objects, replayed history, live events, bookmarks, the end.
//!
//! Behaves as `apiserver/pkg/storage/cacher/cache_watcher.go` and `endpoints/handlers/watch.go`, v1.36.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rkube_api::StoredObject;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::status::ApiStatus;

use crate::cache::dispatch::{Event, Subscription};
use crate::cache::feed::Feed;
use crate::cache::{Cache, Snapshot};
use crate::store::convert::Version;

/// Bookmarks come at whole multiples of this since the server began, so that idle watches wake together.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Initial objects and replayed events per batch.
const BATCH: usize = 512;

/// A change, a point in time, or the end.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    Added(Arc<StoredObject>),
    Modified(Arc<StoredObject>),
    /// The last state of an object, at the revision of its deletion.
    Deleted(Arc<StoredObject>),
    /// Everything up to and including this revision was delivered.
    Bookmark {
        revision: u64,
        initial_events_end: bool,
    },
    /// The last event of a watch that failed.
    Error(ApiStatus),
}

impl WatchEvent {
    fn revision(&self) -> Option<u64> {
        match self {
            Self::Added(object) | Self::Modified(object) | Self::Deleted(object) => Some(object.revision),
            Self::Bookmark { revision, .. } => Some(*revision),
            Self::Error(_) => None,
        }
    }
}

/// A watch. Dropping it ends it.
pub struct Watcher {
    subscription: Arc<Subscription>,
    cache: Arc<Cache>,
    feed: Arc<Feed>,
    clock: SharedClock,
    version: Version,
    phase: Phase,
    bookmarks: bool,
    /// The newest revision the client knows of: a bookmark never goes back behind it.
    sent: u64,
    next_bookmark: Duration,
    deadline: Duration,
    timer: Option<BoxFuture<'static, ()>>,
}

enum Phase {
    /// Objects as they were at the beginning, from `position` on.
    Initial {
        snapshot: Snapshot,
        position: Vec<u8>,
        end_bookmark: bool,
    },
    Replay(VecDeque<Arc<Event>>),
    Live,
    Failed(ApiStatus),
    Over,
}

/// How a watch begins.
pub(crate) enum Start {
    Initial { snapshot: Snapshot },
    Replay(Vec<Arc<Event>>),
    Live,
    Failed(ApiStatus),
}

/// What a watch needs besides its start.
pub(crate) struct WatchParts {
    pub(crate) subscription: Arc<Subscription>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) clock: SharedClock,
    pub(crate) version: Version,
    pub(crate) bookmarks: bool,
    pub(crate) timeout: Duration,
}

impl Watcher {
    pub(crate) fn new(parts: WatchParts, start: Start) -> Self {
        let now = parts.clock.monotonic();
        let sent = parts.subscription.after();
        let phase = match start {
            Start::Initial { snapshot } => Phase::Initial {
                snapshot,
                position: first_position(&parts.subscription),
                end_bookmark: parts.bookmarks,
            },
            Start::Replay(events) => Phase::Replay(events.into()),
            Start::Live => Phase::Live,
            Start::Failed(status) => Phase::Failed(status),
        };
        Self {
            subscription: parts.subscription,
            cache: parts.cache,
            feed: parts.feed,
            version: parts.version,
            phase,
            bookmarks: parts.bookmarks,
            sent,
            next_bookmark: following_bookmark(now),
            deadline: now + parts.timeout,
            clock: parts.clock,
            timer: None,
        }
    }

    /// Waits for events and moves all that are there to `into`, in order. False: the watch is over (its
    /// time is up, it failed, or it was too slow) and nothing was added.
    ///
    /// Cancel safe: events are only taken when the call returns.
    pub async fn next_batch(&mut self, into: &mut Vec<WatchEvent>) -> bool {
        into.clear();
        loop {
            match &mut self.phase {
                Phase::Initial { .. } => self.initial(into),
                Phase::Replay(events) => {
                    let filter = self.subscription.filter();
                    let part = events.len().min(BATCH);
                    into.extend(events.drain(..part).filter_map(|event| event.seen_through(filter)));
                    if events.is_empty() {
                        self.phase = Phase::Live;
                    }
                }
                Phase::Live => self.live(into).await,
                Phase::Failed(status) => {
                    into.push(WatchEvent::Error(status.clone()));
                    self.phase = Phase::Over;
                    return true;
                }
                Phase::Over => return false,
            }
            if !into.is_empty() {
                if let Some(revision) = into.last().and_then(WatchEvent::revision) {
                    self.sent = revision.max(self.sent);
                }
                self.convert(into);
                return true;
            }
        }
    }

    fn initial(&mut self, into: &mut Vec<WatchEvent>) {
        let Phase::Initial { snapshot, position, end_bookmark } = &mut self.phase else {
            return;
        };
        let filter = self.subscription.filter();
        let mut more = None;
        let mut seen = 0;
        snapshot.tree.walk(position, &mut |object| {
            let outside = filter.namespace.as_ref().is_some_and(|namespace| *namespace != object.key.namespace);
            if outside {
                return ControlFlow::Break(());
            }
            if seen == BATCH {
                more = Some(object.key.to_string().into_bytes());
                return ControlFlow::Break(());
            }
            seen += 1;
            if filter.matches(object) {
                into.push(WatchEvent::Added(object.clone()));
            }
            ControlFlow::Continue(())
        });
        match more {
            Some(next) => *position = next,
            None => {
                if *end_bookmark {
                    into.push(WatchEvent::Bookmark { revision: snapshot.revision, initial_events_end: true });
                }
                self.phase = Phase::Live;
            }
        }
    }

    async fn live(&mut self, into: &mut Vec<WatchEvent>) {
        let wake_at = if self.bookmarks { self.next_bookmark.min(self.deadline) } else { self.deadline };
        let now = self.clock.monotonic();
        let timer = self.timer.get_or_insert_with(|| self.clock.sleep(wake_at.saturating_sub(now)));
        let subscription = &self.subscription;
        let woken = std::future::poll_fn(|context| {
            if let std::task::Poll::Ready(open) = subscription.poll_drain(context, into) {
                return std::task::Poll::Ready(Some(open));
            }
            Pin::new(&mut *timer).poll(context).map(|()| None)
        })
        .await;
        match woken {
            // Under a steady stream of events the timer is never looked at.
            Some(true) if self.clock.monotonic() >= self.deadline => self.phase = Phase::Over,
            Some(true) => {}
            Some(false) => self.phase = Phase::Over,
            None => self.timer_fired(into),
        }
    }

    fn timer_fired(&mut self, into: &mut Vec<WatchEvent>) {
        self.timer = None;
        let now = self.clock.monotonic();
        // Progress first: what it covers is in the queue by then, so an empty queue means all was taken.
        let progress = self.feed.progress();
        if self.bookmarks && self.subscription.is_empty() {
            // Events of this resource come in order, so everything up to the last one sent was sent.
            let revision = progress.max(self.sent);
            into.push(WatchEvent::Bookmark { revision, initial_events_end: false });
        }
        self.next_bookmark = following_bookmark(now);
        if now >= self.deadline {
            self.phase = Phase::Over;
        }
    }

    /// To the version the client watches.
    fn convert(&self, events: &mut [WatchEvent]) {
        if self.version.is_stored() {
            return;
        }
        let convert = |object: &mut Arc<StoredObject>| self.version.convert_stored(object).map(|new| *object = new);
        for event in events.iter_mut() {
            let converted = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                    convert(object)
                }
                WatchEvent::Bookmark { .. } | WatchEvent::Error(_) => Ok(()),
            };
            if let Err(status) = converted {
                *event = WatchEvent::Error(status);
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.cache.unsubscribe(&self.subscription);
    }
}

fn first_position(subscription: &Subscription) -> Vec<u8> {
    let filter = subscription.filter();
    match (filter.key(), &filter.namespace) {
        (Some(key), _) => key.to_string().into_bytes(),
        (None, Some(namespace)) => format!("{namespace}/").into_bytes(),
        (None, None) => Vec::new(),
    }
}

fn following_bookmark(now: Duration) -> Duration {
    BOOKMARK_INTERVAL * (u32::try_from(now.as_secs() / BOOKMARK_INTERVAL.as_secs()).unwrap_or(u32::MAX - 1) + 1)
}
