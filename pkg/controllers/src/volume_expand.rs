//! Persistent volume expander: says of claims that want to grow who is to make them grow.
//!
//! Watches  v1 PersistentVolumeClaim (primary), v1 PersistentVolume
//! Writes   events, and the annotation that names the driver for volumes of former in-tree plugins
//! Behaves as  pkg/controller/volume/expand/expand_controller.go, v1.36
//!
//! No volume plugin is in the process that could expand anything: drivers bring their own resizers.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec};
use rkube_api::pod_resources::parse;
use rkube_api::volumes::{requested_size, volume_name};
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::quantity::Quantity;
use rkube_client::owner::object_key;
use rkube_client::{Client, Delta, EventRecorder, Lister, Patch, Reconciler, Requeue, SyncError, WorkQueue};
use serde_json::json;

use crate::common::errors::ignore_not_found;
use crate::common::migrated_plugins::driver_of;
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "persistentvolume-expander-controller";
/// What upstream signs these events with.
const EVENT_SOURCE: &str = "volume_expand";
const RESIZER: &str = "volume.kubernetes.io/storage-resizer";

pub(crate) const PERSISTENTVOLUME_EXPANDER: Descriptor = Descriptor::new(NAME, "persistentvolume-expander", start);

struct Expander {
    client: Client,
    recorder: EventRecorder,
    claims: Lister<PersistentVolumeClaim>,
    volumes: Lister<PersistentVolume>,
}

fn start(context: &ControllerContext) -> Running {
    let claims = context.informers.informer::<PersistentVolumeClaim>();
    let volumes = context.informers.informer::<PersistentVolume>();
    let queue: WorkQueue<ObjectKey> = context.queue("volume_expand");
    let keys = queue.clone();
    claims.add_handler(move |delta| {
        let claim = delta.object();
        let grew = match &delta {
            Delta::Added(_) => true,
            Delta::Updated { old, new } => requested_size(new) > requested_size(old) || has_size(new) > has_size(old),
            Delta::Deleted(_) => false,
        };
        if grew && wants_to_grow(claim) {
            keys.add(object_key(&**claim));
        }
    });
    let controller = Arc::new(Expander {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component(EVENT_SOURCE),
        claims: claims.lister(),
        volumes: volumes.lister(),
    });
    context.run(NAME, &queue, &controller, context.config.concurrent_syncs)
}

/// The size the claim is known to have.
fn has_size(claim: &PersistentVolumeClaim) -> Quantity {
    let capacity = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
    parse(capacity).remove("storage").unwrap_or_default()
}

fn wants_to_grow(claim: &PersistentVolumeClaim) -> bool {
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Bound") && requested_size(claim) > has_size(claim)
}

/// The former in-tree plugin of a volume.
fn migrated_plugin(spec: &PersistentVolumeSpec) -> Option<&'static str> {
    let sources = [
        (spec.aws_elastic_block_store.is_some(), "kubernetes.io/aws-ebs"),
        (spec.azure_disk.is_some(), "kubernetes.io/azure-disk"),
        (spec.azure_file.is_some(), "kubernetes.io/azure-file"),
        (spec.cinder.is_some(), "kubernetes.io/cinder"),
        (spec.gce_persistent_disk.is_some(), "kubernetes.io/gce-pd"),
        (spec.portworx_volume.is_some(), "kubernetes.io/portworx-volume"),
        (spec.vsphere_volume.is_some(), "kubernetes.io/vsphere-volume"),
    ];
    sources.into_iter().find_map(|(is_used, plugin)| is_used.then_some(plugin))
}

