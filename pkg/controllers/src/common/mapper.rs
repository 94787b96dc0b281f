//! From group and kind, as owner references and targets name them, to the resource that serves them.
//!
//! Built-in kinds are in the resource table. Discovery is read for the others: once, and again when a kind is asked
//! for that it did not have, but not more often than [`REFRESH`].
//! Behaves as `DeferredDiscoveryRESTMapper` of k8s.io/client-go/restmapper, v1.36.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rkube_api::resource::SharedResource;
use rkube_apimachinery::clock::SharedClock;
use rkube_client::{Client, ClientError};
use tokio::sync::Mutex;

use super::discovery::discover;

const REFRESH: Duration = Duration::from_secs(30);

/// Finds resources. Clones share what was read.
#[derive(Clone)]
pub(crate) struct Mapper {
    client: Client,
    clock: SharedClock,
    found: Arc<Mutex<Option<Found>>>,
}

struct Found {
    /// By group and kind.
    resources: HashMap<(String, String), SharedResource>,
    read_at: Duration,
}

impl Mapper {
    pub(crate) fn new(client: &Client) -> Self {
        Self { client: client.clone(), clock: Arc::clone(client.clock()), found: Arc::default() }
    }

    /// The resource whose objects are of this kind, in the version the server prefers. `None` if nothing serves it.
    pub(crate) async fn resource_of(&self, group: &str, kind: &str) -> Result<Option<SharedResource>, ClientError> {
        let built_in = |row: &&SharedResource| row.group == group && row.kind == kind && row.has_verb("get");
        if let Some(known) = rkube_api::resources().iter().find(built_in) {
            return Ok(Some(Arc::clone(known)));
        }
        let key = (group.to_owned(), kind.to_owned());
        let mut found = self.found.lock().await;
        let known = found.as_ref().and_then(|found| found.resources.get(&key).cloned());
        let now = self.clock.monotonic();
        let fresh = found.as_ref().is_some_and(|found| now.saturating_sub(found.read_at) < REFRESH);
        if known.is_some() || fresh {
            return Ok(known);
        }
        let mut resources = HashMap::new();
        for resource in discover(&self.client).await?.resources {
            if resource.has_verb("get") {
                let key = (resource.group.to_string(), resource.kind.to_string());
                resources.entry(key).or_insert(resource);
            }
        }
        let answer = resources.get(&key).cloned();
        *found = Some(Found { resources, read_at: now });
        Ok(answer)
    }
}
