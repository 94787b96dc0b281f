//! Ephemeral volume controller: every generic ephemeral volume of a pod has its claim, owned by the pod.
//!
//! Watches  v1 Pod (primary); v1 PersistentVolumeClaim (deleted ones)
//! Writes   v1 PersistentVolumeClaim (create)
//! Behaves as  pkg/controller/volume/ephemeral/controller.go, v1.36
//!
//! Invariant: a claim of the right name that the pod does not own is left alone. It is somebody's data.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolumeClaim, Pod, Volume};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{is_controlled_by, new_controller_ref, object_key};
use rkube_client::{Client, ClientError, Delta, EventRecorder, Lister, Reconciler, Requeue, SyncError, WorkQueue};

use crate::common::claims::{claim_name, index_by_claim, pods_with, volumes};
use crate::common::pods;
use crate::context::{ControllerContext, Descriptor, Running};
use crate::metrics::metrics;

const NAME: &str = "ephemeral-volume-controller";
/// What upstream signs these events with.
const EVENT_SOURCE: &str = "ephemeral_volume";

pub(crate) const EPHEMERAL_VOLUME: Descriptor = Descriptor::new(NAME, "ephemeral-volume", start);

struct EphemeralVolumes {
    client: Client,
    recorder: EventRecorder,
    pods: Lister<Pod>,
    claims: Lister<PersistentVolumeClaim>,
}

fn start(context: &ControllerContext) -> Running {
    let pods = context.informers.informer::<Pod>();
    let claims = context.informers.informer::<PersistentVolumeClaim>();
    index_by_claim(&pods);
    let queue: WorkQueue<ObjectKey> = context.queue("ephemeral_volume");
    let keys = queue.clone();
    pods.add_handler(move |delta| {
        if let Delta::Added(pod) = &delta
            && wants_claims(pod)
        {
            keys.add(object_key(&**pod));
        }
    });
    let (lister, keys) = (pods.lister(), queue.clone());
    claims.add_handler(move |delta| {
        if let Delta::Deleted(claim) = &delta {
            let users = pods_with(&lister, &object_key(&**claim)).into_iter().filter(|pod| wants_claims(pod));
            users.for_each(|pod| keys.add(object_key(&*pod)));
        }
    });
    let controller = Arc::new(EphemeralVolumes {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component(EVENT_SOURCE),
        pods: pods.lister(),
        claims: claims.lister(),
    });
    context.run(NAME, &queue, &controller, context.config.concurrent_syncs)
}

fn wants_claims(pod: &Pod) -> bool {
    !pods::is_terminating(pod) && volumes(pod).any(|volume| volume.ephemeral.is_some())
}

/// The claim of an ephemeral volume; `None` for other volumes.
fn claim_for(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
    let metadata = template.metadata.unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: claim_name(pod, volume),
            namespace: pod.metadata.namespace.clone(),
            owner_references: Some(vec![new_controller_ref(pod)]),
            annotations: metadata.annotations,
            labels: metadata.labels,
            ..ObjectMeta::default()
        },
        spec: Some(template.spec),
        status: None,
    })
}

impl EphemeralVolumes {
    async fn ensure(&self, pod: &Pod, wanted: &PersistentVolumeClaim) -> Result<(), String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = wanted.metadata.name.as_deref().unwrap_or_default();
        match self.claims.get_named(namespace, name) {
            Some(claim) if is_controlled_by(&claim.metadata, pod) => return Ok(()),
            Some(_) => {
                let pod = pod.metadata.name.as_deref().unwrap_or_default();
                return Err(format!(
                    "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
                ));
            }
            None => {}
        }
        let created = self.client.namespaced::<PersistentVolumeClaim>(namespace).create(wanted).await;
        metrics().ephemeral_creates.inc();
        created.map(drop).map_err(|error: ClientError| {
            metrics().ephemeral_failures.inc();
            format!("create PVC {name}: {error}")
        })
    }
}

impl Reconciler for EphemeralVolumes {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(pod) = self.pods.get(key).filter(|pod| wants_claims(pod)) else { return Ok(Requeue::Never) };
        for volume in volumes(&pod) {
            let Some(wanted) = claim_for(&pod, volume) else { continue };
            if let Err(error) = self.ensure(&pod, &wanted).await {
                let text = format!("ephemeral volume {}: {error}", volume.name);
                self.recorder.warning(&*pod, "FailedBinding", &*text);
                return Err(SyncError::other(text));
            }
        }
        Ok(Requeue::Never)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rkube_api::Kind;
    use serde_json::json;

    use super::*;
    use crate::testing::{World, events, metadata, names, survives_any_crash};

    fn world() -> World {
        let world = World::new(&[EPHEMERAL_VOLUME]);
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": spec});
        let ephemeral = |name: &str| json!({"name": name, "ephemeral": {"volumeClaimTemplate": template}});
        let volumes = json!([ephemeral("a"), {"name": "plain", "emptyDir": {}}, ephemeral("b")]);
        let pod =
            json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": {"containers": [], "volumes": volumes}});
        world.api.put(&Pod::from_value(pod).expect("a pod"));
        world
    }

    #[tokio::test]
    async fn claims_are_made_from_the_template_and_made_again() {
        let mut world = world();
        world.start();
        world.settle().await;
        assert_eq!(names::<PersistentVolumeClaim>(&world, "ns"), ["web-a", "web-b"]);
        let claim = world.api.get::<PersistentVolumeClaim>("ns", "web-a").expect("it was made");
        let pod = world.api.get::<Pod>("ns", "web").expect("it was put");
        assert!(is_controlled_by(&claim.metadata, &*pod));
        assert_eq!(claim.metadata.labels, Some(crate::testing::labels(&[("app", "web")])));
        world.api.remove::<PersistentVolumeClaim>("ns", "web-a");
        world.settle().await;
        assert_eq!(names::<PersistentVolumeClaim>(&world, "ns"), ["web-a", "web-b"]);
    }

    #[tokio::test]
    async fn a_claim_of_somebody_else_is_left_alone() {
        let mut world = world();
        world.api.put(&PersistentVolumeClaim { metadata: metadata("ns", "web-a"), ..Default::default() });
        world.start();
        world.run_for(Duration::from_secs(1)).await;
        assert_eq!(names::<PersistentVolumeClaim>(&world, "ns"), ["web-a"]);
        let text = events(&world, "ns");
        let wanted = "Warning FailedBinding: ephemeral volume a: PVC ns/web-a was not created for pod ns/web \
                      (pod is not owner)";
        assert!(text.contains(wanted), "{text}");
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let drive = async |world: &mut World| world.run_for(Duration::from_secs(5)).await;
        survives_any_crash(world, drive, |world| names::<PersistentVolumeClaim>(world, "ns").join(" ")).await;
    }
}