impl Expander {
    async fn name_resizer(&self, claim: &PersistentVolumeClaim, driver: &str) -> Result<(), SyncError> {
        let current = claim.metadata.annotations.as_ref().and_then(|annotations| annotations.get(RESIZER));
        if current.is_some_and(|current| current == driver) {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": claim.metadata.uid, "annotations": {RESIZER: driver}}});
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let api = self.client.namespaced::<PersistentVolumeClaim>(namespace);
        let written = api.patch_status(name, &Patch::Merge(patch)).await;
        ignore_not_found(written.map(drop)).map_err(SyncError::during("naming the resizer"))
    }
}

impl Reconciler for Expander {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        const REASON: &str = "ExternalExpanding";
        let Some(claim) = self.claims.get(key).filter(|claim| wants_to_grow(claim)) else {
            return Ok(Requeue::Never);
        };
        let name = volume_name(&claim);
        let Some(volume) = self.volumes.get_named("", name) else {
            return Err(SyncError::other(format!("failed to get PV {name:?}")));
        };
        let Some(spec) = &volume.spec else { return Ok(Requeue::Never) };
        if spec.claim_ref.as_ref().is_none_or(|reference| reference.uid != claim.metadata.uid) {
            return Err(SyncError::other(format!("persistent Volume is not bound to PVC being updated : {key}")));
        }
        match migrated_plugin(spec).and_then(|plugin| Some((plugin, driver_of(plugin)?))) {
            Some((plugin, driver)) => {
                let text =
                    format!("CSI migration enabled for {plugin}; waiting for external resizer to expand the pvc");
                self.recorder.normal(&*claim, REASON, text);
                self.name_resizer(&claim, driver).await?;
            }
            None => self.recorder.normal(&*claim, REASON, "waiting for an external controller to expand this PVC"),
        }
        Ok(Requeue::Never)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use rkube_api::Kind;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{World, events, survives_any_crash};

    fn world(source: &Value) -> World {
        let world = World::new(&[PERSISTENTVOLUME_EXPANDER]);
        let claim = json!({
            "metadata": {"namespace": "ns", "name": "data"},
            "spec": {"volumeName": "v", "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        });
        world.api.put(&PersistentVolumeClaim::from_value(claim).expect("a claim"));
        let uid = world.api.get::<PersistentVolumeClaim>("ns", "data").and_then(|claim| claim.metadata.uid.clone());
        let mut spec = source.clone();
        spec["claimRef"] = json!({"namespace": "ns", "name": "data", "uid": uid});
        let volume = json!({"metadata": {"name": "v"}, "spec": spec});
        world.api.put(&PersistentVolume::from_value(volume).expect("a volume"));
        world
    }

    async fn grow(world: &mut World) {
        world.settle().await;
        world.api.edit::<PersistentVolumeClaim>("ns", "data", |claim| {
            let spec = json!({"volumeName": "v", "resources": {"requests": {"storage": "2Gi"}}});
            claim.spec = PersistentVolumeClaim::from_value(json!({"spec": spec})).expect("a claim").spec;
        });
        world.settle().await;
    }

    fn resizer(world: &World) -> String {
        let claim = world.api.get::<PersistentVolumeClaim>("ns", "data").expect("it was put");
        let annotations = claim.metadata.annotations.as_ref();
        annotations.and_then(|annotations| annotations.get(RESIZER).cloned()).unwrap_or_default()
    }

    #[tokio::test]
    async fn growing_is_left_to_drivers() {
        let mut csi = world(&json!({"csi": {"driver": "example.com", "volumeHandle": "1"}}));
        csi.start();
        grow(&mut csi).await;
        expect!["Normal ExternalExpanding: waiting for an external controller to expand this PVC"]
            .assert_eq(&events(&csi, "ns"));
        assert_eq!(resizer(&csi), "");
    }

    #[tokio::test]
    async fn volumes_of_former_plugins_name_their_driver() {
        let source = json!({"awsElasticBlockStore": {"volumeID": "1"}});
        let mut aws = world(&source);
        aws.start();
        grow(&mut aws).await;
        expect!["Normal ExternalExpanding: CSI migration enabled for kubernetes.io/aws-ebs; waiting for external resizer to expand the pvc"]
            .assert_eq(&events(&aws, "ns"));
        assert_eq!(resizer(&aws), "ebs.csi.aws.com");
        survives_any_crash(|| world(&source), grow, resizer).await;
    }
}
