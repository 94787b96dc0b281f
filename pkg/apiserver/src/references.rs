//! What pods and volumes refer to: the objects a node may see because it runs the pod.
//!
//! Behaves as `pkg/api/v1/pod/util.go`, `pkg/api/v1/persistentvolume/util.go`, and `HasAPIObjectReference` of
//! `pkg/api/pod/util.go`, v1.36.

use rkube_api::k8s::core::v1::{
    EnvFromSource, EnvVar, PersistentVolume, Pod, PodSpec, SecretReference, Volume, VolumeProjection,
};

/// On a pod that shows what a node runs by itself.
pub(crate) const MIRROR_POD: &str = "kubernetes.io/config.mirror";

pub(crate) fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR_POD))
}

/// The node the pod is bound to; empty if none.
pub(crate) fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Environments of all containers: of init, regular and ephemeral ones.
fn environments(spec: &PodSpec) -> impl Iterator<Item = (&[EnvVar], &[EnvFromSource])> {
    let regular = spec.init_containers.iter().flatten().chain(&spec.containers);
    let regular = regular.map(|c| (c.env.as_deref().unwrap_or_default(), c.env_from.as_deref().unwrap_or_default()));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    regular.chain(ephemeral.map(|c| (c.env.as_deref().unwrap_or_default(), c.env_from.as_deref().unwrap_or_default())))
}

fn volumes(spec: &PodSpec) -> impl Iterator<Item = &Volume> {
    spec.volumes.iter().flatten()
}

fn projections(volume: &Volume) -> impl Iterator<Item = &VolumeProjection> {
    volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten())
}

/// Names of secrets in the pod's namespace, those of its volumes' claims not included.
pub(crate) fn secrets(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let for_images = spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.as_str());
    let in_environment = environments(spec).flat_map(|(env, env_from)| {
        let whole = env_from.iter().filter_map(|source| source.secret_ref.as_ref()).map(|secret| secret.name.as_str());
        let by_key = env.iter().filter_map(|variable| variable.value_from.as_ref()?.secret_key_ref.as_ref());
        whole.chain(by_key.map(|secret| secret.name.as_str()))
    });
    let in_volumes = volumes(spec).flat_map(|volume| {
        let references = [
            volume.cephfs.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.cinder.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.flex_volume.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.rbd.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.scale_io.as_ref().map(|source| &source.secret_ref),
            volume.iscsi.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.storageos.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.csi.as_ref().and_then(|source| source.node_publish_secret_ref.as_ref()),
        ];
        let named = [
            volume.azure_file.as_ref().map(|source| source.secret_name.as_str()),
            volume.secret.as_ref().and_then(|source| source.secret_name.as_deref()),
        ];
        let projected = projections(volume).filter_map(|source| source.secret.as_ref());
        let references = references.into_iter().flatten().map(|secret| secret.name.as_str());
        references.chain(named.into_iter().flatten()).chain(projected.map(|secret| secret.name.as_str()))
    });
    for_images.chain(in_environment).chain(in_volumes).filter(|name| !name.is_empty())
}

/// Names of config maps in the pod's namespace.
pub(crate) fn config_maps(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let in_environment = environments(spec).flat_map(|(env, env_from)| {
        let whole = env_from.iter().filter_map(|source| source.config_map_ref.as_ref()).map(|map| map.name.as_str());
        let by_key = env.iter().filter_map(|variable| variable.value_from.as_ref()?.config_map_key_ref.as_ref());
        whole.chain(by_key.map(|map| map.name.as_str()))
    });
    let in_volumes = volumes(spec).flat_map(|volume| {
        let projected = projections(volume).filter_map(|source| source.config_map.as_ref());
        let direct = volume.config_map.iter().map(|map| map.name.as_str());
        direct.chain(projected.map(|map| map.name.as_str()))
    });
    in_environment.chain(in_volumes).filter(|name| !name.is_empty())
}

/// The name of the claim a volume is, if it is one. That of an ephemeral volume is named after its pod.
pub(crate) fn claim(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name))
}

/// Names of volume claims in the pod's namespace.
pub(crate) fn claims(pod: &Pod) -> impl Iterator<Item = String> {
    pod.spec.iter().flat_map(volumes).filter_map(move |volume| claim(pod, volume)).filter(|name| !name.is_empty())
}

/// Names of resource claims in the pod's namespace; of those made from templates, once they are made.
pub(crate) fn resource_claims(pod: &Pod) -> impl Iterator<Item = &str> {
    let made = pod.status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten());
    let named = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()).filter_map(move |claim| {
        let from_template = || {
            made.clone()
                .find(|status| status.name == claim.name)
                .and_then(|status| status.resource_claim_name.as_deref())
        };
        claim.resource_claim_name.as_deref().or_else(from_template)
    });
    let extended = pod.status.iter().filter_map(|status| status.extended_resource_claim_status.as_ref());
    named.chain(extended.map(|status| status.resource_claim_name.as_str())).filter(|name| !name.is_empty())
}

