//! Claims are protected while a pod on a node uses them.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolumeClaim, Pod};
use rkube_apimachinery::key::ObjectKey;
use rkube_client::api::ListParams;
use rkube_client::owner::{is_controlled_by, object_key};
use rkube_client::{Client, Delta, Lister, Reconciler, Requeue, SyncError, WorkQueue};

use super::finalizer::{Need, add, need, remove};
use crate::common::claims::{claim_keys, claim_name, index_by_claim, pods_with, volumes};
use crate::common::pods;
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "persistentvolumeclaim-protection-controller";
const FINALIZER: &str = "kubernetes.io/pvc-protection";

pub(crate) const PERSISTENTVOLUMECLAIM_PROTECTION: Descriptor = Descriptor::new(NAME, "pvc-protection", start);

struct Protection {
    client: Client,
    claims: Lister<PersistentVolumeClaim>,
    pods: Lister<Pod>,
}

fn start(context: &ControllerContext) -> Running {
    let claims = context.informers.informer::<PersistentVolumeClaim>();
    let pods = context.informers.informer::<Pod>();
    index_by_claim(&pods);
    let queue: WorkQueue<ObjectKey> = context.queue("pvcprotection");
    let keys = queue.clone();
    claims.add_handler(move |delta| {
        let claim = delta.object();
        if need(&claim.metadata, FINALIZER) != Need::Nothing {
            keys.add(object_key(&**claim));
        }
    });
    let (lister, keys) = (claims.lister(), queue.clone());
    pods.add_handler(move |delta| {
        let pod = delta.object();
        let may_let_go =
            matches!(delta, Delta::Deleted(_)) || pods::is_terminating(pod) || pods::node_name(pod).is_empty();
        if may_let_go {
            // Claims that are not being deleted have their finalizer, and keep it.
            let waits = |claim: Arc<PersistentVolumeClaim>| need(&claim.metadata, FINALIZER) == Need::Remove;
            claim_keys(pod).filter(|key| lister.get(key).is_some_and(waits)).for_each(|key| keys.add(key));
        }
    });
    let controller =
        Arc::new(Protection { client: context.client_for(NAME), claims: claims.lister(), pods: pods.lister() });
    context.run(NAME, &queue, &controller, context.config.concurrent_syncs)
}

/// Whether the pod has the claim's data in use, or may have from any moment on. Finished pods count: their kubelet may
/// not have unmounted it yet.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    if pods::node_name(pod).is_empty() {
        return false;
    }
    let stopped = pods::is_terminating(pod) && pod.metadata.deletion_grace_period_seconds == Some(0);
    volumes(pod).any(|volume| {
        claim_name(pod, volume) == claim.metadata.name
            && (volume.ephemeral.is_none() || (!stopped && is_controlled_by(&claim.metadata, pod)))
    })
}

impl Protection {
    async fn is_used(&self, key: &ObjectKey, claim: &PersistentVolumeClaim) -> Result<bool, SyncError> {
        if pods_with(&self.pods, key).iter().any(|pod| uses(pod, claim)) {
            return Ok(true);
        }
        let listed = self.client.namespaced::<Pod>(&key.namespace).list(&ListParams::default()).await;
        let listed = listed.map_err(SyncError::during("looking for pods that use a claim"))?;
        Ok(listed.items.iter().any(|pod| uses(pod, claim)))
    }
}

impl Reconciler for Protection {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(claim) = self.claims.get(key) else { return Ok(Requeue::Never) };
        match need(&claim.metadata, FINALIZER) {
            Need::Add => add(&self.client, &*claim, FINALIZER).await?,
            Need::Remove if !self.is_used(key, &claim).await? => remove(&self.client, &*claim, FINALIZER).await?,
            Need::Remove | Need::Nothing => {}
        }
        Ok(Requeue::Never)
    }
}
