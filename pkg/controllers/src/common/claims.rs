//! Which pods use which claims.
//!
//! Behaves as pkg/controller/volume/common/common.go, v1.36.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{Pod, Volume};
use rkube_apimachinery::key::ObjectKey;
use rkube_client::{Informer, Lister};

/// Pods by the claims they use, `namespace/name`.
const CLAIM_INDEX: &str = "persistentVolumeClaim";

pub(crate) fn index_by_claim(pods: &Informer<Pod>) {
    pods.add_index(CLAIM_INDEX, |pod| claim_keys(pod).map(|key| key.to_string()).collect());
}

/// The pods that use a claim.
pub(crate) fn pods_with(pods: &Lister<Pod>, claim: &ObjectKey) -> Vec<Arc<Pod>> {
    pods.by_index(CLAIM_INDEX, &claim.to_string())
}

pub(crate) fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// The claim behind a volume of a pod: the one it names, or the one made for it.
pub(crate) fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume.ephemeral.as_ref()?;
    Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name))
}

/// The claims a pod uses.
pub(crate) fn claim_keys(pod: &Pod) -> impl Iterator<Item = ObjectKey> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    volumes(pod).filter_map(move |volume| Some(ObjectKey::new(namespace, claim_name(pod, volume)?)))
}
