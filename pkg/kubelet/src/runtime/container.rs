//! The configuration of one container.
//!
//! Behaves as generateContainerConfig in pkg/kubelet/kuberuntime/kuberuntime_container{,_linux}.go and
//! makeMounts in pkg/kubelet/kubelet_pods.go, v1.36.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use rkube_api::k8s::core::v1::{Container, Pod};
use rkube_cri::v1::{
    ContainerConfig, ContainerMetadata, Image, ImageSpec, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    Mount,
};

use crate::runtime::env::expand;
use crate::runtime::labels;
use crate::runtime::security::{self, ImageUser, Profiles, RunAsError};

/// What a container's configuration is made of beside its spec.
pub struct ContainerInputs<'a> {
    pub restart_count: i32,
    pub image: &'a Image,
    pub runtime_handler: &'a str,
    pub env: IndexMap<String, String>,
    pub mounts: Vec<Mount>,
    pub resources: LinuxContainerResources,
    /// The container whose processes an ephemeral one sees.
    pub target: Option<&'a str>,
    pub volume_groups: &'a [i64],
    pub profiles: Profiles<'a>,
}

/// `<container>/<restart count>.log`, below the sandbox's log directory.
pub fn log_path(container: &str, restart_count: i32) -> String {
    format!("{container}/{restart_count}.log")
}

pub fn config(pod: &Pod, container: &Container, inputs: ContainerInputs<'_>) -> Result<ContainerConfig, RunAsError> {
    let value_of = |name: &str| inputs.env.get(name).cloned();
    let expanded = |words: Option<&Vec<String>>| -> Vec<String> {
        words.into_iter().flatten().map(|word| expand(word, value_of)).collect()
    };
    let security_context = security::container(
        pod,
        container,
        &image_user(inputs.image),
        inputs.target,
        inputs.volume_groups,
        inputs.profiles,
    )?;
    let attempt = u32::try_from(inputs.restart_count).unwrap_or(0);
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(ImageSpec {
            image: inputs.image.id.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            runtime_handler: inputs.runtime_handler.to_owned(),
            ..ImageSpec::default()
        }),
        command: expanded(container.command.as_ref()),
        args: expanded(container.args.as_ref()),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels: labels::container_labels(pod, container),
        annotations: labels::container_annotations(pod, container, inputs.restart_count),
        mounts: inputs.mounts,
        log_path: log_path(&container.name, inputs.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(inputs.resources),
            security_context: Some(security_context),
        }),
        envs: inputs.env.into_iter().map(|(key, value)| KeyValue { key, value: value.into_bytes() }).collect(),
        ..ContainerConfig::default()
    })
}

/// Who an image runs as. One that says nothing runs as root.
pub fn image_user(image: &Image) -> ImageUser {
    match (&image.uid, image.username.as_str()) {
        (Some(uid), _) => ImageUser { uid: Some(uid.value), name: String::new() },
        (None, "") => ImageUser { uid: Some(0), name: String::new() },
        (None, name) => ImageUser { uid: None, name: name.to_owned() },
    }
}

/// The file a container may leave a last word in. A fresh one per container, writable for any user.
pub fn termination_log(pod_dir: &Path, container: &Container, unique: &str) -> io::Result<Option<(PathBuf, Mount)>> {
    let Some(path) = container.termination_message_path.as_deref().filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let directory = pod_dir.join("containers").join(&container.name);
    std::fs::create_dir_all(&directory)?;
    let file = directory.join(unique);
    let handle = std::fs::OpenOptions::new().create_new(true).write(true).open(&file)?;
    // The umask applies to the mode above, so it is set once more.
    handle.set_permissions(std::fs::Permissions::from_mode(0o666))?;
    let mount =
        Mount { container_path: path.to_owned(), host_path: file.to_string_lossy().into_owned(), ..Mount::default() };
    Ok(Some((file, mount)))
}

/// How often a container was started before, by its logs: when the runtime has forgotten its containers,
/// as after a reboot, the count still goes on from here.
pub fn restart_count_by_logs(directory: &Path) -> i32 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let counts = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let name = name.to_str()?;
        // Rotated files are named `<count>.log.<time>`.
        name.split_once(".log")?.0.parse::<i32>().ok()
    });
    counts.max().map_or(0, |count| count.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restart_count_goes_on_from_the_logs() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(restart_count_by_logs(folder.path()), 0);
        for name in ["0.log", "2.log.20200101-000000.gz", "note"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(restart_count_by_logs(folder.path()), 3);
    }
}
