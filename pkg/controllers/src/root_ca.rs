//! Root CA publisher: every active namespace has the ConfigMap `kube-root-ca.crt`, by which pods trust the API server.
//!
//! Watches  v1 Namespace (primary), v1 ConfigMap of that name
//! Writes   v1 ConfigMap (create, update)
//! Behaves as  pkg/controller/certificates/rootcacertpublisher/publisher.go, v1.36

use std::collections::BTreeMap;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{ConfigMap, Namespace};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::status::ApiStatus;
use rkube_client::{Client, ClientError, Lister, Reconciler, Requeue, SyncError, WorkQueue};

use crate::common::enqueue::enqueue_all;
use crate::common::errors::namespace_terminating;
use crate::common::namespaces::is_active;
use crate::config::ControllerConfig;
use crate::context::{ControllerContext, Descriptor, Running};
use crate::metrics::metrics;

const NAME: &str = "root-ca-certificate-publisher-controller";
const CONFIG_MAP: &str = "kube-root-ca.crt";
const DESCRIPTION_ANNOTATION: &str = "kubernetes.io/description";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

pub(crate) const ROOT_CA: Descriptor = Descriptor::new(NAME, "root-ca-cert-publisher", start);

struct Publisher {
    client: Client,
    config: Arc<ControllerConfig>,
    namespaces: Lister<Namespace>,
    config_maps: Lister<ConfigMap>,
}

fn start(context: &ControllerContext) -> Running {
    let namespaces = context.informers.informer::<Namespace>();
    // Only the maps of this name: all others are none of our business, nor of our memory.
    let config_maps = context.informers.scoped::<ConfigMap>("", "", &format!("metadata.name={CONFIG_MAP}"));
    let queue: WorkQueue<ObjectKey> = context.queue("root_ca_cert_publisher");
    let controller = Arc::new(Publisher {
        client: context.client_for(NAME),
        config: Arc::clone(&context.config),
        namespaces: namespaces.lister(),
        config_maps: config_maps.lister(),
    });
    enqueue_all(&namespaces, &queue);
    let keys = queue.clone();
    config_maps.core().add_handler(move |delta| {
        keys.add(ObjectKey::cluster(Arc::clone(&delta.object().key.namespace)));
    });
    context.run(NAME, &queue, &controller, 1)
}

impl Reconciler for Publisher {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let clock = self.client.clock();
        let start = clock.monotonic();
        let result = self.publish(key).await;
        let code = match &result {
            Ok(_) => 200,
            Err(error) => error.client_error().and_then(ClientError::status).map_or(500, ApiStatus::code),
        };
        metrics().root_ca_synced(code, clock.monotonic().saturating_sub(start));
        result
    }
}

impl Publisher {
    async fn publish(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Requeue::Never) };
        if !is_active(&namespace) {
            return Ok(Requeue::Never);
        }
        let api = self.client.namespaced::<ConfigMap>(&key.name);
        let data = BTreeMap::from([("ca.crt".to_owned(), self.config.root_ca.clone())]);
        let Some(current) = self.config_maps.get_named(&key.name, CONFIG_MAP) else {
            let annotations = BTreeMap::from([(DESCRIPTION_ANNOTATION.to_owned(), DESCRIPTION.to_owned())]);
            let metadata = ObjectMeta {
                name: Some(CONFIG_MAP.to_owned()),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            };
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            return match api.create(&map).await {
                Ok(_) => Ok(Requeue::Never),
                Err(error) if error.is_already_exists() || namespace_terminating(&error) => Ok(Requeue::Never),
                Err(error) => Err(SyncError::during("publishing the root certificate")(error)),
            };
        };
        let described = current.metadata.annotations.as_ref().and_then(|all| all.get(DESCRIPTION_ANNOTATION));
        if current.data.as_ref() == Some(&data) && described.is_some_and(|text| !text.is_empty()) {
            return Ok(Requeue::Never);
        }
        let mut updated = (*current).clone();
        updated.data = Some(data);
        let annotations = updated.metadata.annotations.get_or_insert_default();
        annotations.insert(DESCRIPTION_ANNOTATION.to_owned(), DESCRIPTION.to_owned());
        api.update(&updated).await.map_err(SyncError::during("publishing the root certificate"))?;
        Ok(Requeue::Never)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, metadata, survives_any_crash};

    #[tokio::test]
    async fn is_published_and_put_right() {
        let mut world = World::new(&[ROOT_CA]);
        world.config.root_ca = "PEM".to_owned();
        world.api.put(&Namespace { metadata: metadata("", "a"), ..Namespace::default() });
        world.start();
        world.settle().await;
        world.api.edit::<ConfigMap>("a", CONFIG_MAP, |map| map.data = None);
        world.settle().await;
        let map = world.api.get::<ConfigMap>("a", CONFIG_MAP).expect("it is published");
        assert_eq!(map.data.as_ref().and_then(|data| data.get("ca.crt")).map(String::as_str), Some("PEM"));
        world.api.remove::<ConfigMap>("a", CONFIG_MAP);
        world.settle().await;
        assert!(world.api.get::<ConfigMap>("a", CONFIG_MAP).is_some());
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let arrange = || {
            let mut world = World::new(&[ROOT_CA]);
            world.config.root_ca = "PEM".to_owned();
            for name in ["a", "b"] {
                world.api.put(&Namespace { metadata: metadata("", name), ..Namespace::default() });
            }
            world.api.put(&ConfigMap { metadata: metadata("b", CONFIG_MAP), ..ConfigMap::default() });
            world
        };
        let drive = async |world: &mut World| world.run_for(std::time::Duration::from_secs(10)).await;
        let outcome = |world: &World| {
            let maps = world.api.list::<ConfigMap>("");
            maps.iter().map(|map| format!("{:?} {:?}\n", map.metadata.namespace, map.data)).collect::<String>()
        };
        survives_any_crash(arrange, drive, outcome).await;
    }
}
