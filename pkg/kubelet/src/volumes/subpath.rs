//! A path inside a volume, opened so that nobody can lead it out.
//!
//! The pod may change its volume while we look: a directory becomes a link between a check and its use.
//! So nothing is checked: the kernel resolves the path and refuses to leave the volume (`openat2` with
//! `RESOLVE_BENEATH`), and what is mounted is the file that was opened, by its descriptor.
//! Behaves as pkg/volume/util/subpath/subpath_linux.go, v1.36.
//!
//! Differs from upstream: an absolute link that leads back into the volume is refused; upstream resolves
//! links first and so follows it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use crate::volumes::mounter::{MountSpec, Mounter};

/// Where bind mounts of subpaths live below a pod's directory.
const DIRECTORY: &str = "volume-subpaths";

#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    #[error("subPath {path:?} must be relative and without \"..\"")]
    Invalid { path: String },
    #[error("subPath {path:?} leads out of volume {volume:?}")]
    Escapes { path: String, volume: String },
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}")]
    Prepare {
        volume: String,
        container: String,
        #[source]
        source: io::Error,
    },
}

/// What to bind.
pub struct SubPath<'a> {
    pub pod_dir: &'a Path,
    pub volume: &'a str,
    pub volume_path: &'a Path,
    pub container: &'a str,
    /// The mount's place in the container's list.
    pub index: usize,
    pub path: &'a str,
}

/// Makes the path exist and binds it to a place only the kubelet writes to, which is returned.
pub fn prepare(mounter: &dyn Mounter, subpath: &SubPath<'_>) -> Result<PathBuf, SubPathError> {
    let path = Path::new(subpath.path);
    if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(SubPathError::Invalid { path: subpath.path.to_owned() });
    }
    let failed = |source: io::Error| {
        if source.raw_os_error() == Some(nix::libc::EXDEV) {
            return SubPathError::Escapes { path: subpath.path.to_owned(), volume: subpath.volume.to_owned() };
        }
        let (volume, container) = (subpath.volume.to_owned(), subpath.container.to_owned());
        SubPathError::Prepare { volume, container, source }
    };
    let file = open_or_create(subpath.volume_path, path).map_err(failed)?;
    let place = subpath.pod_dir.join(DIRECTORY).join(subpath.volume).join(subpath.container);
    let target = place.join(subpath.index.to_string());
    bind(mounter, &file, &place, &target).map_err(failed)?;
    Ok(target)
}

fn open_beneath(base: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(base, path, how)
}

fn open_or_create(volume: &Path, path: &Path) -> io::Result<OwnedFd> {
    let base = OwnedFd::from(std::fs::File::open(volume)?);
    let parts: Vec<_> = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let whole: PathBuf = parts.iter().collect();
    if whole.as_os_str().is_empty() {
        return Ok(base);
    }
    match open_beneath(&base, &whole, OFlag::O_PATH) {
        Ok(file) => return Ok(file),
        Err(nix::Error::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    // New directories get the volume's own mode.
    let mode = Mode::from_bits_truncate(fstat(&base)?.st_mode & 0o7777);
    let mut current = base.try_clone()?;
    let mut so_far = PathBuf::new();
    for part in parts {
        so_far.push(part);
        current = match open_beneath(&base, &so_far, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(next) => next,
            Err(nix::Error::ENOENT) => {
                match mkdirat(&current, Path::new(&part), mode) {
                    Ok(()) | Err(nix::Error::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open_beneath(&base, &so_far, OFlag::O_PATH | OFlag::O_DIRECTORY)?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(current)
}

fn bind(mounter: &dyn Mounter, file: &OwnedFd, place: &Path, target: &Path) -> io::Result<()> {
    let wanted = fstat(file)?;
    if mounter.is_mount_point(target)? {
        let current = std::fs::metadata(target)?;
        if (current.dev(), current.ino()) == (wanted.st_dev, wanted.st_ino) {
            return Ok(());
        }
        mounter.unmount(target)?;
    }
    std::fs::create_dir_all(place)?;
    let is_directory = SFlag::from_bits_truncate(wanted.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR;
    let existing = std::fs::symlink_metadata(target).ok();
    if existing.as_ref().is_some_and(|existing| existing.is_dir() != is_directory) {
        if is_directory { std::fs::remove_file(target)? } else { std::fs::remove_dir(target)? }
    }
    if is_directory {
        std::fs::create_dir_all(target)?;
    } else {
        std::fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    mounter.mount(&MountSpec { source, ..MountSpec::default() }, target)
}

/// Unmounts and removes all subpath mounts of a pod.
pub fn clean(mounter: &dyn Mounter, pod_dir: &Path) -> io::Result<()> {
    let root = pod_dir.join(DIRECTORY);
    for point in mounter.points_below(&root)?.into_iter().rev() {
        mounter.unmount(&point)?;
    }
    if mounter.points_below(&root)?.is_empty() {
        match std::fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::mounter::FakeMounter;

    fn check(volume: &Path, path: &str) -> Result<PathBuf, String> {
        let pod = tempfile::tempdir().unwrap();
        let subpath = SubPath { pod_dir: pod.path(), volume: "v", volume_path: volume, container: "c", index: 0, path };
        let target = prepare(&FakeMounter::default(), &subpath).map_err(|error| error.to_string())?;
        Ok(target.strip_prefix(pod.path()).unwrap().to_owned())
    }

    #[test]
    fn links_may_not_lead_out() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("volume");
        std::fs::create_dir_all(volume.join("inner")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../..", volume.join("relative")).unwrap();
        std::os::unix::fs::symlink("inner", volume.join("inside")).unwrap();
        assert_eq!(check(&volume, "inside").unwrap(), Path::new("volume-subpaths/v/c/0"));
        assert!(check(&volume, "new/deep").is_ok());
        assert!(volume.join("new/deep").is_dir());
        assert!(check(&volume, "relative/x").unwrap_err().contains("leads out"));
        assert!(check(&volume, "absolute").unwrap_err().contains("leads out"));
        assert!(check(&volume, "absolute/new").is_err());
        assert!(check(&volume, "../x").unwrap_err().contains("must be relative"));
        assert!(check(&volume, "/etc").unwrap_err().contains("must be relative"));
    }
}
