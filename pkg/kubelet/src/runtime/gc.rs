//! Removes what ended: old containers of living pods, everything of pods that are gone, their logs.
//!
//! Behaves as pkg/kubelet/kuberuntime/kuberuntime_gc.go, v1.36.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use parking_lot::Mutex;
use rkube_cri::RuntimeError;
use rkube_cri::v1::{
    ListContainersRequest, ListPodSandboxRequest, PodSandboxState, RemoveContainerRequest, RemovePodSandboxRequest,
    StopPodSandboxRequest,
};

use crate::pod::PodUid;
use crate::runtime::Runtime;
use crate::runtime::state::{State, timestamp, uid_of};

/// Dead containers kept of each name, so that `logs --previous` has one.
const DEAD_PER_CONTAINER: usize = 1;

/// One dead container for [`choose`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    pub id: String,
    pub pod: PodUid,
    pub name: String,
    pub created_at: Timestamp,
}

/// Which dead containers go: all of pods that are gone, all but the newest of the others. Pure.
pub fn choose(dead: Vec<Dead>, is_gone: impl Fn(&PodUid) -> bool) -> Vec<String> {
    let mut units: BTreeMap<(PodUid, String), Vec<Dead>> = BTreeMap::new();
    for container in dead {
        units.entry((container.pod.clone(), container.name.clone())).or_default().push(container);
    }
    let mut chosen = Vec::new();
    for ((pod, _), mut containers) in units {
        containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        let keep = if is_gone(&pod) { 0 } else { DEAD_PER_CONTAINER };
        chosen.extend(containers.into_iter().skip(keep).map(|container| container.id));
    }
    chosen
}

impl Runtime {
    /// Collects. `is_known`: the pod is still to run, or its end is under way, or its object is there.
    pub async fn collect_garbage(&self, is_known: impl Fn(&PodUid) -> bool) -> Result<(), RuntimeError> {
        let containers = self.service.list_containers(ListContainersRequest::default()).await?.containers;
        let dead = containers
            .iter()
            // One that was made and never started is left by a kubelet that died in between.
            .filter(|container| State::from_cri(container.state) != State::Running);
        let dead = dead.filter_map(|container| {
            Some(Dead {
                id: container.id.clone(),
                pod: uid_of(&container.labels)?,
                name: container.metadata.as_ref()?.name.clone(),
                created_at: timestamp(container.created_at),
            })
        });
        let chosen: HashSet<String> = choose(dead.collect(), |uid| !is_known(uid)).into_iter().collect();
        for id in &chosen {
            // One that the runtime cannot remove keeps nobody else's.
            if let Err(error) = self.remove_container(id).await {
                tracing::warn!(id, %error, "Dead container was not removed");
            }
        }
        let used: HashSet<&str> = containers
            .iter()
            .filter(|container| !chosen.contains(&container.id))
            .map(|container| container.pod_sandbox_id.as_str())
            .collect();
        self.collect_sandboxes(&used, &is_known).await?;
        let left = containers.iter().filter(|container| !chosen.contains(&container.id));
        self.collect_logs(&left.filter_map(|container| uid_of(&container.labels)).collect(), &is_known);
        Ok(())
    }

    /// A sandbox that is down and has no container goes, unless it is a living pod's newest.
    async fn collect_sandboxes(
        &self,
        used: &HashSet<&str>,
        is_known: &impl Fn(&PodUid) -> bool,
    ) -> Result<(), RuntimeError> {
        let mut sandboxes = self.service.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        let mut seen = HashSet::new();
        for sandbox in sandboxes {
            let Some(uid) = uid_of(&sandbox.labels) else { continue };
            let newest = seen.insert(uid.clone());
            let ready = sandbox.state == PodSandboxState::SandboxReady as i32;
            if ready || used.contains(sandbox.id.as_str()) || (newest && is_known(&uid)) {
                continue;
            }
            // Stopping again makes sure that the network is given back.
            let stop = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            let remove = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            let removed = match self.service.stop_pod_sandbox(stop).await {
                Ok(_) => self.service.remove_pod_sandbox(remove).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = removed
                && !error.is_not_found()
            {
                tracing::warn!(id = sandbox.id, %error, "Sandbox that is down was not removed");
            }
        }
        Ok(())
    }

    /// Removes a container that ended. What is being removed already is left to whoever does it: the collector and a
    /// pod's worker may come upon the same one.
    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        if !self.removing.lock().insert(id.to_owned()) {
            return Ok(());
        }
        let _done = Removal { removing: &self.removing, id };
        match self.service.remove_container(RemoveContainerRequest { container_id: id.to_owned() }).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => {
                self.allocations.forget_container(id);
                Ok(())
            }
        }
    }

    fn collect_logs(&self, with_containers: &HashSet<PodUid>, is_known: &impl Fn(&PodUid) -> bool) {
        for entry in std::fs::read_dir(&self.settings.logs_root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            // `<namespace>_<name>_<uid>`: none of the three has an underscore.
            let Some(uid) = name.to_str().and_then(|name| name.splitn(3, '_').nth(2)).map(PodUid::from) else {
                continue;
            };
            if is_known(&uid) || with_containers.contains(&uid) {
                continue;
            }
            if let Err(error) = std::fs::remove_dir_all(entry.path())
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %entry.path().display(), %error, "Log directory of a gone pod was not removed");
            }
        }
        for entry in std::fs::read_dir(&self.settings.container_logs_root).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if is_link
                && !path.exists()
                && std::fs::read_link(&path).is_ok_and(|to| to.starts_with(&self.settings.logs_root))
            {
                // Only a hint for log agents; the next round tries again.
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}

/// A removal under way, over when it is dropped: its task may be ended in the middle.
struct Removal<'a> {
    removing: &'a Mutex<HashSet<String>>,
    id: &'a str,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.removing.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_dead_container_of_a_living_pod_stays() {
        let dead = |id: &str, pod: &str, name: &str, at: i64| Dead {
            id: id.into(),
            pod: PodUid::from(pod),
            name: name.into(),
            created_at: Timestamp::from_second(at).unwrap(),
        };
        let all =
            vec![dead("a1", "p", "a", 1), dead("a3", "p", "a", 3), dead("a2", "p", "a", 2), dead("b1", "q", "b", 1)];
        assert_eq!(choose(all, |pod| pod.as_str() == "q"), ["a2", "a1", "b1"]);
    }
}
