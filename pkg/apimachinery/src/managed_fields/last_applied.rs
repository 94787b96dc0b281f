//! Objects that `kubectl apply` has managed from the client's side: the first server-side apply by kubectl
//! may take over what the annotation says it applied, and keeps the annotation current so that the client's
//! side can go on.
//!
//! Behaves as apimachinery/pkg/util/managedfields/internal/lastapplied*.go, v1.36.

use serde_json::Value;

use crate::meta::{Meta, MetaMut};
use crate::quote::go_json;

use super::set::Set;
use super::types::Types;
use super::{Conflict, FieldManager};

/// The manager name of kubectl's server-side apply.
pub(super) const KUBECTL: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// All annotations of an object together.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// Conflicts about other fields than those kubectl applied from the client's side and nobody changed since.
pub(super) fn without_own(manager: &FieldManager<'_>, live: &Value, conflicts: Vec<Conflict>) -> Vec<Conflict> {
    let Some(own) = own_fields(manager, live) else { return conflicts };
    conflicts.into_iter().filter(|conflict| !own.has(&conflict.path)).collect()
}

fn own_fields(manager: &FieldManager<'_>, live: &Value) -> Option<Set> {
    let applied: Value = serde_json::from_str(live.annotation(ANNOTATION)?).ok()?;
    if applied.api_version() != manager.gvk.api_version() {
        return None;
    }
    let types = Types(manager.schemas);
    let root = types.get(manager.ty);
    if !types.validate(&applied, root, false).is_empty() {
        return None;
    }
    let changed = types.compare(&applied, live, root);
    let set = types.field_set(&applied, root);
    Some(set.difference(&changed.modified).difference(&changed.added).difference(&changed.removed))
}

/// Puts what was applied into the annotation of an object that has one.
pub(super) fn refresh(object: &mut Value, applied: &Value) {
    if object.annotation(ANNOTATION).is_none_or(str::is_empty) {
        return;
    }
    let mut applied = applied.clone();
    if let Some(Value::Object(annotations)) = applied.metadata_mut().get_mut("annotations") {
        annotations.remove(ANNOTATION);
    }
    // Go's encoder ends with a line feed.
    object.set_annotation(ANNOTATION, &format!("{}\n", go_json(&applied)));
    let size: usize = object
        .annotations()
        .into_iter()
        .flatten()
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if size > ANNOTATIONS_MAX_BYTES {
        object.remove_annotation(ANNOTATION);
    }
}
