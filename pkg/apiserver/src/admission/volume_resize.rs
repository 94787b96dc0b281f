//! A claim grows only where its class allows it.
//!
//! Behaves as `plugin/pkg/admission/storage/persistentvolume/resize/admission.go`, v1.36.

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::PersistentVolumeClaim;
use rkube_api::k8s::storage::v1::StorageClass;
use rkube_api::pod_resources;
use rkube_apimachinery::quantity::Quantity;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Objects, Plugin, forbidden, is_resource, not_convertible, object};

pub(super) struct PersistentVolumeClaimResize {
    objects: Objects,
}

impl PersistentVolumeClaimResize {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        if !is_resource(attributes, "", "persistentvolumeclaims") {
            return Ok(());
        }
        let Some(old) = attributes.old_object.clone() else { return Ok(()) };
        let old = old.typed::<PersistentVolumeClaim>().map_err(not_convertible)?;
        let new = object!(attributes, PersistentVolumeClaim);
        if storage(new) <= storage(&old) {
            return Ok(());
        }
        let (class, old_class) = (class(new).to_owned(), class(&old));
        let is_bound = old.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if !is_bound {
            return Err(forbidden(attributes, "Only bound persistent volume claims can be expanded"));
        }
        let allows = !class.is_empty()
            && class == old_class
            && self
                .objects
                .cached::<StorageClass>("", &class)
                .await?
                .is_some_and(|class| class.allow_volume_expansion == Some(true));
        if allows {
            return Ok(());
        }
        let text = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                    support resize";
        Err(forbidden(attributes, text))
    }
}

fn storage(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    pod_resources::parse(requests).remove("storage").unwrap_or_else(Quantity::zero)
}

/// The class by its field, or by the annotation it had before there was a field.
fn class(claim: &PersistentVolumeClaim) -> &str {
    let annotations = claim.metadata.annotations.as_ref();
    let by_annotation = annotations.and_then(|all| all.get("volume.beta.kubernetes.io/storage-class"));
    let by_field = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    by_annotation.or(by_field).map_or("", String::as_str)
}

impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}
