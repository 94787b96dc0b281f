//! Allocations and what of them was carried out, one file per pod.
//!
//! Behaves as the checkpoints allocated_pods_state and actuated_pods_state of upstream's kubelet, v1.36.
//!
//! Differs from upstream: a file per pod, so that one that changes does not rewrite the others; and actuated resources
//! belong to a container's id, not its name: the next container of the name was never given those.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rkube_api::k8s::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::allocation::Allocation;
use crate::cm::Limits;
use crate::folder::write_private;
use crate::pod::{PodExt, PodUid};
use crate::runtime::resources::ContainerResources;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    allocated: Option<Allocation>,
    /// What the runtime was last told, by container id.
    actuated: BTreeMap<String, ContainerResources>,
    /// What the pod's cgroup was last limited to.
    limits: Option<Limits>,
}

/// All pods' records, in memory and on disk.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    records: Mutex<HashMap<PodUid, Record>>,
}

impl Store {
    /// Reads what an earlier life left. A file that cannot be read tells nothing of its pod.
    pub fn open(directory: PathBuf) -> Self {
        let mut records = HashMap::new();
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(uid) = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'))
            else {
                continue;
            };
            match read(&path) {
                Ok(record) => drop(records.insert(PodUid::from(uid), record)),
                Err(error) => tracing::warn!(path = %path.display(), %error, "Resources of a pod were not read"),
            }
        }
        Self { directory, records: Mutex::new(records) }
    }

    pub fn allocated(&self, uid: &PodUid) -> Option<Allocation> {
        self.records.lock().get(uid)?.allocated.clone()
    }

    /// Whether the pod was given something else than it asks for.
    pub fn differs(&self, pod: &Pod) -> bool {
        let records = self.records.lock();
        let allocated = records.get(&pod.uid()).and_then(|record| record.allocated.as_ref());
        allocated.is_some_and(|allocated| allocated.differs(pod))
    }

    /// The pod with the resources it was given; as it is before it was given any.
    pub fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        let records = self.records.lock();
        let allocated = records.get(&pod.uid()).and_then(|record| record.allocated.as_ref());
        allocated.map_or_else(|| pod.clone(), |allocated| allocated.apply(pod))
    }

    /// Gives a pod what it asks for.
    pub fn allocate(&self, pod: &Pod) -> io::Result<()> {
        let (uid, allocation) = (pod.uid(), Allocation::of(pod));
        // What a pod was given at first is not worth the time: without a record it is what the spec says.
        let is_resize = self.records.lock().contains_key(&uid);
        self.edit(&uid, is_resize, |record| record.allocated = Some(allocation))
    }

    pub fn actuated(&self, uid: &PodUid, container_id: &str) -> Option<ContainerResources> {
        self.records.lock().get(uid)?.actuated.get(container_id).copied()
    }

    pub fn actuate(&self, uid: &PodUid, container_id: &str, resources: ContainerResources) {
        self.note(uid, |record| {
            record.actuated.insert(container_id.to_owned(), resources);
        });
    }

    pub fn limits(&self, uid: &PodUid) -> Option<Limits> {
        self.records.lock().get(uid)?.limits
    }

    pub fn limit(&self, uid: &PodUid, limits: Limits) {
        self.note(uid, |record| record.limits = Some(limits));
    }

    /// A container is gone.
    pub fn forget_container(&self, container_id: &str) {
        let holder = {
            let records = self.records.lock();
            let mut holders = records.iter().filter(|(_, record)| record.actuated.contains_key(container_id));
            holders.next().map(|(uid, _)| uid.clone())
        };
        if let Some(uid) = holder {
            self.note(&uid, |record| {
                record.actuated.remove(container_id);
            });
        }
    }

    /// Keeps only pods that are still known.
    pub fn retain(&self, is_known: impl Fn(&PodUid) -> bool) {
        let mut records = self.records.lock();
        records.retain(|uid, _| {
            let keep = is_known(uid);
            if !keep {
                // Tried again with the next start if it stays.
                let _ = std::fs::remove_file(self.directory.join(uid.as_str()));
            }
            keep
        });
    }

    /// The runtime was told already, whether or not that can be noted.
    fn note(&self, uid: &PodUid, change: impl FnOnce(&mut Record)) {
        if let Err(error) = self.edit(uid, false, change) {
            tracing::warn!(%uid, %error, "Resources of a pod were not noted");
        }
    }

    fn edit(&self, uid: &PodUid, durable: bool, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let mut records = self.records.lock();
        let mut record = records.get(uid).cloned().unwrap_or_default();
        change(&mut record);
        if records.get(uid) == Some(&record) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&record)?;
        records.insert(uid.clone(), record);
        write_private(&self.directory, uid.as_str(), &bytes, durable)
    }
}

fn read(path: &Path) -> io::Result<Record> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_and_carried_out_is_known_to_the_next_life() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Store::open(folder.path().join("resources"));
        let pod = |cpu: &str| -> Arc<Pod> {
            let containers = serde_json::json!([{"name": "a", "resources": {"requests": {"cpu": cpu}}}]);
            Arc::new(
                serde_json::from_value(
                    serde_json::json!({"metadata": {"uid": "u"}, "spec": {"containers": containers}}),
                )
                .unwrap(),
            )
        };
        let uid = PodUid::from("u");
        let resources = ContainerResources { cpu_request_milli: Some(1000), ..ContainerResources::default() };
        let limits = Limits { cpu_shares: Some(1024), ..Limits::default() };
        let store = open();
        store.allocate(&pod("1")).unwrap();
        store.actuate(&uid, "c1", resources);
        store.actuate(&uid, "c2", resources);
        store.forget_container("c1");
        store.limit(&uid, limits);

        let store = open();
        assert!(store.differs(&pod("2")) && !store.differs(&pod("1")));
        assert_eq!(*store.apply(&pod("2")), *pod("1"));
        assert_eq!((store.actuated(&uid, "c1"), store.actuated(&uid, "c2")), (None, Some(resources)));
        assert_eq!(store.limits(&uid), Some(limits));

        std::fs::write(folder.path().join("resources/broken"), "{").unwrap();
        let store = open();
        assert!(store.allocated(&PodUid::from("broken")).is_none());
        store.retain(|_| false);
        assert!(open().allocated(&uid).is_none());
    }
}
