//! Compares what should be with what is, and collects what is left over.
//!
//! Behaves as HandlePodCleanups in pkg/kubelet/kubelet_pods.go, v1.36.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::{Pod, PodSpec};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::task;
use tracing::info_span;

use crate::kubelet::{Event, Inner};
use crate::pod::{PodExt, PodUid};
use crate::pods::is_mirror_of;
use crate::runtime::state::RuntimePod;
use crate::static_pods;
use crate::status::manager::PodLookup;
use crate::worker::Phase;

/// Archives that appear while they are being copied are read once they were closed.
const IMPORT_RETRY: Duration = Duration::from_secs(10);

impl PodLookup for Inner {
    fn api_pod(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.pods.api_pod(uid)
    }

    fn is_finished(&self, uid: &PodUid) -> bool {
        match self.workers.get(uid) {
            Some(worker) => worker.phase() == Phase::Finished,
            None => self.pleg.is_synced() && self.cache.get(uid).is_none_or(|pod| !pod.is_active()),
        }
    }

    fn could_have_running_containers(&self, uid: &PodUid) -> bool {
        match self.workers.get(uid) {
            Some(worker) => matches!(worker.phase(), Phase::Syncing | Phase::Terminating),
            None => !self.pleg.is_synced() || self.cache.get(uid).is_some_and(|pod| pod.is_active()),
        }
    }
}

impl Inner {
    /// Hands every pod that should be here to its worker, and ends the others.
    pub(crate) fn reconcile_desired(self: Arc<Self>) {
        let desired = self.desired_pods();
        let uids: HashSet<(PodUid, bool)> = desired.iter().map(|pod| (pod.uid(), pod.is_mirror())).collect();
        for old in self.pods.all().into_iter().chain(self.pods.mirrors()) {
            if !uids.contains(&(old.uid(), old.is_mirror())) {
                self.pods.remove(&old);
            }
        }
        for pod in &desired {
            if self.pods.set(pod.clone()) {
                let own = if pod.is_mirror() { self.pods.static_of(pod) } else { Some(pod.clone()) };
                own.iter().for_each(|pod| self.statuses.touch(&pod.uid()));
            }
        }
        for pod in desired.iter().filter(|pod| !pod.is_mirror()) {
            self.update_worker(pod);
        }
        for worker in self.workers.all() {
            if self.pods.get(&worker.uid).is_none() {
                if worker.phase() == Phase::Finished {
                    self.forget(&worker.uid);
                } else {
                    worker.remove();
                }
            }
        }
        self.reconcile_mirrors();
        self.end_orphans();
        if self.collected.lock().is_none() && self.sources.all_are_ready() {
            // What the life before this one left.
            self.garbage.notify_one();
            self.resizes.retry();
        }
    }

    /// The containers of a pod changed.
    pub(crate) fn runtime_changed(self: Arc<Self>, uid: &PodUid) {
        match self.workers.get(uid) {
            Some(worker) if worker.phase() == Phase::Finished => self.statuses.touch(uid),
            Some(worker) => worker.wake.notify_one(),
            None => self.end_orphans(),
        }
    }

    pub(crate) fn worker_finished(self: Arc<Self>, uid: &PodUid) {
        self.statuses.touch(uid);
        if self.pods.get(uid).is_none() {
            self.forget(uid);
        }
        self.resizes.retry();
        // A successor of the same name may have waited for this.
        self.clone().reconcile_desired();
        self.garbage.notify_one();
    }

    /// Nothing of the pod is left, nor wanted.
    fn forget(&self, uid: &PodUid) {
        if let Err(error) = self.volumes.remove(uid) {
            tracing::warn!(%uid, error = %chain(&error), "Directory of the pod was not removed");
        }
        self.workers.remove(uid);
        // What it left in the runtime.
        self.garbage.notify_one();
    }

