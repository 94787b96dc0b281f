//! Waiting for new nodes to be old news.
//!
//! A node that joins gets a range of addresses, taints and untaints, and a lease; five thousand of them keep a server busy
//! for seconds. Whoever measures something else waits until no node's spec has changed for a while.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use parking_lot::Mutex;
use rkube_api::StoredObject;
use rkube_api::k8s::core::v1::Node;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::task;
use rkube_client::client::resource_of;
use rkube_client::reflector::{self, Scope, Sink};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug_span;

use crate::cluster::Cluster;

/// No change for so long is the end of them.
const QUIET: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    /// Heartbeats change the status, and never end.
    spec: Value,
}

struct Specs {
    seen: Mutex<HashMap<ObjectKey, Value>>,
    changed: watch::Sender<()>,
}

/// Waits until `leased` is cancelled and then no node changes any more.
pub(super) async fn wait(cluster: &Cluster, leased: &CancellationToken) -> Result<()> {
    let stop = CancellationToken::new();
    // However the wait ends, the watch ends with it.
    let _stop = stop.clone().drop_guard();
    let (sender, mut changed) = watch::channel(());
    let specs = Arc::new(Specs { seen: Mutex::default(), changed: sender });
    let resource = resource_of::<Node>();
    let scope =
        Scope { resource, namespace: String::new(), label_selector: String::new(), field_selector: String::new() };
    task::spawn(debug_span!("settling"), reflector::run(cluster.client(0), scope, Arc::clone(&specs) as _, stop));
    let settled = async {
        leased.cancelled().await;
        loop {
            tokio::select! {
                // The sender lives in `specs`.
                _ = changed.changed() => {}
                () = cluster.clock.sleep(QUIET) => return,
            }
        }
    };
    tokio::select! {
        () = settled => Ok(()),
        () = cluster.clock.sleep(TIMEOUT) => bail!("nodes still change {} s after they joined", TIMEOUT.as_secs()),
    }
}

impl Specs {
    fn see(&self, object: &StoredObject) {
        let head: Head = serde_json::from_slice(&object.json).unwrap_or_default();
        let before = self.seen.lock().insert(object.key.clone(), head.spec.clone());
        if before != Some(head.spec) {
            self.changed.send_replace(());
        }
    }
}

impl Sink for Specs {
    fn replace(&self, objects: BTreeMap<ObjectKey, Arc<StoredObject>>) {
        objects.values().for_each(|object| self.see(object));
    }

    fn upsert(&self, object: Arc<StoredObject>) {
        self.see(&object);
    }

    fn remove(&self, last: Arc<StoredObject>) {
        self.seen.lock().remove(&last.key);
    }
}
