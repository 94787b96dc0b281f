//! Volumes are protected while they are bound.

use std::sync::Arc;

use rkube_api::k8s::core::v1::PersistentVolume;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::object_key;
use rkube_client::{Client, Lister, Reconciler, Requeue, SyncError, WorkQueue};

use super::finalizer::{Need, add, need, remove};
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "persistentvolume-protection-controller";
const FINALIZER: &str = "kubernetes.io/pv-protection";

pub(crate) const PERSISTENTVOLUME_PROTECTION: Descriptor = Descriptor::new(NAME, "pv-protection", start);

struct Protection {
    client: Client,
    volumes: Lister<PersistentVolume>,
}

fn start(context: &ControllerContext) -> Running {
    let volumes = context.informers.informer::<PersistentVolume>();
    let queue: WorkQueue<ObjectKey> = context.queue("pvprotection");
    let keys = queue.clone();
    volumes.add_handler(move |delta| {
        let volume = delta.object();
        if need(&volume.metadata, FINALIZER) != Need::Nothing {
            keys.add(object_key(&**volume));
        }
    });
    let controller = Arc::new(Protection { client: context.client_for(NAME), volumes: volumes.lister() });
    context.run(NAME, &queue, &controller, 1)
}

fn is_used(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

impl Reconciler for Protection {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(volume) = self.volumes.get(key) else { return Ok(Requeue::Never) };
        match need(&volume.metadata, FINALIZER) {
            Need::Add => add(&self.client, &*volume, FINALIZER).await?,
            Need::Remove if !is_used(&volume) => remove(&self.client, &*volume, FINALIZER).await?,
            Need::Remove | Need::Nothing => {}
        }
        Ok(Requeue::Never)
    }
}
