//! Waiting for something to change in a folder: manifests, image archives, network configurations.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::Notify;

/// Notifies `changed` whenever something in the folder changes.
pub async fn watch(folder: PathBuf, changed: Arc<Notify>) -> std::io::Result<()> {
    std::fs::create_dir_all(&folder)?;
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::DELETE | WatchMask::CREATE;
    inotify.watches().add(&folder, mask)?;
    let mut events = inotify.into_event_stream([0; 4096])?;
    while let Some(event) = events.next().await {
        event?;
        changed.notify_one();
    }
    Ok(())
}
