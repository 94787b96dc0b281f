//! Volumes of pods: set up before containers start, refreshed while they run, taken down after.
//!
//! Setting up is idempotent and runs with every sync of the pod, which is how changed configuration
//! arrives. What is mounted is read from the kernel, not remembered, so that a restart finds everything.
//!
//! Behaves as pkg/kubelet/volumemanager and pkg/volume, v1.36; the directory layout below a pod is
//! upstream's, which backup and log tools know.
//!
//! Differs from upstream: no separate reconciler with desired and actual worlds. The pod worker, which
//! alone touches its pod, calls here.

pub mod atomic_writer;
pub mod host_path;
pub mod mounter;
pub mod mounts;
pub mod ownership;
pub mod payload;
mod persistent;
pub mod subpath;
pub mod tokens;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rkube_api::k8s::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use rkube_apimachinery::clock::SharedClock;
use rkube_client::Client;

use crate::downward::NodeFacts;
use crate::objects::Objects;
use crate::pod::{PodExt, PodUid, all_limited, pod_limit, quantity};
use crate::volumes::atomic_writer::{Payload, WriteError};
use crate::volumes::host_path::HostPathError;
use crate::volumes::mounter::{MountSpec, Mounter};
use crate::volumes::ownership::ChangePolicy;
use crate::volumes::payload::{PayloadError, PayloadSources};
use crate::volumes::tokens::TokenManager;

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    HostPath(#[from] HostPathError),
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("persistentvolumeclaim {0:?} not found")]
    ClaimNotFound(String),
    #[error("persistentvolumeclaim {0:?} is not bound")]
    ClaimNotBound(String),
    #[error("persistentvolume {0:?} not found")]
    VolumeNotFound(String),
    #[error("no volume plugin matched")]
    NoPlugin,
    #[error(transparent)]
    Client(#[from] rkube_client::transport::ClientError),
}

pub(crate) fn at<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> VolumeError + 'a {
    move |source| VolumeError::Io { operation, path: path.to_owned(), source }
}

/// One volume, ready to be mounted into containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedVolume {
    pub host_path: PathBuf,
    pub read_only: bool,
}

/// All volumes of a pod by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodVolumes {
    mounted: BTreeMap<String, MountedVolume>,
    groups: Vec<i64>,
}

impl PodVolumes {
    pub fn get(&self, name: &str) -> Option<&MountedVolume> {
        self.mounted.get(name)
    }

    /// Groups that persistent volumes are annotated with; containers get them as supplemental groups.
    pub fn groups(&self) -> &[i64] {
        &self.groups
    }
}

/// Sets up and takes down.
pub struct VolumeManager {
    pub(crate) root: PathBuf,
    pub(crate) mounter: Arc<dyn Mounter>,
    clock: SharedClock,
    pub(crate) client: Client,
    pub(crate) objects: Arc<Objects>,
    tokens: TokenManager,
}

impl VolumeManager {
    /// `root` is the kubelet's, `/var/lib/kubelet`.
    pub fn new(
        root: PathBuf,
        mounter: Arc<dyn Mounter>,
        clock: SharedClock,
        client: Client,
        objects: Arc<Objects>,
    ) -> Self {
        let tokens = TokenManager::new(client.clone(), clock.clone());
        Self { root, mounter, clock, client, objects, tokens }
    }

    fn pod_dir(&self, uid: &PodUid) -> PathBuf {
        self.root.join("pods").join(uid.as_str())
    }

    /// `pods/<uid>/volumes/kubernetes.io~<plugin>/<name>`
    pub(crate) fn volume_dir(&self, pod: &Pod, plugin: &str, name: &str) -> PathBuf {
        self.pod_dir(&pod.uid()).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
    }

    /// Sets up all volumes; the errors name the volumes that failed.
    pub async fn set_up(
        &self,
        pod: &Pod,
        ips: &[String],
        node: &NodeFacts,
    ) -> Result<PodVolumes, Vec<(String, VolumeError)>> {
        let mut volumes = PodVolumes::default();
        let mut failed = Vec::new();
        for volume in pod.pod_spec().volumes.as_deref().unwrap_or_default() {
            match self.set_up_one(pod, volume, ips, node, &mut volumes.groups).await {
                Ok(mounted) => {
                    volumes.mounted.insert(volume.name.clone(), mounted);
                }
                Err(error) => failed.push((volume.name.clone(), error)),
            }
        }
        if failed.is_empty() { Ok(volumes) } else { Err(failed) }
    }