    /// Pods in the runtime that nobody wants are stopped, once it is known what is wanted.
    fn end_orphans(self: &Arc<Self>) {
        // While the API is away nothing of its is stopped: what is on disk may be older than what runs.
        if !self.sources.all_are_ready() {
            return;
        }
        for pod in self.cache.all() {
            if pod.is_active() && self.workers.get(&pod.uid).is_none() && self.pods.get(&pod.uid).is_none() {
                tracing::info!(uid = %pod.uid, pod = format!("{}/{}", pod.namespace, pod.name), "Stopping pod that is not wanted here");
                self.remove_worker_of(&Arc::new(orphan(&pod)));
            }
        }
    }

    fn reconcile_mirrors(self: &Arc<Self>) {
        if !self.sources.all_are_ready() {
            return;
        }
        let mut wanted: HashMap<_, Arc<Pod>> = HashMap::new();
        for pod in self.pods.all().into_iter().filter(|pod| pod.is_static()) {
            wanted.insert(pod.key(), pod);
        }
        let mut work: Vec<futures_util::future::BoxFuture<'static, ()>> = Vec::new();
        for mirror in self.pods.mirrors() {
            let shown = wanted.get(&mirror.key()).map(|pod| (pod.uid(), is_mirror_of(&mirror, pod)));
            if let Some((uid, true)) = shown
                && !mirror.is_terminating()
            {
                wanted.remove(&mirror.key());
                // A mirror that is new has no status yet.
                self.statuses.touch(&uid);
                continue;
            }
            let client = self.client.clone();
            work.push(Box::pin(async move {
                if let Err(error) = static_pods::delete_mirror(&client, &mirror).await {
                    tracing::warn!(pod = %mirror.key(), error = %chain(&error), "Mirror pod was not deleted");
                }
            }));
        }
        for (key, pod) in wanted {
            if self.pods.mirror_of(&pod).is_some() {
                // The old one goes first; its deletion brings us back here.
                continue;
            }
            let inner = self.clone();
            work.push(Box::pin(async move {
                match static_pods::create_mirror(&inner.client, &pod).await {
                    Ok(()) => inner.statuses.touch(&pod.uid()),
                    Err(error) => tracing::warn!(pod = %key, error = %chain(&error), "Mirror pod was not created"),
                }
            }));
        }
        if !work.is_empty() {
            let work = async move { drop(futures_util::future::join_all(work).await) };
            task::spawn(info_span!("mirror-pods"), self.tasks.track_future(work));
        }
    }

    /// Collects what is left over whenever it is told to. One round at a time: two would remove the same things.
    pub(crate) async fn collect_garbage(self: Arc<Self>) {
        loop {
            self.garbage.notified().await;
            if !self.sources.all_are_ready() || !self.pleg.is_synced() {
                continue;
            }
            *self.collected.lock() = Some(self.clock.monotonic());
            self.objects.collect();
            self.statuses.retain(|uid| self.is_wanted(uid));
            self.resizes.retain(|uid| self.is_wanted(uid));
            self.allocations.retain(|uid| self.is_wanted(uid));
            let inner = self.clone();
            // Unmounting may hang on a server that is away.
            if tokio::task::spawn_blocking(move || inner.collect_folders()).await.is_err() {
                tracing::error!("Collecting directories of gone pods panicked");
            }
            if let Err(error) = self.runtime.collect_garbage(|uid| self.is_wanted(uid)).await {
                tracing::warn!(%error, "Dead containers were not collected");
            }
        }
    }

    /// Directories and cgroups of pods that are gone.
    fn collect_folders(&self) {
        for uid in self.volumes.pods_on_disk() {
            if !self.is_wanted(&uid)
                && self.cache.get(&uid).is_none_or(|pod| !pod.is_active())
                && let Err(error) = self.volumes.tear_down(&uid).and_then(|()| self.volumes.remove(&uid))
            {
                tracing::warn!(%uid, error = %chain(&error), "Directory of a gone pod was not removed");
            }
        }
        for uid in self.cgroups.pods() {
            if !self.is_wanted(&uid)
                && self.cache.get(&uid).is_none_or(|pod| !pod.is_active())
                && let Err(error) = self.cgroups.remove(&uid)
            {
                tracing::warn!(%uid, error = %chain(&error), "Cgroup of a gone pod was not removed");
            }
        }
        let pods: Vec<Arc<Pod>> = self.pods.all().iter().map(|pod| self.allocations.apply(pod)).collect();
        if let Err(error) = self.cgroups.set_burstable_shares(pods.iter().map(|pod| &**pod)) {
            tracing::warn!(error = %chain(&error), "Share of burstable pods was not set");
        }
    }

