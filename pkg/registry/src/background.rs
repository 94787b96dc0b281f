//! What the registry does by itself: forget old history and old events, repair allocations.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use jiff::Timestamp;
use rkube_api::StoredObject;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::meta::Meta;
use rkube_apimachinery::time;
use rkube_storage::{Revision, Storage, StorageError};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::cache::dispatch::Subscription;
use crate::registry::Shared;
use crate::selector::Filter;
use crate::store::Store;
use crate::store::watch::WatchEvent;

/// Deletions of expired events under way at once.
const EXPIRIES_AT_ONCE: usize = 32;

/// The shortest sleep of the expiry, so that events that end one after another end in batches.
const EXPIRY_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Forgets history up to where it was one interval ago, as kube-apiserver compacts etcd.
pub(crate) async fn compact(shared: Arc<Shared>, interval: Duration, stop: CancellationToken) {
    let mut before: Option<Revision> = None;
    let mut compacted = Revision(0);
    while stop.run_until_cancelled(shared.clock.sleep(interval)).await.is_some() {
        // A datastore in which nothing happens is left alone.
        if let Some(revision) = before.filter(|revision| *revision > compacted) {
            // Before: what is refused here though storage still has it is read from there.
            shared.compacted.fetch_max(revision.0, Ordering::Relaxed);
            match shared.storage.compact(revision).await {
                // Compacted already: another server was first.
                Ok(()) | Err(StorageError::Compacted { .. }) => compacted = revision,
                Err(error) => {
                    tracing::warn!(revision = revision.0, error = %chain(&error), "Could not compact the datastore");
                }
            }
        }
        match shared.storage.current_revision().await {
            Ok(revision) => before = Some(revision),
            Err(error) => tracing::warn!(error = %chain(&error), "Could not read the revision to compact to"),
        }
    }
}

/// When an event ends, and which state of it does.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Expiry {
    at: Duration,
    revision: u64,
    key: ObjectKey,
}

/// Deletes events an hour after they were last written.
pub(crate) async fn expire_events(events: Store, ttl: Duration, stop: CancellationToken) {
    while let Some(()) = stop.run_until_cancelled(expire_until_lagging(&events, ttl)).await {
        // At shutdown the feed may end before this task is told.
        if stop.is_cancelled() {
            return;
        }
        tracing::warn!("The expiry of events fell behind and begins anew");
    }
}

async fn expire_until_lagging(events: &Store, ttl: Duration) {
    let core = events.core();
    let clock = &core.shared.clock;
    let subscription = Subscription::new(Filter::default());
    let snapshot = core.cache.subscribe_now(&subscription, core.shared.feed.progress());
    let _unsubscribe = Unsubscribe { events, subscription: &subscription };
    let mut queue = BinaryHeap::new();
    let (wall, now) = (clock.now(), clock.monotonic());
    snapshot.tree.walk(&[], &mut |object| {
        // How long ago it was written is told by its times only.
        let age = Duration::try_from(wall.duration_since(last_written(object).unwrap_or(wall))).unwrap_or_default();
        queue.push(Reverse(expiry(object, now + ttl.saturating_sub(age))));
        std::ops::ControlFlow::Continue(())
    });
    let mut changes = Vec::new();
    loop {
        let due = queue.peek().map(|Reverse(next)| next.at.saturating_sub(clock.monotonic()).max(EXPIRY_INTERVAL_MIN));
        let wake = async {
            match due {
                Some(due) => clock.sleep(due).await,
                None => std::future::pending().await,
            }
        };
        let changed = std::future::poll_fn(|context| subscription.poll_drain(context, &mut changes));
        tokio::select! {
            open = changed => if !open { return },
            () = wake => {}
        }
        let now = clock.monotonic();
        for change in changes.drain(..) {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) = change {
                queue.push(Reverse(expiry(&object, now + ttl)));
            }
        }
        let mut ended = Vec::new();
        while queue.peek().is_some_and(|Reverse(next)| next.at <= now) {
            ended.extend(queue.pop().map(|Reverse(expiry)| expiry));
        }
        stream::iter(ended).for_each_concurrent(EXPIRIES_AT_ONCE, |expiry| delete(events, expiry)).await;
    }
}

struct Unsubscribe<'a> {
    events: &'a Store,
    subscription: &'a Arc<Subscription>,
}

impl Drop for Unsubscribe<'_> {
    fn drop(&mut self) {
        self.events.core().cache.unsubscribe(self.subscription);
    }
}

fn expiry(object: &StoredObject, at: Duration) -> Expiry {
    Expiry { at, revision: object.revision, key: object.key.clone() }
}

async fn delete(events: &Store, expiry: Expiry) {
    let core = events.core();
    // Written again since: then a later entry stands for it.
    if core.cache.get(&expiry.key).is_none_or(|object| object.revision != expiry.revision) {
        return;
    }
    let storage: &dyn Storage = core.shared.storage.as_ref();
    let deleted = storage.delete(core.cache.storage_key(&expiry.key), Revision(expiry.revision)).await;
    if let Err(error) = deleted {
        tracing::warn!(event = %expiry.key, error = %chain(&error), "Could not delete an expired event");
    }
}

fn last_written(event: &StoredObject) -> Option<Timestamp> {
    let event = event.value().ok()?;
    let at = |pointer: &str| {
        let text = event.pointer(pointer).and_then(Value::as_str)?;
        time::parse(text).or_else(|_| time::parse_micro(text)).ok()
    };
    [at("/lastTimestamp"), at("/series/lastObservedTime"), at("/eventTime"), event.creation_timestamp()]
        .into_iter()
        .flatten()
        .max()
}
