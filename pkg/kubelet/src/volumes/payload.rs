//! The files of configMap, secret, downwardAPI and projected volumes.
//!
//! Behaves as pkg/volume/{configmap,secret,downwardapi,projected}, v1.36.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, ServiceAccountTokenProjection,
};
use rkube_client::Client;
use rkube_client::transport::ClientError;

use crate::downward::{self, DownwardError, NodeFacts};
use crate::objects::Objects;
use crate::pod::PodExt;
use crate::volumes::atomic_writer::{FileProjection, Payload};
use crate::volumes::tokens::{TokenError, TokenManager, TokenRequest};

const DEFAULT_MODE: u32 = 0o644;

#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    #[error("{kind} {namespace:?}/{name:?} not registered")]
    NotRegistered { kind: &'static str, namespace: String, name: String },
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("references non-existent {kind} key: {key}")]
    Key { kind: &'static str, key: String },
    #[error("conflicting duplicate paths")]
    Duplicate,
    #[error("projected volume source {0} is not supported")]
    Unsupported(&'static str),
    #[error(transparent)]
    Downward(#[from] DownwardError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Where the contents come from.
pub struct PayloadSources<'a> {
    pub objects: &'a Objects,
    pub tokens: &'a TokenManager,
    pub client: &'a Client,
    pub node: &'a NodeFacts,
    pub ips: &'a [String],
    /// Where the volume's files are, if any are left from before.
    pub left: &'a Path,
}

fn mode(item: Option<i32>, default: Option<i32>) -> u32 {
    item.or(default).and_then(|mode| u32::try_from(mode).ok()).unwrap_or(DEFAULT_MODE)
}

/// Picks keys out of an object's data: all of them, or the listed ones under their paths.
fn select<'a>(
    data: impl Iterator<Item = (&'a String, &'a [u8])>,
    items: &[KeyToPath],
    default_mode: Option<i32>,
    optional: bool,
    kind: &'static str,
) -> Result<Payload, PayloadError> {
    let data: BTreeMap<&str, &[u8]> = data.map(|(key, value)| (key.as_str(), value)).collect();
    let file = |data: &[u8], mode| FileProjection { data: data.to_vec(), mode, owner: None };
    if items.is_empty() {
        let files = data.into_iter().map(|(key, value)| (key.to_owned(), file(value, mode(None, default_mode))));
        return Ok(files.collect());
    }
    let mut payload = Payload::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(value) => {
                payload.insert(item.path.clone(), file(value, mode(item.mode, default_mode)));
            }
            None if optional => {}
            None => return Err(PayloadError::Key { kind, key: item.key.clone() }),
        }
    }
    Ok(payload)
}

pub async fn config_map(
    pod: &Pod,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    default_mode: Option<i32>,
    optional: Option<bool>,
    sources: &PayloadSources<'_>,
) -> Result<Payload, PayloadError> {
    let optional = optional == Some(true);
    let found = sources.objects.get::<ConfigMap>(pod.namespace(), name).await?;
    let map = match found {
        Some(map) => map,
        None if optional => Arc::default(),
        None => return Err(PayloadError::NotFound { kind: "configmap", name: name.to_owned() }),
    };
    let text = map.data.iter().flatten().map(|(key, value)| (key, value.as_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key, value.0.as_slice()));
    select(text.chain(binary), items.map(Vec::as_slice).unwrap_or_default(), default_mode, optional, "config")
}

pub async fn secret(
    pod: &Pod,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    default_mode: Option<i32>,
    optional: Option<bool>,
    sources: &PayloadSources<'_>,
) -> Result<Payload, PayloadError> {
    let optional = optional == Some(true);
    let found = sources.objects.get::<Secret>(pod.namespace(), name).await?;
    let secret = match found {
        Some(secret) => secret,
        None if optional => Arc::default(),
        None => return Err(PayloadError::NotFound { kind: "secret", name: name.to_owned() }),
    };
    let data = secret.data.iter().flatten().map(|(key, value)| (key, value.0.as_slice()));
    select(data, items.map(Vec::as_slice).unwrap_or_default(), default_mode, optional, "secret")
}

pub fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
    sources: &PayloadSources<'_>,
) -> Result<Payload, PayloadError> {
    let mut payload = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            downward::field(pod, &field.field_path, sources.ips, sources.node)?
        } else if let Some(selector) = &item.resource_field_ref {
            downward::resource(pod, None, selector, sources.node)?
        } else {
            continue;
        };
        let file = FileProjection { data: text.into_bytes(), mode: mode(item.mode, default_mode), owner: None };
        payload.insert(item.path.clone(), file);
    }
    Ok(payload)
}

