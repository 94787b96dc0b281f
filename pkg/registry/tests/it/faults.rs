//! A datastore that fails now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use rkube_apimachinery::clock::FakeClock;
use rkube_apimachinery::random::SeededRandom;
use rkube_registry::{Config, Registry, RequestContext};
use rkube_storage::memory::MemoryStorage;
use rkube_storage::{
    KeyValue, ListRange, Page, Precondition, Revision, Size, Storage, StorageError, WatchItem, WatchStream,
    WriteOutcome,
};
use serde_json::json;
use tokio::sync::broadcast;

use crate::cluster::{Cluster, PATIENCE, at, config, keys, map, map_with};
use crate::services;

/// Memory storage whose watches break when told to, and which may be out of reach, also after so many writes.
struct Flaky {
    inner: Arc<MemoryStorage>,
    breaks: broadcast::Sender<()>,
    unreachable: AtomicBool,
    writes_left: AtomicUsize,
}

impl Flaky {
    fn check(&self) -> Result<(), StorageError> {
        if self.unreachable.load(Ordering::SeqCst) { Err(unavailable()) } else { Ok(()) }
    }
}

fn unavailable() -> StorageError {
    StorageError::Unavailable(Arc::new(std::io::Error::other("connection refused")))
}

impl Storage for Flaky {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<KeyValue>, Revision), StorageError>> {
        async move {
            self.check()?;
            self.inner.get(key).await
        }
        .boxed()
    }

    fn list(&self, range: ListRange) -> BoxFuture<'_, Result<Page, StorageError>> {
        async move {
            self.check()?;
            self.inner.list(range).await
        }
        .boxed()
    }

    fn put(
        &self,
        key: String,
        value: Bytes,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        async move {
            self.check()?;
            let left = self.writes_left.fetch_sub(1, Ordering::SeqCst);
            self.unreachable.fetch_or(left == 1, Ordering::SeqCst);
            self.inner.put(key, value, precondition).await
        }
        .boxed()
    }

    fn delete(&self, key: String, unchanged: Revision) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        async move {
            self.check()?;
            self.inner.delete(key, unchanged).await
        }
        .boxed()
    }

    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<WatchStream, StorageError>> {
        async move {
            self.check()?;
            let mut breaks = self.breaks.subscribe();
            let broken = async move {
                // A storage that is gone breaks nothing any more.
                if breaks.recv().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let items = self.inner.watch(prefix, from).await?.take_until(broken.boxed());
            let end: Result<WatchItem, StorageError> = Err(unavailable());
            Ok(items.chain(stream::iter([end])).boxed())
        }
        .boxed()
    }

    fn request_progress(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        self.inner.request_progress()
    }

    fn current_revision(&self) -> BoxFuture<'_, Result<Revision, StorageError>> {
        async move {
            self.check()?;
            self.inner.current_revision().await
        }
        .boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StorageError>> {
        self.inner.compact(revision)
    }

    fn size(&self) -> BoxFuture<'_, Result<Size, StorageError>> {
        self.inner.size()
    }
}

async fn flaky() -> (Cluster, Arc<Flaky>) {
    flaky_with(config()).await
}

async fn flaky_with(config: Config) -> (Cluster, Arc<Flaky>) {
    let inner = Arc::new(MemoryStorage::new());
    let (breaks, _) = broadcast::channel(16);
    let (unreachable, writes_left) = (AtomicBool::new(false), AtomicUsize::new(usize::MAX));
    let storage = Arc::new(Flaky { inner: inner.clone(), breaks, unreachable, writes_left });
    let clock = FakeClock::new("2026-01-02T03:04:05Z".parse().expect("a time"));
    let registry = Registry::new(storage.clone(), clock.shared(), SeededRandom::shared(7), config).await;
    let registry = registry.expect("the registry starts");
    (Cluster { registry, storage: inner, clock, context: Arc::new(RequestContext::internal()) }, storage)
}

