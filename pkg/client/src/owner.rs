//! Who owns what: controller references, adoption and release.
//!
//! Behaves as `pkg/controller/controller_ref_manager.go` and `apimachinery/pkg/apis/meta/v1/controller_ref.go`, v1.36.

use std::sync::Arc;

use rkube_api::Kind;
use rkube_api::meta::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use rkube_apimachinery::gvk::GroupVersion;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::labels::{Selector, SelectorError};
use serde_json::{Value, json};

use crate::api::Patch;
use crate::client::Client;
use crate::controller::SyncError;

/// `namespace/name` of an object.
pub fn object_key<K: Kind>(object: &K) -> ObjectKey {
    meta_key(object.metadata())
}

pub fn meta_key(metadata: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// The uid, empty if the object was never stored.
pub fn uid_of<K: Kind>(object: &K) -> &str {
    object.metadata().uid.as_deref().unwrap_or_default()
}

/// `v1` or `apps/v1`.
pub fn api_version<K: Kind>() -> String {
    GroupVersion::new(K::GROUP, K::VERSION).to_string()
}

/// The reference that manages the object, if any. There is at most one.
pub fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|reference| reference.controller == Some(true))
}

/// As [`controller_of`], if it names an object of kind `O`, in any version of its group.
pub fn controller_of_kind<O: Kind>(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    controller_of(metadata).filter(|reference| {
        reference.kind == O::KIND
            && GroupVersion::parse(&reference.api_version).is_some_and(|version| version.group == O::GROUP)
    })
}

pub fn is_controlled_by<O: Kind>(metadata: &ObjectMeta, owner: &O) -> bool {
    controller_of(metadata).is_some_and(|reference| reference.uid == uid_of(owner))
}

/// The reference by which `owner` manages an object it makes.
pub fn new_controller_ref<O: Kind>(owner: &O) -> OwnerReference {
    OwnerReference {
        api_version: api_version::<O>(),
        kind: O::KIND.to_owned(),
        name: owner.metadata().name.clone().unwrap_or_default(),
        uid: uid_of(owner).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Compiles a selector of an object; an absent one selects nothing, an empty one everything.
pub fn selector_of(selector: Option<&LabelSelector>) -> Result<Selector, SelectorError> {
    let Some(selector) = selector else { return Ok(Selector::nothing()) };
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let expressions = selector.match_expressions.iter().flatten().map(|expression| {
        let values = expression.values.clone().unwrap_or_default();
        (expression.key.as_str(), expression.operator.as_str(), values)
    });
    Selector::from_label_selector(labels, expressions)
}

/// Sorts objects into those a controller owns and others, adopting and releasing on the way.
///
/// # Guarantees
/// Adopts only after reading the owner from the API: the cache may not show yet that it is being deleted.
/// Every patch names the object's uid, so that it cannot hit another one of the same name.
pub struct ControllerRefManager<'a, O> {
    client: &'a Client,
    owner: &'a O,
    selector: &'a Selector,
    /// Added on adoption, removed on release.
    finalizers: &'a [&'a str],
}

impl<'a, O: Kind> ControllerRefManager<'a, O> {
    pub fn new(client: &'a Client, owner: &'a O, selector: &'a Selector) -> Self {
        Self { client, owner, selector, finalizers: &[] }
    }

    #[must_use]
    pub fn finalizers(mut self, finalizers: &'a [&'a str]) -> Self {
        self.finalizers = finalizers;
        self
    }

    /// Those of `objects` that belong to the owner. `fits` narrows what the selector says.
    pub async fn claim<K: Kind>(
        &self,
        objects: Vec<Arc<K>>,
        fits: impl Fn(&K) -> bool + Sync,
    ) -> Result<Vec<Arc<K>>, SyncError> {
        let mut claimed = Vec::with_capacity(objects.len());
        let mut errors = Vec::new();
        let mut may_adopt = false;
        for object in objects {
            let metadata = object.metadata();
            let matches = self.selector.matches(&metadata.labels) && fits(&object);
            let terminating = self.owner.metadata().deletion_timestamp.is_some();
            match controller_of(metadata) {
                Some(reference) if reference.uid != uid_of(self.owner) => {}
                Some(_) if matches => claimed.push(object),
                Some(_) if terminating => {}
                Some(_) => errors.extend(self.release::<K>(metadata).await.err()),
                None => {
                    let foreign = self.owner.metadata().namespace != metadata.namespace;
                    if terminating || !matches || metadata.deletion_timestamp.is_some() || foreign {
                        continue;
                    }
                    match self.adopt::<K>(metadata, &mut may_adopt).await {
                        Ok(true) => claimed.push(object),
                        Ok(false) => {}
                        Err(error) => errors.push(error),
                    }
                }
            }
        }
        SyncError::all(errors).map(|()| claimed)
    }

    /// Whether the object is ours now; it may be gone.
    async fn adopt<K: Kind>(&self, object: &ObjectMeta, may_adopt: &mut bool) -> Result<bool, SyncError> {
        if !*may_adopt {
            self.check_owner().await?;
            *may_adopt = true;
        }
        let reference = new_controller_ref(self.owner);
        let mut patch = json!({"metadata": {
            "uid": object.uid,
            "ownerReferences": [{
                "apiVersion": reference.api_version, "kind": reference.kind, "name": reference.name,
                "uid": reference.uid, "controller": true, "blockOwnerDeletion": true,
            }],
        }});
        if !self.finalizers.is_empty() {
            patch["metadata"]["finalizers"] = self.finalizers.into();
        }
        match self.patch::<K>(object, patch).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives up an object whose labels no longer match.
    async fn release<K: Kind>(&self, object: &ObjectMeta) -> Result<(), SyncError> {
        let mut metadata = json!({
            "uid": object.uid,
            "ownerReferences": [{"$patch": "delete", "uid": uid_of(self.owner)}],
        });
        if !self.finalizers.is_empty() {
            metadata["$deleteFromPrimitiveList/finalizers"] = self.finalizers.into();
        }
        match self.patch::<K>(object, json!({"metadata": metadata})).await {
            // Gone, or already another object or without our reference: nothing is left to release.
            Err(error)
                if error.is_not_found()
                    || error.client_error().and_then(|e| e.status()).is_some_and(|status| status.code() == 422) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    async fn patch<K: Kind>(&self, object: &ObjectMeta, patch: Value) -> Result<(), SyncError> {
        let api = self.client.namespaced::<K>(object.namespace.as_deref().unwrap_or_default());
        let name = object.name.as_deref().unwrap_or_default();
        api.patch(name, &Patch::Strategic(patch)).await?;
        Ok(())
    }

    async fn check_owner(&self) -> Result<(), SyncError> {
        let metadata = self.owner.metadata();
        let name = metadata.name.as_deref().unwrap_or_default();
        let api = self.client.namespaced::<O>(metadata.namespace.as_deref().unwrap_or_default());
        let fresh = api.get(name).await.map_err(SyncError::during("reading the owner before adoption"))?;
        if fresh.metadata().uid != metadata.uid {
            let key = meta_key(metadata);
            return Err(SyncError::other(format!("original {} {key} is gone", O::KIND)));
        }
        if fresh.metadata().deletion_timestamp.is_some() {
            return Err(SyncError::other(format!("{} {} has just been deleted", O::KIND, meta_key(metadata))));
        }
        Ok(())
    }
}
