//! A watch on etcd that survives lost connections and leaders.
//!
//! **Invariant:** `delivered` is the newest revision up to which everything was delivered. A new stream begins
//! right after it, and what comes with an older revision is dropped; so nothing is missed or told twice.
//!
//! etcd before 3.4.25 and 3.5.8 may answer a request for progress before it sends changes of that revision
//! (etcd#15220). There the answer is held back until the changes that the store shows have come: the newest change
//! and the number of keys are compared. A key made and deleted in between leaves no trace to compare.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Event, EventType, GetOptions, SortOrder, SortTarget, WatchOptions, WatchRequestSender, WatchResponse,
    WatchResponseStream,
};
use futures_util::{StreamExt, stream};
use tokio::sync::watch as signal;

use super::failure::Failure;
use super::{BACKOFF, MAX_ANSWER, REQUEST_TIMEOUT, Shared, from_etcd, prefix_end, revision_of, start_key, to_etcd};
use crate::{Change, ChangeKind, Revision, StorageError, WatchItem, WatchStream};

pub(super) async fn open(shared: Arc<Shared>, prefix: String, from: Revision) -> Result<WatchStream, StorageError> {
    let current = shared.current().await?;
    if from > current {
        return Err(StorageError::FutureRevision { requested: from, current });
    }
    let progress = shared.progress.subscribe();
    let mut watch = Watch {
        shared,
        prefix,
        delivered: from,
        connection: None,
        progress,
        wanted: false,
        held: None,
        keys: None,
        opened_once: false,
        ended: false,
    };
    watch.connect().await?;
    Ok(stream::unfold(watch, |mut watch| async move {
        if watch.ended {
            return None;
        }
        let item = watch.next().await;
        watch.ended = item.is_err();
        Some((item, watch))
    })
    .boxed())
}

struct Watch {
    shared: Arc<Shared>,
    prefix: String,
    delivered: Revision,
    connection: Option<(WatchRequestSender, WatchResponseStream)>,
    progress: signal::Receiver<u64>,
    /// Someone asked for progress and has not got it.
    wanted: bool,
    /// An answer that may have come too early.
    held: Option<Held>,
    /// How many keys there are as of `delivered`, once that is needed.
    keys: Option<i64>,
    opened_once: bool,
    ended: bool,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    revision: Revision,
    newest_change: Revision,
    keys: i64,
}

enum Happened {
    Response(Result<Option<WatchResponse>, etcd_client::Error>),
    ProgressAsked,
}

impl Watch {
    async fn next(&mut self) -> Result<WatchItem, StorageError> {
        loop {
            if let Some(held) = self.held.filter(|held| self.has_delivered(held)) {
                return Ok(self.report(held.revision));
            }
            self.connect().await?;
            let Some((sender, responses)) = &mut self.connection else { continue };
            let happened = tokio::select! {
                // An error means that the store is gone; then the stream ends as well.
                Ok(()) = self.progress.changed() => Happened::ProgressAsked,
                response = responses.message() => Happened::Response(response),
            };
            match happened {
                Happened::ProgressAsked => {
                    self.progress.mark_unchanged();
                    self.wanted = true;
                    if sender.request_progress().await.is_err() {
                        self.connection = None;
                    }
                }
                Happened::Response(Ok(Some(response))) => {
                    if let Some(item) = self.take(&response).await? {
                        return Ok(item);
                    }
                }
                Happened::Response(Ok(None)) => self.connection = None,
                Happened::Response(Err(error)) => {
                    tracing::debug!(%error, "A watch of etcd was interrupted");
                    self.connection = None;
                }
            }
        }
    }

    /// Opens a stream right after what was delivered, where there is none.
    async fn connect(&mut self) -> Result<(), StorageError> {
        let mut wait = BACKOFF.start;
        while self.connection.is_none() {
            let options = WatchOptions::new()
                .with_range(prefix_end(&self.prefix))
                .with_start_revision(to_etcd(self.delivered.next()));
            let mut client = self.shared.client.watch_client().max_decoding_message_size(MAX_ANSWER);
            let opened =
                tokio::time::timeout(REQUEST_TIMEOUT, client.watch(start_key(&self.prefix), Some(options))).await;
            match opened {
                Ok(Ok(opened)) => {
                    let (mut sender, responses) = opened.split();
                    self.held = None;
                    if !self.wanted || sender.request_progress().await.is_ok() {
                        self.connection = Some((sender, responses));
                        self.opened_once = true;
                    }
                }
                Ok(Err(error)) => {
                    let failure = Failure::new(error);
                    if !failure.is_passing() || !self.opened_once {
                        return Err(failure.of_read());
                    }
                }
                Err(_) if !self.opened_once => return Err(Failure::TimedOut.of_read()),
                Err(_) => {}
            }
            if self.connection.is_none() {
                pause(&self.shared, &mut wait).await;
            }
        }
        Ok(())
    }

