//! Claims bound to local, hostPath and NFS volumes.
//!
//! Behaves as pkg/volume/{local,hostpath,nfs} and the claim lookup of
//! pkg/kubelet/volumemanager/populator, v1.36.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rkube_api::k8s::core::v1::{NFSVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod};
use tokio::task::spawn_blocking;

use crate::pod::PodExt;
use crate::volumes::mounter::MountSpec;
use crate::volumes::{MountedVolume, VolumeError, VolumeManager, at, host_path};

/// A supplemental group that a volume's administrator wants its users to have.
const GROUP_ANNOTATION: &str = "pv.beta.kubernetes.io/gid";
/// An NFS server that does not answer holds its mount call for minutes.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(120);

impl VolumeManager {
    pub(super) async fn claim(
        &self,
        pod: &Pod,
        name: &str,
        groups: &mut Vec<i64>,
    ) -> Result<MountedVolume, VolumeError> {
        let claim = self.objects.get::<PersistentVolumeClaim>(pod.namespace(), name).await?;
        let claim = claim.ok_or_else(|| VolumeError::ClaimNotFound(name.to_owned()))?;
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let volume_name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        if !bound || volume_name.is_empty() {
            return Err(VolumeError::ClaimNotBound(name.to_owned()));
        }
        let volume = self.objects.get::<PersistentVolume>("", volume_name).await?;
        let volume = volume.ok_or_else(|| VolumeError::VolumeNotFound(volume_name.to_owned()))?;
        let spec = volume.spec.clone().unwrap_or_default();
        // A volume released and bound again belongs to another claim of the same name.
        if spec.claim_ref.as_ref().and_then(|claim| claim.uid.as_deref()) != claim.metadata.uid.as_deref() {
            return Err(VolumeError::ClaimNotBound(name.to_owned()));
        }
        let annotations = volume.metadata.annotations.as_ref();
        let group: Option<i64> = annotations.and_then(|annotations| annotations.get(GROUP_ANNOTATION)?.parse().ok());
        groups.extend(group);
        if let Some(local) = &spec.local {
            let directory = self.volume_dir(pod, "local-volume", volume_name);
            self.bind_local(pod, Path::new(&local.path), &directory)?;
            return Ok(MountedVolume { host_path: directory, read_only: false });
        }
        if let Some(source) = &spec.host_path {
            let host_path = PathBuf::from(&source.path);
            host_path::check(&host_path, source.type_.as_deref().unwrap_or_default())?;
            return Ok(MountedVolume { host_path, read_only: false });
        }
        if let Some(source) = &spec.nfs {
            return self.nfs(pod, volume_name, source, spec.mount_options.as_deref().unwrap_or_default()).await;
        }
        Err(VolumeError::NoPlugin)
    }

    fn bind_local(&self, pod: &Pod, source: &Path, directory: &Path) -> Result<(), VolumeError> {
        let metadata = std::fs::metadata(source).map_err(at("looking at local volume", source))?;
        if !metadata.is_dir() {
            return Err(at("mounting local volume", source)(io::ErrorKind::NotADirectory.into()));
        }
        std::fs::create_dir_all(directory).map_err(at("creating directory", directory))?;
        if !self.mounter.is_mount_point(directory).map_err(at("looking for mount", directory))? {
            let spec = MountSpec { source: source.to_owned(), ..MountSpec::default() };
            self.mounter.mount(&spec, directory).map_err(at("mounting", directory))?;
        }
        self.give_to_group(pod, directory, false)
    }

    pub(super) async fn nfs(
        &self,
        pod: &Pod,
        name: &str,
        source: &NFSVolumeSource,
        options: &[String],
    ) -> Result<MountedVolume, VolumeError> {
        let directory = self.volume_dir(pod, "nfs", name);
        let read_only = source.read_only == Some(true);
        std::fs::create_dir_all(&directory).map_err(at("creating directory", &directory))?;
        if !self.mounter.is_mount_point(&directory).map_err(at("looking for mount", &directory))? {
            let spec = MountSpec {
                source: format!("{}:{}", source.server, source.path).into(),
                fs_type: "nfs".to_owned(),
                options: options.to_vec(),
                read_only,
            };
            let (mounter, target) = (self.mounter.clone(), directory.clone());
            let mount = spawn_blocking(move || mounter.mount(&spec, &target));
            match tokio::time::timeout(MOUNT_TIMEOUT, mount).await {
                Ok(Ok(result)) => result.map_err(at("mounting", &directory))?,
                Ok(Err(_)) => return Err(at("mounting", &directory)(io::Error::other("the mount was broken off"))),
                Err(_) => return Err(at("mounting", &directory)(io::ErrorKind::TimedOut.into())),
            }
        }
        Ok(MountedVolume { host_path: directory, read_only })
    }
}
