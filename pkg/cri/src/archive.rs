//! Image archives: what `docker save`, `ctr images export` and [`build`] write.
//!
//! An archive is read twice: once to learn what is in it ([`scan`]), once to stream the blobs
//! ([`stream`]), so that memory does not grow with its size. Only JSON documents are kept.
//!
//! Behaves as containerd's `images/archive/importer.go`: an OCI layout's `index.json`, or docker's
//! `manifest.json` for which a manifest is written here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

/// JSON documents larger than this are not manifests. containerd's limit is the same.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
const ENTRIES_MAX: usize = 100_000;
const BLOCK: usize = 512;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("reading image archive {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("image archive has no {what}")]
    Missing { what: String },
    #[error("decoding {what} of the image archive")]
    Decode {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("image archive holds more than {ENTRIES_MAX} files")]
    TooManyEntries,
}

/// One file of the archive.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) size: u64,
    gzip: bool,
    document: Option<Vec<u8>>,
}

/// A blob and what it points to, as labels that keep containerd from collecting its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) labels: BTreeMap<String, String>,
    /// Made here and not in the archive.
    pub(crate) bytes: Option<Vec<u8>>,
}

/// A reference to a manifest or index.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: i64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What an archive brings: children before parents, then names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Import {
    pub(crate) contents: Vec<Content>,
    pub(crate) images: Vec<(String, Descriptor)>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The files of an archive by name.
pub(crate) type Files = BTreeMap<String, Blob>;

/// Reads an archive once: digests of all files, and the JSON documents.
pub(crate) fn scan(path: &Path) -> Result<Files, ArchiveError> {
    let mut files = Files::new();
    let mut links = Vec::new();
    walk(path, |name, link, size, reader| {
        if files.len() + links.len() >= ENTRIES_MAX {
            return Err(io::Error::other("too many files"));
        }
        if let Some(target) = link {
            links.push((name.to_owned(), resolve(name, &target)));
            return Ok(());
        }
        let mut hash = Sha256::new();
        let mut document = (size <= DOCUMENT_BYTES_MAX).then(Vec::new);
        let mut head = [0u8; 2];
        let mut seen = 0usize;
        let mut buffer = vec![0u8; 64 << 10];
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            let chunk = &buffer[..count];
            for (slot, byte) in head.iter_mut().skip(seen).zip(chunk) {
                *slot = *byte;
            }
            if seen == 0 && !matches!(chunk.first(), Some(b'{' | b'[')) {
                document = None;
            }
            seen += count;
            hash.update(chunk);
            if let Some(document) = &mut document {
                document.extend_from_slice(chunk);
            }
        }
        let digest = format!("sha256:{}", hex(&hash.finalize()));
        files.insert(name.to_owned(), Blob { digest, size, gzip: head == [0x1f, 0x8b], document });
        Ok(())
    })?;
    for (name, target) in links {
        if let Some(blob) = files.get(&target).cloned() {
            files.insert(name, blob);
        }
    }
    Ok(files)
}

/// Reads an archive again and gives every chunk of the files `wanted` to `sink`. The first file with a
/// digest is streamed, later copies are not.
pub(crate) fn stream(
    path: &Path,
    mut wanted: BTreeMap<String, String>,
    mut sink: impl FnMut(&str, &[u8], bool) -> io::Result<()>,
) -> Result<(), ArchiveError> {
    walk(path, |name, link, _, reader| {
        if link.is_some() {
            return Ok(());
        }
        let Some(digest) = wanted.remove(name) else {
            return Ok(());
        };
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            let count = fill(reader, &mut buffer)?;
            let last = count < buffer.len();
            sink(&digest, &buffer[..count], last)?;
            if last {
                return Ok(());
            }
        }
    })
}

fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let count = reader.read(&mut buffer[filled..])?;
        if count == 0 {
            break;
        }
        filled += count;
    }
    Ok(filled)
}

