//! fsGroup: gives a volume's files to a group.
//!
//! Behaves as pkg/volume/volume_linux.go, v1.36.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const EXECUTE: u32 = 0o110;
const SETGID: u32 = 0o2000;

/// Whether the whole tree is looked at, or only when its root does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangePolicy {
    Always,
    OnRootMismatch,
}

/// Sets group and group permissions below `root`, links excluded.
pub fn set_group(root: &Path, group: u32, read_only: bool, policy: ChangePolicy) -> io::Result<()> {
    if policy == ChangePolicy::OnRootMismatch && !needs_change(root, group, read_only)? {
        return Ok(());
    }
    // Children first: the root is what says that all is done.
    change_below(root, group, read_only)?;
    change(root, group, read_only)
}

fn needs_change(root: &Path, group: u32, read_only: bool) -> io::Result<bool> {
    let metadata = std::fs::metadata(root)?;
    let wanted = if read_only { READ_ONLY } else { READ_WRITE } | EXECUTE;
    Ok(metadata.gid() != group || metadata.mode() & wanted != wanted || metadata.mode() & SETGID == 0)
}

fn change_below(directory: &Path, group: u32, read_only: bool) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            change_below(&entry.path(), group, read_only)?;
        }
        change(&entry.path(), group, read_only)?;
    }
    Ok(())
}

fn change(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        // Programs delete files while we walk.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    lchown(path, None, Some(group))?;
    // A link's mode means nothing, and changing it would change what it points to.
    if metadata.file_type().is_symlink() {
        return Ok(());
    }
    let mut mask = if read_only { READ_ONLY } else { READ_WRITE };
    if metadata.is_dir() {
        mask |= EXECUTE | SETGID;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode((metadata.mode() & 0o7777) | mask))
}
