//! Conversions between versions of one kind that share storage. Trees in, trees out.
//!
//! Two kinds have more than one served version: `Event` (core/v1, stored, and events.k8s.io/v1) and
//! `HorizontalPodAutoscaler` (autoscaling/v2, stored, and v1, which keeps what it has no fields for in annotations).
//! Anything else passes through with another `apiVersion`.
//!
//! **Invariant:** converting to another version and back changes nothing a client wrote.

mod autoscaler;
mod event;

use serde_json::{Map, Value};

/// The object in another version of its kind. What is not an object, or is of that version already, is
/// returned as it is.
pub fn convert(mut object: Value, group: &str, version: &str) -> Value {
    let Some(members) = object.as_object_mut() else { return object };
    let wanted = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let found = members.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if found == wanted {
        return object;
    }
    match (members.get("kind").and_then(Value::as_str), found, wanted.as_str()) {
        (Some("Event"), "v1", "events.k8s.io/v1") => event::to_events(members),
        (Some("Event"), "events.k8s.io/v1", "v1") => event::to_core(members),
        (Some("HorizontalPodAutoscaler"), "autoscaling/v2", "autoscaling/v1") => autoscaler::to_v1(members),
        (Some("HorizontalPodAutoscaler"), "autoscaling/v1", "autoscaling/v2") => autoscaler::to_v2(members),
        _ => {}
    }
    members.insert("apiVersion".to_owned(), Value::String(wanted));
    object
}

/// Whether [`convert`] does more to objects of this kind than change `apiVersion`.
pub fn has_conversion(group: &str, kind: &str) -> bool {
    matches!((group, kind), ("" | "events.k8s.io", "Event") | ("autoscaling", "HorizontalPodAutoscaler"))
}

fn rename(members: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = members.remove(from) {
        members.insert(to.to_owned(), value);
    }
}
