//! Classes of volume attributes are protected while a claim or a volume names them.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_api::k8s::storage::v1::VolumeAttributesClass;
use rkube_api::volumes::attributes_classes;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::object_key;
use rkube_client::{Client, Delta, Lister, Reconciler, Requeue, SyncError, WorkQueue};

use super::finalizer::{Need, add, need, remove};
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "volumeattributesclass-protection-controller";
const FINALIZER: &str = "kubernetes.io/vac-protection";
/// Claims and volumes by the classes of volume attributes they name.
const CLASS_INDEX: &str = "volumeAttributesClass";

pub(crate) const VOLUMEATTRIBUTESCLASS_PROTECTION: Descriptor = Descriptor::new(NAME, NAME, start);

struct Protection {
    client: Client,
    classes: Lister<VolumeAttributesClass>,
    claims: Lister<PersistentVolumeClaim>,
    volumes: Lister<PersistentVolume>,
}

fn of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    attributes_classes(claim).cloned().collect()
}

fn of_volume(volume: &PersistentVolume) -> Vec<String> {
    let class = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    class.filter(|class| !class.is_empty()).into_iter().collect()
}

fn start(context: &ControllerContext) -> Running {
    let classes = context.informers.informer::<VolumeAttributesClass>();
    let claims = context.informers.informer::<PersistentVolumeClaim>();
    let volumes = context.informers.informer::<PersistentVolume>();
    claims.add_index(CLASS_INDEX, of_claim);
    volumes.add_index(CLASS_INDEX, of_volume);
    let queue: WorkQueue<ObjectKey> = context.queue("vacprotection");
    let keys = queue.clone();
    classes.add_handler(move |delta| {
        let class = delta.object();
        if need(&class.metadata, FINALIZER) != Need::Nothing {
            keys.add(object_key(&**class));
        }
    });
    let (lister, keys) = (classes.lister(), queue.clone());
    claims.add_handler(move |delta| queue_former(&lister, &keys, &delta, of_claim));
    let (lister, keys) = (classes.lister(), queue.clone());
    volumes.add_handler(move |delta| queue_former(&lister, &keys, &delta, of_volume));
    let controller = Arc::new(Protection {
        client: context.client_for(NAME),
        classes: classes.lister(),
        claims: claims.lister(),
        volumes: volumes.lister(),
    });
    context.run(NAME, &queue, &controller, 1)
}

/// Queues the classes that are to go and that an object named until now.
fn queue_former<K>(
    classes: &Lister<VolumeAttributesClass>,
    queue: &WorkQueue<ObjectKey>,
    delta: &Delta<Arc<K>>,
    named: fn(&K) -> Vec<String>,
) {
    let former = match delta {
        Delta::Added(_) => return,
        Delta::Updated { old, .. } => old,
        Delta::Deleted(last) => last,
    };
    for name in named(former) {
        let key = ObjectKey::cluster(name);
        if classes.get(&key).is_some_and(|class| need(&class.metadata, FINALIZER) == Need::Remove) {
            queue.add(key);
        }
    }
}

impl Reconciler for Protection {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(class) = self.classes.get(key) else { return Ok(Requeue::Never) };
        let is_used = || {
            !self.claims.by_index(CLASS_INDEX, &key.name).is_empty()
                || !self.volumes.by_index(CLASS_INDEX, &key.name).is_empty()
        };
        match need(&class.metadata, FINALIZER) {
            Need::Add => add(&self.client, &*class, FINALIZER).await?,
            Need::Remove if !is_used() => remove(&self.client, &*class, FINALIZER).await?,
            Need::Remove | Need::Nothing => {}
        }
        Ok(Requeue::Never)
    }
}
