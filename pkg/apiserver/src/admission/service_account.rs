//! Every pod runs as a service account that exists, with its token mounted and its pull secrets.
//!
//! Behaves as `plugin/pkg/admission/serviceaccount/admission.go`, v1.36.

// Differs from upstream: a missing `default` account is looked up once, not for a second. The controller
// that makes it runs in the same process, milliseconds after the namespace.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::{
    ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile, EnvFromSource, EnvVar, KeyToPath,
    LocalObjectReference, ObjectFieldSelector, Pod, PodSpec, ProjectedVolumeSource, ServiceAccount,
    ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use rkube_apimachinery::random::{SharedRandom, generate_name};
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Objects, Plugin, forbidden, object};

const DEFAULT_ACCOUNT: &str = "default";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR_POD: &str = "kubernetes.io/config.mirror";
const ENFORCE_MOUNTABLE_SECRETS: &str = "kubernetes.io/enforce-mountable-secrets";
/// An hour and a margin, by which kubelets know a token they may renew early.
const TOKEN_EXPIRATION_SECONDS: i64 = 3607;
const VOLUME_MODE: i32 = 0o644;

pub(super) struct ServiceAccountAdmission {
    objects: Objects,
    random: SharedRandom,
}

impl ServiceAccountAdmission {
    pub(super) fn new(objects: Objects, random: SharedRandom) -> Self {
        Self { objects, random }
    }

    async fn mutate(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        if attributes.operation != Operation::Create {
            return Ok(());
        }
        let pod = object!(attributes, Pod);
        if is_mirror(pod) {
            return self.check(attributes).await;
        }
        let spec = pod.spec.get_or_insert_default();
        let name = spec.service_account_name.clone().filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| DEFAULT_ACCOUNT.to_owned());
        let account = self.account(attributes, &name).await?;
        let spec = object!(attributes, Pod).spec.get_or_insert_default();
        // Both names: the old one is what old clients read.
        spec.service_account_name = Some(name.clone());
        spec.service_account = Some(name);
        let automount = spec.automount_service_account_token.or(account.automount_service_account_token);
        if automount.unwrap_or(true) {
            self.mount_token(spec);
        }
        if spec.image_pull_secrets.as_ref().is_none_or(Vec::is_empty)
            && let Some(secrets) = account.image_pull_secrets.as_ref().filter(|secrets| !secrets.is_empty())
        {
            spec.image_pull_secrets =
                Some(secrets.iter().map(|secret| LocalObjectReference { name: secret.name.clone() }).collect());
        }
        self.check(attributes).await
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let is_ephemeral = attributes.operation == Operation::Update && attributes.subresource == "ephemeralcontainers";
        if attributes.operation != Operation::Create && !is_ephemeral {
            return Ok(());
        }
        let pod = object!(attributes, Pod);
        if !is_ephemeral && is_mirror(pod) {
            return check_mirror(pod).map_err(|text| forbidden(attributes, text));
        }
        let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            let pod_name = pod.metadata.name.clone().unwrap_or_default();
            let text = format!("no service account specified for pod {}/{pod_name}", attributes.namespace);
            return Err(forbidden(attributes, text));
        };
        let account = self.account(attributes, &name).await?;
        if !enforces_mountable_secrets(&account) {
            return Ok(());
        }
        let pod = object!(attributes, Pod);
        let checked = pod.spec.as_ref().map_or(Ok(()), |spec| check_secrets(&account, spec, is_ephemeral));
        checked.map_err(|text| forbidden(attributes, text))
    }

    async fn account(&self, attributes: &mut Attributes, name: &str) -> Result<Arc<ServiceAccount>, ApiStatus> {
        let namespace = attributes.namespace.clone();
        let error = match self.objects.cached_or_live::<ServiceAccount>(&namespace, name).await {
            Ok(Some(account)) => return Ok(account),
            Ok(None) => format!("serviceaccount {name:?} not found"),
            Err(status) => status.message().to_owned(),
        };
        Err(forbidden(attributes, format!("error looking up service account {namespace}/{name}: {error}")))
    }

    /// Adds the token volume and mounts it in every container that has nothing at its place.
    fn mount_token(&self, spec: &mut PodSpec) {
        let volumes = spec.volumes.get_or_insert_default();
        let existing = volumes.iter().find(|volume| volume.name.starts_with(VOLUME_PREFIX));
        let has_volume = existing.is_some();
        let name = match existing {
            Some(volume) => volume.name.clone(),
            None => generate_name(self.random.as_ref(), VOLUME_PREFIX),
        };
        let mut is_needed = false;
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            let mounts = container.volume_mounts.get_or_insert_default();
            if !mounts.iter().any(|mount| mount.mount_path == MOUNT_PATH) {
                mounts.push(VolumeMount {
                    name: name.clone(),
                    read_only: Some(true),
                    mount_path: MOUNT_PATH.to_owned(),
                    ..VolumeMount::default()
                });
                is_needed = true;
            }
        }
        if is_needed && !has_volume {
            let projected = Some(token_volume());
            spec.volumes.get_or_insert_default().push(Volume { name, projected, ..Volume::default() });
        }
    }
}

