//! Where pods come from: the API server, and a folder of manifests. What came from the API is kept on
//! disk, so that after a reboot without the server the node runs what it ran.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rkube_api::Kind;
use rkube_api::k8s::core::v1::Pod;
use rkube_client::informer::Informer;
use tokio::sync::mpsc;

use crate::kubelet::{Event, Inner};
use crate::pod::{PodExt, PodUid};
use crate::static_pods;
use crate::status::is_terminal_phase;

pub(crate) struct Sources {
    assigned: Informer<Pod>,
    /// `None` until the folder was read for the first time.
    static_pods: RwLock<Option<Vec<Arc<Pod>>>>,
    /// UIDs with a checkpoint on disk and the generation it holds.
    saved: Mutex<std::collections::HashMap<PodUid, Option<i64>>>,
}

impl Sources {
    pub(crate) fn new(assigned: Informer<Pod>, wake: &mpsc::Sender<Event>) -> Self {
        let wake = wake.clone();
        // A hint that does not fit is found by the next tick.
        assigned.add_handler(move |_| drop(wake.try_send(Event::Desired)));
        Self { assigned, static_pods: RwLock::default(), saved: Mutex::default() }
    }

    /// Whether the API has told all its pods.
    pub(crate) fn api_is_ready(&self) -> bool {
        self.assigned.has_synced()
    }

    /// Whether all sources have: only then is a pod that nobody named one that nobody wants.
    pub(crate) fn all_are_ready(&self) -> bool {
        self.api_is_ready() && self.static_pods.read().is_some()
    }
}

impl Inner {
    fn checkpoint_dir(&self) -> PathBuf {
        self.config.root_dir.join("pod-checkpoints")
    }

    /// All pods that should be here, mirrors included. Pods of the API as last known while it is away.
    pub(crate) fn desired_pods(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.sources.static_pods.read().clone().unwrap_or_default();
        if self.sources.api_is_ready() {
            self.objects.set_reached();
            let assigned = self.sources.assigned.lister().list_all("");
            self.save_checkpoints(&assigned);
            pods.extend(assigned);
        } else {
            pods.extend(self.load_checkpoints());
        }
        pods
    }

    fn save_checkpoints(&self, pods: &[Arc<Pod>]) {
        let directory = self.checkpoint_dir();
        let mut saved = self.sources.saved.lock();
        let mut keep = std::collections::HashSet::new();
        for pod in pods {
            let uid = pod.uid();
            if pod.is_mirror() || pod.is_terminating() || is_terminal_phase(pod.phase()) {
                continue;
            }
            keep.insert(uid.clone());
            if saved.get(&uid) == Some(&pod.metadata.generation) {
                continue;
            }
            match crate::folder::write_private(&directory, uid.as_str(), &pod.encode(), true) {
                Ok(()) => drop(saved.insert(uid, pod.metadata.generation)),
                Err(error) => {
                    tracing::warn!(pod = %pod.key(), %error, "Pod was not saved for a start without the server")
                }
            }
        }
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let uid = entry.file_name().to_str().map(PodUid::from);
            if uid.is_none_or(|uid| !keep.contains(&uid)) {
                // It is written again if it was wrong.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        saved.retain(|uid, _| keep.contains(uid));
    }

    fn load_checkpoints(&self) -> Vec<Arc<Pod>> {
        let entries = std::fs::read_dir(self.checkpoint_dir()).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| std::fs::read(entry.path()).ok())
            .filter_map(|bytes| Pod::decode(&bytes).ok())
            .map(Arc::new)
            .collect()
    }

    /// Keeps the static pods in step with the folder.
    pub(crate) async fn watch_manifests(self: Arc<Self>) {
        let Some(folder) = self.config.manifests_dir.clone() else {
            *self.sources.static_pods.write() = Some(vec![]);
            return;
        };
        let changed = Arc::new(tokio::sync::Notify::new());
        let watch = crate::folder::watch(folder.clone(), changed.clone());
        let work = async {
            loop {
                self.read_manifests();
                changed.notified().await;
            }
        };
        tokio::select! {
            () = work => {}
            result = watch => if let Err(error) = result {
                tracing::error!(path = %folder.display(), %error, "Folder of static pods is not watched");
            },
        }
    }

    fn read_manifests(&self) {
        let Some(folder) = &self.config.manifests_dir else { return };
        let (pods, failed) = static_pods::read_folder(folder, &self.config.node_name);
        for (path, error) in failed {
            let error = rkube_apimachinery::chain::chain(&error).to_string();
            tracing::error!(path = %path.display(), error, "Static pod manifest was not read");
        }
        *self.sources.static_pods.write() = Some(pods.into_iter().map(Arc::new).collect());
        self.notify(Event::Desired);
    }
}
