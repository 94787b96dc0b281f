//! Legacy token tracking: writes down since when uses of token Secrets are tracked, so that the cleaner knows
//! whether one without a use was ever watched.
//!
//! Every server runs it, beside its API.
//!
//! Watches  v1 ConfigMap `kube-system/kube-apiserver-legacy-service-account-token-tracking` (primary)
//! Writes   the same (create, update)
//! Behaves as  pkg/controlplane/controller/legacytokentracking/controller.go, v1.36

use std::collections::BTreeMap;
use std::sync::Arc;

use rkube_api::k8s::core::v1::ConfigMap;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::{Client, Lister, Reconciler, Requeue, SyncError, WorkQueue};

use super::{SINCE, TRACKING_CONFIG_MAP, TRACKING_NAMESPACE, day, parse_day};
use crate::common::enqueue::enqueue_all;
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "legacy-token-tracking-controller";

pub(crate) const LEGACY_TOKEN_TRACKING: Descriptor = Descriptor::new(NAME, NAME, start);

struct Tracking {
    client: Client,
    config_maps: Lister<ConfigMap>,
}

fn start(context: &ControllerContext) -> Running {
    let config_maps =
        context.informers.scoped::<ConfigMap>(TRACKING_NAMESPACE, "", &format!("metadata.name={TRACKING_CONFIG_MAP}"));
    let queue: WorkQueue<ObjectKey> = context.queue("legacy_token_tracking_controller");
    let controller = Arc::new(Tracking { client: context.client_for(NAME), config_maps: config_maps.lister() });
    enqueue_all(&config_maps, &queue);
    queue.add(ObjectKey::new(TRACKING_NAMESPACE, TRACKING_CONFIG_MAP));
    context.run(NAME, &queue, &controller, 1)
}

impl Reconciler for Tracking {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let api = self.client.namespaced::<ConfigMap>(&key.namespace);
        let today = (SINCE.to_owned(), day(self.client.clock().now()));
        let written = match self.config_maps.get(key) {
            None => {
                let metadata = ObjectMeta { name: Some(key.name.to_string()), ..ObjectMeta::default() };
                api.create(&ConfigMap { metadata, data: Some(BTreeMap::from([today])), ..ConfigMap::default() }).await
            }
            Some(current) => {
                let since = current.data.as_ref().and_then(|data| data.get(SINCE));
                if since.is_some_and(|since| parse_day(since).is_some()) {
                    return Ok(Requeue::Never);
                }
                let mut changed = ConfigMap::clone(&current);
                changed.data.get_or_insert_default().extend([today]);
                api.update(&changed).await
            }
        };
        match written {
            // Another server was first, or it is gone: its event queues it again.
            Err(error) if !(error.is_already_exists() || error.is_not_found() || error.is_conflict()) => {
                Err(SyncError::during("writing down since when token Secrets are tracked")(error))
            }
            _ => Ok(Requeue::Never),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{World, metadata, survives_any_crash};

    fn arrange(data: Option<&str>) -> World {
        let world = World::new(&[LEGACY_TOKEN_TRACKING]);
        if let Some(since) = data {
            let data = BTreeMap::from([(SINCE.to_owned(), since.to_owned())]);
            let metadata = metadata(TRACKING_NAMESPACE, TRACKING_CONFIG_MAP);
            world.api.put(&ConfigMap { metadata, data: Some(data), ..ConfigMap::default() });
        }
        world
    }

    fn since(world: &World) -> String {
        let map = world.api.get::<ConfigMap>(TRACKING_NAMESPACE, TRACKING_CONFIG_MAP);
        map.and_then(|map| map.data.as_ref()?.get(SINCE).cloned()).unwrap_or_default()
    }

    #[tokio::test]
    async fn the_day_is_written_once_and_put_right_if_it_is_none() {
        for (before, after) in [(None, "2030-01-01"), (Some("2025-03-04"), "2025-03-04"), (Some("?"), "2030-01-01")] {
            let drive = async |world: &mut World| world.run_for(Duration::from_secs(10)).await;
            survives_any_crash(|| arrange(before), drive, since).await;
            let mut world = arrange(before);
            world.start();
            world.run_for(Duration::from_secs(10)).await;
            assert_eq!(since(&world), after);
        }
    }
}
