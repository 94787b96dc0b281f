//! The mounts of one container.
//!
//! Behaves as makeMounts in pkg/kubelet/kubelet_pods.go, v1.36.

use std::io;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use rkube_api::k8s::core::v1::{Container, Pod, VolumeMount};
use rkube_cri::v1::{Mount, MountPropagation};

use crate::pod::PodExt;
use crate::runtime::dns;
use crate::runtime::env::expand;
use crate::volumes::PodVolumes;
use crate::volumes::mounter::Mounter;
use crate::volumes::subpath::{self, SubPath, SubPathError};

const HOSTS: &str = "/etc/hosts";

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("volume {0:?} of the container is not mounted")]
    Volume(String),
    #[error("block device volume {0:?} is not supported")]
    Block(String),
    #[error("subPathExpr {0:?} refers to a variable that is not set")]
    Expression(String),
    #[error(transparent)]
    SubPath(#[from] SubPathError),
    #[error("writing hosts file of pod")]
    Hosts(#[source] io::Error),
}

/// What mounts are made from.
pub struct MountContext<'a> {
    pub pod_dir: PathBuf,
    pub volumes: &'a PodVolumes,
    pub mounter: &'a dyn Mounter,
    pub env: &'a IndexMap<String, String>,
    pub ips: &'a [String],
    pub cluster_domain: &'a str,
}

pub fn container_mounts(
    pod: &Pod,
    container: &Container,
    context: &MountContext<'_>,
) -> Result<Vec<Mount>, MountError> {
    if let Some(device) = container.volume_devices.iter().flatten().next() {
        return Err(MountError::Block(device.name.clone()));
    }
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume_mount(container, index, mount, context)?);
    }
    let has_hosts = mounts.iter().any(|mount| Path::new(&mount.container_path) == Path::new(HOSTS));
    if !has_hosts && !context.ips.is_empty() {
        mounts.push(hosts_mount(pod, context).map_err(MountError::Hosts)?);
    }
    Ok(mounts)
}

fn volume_mount(
    container: &Container,
    index: usize,
    mount: &VolumeMount,
    context: &MountContext<'_>,
) -> Result<Mount, MountError> {
    let volume = context.volumes.get(&mount.name).ok_or_else(|| MountError::Volume(mount.name.clone()))?;
    let host_path = match sub_path(mount, context.env)? {
        None => volume.host_path.clone(),
        Some(path) => {
            let wanted = SubPath {
                pod_dir: &context.pod_dir,
                volume: &mount.name,
                volume_path: &volume.host_path,
                container: &container.name,
                index,
                path: &path,
            };
            subpath::prepare(context.mounter, &wanted)?
        }
    };
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    };
    let path = &mount.mount_path;
    Ok(Mount {
        container_path: if path.starts_with('/') { path.clone() } else { format!("/{path}") },
        host_path: host_path.to_string_lossy().into_owned(),
        readonly: volume.read_only || mount.read_only.unwrap_or(false),
        propagation: propagation.into(),
        ..Mount::default()
    })
}

fn sub_path(mount: &VolumeMount, env: &IndexMap<String, String>) -> Result<Option<String>, MountError> {
    if let Some(path) = mount.sub_path.as_ref().filter(|path| !path.is_empty()) {
        return Ok(Some(path.clone()));
    }
    let Some(expression) = mount.sub_path_expr.as_ref().filter(|path| !path.is_empty()) else { return Ok(None) };
    let missing = std::cell::Cell::new(false);
    let path = expand(expression, |name| {
        let value = env.get(name).cloned();
        missing.set(missing.get() || value.is_none());
        value
    });
    if missing.get() {
        return Err(MountError::Expression(expression.clone()));
    }
    Ok(Some(path))
}

fn hosts_mount(pod: &Pod, context: &MountContext<'_>) -> io::Result<Mount> {
    let host_file =
        if pod.is_host_network() { std::fs::read_to_string(HOSTS).unwrap_or_default() } else { String::new() };
    let text = dns::hosts_file(pod, context.ips, context.cluster_domain, &host_file);
    std::fs::create_dir_all(&context.pod_dir)?;
    let path = context.pod_dir.join("etc-hosts");
    // Written in place: containers that run have this file mounted, not its name.
    std::fs::write(&path, text)?;
    Ok(Mount { container_path: HOSTS.to_owned(), host_path: path.to_string_lossy().into_owned(), ..Mount::default() })
}
