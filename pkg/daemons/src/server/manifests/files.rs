//! The files of the manifests folder, found, read and split into objects.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rkube_codec::yaml::{self, YamlError};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tracing::warn;

use super::{ByName, addon_name};

/// A manifest larger than this is not one.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How deep folders are looked into; a link that leads upwards would have no end.
const DEPTH_MAX: usize = 8;

#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} has more than {} MiB", FILE_BYTES_MAX >> 20)]
    TooLarge { path: PathBuf },
    #[error("document {document} of {path}")]
    Parse {
        path: PathBuf,
        document: usize,
        #[source]
        source: YamlError,
    },
    #[error("document {document} of {path} is not a Kubernetes object: it has no {missing}")]
    NotAnObject { path: PathBuf, document: usize, missing: &'static str },
}

#[derive(Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    /// A file of the same name with `.skip` is beside it.
    pub(super) is_skipped: bool,
}

impl File {
    /// The content and what tells it from other contents.
    pub(super) fn read(&self) -> Result<(Vec<u8>, String), FileError> {
        let failed = |source| FileError::Read { path: self.path.clone(), source };
        if std::fs::metadata(&self.path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(FileError::TooLarge { path: self.path.clone() });
        }
        let bytes = std::fs::read(&self.path).map_err(failed)?;
        let digest = Sha256::digest(&bytes);
        let checksum = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((bytes, checksum))
    }
}

/// The folder, made if it is missing, and the folders below it.
pub(super) fn folders(root: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(root)?;
    let mut all = vec![root.to_owned()];
    let mut level = all.clone();
    for _ in 0..DEPTH_MAX {
        level = level.iter().flat_map(|folder| entries(folder)).filter(|path| path.is_dir()).collect();
        all.extend(level.iter().cloned());
    }
    Ok(all)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The manifests, by the name of their addon. Of two with one name the first counts.
pub(super) fn find(root: &Path) -> ByName<File> {
    let mut found: ByName<File> = BTreeMap::new();
    for path in folders(root).into_iter().flatten().flat_map(|folder| entries(&folder)) {
        let Some(name) = addon_name(&path).filter(|_| path.is_file()) else { continue };
        let mut skip = path.clone().into_os_string();
        skip.push(".skip");
        if let Some(other) = found.get(&name) {
            warn!(addon = name, path = %path.display(), other = %other.path.display(), "Two manifests have one name");
            continue;
        }
        found.insert(name, File { is_skipped: Path::new(&skip).exists(), path });
    }
    found
}

/// The objects of a manifest, in the order they are applied: first the namespaces and definitions others need.
pub(super) fn objects(bytes: &[u8], path: &Path) -> Result<Vec<Value>, FileError> {
    let mut all = Vec::new();
    for (index, document) in documents(bytes).into_iter().enumerate() {
        let number = index + 1;
        let parsed = yaml::parse(document.as_bytes()).map_err(|source| FileError::Parse {
            path: path.to_owned(),
            document: number,
            source,
        })?;
        match parsed.value {
            Value::Null => {}
            Value::Object(mut list)
                if list.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List")) =>
            {
                if let Some(Value::Array(items)) = list.remove("items") {
                    all.extend(items.into_iter().map(|item| (number, item)));
                }
            }
            value => all.push((number, value)),
        }
    }
    for (document, object) in &all {
        let has = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        let missing = [("/apiVersion", "apiVersion"), ("/kind", "kind"), ("/metadata/name", "metadata.name")];
        if let Some((_, missing)) = missing.into_iter().find(|(pointer, _)| !has(pointer)) {
            return Err(FileError::NotAnObject { path: path.to_owned(), document: *document, missing });
        }
    }
    let mut objects: Vec<Value> = all.into_iter().map(|(_, object)| object).collect();
    objects.sort_by_key(|object| match object["kind"].as_str() {
        Some("Namespace" | "CustomResourceDefinition") => 0,
        _ => 1,
    });
    Ok(objects)
}

/// Splits at lines that begin with `---`, as kubectl does.
fn documents(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut all = vec![String::new()];
    for line in text.lines() {
        if line.starts_with("---") {
            all.push(String::new());
        } else if let Some(last) = all.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let is_empty =
        |text: &String| text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    all.retain(|text| !is_empty(text));
    all
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expected: Expect) {
        let shown = match objects(text.as_bytes(), Path::new("a.yaml")) {
            Ok(objects) => {
                objects.iter().map(|object| format!("{} {}\n", object["kind"], object["metadata"]["name"])).collect()
            }
            Err(error) => rkube_apimachinery::chain::chain(&error).to_string(),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn manifests_are_split_and_ordered() {
        check(
            "# a comment\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---  # empty\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n--- \napiVersion: v1\nkind: List\nitems:\n\
             - {apiVersion: v1, kind: Secret, metadata: {name: c}}\n",
            expect![[r#"
                "Namespace" "b"
                "Pod" "a"
                "Secret" "c"
            "#]],
        );
        check(
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "json"}}"#,
            expect![[r#"
            "Pod" "json"
        "#]],
        );
        check("", expect![[""]]);
    }

    #[test]
    fn what_is_no_manifest_is_named() {
        check(
            "kind: Pod\nmetadata: {name: a}\n",
            expect!["document 1 of a.yaml is not a Kubernetes object: it has no apiVersion"],
        );
        check("just text\n", expect!["document 1 of a.yaml is not a Kubernetes object: it has no apiVersion"]);
    }

    #[test]
    fn names_come_from_files() {
        let names = ["web.yaml", "a.b.yml", "c.json", "web.yaml.skip", ".hidden.yaml", "note.txt", ".yaml"];
        let found: Vec<_> = names.iter().filter_map(|name| addon_name(Path::new(name))).collect();
        assert_eq!(found, ["web", "a.b", "c"]);
    }
}
