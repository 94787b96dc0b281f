//! Folders: waiting for something to change in one (manifests, image archives, network configurations), and keeping
//! state in one.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use tokio::sync::Notify;

/// Notifies `changed` whenever something in the folder changes.
pub async fn watch(folder: PathBuf, changed: Arc<Notify>) -> std::io::Result<()> {
    std::fs::create_dir_all(&folder)?;
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::DELETE | WatchMask::CREATE;
    inotify.watches().add(&folder, mask)?;
    let mut events = inotify.into_event_stream([0; 4096])?;
    while let Some(event) = events.next().await {
        let event = event?;
        if is_complete(event.mask, &folder.join(event.name.unwrap_or_default())) {
            changed.notify_one();
        }
    }
    Ok(())
}

/// Writes a file that only root reads: specs hold environment variables, and those may be secrets. Renamed into place, so
/// that a crash leaves the old or the new; one of the machine does so only if it is `durable`, which takes a while.
pub(crate) fn write_private(directory: &Path, name: &str, bytes: &[u8], durable: bool) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let temporary = directory.join(format!(".{name}"));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    std::fs::rename(temporary, directory.join(name))
}

/// A file that is made is empty: what is written into it is announced when its writer closes it. Folders and links
/// are complete when they are made, and what is gone again has an event of its own for that.
fn is_complete(mask: EventMask, path: &Path) -> bool {
    let is_empty_file = || std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.nlink() == 1);
    !mask.contains(EventMask::CREATE) || !is_empty_file()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_counts_when_it_was_written_and_a_link_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "").unwrap();
        assert!(!is_complete(EventMask::CREATE, &path("file")));
        assert!(is_complete(EventMask::CLOSE_WRITE, &path("file")));
        std::os::unix::fs::symlink("file", path("symbolic")).unwrap();
        assert!(is_complete(EventMask::CREATE, &path("symbolic")));
        fs::hard_link(path("file"), path("hard")).unwrap();
        assert!(is_complete(EventMask::CREATE, &path("hard")));
        fs::create_dir(path("folder")).unwrap();
        assert!(is_complete(EventMask::CREATE | EventMask::ISDIR, &path("folder")));
    }
}
