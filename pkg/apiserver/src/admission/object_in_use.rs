//! Volumes and claims get a finalizer, so that nothing in use is deleted; controllers take it off.
//!
//! Behaves as `plugin/pkg/admission/storage/storageobjectinuseprotection/admission.go`, v1.36.

use futures_util::future::BoxFuture;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};
use serde_json::{Value, json};

use super::{Plugin, is_resource};

/// Group, resource and finalizer.
const PROTECTED: [(&str, &str, &str); 3] = [
    ("", "persistentvolumes", "kubernetes.io/pv-protection"),
    ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ("storage.k8s.io", "volumeattributesclasses", "kubernetes.io/vac-protection"),
];

pub(super) struct StorageObjectInUseProtection;

impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move {
            for (group, plural, finalizer) in PROTECTED {
                if is_resource(attributes, group, plural)
                    && let Some(object) = attributes.object.as_mut()
                {
                    add_finalizer(object.value(), finalizer);
                }
            }
            Ok(())
        })
    }
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    let finalizers = &mut object["metadata"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|known| known == finalizer) => {}
        Some(list) => list.push(finalizer.into()),
        None => *finalizers = json!([finalizer]),
    }
}