    async fn take(&mut self, response: &WatchResponse) -> Result<Option<WatchItem>, StorageError> {
        if response.compact_revision() > 0 {
            let oldest = self.shared.note_compacted(from_etcd(response.compact_revision()));
            return Err(StorageError::Compacted { requested: self.delivered, oldest });
        }
        if response.canceled() {
            // No leader, or a member that goes away: another will do.
            tracing::debug!(reason = response.cancel_reason(), "etcd ended a watch");
            self.connection = None;
            pause(&self.shared, &mut BACKOFF.start.clone()).await;
            return Ok(None);
        }
        if response.created() {
            return Ok(None);
        }
        if response.events().is_empty() {
            let revision = revision_of(response.header())?;
            return self.progressed(revision).await;
        }
        let mut changes = Vec::with_capacity(response.events().len());
        for event in response.events() {
            let change = change(event)?;
            if change.revision > self.delivered {
                self.keys = self.keys.map(|keys| keys + added(event));
                changes.push(change);
            }
        }
        let Some(last) = changes.last() else { return Ok(None) };
        self.delivered = last.revision;
        Ok(Some(WatchItem::Changes(changes)))
    }

    /// etcd says that it has sent everything up to `revision`.
    async fn progressed(&mut self, revision: Revision) -> Result<Option<WatchItem>, StorageError> {
        if !self.wanted || revision < self.delivered {
            return Ok(None);
        }
        if !self.shared.orders_progress().await {
            return self.check_progress(revision).await;
        }
        Ok(Some(self.report(revision)))
    }

    /// Holds `revision` back until everything up to it has certainly come.
    async fn check_progress(&mut self, revision: Revision) -> Result<Option<WatchItem>, StorageError> {
        match self.look(revision).await {
            Ok(held) if self.has_delivered(&held) => Ok(Some(self.report(revision))),
            Ok(held) => {
                self.held = Some(held);
                Ok(None)
            }
            Err(failure) => {
                // A new stream asks again.
                tracing::debug!(?failure, "Could not check the progress of a watch of etcd");
                self.connection = None;
                pause(&self.shared, &mut BACKOFF.start.clone()).await;
                Ok(None)
            }
        }
    }

    /// What the store shows of the changes up to `revision`.
    async fn look(&mut self, revision: Revision) -> Result<Held, Failure> {
        let all = || GetOptions::new().with_range(prefix_end(&self.prefix));
        let keys = match self.keys {
            Some(keys) => keys,
            None if self.delivered == Revision(0) => 0,
            None => {
                let counted = all().with_count_only().with_revision(to_etcd(self.delivered));
                self.shared.range(start_key(&self.prefix), counted).await?.count()
            }
        };
        let newest = all()
            .with_revision(to_etcd(revision))
            .with_sort(SortTarget::Mod, SortOrder::Descend)
            .with_limit(1)
            .with_keys_only();
        let found = self.shared.range(start_key(&self.prefix), newest).await?;
        let newest_change = found.kvs().first().map_or(Revision(0), |kv| from_etcd(kv.mod_revision()));
        self.keys = Some(keys);
        Ok(Held { revision, newest_change, keys: found.count() })
    }

    fn has_delivered(&self, held: &Held) -> bool {
        let agrees = self.delivered >= held.newest_change && self.keys == Some(held.keys);
        agrees || self.delivered > held.revision
    }

    fn report(&mut self, revision: Revision) -> WatchItem {
        self.wanted = false;
        self.held = None;
        self.delivered = self.delivered.max(revision);
        WatchItem::Progress(self.delivered)
    }
}

async fn pause(shared: &Shared, wait: &mut Duration) {
    shared.clock.sleep(*wait).await;
    *wait = (*wait * 2).min(BACKOFF.end);
}

fn change(event: &Event) -> Result<Change, StorageError> {
    let text = |key: &[u8]| {
        String::from_utf8(key.to_vec()).map_err(|_| StorageError::Corrupt { detail: "a key is not text".to_owned() })
    };
    let Some(kv) = event.kv() else {
        return Err(StorageError::Corrupt { detail: "an event without a key".to_owned() });
    };
    let kind = match event.event_type() {
        EventType::Put => ChangeKind::Put(Bytes::copy_from_slice(kv.value())),
        EventType::Delete => ChangeKind::Delete,
    };
    Ok(Change { key: text(kv.key())?, revision: from_etcd(kv.mod_revision()), kind })
}

/// By how much an event changes the number of keys.
fn added(event: &Event) -> i64 {
    match event.event_type() {
        EventType::Delete => -1,
        EventType::Put => i64::from(event.kv().is_some_and(|kv| kv.version() == 1)),
    }
}