    fn is_wanted(&self, uid: &PodUid) -> bool {
        self.pods.get(uid).is_some() || self.workers.get(uid).is_some()
    }

    /// Imports the pause image and every archive of the images folder, and those that appear.
    pub(crate) async fn import_images(self: Arc<Self>) {
        let Some(importer) = self.importer.clone() else { return };
        self.import_pause(&importer).await;
        let Some(folder) = self.config.images_dir.clone() else { return };
        let changed = Arc::new(tokio::sync::Notify::new());
        let watch = crate::folder::watch(folder.clone(), changed.clone());
        let work = self.clone().import_folder_again(importer, folder.clone(), changed);
        tokio::select! {
            () = work => {}
            result = watch => if let Err(error) = result {
                tracing::error!(path = %folder.display(), %error, "Folder of images is not watched");
            },
        }
    }

    async fn import_folder_again(
        self: Arc<Self>,
        importer: rkube_cri::containerd::Client,
        folder: std::path::PathBuf,
        changed: Arc<tokio::sync::Notify>,
    ) {
        let mut done = HashMap::new();
        loop {
            let failed = self.import_folder(&importer, &folder, &mut done).await;
            tokio::select! {
                () = changed.notified() => {}
                () = self.clock.sleep(IMPORT_RETRY), if failed => {}
            }
        }
    }

    async fn import_pause(&self, importer: &rkube_cri::containerd::Client) {
        let path = self.config.root_dir.join("pause.tar");
        loop {
            let written = rkube_cri::pause::archive()
                .map_err(std::io::Error::other)
                .and_then(|bytes| std::fs::write(&path, bytes));
            let error = match written {
                Ok(()) => match importer.import_for_cri(&**self.runtime.images.service(), &path).await {
                    Ok(_) => break,
                    Err(error) => chain(&error).to_string(),
                },
                Err(error) => error.to_string(),
            };
            tracing::warn!(error, "Pause image was not imported");
            self.clock.sleep(IMPORT_RETRY).await;
        }
        // Imported again with the next start, so nothing is lost when it stays.
        let _ = std::fs::remove_file(&path);
        self.notify(Event::Desired);
    }

    /// Whether something failed that may succeed later.
    async fn import_folder(
        &self,
        importer: &rkube_cri::containerd::Client,
        folder: &std::path::Path,
        done: &mut HashMap<std::path::PathBuf, (u64, std::time::SystemTime)>,
    ) -> bool {
        let mut failed = false;
        let entries: Vec<std::fs::DirEntry> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
        for entry in entries {
            let path = entry.path();
            let is_archive =
                path.extension().is_some_and(|extension| extension == "tar" || extension == "gz" || extension == "tgz");
            let Ok(metadata) = entry.metadata() else { continue };
            let Ok(modified) = metadata.modified() else { continue };
            let stamp = (metadata.len(), modified);
            if !is_archive || !metadata.is_file() || done.get(&path) == Some(&stamp) {
                continue;
            }
            match importer.import_for_cri(&**self.runtime.images.service(), &path).await {
                Ok(images) => {
                    tracing::info!(path = %path.display(), images = images.join(","), "Imported images");
                    self.imported.lock().extend(images);
                    done.insert(path, stamp);
                }
                Err(error) => {
                    failed = true;
                    tracing::warn!(path = %path.display(), error = %chain(&error), "Images were not imported");
                }
            }
        }
        failed
    }
}

/// An object for a pod that is known from the runtime only.
fn orphan(found: &RuntimePod) -> Pod {
    let mut pod = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
    pod.metadata.name = Some(found.name.clone());
    pod.metadata.namespace = Some(found.namespace.clone());
    pod.metadata.uid = Some(found.uid.to_string());
    pod
}
