//! The policy that needs nothing of a kind but its outer shape: metadata, a status, and the rest, which is what
//! somebody wants. Custom resources build on it.
//!
//! Behaves as `apiextensions-apiserver/pkg/registry/customresource/{strategy,status_strategy}.go` without
//! its schemas, v1.36.

use rkube_api::StoredObject;
use rkube_api::draft::Draft;
use rkube_api::kind::DecodeError;
use rkube_apimachinery::meta::{Meta, MetaMut};
use serde_json::Value;

use super::{ResetFields, Strategy, StrategyContext};

/// Clients set everything but the status, which has a subresource of its own if `has_status`.
pub struct GenericStrategy {
    pub has_status: bool,
    pub allow_unconditional_update: bool,
}

/// Clients set the status only.
pub struct GenericStatusStrategy {
    pub allow_unconditional_update: bool,
}

impl Strategy for GenericStrategy {
    fn prepare_for_create(&self, _: &StrategyContext<'_>, object: &mut Draft) -> Result<(), DecodeError> {
        let object = object.value();
        if self.has_status {
            remove(object, "status");
        }
        object.set_generation(1);
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext<'_>,
        new: &mut Draft,
        old: &StoredObject,
    ) -> Result<(), DecodeError> {
        let new = new.value();
        let old = tree(old);
        if self.has_status {
            copy(&old, new, "status");
        }
        if wanted(new, self.has_status) != wanted(&old, self.has_status) {
            new.set_generation(old.generation().saturating_add(1));
        }
        Ok(())
    }

    fn allow_unconditional_update(&self) -> bool {
        self.allow_unconditional_update
    }

    fn reset_fields(&self) -> ResetFields {
        if self.has_status { &[&["status"]] } else { &[] }
    }
}

impl Strategy for GenericStatusStrategy {
    /// Everything but the status stays as it is, of the metadata all but the managed fields.
    fn prepare_for_update(
        &self,
        _: &StrategyContext<'_>,
        new: &mut Draft,
        old: &StoredObject,
    ) -> Result<(), DecodeError> {
        let new = new.value();
        let mut kept = tree(old);
        let managed = new.managed_fields().to_vec();
        kept.set_managed_fields(managed);
        copy(new, &mut kept, "status");
        *new = kept;
        Ok(())
    }

    fn allow_unconditional_update(&self) -> bool {
        self.allow_unconditional_update
    }

    fn reset_fields(&self) -> ResetFields {
        &[&["spec"], &["metadata"]]
    }
}

/// Stored objects are JSON; one that is not has been refused before it got here.
fn tree(object: &StoredObject) -> Value {
    object.value().unwrap_or_default()
}

fn remove(object: &mut Value, member: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(member);
    }
}

fn copy(from: &Value, to: &mut Value, member: &str) {
    match (from.get(member), to.as_object_mut()) {
        (Some(value), Some(to)) => {
            to.insert(member.to_owned(), value.clone());
        }
        (None, Some(to)) => {
            to.remove(member);
        }
        (_, None) => {}
    }
}

/// What counts as a change of intent: everything but metadata and status.
fn wanted(object: &Value, has_status: bool) -> Vec<(&String, &Value)> {
    let ignored = |name: &str| name == "metadata" || has_status && name == "status";
    object.as_object().into_iter().flatten().filter(|(name, _)| !ignored(name)).collect()
}
