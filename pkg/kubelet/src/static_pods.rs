//! Static pods: manifests in a folder, and their mirrors at the API server.
//!
//! Behaves as pkg/kubelet/config/{file,common}.go and pkg/kubelet/pod/mirror_client.go, v1.36.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Container, Node, Pod, Toleration};
use rkube_api::meta::pkg::apis::meta::v1::OwnerReference;
use rkube_client::Client;
use rkube_client::api::DeleteOptions;
use rkube_client::transport::ClientError;
use sha2::{Digest, Sha256};

use crate::pod::{HASH_ANNOTATION, MIRROR_ANNOTATION, PodExt, SOURCE_ANNOTATION};

/// The API's own limit for an object.
const MANIFEST_BYTES_MAX: u64 = 3 << 20;
const MANIFESTS_MAX: usize = 500;

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("reading")]
    Read(#[source] std::io::Error),
    #[error("manifest is larger than 3 MiB")]
    TooLarge,
    #[error("decoding: {0}")]
    Decode(String),
    #[error("manifest is a {0:?}, not a Pod")]
    Kind(String),
    #[error("pod has no {0}")]
    Missing(&'static str),
    #[error("static pods may not reference {0}")]
    Reference(&'static str),
}

/// Reads every manifest of a folder. One that is broken is reported and skipped.
pub fn read_folder(folder: &Path, node_name: &str) -> (Vec<Pod>, Vec<(PathBuf, ManifestError)>) {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| {
        let hidden = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
        !hidden && path.is_file()
    });
    paths.sort();
    paths.truncate(MANIFESTS_MAX);
    let mut pods: BTreeMap<_, Pod> = BTreeMap::new();
    let mut failed = Vec::new();
    for path in paths {
        match read_manifest(&path, node_name) {
            Ok(pod) => drop(pods.insert(pod.key(), pod)),
            Err(error) => failed.push((path, error)),
        }
    }
    (pods.into_values().collect(), failed)
}

fn read_manifest(path: &Path, node_name: &str) -> Result<Pod, ManifestError> {
    let metadata = std::fs::metadata(path).map_err(ManifestError::Read)?;
    if metadata.len() > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLarge);
    }
    let text = std::fs::read_to_string(path).map_err(ManifestError::Read)?;
    parse(&text, &path.to_string_lossy(), node_name)
}

/// A static pod out of YAML or JSON. Name, UID and node are derived, so that the same file on the same
/// node is always the same pod.
pub fn parse(text: &str, source: &str, node_name: &str) -> Result<Pod, ManifestError> {
    let value: serde_json::Value =
        serde_saphyr::from_str(text).map_err(|error| ManifestError::Decode(error.to_string()))?;
    let kind = value.get("kind").and_then(serde_json::Value::as_str).unwrap_or_default();
    if kind != Pod::KIND {
        return Err(ManifestError::Kind(kind.to_owned()));
    }
    let mut pod = Pod::from_value(value).map_err(|error| ManifestError::Decode(error.source.to_string()))?;
    let name = pod.metadata.name.take().filter(|name| !name.is_empty()).ok_or(ManifestError::Missing("name"))?;
    pod.metadata.name = Some(format!("{name}-{}", node_name.to_lowercase()));
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    let hash = hex(&Sha256::digest(format!("host:{node_name}\nfile:{source}\n{text}")));
    let hash = hash.get(..32).unwrap_or(&hash).to_owned();
    let given = pod.metadata.uid.take().filter(|uid| !uid.is_empty());
    pod.metadata.uid = Some(given.unwrap_or_else(|| hash.clone()));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(SOURCE_ANNOTATION.to_owned(), "file".to_owned());
    annotations.insert(HASH_ANNOTATION.to_owned(), hash);
    let spec = pod.spec.as_mut().ok_or(ManifestError::Missing("spec"))?;
    if spec.containers.is_empty() {
        return Err(ManifestError::Missing("containers"));
    }
    refuse_references(spec)?;
    spec.node_name = Some(node_name.to_owned());
    // It is on this node whatever happens to the node.
    let everything = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&everything) {
        tolerations.push(everything);
    }
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        set_container_defaults(container);
    }
    pod.status = Some(rkube_api::k8s::core::v1::PodStatus { phase: Some("Pending".to_owned()), ..Default::default() });
    Ok(pod)
}

fn set_container_defaults(container: &mut Container) {
    container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".to_owned());
    container.termination_message_policy.get_or_insert_with(|| "File".to_owned());
}

fn refuse_references(spec: &rkube_api::k8s::core::v1::PodSpec) -> Result<(), ManifestError> {
    if spec.service_account_name.as_ref().is_some_and(|name| !name.is_empty()) {
        return Err(ManifestError::Reference("a service account"));
    }
    for volume in spec.volumes.iter().flatten() {
        if volume.secret.is_some() || volume.config_map.is_some() || volume.projected.is_some() {
            return Err(ManifestError::Reference("API objects in volumes"));
        }
        if volume.persistent_volume_claim.is_some() {
            return Err(ManifestError::Reference("persistent volume claims"));
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Shows a static pod at the API server. It is read-only there: what is changed in the mirror changes
/// nothing here.
pub async fn create_mirror(client: &Client, pod: &Pod) -> Result<(), ClientError> {
    let mut mirror = pod.clone();
    let hash = pod.annotation(HASH_ANNOTATION).unwrap_or_default().to_owned();
    mirror.metadata.annotations.get_or_insert_default().insert(MIRROR_ANNOTATION.to_owned(), hash);
    mirror.metadata.uid = None;
    mirror.status = None;
    let node_name = pod.pod_spec().node_name.clone().unwrap_or_default();
    let node = client.all::<Node>().get(&node_name).await?;
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node_name,
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    match client.namespaced::<Pod>(pod.namespace()).create(&mirror).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

pub async fn delete_mirror(client: &Client, mirror: &Pod) -> Result<(), ClientError> {
    let options = DeleteOptions::uid(mirror.uid().as_str()).grace_period_seconds(0);
    match client.namespaced::<Pod>(mirror.namespace()).delete(mirror.name(), &options).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: b}]}\n";

    #[test]
    fn the_same_file_is_the_same_pod() {
        let pod = parse(POD, "/x.yaml", "Node1").unwrap();
        assert_eq!(pod.key().to_string(), "default/web-node1");
        assert_eq!(pod.uid(), parse(POD, "/x.yaml", "Node1").unwrap().uid());
        assert_ne!(pod.uid(), parse(POD, "/x.yaml", "node2").unwrap().uid());
        assert_ne!(pod.uid(), parse(&POD.replace("image: b", "image: c"), "/x.yaml", "Node1").unwrap().uid());
        assert!(pod.is_static() && pod.is_critical());
    }

    #[test]
    fn broken_manifests_are_refused_with_a_reason() {
        for (text, expected) in [
            ("kind: ConfigMap", "manifest is a \"ConfigMap\", not a Pod"),
            ("kind: Pod\nmetadata: {name: a}\nspec: {containers: []}", "pod has no containers"),
            ("kind: Pod\nspec: {containers: [{name: a}]}", "pod has no name"),
            (
                "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}], volumes: [{name: s, secret: {secretName: x}}]}",
                "static pods may not reference API objects in volumes",
            ),
        ] {
            assert_eq!(parse(text, "", "n").unwrap_err().to_string(), expected);
        }
        assert!(parse("{", "", "n").unwrap_err().to_string().starts_with("decoding"));
    }
}
