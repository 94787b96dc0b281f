//! Writing a status that is counted from other objects, whoever wrote the object last.

use rkube_api::Kind;
use rkube_client::owner::uid_of;
use rkube_client::{Client, SyncError};

/// Writes the status that `apply` sets; after a conflict once more, to what is stored then.
pub(crate) async fn write_status<O: Kind>(
    client: &Client,
    object: &O,
    apply: impl Fn(&mut O),
) -> Result<(), SyncError> {
    let metadata = object.metadata();
    let api = client.namespaced::<O>(metadata.namespace.as_deref().unwrap_or_default());
    let mut updated = object.clone();
    apply(&mut updated);
    match api.update_status(&updated).await {
        Err(error) if error.is_conflict() => {
            let mut fresh = api.get(metadata.name.as_deref().unwrap_or_default()).await?;
            if uid_of(&fresh) != uid_of(object) {
                return Ok(());
            }
            apply(&mut fresh);
            api.update_status(&fresh).await?;
            Ok(())
        }
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(SyncError::during("writing the status")(error)),
        Ok(_) => Ok(()),
    }
}
