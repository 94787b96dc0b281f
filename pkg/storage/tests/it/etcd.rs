//! The suite over a real etcd, with and without TLS, and what happens when etcd goes away and comes back.

use std::net::TcpListener;
use std::sync::Arc;

use rkube_apimachinery::clock::SystemClock;
use rkube_storage::etcd::{ClientIdentity, EtcdOptions, EtcdStorage};
use rkube_storage::observed::Observed;
use rkube_storage::{Precondition, StorageError, WriteOutcome};
use rkube_testing::etcd::{Etcd, EtcdConfig};

use crate::conformance::{self, Store, changes_until, create, current, get, update, value, watch, within};

async fn connect(etcd: &Etcd) -> Store {
    let mut options = EtcdOptions::new(&etcd.url(), SystemClock::shared());
    if let Some(certificates) = etcd.certificates() {
        options.ca = Some(certificates.ca.clone().into_bytes());
        let (certificate, key) = certificates.client.clone();
        options.identity = Some(ClientIdentity { certificate: certificate.into(), key: key.into() });
    }
    Arc::new(EtcdStorage::connect(options).await.unwrap())
}

async fn run_suite(tls: bool) {
    let etcd = Etcd::start(EtcdConfig { tls, ..EtcdConfig::default() });
    let store = connect(&etcd).await;
    for (name, test) in conformance::all() {
        within(name, test(store.clone())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance() {
    run_suite(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_with_tls() {
    run_suite(true).await;
}

/// While etcd is away everything fails with a reason; afterwards everything goes on, watches too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_goes_away_and_comes_back() {
    let mut etcd = Etcd::start(EtcdConfig::default());
    let observed = Observed::new(connect(&etcd).await);
    let health = observed.health();
    let store: Store = Arc::new(observed);
    let from = current(&store).await;
    let mut stream = watch(&store, "/away/", from).await;
    let mut expected = Vec::new();
    let mut last = create(&store, "/away/a", "0").await;
    expected.push(last);
    assert_eq!(changes_until(&mut stream, last).await.len(), 1);
    for round in 0..3 {
        let before = current(&store).await;
        etcd.kill();
        let write = store.put("/away/a".to_owned(), value("lost"), Precondition::Unchanged(last));
        let outcome = within("a write without etcd", write).await;
        let refused = matches!(outcome, Err(StorageError::Unavailable(_) | StorageError::Unknown(_)));
        assert!(refused, "{outcome:?}");
        assert!(health.failure().is_some());
        etcd.run();
        let after = within("a read after etcd came back", store.current_revision()).await.unwrap();
        assert!(after >= before, "{after:?} after {before:?}");
        assert_eq!(health.failure(), None);
        let now = get(&store, "/away/a").await.unwrap();
        if now.mod_revision != last {
            // The unknown write had happened.
            expected.push(now.mod_revision);
        }
        last = update(&store, "/away/a", &round.to_string(), now.mod_revision).await;
        expected.push(last);
    }
    let seen: Vec<_> = changes_until(&mut stream, last).await.iter().map(|change| change.revision).collect();
    assert_eq!(seen, expected[1..]);
}

/// Nothing hangs, and a write that was never sent is not called unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_everything_says_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let store: Store = Arc::new(EtcdStorage::connect(EtcdOptions::new(&url, SystemClock::shared())).await.unwrap());
    let read = within("a read without etcd", store.current_revision()).await;
    assert!(matches!(read, Err(StorageError::Unavailable(_))), "{read:?}");
    let write = store.put("/a".to_owned(), value("v"), Precondition::Absent);
    let outcome: Result<WriteOutcome, _> = within("a write without etcd", write).await;
    assert!(matches!(outcome, Err(StorageError::Unavailable(_))), "{outcome:?}");
}

/// Only the first request waits for an etcd that is away: a client that asks for something that takes several reads
/// is told within a few seconds, and so is whoever comes later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patience_with_an_etcd_that_is_away_is_spent_once() {
    // Takes connections and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let clock = SystemClock::shared();
    let store: Store = Arc::new(EtcdStorage::connect(EtcdOptions::new(&url, clock.clone())).await.unwrap());
    let mut waits = Vec::new();
    for _ in 0..4 {
        let began = clock.monotonic();
        let read = within("a read of an etcd that does not answer", store.current_revision()).await;
        assert!(matches!(read, Err(StorageError::Unavailable(_))), "{read:?}");
        waits.push(clock.monotonic().saturating_sub(began).as_secs());
    }
    assert!(waits[0] >= 4 && waits[1..].iter().all(|wait| *wait <= 3), "{waits:?}");
}
