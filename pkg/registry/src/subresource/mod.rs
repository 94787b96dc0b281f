//! Subresources that are not the object itself with another policy: a scale, a binding, an eviction, a token.

mod binding;
mod eviction;
pub(crate) mod scale;
pub(crate) mod token;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::StoredObject;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::gvk::GroupResource;
use rkube_apimachinery::status::ApiStatus;
use serde_json::Value;

use crate::options::Preconditions;
use crate::store::core::{Core, Outcome, Updater};

/// A change by the server itself, past strategies and admission, as upstream makes it for these subresources. The
/// owners of fields stay as they are and are not shown to `change`.
struct Raw<'a, F> {
    core: &'a Core,
    resource: &'a GroupResource,
    name: &'a str,
    preconditions: Option<&'a Preconditions>,
    change: F,
}

impl<F> Updater for Raw<'_, F>
where
    F: FnMut(&mut Value) -> Result<(), ApiStatus> + Send,
{
    fn update<'a>(&'a mut self, existing: Option<&'a Arc<StoredObject>>) -> BoxFuture<'a, Result<Outcome, ApiStatus>> {
        Box::pin(std::future::ready(self.attempt(existing)))
    }
}

impl<F> Raw<'_, F>
where
    F: FnMut(&mut Value) -> Result<(), ApiStatus> + Send,
{
    fn attempt(&mut self, existing: Option<&Arc<StoredObject>>) -> Result<Outcome, ApiStatus> {
        let existing = existing.ok_or_else(|| ApiStatus::not_found(self.resource, self.name))?;
        if let Some(preconditions) = self.preconditions {
            check(preconditions, existing, self.resource, self.name)?;
        }
        let (mut value, owners) = existing
            .value_beside_owners()
            .map_err(|error| ApiStatus::internal(format!("reading {}: {error}", existing.key)))?;
        (self.change)(&mut value)?;
        let encoded = self.core.cache.encode_with_owners(&mut value, owners.as_deref());
        encoded.map(Outcome::Put).map_err(|error| ApiStatus::internal(chain(&error)))
    }
}

/// The object must be the one, in the version, that the request means.
pub(crate) fn check(
    preconditions: &Preconditions,
    existing: &StoredObject,
    resource: &GroupResource,
    name: &str,
) -> Result<(), ApiStatus> {
    let failed = |what: &str, wanted: &str, found: &str| {
        let text = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        Err(ApiStatus::conflict(resource, name, &text))
    };
    if let Some(uid) = &preconditions.uid
        && *uid != existing.selection.uid
    {
        return failed("UID", uid, &existing.selection.uid);
    }
    let revision = existing.revision.to_string();
    match &preconditions.resource_version {
        Some(version) if *version != revision => failed("ResourceVersion", version, &revision),
        _ => Ok(()),
    }
}

fn invalid_object() -> ApiStatus {
    ApiStatus::bad_request("the body is not an object")
}

/// The object at `member`, made if it is not there.
fn member<'a>(object: &'a mut Value, name: &str) -> Result<&'a mut serde_json::Map<String, Value>, ApiStatus> {
    let object = object.as_object_mut().ok_or_else(invalid_object)?;
    let member = object.entry(name).or_insert(Value::Null);
    if member.is_null() {
        *member = Value::Object(serde_json::Map::new());
    }
    member.as_object_mut().ok_or_else(invalid_object)
}

/// Sets a condition of a pod.
fn set_pod_condition(
    pod: &mut Value,
    condition: &rkube_apimachinery::meta::Condition<'_>,
    now: jiff::Timestamp,
) -> Result<(), ApiStatus> {
    let status = member(pod, "status")?;
    let conditions = status.entry("conditions").or_insert(Value::Null);
    if conditions.is_null() {
        *conditions = Value::Array(Vec::new());
    }
    let conditions = conditions.as_array_mut().ok_or_else(invalid_object)?;
    rkube_apimachinery::meta::set_condition(conditions, condition, now);
    // Conditions of pods, unlike those of newer kinds, leave out what is empty.
    for known in conditions.iter_mut().filter_map(Value::as_object_mut) {
        known.retain(|field, value| !matches!(field.as_str(), "reason" | "message") || value != "");
    }
    Ok(())
}
