//! The cgroup a node's pods are made under, in every hierarchy of cgroup v1 or in the one of v2.
//!
//! A group without processors or memory nodes takes no process, and version 1 does not inherit them: they
//! are copied from the parent. With version 2 the controllers are handed down instead.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::Exit;

/// What was killed is gone in this time, or the kernel is stuck.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(60);

struct Hierarchy {
    mount: PathBuf,
    is_unified: bool,
}

/// Makes `<group>/<node>` everywhere and returns its name as `--cgroup-root` takes it.
pub(crate) fn make(group: &str, node: &str) -> Result<String> {
    for hierarchy in hierarchies()? {
        let mut parent = hierarchy.mount.clone();
        for part in [group, node] {
            if hierarchy.is_unified {
                delegate(&parent);
            }
            let folder = parent.join(part);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("creating cgroup {}", folder.display()));
                }
                _ => inherit(&parent, &folder)?,
            }
            parent = folder;
        }
        if hierarchy.is_unified {
            delegate(&parent);
        }
    }
    Ok(format!("/{group}/{node}"))
}

/// Removes the groups of a cluster. Its processes were killed; those still on their way out are waited for.
pub(crate) async fn remove(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let folder = hierarchy.mount.join(group);
        let emptying = async {
            for pid in processes(&folder)? {
                Exit::of(pid)?.wait().await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let emptied = tokio::time::timeout(EMPTY_TIMEOUT, emptying).await;
        emptied.with_context(|| format!("waiting for the processes in cgroup {}", folder.display()))??;
        remove_tree(&folder).with_context(|| format!("removing cgroup {}", folder.display()))?;
    }
    Ok(())
}

/// Every process in a group and the groups below it.
fn processes(folder: &Path) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    Ok(found)
}

/// Files of a cgroup are not files: only its folders are removed, from the leaves up.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mount table")?;
    let all = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (mount, kind) = (fields.nth(1)?, fields.next()?);
        let is_unified = kind == "cgroup2";
        (is_unified || kind == "cgroup").then(|| Hierarchy { mount: PathBuf::from(mount), is_unified })
    });
    // systemd's own hierarchy of version 1 has no controllers, but runtimes put containers there too.
    Ok(all.collect())
}

fn inherit(parent: &Path, folder: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let target = folder.join(file);
        let Ok(current) = fs::read_to_string(&target) else { continue };
        if !current.trim().is_empty() {
            continue;
        }
        // Version 2 has no value of its own at the root, and needs none.
        let Ok(value) = fs::read_to_string(parent.join(file)) else { continue };
        if !value.trim().is_empty() {
            fs::write(&target, value).with_context(|| format!("filling {}", target.display()))?;
        }
    }
    Ok(())
}

/// Hands every controller down that can be; those that cannot be are missing on the node as they are here.
fn delegate(folder: &Path) {
    let controllers = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}