    async fn set_up_one(
        &self,
        pod: &Pod,
        volume: &Volume,
        ips: &[String],
        node: &NodeFacts,
        groups: &mut Vec<i64>,
    ) -> Result<MountedVolume, VolumeError> {
        let left = self.volume_dir(pod, "projected", &volume.name);
        let (objects, tokens) = (&self.objects, &self.tokens);
        let sources = PayloadSources { objects, tokens, client: &self.client, node, ips, left: &left };
        if let Some(source) = &volume.empty_dir {
            return self.empty_dir(pod, &volume.name, source, node);
        }
        if let Some(source) = &volume.host_path {
            let host_path = PathBuf::from(&source.path);
            host_path::check(&host_path, source.type_.as_deref().unwrap_or_default())?;
            return Ok(MountedVolume { host_path, read_only: false });
        }
        if let Some(source) = &volume.config_map {
            let payload = payload::config_map(
                pod,
                &source.name,
                source.items.as_ref(),
                source.default_mode,
                source.optional,
                &sources,
            );
            return self.write(pod, "configmap", &volume.name, &payload.await?);
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let payload =
                payload::secret(pod, name, source.items.as_ref(), source.default_mode, source.optional, &sources);
            return self.write(pod, "secret", &volume.name, &payload.await?);
        }
        if let Some(source) = &volume.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            let payload = payload::downward(pod, items, source.default_mode, &sources)?;
            return self.write(pod, "downward-api", &volume.name, &payload);
        }
        if let Some(source) = &volume.projected {
            let payload = payload::projected(pod, source, &sources).await?;
            return self.write(pod, "projected", &volume.name, &payload);
        }
        if let Some(source) = &volume.nfs {
            return self.nfs(pod, &volume.name, source, &[]).await;
        }
        if let Some(source) = &volume.persistent_volume_claim {
            let mut mounted = self.claim(pod, &source.claim_name, groups).await?;
            mounted.read_only |= source.read_only == Some(true);
            return Ok(mounted);
        }
        if volume.ephemeral.is_some() {
            // The claim of a generic ephemeral volume is made by its controller, under this name.
            return self.claim(pod, &format!("{}-{}", pod.name(), volume.name), groups).await;
        }
        Err(VolumeError::NoPlugin)
    }

    fn empty_dir(
        &self,
        pod: &Pod,
        name: &str,
        source: &EmptyDirVolumeSource,
        node: &NodeFacts,
    ) -> Result<MountedVolume, VolumeError> {
        let directory = self.volume_dir(pod, "empty-dir", name);
        let fresh = !directory.exists();
        std::fs::create_dir_all(&directory).map_err(at("creating directory", &directory))?;
        match source.medium.as_deref().unwrap_or_default() {
            "" => {}
            "Memory" => {
                let limit = memory_limit(pod, source, node);
                let options = limit.map(|bytes| format!("size={bytes}")).into_iter().collect();
                self.mount_once("tmpfs", options, &directory)?;
            }
            medium => {
                let size = medium.strip_prefix("HugePages").map(|size| size.trim_start_matches('-'));
                let size = size.ok_or(VolumeError::NoPlugin)?;
                let options = if size.is_empty() { vec![] } else { vec![format!("pagesize={size}").replace('i', "")] };
                self.mount_once("hugetlbfs", options, &directory)?;
            }
        }
        // The directory of another medium is a new one after a reboot.
        if fresh || self.mounter.is_mount_point(&directory).unwrap_or(false) {
            set_mode(&directory, 0o777)?;
        }
        self.give_to_group(pod, &directory, false)?;
        Ok(MountedVolume { host_path: directory, read_only: false })
    }

    pub(crate) fn mount_once(&self, fs_type: &str, options: Vec<String>, target: &Path) -> Result<(), VolumeError> {
        if self.mounter.is_mount_point(target).map_err(at("looking for mount", target))? {
            return Ok(());
        }
        let spec = MountSpec { source: fs_type.into(), fs_type: fs_type.to_owned(), options, read_only: false };
        self.mounter.mount(&spec, target).map_err(at("mounting", target))
    }

    fn write(&self, pod: &Pod, plugin: &str, name: &str, payload: &Payload) -> Result<MountedVolume, VolumeError> {
        let directory = self.volume_dir(pod, plugin, name);
        std::fs::create_dir_all(&directory).map_err(at("creating directory", &directory))?;
        if plugin == "secret" || plugin == "projected" {
            // Secrets never touch the disk.
            self.mount_once("tmpfs", vec!["mode=0755".to_owned()], &directory)?;
        }
        set_mode(&directory, 0o777)?;
        let group = fs_group(pod);
        atomic_writer::write(&directory, payload, self.clock.now(), |written| match group {
            Some(group) => ownership::set_group(written, group, true, ChangePolicy::Always),
            None => Ok(()),
        })?;
        Ok(MountedVolume { host_path: directory, read_only: true })
    }

    pub(crate) fn give_to_group(&self, pod: &Pod, directory: &Path, read_only: bool) -> Result<(), VolumeError> {
        let Some(group) = fs_group(pod) else { return Ok(()) };
        // Differs from upstream: `Always` is treated as `OnRootMismatch`. Set-up runs with every sync, and
        // walking the volume of a running pod each time would cost without end.
        ownership::set_group(directory, group, read_only, ChangePolicy::OnRootMismatch)
            .map_err(at("setting group of", directory))
    }

    /// Unmounts everything of a pod. Files stay until [`remove`](Self::remove).
    pub fn tear_down(&self, uid: &PodUid) -> Result<(), VolumeError> {
        let directory = self.pod_dir(uid);
        subpath::clean(&*self.mounter, &directory).map_err(at("unmounting subpaths of", &directory))?;
        // Inner mounts were made later and go first.
        let points = self.mounter.points_below(&directory).map_err(at("reading mounts below", &directory))?;
        for point in points.into_iter().rev() {
            self.mounter.unmount(&point).map_err(at("unmounting", &point))?;
        }
        self.tokens.forget(uid);
        Ok(())
    }

    /// Removes a pod's directory once nothing is mounted in it: what is mounted may be somebody's data.
    pub fn remove(&self, uid: &PodUid) -> Result<(), VolumeError> {
        let directory = self.pod_dir(uid);
        let points = self.mounter.points_below(&directory).map_err(at("reading mounts below", &directory))?;
        if let Some(point) = points.first() {
            return Err(at("removing pod directory with mount", point)(io::ErrorKind::ResourceBusy.into()));
        }
        match remove_one_file_system(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("removing", &directory)(error)),
            _ => Ok(()),
        }
    }

    /// UIDs that have a directory.
    pub fn pods_on_disk(&self) -> Vec<PodUid> {
        let entries = std::fs::read_dir(self.root.join("pods"));
        let names = entries.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.map(|name| PodUid::from(name.as_str())).collect()
    }
}

