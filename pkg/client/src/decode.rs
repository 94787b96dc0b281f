//! Objects as a remote server sends them, made into what the watch cache would have handed out.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use rkube_api::StoredObject;
use rkube_api::object::Selection;
use rkube_api::resource::{Resource, SelectableField};
use rkube_apimachinery::key::ObjectKey;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Head {
    kind: String,
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
    labels: BTreeMap<String, String>,
}

/// Decodes as much of `json` as selection needs. Items of lists come without `apiVersion` and `kind`: they
/// are put in front.
pub fn stored_object(resource: &Resource, json: Bytes) -> Result<Arc<StoredObject>, serde_json::Error> {
    let head: Head = serde_json::from_slice(&json)?;
    let Head { kind, metadata } = head;
    let fields = if resource.selectable_fields.is_empty() {
        Vec::new()
    } else {
        let value: Value = serde_json::from_slice(&json)?;
        resource.selectable_fields.iter().map(|field| select(&value, field)).collect()
    };
    let json = if kind.is_empty() { with_type(resource, &json) } else { json };
    // An unparsable version is as good as none: it is opaque to clients.
    let revision = metadata.resource_version.parse().unwrap_or_default();
    let key = ObjectKey::new(metadata.namespace, metadata.name);
    let selection = Selection { uid: metadata.uid, labels: metadata.labels.into_iter().collect(), fields };
    Ok(Arc::new(StoredObject::new(key, revision, json, selection)))
}

fn select(value: &Value, field: &SelectableField) -> String {
    let found = field.path.split('|').find_map(|path| select_path(value, path).filter(|text| !text.is_empty()));
    found.unwrap_or_else(|| field.zero.to_string())
}

fn select_path(value: &Value, path: &str) -> Option<String> {
    let mut value = value;
    for name in path.split('.') {
        // Paths go through the first item of a list, as `status.podIPs` does.
        let inner = value.as_array().and_then(|items| items.first()).unwrap_or(value);
        value = inner.get(name)?;
    }
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        Value::Array(items) => items.first().and_then(Value::as_str).map(str::to_owned),
        other => Some(other.to_string()),
    }
}

fn with_type(resource: &Resource, json: &[u8]) -> Bytes {
    let body = json.trim_ascii_start().strip_prefix(b"{").unwrap_or_default();
    let mut out = BytesMut::with_capacity(json.len() + 64);
    let kind: &str = &resource.kind;
    out.put_slice(format!("{{\"apiVersion\":\"{}\",\"kind\":\"{kind}\"", resource.group_version()).as_bytes());
    if body.trim_ascii_start().first() != Some(&b'}') {
        out.put_u8(b',');
    }
    out.put_slice(body);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use rkube_apimachinery::schema::TypeId;

    use super::*;

    #[test]
    fn list_items_get_their_type_and_selection() {
        let resource = Resource {
            group: "apps".into(),
            version: "v1".into(),
            plural: "replicasets".into(),
            singular: "replicaset".into(),
            short_names: [].as_slice().into(),
            categories: [].as_slice().into(),
            kind: "ReplicaSet".into(),
            namespaced: true,
            verbs: [].as_slice().into(),
            subresources: [].as_slice().into(),
            schema: TypeId(0),
            stored_as: None,
            storage_version_hash: "".into(),
            selectable_fields: vec![
                SelectableField { label: "a".into(), path: "status.replicas".into(), zero: "0".into() },
                SelectableField { label: "b".into(), path: "status.none".into(), zero: "0".into() },
            ]
            .into(),
        };
        let json = br#"{"metadata":{"name":"x","namespace":"n","uid":"u","resourceVersion":"7","labels":{"b":"2","a":"1"}},"status":{"replicas":3}}"#;
        let object = stored_object(&resource, Bytes::from_static(json)).unwrap();
        assert_eq!((object.key.to_string().as_str(), object.revision), ("n/x", 7));
        assert!(object.json.starts_with(br#"{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":"#));
        assert_eq!(object.selection.fields, ["3", "0"]);
        assert_eq!(object.selection.labels, [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
    }
}
