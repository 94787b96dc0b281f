//! What all versions of one resource share, and the one way an object changes.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rkube_api::StoredObject;
use rkube_api::kind::DecodeError;
use rkube_api::resource::{SelectableField, StoredAs};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::gvk::{GroupKind, GroupResource};
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::schema::SchemaSet;
use rkube_apimachinery::status::{ApiStatus, OPTIMISTIC_LOCK, Reason};
use rkube_storage::{Precondition, Revision, StorageError, WriteOutcome};

use crate::cache::Cache;
use crate::encode::{self, Encoded};
use crate::hooks::Hooks;
use crate::managed::Ownership;
use crate::registry::Shared;
use crate::strategy::SharedStrategy;
use crate::subresource::scale::ScalePaths;

/// Attempts of one write against concurrent writers. Each failure means another one succeeded.
const ATTEMPTS_MAX: usize = 100;

/// See the module.
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) cache: Arc<Cache>,
    /// The set that the rows' types are in.
    pub(crate) schema: Arc<SchemaSet>,
    pub(crate) stored: StoredAs,
    pub(crate) namespaced: bool,
    /// The fields in the selection of stored objects.
    pub(crate) fields: Vec<SelectableField>,
    pub(crate) ownership: Ownership,
    pub(crate) strategy: SharedStrategy,
    pub(crate) subresources: HashMap<&'static str, SharedStrategy>,
    pub(crate) scale: Option<ScalePaths>,
    pub(crate) hooks: Arc<dyn Hooks>,
}

/// What an updater makes of an object.
pub(crate) enum Outcome {
    /// Write this, in stored form.
    Put(Encoded),
    Delete,
    Keep,
}

/// What became of an object.
pub(crate) struct Updated {
    /// After the change; the last state when it was deleted.
    pub(crate) object: Arc<StoredObject>,
    pub(crate) change: ChangeMade,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeMade {
    Created,
    Updated,
    Unchanged,
    Deleted,
}

/// Decides what to make of an object. Called again when the object was not what it seemed, so it must
/// not remember anything of an attempt.
pub(crate) trait Updater: Send {
    fn update<'a>(&'a mut self, existing: Option<&'a Arc<StoredObject>>) -> BoxFuture<'a, Result<Outcome, ApiStatus>>;
}

impl Core {
    pub(crate) fn group_kind(&self) -> GroupKind {
        GroupKind::new(self.stored.group.as_ref(), self.stored.kind.as_ref())
    }

    /// Changes the object at `key` as `updater` says, if nobody changed it in between.
    ///
    /// Begins with what the cache knows. Whatever is decided on that basis but not proven by a conditional
    /// write (an error, no change) is decided again on what storage holds, unless that is the same.
    pub(crate) async fn guaranteed_update(
        &self,
        resource: &GroupResource,
        key: &ObjectKey,
        dry_run: bool,
        updater: &mut dyn Updater,
    ) -> Result<Updated, ApiStatus> {
        let storage_key = self.cache.storage_key(key);
        let mut existing = self.cache.get(key);
        let mut proven = false;
        for _ in 0..ATTEMPTS_MAX {
            let decided = updater.update(existing.as_ref()).await;
            let stored = match (decided, &existing) {
                (Ok(Outcome::Put(stored)), existing) => {
                    let same = existing.as_ref().is_some_and(|object| is_stored_as(object, &stored.bytes));
                    if same { Ok(None) } else { Ok(Some(Outcome::Put(stored))) }
                }
                (Ok(Outcome::Delete), Some(_)) => Ok(Some(Outcome::Delete)),
                (Ok(_), _) => Ok(None),
                (Err(status), _) => Err(status),
            };
            if !proven && !matches!(stored, Ok(Some(_))) {
                let current = self.read(key, &storage_key).await?;
                proven = true;
                if current.as_ref().map(|object| object.revision) != existing.as_ref().map(|object| object.revision) {
                    existing = current;
                    continue;
                }
            }
            let Some(outcome) = stored? else {
                let object = existing.ok_or_else(|| ApiStatus::not_found(resource, &key.name))?;
                return Ok(Updated { object, change: ChangeMade::Unchanged });
            };
            if dry_run {
                return self.pretend(key, existing, outcome);
            }
            match self.write(key, &storage_key, existing, outcome).await? {
                Ok(updated) => return Ok(updated),
                Err(current) => {
                    existing = current;
                    proven = true;
                }
            }
        }
        Err(ApiStatus::conflict(resource, &key.name, OPTIMISTIC_LOCK))
    }

    /// Creates the object, or says what is there already.
    pub(crate) async fn create(
        &self,
        key: &ObjectKey,
        stored: Encoded,
        dry_run: bool,
    ) -> Result<Result<Arc<StoredObject>, Option<Arc<StoredObject>>>, ApiStatus> {
        let storage_key = self.cache.storage_key(key);
        if dry_run {
            return match self.read(key, &storage_key).await? {
                Some(existing) => Ok(Err(Some(existing))),
                None => self.pretend(key, None, Outcome::Put(stored)).map(|updated| Ok(updated.object)),
            };
        }
        let written = self.write(key, &storage_key, None, Outcome::Put(stored)).await?;
        Ok(written.map(|updated| updated.object))
    }

