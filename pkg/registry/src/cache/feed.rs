//! The one storage watch behind all caches.
//!
//! Loads every resource's objects, then follows the changes of `/registry/` and gives each to its cache.
//! Progress is the newest revision that every cache has.
//!
//! When the watch breaks it begins again where it was; when that is compacted, everything is loaded
//! again and all watches end, so that clients list again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::RwLock;
use rkube_api::StoredObject;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_storage::{Change, KeyValue, ListRange, Revision, Storage, StorageError, WatchItem, WatchStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task;
use tokio_util::sync::CancellationToken;

use super::Cache;

/// Everything of ours is under this key.
pub(crate) const ROOT: &str = "/registry/";

/// Keys per list request while loading.
const LOAD_PAGE: usize = 10_000;

/// Pauses between attempts to watch again: doubled from the first up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// How often caches let go of what is old or not in use, as long as there is something to let go of.
const TIDY_INTERVAL: Duration = Duration::from_secs(15);

/// Which cache a storage key belongs to.
#[derive(Default)]
pub(crate) struct Routes {
    by_prefix: RwLock<HashMap<String, Arc<Cache>>>,
}

impl Routes {
    pub(crate) fn insert(&self, cache: Arc<Cache>) {
        self.by_prefix.write().insert(route(cache.prefix()).to_owned(), cache);
    }

    pub(crate) fn remove(&self, prefix: &str) -> Option<Arc<Cache>> {
        self.by_prefix.write().remove(route(prefix))
    }

    pub(crate) fn get(&self, prefix: &str) -> Option<Arc<Cache>> {
        self.by_prefix.read().get(route(prefix)).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Cache>> {
        self.by_prefix.read().values().cloned().collect()
    }

    /// A prefix is one segment (`pods`) or two (`apps/deployments`).
    fn find(&self, storage_key: &str) -> Option<Arc<Cache>> {
        let rest = storage_key.strip_prefix(ROOT)?;
        let routes = self.by_prefix.read();
        let first = rest.find('/')?;
        if let Some(cache) = routes.get(&rest[..first]) {
            return Some(cache.clone());
        }
        let second = rest.get(first + 1..)?.find('/')? + first + 1;
        routes.get(&rest[..second]).cloned()
    }
}

/// `/registry/pods/` → `pods`.
fn route(prefix: &str) -> &str {
    prefix.strip_prefix(ROOT).unwrap_or(prefix).trim_end_matches('/')
}

/// What the feed tells and is told.
pub(crate) struct Feed {
    storage: Arc<dyn Storage>,
    routes: Arc<Routes>,
    progress: watch::Sender<u64>,
    progress_asked: AtomicBool,
    commands: mpsc::Sender<Command>,
    /// Something changed, so that there is something to tidy up later.
    untidy: Notify,
}

/// A cache to load and to keep current from then on.
struct Command {
    cache: Arc<Cache>,
    done: oneshot::Sender<Result<(), StorageError>>,
}

impl Feed {
    /// Loads all caches. The feed must then be `run`.
    pub(crate) async fn start(
        storage: Arc<dyn Storage>,
        routes: Arc<Routes>,
        clock: SharedClock,
    ) -> Result<(Arc<Self>, Runner), StorageError> {
        let revision = load_all(storage.as_ref(), &routes).await?;
        let (commands, received) = mpsc::channel(16);
        let feed = Arc::new(Self {
            storage,
            routes,
            progress: watch::Sender::new(revision),
            progress_asked: AtomicBool::new(false),
            commands,
            untidy: Notify::new(),
        });
        feed.untidy.notify_one();
        let stream = feed.storage.watch(ROOT.to_owned(), Revision(revision)).await?;
        Ok((feed.clone(), Runner { feed, clock, stream, commands: received }))
    }

    pub(crate) fn progress(&self) -> u64 {
        *self.progress.borrow()
    }

    /// Waits until every cache has everything up to `revision`. Returns false if the feed has ended.
    pub(crate) async fn reach(&self, revision: u64) -> bool {
        let mut progress = self.progress.subscribe();
        while *progress.borrow_and_update() < revision {
            // The store's newest change may not be under our root, then only asking tells that we have all. An
            // answer to somebody who asked earlier may not reach far enough.
            if !self.progress_asked.swap(true, Ordering::AcqRel)
                && let Err(error) = self.storage.request_progress().await
            {
                self.progress_asked.store(false, Ordering::Release);
                tracing::warn!(error = %chain(&error), "Could not ask the datastore for progress");
            }
            if progress.changed().await.is_err() {
                return false;
            }
        }
        true
    }

    /// Loads a cache that is already routed.
    pub(crate) async fn load(&self, cache: Arc<Cache>) -> Result<(), StorageError> {
        let (done, loaded) = oneshot::channel();
        self.commands.send(Command { cache, done }).await.map_err(|_| StorageError::Closed)?;
        loaded.await.map_err(|_| StorageError::Closed)?
    }

    fn apply(&self, changes: &[Change]) {
        let mut groups: Vec<(Arc<Cache>, Vec<&Change>)> = Vec::new();
        for change in changes {
            let Some(cache) = self.routes.find(&change.key) else {
                continue;
            };
            match groups.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &cache)) {
                Some((_, group)) => group.push(change),
                None => groups.push((cache, vec![change])),
            }
        }
        for (cache, group) in groups {
            cache.apply(&group);
        }
        self.untidy.notify_one();
        if let Some(last) = changes.last() {
            self.advance(last.revision.0);
        }
    }

    fn advance(&self, revision: u64) {
        self.progress_asked.store(false, Ordering::Release);
        self.progress.send_modify(|progress| *progress = revision.max(*progress));
    }
}

