//! What is known of an addon: a ConfigMap in `kube-system`.

use std::collections::BTreeMap;
use std::fmt;

use rkube_api::k8s::core::v1::ConfigMap;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_client::{Client, ClientError, DeleteOptions, ListParams, Patch};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ByName, DeployError, FIELD_MANAGER};

const NAMESPACE: &str = "kube-system";
const LABEL: &str = "rkube.io/addon";
const PREFIX: &str = "addon-";

/// One object of an addon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ObjectRef {
    pub(super) api_version: String,
    pub(super) kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    pub(super) name: String,
}

impl ObjectRef {
    pub(super) fn of(object: &Value) -> Self {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            api_version: text("/apiVersion"),
            kind: text("/kind"),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{} {}{separator}{}", self.kind, self.namespace, self.name)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) name: String,
    /// Path of the file, for people.
    pub(super) source: String,
    /// Of the file that was applied completely; empty while it is not.
    pub(super) checksum: String,
    /// Who applied it last.
    pub(super) server: String,
    pub(super) objects: Vec<ObjectRef>,
}

impl Record {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// What is stored, and what events are about.
    pub(super) fn config_map(&self) -> ConfigMap {
        let data = [
            ("source", self.source.clone()),
            ("checksum", self.checksum.clone()),
            ("server", self.server.clone()),
            ("objects", json!(self.objects).to_string()),
        ];
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some(NAMESPACE.to_owned()),
                name: Some(format!("{PREFIX}{}", self.name)),
                labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
                ..ObjectMeta::default()
            },
            data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ..ConfigMap::default()
        }
    }

    fn of(config_map: &ConfigMap) -> Option<Self> {
        let name = config_map.metadata.name.as_deref()?.strip_prefix(PREFIX)?.to_owned();
        let none = BTreeMap::new();
        let data = config_map.data.as_ref().unwrap_or(&none);
        let text = |key: &str| data.get(key).cloned().unwrap_or_default();
        Some(Self {
            name,
            source: text("source"),
            checksum: text("checksum"),
            server: text("server"),
            // A list nobody can read is one of nothing: the objects stay, and are applied again.
            objects: serde_json::from_str(&text("objects")).unwrap_or_default(),
        })
    }
}

pub(super) struct Records {
    client: Client,
}

impl Records {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(super) async fn list(&self) -> Result<ByName<Record>, ClientError> {
        let api = self.client.namespaced::<ConfigMap>(NAMESPACE);
        let found = api.list(&ListParams::labels(LABEL)).await?;
        let records = found.items.iter().filter_map(|config_map| Record::of(config_map));
        Ok(records.map(|record| (record.name.clone(), record)).collect())
    }

    pub(super) async fn keep(&self, record: &Record) -> Result<(), DeployError> {
        let config_map = record.config_map();
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": config_map.metadata.name, "namespace": NAMESPACE, "labels": config_map.metadata.labels,
            },
            "data": config_map.data,
        });
        let name = config_map.metadata.name.unwrap_or_default();
        let patch = Patch::Apply { object, field_manager: FIELD_MANAGER.to_owned(), force: true };
        let kept = self.client.namespaced::<ConfigMap>(NAMESPACE).patch(&name, &patch).await;
        kept.map(drop).map_err(|source| DeployError::Record { addon: record.name.clone(), source })
    }

    pub(super) async fn forget(&self, record: &Record) -> Result<(), DeployError> {
        let name = format!("{PREFIX}{}", record.name);
        let api = self.client.namespaced::<ConfigMap>(NAMESPACE);
        match api.delete(&name, &DeleteOptions::default()).await {
            Err(source) if !source.is_not_found() => Err(DeployError::Record { addon: record.name.clone(), source }),
            _ => Ok(()),
        }
    }
}
