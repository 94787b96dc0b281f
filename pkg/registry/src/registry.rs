//! The set of stores: one per row of the resource table, over one storage and one storage watch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use rkube_api::resource::{SelectableField, SharedResource};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::gvk::{GroupVersionKind, GroupVersionResource};
use rkube_apimachinery::random::SharedRandom;
use rkube_apimachinery::schema::SchemaSet;
use rkube_apimachinery::status::ApiStatus;
use rkube_apimachinery::task;
use rkube_storage::{Storage, StorageError};
use tokio_util::sync::CancellationToken;
use tracing::info_span;

use crate::alloc::repair::Repair;
use crate::alloc::{self, Addresses, Ports, ServiceHooks};
use crate::background;
use crate::cache::Cache;
use crate::cache::feed::{self, Feed, ROOT, Routes};
use crate::hooks::{Hooks, NoHooks};
use crate::managed::Ownership;
use crate::metrics::RegistryMetrics;
use crate::store::Store;
use crate::store::core::Core;
use crate::strategy::{Registration, SharedStrategy};
use crate::subresource::scale::ScalePaths;
use crate::subresource::token::TokenSigner;

/// What the registry is told at start.
pub struct Config {
    /// Built-in rows; rows that are never stored are ignored.
    pub resources: Vec<SharedResource>,
    pub strategies: Vec<Registration>,
    /// The types of the built-in rows.
    pub schema: Arc<SchemaSet>,
    /// Signs service account tokens; without one there are none.
    pub token_signer: Option<Arc<dyn TokenSigner>>,
    /// The ranges of cluster IPs, primary family first.
    pub service_cidrs: Vec<IpNet>,
    /// First and last node port.
    pub node_ports: (u16, u16),
    /// How long events are kept.
    pub event_ttl: Duration,
    /// How often history older than the previous time is forgotten.
    pub compaction_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            resources: rkube_api::resources().to_vec(),
            strategies: crate::strategy::strategies(),
            schema: Arc::new(rkube_api::schema().clone()),
            token_signer: None,
            service_cidrs: Vec::new(),
            node_ports: (30_000, 32_767),
            event_ttl: Duration::from_secs(3600),
            compaction_interval: Duration::from_secs(300),
        }
    }
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
    #[error("{resource} has no strategy")]
    NoStrategy { resource: String },
    #[error("making the default ServiceCIDR: {0}")]
    DefaultServiceCidr(ApiStatus),
}

/// The policy of a resource that is added at run time.
#[derive(Clone)]
pub struct RuntimeStrategies {
    /// The set that the rows' types are in.
    pub schema: Arc<SchemaSet>,
    pub main: SharedStrategy,
    pub subresources: Vec<(&'static str, SharedStrategy)>,
    /// For resources with the subresource.
    pub scale: Option<ScalePaths>,
}

/// What all stores share.
pub(crate) struct Shared {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) clock: SharedClock,
    pub(crate) random: SharedRandom,
    pub(crate) feed: Arc<Feed>,
    pub(crate) metrics: RegistryMetrics,
    pub(crate) token_signer: Option<Arc<dyn TokenSigner>>,
    /// What was before this revision is not told any more, also where it is still known.
    pub(crate) compacted: AtomicU64,
    /// Stores find one another here: an eviction its budgets, a token its pod. Emptied when the registry goes.
    stores: ArcSwap<Stores>,
}

impl Shared {
    pub(crate) fn store(&self, resource: &GroupVersionResource) -> Option<Store> {
        self.stores.load().get(resource).cloned()
    }
}

type Stores = HashMap<GroupVersionResource, Store>;

/// All stores.
pub struct Registry {
    shared: Arc<Shared>,
    allocators: Allocators,
    routes: Arc<Routes>,
    /// Adding and removing are one at a time.
    changing: tokio::sync::Mutex<()>,
    /// Ends the feed and everything else that runs.
    stop: CancellationToken,
}

impl Registry {
    /// Loads every resource's objects and starts the one storage watch that keeps the caches current.
    pub async fn new(
        storage: Arc<dyn Storage>,
        clock: SharedClock,
        random: SharedRandom,
        config: Config,
    ) -> Result<Arc<Self>, RegistryError> {
        let routes = Arc::new(Routes::default());
        let groups = by_storage(&config.resources);
        for rows in &groups {
            routes.insert(new_cache(rows, &clock));
        }
        let (feed, runner) = Feed::start(storage.clone(), routes.clone(), clock.clone())
            .await
            .map_err(|source| RegistryError::Load { prefix: ROOT.to_owned(), source })?;
        let shared = Arc::new(Shared {
            storage,
            clock,
            random,
            feed,
            metrics: RegistryMetrics::default(),
            token_signer: config.token_signer.clone(),
            compacted: AtomicU64::default(),
            stores: ArcSwap::default(),
        });
        let allocators = Allocators::new(&shared, &config);
        let mut stores = Stores::new();
        for rows in groups {
            let strategies = strategies_of(&rows, &config)?;
            add_stores(&mut stores, &shared, &routes, rows, strategies, &allocators);
        }
        shared.stores.store(Arc::new(stores));
        let stop = CancellationToken::new();
        task::spawn(info_span!("watch-cache"), runner.run(stop.clone()));
        let tidy = feed::tidy(shared.feed.clone(), shared.clock.clone(), stop.clone());
        task::spawn(info_span!("watch-cache-tidy"), tidy);
        start_background(&shared, &allocators, &config, &stop).await?;
        Ok(Arc::new(Self { shared, allocators, routes, changing: tokio::sync::Mutex::default(), stop }))
    }

