//! The objects of its namespace that a pod's spec names.
//!
//! Behaves as `VisitPodSecretNames` of `pkg/api/v1/pod/util.go`, v1.36.

use crate::k8s::core::v1::{EnvFromSource, EnvVar, LocalObjectReference, PodSpec, Volume};

/// Environments of all containers, init and ephemeral ones included.
fn environments(spec: &PodSpec) -> impl Iterator<Item = (&[EnvVar], &[EnvFromSource])> {
    let regular = spec.init_containers.iter().flatten().chain(&spec.containers);
    let regular = regular.map(|c| (c.env.as_deref().unwrap_or_default(), c.env_from.as_deref().unwrap_or_default()));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    regular.chain(ephemeral.map(|c| (c.env.as_deref().unwrap_or_default(), c.env_from.as_deref().unwrap_or_default())))
}

/// Every Secret the pod uses, in no order and maybe more than once.
pub fn secrets(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let in_environment = environments(spec).flat_map(|(env, env_from)| {
        let keys =
            env.iter().filter_map(|variable| Some(&*variable.value_from.as_ref()?.secret_key_ref.as_ref()?.name));
        keys.chain(env_from.iter().filter_map(|source| Some(&*source.secret_ref.as_ref()?.name)))
    });
    let for_images = spec.image_pull_secrets.iter().flatten().map(|secret| &*secret.name);
    in_environment.chain(for_images).chain(spec.volumes.iter().flatten().flat_map(secrets_of_volume))
}

fn secrets_of_volume(volume: &Volume) -> impl Iterator<Item = &str> {
    fn of(reference: Option<&LocalObjectReference>) -> Option<&str> {
        Some(&reference?.name)
    }
    let single = [
        volume.secret.as_ref().and_then(|source| source.secret_name.as_deref()),
        volume.azure_file.as_ref().map(|source| &*source.secret_name),
        volume.cephfs.as_ref().and_then(|source| of(source.secret_ref.as_ref())),
        volume.cinder.as_ref().and_then(|source| of(source.secret_ref.as_ref())),
        volume.flex_volume.as_ref().and_then(|source| of(source.secret_ref.as_ref())),
        volume.rbd.as_ref().and_then(|source| of(source.secret_ref.as_ref())),
        volume.scale_io.as_ref().map(|source| &*source.secret_ref.name),
        volume.iscsi.as_ref().and_then(|source| of(source.secret_ref.as_ref())),
        volume.storageos.as_ref().and_then(|source| of(source.secret_ref.as_ref())),
        volume.csi.as_ref().and_then(|source| of(source.node_publish_secret_ref.as_ref())),
    ];
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    single.into_iter().flatten().chain(projected.filter_map(|source| Some(&*source.secret.as_ref()?.name)))
}
