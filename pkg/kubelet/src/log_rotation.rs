//! Rotates container logs that grew too large and removes the oldest.
//!
//! `0.log` is renamed to `0.log.<time>` and the runtime told to open a new file; older ones are kept up to
//! the configured number. Behaves as pkg/kubelet/logs/container_log_manager.go, v1.36.
//!
//! Differs from upstream: rotated files are not compressed. A follower that fell behind can still read
//! them, and the node spends no processor time on logs nobody reads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rkube_cri::v1::ReopenContainerLogRequest;

use crate::kubelet::Inner;
use crate::runtime::state::State;

/// Upstream's period. Nobody announces that a log grows, but by every line of it.
const PERIOD: Duration = Duration::from_secs(10);

/// Looks at the logs again and again.
pub async fn run(inner: Arc<Inner>) {
    loop {
        inner.clock.sleep(PERIOD).await;
        rotate(&inner).await;
    }
}

/// Looks at the log of every running container.
async fn rotate(inner: &Inner) {
    for pod in inner.cache.all() {
        for container in pod.containers.iter().filter(|container| container.state == State::Running) {
            let path = PathBuf::from(&container.log_path);
            let large =
                std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > inner.config.container_log_bytes_max);
            if !large {
                continue;
            }
            let now = inner.clock.now().strftime("%Y%m%d-%H%M%S").to_string();
            let request = ReopenContainerLogRequest { container_id: container.id.clone() };
            let rotated = PathBuf::from(format!("{}.{now}", path.display()));
            if let Err(error) = std::fs::rename(&path, &rotated) {
                tracing::warn!(path = %path.display(), %error, "Container log was not rotated");
                continue;
            }
            if let Err(error) = inner.runtime.service.reopen_container_log(request).await {
                // The runtime still writes to the old file, so it gets its name back.
                let _ = std::fs::rename(&rotated, &path);
                tracing::warn!(path = %path.display(), %error, "Container log was not reopened");
                continue;
            }
            remove_oldest(&path, inner.config.container_log_files_max);
        }
    }
}

/// Keeps so many files in all, the live one included.
fn remove_oldest(path: &Path, files_max: usize) {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return;
    };
    let prefix = format!("{name}.");
    let mut rotated: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)))
        .map(|entry| entry.path())
        .collect();
    // The time in the name sorts as text.
    rotated.sort();
    let excess = rotated.len().saturating_sub(files_max.saturating_sub(1));
    for path in rotated.into_iter().take(excess) {
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "Rotated log was not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_rotated_logs_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["0.log", "0.log.1", "0.log.2", "0.log.3", "1.log.0"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        remove_oldest(&folder.path().join("0.log"), 3);
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["0.log", "0.log.2", "0.log.3", "1.log.0"]);
    }
}
