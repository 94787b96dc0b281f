//! Writing a set of EndpointSlices for one Service.

use std::sync::Arc;

use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::names::name_is_dns_subdomain;
use rkube_client::owner::uid_of;
use rkube_client::{Client, DeleteOptions, SyncError};

use super::errors::{ignore_not_found, namespace_terminating};
use super::written::Written;

pub(crate) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";

/// What is to be written.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
}

/// Writes `changes` for the Service `key`, and notes them as written.
pub(crate) async fn carry_out(
    client: &Client,
    written: &Written,
    key: &ObjectKey,
    changes: Changes,
) -> Result<(), SyncError> {
    let api = client.namespaced::<EndpointSlice>(&key.namespace);
    for slice in changes.create {
        match api.create(&slice).await {
            Ok(stored) => written.stored(key, &stored.metadata),
            Err(error) if namespace_terminating(&error) => return Ok(()),
            Err(error) => return Err(SyncError::during("creating an EndpointSlice")(error)),
        }
    }
    for slice in changes.update {
        let stored = api.update(&slice).await.map_err(SyncError::during("updating an EndpointSlice"))?;
        written.stored(key, &stored.metadata);
    }
    for slice in changes.delete {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        let deleted = api.delete(name, &DeleteOptions::uid(uid_of(&*slice))).await;
        ignore_not_found(deleted).map_err(SyncError::during("deleting an EndpointSlice"))?;
        written.deleted(key, &slice.metadata);
    }
    Ok(())
}

/// What the names of a Service's slices begin with: with a dash, unless that makes the name too long.
pub(crate) fn name_prefix(service: &str) -> String {
    let with_dash = format!("{service}-");
    if name_is_dns_subdomain(&with_dash, true).is_empty() { with_dash } else { service.to_owned() }
}
