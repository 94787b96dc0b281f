//! Between the version a client speaks and the version objects are stored in.

use std::sync::Arc;

use rkube_api::StoredObject;
use rkube_api::object::Selection;
use rkube_api::resource::{SharedResource, StoredAs};
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::status::ApiStatus;
use serde_json::Value;

/// One version of a resource and the version it is stored in.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    requested: GroupVersionKind,
    stored: GroupVersionKind,
}

impl Version {
    pub(crate) fn new(row: &SharedResource, stored: &StoredAs) -> Self {
        let stored = GroupVersionKind::new(stored.group.as_ref(), stored.version.as_ref(), stored.kind.as_ref());
        Self { requested: row.gvk(), stored }
    }

    pub(crate) fn is_stored(&self) -> bool {
        self.requested == self.stored
    }

    pub(crate) fn requested(&self) -> &GroupVersionKind {
        &self.requested
    }

    pub(crate) fn stored(&self) -> &GroupVersionKind {
        &self.stored
    }

    /// A client's object in the stored version.
    pub(crate) fn to_stored(&self, mut value: Value) -> Result<Value, ApiStatus> {
        let object = value.as_object_mut().ok_or_else(|| ApiStatus::bad_request("the body is not an object"))?;
        object.insert("apiVersion".to_owned(), Value::from(self.requested.api_version()));
        object.insert("kind".to_owned(), Value::from(self.requested.kind.as_str()));
        Ok(if self.is_stored() { value } else { convert(value, &self.stored) })
    }

    /// A tree in the stored version, in the client's.
    pub(crate) fn of_stored(&self, value: Value) -> Value {
        if self.is_stored() { value } else { convert(value, &self.requested) }
    }

    /// A stored object in the client's version.
    pub(crate) fn convert_stored(&self, object: &Arc<StoredObject>) -> Result<Arc<StoredObject>, ApiStatus> {
        if self.is_stored() {
            return Ok(object.clone());
        }
        let value = object.value().map_err(|error| ApiStatus::internal(format!("reading {}: {error}", object.key)))?;
        let value = self.of_stored(value);
        Ok(Arc::new(object_of(object, &value)?))
    }
}

fn convert(value: Value, to: &GroupVersionKind) -> Value {
    rkube_api::convert::convert(value, &to.group, &to.version)
}

/// Another object at the key and revision of `like`.
pub(crate) fn object_of(like: &StoredObject, value: &Value) -> Result<StoredObject, ApiStatus> {
    let json =
        serde_json::to_vec(value).map_err(|error| ApiStatus::internal(format!("writing {}: {error}", like.key)))?;
    let selection = Selection { uid: like.selection.uid.clone(), ..like.selection.clone() };
    Ok(StoredObject::new(like.key.clone(), like.revision, json.into(), selection))
}