/// Keeps the caches from holding what nobody needs. Sleeps while nothing changes and nothing is left to let go of.
pub(crate) async fn tidy(feed: Arc<Feed>, clock: SharedClock, stop: CancellationToken) {
    let run = async {
        loop {
            feed.untidy.notified().await;
            let mut is_left = true;
            while is_left {
                clock.sleep(TIDY_INTERVAL).await;
                let caches = feed.routes.all();
                // All objects are looked at, which is work for a thread of its own.
                let tidied = task::spawn_blocking(move || caches.iter().fold(false, |left, cache| cache.tidy() | left));
                is_left = tidied.await.unwrap_or(false);
            }
        }
    };
    stop.run_until_cancelled(run).await;
}

/// The task of the feed.
pub(crate) struct Runner {
    feed: Arc<Feed>,
    clock: SharedClock,
    stream: WatchStream,
    commands: mpsc::Receiver<Command>,
}

enum Wake {
    Item(Option<Result<WatchItem, StorageError>>),
    Command(Command),
    Stop,
}

impl Runner {
    /// Runs until it is told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let wake = tokio::select! {
                item = self.stream.next() => Wake::Item(item),
                Some(command) = self.commands.recv() => Wake::Command(command),
                () = stop.cancelled() => Wake::Stop,
            };
            match wake {
                Wake::Item(Some(Ok(WatchItem::Changes(changes)))) => self.feed.apply(&changes),
                Wake::Item(Some(Ok(WatchItem::Progress(revision)))) => self.feed.advance(revision.0),
                Wake::Item(Some(Err(StorageError::Closed)) | None) | Wake::Stop => break,
                Wake::Item(Some(Err(error))) => {
                    tracing::warn!(error = %chain(&error), "The watch of the datastore broke");
                    tokio::select! {
                        () = self.resume() => {}
                        () = stop.cancelled() => break,
                    }
                }
                Wake::Command(command) => {
                    let loaded = load_one(self.feed.storage.as_ref(), &command.cache).await;
                    // Whoever asked may be gone; the cache is loaded all the same.
                    let _ = command.done.send(loaded);
                }
            }
        }
        self.feed.routes.all().iter().for_each(|cache| cache.close());
    }

    async fn resume(&mut self) {
        let feed = self.feed.clone();
        let mut pause = RETRY_FIRST;
        loop {
            match watch_again(&feed).await {
                Ok(stream) => {
                    self.stream = stream;
                    // Who waits for progress may have asked the watch that broke: they ask again.
                    self.feed.advance(self.feed.progress());
                    return;
                }
                Err(error) => tracing::warn!(error = %chain(&error), "Could not watch the datastore"),
            }
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
        }
    }
}

