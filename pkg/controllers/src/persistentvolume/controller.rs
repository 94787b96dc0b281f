//! Finds claims and volumes to look at, and carries out what is planned for them.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use rkube_api::k8s::storage::v1::StorageClass;
use rkube_api::volumes::{BIND_COMPLETED, requested_class, volume_class, volume_name};
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::object_key;
use rkube_client::{Client, Delta, EventRecorder, Informer, Lister, Reconciler, Requeue, Runner, SyncError, WorkQueue};

use super::NAME;
use super::claims::{self, Note, Storage};
use super::reclaim::{is_released, recycled_volume};
use super::volumes::{self, phase};
use crate::common::claims::{claim_keys, index_by_claim, pods_with};
use crate::common::latest::Latest;
use crate::common::pods;
use crate::context::{ControllerContext, Running};
use crate::metrics::metrics;

/// What upstream signs these events with.
const EVENT_SOURCE: &str = "persistentvolume-controller";

/// Volumes by the claim they are reserved for, `namespace/name`; empty for those that are free.
const CLAIM_INDEX: &str = "claimRef";
/// Claims by the volume they name.
const VOLUME_INDEX: &str = "volumeName";
/// Claims that look for a volume, by [`wanted_class`].
const WANTED_INDEX: &str = "wantedClass";

pub(super) struct Binder {
    pub(super) client: Client,
    pub(super) recorder: EventRecorder,
    pub(super) claims: Latest<PersistentVolumeClaim>,
    pub(super) volumes: Latest<PersistentVolume>,
    classes: Lister<StorageClass>,
    pods: Lister<Pod>,
    queues: Queues,
}

#[derive(Clone)]
struct Queues {
    claims: WorkQueue<ObjectKey>,
    volumes: WorkQueue<ObjectKey>,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let claims = context.informers.informer::<PersistentVolumeClaim>();
    let volumes = context.informers.informer::<PersistentVolume>();
    let classes = context.informers.informer::<StorageClass>();
    let pods = context.informers.informer::<Pod>();
    index_by_claim(&pods);
    volumes.add_index(CLAIM_INDEX, |volume| vec![reserved_for(volume).map_or(String::new(), |key| key.to_string())]);
    claims.add_index(VOLUME_INDEX, |claim| {
        Some(volume_name(claim)).filter(|name| !name.is_empty()).map(str::to_owned).into_iter().collect()
    });
    claims.add_index(WANTED_INDEX, |claim| wanted_class(claim).into_iter().collect());
    let queues = Queues { claims: context.queue("claims"), volumes: context.queue("volumes") };
    let binder = Arc::new(Binder {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component(EVENT_SOURCE),
        // Before the handlers below, so that what wakes a worker is also what it sees.
        claims: Latest::new(&claims),
        volumes: Latest::new(&volumes),
        classes: classes.lister(),
        pods: pods.lister(),
        queues: queues.clone(),
    });
    watch(&binder, &claims, &volumes, &classes, &pods);
    metrics().volumes.watch(volumes.lister(), claims.lister());
    // One worker each, as upstream: two at once would choose the same volume for two claims, and one would lose.
    let claim_worker = Runner::new(NAME, queues.claims, Arc::clone(&binder)).workers(1);
    let volume_worker = Runner::new(NAME, queues.volumes, Arc::new(VolumeWorker(binder))).workers(1);
    let stop = context.shutdown.clone();
    Box::pin(async move {
        tokio::join!(claim_worker.run(stop.clone()), volume_worker.run(stop));
    })
}

/// The claim a volume is reserved for.
fn reserved_for(volume: &PersistentVolume) -> Option<ObjectKey> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Some(ObjectKey::new(text(&reference.namespace), text(&reference.name)))
}

/// `class/NAME` for a claim that takes any volume of a class, `open` if it leaves the class open.
fn wanted_class(claim: &PersistentVolumeClaim) -> Option<String> {
    let annotations = claim.metadata.annotations.as_ref();
    let bound = annotations.is_some_and(|annotations| annotations.contains_key(BIND_COMPLETED));
    if bound || !volume_name(claim).is_empty() {
        return None;
    }
    Some(requested_class(claim).map_or_else(|| "open".to_owned(), |class| format!("class/{class}")))
}