    pub fn store(&self, resource: &GroupVersionResource) -> Option<Store> {
        self.shared.store(resource)
    }

    /// Every row served, in no order.
    pub fn resources(&self) -> Vec<SharedResource> {
        self.shared.stores.load().values().map(|store| store.resource().clone()).collect()
    }

    /// Serves all versions of a resource, loading what is stored of it. Rows that are served already are
    /// replaced; watches of theirs go on when the storage prefix is the same.
    pub async fn add(&self, rows: Vec<SharedResource>, strategies: RuntimeStrategies) -> Result<(), RegistryError> {
        let _changing = self.changing.lock().await;
        let mut stores = Stores::clone(&self.shared.stores.load());
        for rows in by_storage(&rows) {
            let prefix = prefix_of(&rows);
            let namespaced = rows.first().is_some_and(|row| row.namespaced);
            let known = self.routes.get(&prefix);
            if known.as_ref().is_none_or(|known| !known.fits(namespaced, &fields_of(&rows))) {
                let cache = new_cache(&rows, &self.shared.clock);
                self.routes.insert(cache.clone());
                if let Err(source) = self.shared.feed.load(cache).await {
                    self.routes.remove(&prefix);
                    return Err(RegistryError::Load { prefix, source });
                }
                // Its watchers begin again on the new one.
                if let Some(known) = known {
                    known.close();
                }
            }
            add_stores(&mut stores, &self.shared, &self.routes, rows, strategies.clone(), &self.allocators);
        }
        self.shared.stores.store(Arc::new(stores));
        Ok(())
    }

    /// Stops serving a resource in all versions and ends its watches. Its objects stay in storage.
    pub async fn remove(&self, group: &str, plural: &str) {
        let _changing = self.changing.lock().await;
        let mut stores = Stores::clone(&self.shared.stores.load());
        let mut prefixes = Vec::new();
        stores.retain(|resource, store| {
            let goes = resource.group == group && resource.resource == plural;
            if goes {
                prefixes.push(store.core().cache.prefix().to_owned());
            }
            !goes
        });
        self.shared.stores.store(Arc::new(stores));
        for prefix in prefixes {
            if let Some(cache) = self.routes.remove(&prefix) {
                cache.close();
            }
        }
    }

    /// Adds the registry's metrics to the server's.
    pub fn register_metrics(&self, metrics: &mut prometheus_client::registry::Registry) {
        self.shared.metrics.register(metrics);
    }

    /// Brings values up to date. Call before metrics are encoded.
    pub async fn update_metrics(&self) {
        match self.shared.storage.size().await {
            Ok(size) => self.shared.metrics.set_storage_size(size.on_disk),
            Err(error) => tracing::warn!(error = %chain(&error), "Could not read the size of the datastore"),
        }
        self.shared.metrics.update(self.shared.stores.load().values());
    }

    /// Ends the feed, all watches and all background work.
    pub fn shutdown(&self) {
        self.stop.cancel();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.cancel();
        // Stores hold what they share and that holds the stores.
        self.shared.stores.store(Arc::default());
    }
}

/// Groups rows that share storage: the versions of one resource.
fn by_storage(rows: &[SharedResource]) -> Vec<Vec<SharedResource>> {
    let mut groups: Vec<Vec<SharedResource>> = Vec::new();
    for row in rows {
        let Some(stored) = &row.stored_as else {
            continue;
        };
        let same = |group: &&mut Vec<SharedResource>| {
            group.first().and_then(|first| first.stored_as.as_ref()).is_some_and(|other| other.prefix == stored.prefix)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(row.clone()),
            None => groups.push(vec![row.clone()]),
        }
    }
    groups
}

fn prefix_of(rows: &[SharedResource]) -> String {
    let prefix = rows.first().and_then(|row| row.stored_as.as_ref()).map_or("", |stored| stored.prefix.as_ref());
    format!("{ROOT}{prefix}/")
}