/// The token, the cluster's CA and the namespace, as client libraries look for them.
fn token_volume() -> ProjectedVolumeSource {
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            path: "token".to_owned(),
            expiration_seconds: Some(TOKEN_EXPIRATION_SECONDS),
            audience: None,
        }),
        ..VolumeProjection::default()
    };
    let item = KeyToPath { key: "ca.crt".to_owned(), path: "ca.crt".to_owned(), mode: None };
    let authority = VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: "kube-root-ca.crt".to_owned(),
            items: Some(vec![item]),
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    let field = ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: "metadata.namespace".to_owned() };
    let file = DownwardAPIVolumeFile {
        path: "namespace".to_owned(),
        field_ref: Some(field),
        ..DownwardAPIVolumeFile::default()
    };
    let namespace = VolumeProjection {
        downward_api: Some(DownwardAPIProjection { items: Some(vec![file]) }),
        ..VolumeProjection::default()
    };
    ProjectedVolumeSource { default_mode: Some(VOLUME_MODE), sources: Some(vec![token, authority, namespace]) }
}

fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR_POD))
}

fn enforces_mountable_secrets(account: &ServiceAccount) -> bool {
    let value = account.metadata.annotations.as_ref().and_then(|all| all.get(ENFORCE_MOUNTABLE_SECRETS));
    // The spellings of Go's ParseBool.
    value.is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// A mirror pod shows what a node runs by itself; it must not hand API objects to the node.
fn check_mirror(pod: &Pod) -> Result<(), &'static str> {
    let spec = pod.spec.as_ref().cloned().unwrap_or_default();
    if spec.service_account_name.as_ref().is_some_and(|name| !name.is_empty()) {
        return Err("a mirror pod may not reference service accounts");
    }
    let in_volumes = spec.volumes.iter().flatten().any(|volume| {
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        volume.secret.is_some() || projected.clone().any(|source| source.secret.is_some())
    });
    let in_containers = containers(&spec).any(|(_, container)| secrets_of(container).next().is_some());
    if in_volumes || in_containers || spec.image_pull_secrets.is_some_and(|secrets| !secrets.is_empty()) {
        return Err("a mirror pod may not reference secrets");
    }
    let has_token = |volume: &Volume| {
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        projected.into_iter().any(|source| source.service_account_token.is_some())
    };
    if spec.volumes.iter().flatten().any(has_token) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

/// Init containers and containers, with what messages call them.
fn containers(spec: &PodSpec) -> impl Iterator<Item = (&'static str, &Container)> {
    let init = spec.init_containers.iter().flatten().map(|container| ("init container", container));
    init.chain(spec.containers.iter().map(|container| ("container", container)))
}

/// `envVar x` or `envFrom`, with the secret it reads.
fn secrets_of(container: &Container) -> impl Iterator<Item = (String, &str)> {
    secrets_in(container.env.as_deref().unwrap_or_default(), container.env_from.as_deref().unwrap_or_default())
}

fn secrets_in<'a>(env: &'a [EnvVar], env_from: &'a [EnvFromSource]) -> impl Iterator<Item = (String, &'a str)> {
    let by_key = env.iter().filter_map(|variable| {
        let secret = variable.value_from.as_ref()?.secret_key_ref.as_ref()?;
        Some((format!("envVar {}", variable.name), secret.name.as_str()))
    });
    let whole =
        env_from.iter().filter_map(|source| Some(("envFrom".to_owned(), source.secret_ref.as_ref()?.name.as_str())));
    by_key.chain(whole)
}

/// Only secrets the account lists, for accounts that ask for it.
fn check_secrets(account: &ServiceAccount, spec: &PodSpec, only_ephemeral: bool) -> Result<(), String> {
    let name = account.metadata.name.as_deref().unwrap_or_default();
    let secrets = account.secrets.iter().flatten();
    let mountable: BTreeSet<&str> = secrets.filter_map(|secret| secret.name.as_deref()).collect();
    let denied = |kind: &str, container: &str, by: &str, secret: &str| {
        format!(
            "{kind} {container} with {by} referencing secret.secretName=\"{secret}\" is not allowed because service account \
             {name} does not reference that secret"
        )
    };
    if only_ephemeral {
        for container in spec.ephemeral_containers.iter().flatten() {
            let env = container.env.as_deref().unwrap_or_default();
            let env_from = container.env_from.as_deref().unwrap_or_default();
            if let Some((by, secret)) = secrets_in(env, env_from).find(|(_, secret)| !mountable.contains(secret)) {
                return Err(denied("ephemeral container", &container.name, &by, secret));
            }
        }
        return Ok(());
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(secret) = volume.secret.as_ref().and_then(|source| source.secret_name.as_deref())
            && !mountable.contains(secret)
        {
            return Err(format!(
                "volume with secret.secretName=\"{secret}\" is not allowed because service account {name} does not \
                 reference that secret"
            ));
        }
    }
    for (kind, container) in containers(spec) {
        if let Some((by, secret)) = secrets_of(container).find(|(_, secret)| !mountable.contains(secret)) {
            return Err(denied(kind, &container.name, &by, secret));
        }
    }
    let pull: BTreeSet<&str> = account.image_pull_secrets.iter().flatten().map(|secret| secret.name.as_str()).collect();
    for (index, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        if !pull.contains(secret.name.as_str()) {
            return Err(format!(
                "imagePullSecrets[{index}].name=\"{}\" is not allowed because service account {name} does not reference \
                 that imagePullSecret",
                secret.name
            ));
        }
    }
    Ok(())
}

fn is_for_us(attributes: &Attributes) -> bool {
    let is_pods = attributes.resource.group.is_empty() && attributes.resource.plural == "pods";
    is_pods && matches!(attributes.subresource.as_str(), "" | "ephemeralcontainers")
}

impl Plugin for ServiceAccountAdmission {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move { if is_for_us(attributes) { self.mutate(attributes).await } else { Ok(()) } })
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move { if is_for_us(attributes) { self.check(attributes).await } else { Ok(()) } })
    }
}