fn watch(
    binder: &Arc<Binder>,
    claims: &Informer<PersistentVolumeClaim>,
    volumes: &Informer<PersistentVolume>,
    classes: &Informer<StorageClass>,
    pods: &Informer<Pod>,
) {
    let observer = Arc::clone(binder);
    claims.add_handler(move |delta| {
        let key = object_key(&**delta.object());
        observer.wake_volumes_of(&key);
        if !volume_name(delta.object()).is_empty() {
            observer.queues.volumes.add(ObjectKey::cluster(volume_name(delta.object())));
        }
        observer.queues.claims.add(key);
    });
    let observer = Arc::clone(binder);
    volumes.add_handler(move |delta| observer.volume_changed(&delta));
    let observer = Arc::clone(binder);
    classes.add_handler(move |delta| {
        let name = delta.object().metadata.name.as_deref().unwrap_or_default();
        observer.wake_claims_of(&format!("class/{name}"));
        // It may be the default now.
        observer.wake_claims_of("open");
    });
    let observer = Arc::clone(binder);
    pods.add_handler(move |delta| {
        let pod = delta.object();
        if let Some(volume) = recycled_volume(pod) {
            observer.queues.volumes.add(volume);
        }
        let scheduled = |pod: &Pod| !pods::node_name(pod).is_empty();
        let moved = delta
            .old()
            .is_none_or(|old| scheduled(old) != scheduled(pod) || pods::is_terminal(old) != pods::is_terminal(pod));
        if moved || matches!(delta, Delta::Deleted(_)) {
            for key in claim_keys(pod) {
                if observer.claims.get(&key).is_none_or(|claim| wanted_class(&claim).is_some()) {
                    observer.wake_volumes_of(&key);
                    observer.queues.claims.add(key);
                }
            }
        }
    });
}

impl Binder {
    fn wake_claims_of(&self, wanted: &str) {
        for claim in self.claims.by_index(WANTED_INDEX, wanted) {
            self.queues.claims.add(object_key(&*claim));
        }
    }

    fn wake_volumes_of(&self, claim: &ObjectKey) {
        for volume in self.volumes.by_index(CLAIM_INDEX, &claim.to_string()) {
            self.queues.volumes.add(object_key(&*volume));
        }
    }

    fn volume_changed(&self, delta: &Delta<Arc<PersistentVolume>>) {
        let volume = delta.object();
        let key = object_key(&**volume);
        self.queues.volumes.add(key.clone());
        for volume in [Some(volume), delta.old()].into_iter().flatten() {
            if let Some(claim) = reserved_for(volume) {
                self.queues.claims.add(claim);
            }
        }
        for claim in self.claims.by_index(VOLUME_INDEX, &key.name) {
            self.queues.claims.add(object_key(&*claim));
        }
        let is_free = |volume: &PersistentVolume| reserved_for(volume).is_none() && phase(volume) == "Available";
        let unchanged = |old: &Arc<PersistentVolume>| {
            is_free(old) && old.spec == volume.spec && old.metadata.labels == volume.metadata.labels
        };
        if is_free(volume) && !delta.old().is_some_and(unchanged) && !matches!(delta, Delta::Deleted(_)) {
            let class = volume_class(volume);
            self.wake_claims_of(&format!("class/{class}"));
            if class.is_empty() {
                self.wake_claims_of("open");
            }
        }
    }

    /// The claim a volume refers to, by uid. `certainly` asks the API even where the cache has an answer.
    pub(super) async fn claim_of(
        &self,
        volume: &PersistentVolume,
        certainly: bool,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, SyncError> {
        let Some(key) = reserved_for(volume) else { return Ok(None) };
        let uid = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).and_then(|claim| claim.uid.as_ref());
        let is_meant = |claim: &PersistentVolumeClaim| claim.metadata.uid.as_ref() == uid;
        let cached = self.claims.get(&key);
        match cached {
            Some(claim) if is_meant(&claim) && !certainly => return Ok(Some(claim)),
            // The volume is on its way out, and claims do not come back.
            None if is_released(volume) && !certainly => return Ok(None),
            _ => {}
        }
        let fresh = self.fetch::<PersistentVolumeClaim>(&key.namespace, &key.name).await?;
        Ok(fresh.filter(|claim| is_meant(claim)).map(Arc::new))
    }

    /// Running pods that use the claim a volume is reserved for.
    pub(super) fn users_of(&self, volume: &PersistentVolume) -> Vec<String> {
        let Some(claim) = reserved_for(volume) else { return Vec::new() };
        let users = pods_with(&self.pods, &claim).into_iter().filter(|pod| !pods::is_terminal(pod));
        let mut names: Vec<String> = users.map(|pod| object_key(&*pod).to_string()).collect();
        names.sort();
        names
    }

    fn note(&self, claim: &PersistentVolumeClaim, note: &Note) {
        self.recorder.event(claim, note.event_type, note.reason, &*note.message);
    }

