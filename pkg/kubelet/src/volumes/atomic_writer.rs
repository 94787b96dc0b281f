//! Replaces a set of files in one step that readers cannot see halfway.
//!
//! ```text
//! volume/
//!   ..2026_01_02_03_04_05.123456789/   the files
//!   ..data -> ..2026_01_02_03_04_05.123456789
//!   name -> ..data/name                one link per top-level name
//! ```
//! An update writes a new timestamped directory and renames one link over `..data`. Behaves as
//! pkg/volume/util/atomic_writer.go, v1.36: the layout is what programs watch with inotify.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";
const PATH_CHARS_MAX: usize = 4096;

/// One file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProjection {
    pub data: Vec<u8>,
    pub mode: u32,
    pub owner: Option<u32>,
}

pub type Payload = BTreeMap<String, FileProjection>;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("invalid path: {path:?}")]
    Path { path: String },
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn at<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> WriteError + 'a {
    move |source| WriteError::Io { operation, path: path.to_owned(), source }
}

/// Makes `target` hold exactly `payload`. `finish` gets the new directory before it becomes visible, to
/// set owners. Says whether anything changed.
pub fn write(
    target: &Path,
    payload: &Payload,
    now: Timestamp,
    finish: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<bool, WriteError> {
    for path in payload.keys() {
        validate(path)?;
    }
    let data = target.join(DATA);
    let old = match std::fs::read_link(&data) {
        Ok(name) => Some(target.join(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(at("reading link", &data)(error)),
    };
    if let Some(old) = &old
        && holds_exactly(old, payload)
    {
        // An earlier write may have been cut off between the swap and the links.
        link_names(target, payload)?;
        return Ok(false);
    }
    let name = directory_name(target, now);
    let directory = target.join(&name);
    std::fs::create_dir(&directory).map_err(at("creating directory", &directory))?;
    set_mode(&directory, 0o755)?;
    write_files(&directory, payload)?;
    finish(&directory).map_err(at("setting owner of", &directory))?;

    let new = target.join(DATA_NEW);
    remove(&new)?;
    symlink(&name, &new).map_err(at("linking", &new))?;
    std::fs::rename(&new, &data).map_err(at("renaming", &data))?;
    link_names(target, payload)?;
    remove_stale(target, payload, &name)?;
    Ok(true)
}

fn validate(path: &str) -> Result<(), WriteError> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let first = path.split('/').next().unwrap_or_default();
    // A name that begins with two dots would meet the writer's own.
    if path.is_empty() || path.len() > PATH_CHARS_MAX || !plain || first.starts_with("..") || path.contains('\0') {
        return Err(WriteError::Path { path: path.to_owned() });
    }
    Ok(())
}

/// Unique within the volume even when two writes fall on one clock tick.
fn directory_name(target: &Path, now: Timestamp) -> String {
    let base = now.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    (0u32..)
        .map(|count| if count == 0 { base.clone() } else { format!("{base}_{count}") })
        .find(|name| !target.join(name).exists())
        .unwrap_or(base)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), WriteError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(at("setting mode of", path))
}

fn write_files(directory: &Path, payload: &Payload) -> Result<(), WriteError> {
    for (path, file) in payload {
        let full = directory.join(path);
        if let Some(parent) = full.parent() {
            std::fs::create_dir_all(parent).map_err(at("creating directory", parent))?;
        }
        std::fs::write(&full, &file.data).map_err(at("writing", &full))?;
        // Beyond the umask.
        set_mode(&full, file.mode)?;
        if let Some(owner) = file.owner {
            std::os::unix::fs::chown(&full, Some(owner), None).map_err(at("setting owner of", &full))?;
        }
    }
    Ok(())
}

fn holds_exactly(directory: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    if collect_files(directory, directory, &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        found.contains(path) && std::fs::read(directory.join(path)).is_ok_and(|data| data == file.data)
    })
}

fn collect_files(root: &Path, directory: &Path, found: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_files(root, &entry.path(), found)?;
        } else if let Ok(path) = entry.path().strip_prefix(root) {
            found.insert(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn top_names(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|path| path.split('/').next()).collect()
}

fn link_names(target: &Path, payload: &Payload) -> Result<(), WriteError> {
    for name in top_names(payload) {
        let link = target.join(name);
        let wanted = Path::new(DATA).join(name);
        if std::fs::read_link(&link).is_ok_and(|current| current == wanted) {
            continue;
        }
        remove(&link)?;
        symlink(&wanted, &link).map_err(at("linking", &link))?;
    }
    Ok(())
}

/// Removes links whose file is gone, and directories of earlier writes.
fn remove_stale(target: &Path, payload: &Payload, current: &str) -> Result<(), WriteError> {
    let wanted = top_names(payload);
    for entry in std::fs::read_dir(target).map_err(at("reading", target))? {
        let entry = entry.map_err(at("reading", target))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name != DATA && name != current && !wanted.contains(name) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), WriteError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at("looking at", path)(error)),
    };
    let removed = if metadata.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    removed.map_err(at("removing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| FileProjection { data: data.into(), mode: 0o640, owner: None };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    fn put(target: &Path, files: &[(&str, &str)]) -> bool {
        write(target, &payload(files), Timestamp::UNIX_EPOCH, |_| Ok(())).unwrap()
    }

    fn names(target: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(target).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_update_swaps_all_files_at_once_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert!(put(root, &[("a", "1"), ("dir/b", "2")]));
        let first = std::fs::read_link(root.join("..data")).unwrap();
        assert_eq!(names(root), [first.to_str().unwrap(), "..data", "a", "dir"]);
        assert_eq!(std::fs::read_to_string(root.join("dir/b")).unwrap(), "2");
        assert!(!put(root, &[("a", "1"), ("dir/b", "2")]), "the same content is not written again");

        assert!(put(root, &[("a", "3")]));
        let second = std::fs::read_link(root.join("..data")).unwrap();
        assert_ne!(first, second);
        assert_eq!(
            names(root),
            ["..data", second.to_str().unwrap(), "a"]
                .map(str::to_owned)
                .into_iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        );
        assert_eq!(std::fs::metadata(root.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn paths_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["", "/etc/x", "../x", "a/../../x", "..data", "..x/y", "a//../b"] {
            let result = write(folder.path(), &payload(&[(path, "x")]), Timestamp::UNIX_EPOCH, |_| Ok(()));
            assert!(matches!(result, Err(WriteError::Path { .. })), "{path}");
        }
    }
}
