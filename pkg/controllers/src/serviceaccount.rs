//! ServiceAccount controller: every active namespace has the account `default`.
//!
//! Watches  v1 Namespace (primary), v1 ServiceAccount (deletions)
//! Writes   v1 ServiceAccount (create)
//! Behaves as  pkg/controller/serviceaccount/serviceaccounts_controller.go, v1.36

use std::sync::Arc;

use rkube_api::k8s::core::v1::{Namespace, ServiceAccount};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::{Client, Delta, Lister, Reconciler, Requeue, SyncError, WorkQueue};

use crate::common::enqueue::enqueue_all;
use crate::common::errors::namespace_terminating;
use crate::common::namespaces::is_active;
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "serviceaccount-controller";
const DEFAULT: &str = "default";

pub(crate) const SERVICEACCOUNT: Descriptor = Descriptor::new(NAME, "serviceaccount", start);

struct ServiceAccountController {
    client: Client,
    namespaces: Lister<Namespace>,
    accounts: Lister<ServiceAccount>,
}

fn start(context: &ControllerContext) -> Running {
    let namespaces = context.informers.informer::<Namespace>();
    let accounts = context.informers.informer::<ServiceAccount>();
    let queue: WorkQueue<ObjectKey> = context.queue("serviceaccount");
    let controller = Arc::new(ServiceAccountController {
        client: context.client_for(NAME),
        namespaces: namespaces.lister(),
        accounts: accounts.lister(),
    });
    enqueue_all(&namespaces, &queue);
    let keys = queue.clone();
    accounts.core().add_handler(move |delta| {
        if let Delta::Deleted(account) = delta
            && &*account.key.name == DEFAULT
        {
            keys.add(ObjectKey::cluster(Arc::clone(&account.key.namespace)));
        }
    });
    context.run(NAME, &queue, &controller, 1)
}

impl Reconciler for ServiceAccountController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Requeue::Never) };
        if !is_active(&namespace) || self.accounts.get_named(&key.name, DEFAULT).is_some() {
            return Ok(Requeue::Never);
        }
        let metadata = ObjectMeta { name: Some(DEFAULT.to_owned()), ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        match self.client.namespaced::<ServiceAccount>(&key.name).create(&account).await {
            Ok(_) => Ok(Requeue::Never),
            Err(error) if error.is_already_exists() || namespace_terminating(&error) => Ok(Requeue::Never),
            Err(error) => Err(SyncError::during("creating the default service account")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, metadata, survives_any_crash};

    #[tokio::test]
    async fn every_namespace_has_one_again_and_again() {
        let mut world = World::new(&[SERVICEACCOUNT]);
        world.api.put(&Namespace { metadata: metadata("", "a"), ..Namespace::default() });
        world.start();
        world.settle().await;
        world.api.put(&Namespace { metadata: metadata("", "b"), ..Namespace::default() });
        world.settle().await;
        world.api.remove::<ServiceAccount>("a", "default");
        world.settle().await;
        let accounts = world.api.list::<ServiceAccount>("");
        let namespaces: Vec<_> = accounts.iter().filter_map(|account| account.metadata.namespace.clone()).collect();
        assert_eq!(namespaces, ["a", "b"]);
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let arrange = || {
            let world = World::new(&[SERVICEACCOUNT]);
            for name in ["a", "b"] {
                world.api.put(&Namespace { metadata: metadata("", name), ..Namespace::default() });
            }
            world
        };
        let drive = async |world: &mut World| world.run_for(std::time::Duration::from_secs(10)).await;
        let outcome = |world: &World| {
            let accounts = world.api.list::<ServiceAccount>("");
            accounts.iter().filter_map(|account| account.metadata.namespace.clone()).collect::<Vec<_>>().join(" ")
        };
        survives_any_crash(arrange, drive, outcome).await;
    }
}
