//! Which resource a kind is: a row of the table for built-in kinds, discovery for others.

use std::sync::Arc;

use rkube_api::resource::{Resource, SharedResource};
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::schema::TypeId;
use rkube_client::Client;
use serde_json::Value;

use super::DeployError;
use super::record::ObjectRef;

pub(super) struct Resources {
    client: Client,
}

impl Resources {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(super) async fn find(&self, object: &ObjectRef) -> Result<SharedResource, DeployError> {
        let (group, version) = object.api_version.split_once('/').unwrap_or(("", &object.api_version));
        let gvk = GroupVersionKind { group: group.to_owned(), version: version.to_owned(), kind: object.kind.clone() };
        if let Some(resource) = rkube_api::by_kind(&gvk) {
            return Ok(Arc::clone(resource));
        }
        let missing = || DeployError::NoResource { api_version: object.api_version.clone(), kind: object.kind.clone() };
        if group.is_empty() {
            return Err(missing());
        }
        // Asked every time: a definition may have come or changed, and addons are few.
        let served = match self.client.get_json(&format!("/apis/{group}/{version}")).await {
            Ok(served) => served,
            Err(error) if error.is_not_found() => return Err(missing()),
            Err(source) => return Err(DeployError::Discover { api_version: object.api_version.clone(), source }),
        };
        let rows = served["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_it = |row: &&Value| {
            row["kind"] == object.kind.as_str() && row["name"].as_str().is_some_and(|name| !name.contains('/'))
        };
        let row = rows.iter().find(is_it).ok_or_else(missing)?;
        let plural = row["name"].as_str().unwrap_or_default();
        Ok(Arc::new(Resource {
            group: group.to_owned().into(),
            version: version.to_owned().into(),
            plural: plural.to_owned().into(),
            singular: "".into(),
            short_names: (&[]).into(),
            categories: (&[]).into(),
            kind: object.kind.clone().into(),
            namespaced: row["namespaced"] == true,
            verbs: (&[]).into(),
            subresources: (&[]).into(),
            // Only its path is used.
            schema: TypeId(u32::MAX),
            stored_as: None,
            storage_version_hash: "".into(),
            selectable_fields: (&[]).into(),
        }))
    }
}