/// Works out what to write where. Pure.
pub(crate) fn plan(files: &Files) -> Result<Import, ArchiveError> {
    let mut import = Import::default();
    if let Some(index) = files.get("index.json") {
        let index: Index = decode("index.json", index)?;
        for descriptor in index.manifests {
            add_manifest(files, &descriptor, &mut import.contents, 0)?;
            let annotation = |key: &str| descriptor.annotations.get(key).filter(|name| !name.is_empty());
            let name = annotation("io.containerd.image.name").or_else(|| {
                // docker's layouts hold only the tag here, and the whole name in manifest.json.
                annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']))
            });
            if let Some(name) = name {
                import.images.push((normalize(name), descriptor.clone()));
            }
        }
        if !import.images.is_empty() {
            return Ok(import);
        }
    }
    let Some(manifest) = files.get("manifest.json") else {
        return Err(ArchiveError::Missing { what: "index.json with image names and no manifest.json".to_owned() });
    };
    let images: Vec<DockerImage> = decode("manifest.json", manifest)?;
    for image in images {
        let descriptor = add_docker(files, &image, &mut import.contents)?;
        for name in image.repo_tags.unwrap_or_default() {
            import.images.push((normalize(&name), descriptor.clone()));
        }
    }
    Ok(import)
}

fn decode<T: for<'de> Deserialize<'de>>(what: &str, blob: &Blob) -> Result<T, ArchiveError> {
    let document = blob.document.as_deref().unwrap_or_default();
    serde_json::from_slice(document).map_err(|source| ArchiveError::Decode { what: what.to_owned(), source })
}

fn add(contents: &mut Vec<Content>, content: Content) {
    match contents.iter_mut().find(|known| known.digest == content.digest) {
        Some(known) => known.labels.extend(content.labels),
        None => contents.push(content),
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn add_manifest(
    files: &Files,
    descriptor: &Descriptor,
    contents: &mut Vec<Content>,
    depth: usize,
) -> Result<(), ArchiveError> {
    let path = blob_path(&descriptor.digest);
    let blob = files.get(&path).ok_or_else(|| ArchiveError::Missing { what: path.clone() })?;
    let mut labels = BTreeMap::new();
    if descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list") {
        // Two levels are what the format allows; a cycle would have to be a hash collision.
        if depth > 2 {
            return Err(ArchiveError::Missing { what: "manifest within three nested indexes".to_owned() });
        }
        let index: Index = decode(&path, blob)?;
        for (position, child) in index.manifests.iter().enumerate() {
            // Archives of one platform name the others in their index and lack their blobs.
            if files.contains_key(&blob_path(&child.digest)) {
                add_manifest(files, child, contents, depth + 1)?;
                labels.insert(format!("containerd.io/gc.ref.content.m.{position}"), child.digest.clone());
            }
        }
    } else {
        let manifest: Manifest = decode(&path, blob)?;
        let children = std::iter::once(("config".to_owned(), &manifest.config))
            .chain(manifest.layers.iter().enumerate().map(|(position, layer)| (format!("l.{position}"), layer)));
        for (label, child) in children {
            let path = blob_path(&child.digest);
            let blob = files.get(&path).ok_or(ArchiveError::Missing { what: path })?;
            let content =
                Content { digest: blob.digest.clone(), size: blob.size, labels: BTreeMap::new(), bytes: None };
            add(contents, content);
            labels.insert(format!("containerd.io/gc.ref.content.{label}"), child.digest.clone());
        }
    }
    add(contents, Content { digest: blob.digest.clone(), size: blob.size, labels, bytes: None });
    Ok(())
}

fn add_docker(files: &Files, image: &DockerImage, contents: &mut Vec<Content>) -> Result<Descriptor, ArchiveError> {
    let mut labels = BTreeMap::new();
    let mut part = |path: &str, label: String| -> Result<Blob, ArchiveError> {
        let blob = files.get(path).ok_or_else(|| ArchiveError::Missing { what: path.to_owned() })?.clone();
        add(contents, Content { digest: blob.digest.clone(), size: blob.size, labels: BTreeMap::new(), bytes: None });
        labels.insert(format!("containerd.io/gc.ref.content.{label}"), blob.digest.clone());
        Ok(blob)
    };
    let config = part(&image.config, "config".to_owned())?;
    let mut layers = Vec::with_capacity(image.layers.len());
    for (position, path) in image.layers.iter().enumerate() {
        let blob = part(path, format!("l.{position}"))?;
        let media_type = if blob.gzip { format!("{DOCKER_LAYER}.gzip") } else { DOCKER_LAYER.to_owned() };
        layers.push(json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size}));
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": DOCKER_CONFIG, "digest": config.digest, "size": config.size},
        "layers": layers,
    });
    let bytes = manifest.to_string().into_bytes();
    let digest = digest(&bytes);
    let size = bytes.len() as u64;
    add(contents, Content { digest: digest.clone(), size, labels, bytes: Some(bytes) });
    Ok(Descriptor {
        media_type: DOCKER_MANIFEST.to_owned(),
        digest,
        size: i64::try_from(size).unwrap_or(i64::MAX),
        annotations: BTreeMap::new(),
    })
}