    async fn sync_claim(&self, claim: Arc<PersistentVolumeClaim>) -> Result<(), SyncError> {
        match claims::plan(&claim, self) {
            claims::Step::Bind(volume) => self.bind(volume, claim).await,
            claims::Step::AssignClass(class) => {
                let mut updated = (*claim).clone();
                updated.spec.get_or_insert_default().storage_class_name = Some(class);
                let assigned = self.update_claim(&updated, "assigning the default class").await.map(drop);
                metrics().default_class_assigned(assigned.is_ok());
                assigned
            }
            claims::Step::Provision(provisioner) => {
                self.set_provisioner(&claim, &provisioner).await?;
                let text = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or \
                     manually by the system administrator. If volume creation is delayed, please verify that the \
                     provisioner is running and correctly registered."
                );
                self.recorder.normal(&*claim, "ExternalProvisioning", text);
                Ok(())
            }
            claims::Step::Wait(note) => {
                if let Some(note) = note {
                    self.note(&claim, &note);
                }
                self.set_claim_phase(claim, "Pending", None).await.map(drop)
            }
            claims::Step::Report(note) => {
                self.note(&claim, &note);
                Ok(())
            }
            claims::Step::Lose(note) => self.lose(claim, &note).await,
            claims::Step::Retry(note, error) => {
                self.note(&claim, &note);
                Err(SyncError::other(error))
            }
        }
    }

    async fn lose(&self, claim: Arc<PersistentVolumeClaim>, note: &Note) -> Result<(), SyncError> {
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            return Ok(());
        }
        // The caches of claims and volumes do not move together: the volume may just not be there yet.
        let name = volume_name(&claim);
        let missing = !name.is_empty() && Storage::volume(self, name).is_none();
        if missing && self.fetch::<PersistentVolume>("", name).await?.is_some() {
            return Err(SyncError::other(format!("volume {name:?} is not in the cache yet")));
        }
        let claim = self.set_claim_phase(claim, "Lost", None).await?;
        self.note(&claim, note);
        Ok(())
    }

    async fn sync_volume(&self, volume: Arc<PersistentVolume>) -> Result<(), SyncError> {
        let claim = if volumes::is_claimed(&volume) { self.claim_of(&volume, false).await? } else { None };
        match volumes::plan(&volume, claim.as_deref()) {
            volumes::Step::Available => self.set_volume_phase(volume, "Available", "").await.map(drop),
            volumes::Step::Bound => self.set_volume_phase(volume, "Bound", "").await.map(drop),
            volumes::Step::Unbind => self.unbind(&volume).await,
            volumes::Step::WakeClaim => {
                if let Some(claim) = claim {
                    self.queues.claims.add(object_key(&*claim));
                }
                Ok(())
            }
            volumes::Step::Mismatch => {
                if let Some(claim) = claim {
                    self.report_mismatch(&volume, &claim);
                }
                Ok(())
            }
            volumes::Step::Release => {
                let volume =
                    if is_released(&volume) { volume } else { self.set_volume_phase(volume, "Released", "").await? };
                self.reclaim(&volume).await
            }
        }
    }

    fn report_mismatch(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) {
        const REASON: &str = "VolumeMismatch";
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let text = format!(
            "Cannot bind PersistentVolume to requested PersistentVolumeClaim {name:?} due to incompatible volumeMode."
        );
        self.recorder.warning(volume, REASON, text);
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let text = format!(
            "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
        );
        self.recorder.warning(claim, REASON, text);
    }
}

impl Storage for Binder {
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(&ObjectKey::cluster(name))
    }

    fn candidates(&self, claim: &PersistentVolumeClaim) -> Vec<Arc<PersistentVolume>> {
        // By name through the cache, in whose index a volume given away a moment ago is still free.
        let key = object_key(claim).to_string();
        let found = self.volumes.by_index(CLAIM_INDEX, "").into_iter().chain(self.volumes.by_index(CLAIM_INDEX, &key));
        found.filter_map(|volume| self.volumes.get(&object_key(&*volume))).collect()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get_named("", name)
    }

    fn default_class(&self) -> Option<String> {
        const ANNOTATIONS: [&str; 2] =
            ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
        let is_default = |class: &Arc<StorageClass>| {
            let annotations = class.metadata.annotations.as_ref();
            ANNOTATIONS.iter().any(|name| annotations.and_then(|all| all.get(*name)).is_some_and(|text| text == "true"))
        };
        let mut defaults: Vec<_> = self.classes.list_all("").into_iter().filter(is_default).collect();
        // The newest, and of those the first by name.
        defaults.sort_by(|a, b| {
            let created = b.metadata.creation_timestamp.cmp(&a.metadata.creation_timestamp);
            created.then_with(|| a.metadata.name.cmp(&b.metadata.name))
        });
        defaults.first().and_then(|class| class.metadata.name.clone())
    }

    fn unscheduled_pods(&self, claim: &PersistentVolumeClaim) -> Vec<String> {
        let users = pods_with(&self.pods, &object_key(claim)).into_iter();
        let waiting = users.filter(|pod| !pods::is_terminal(pod) && pods::node_name(pod).is_empty());
        waiting.filter_map(|pod| pod.metadata.name.clone()).collect()
    }
}

impl Reconciler for Binder {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        if let Some(claim) = self.claims.get(key) {
            self.sync_claim(claim).await?;
        }
        Ok(Requeue::Never)
    }
}

/// The same for volumes.
struct VolumeWorker(Arc<Binder>);

impl Reconciler for VolumeWorker {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Self(binder) = self;
        if let Some(volume) = binder.volumes.get(key) {
            binder.sync_volume(volume).await?;
        }
        Ok(Requeue::Never)
    }
}
