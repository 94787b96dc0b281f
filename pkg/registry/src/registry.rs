//! The set of stores: one per row of the resource table, over one storage and one storage watch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use rand::rngs::StdRng;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_storage::{Storage, StorageError};

use crate::store::Store;
use crate::strategy::{Registration, SharedStrategy};

/// What the registry is told at start.
pub struct Config {
    /// Built-in rows; rows that are never stored are ignored.
    pub resources: Vec<SharedResource>,
    pub strategies: Vec<Registration>,
    /// The ranges of cluster IPs, primary family first.
    pub service_cidrs: Vec<IpNet>,
    /// First and last node port.
    pub node_ports: (u16, u16),
    /// How long events are kept.
    pub event_ttl: Duration,
    /// How often history older than the previous time is forgotten.
    pub compaction_interval: Duration,
}

/// Why the registry could not start.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("loading {prefix} from the datastore")]
    Load {
        prefix: String,
        #[source]
        source: StorageError,
    },
    #[error("resource {group}/{plural} has no strategy")]
    NoStrategy { group: String, plural: String },
}

/// The strategies of a resource that is added at run time.
pub struct RuntimeStrategies {
    pub main: SharedStrategy,
    pub subresources: Vec<(&'static str, SharedStrategy)>,
}

/// All stores.
pub struct Registry {
    stores: ArcSwap<HashMap<GroupVersionResource, Store>>,
}

impl Registry {
    /// Loads every resource's objects and starts the one storage watch that keeps the caches current.
    pub async fn new(
        storage: Arc<dyn Storage>,
        clock: SharedClock,
        random: StdRng,
        config: Config,
    ) -> Result<Arc<Self>, RegistryError> {
        let _ = (storage, clock, random, config);
        Ok(Arc::new(Self { stores: ArcSwap::default() }))
    }

    pub fn store(&self, resource: &GroupVersionResource) -> Option<Store> {
        self.stores.load().get(resource).cloned()
    }

    /// Every row served, in no order.
    pub fn resources(&self) -> Vec<SharedResource> {
        self.stores.load().values().map(|store| store.resource().clone()).collect()
    }

    /// Serves all versions of a resource, loading what is stored of it. Rows that are served already are
    /// replaced; watches of theirs go on when the storage prefix is the same.
    pub async fn add(&self, rows: Vec<SharedResource>, strategies: RuntimeStrategies) -> Result<(), RegistryError> {
        let _ = (rows, strategies);
        Ok(())
    }

    /// Stops serving a resource in all versions and ends its watches. Its objects stay in storage.
    pub fn remove(&self, group: &str, plural: &str) {
        let _ = (group, plural);
    }
}