/// `busybox` is `docker.io/library/busybox:latest`.
pub(crate) fn normalize(name: &str) -> String {
    let (first, rest) = name.split_once('/').unwrap_or(("", name));
    let has_domain = first.contains(['.', ':']) || first == "localhost";
    let mut full = match (has_domain, first) {
        (true, _) => name.to_owned(),
        (false, "") => format!("docker.io/library/{rest}"),
        (false, _) => format!("docker.io/{name}"),
    };
    let last = full.rsplit('/').next().unwrap_or_default();
    if !last.contains(':') && !full.contains('@') {
        full.push_str(":latest");
    }
    full
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a link in an archive points.
fn resolve(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

type Visit<'a> = dyn FnMut(&str, Option<String>, u64, &mut dyn Read) -> io::Result<()> + 'a;

/// Calls `visit` with every file and link of a tar file, gzipped or not.
fn walk(
    path: &Path,
    mut visit: impl FnMut(&str, Option<String>, u64, &mut dyn Read) -> io::Result<()>,
) -> Result<(), ArchiveError> {
    let read = |source| ArchiveError::Read { path: path.to_owned(), source };
    let mut file = BufReader::with_capacity(256 << 10, File::open(path).map_err(read)?);
    let head = io::BufRead::fill_buf(&mut file).map_err(read)?;
    let gzip = head.starts_with(&[0x1f, 0x8b]);
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(read(io::Error::other("zstd-compressed archives are not supported")));
    }
    let mut source: Box<dyn Read> =
        if gzip { Box::new(flate2::bufread::MultiGzDecoder::new(file)) } else { Box::new(file) };
    walk_tar(&mut *source, &mut visit).map_err(read)
}

fn walk_tar(source: &mut dyn Read, visit: &mut Visit<'_>) -> io::Result<()> {
    let mut header = [0u8; BLOCK];
    let mut long_name: Option<String> = None;
    let mut long_link: Option<String> = None;
    loop {
        if fill(source, &mut header)? < BLOCK || header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let size = number(&header[124..136])?;
        let kind = header[156];
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let mut body = source.take(size);
        match kind {
            // GNU and POSIX ways to say a long name.
            b'L' | b'K' | b'x' | b'g' => {
                if size > 1 << 20 {
                    return Err(io::Error::other("a name in the archive is longer than 1 MiB"));
                }
                let mut bytes = Vec::new();
                body.read_to_end(&mut bytes)?;
                match kind {
                    b'L' => long_name = Some(text(&bytes)),
                    b'K' => long_link = Some(text(&bytes)),
                    b'x' => {
                        for (key, value) in pax(&bytes) {
                            match key.as_str() {
                                "path" => long_name = Some(value),
                                "linkpath" => long_link = Some(value),
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                }
            }
            kind => {
                let name = long_name.take().unwrap_or_else(|| {
                    let name = text(&header[..100]);
                    let prefix = if header[257..262] == *b"ustar" { text(&header[345..500]) } else { String::new() };
                    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
                });
                let link = long_link.take().unwrap_or_else(|| text(&header[157..257]));
                let name = name.trim_start_matches("./").trim_start_matches('/').to_owned();
                match kind {
                    b'0' | 0 => visit(&name, None, size, &mut body)?,
                    // A hard link names its target from the archive's root, a symbolic link from itself.
                    b'1' => {
                        visit(&name, Some(format!("{}{link}", "../".repeat(name.matches('/').count()))), 0, &mut body)?
                    }
                    b'2' => visit(&name, Some(link), 0, &mut body)?,
                    _ => {}
                }
                io::copy(&mut body, &mut io::sink())?;
            }
        }
        io::copy(&mut source.take(padding), &mut io::sink())?;
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn number(field: &[u8]) -> io::Result<u64> {
    // GNU writes sizes of 8 GiB and more in binary, marked by the highest bit.
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        return Ok(rest.iter().fold(u64::from(first & 0x7f), |sum, byte| (sum << 8) | u64::from(*byte)));
    }
    let digits = text(field);
    let digits = digits.trim();
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|_| io::Error::other(format!("{digits:?} is no size")))
}

/// `<length> <key>=<value>\n`, repeated.
fn pax(bytes: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(bytes);
    text.lines()
        .filter_map(|line| line.split_once(' ')?.1.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Makes an image of files and an entry point, for this build's processor, as an archive that
/// [`containerd`](crate::containerd) imports.
pub fn image(name: &str, files: &[(&str, u32, &[u8])], entrypoint: &[&str]) -> Result<Vec<u8>, ArchiveError> {
    build(name, crate::pause::ARCHITECTURE, files, entrypoint)
}

/// An OCI layout with one image of one layer, as a tar file.
pub(crate) fn build(
    image: &str,
    architecture: &str,
    files: &[(&str, u32, &[u8])],
    entrypoint: &[&str],
) -> Result<Vec<u8>, ArchiveError> {
    let mut layer = Tar::default();
    for (name, mode, bytes) in files {
        layer.file(name, *mode, bytes);
    }
    let layer = layer.finish();
    // The layer is not compressed, so that its digest is its diff id too.
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": entrypoint},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string()
    .into_bytes();
    let descriptor = |media_type: &str, bytes: &[u8]| {
        json!({
            "mediaType": media_type, "digest": digest(bytes), "size": bytes.len(),
        })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, &config),
        "layers": [descriptor(OCI_LAYER, &layer)],
    })
    .to_string()
    .into_bytes();
    let mut entry = descriptor(OCI_MANIFEST, &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": image});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();

    let mut archive = Tar::default();
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    archive.file("index.json", 0o644, &index);
    for blob in [&layer, &config, &manifest] {
        archive.file(&blob_path(&digest(blob)), 0o644, blob);
    }
    Ok(archive.finish())
}

/// Writes tar files of plain files with names up to 100 bytes.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, value: &[u8]| header[at..at + value.len()].copy_from_slice(value);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{:011o}", bytes.len()).as_bytes());
        put(136, b"00000000000");
        // The checksum counts itself as blanks.
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(archive: &[u8]) -> Result<Import, ArchiveError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), archive).unwrap();
        plan(&scan(file.path())?)
    }

    #[test]
    fn what_we_build_can_be_read() {
        let archive = build("example.org/a:1", "amd64", &[("bin", 0o755, b"x")], &["/bin"]).unwrap();
        let import = planned(&archive).unwrap();
        let [(name, descriptor)] = &import.images[..] else { panic!("{:?}", import.images) };
        assert_eq!((name.as_str(), descriptor.media_type.as_str()), ("example.org/a:1", OCI_MANIFEST));
        let manifest = import.contents.last().unwrap();
        assert_eq!(manifest.digest, descriptor.digest, "children come before their parent");
        let labels: Vec<_> = manifest.labels.keys().map(String::as_str).collect();
        assert_eq!(labels, ["containerd.io/gc.ref.content.config", "containerd.io/gc.ref.content.l.0"]);
    }

    #[test]
    fn docker_archives_get_a_manifest() {
        let mut tar = Tar::default();
        tar.file("cfg.json", 0o644, b"{}");
        tar.file("a/layer.tar", 0o644, b"\x1f\x8bzip");
        tar.file("manifest.json", 0o644, br#"[{"Config":"cfg.json","RepoTags":["busybox"],"Layers":["a/layer.tar"]}]"#);
        let import = planned(&tar.finish()).unwrap();
        assert_eq!(import.images[0].0, "docker.io/library/busybox:latest");
        let manifest = String::from_utf8(import.contents[2].bytes.clone().unwrap()).unwrap();
        assert!(manifest.contains("rootfs.diff.tar.gzip"), "{manifest}");
    }

    #[test]
    fn broken_archives_are_refused() {
        let mut tar = Tar::default();
        tar.file("manifest.json", 0o644, br#"[{"Config":"gone","Layers":[]}]"#);
        assert_eq!(planned(&tar.finish()).unwrap_err().to_string(), "image archive has no gone");
        assert!(planned(b"").unwrap_err().to_string().contains("no index.json"));
        assert!(planned(&[0xff; 600]).is_err());
    }

    #[test]
    fn names_are_completed() {
        for (given, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("library/busybox:1", "docker.io/library/busybox:1"),
            ("localhost/x", "localhost/x:latest"),
            ("reg:5000/x", "reg:5000/x:latest"),
            ("rkube.local/pause:1", "rkube.local/pause:1"),
        ] {
            assert_eq!(normalize(given), full);
        }
    }

    #[test]
    fn links_stay_inside_the_archive() {
        assert_eq!(resolve("a/layer.tar", "../b/layer.tar"), "b/layer.tar");
        assert_eq!(resolve("layer.tar", "../../etc/passwd"), "etc/passwd");
    }
}
