//! Waiting for a file: the kernel tells of changes, nobody asks again and again.

use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::process::followed;

/// Events read at a time; the rest is read in the next round.
const EVENT_BYTES: usize = 4096;

/// Waits until a file in a folder has this text. The folder is followed, as files are replaced and not written to.
pub(crate) async fn holds(folder: &Path, file: &str, text: &str, limit: Duration) -> Result<()> {
    let path = folder.join(file);
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("following files")?;
    let kinds = WatchFlags::CLOSE_WRITE | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
    inotify::add_watch(&changes, folder, kinds).with_context(|| format!("following {}", folder.display()))?;
    let changes = followed(changes)?;
    let waiting = async {
        // The watch came first, so no change falls between looking and waiting.
        while fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            let mut ready = changes.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); EVENT_BYTES];
            let mut reader = inotify::Reader::new(&changes, &mut buffer);
            loop {
                match reader.next() {
                    Ok(_) => {}
                    Err(rustix::io::Errno::WOULDBLOCK) => break,
                    Err(error) => return Err(error).context("reading changes of files"),
                }
            }
            ready.clear_ready();
        }
        Ok(())
    };
    match tokio::time::timeout(limit, waiting).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let found = fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
            bail!("{} did not become {text:?} within {} s; it holds {found:?}", path.display(), limit.as_secs())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_replaced_file_is_seen() {
        let folder = std::env::temp_dir().join(format!("rkube-e2e-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("note"), "old").unwrap();
        let replacing = async {
            tokio::task::yield_now().await;
            fs::write(folder.join("draft"), "new").unwrap();
            fs::rename(folder.join("draft"), folder.join("note")).unwrap();
        };
        let (seen, ()) = tokio::join!(holds(&folder, "note", "new", LIMIT), replacing);
        let late = holds(&folder, "note", "other", Duration::ZERO).await.unwrap_err();
        fs::remove_dir_all(&folder).unwrap();
        seen.unwrap();
        assert!(late.to_string().ends_with("it holds \"new\""), "{late}");
    }
}
