//! `scale`: the number of replicas of a workload, in one form for all of them.
//!
//! Behaves as `pkg/registry/apps/deployment/storage/storage.go` (`ScaleREST`) and its siblings, and
//! `apiextensions-apiserver/pkg/registry/customresource/etcd.go`, v1.36.

use std::sync::Arc;

use rkube_api::StoredObject;
use rkube_api::resource::Resource;
use rkube_apimachinery::field::{Error, Path};
use rkube_apimachinery::gvk::{GroupKind, GroupResource};
use rkube_apimachinery::labels::Selector;
use rkube_apimachinery::meta::Meta;
use rkube_apimachinery::status::ApiStatus;
use serde_json::{Map, Value, json};

use super::invalid_object;
use crate::store::Store;
use crate::store::convert::object_of;

/// Where the replicas of a kind are, as JSON pointers.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub selector: SelectorPath,
}

/// Where the selector of a kind's pods is, and in which form.
#[derive(Clone, Debug)]
pub enum SelectorPath {
    /// A `LabelSelector`.
    LabelSelector(String),
    /// A map of labels.
    Labels(String),
    /// The text of a selector.
    Text(String),
    None,
}

impl ScalePaths {
    /// For built-in rows with the subresource.
    pub(crate) fn builtin(row: &Resource) -> Option<Self> {
        row.subresource("scale")?;
        let selector = "/spec/selector".to_owned();
        Some(Self {
            spec_replicas: "/spec/replicas".to_owned(),
            status_replicas: "/status/replicas".to_owned(),
            selector: if row.group.is_empty() {
                SelectorPath::Labels(selector)
            } else {
                SelectorPath::LabelSelector(selector)
            },
        })
    }

    /// The scale of an object.
    pub(crate) fn read(&self, object: &Value) -> Result<Value, ApiStatus> {
        let selector = match &self.selector {
            SelectorPath::LabelSelector(path) => {
                let selector = Selector::from_json(object.pointer(path));
                selector.map_err(|error| ApiStatus::bad_request(error.to_string()))?.to_string()
            }
            SelectorPath::Labels(path) => {
                let labels = object.pointer(path).and_then(Value::as_object).into_iter().flatten();
                let labels = labels.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
                Selector::from_set(labels).to_string()
            }
            SelectorPath::Text(path) => object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned(),
            SelectorPath::None => String::new(),
        };
        let mut metadata = Map::new();
        for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if let Some(value) = object.meta_field(field) {
                metadata.insert(field.to_owned(), value.clone());
            }
        }
        let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
        let mut spec = Map::new();
        let wanted = number(&self.spec_replicas);
        if wanted != 0 {
            spec.insert("replicas".to_owned(), Value::from(wanted));
        }
        let mut status = Map::new();
        status.insert("replicas".to_owned(), Value::from(number(&self.status_replicas)));
        if !selector.is_empty() {
            status.insert("selector".to_owned(), Value::from(selector));
        }
        Ok(json!({
            "apiVersion": "autoscaling/v1", "kind": "Scale",
            "metadata": metadata, "spec": spec, "status": status,
        }))
    }

    /// Sets the replicas of `object` to those of `scale`.
    pub(crate) fn write(&self, scale: &Value, object: &mut Value, name: &str) -> Result<(), ApiStatus> {
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        if replicas < 0 {
            let path = Path::new("spec").child("replicas");
            let error = Error::invalid(&path, replicas, "must be greater than or equal to 0");
            return Err(ApiStatus::invalid(&GroupKind::new("autoscaling", "Scale"), name, &[error]));
        }
        self.set_replicas(object, replicas)
    }

    fn set_replicas(&self, object: &mut Value, replicas: i64) -> Result<(), ApiStatus> {
        let (parents, last) = self.spec_replicas.rsplit_once('/').ok_or_else(invalid_object)?;
        let mut place = object;
        for name in parents.split('/').filter(|name| !name.is_empty()) {
            place = place
                .as_object_mut()
                .ok_or_else(invalid_object)?
                .entry(name)
                .or_insert_with(|| Value::Object(Map::new()));
        }
        place.as_object_mut().ok_or_else(invalid_object)?.insert(last.to_owned(), Value::from(replicas));
        Ok(())
    }
}

impl Store {
    /// The scale of a stored object.
    pub(crate) fn scale_of(&self, object: &StoredObject) -> Result<Arc<StoredObject>, ApiStatus> {
        let paths = self.core().scale.as_ref().ok_or_else(|| self.no_subresource("scale"))?;
        let value = object.value().map_err(|error| ApiStatus::internal(format!("reading {}: {error}", object.key)))?;
        Ok(Arc::new(object_of(object, &paths.read(&value)?)?))
    }

    /// Names the scale in conflicts.
    pub(crate) fn scale_resource(&self) -> GroupResource {
        let resource = self.resource().group_resource();
        GroupResource::new(resource.group, format!("{}/scale", resource.resource))
    }
}
