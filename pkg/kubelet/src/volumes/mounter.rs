//! The kernel's mounts behind a trait, with a fake that remembers.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use parking_lot::Mutex;

/// What is mounted where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountSpec {
    pub source: PathBuf,
    /// `tmpfs`, `nfs`, …; empty for a bind mount.
    pub fs_type: String,
    pub options: Vec<String>,
    pub read_only: bool,
}

/// Mounts and unmounts.
///
/// # Guarantees
/// `unmount` of what is not mounted succeeds. `points_below` is in the order of mounting.
pub trait Mounter: Send + Sync + 'static {
    fn mount(&self, spec: &MountSpec, target: &Path) -> io::Result<()>;
    fn unmount(&self, target: &Path) -> io::Result<()>;
    fn is_mount_point(&self, path: &Path) -> io::Result<bool>;
    fn points_below(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
}

/// The kernel.
#[derive(Debug, Default)]
pub struct KernelMounter;

impl Mounter for KernelMounter {
    fn mount(&self, spec: &MountSpec, target: &Path) -> io::Result<()> {
        if spec.fs_type.is_empty() {
            return bind(spec, target);
        }
        if spec.fs_type == "nfs" {
            // The kernel wants addresses and versions worked out, which is mount.nfs's job.
            return mount_by_helper(spec, target);
        }
        let options = spec.options.join(",");
        let flags = if spec.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        let data = (!options.is_empty()).then_some(options.as_str());
        nix::mount::mount(Some(&spec.source), target, Some(spec.fs_type.as_str()), flags, data)?;
        Ok(())
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        match nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(()),
            // Not mounted, or not there.
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
            // Somebody is still in it: it goes when they do.
            Err(nix::Error::EBUSY) => {
                nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH).map_err(Into::into)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn is_mount_point(&self, path: &Path) -> io::Result<bool> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        Ok(mount_points(&table).any(|point| point == path))
    }

    fn points_below(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        Ok(mount_points(&table).filter(|point| point.starts_with(path)).collect())
    }
}

fn bind(spec: &MountSpec, target: &Path) -> io::Result<()> {
    let none: Option<&str> = None;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(Some(&spec.source), target, none, flags, none)?;
    if spec.read_only {
        // A bind mount takes the flag only when it is mounted anew.
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        nix::mount::mount(none, target, none, flags, none)?;
    }
    Ok(())
}

fn mount_by_helper(spec: &MountSpec, target: &Path) -> io::Result<()> {
    let mut options = spec.options.clone();
    if spec.read_only {
        options.push("ro".to_owned());
    }
    let mut command = std::process::Command::new("mount");
    // The environment may hold the token this process joined with, which is no business of mount helpers.
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.args(["-t", &spec.fs_type]);
    if !options.is_empty() {
        command.args(["-o", &options.join(",")]);
    }
    let output = command.arg(&spec.source).arg(target).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("mount failed: {}: {}", output.status, text.trim())))
}

/// The fifth column of mountinfo, with its octal escapes undone.
fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> + '_ {
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(|field| PathBuf::from(unescape(field)))
}

fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, octal.and_then(|digits| u8::from_str_radix(digits, 8).ok())) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Mounts in a map.
#[derive(Debug, Default)]
pub struct FakeMounter {
    mounts: Mutex<BTreeMap<PathBuf, MountSpec>>,
}

impl FakeMounter {
    pub fn mounts(&self) -> BTreeMap<PathBuf, MountSpec> {
        self.mounts.lock().clone()
    }
}

impl Mounter for FakeMounter {
    fn mount(&self, spec: &MountSpec, target: &Path) -> io::Result<()> {
        self.mounts.lock().insert(target.to_owned(), spec.clone());
        Ok(())
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        self.mounts.lock().remove(target);
        Ok(())
    }

    fn is_mount_point(&self, path: &Path) -> io::Result<bool> {
        Ok(self.mounts.lock().contains_key(path))
    }

    fn points_below(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.mounts.lock().keys().filter(|point| point.starts_with(path)).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let table = "22 1 0:20 / /sys rw - sysfs sysfs rw\n23 1 0:21 / /a\\040b rw shared:1 - tmpfs tmpfs rw\n";
        let points: Vec<PathBuf> = mount_points(table).collect();
        assert_eq!(points, [PathBuf::from("/sys"), PathBuf::from("/a b")]);
    }
}
