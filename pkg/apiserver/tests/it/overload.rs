//! More is asked than can be done: ordinary requests are told so at once, and what the cluster lives by goes on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join};
use http::{HeaderMap, Method};
use rkube_apiserver::auth::flow::MaxInFlight;
use rkube_storage::memory::MemoryStorage;
use rkube_storage::{ListRange, Page, Precondition, Revision, Size, Storage, StorageError, WatchStream, WriteOutcome};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cluster::{AllBut, Cluster, Setup, admin, node, user};

const PATIENCE: Duration = Duration::from_secs(60);

/// Writes of config maps wait until the gate is open; who waits is counted.
struct Blocked {
    storage: MemoryStorage,
    open: watch::Receiver<bool>,
    waiting: watch::Sender<usize>,
}

impl Storage for Blocked {
    fn get<'a>(
        &'a self,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(Option<rkube_storage::KeyValue>, Revision), StorageError>> {
        self.storage.get(key)
    }

    fn list(&self, range: ListRange) -> BoxFuture<'_, Result<Page, StorageError>> {
        self.storage.list(range)
    }

    fn put(
        &self,
        key: String,
        value: Bytes,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        Box::pin(async move {
            if key.contains("/configmaps/") {
                self.waiting.send_modify(|waiting| *waiting += 1);
                let mut open = self.open.clone();
                open.wait_for(|open| *open).await.map_err(|_| StorageError::Closed)?;
            }
            self.storage.put(key, value, precondition).await
        })
    }

    fn delete(&self, key: String, unchanged: Revision) -> BoxFuture<'_, Result<WriteOutcome, StorageError>> {
        self.storage.delete(key, unchanged)
    }

    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<WatchStream, StorageError>> {
        self.storage.watch(prefix, from)
    }

    fn request_progress(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        self.storage.request_progress()
    }

    fn current_revision(&self) -> BoxFuture<'_, Result<Revision, StorageError>> {
        self.storage.current_revision()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StorageError>> {
        self.storage.compact(revision)
    }

    fn size(&self) -> BoxFuture<'_, Result<Size, StorageError>> {
        self.storage.size()
    }
}

#[tokio::test]
async fn a_full_server_says_so_and_serves_the_system() {
    let (opener, open) = watch::channel(false);
    let (waiting, mut waited) = watch::channel(0);
    let setup = Setup {
        storage: Arc::new(Blocked { storage: MemoryStorage::new(), open, waiting }),
        authorizer: Some(Arc::new(AllBut(&[]))),
        flow: Arc::new(MaxInFlight::new(1, 2)),
        ..Setup::default()
    };
    let cluster = Cluster::start(setup).await;
    let jane = user("jane", &["system:authenticated"]);
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = |name: &str| json!({ "metadata": { "name": name } });
    let (one, two) = (map("one"), map("two"));
    let blocked = join(cluster.ask(&jane, Method::POST, maps, &one), cluster.ask(&jane, Method::POST, maps, &two));
    let meanwhile = async {
        let full = tokio::time::timeout(PATIENCE, waited.wait_for(|waiting| *waiting == 2)).await;
        assert!(matches!(full, Ok(Ok(_))), "two writes wait for the datastore");
        let refused = cluster.ask(&jane, Method::POST, maps, &map("three")).await;
        assert_eq!((refused.code, refused.message()), (429, "Too many requests, please try again later."));
        assert_eq!(refused.headers["retry-after"], "1");
        // Reads have places of their own, and a stream holds none.
        let read = cluster.ask(&jane, Method::GET, maps, &Value::Null).await;
        assert_eq!(read.code, 200);
        let path = format!("{maps}?watch=true&timeoutSeconds=1");
        for _ in 0..5 {
            assert_eq!(cluster.code_as(&jane, Method::GET, &path, &Value::Null).await, 200);
        }
        let none = HeaderMap::new();
        for path in ["/healthz", "/livez", "/readyz"] {
            assert_eq!(cluster.code(Method::GET, path, &none, Vec::new(), &Value::Null).await, 200, "{path}");
        }
        let secret = json!({ "metadata": { "name": "s" } });
        let secrets = "/api/v1/namespaces/default/secrets";
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let lease = json!({ "metadata": { "name": "n" }, "spec": {} });
        for (who, path, body) in [(&admin(), secrets, &secret), (&node("n"), leases, &lease)] {
            let answer = cluster.ask(who, Method::POST, path, body).await;
            assert_eq!(answer.code, 201, "{path}: {}", answer.body);
        }
        opener.send(true).unwrap();
    };
    let ((one, two), ()) = tokio::time::timeout(PATIENCE, join(blocked, meanwhile)).await.expect("all answers");
    assert_eq!((one.code, two.code), (201, 201));
    assert_eq!(cluster.ask(&jane, Method::POST, maps, &map("three")).await.code, 201, "places are given back");
}