pub async fn projected(
    pod: &Pod,
    volume: &ProjectedVolumeSource,
    sources: &PayloadSources<'_>,
) -> Result<Payload, PayloadError> {
    let default_mode = volume.default_mode;
    let mut payload = Payload::new();
    for source in volume.sources.as_deref().unwrap_or_default() {
        let part = if let Some(source) = &source.config_map {
            config_map(pod, &source.name, source.items.as_ref(), default_mode, source.optional, sources).await?
        } else if let Some(source) = &source.secret {
            secret(pod, &source.name, source.items.as_ref(), default_mode, source.optional, sources).await?
        } else if let Some(source) = &source.downward_api {
            downward(pod, source.items.as_deref().unwrap_or_default(), default_mode, sources)?
        } else if let Some(source) = &source.service_account_token {
            token(pod, source, default_mode, sources).await?
        } else if let Some(source) = &source.cluster_trust_bundle {
            trust_bundle(source, default_mode, sources).await?
        } else if source.pod_certificate.is_some() {
            return Err(PayloadError::Unsupported("podCertificate"));
        } else {
            continue;
        };
        payload.extend(part);
    }
    Ok(payload)
}

async fn token(
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    default_mode: Option<i32>,
    sources: &PayloadSources<'_>,
) -> Result<Payload, PayloadError> {
    let spec = pod.pod_spec();
    let request = TokenRequest {
        namespace: pod.namespace().to_owned(),
        service_account: spec
            .service_account_name
            .clone()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
        audience: source.audience.clone().unwrap_or_default(),
        expiration_seconds: source.expiration_seconds.unwrap_or(3600),
        pod_name: pod.name().to_owned(),
        pod_uid: pod.uid(),
    };
    let data = match sources.objects.is_on_its_own().await {
        false => sources.tokens.get(&request).await?.into_bytes(),
        // The one it has is good until it expires. A pod that has none runs without until the server can give it one.
        true => match std::fs::read(sources.left.join(&source.path)) {
            Ok(left) => left,
            Err(_) => return Ok(Payload::new()),
        },
    };
    // Where a pod says who it is, only it may read its token; else any user of its containers must.
    let user = common_user(pod);
    let has_group = spec.security_context.as_ref().is_some_and(|context| context.fs_group.is_some());
    let mode = if user.is_some() || has_group { 0o600 } else { mode(None, default_mode) };
    let file = FileProjection { data, mode, owner: user };
    Ok([(source.path.clone(), file)].into())
}

/// The user that all containers of a pod run as, if the spec says one.
fn common_user(pod: &Pod) -> Option<u32> {
    let pod_user = pod.pod_spec().security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users = crate::pod::all_containers(pod.pod_spec())
        .map(|(_, container)| container.security_context.as_ref().and_then(|context| context.run_as_user).or(pod_user));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

async fn trust_bundle(
    source: &rkube_api::k8s::core::v1::ClusterTrustBundleProjection,
    default_mode: Option<i32>,
    sources: &PayloadSources<'_>,
) -> Result<Payload, PayloadError> {
    const BUNDLES: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
    let optional = source.optional == Some(true);
    let bundle_of = |value: &serde_json::Value| {
        value.pointer("/spec/trustBundle").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
    };
    let mut text = String::new();
    if let Some(name) = &source.name {
        match sources.client.get_json(&format!("{BUNDLES}/{name}")).await {
            Ok(value) => text = bundle_of(&value),
            Err(error) if error.is_not_found() && optional => {}
            Err(error) => return Err(error.into()),
        }
    } else if let Some(signer) = &source.signer_name {
        let list = sources.client.get_json(BUNDLES).await?;
        let selector = source.label_selector.as_ref().map(selector_of);
        let mut bundles: Vec<String> = list
            .get("items")
            .and_then(serde_json::Value::as_array)
            .into_iter()
            .flatten()
            .filter(|item| item.pointer("/spec/signerName").and_then(serde_json::Value::as_str) == Some(signer))
            .filter(|item| selector.as_ref().is_some_and(|selector| matches(selector, item)))
            .map(bundle_of)
            .collect();
        bundles.sort();
        bundles.dedup();
        if bundles.is_empty() && !optional {
            return Err(PayloadError::NotFound { kind: "clustertrustbundles for signer", name: signer.clone() });
        }
        text = bundles.concat();
    }
    let file = FileProjection { data: text.into_bytes(), mode: mode(None, default_mode), owner: None };
    Ok([(source.path.clone(), file)].into())
}

type Labels = BTreeMap<String, String>;

fn selector_of(selector: &rkube_api::meta::pkg::apis::meta::v1::LabelSelector) -> Labels {
    selector.match_labels.clone().unwrap_or_default()
}

fn matches(wanted: &Labels, item: &serde_json::Value) -> bool {
    wanted.iter().all(|(key, value)| {
        let found = item.pointer("/metadata/labels").and_then(|labels| labels.get(key));
        found.and_then(serde_json::Value::as_str) == Some(value)
    })
}