/// Namespace and name of the secrets a volume is mounted with. Secrets only controllers use are not among them.
pub(crate) fn volume_secrets(volume: &PersistentVolume) -> Vec<(String, String)> {
    let Some(spec) = &volume.spec else { return Vec::new() };
    let of_claim = spec.claim_ref.as_ref().and_then(|claim| claim.namespace.clone()).unwrap_or_default();
    let or_claim = |namespace: Option<&String>| {
        namespace.filter(|namespace| !namespace.is_empty()).cloned().unwrap_or_else(|| of_claim.clone())
    };
    // Old volumes name no namespace; it is the claim's.
    let old = |secret: Option<&SecretReference>| {
        secret.map(|secret| (or_claim(secret.namespace.as_ref()), secret.name.clone().unwrap_or_default()))
    };
    let exact = |secret: Option<&SecretReference>| {
        secret.map(|secret| (secret.namespace.clone().unwrap_or_default(), secret.name.clone().unwrap_or_default()))
    };
    let csi = spec.csi.as_ref();
    let all = [
        spec.azure_file.as_ref().map(|source| (or_claim(source.secret_namespace.as_ref()), source.secret_name.clone())),
        old(spec.cephfs.as_ref().and_then(|source| source.secret_ref.as_ref())),
        exact(spec.cinder.as_ref().and_then(|source| source.secret_ref.as_ref())),
        old(spec.flex_volume.as_ref().and_then(|source| source.secret_ref.as_ref())),
        old(spec.rbd.as_ref().and_then(|source| source.secret_ref.as_ref())),
        old(spec.scale_io.as_ref().map(|source| &source.secret_ref)),
        old(spec.iscsi.as_ref().and_then(|source| source.secret_ref.as_ref())),
        spec.storageos
            .as_ref()
            .and_then(|source| source.secret_ref.as_ref())
            .map(|secret| (secret.namespace.clone().unwrap_or_default(), secret.name.clone().unwrap_or_default())),
        exact(csi.and_then(|source| source.node_publish_secret_ref.as_ref())),
        exact(csi.and_then(|source| source.node_stage_secret_ref.as_ref())),
        exact(csi.and_then(|source| source.node_expand_secret_ref.as_ref())),
    ];
    all.into_iter().flatten().filter(|(_, name)| !name.is_empty()).collect()
}

/// The first kind of API object the pod refers to, as messages call it; an error for a volume of an unknown
/// type, which might be one.
pub(crate) fn api_object(pod: &Pod) -> Result<Option<&'static str>, String> {
    let Some(spec) = &pod.spec else { return Ok(None) };
    if spec.service_account_name.as_ref().is_some_and(|name| !name.is_empty()) {
        return Ok(Some("serviceaccounts"));
    }
    if secrets(spec).next().is_some() {
        return Ok(Some("secrets"));
    }
    if config_maps(spec).next().is_some() {
        return Ok(Some("configmaps"));
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Ok(Some("resourceclaims"));
    }
    for volume in volumes(spec) {
        if let Some(found) = api_object_of(volume)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn api_object_of(volume: &Volume) -> Result<Option<&'static str>, String> {
    let referring = [
        (volume.config_map.is_some(), "configmaps (via configmap volumes)"),
        (volume.secret.is_some(), "secrets (via secret volumes)"),
        (volume.csi.is_some(), "csidrivers (via CSI volumes)"),
        (volume.glusterfs.is_some(), "endpoints (via glusterFS volumes)"),
        (volume.persistent_volume_claim.is_some(), "persistentvolumeclaims"),
        (volume.ephemeral.is_some(), "persistentvolumeclaims (via ephemeral volumes)"),
        (volume.azure_file.is_some(), "secrets (via azureFile volumes)"),
    ];
    if let Some((_, found)) = referring.into_iter().find(|(is, _)| *is) {
        return Ok(Some(found));
    }
    if volume.projected.is_some() {
        for source in projections(volume) {
            let referring = [
                (source.config_map.is_some(), "configmaps (via projected volumes)"),
                (source.secret.is_some(), "secrets (via projected volumes)"),
                (source.service_account_token.is_some(), "serviceaccounts (via projected volumes)"),
                (source.cluster_trust_bundle.is_some(), "clustertrustbundles"),
                (source.pod_certificate.is_some(), "podcertificates"),
            ];
            if let Some((_, found)) = referring.into_iter().find(|(is, _)| *is) {
                return Ok(Some(found));
            }
            if source.downward_api.is_none() {
                return Err(format!("unknown source for projected volume {:?}", volume.name));
            }
        }
        return Ok(None);
    }
    let is_local = volume.downward_api.is_some()
        || volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.image.is_some()
        || volume.git_repo.is_some()
        || volume.nfs.is_some()
        || volume.iscsi.is_some()
        || volume.fc.is_some()
        || volume.rbd.is_some()
        || volume.cephfs.is_some()
        || volume.cinder.is_some()
        || volume.flex_volume.is_some()
        || volume.flocker.is_some()
        || volume.quobyte.is_some()
        || volume.scale_io.is_some()
        || volume.storageos.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.azure_disk.is_some()
        || volume.gce_persistent_disk.is_some()
        || volume.photon_persistent_disk.is_some()
        || volume.portworx_volume.is_some()
        || volume.vsphere_volume.is_some();
    if is_local { Ok(None) } else { Err(format!("unknown volume type for volume  {:?}", volume.name)) }
}