/// The selectable fields of all versions, each path once.
fn fields_of(rows: &[SharedResource]) -> Vec<SelectableField> {
    let mut fields: Vec<SelectableField> = Vec::new();
    for field in rows.iter().flat_map(|row| row.selectable_fields.iter()) {
        if fields.iter().all(|known| known.path != field.path) {
            fields.push(field.clone());
        }
    }
    fields
}

fn new_cache(rows: &[SharedResource], clock: &SharedClock) -> Arc<Cache> {
    let namespaced = rows.first().is_some_and(|row| row.namespaced);
    Arc::new(Cache::new(prefix_of(rows), namespaced, &fields_of(rows), clock.clone()))
}

fn strategies_of(rows: &[SharedResource], config: &Config) -> Result<RuntimeStrategies, RegistryError> {
    let registered = rows
        .iter()
        .find_map(|row| config.strategies.iter().find(|known| known.group == row.group && known.plural == row.plural));
    let name = || rows.first().map(|row| row.group_resource().to_string()).unwrap_or_default();
    let registered = registered.ok_or_else(|| RegistryError::NoStrategy { resource: name() })?;
    Ok(RuntimeStrategies {
        schema: config.schema.clone(),
        main: registered.main.clone(),
        subresources: registered.subresources.clone(),
        scale: rows.iter().find_map(|row| ScalePaths::builtin(row)),
    })
}

/// Allocation for Services, where ranges are configured.
struct Allocators {
    service: Option<ServiceHooks>,
    addresses: Addresses,
    ports: Arc<Ports>,
}

impl Allocators {
    fn new(shared: &Arc<Shared>, config: &Config) -> Self {
        let addresses = Addresses::new(shared.clone());
        let ports = Arc::new(Ports::new(shared.storage.clone(), shared.random.clone(), config.node_ports));
        let hooks = ServiceHooks::new(addresses.clone(), ports.clone(), &config.service_cidrs);
        Self { service: (!config.service_cidrs.is_empty()).then_some(hooks), addresses, ports }
    }
}

async fn start_background(
    shared: &Arc<Shared>,
    allocators: &Allocators,
    config: &Config,
    stop: &CancellationToken,
) -> Result<(), RegistryError> {
    let interval = config.compaction_interval;
    task::spawn(info_span!("compaction"), background::compact(shared.clone(), interval, stop.clone()));
    if let Some(events) = shared.store(&GroupVersionResource::new("", "v1", "events")) {
        task::spawn(info_span!("event-expiry"), background::expire_events(events, config.event_ttl, stop.clone()));
    }
    if allocators.service.is_none() {
        return Ok(());
    }
    let mut repair = Repair::new(allocators.addresses.clone(), allocators.ports.clone());
    // Without it the first Service would find no range.
    repair.ensure_default_cidr(&config.service_cidrs).await.map_err(RegistryError::DefaultServiceCidr)?;
    let (clock, stop) = (shared.clock.clone(), stop.clone());
    let run = async move {
        loop {
            repair.run_once().await;
            clock.sleep(alloc::repair::INTERVAL).await;
        }
    };
    task::spawn(info_span!("service-allocation-repair"), async move {
        stop.run_until_cancelled(run).await;
    });
    Ok(())
}

fn add_stores(
    stores: &mut Stores,
    shared: &Arc<Shared>,
    routes: &Routes,
    rows: Vec<SharedResource>,
    strategies: RuntimeStrategies,
    allocators: &Allocators,
) {
    let Some(cache) = routes.get(&prefix_of(&rows)) else {
        return;
    };
    let Some((row, stored)) = rows.first().and_then(|row| Some((row, row.stored_as.clone()?))) else {
        return;
    };
    let is_service = stored.group.is_empty() && stored.kind == "Service";
    let hooks: Arc<dyn Hooks> = match allocators.service.clone().filter(|_| is_service) {
        Some(hooks) => Arc::new(hooks),
        None => Arc::new(NoHooks),
    };
    let gvk = GroupVersionKind::new(stored.group.as_ref(), stored.version.as_ref(), stored.kind.as_ref());
    let ty = rows.iter().find(|row| row.gvk() == gvk).unwrap_or(row).schema;
    let all = strategies.subresources.iter().map(|(name, strategy)| (*name, strategy));
    let versions: Vec<String> = rows.iter().map(|row| row.group_version().to_string()).collect();
    let ownership = Ownership::new(gvk, ty, &versions, all.chain([("", &strategies.main)]));
    let core = Arc::new(Core {
        ownership,
        shared: shared.clone(),
        cache,
        schema: strategies.schema,
        stored,
        namespaced: row.namespaced,
        fields: fields_of(&rows),
        scale: strategies.scale,
        strategy: strategies.main,
        subresources: strategies.subresources.into_iter().collect(),
        hooks,
    });
    for row in rows {
        stores.insert(row.gvr(), Store::new(row, core.clone()));
    }
}
