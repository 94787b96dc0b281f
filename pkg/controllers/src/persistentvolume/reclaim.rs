//! What becomes of a volume without a claim: kept, deleted by its driver, or scrubbed and offered again.
//!
//! Behaves as `reclaimVolume` of pv_controller.go with the host path and NFS plugins, v1.36.

use std::path::{Component, Path};
use std::sync::Arc;

use rkube_api::k8s::core::v1::{Container, PersistentVolume, Pod, PodSpec, Volume as PodVolume, VolumeMount};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_api::volumes::capacity;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::uid_of;
use rkube_client::{DeleteOptions, SyncError};

use super::controller::Binder;
use super::volumes::{is_claimed, is_migrated, phase, plan, provisioned_by, reclaim_policy};
use crate::common::errors::ignore_not_found;
use crate::common::pods;

const HOST_PATH: &str = "kubernetes.io/host-path";
const RECYCLER_NAMESPACE: &str = "default";
const RECYCLER_PREFIX: &str = "recycler-for-";
const RECYCLER_IMAGE: &str = "registry.k8s.io/build-image/debian-base:bookworm-v1.0.6";
const RECYCLER_SCRIPT: &str =
    "test -e /scrub && find /scrub -mindepth 1 -delete && test -z \"$(ls -A /scrub)\" || exit 1";
/// Seconds a recycler may take at least, and per GiB.
const RECYCLER_SECONDS_MIN: i64 = 60;
const RECYCLER_SECONDS_PER_GIB: i64 = 30;

type Volume = Arc<PersistentVolume>;

/// The volume that a recycler pod scrubs.
pub(super) fn recycled_volume(pod: &Pod) -> Option<ObjectKey> {
    let in_namespace = pod.metadata.namespace.as_deref() == Some(RECYCLER_NAMESPACE);
    let name = pod.metadata.name.as_deref().filter(|_| in_namespace)?.strip_prefix(RECYCLER_PREFIX)?;
    Some(ObjectKey::cluster(name))
}

/// Who deletes what is behind a volume.
enum Deleter {
    /// A driver, which also deletes the object.
    External,
    HostPath,
    Nobody(String),
}

fn deleter(volume: &PersistentVolume) -> Deleter {
    let nobody = |why: String| Deleter::Nobody(why);
    match provisioned_by(volume).filter(|plugin| !plugin.is_empty()) {
        Some(HOST_PATH) => return Deleter::HostPath,
        Some(plugin) if plugin.starts_with("kubernetes.io/") => {
            return nobody(format!("no volume plugin matched name: {plugin}"));
        }
        Some(_) => return Deleter::External,
        None => {}
    }
    let spec = volume.spec.as_ref();
    if is_migrated(volume) || spec.is_some_and(|spec| spec.csi.is_some()) {
        return Deleter::External;
    }
    if spec.is_some_and(|spec| spec.host_path.is_some()) {
        return Deleter::HostPath;
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    nobody(format!("error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"))
}

/// Removes a directory of the machine. Only below `/tmp`: host paths are deleted for tests of one node.
fn remove_host_path(path: &str) -> Result<(), String> {
    let mut components = Path::new(path).components();
    let in_tmp = components.next() == Some(Component::RootDir)
        && components.next() == Some(Component::Normal("tmp".as_ref()))
        && components.clone().next().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)));
    if !in_tmp {
        return Err(format!("host_path deleter only supports /tmp/.+ but received provided {path}"));
    }
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

impl Binder {
    pub(super) async fn reclaim(&self, volume: &Volume) -> Result<(), SyncError> {
        if is_migrated(volume) {
            return Ok(());
        }
        match reclaim_policy(volume) {
            "Retain" => Ok(()),
            "Recycle" => self.recycle(volume).await,
            "Delete" => self.delete(volume).await,
            _ => {
                let text = "Volume has unrecognized PersistentVolumeReclaimPolicy";
                self.fail_volume(volume, "VolumeUnknownReclaimPolicy", text).await
            }
        }
    }

