//! hostPath volumes: what must be there, and what is made.
//!
//! Behaves as pkg/volume/hostpath/host_path.go, v1.36.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum HostPathError {
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    Type { path: PathBuf, wanted: &'static str },
    #[error("unknown hostPath type {0:?}")]
    Unknown(String),
    #[error("making hostPath {path}")]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Checks that `path` is of the type asked for; makes it where the type says so.
pub fn check(path: &Path, kind: &str) -> Result<(), HostPathError> {
    let metadata = std::fs::metadata(path);
    let made = |result: io::Result<()>| result.map_err(|source| HostPathError::Make { path: path.to_owned(), source });
    if metadata.is_err() {
        match kind {
            "DirectoryOrCreate" => {
                let created = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
                return made(created);
            }
            "FileOrCreate" => {
                let options = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
                return made(options.map(drop));
            }
            _ => {}
        }
    }
    let is = |test: fn(&std::fs::FileType) -> bool| metadata.as_ref().is_ok_and(|metadata| test(&metadata.file_type()));
    let (fits, wanted) = match kind {
        "" => (true, ""),
        "DirectoryOrCreate" | "Directory" => (is(std::fs::FileType::is_dir), "directory"),
        "FileOrCreate" | "File" => (is(std::fs::FileType::is_file), "file"),
        "Socket" => (is(FileTypeExt::is_socket), "socket file"),
        "CharDevice" => (is(FileTypeExt::is_char_device), "character device"),
        "BlockDevice" => (is(FileTypeExt::is_block_device), "block device"),
        other => return Err(HostPathError::Unknown(other.to_owned())),
    };
    if fits { Ok(()) } else { Err(HostPathError::Type { path: path.to_owned(), wanted }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        check(&at("d/e"), "DirectoryOrCreate").unwrap();
        check(&at("d/f"), "FileOrCreate").unwrap();
        check(&at("d"), "Directory").unwrap();
        check(&at("gone"), "").unwrap();
        check(Path::new("/dev/null"), "CharDevice").unwrap();
        for (path, kind) in
            [(at("d/f"), "Directory"), (at("d"), "FileOrCreate"), (at("gone"), "File"), (at("d"), "Socket")]
        {
            let error = check(&path, kind).unwrap_err().to_string();
            assert!(error.starts_with("hostPath type check failed: "), "{error}");
        }
    }
}