async fn watch_again(feed: &Feed) -> Result<WatchStream, StorageError> {
    let storage = &feed.storage;
    match storage.watch(ROOT.to_owned(), Revision(feed.progress())).await {
        Err(StorageError::Compacted { .. }) => {
            let revision = load_all(storage.as_ref(), &feed.routes).await?;
            feed.advance(revision);
            storage.watch(ROOT.to_owned(), Revision(revision)).await
        }
        other => other,
    }
}

/// Loads everything at one revision.
async fn load_all(storage: &dyn Storage, routes: &Arc<Routes>) -> Result<u64, StorageError> {
    let (pages, revision) = list_all(storage, ROOT).await?;
    // Decoding is work for a processor, not for a task: each page on a thread of its own.
    let decoding: Vec<_> = pages
        .into_iter()
        .map(|page| {
            let routes = routes.clone();
            task::spawn_blocking(move || decode_page(&routes, &page))
        })
        .collect();
    let mut loaded: HashMap<String, Vec<Arc<StoredObject>>> = HashMap::new();
    for page in decoding {
        let page = page.await.map_err(|_| StorageError::Closed)?;
        for (cache, objects) in page {
            loaded.entry(cache.prefix().to_owned()).or_default().extend(objects);
        }
    }
    for cache in routes.all() {
        cache.load(loaded.remove(cache.prefix()).unwrap_or_default(), revision);
    }
    Ok(revision)
}

type Decoded = Vec<(Arc<Cache>, Vec<Arc<StoredObject>>)>;

fn decode_page(routes: &Routes, page: &[KeyValue]) -> Decoded {
    let mut decoded: Decoded = Vec::new();
    for item in page {
        // Keys come in order, so mostly the cache is the one before.
        let known = decoded.last().filter(|(cache, _)| item.key.starts_with(cache.prefix()));
        let cache = known.map(|(cache, _)| cache.clone()).or_else(|| routes.find(&item.key));
        let Some(cache) = cache else {
            continue;
        };
        let Some(object) = cache.decode_stored(&item.key, item.mod_revision.0, &item.value) else {
            continue;
        };
        match decoded.last_mut() {
            Some((last, objects)) if Arc::ptr_eq(last, &cache) => objects.push(object),
            _ => decoded.push((cache, vec![object])),
        }
    }
    decoded
}

async fn load_one(storage: &dyn Storage, cache: &Arc<Cache>) -> Result<(), StorageError> {
    let (pages, revision) = list_all(storage, cache.prefix()).await?;
    let objects = pages
        .iter()
        .flatten()
        .filter_map(|item| cache.decode_stored(&item.key, item.mod_revision.0, &item.value))
        .collect();
    cache.load(objects, revision);
    Ok(())
}

async fn list_all(storage: &dyn Storage, prefix: &str) -> Result<(Vec<Vec<KeyValue>>, u64), StorageError> {
    let mut range = ListRange { prefix: prefix.to_owned(), limit: LOAD_PAGE, ..ListRange::default() };
    let mut pages = Vec::new();
    loop {
        let page = storage.list(range.clone()).await?;
        let revision = page.revision;
        let last = page.items.last().map(|item| item.key.clone());
        pages.push(page.items);
        match last {
            Some(last) if page.remaining > 0 => {
                range.at = Some(revision);
                range.after = Some(last);
            }
            _ => return Ok((pages, revision.0)),
        }
    }
}