    /// The volume as the API has it, if its claim is gone by what the API says of both.
    async fn confirmed(&self, volume: &Volume) -> Result<Option<Volume>, SyncError> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let Some(fresh) = self.fetch::<PersistentVolume>("", name).await? else { return Ok(None) };
        if uid_of(&fresh) != uid_of(&**volume) || !is_claimed(&fresh) {
            return Ok(None);
        }
        let claim = self.claim_of(&fresh, true).await?;
        let released = plan(&fresh, claim.as_deref()) == super::volumes::Step::Release;
        Ok(released.then(|| Arc::new(fresh)))
    }

    async fn delete(&self, volume: &Volume) -> Result<(), SyncError> {
        match deleter(volume) {
            Deleter::External => return Ok(()),
            Deleter::Nobody(why) => return self.fail_volume(volume, "VolumeFailedDelete", &why).await,
            Deleter::HostPath => {}
        }
        let Some(volume) = self.confirmed(volume).await? else { return Ok(()) };
        let host_path = volume.spec.as_ref().and_then(|spec| spec.host_path.as_ref());
        let removed = match host_path {
            Some(source) => remove_host_path(&source.path),
            None => Err("failed to create deleter: spec.PersistentVolumeSource.HostPath is nil".to_owned()),
        };
        if let Err(why) = removed {
            self.fail_volume(&volume, "VolumeFailedDelete", &why).await?;
            return Err(SyncError::other(why));
        }
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let deleted = self.client.all::<PersistentVolume>().delete(name, &DeleteOptions::uid(uid_of(&*volume))).await;
        ignore_not_found(deleted).map_err(SyncError::during("deleting a volume"))
    }

    /// One step of scrubbing: starts the pod that does it, or goes by what became of it.
    async fn recycle(&self, volume: &Volume) -> Result<(), SyncError> {
        let Some(volume) = self.confirmed(volume).await? else { return Ok(()) };
        let users = self.users_of(&volume);
        if !users.is_empty() {
            let text = format!("Volume is used by pods: {}", users.join(","));
            self.recorder.normal(&*volume, "VolumeFailedRecycle", text);
            return Ok(());
        }
        let Some(scrubber) = recycler(&volume) else {
            let text = "No recycler plugin found for the volume!";
            return self.fail_volume(&volume, "VolumeFailedRecycle", text).await;
        };
        let api = self.client.namespaced::<Pod>(RECYCLER_NAMESPACE);
        let name = scrubber.metadata.name.as_deref().unwrap_or_default();
        let Some(pod) = self.fetch::<Pod>(RECYCLER_NAMESPACE, name).await? else {
            api.create(&scrubber).await.map_err(SyncError::during("starting a recycler"))?;
            return Ok(());
        };
        if !pods::is_terminal(&pod) {
            // Its end brings the volume back here.
            return Ok(());
        }
        let failure = (pods::phase(&pod) == "Failed").then(|| {
            let message = pod.status.as_ref().and_then(|status| status.message.as_deref());
            message.unwrap_or("pod failed, pod.Status.Message unknown").to_owned()
        });
        // Gone before the volume can be claimed and released again: its result is for this release only.
        let options = DeleteOptions::uid(uid_of(&pod)).grace_period_seconds(0);
        ignore_not_found(api.delete(name, &options).await).map_err(SyncError::during("deleting a recycler"))?;
        if let Some(failure) = failure {
            let text = format!("Recycle failed: failed to recycle volume: {failure}");
            self.fail_volume(&volume, "VolumeFailedRecycle", &text).await?;
            return Err(SyncError::other(text));
        }
        self.recorder.normal(&*volume, "VolumeRecycled", "Volume recycled");
        self.unbind(&volume).await
    }
}

/// The pod that empties a volume, for volumes that any node can reach.
fn recycler(volume: &PersistentVolume) -> Option<Pod> {
    let spec = volume.spec.as_ref()?;
    let mut source = PodVolume { name: "vol".to_owned(), ..PodVolume::default() };
    if let Some(host_path) = &spec.host_path {
        source.host_path = Some(host_path.clone());
        source.host_path.get_or_insert_default().type_ = None;
    } else if let Some(nfs) = &spec.nfs {
        source.nfs = Some(nfs.clone());
        source.nfs.get_or_insert_default().read_only = None;
    } else {
        return None;
    }
    let gibibytes = capacity(volume).value() / (1 << 30);
    let container = Container {
        name: "pv-recycler".to_owned(),
        image: Some(RECYCLER_IMAGE.to_owned()),
        command: Some(vec!["/bin/sh".to_owned()]),
        args: Some(vec!["-c".to_owned(), RECYCLER_SCRIPT.to_owned()]),
        volume_mounts: Some(vec![VolumeMount {
            name: "vol".to_owned(),
            mount_path: "/scrub".to_owned(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    };
    Some(Pod {
        metadata: ObjectMeta {
            name: Some(format!("{RECYCLER_PREFIX}{}", volume.metadata.name.as_deref()?)),
            namespace: Some(RECYCLER_NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            active_deadline_seconds: Some(gibibytes.saturating_mul(RECYCLER_SECONDS_PER_GIB).max(RECYCLER_SECONDS_MIN)),
            restart_policy: Some("Never".to_owned()),
            volumes: Some(vec![source]),
            containers: vec![container],
            ..PodSpec::default()
        }),
        status: None,
    })
}

/// Whether nothing is left to do but to reclaim.
pub(super) fn is_released(volume: &PersistentVolume) -> bool {
    matches!(phase(volume), "Released" | "Failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_below_tmp_are_removed() {
        for path in ["/", "/tmp", "/tmp/", "/etc", "/etc/tmp/x", "/tmp/../etc", "/tmp/x/../../etc", "tmp/x", ""] {
            assert!(remove_host_path(path).is_err(), "{path}");
        }
        let directory = std::env::temp_dir().join(format!("rkube-host-path-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("data")).expect("a temporary directory");
        let path = directory.to_str().expect("an ordinary path");
        if path.starts_with("/tmp/") {
            assert_eq!(remove_host_path(path), Ok(()));
            assert!(!directory.exists());
            assert_eq!(remove_host_path(path), Ok(()), "what is gone is removed");
        } else {
            std::fs::remove_dir_all(&directory).expect("it was created");
        }
    }
}
