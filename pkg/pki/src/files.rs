//! Files that are whole or absent: written beside their place, synced, and renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::PkiError;

/// Only the owner may read.
pub const PRIVATE: u32 = 0o600;
/// Certificates are public, but there is no reason to show them around.
pub const PUBLIC: u32 = 0o644;

/// Far beyond any configuration, token, certificate or kubeconfig; a device or a core dump is refused here.
const TEXT_BYTES_MAX: u64 = 1024 * 1024;

/// The content of a file that people write.
///
/// # Errors
/// The file's own, `InvalidData` for what is no UTF-8, `FileTooLarge` beyond [`TEXT_BYTES_MAX`].
pub fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
}

/// The content of `path`, or `None` if there is no such file.
pub fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match text(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Read { path: path.to_owned(), source }),
    }
}

/// Replaces `path` by `content` in one step: a crash leaves the old file or the new one.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    replace(path, content, mode).map_err(|source| PkiError::Write { path: path.to_owned(), source })
}

fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // Of a name alone the parent is empty, which is no folder.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    create_folder(folder)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".tmp");
    let temporary = folder.join(name);
    // A leftover of a crash may have another mode, and `mode` counts at creation only.
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

/// Creates a folder and its parents, closed to others.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}
