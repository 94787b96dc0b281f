//! Putting a finalizer on and taking it off.
//!
//! Behaves as pkg/controller/volume/protectionutil, v1.36.

use rkube_api::Kind;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_client::{Client, SyncError};

use crate::common::errors::ignore_not_found;
use crate::common::numbers::nonempty;

/// What an object's finalizer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Nothing,
    Add,
    /// Off, as soon as the object is not used.
    Remove,
}

pub(super) fn need(metadata: &ObjectMeta, finalizer: &str) -> Need {
    let has = metadata.finalizers.iter().flatten().any(|known| known == finalizer);
    match (metadata.deletion_timestamp.is_some(), has) {
        (true, true) => Need::Remove,
        (false, false) => Need::Add,
        _ => Need::Nothing,
    }
}

pub(super) async fn add<K: Kind>(client: &Client, object: &K, finalizer: &str) -> Result<(), SyncError> {
    let mut updated = object.clone();
    updated.metadata_mut().finalizers.get_or_insert_default().push(finalizer.to_owned());
    write(client, &updated, "adding a protection finalizer").await
}

pub(super) async fn remove<K: Kind>(client: &Client, object: &K, finalizer: &str) -> Result<(), SyncError> {
    let mut updated = object.clone();
    let mut finalizers = updated.metadata_mut().finalizers.take().unwrap_or_default();
    finalizers.retain(|known| known != finalizer);
    updated.metadata_mut().finalizers = nonempty(finalizers);
    write(client, &updated, "removing a protection finalizer").await
}

async fn write<K: Kind>(client: &Client, object: &K, action: &'static str) -> Result<(), SyncError> {
    let namespace = object.metadata().namespace.as_deref().unwrap_or_default();
    let written = client.namespaced::<K>(namespace).update(object).await;
    ignore_not_found(written.map(drop)).map_err(SyncError::during(action))
}