#[tokio::test]
async fn a_watch_of_the_datastore_that_breaks_goes_on_where_it_was() {
    let (cluster, storage) = flaky().await;
    cluster.create("configmaps", map("a")).await.expect("creates");
    let mut watching = cluster.watch("configmaps", "", json!({"resourceVersion": "1"})).await.expect("watches");
    for round in 0..20_u64 {
        storage.breaks.send(()).expect("somebody watches");
        cluster.update("configmaps", &at("a"), map_with("a", &round.to_string())).await.expect("updates");
        assert_eq!(watching.next().await, format!("MODIFIED ns/a@{}", round + 2));
    }
}

#[tokio::test]
async fn after_a_long_outage_everything_is_loaded_again_and_watches_end() {
    let (cluster, storage) = flaky().await;
    cluster.create("configmaps", map("a")).await.expect("creates");
    cluster.create("configmaps", map("b")).await.expect("creates");
    let mut watching = cluster.watch("configmaps", "", json!({"resourceVersion": "2"})).await.expect("watches");
    cluster.list("configmaps", "", json!({})).await.expect("lists");

    storage.unreachable.store(true, Ordering::SeqCst);
    storage.breaks.send(()).expect("somebody watches");
    let status = cluster.create("configmaps", map("c")).await.expect_err("is out of reach");
    assert_eq!((status.code(), status.message()), (503, "the datastore is unavailable: connection refused"));
    let status = cluster.get("configmaps", "a").await.expect_err("is out of reach");
    assert_eq!(status.code(), 503);
    let old = cluster.list("configmaps", "", json!({"resourceVersion": "0"})).await.expect("any state will do");
    assert_eq!(keys(&old), ["ns/a", "ns/b"]);

    // Another server of the same datastore changes what is there and forgets how it came about.
    let other = Cluster::over(cluster.storage.clone()).await;
    other.delete("configmaps", "a", json!({})).await.expect("deletes");
    other.create("configmaps", map("d")).await.expect("creates");
    cluster.storage.compact(Revision(4)).await.expect("compacts");
    storage.unreachable.store(false, Ordering::SeqCst);

    let ends = async {
        let mut next = Box::pin(watching.next());
        loop {
            match futures_util::poll!(&mut next) {
                std::task::Poll::Ready(event) => return event,
                // The retries wait for the clock.
                std::task::Poll::Pending => cluster.clock.advance(Duration::from_millis(100)),
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, ends).await.expect("the watch ends"), "end");
    let page = cluster.list("configmaps", "", json!({})).await.expect("lists");
    assert_eq!(keys(&page), ["ns/b", "ns/d"]);
    let mut late = cluster.watch("configmaps", "", json!({"resourceVersion": "2"})).await.expect("watches");
    assert_eq!(late.next().await, "ERROR 410 too old resource version: 2 (4)");
    cluster.create("configmaps", map("c")).await.expect("creates again");
}

#[tokio::test]
async fn an_address_left_by_a_crash_is_taken_over_by_the_service_it_was_for() {
    let (first, storage) = flaky_with(services::config(&["10.43.0.0/29"])).await;
    let wanted = |name| services::service(name, json!({"clusterIP": "10.43.0.5"}));
    // The address is written, the Service is not.
    storage.writes_left.store(1, Ordering::SeqCst);
    let status = first.create("services", wanted("a")).await.expect_err("the server is killed");
    assert_eq!(status.code(), 503, "{}", status.message());
    drop(first);

    let second = Cluster::configured(storage.inner.clone(), services::config(&["10.43.0.0/29"])).await;
    assert_eq!(services::addresses(&second).await, ["10.43.0.5"]);
    let taken = |name: &str| {
        format!(
            "Service \"{name}\" is invalid: spec.clusterIPs: Invalid value: [\"10.43.0.5\"]: failed to allocate IP \
             10.43.0.5: provided IP is already allocated"
        )
    };
    let status = second.create("services", wanted("b")).await.expect_err("it is another's");
    assert_eq!(status.message(), taken("b"));
    second.create("services", wanted("a")).await.expect("it is its own");
    // One that is held is refused to a second Service of its name, too, and a refusal takes nothing from the first.
    let status = second.create("services", wanted("a")).await.expect_err("it is there");
    assert_eq!(status.message(), taken("a"));
    second.clock.advance(Duration::from_secs(200));
    services::addresses_become(&second, &["10.43.0.5"]).await;
}
