//! What admission looks up: typed reads from the registry, from memory where that is enough.

use std::sync::Arc;

use rkube_api::Kind;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::options::{GetOptions, ListOptions, PatchOptions, UpdateOptions};
use rkube_registry::store::{Patch, Target};
use rkube_registry::{Registry, RequestContext, Store};
use serde_json::Value;

/// Typed reads with the server's own authority.
#[derive(Clone)]
pub struct Objects {
    registry: Arc<Registry>,
    context: Arc<RequestContext>,
}

impl Objects {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, context: Arc::new(RequestContext::internal()) }
    }

    /// From the watch cache, which may be a moment behind.
    pub async fn cached<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, ApiStatus> {
        self.get(namespace, name, "0").await
    }

    /// As the datastore has it now.
    pub async fn live<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, ApiStatus> {
        self.get(namespace, name, "").await
    }

    /// From the watch cache, or the datastore if it is not there: just created objects are found.
    pub async fn cached_or_live<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, ApiStatus> {
        match self.cached(namespace, name).await? {
            Some(object) => Ok(Some(object)),
            None => self.live(namespace, name).await,
        }
    }

    /// All objects of a namespace (all namespaces if empty) from the watch cache.
    pub async fn list<K: Kind>(&self, namespace: &str) -> Result<Vec<Arc<K>>, ApiStatus> {
        self.list_at(namespace, "0", "").await
    }

    /// The objects a field selector leaves, from the watch cache.
    pub async fn select<K: Kind>(&self, namespace: &str, field_selector: &str) -> Result<Vec<Arc<K>>, ApiStatus> {
        self.list_at(namespace, "0", field_selector).await
    }

    /// All objects of a namespace as the datastore has them now.
    pub async fn list_live<K: Kind>(&self, namespace: &str) -> Result<Vec<Arc<K>>, ApiStatus> {
        self.list_at(namespace, "", "").await
    }

    /// Writes an object's status, if the object is still the version that was read.
    pub async fn update_status<K: Kind>(&self, object: &K) -> Result<(), ApiStatus> {
        let metadata = object.metadata();
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let target = Target::new(namespace, metadata.name.clone().unwrap_or_default()).subresource("status");
        self.store::<K>()?.update(&self.context, &target, object.to_value(), &UpdateOptions::default()).await?;
        Ok(())
    }

    /// Merges `patch` into an object.
    pub async fn merge<K: Kind>(&self, metadata: &ObjectMeta, patch: Value) -> Result<(), ApiStatus> {
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let target = Target::new(namespace, metadata.name.clone().unwrap_or_default());
        let patch = Patch::Merge(patch.to_string().into());
        self.store::<K>()?.patch(&self.context, &target, patch, &PatchOptions::default()).await?;
        Ok(())
    }

    async fn list_at<K: Kind>(
        &self,
        namespace: &str,
        version: &str,
        field_selector: &str,
    ) -> Result<Vec<Arc<K>>, ApiStatus> {
        let (resource_version, field_selector) = (version.to_owned(), field_selector.to_owned());
        let options = ListOptions { resource_version, field_selector, ..ListOptions::default() };
        let page = self.store::<K>()?.list(&self.context, namespace, &options).await?;
        page.items.iter().map(|item| item.typed::<K>().map_err(undecodable)).collect()
    }

    async fn get<K: Kind>(&self, namespace: &str, name: &str, version: &str) -> Result<Option<Arc<K>>, ApiStatus> {
        let options = GetOptions { resource_version: version.to_owned() };
        match self.store::<K>()?.get(&self.context, &Target::new(namespace, name), &options).await {
            Ok(object) => object.typed::<K>().map(Some).map_err(undecodable),
            Err(status) if status.is_not_found() => Ok(None),
            Err(status) => Err(status),
        }
    }

    fn store<K: Kind>(&self) -> Result<Store, ApiStatus> {
        let resource = GroupVersionResource::new(K::GROUP, K::VERSION, K::PLURAL);
        self.registry.store(&resource).ok_or_else(|| ApiStatus::internal(format!("{resource} is not served")))
    }
}

fn undecodable(error: rkube_api::kind::DecodeError) -> ApiStatus {
    ApiStatus::internal(rkube_apimachinery::chain::chain(&error))
}
