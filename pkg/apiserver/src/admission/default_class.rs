//! Claims and ingresses that name no class get the default one, the newest if there are several.
//!
//! Behaves as `plugin/pkg/admission/storage/storageclass/setdefault/admission.go` and
//! `plugin/pkg/admission/network/defaultingressclass/admission.go`, v1.36.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::PersistentVolumeClaim;
use rkube_api::k8s::networking::v1::{Ingress, IngressClass};
use rkube_api::k8s::storage::v1::StorageClass;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Objects, Plugin, forbidden_because, is_resource, object};

const DEFAULT_STORAGE_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const DEFAULT_INGRESS_CLASS: [&str; 1] = ["ingressclass.kubernetes.io/is-default-class"];
const STORAGE_CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const INGRESS_CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// The name of the newest class with one of `annotations` set to true; by name among equally old ones.
async fn default_class<K: Kind>(objects: &Objects, annotations: &[&str]) -> Result<Option<String>, ApiStatus> {
    let mut defaults: Vec<Arc<K>> = objects.list::<K>("").await?;
    defaults.retain(|class| {
        let given = class.metadata().annotations.as_ref();
        annotations.iter().any(|name| given.and_then(|all| all.get(*name)).is_some_and(|value| value == "true"))
    });
    defaults.sort_by(|a, b| {
        let (a, b) = (a.metadata(), b.metadata());
        b.creation_timestamp.cmp(&a.creation_timestamp).then_with(|| a.name.cmp(&b.name))
    });
    Ok(defaults.first().and_then(|class| class.metadata().name.clone()))
}

pub(super) struct DefaultStorageClass {
    objects: Objects,
}

impl DefaultStorageClass {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    async fn default(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        if !is_resource(attributes, "", "persistentvolumeclaims") {
            return Ok(());
        }
        let claim = object!(attributes, PersistentVolumeClaim);
        let by_annotation =
            claim.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(STORAGE_CLASS_ANNOTATION));
        // An empty name asks for a volume without a class.
        if by_annotation || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some()) {
            return Ok(());
        }
        match default_class::<StorageClass>(&self.objects, &DEFAULT_STORAGE_CLASS).await {
            Ok(name @ Some(_)) => {
                object!(attributes, PersistentVolumeClaim).spec.get_or_insert_default().storage_class_name = name;
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(status) => Err(forbidden_because(attributes, status)),
        }
    }
}

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.default(attributes))
    }
}

pub(super) struct DefaultIngressClass {
    objects: Objects,
}

impl DefaultIngressClass {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    async fn default(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        if !is_resource(attributes, "networking.k8s.io", "ingresses") {
            return Ok(());
        }
        let ingress = object!(attributes, Ingress);
        let by_annotation =
            ingress.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(INGRESS_CLASS_ANNOTATION));
        if by_annotation || ingress.spec.as_ref().is_some_and(|spec| spec.ingress_class_name.is_some()) {
            return Ok(());
        }
        match default_class::<IngressClass>(&self.objects, &DEFAULT_INGRESS_CLASS).await {
            Ok(name @ Some(_)) => {
                object!(attributes, Ingress).spec.get_or_insert_default().ingress_class_name = name;
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(status) => Err(forbidden_because(attributes, status)),
        }
    }
}

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.default(attributes))
    }
}