/// Deletes a tree without ever crossing into another file system: a mount that appeared since the
/// check above is somebody's data.
fn remove_one_file_system(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    fn walk(path: &Path, device: u64) -> io::Result<()> {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let metadata = entry.path().symlink_metadata()?;
            if metadata.dev() != device {
                return Err(io::ErrorKind::CrossesDevices.into());
            }
            if metadata.is_dir() {
                walk(&entry.path(), device)?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        std::fs::remove_dir(path)
    }
    walk(directory, directory.symlink_metadata()?.dev())
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), VolumeError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(at("setting mode of", path))
}

pub(crate) fn fs_group(pod: &Pod) -> Option<u32> {
    pod.pod_spec().security_context.as_ref()?.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// The smallest of: the volume's own limit, the pod's memory limit, the node's memory.
fn memory_limit(pod: &Pod, source: &EmptyDirVolumeSource, node: &NodeFacts) -> Option<i64> {
    let own = source.size_limit.as_ref().map(|limit| quantity(Some(limit)).value()).filter(|limit| *limit > 0);
    let whole = all_limited(pod.pod_spec(), "memory").then(|| pod_limit(pod.pod_spec(), "memory").value());
    let node = node.allocatable.get("memory").map(|memory| memory.value());
    [own, whole.filter(|limit| *limit > 0), node].into_iter().flatten().min()
}