    /// Writes conditionally; on failure says what is there instead.
    async fn write(
        &self,
        key: &ObjectKey,
        storage_key: &str,
        existing: Option<Arc<StoredObject>>,
        outcome: Outcome,
    ) -> Result<Result<Updated, Option<Arc<StoredObject>>>, ApiStatus> {
        let storage = &self.shared.storage;
        let revision = existing.as_ref().map(|object| Revision(object.revision));
        let announced = match outcome {
            Outcome::Put(stored) => Some(self.cache.announce(key, stored)),
            Outcome::Delete | Outcome::Keep => None,
        };
        let timer = self.shared.metrics.storage_timer(&self.shared.clock);
        let (written, operation) = match &announced {
            Some(announced) => {
                let precondition = revision.map_or(Precondition::Absent, Precondition::Unchanged);
                let operation = if existing.is_some() { "update" } else { "create" };
                (storage.put(storage_key.to_owned(), announced.bytes().clone(), precondition).await, operation)
            }
            None => (storage.delete(storage_key.to_owned(), revision.unwrap_or_default()).await, "delete"),
        };
        timer.observe(operation, &self.stored);
        match written.map_err(|error| storage_status(&error))? {
            WriteOutcome::Failed(current) => {
                let current = current
                    .map(|item| self.cache.decode(key.clone(), item.mod_revision.0, &item.value).map(Arc::new))
                    .transpose()
                    .map_err(|error| ApiStatus::internal(chain(&error)))?;
                Ok(Err(current))
            }
            WriteOutcome::Done(revision) => {
                let (object, change) = match (announced, existing) {
                    (Some(announced), existing) => {
                        let change = if existing.is_some() { ChangeMade::Updated } else { ChangeMade::Created };
                        let bytes = announced.bytes().clone();
                        let object = match announced.written(revision.0) {
                            Some(object) => object,
                            None => self.object(key, revision.0, &bytes)?,
                        };
                        (object, change)
                    }
                    (None, Some(last)) => {
                        let object = crate::cache::at_revision(&last, revision.0).unwrap_or(last);
                        (object, ChangeMade::Deleted)
                    }
                    (None, None) => return Err(ApiStatus::internal("deleted an object that does not exist")),
                };
                Ok(Ok(Updated { object, change }))
            }
        }
    }

    /// What a dry run answers: the object as it would be, at the revision it has.
    fn pretend(
        &self,
        key: &ObjectKey,
        existing: Option<Arc<StoredObject>>,
        outcome: Outcome,
    ) -> Result<Updated, ApiStatus> {
        match (outcome, existing) {
            (Outcome::Put(stored), Some(existing)) => {
                let object = self.written(key, existing.revision, stored)?;
                Ok(Updated { object, change: ChangeMade::Updated })
            }
            (Outcome::Put(stored), None) => {
                let object = Arc::new(StoredObject::new(key.clone(), 0, stored.bytes, stored.selection));
                Ok(Updated { object, change: ChangeMade::Created })
            }
            (_, Some(object)) => Ok(Updated { object, change: ChangeMade::Deleted }),
            (_, None) => Err(ApiStatus::internal("deleted an object that does not exist")),
        }
    }

    fn written(&self, key: &ObjectKey, revision: u64, stored: Encoded) -> Result<Arc<StoredObject>, ApiStatus> {
        let object = self.cache.written(key.clone(), revision, stored);
        object.map(Arc::new).map_err(|error| ApiStatus::internal(chain(&error)))
    }

    fn object(&self, key: &ObjectKey, revision: u64, stored: &Bytes) -> Result<Arc<StoredObject>, ApiStatus> {
        let object = self.cache.decode(key.clone(), revision, stored);
        object.map(Arc::new).map_err(|error| ApiStatus::internal(chain(&error)))
    }

    /// The object as storage has it.
    pub(crate) async fn read(
        &self,
        key: &ObjectKey,
        storage_key: &str,
    ) -> Result<Option<Arc<StoredObject>>, ApiStatus> {
        let timer = self.shared.metrics.storage_timer(&self.shared.clock);
        let read = self.shared.storage.get(storage_key).await;
        timer.observe("get", &self.stored);
        let (found, _) = read.map_err(|error| storage_status(&error))?;
        found.map(|item| self.object(key, item.mod_revision.0, &item.value)).transpose()
    }
}

fn is_stored_as(object: &StoredObject, stored: &Bytes) -> bool {
    // Only the spliced revision may make a difference in length.
    object.json.len() > stored.len() && encode::without_revision(&object.json).is_some_and(|old| old == *stored)
}

/// What a client is told when the datastore fails.
pub(crate) fn storage_status(error: &StorageError) -> ApiStatus {
    match error {
        StorageError::TooLarge { .. } => ApiStatus::failure(Reason::Unknown, "etcdserver: request is too large"),
        StorageError::Full(_) => ApiStatus::failure(Reason::Unknown, "etcdserver: mvcc: database space exceeded"),
        StorageError::Unavailable(_) | StorageError::Closed => {
            ApiStatus::service_unavailable(chain(error).to_string()).retry_after(1)
        }
        StorageError::Unknown(_) => ApiStatus::timeout(chain(error).to_string(), 1),
        StorageError::Compacted { .. } => ApiStatus::expired("The resourceVersion for the provided list is too old."),
        other => ApiStatus::internal(chain(other)),
    }
}

/// An object that passed the schema check but not its type.
pub(crate) fn decode_status(error: &DecodeError) -> ApiStatus {
    ApiStatus::bad_request(chain(error).to_string())
}
