//! `/logs/`: the node's log folder, as its files and as lists of them.
//!
//! Behaves as http.FileServer over /var/log in pkg/kubelet/server/server.go, v1.36.
//!
//! Differs from upstream: a link that leads out of the folder is not followed. A pod that may write there must not make
//! the kubelet read the rest of the machine for it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use rkube_http::body::{Body, BoxError};
use tokio::sync::mpsc;

use crate::server::{Answer, text};

const FOLDER: &str = "/var/log";
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks waiting for a slow reader.
const CHUNKS_MAX: usize = 4;
const ENTRIES_MAX: usize = 10_000;

enum Found {
    File(File),
    /// Names, those of folders with a slash.
    Folder(Vec<String>),
    Nothing,
}

pub(super) async fn answer(parts: &[&str], is_folder: bool) -> Answer {
    let path: PathBuf = parts.iter().collect();
    // `.` and `..` are no names of files.
    let is_plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let found = match is_plain || parts.is_empty() {
        true => tokio::task::spawn_blocking(move || open(Path::new(FOLDER), &path)).await.unwrap_or(Found::Nothing),
        false => Found::Nothing,
    };
    match found {
        Found::Nothing => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        Found::File(file) => stream(file),
        Found::Folder(_) if !is_folder => {
            // Relative, as the names in the list will be.
            let location = format!("{}/", parts.last().copied().unwrap_or("logs"));
            let mut answer = text(StatusCode::MOVED_PERMANENTLY, "");
            if let Ok(location) = HeaderValue::from_str(&location) {
                answer.headers_mut().insert(header::LOCATION, location);
            }
            answer
        }
        Found::Folder(names) => list(&names),
    }
}

fn open(root: &Path, path: &Path) -> Found {
    let Ok(root) = root.canonicalize() else { return Found::Nothing };
    // A pipe must not hold the reader.
    let opened = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(root.join(path));
    let Ok(file) = opened else { return Found::Nothing };
    // Asked of what was opened, so that nothing can be put in its place between.
    let place = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let (Ok(place), Ok(metadata)) = (place, file.metadata()) else { return Found::Nothing };
    if !place.starts_with(&root) {
        return Found::Nothing;
    }
    if metadata.is_file() {
        return Found::File(file);
    }
    if !metadata.is_dir() {
        return Found::Nothing;
    }
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten().take(ENTRIES_MAX);
    let mut names: Vec<String> = entries
        .map(|entry| {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            format!("{}{slash}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    Found::Folder(names)
}

fn stream(mut file: File) -> Answer {
    let (sender, received) = mpsc::channel::<Result<Bytes, BoxError>>(CHUNKS_MAX);
    // It ends with the file or with its reader.
    tokio::task::spawn_blocking(move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let piece = match file.read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => Ok(Bytes::copy_from_slice(&chunk[..count])),
                Err(error) => Err(BoxError::from(error)),
            };
            let is_last = piece.is_err();
            if sender.blocking_send(piece).is_err() || is_last {
                return;
            }
        }
    });
    let pieces = futures_util::stream::unfold(received, |mut received| async {
        received.recv().await.map(|piece| (piece, received))
    });
    let mut answer = Response::new(Body::stream(pieces));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    answer
}

fn list(names: &[String]) -> Answer {
    let mut page = "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for name in names {
        let link = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string();
        let link = link.replace("%2F", "/").replace("%2E", ".");
        let shown = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
        // Writing to a string cannot fail.
        let _ = writeln!(page, "<a href=\"{link}\">{shown}</a>");
    }
    page.push_str("</pre>\n");
    let mut answer = Response::new(Body::from(page));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let (logs, outside) = (folder.path().join("log"), folder.path().join("secret"));
        std::fs::create_dir_all(logs.join("pods")).unwrap();
        std::fs::write(logs.join("a.log"), "a").unwrap();
        std::fs::write(&outside, "s").unwrap();
        std::os::unix::fs::symlink(&outside, logs.join("stolen")).unwrap();
        std::os::unix::fs::symlink(logs.join("a.log"), logs.join("pods/linked")).unwrap();
        nix::unistd::mkfifo(&logs.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let shown = |path: &str| match open(&logs, Path::new(path)) {
            Found::File(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            }
            Found::Folder(names) => names.join(" "),
            Found::Nothing => "nothing".to_owned(),
        };
        assert_eq!(shown(""), "a.log pipe pods/ stolen");
        assert_eq!((shown("a.log").as_str(), shown("pods/linked").as_str()), ("a", "a"));
        for path in ["stolen", "pipe", "missing", "../secret"] {
            assert_eq!(shown(path), "nothing", "{path}");
        }
    }
}
