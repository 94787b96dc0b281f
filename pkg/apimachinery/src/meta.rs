//! `metadata` of an object held as JSON: borrowing accessors, setters, owner references, conditions.
//!
//! In: any object as `serde_json::Value`. Accessors never fail: what is absent or of the wrong type reads as
//! absent, since generic code runs on objects that the schema check has passed or will refuse.
//! Invariant: a setter given nothing (empty text, empty list, `None`) removes the field, so that an object
//! has one form.
//! Behaves as apimachinery/pkg/apis/meta/v1/unstructured and pkg/api/meta/conditions.go, v1.36.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::gvk::GroupVersionKind;
use crate::key::ObjectKey;
use crate::time;

/// Reads `metadata` and the type of an object.
pub trait Meta {
    fn root(&self) -> &Value;

    fn api_version(&self) -> &str {
        text(self.root().get("apiVersion"))
    }

    fn kind(&self) -> &str {
        text(self.root().get("kind"))
    }

    /// `None` for an `apiVersion` with more than one slash.
    fn gvk(&self) -> Option<GroupVersionKind> {
        let version = crate::gvk::GroupVersion::parse(self.api_version())?;
        Some(version.with_kind(self.kind()))
    }

    fn metadata(&self) -> Option<&Map<String, Value>> {
        self.root().get("metadata")?.as_object()
    }

    fn meta_field(&self, name: &str) -> Option<&Value> {
        self.metadata()?.get(name)
    }

    fn name(&self) -> &str {
        text(self.meta_field("name"))
    }

    fn generate_name(&self) -> &str {
        text(self.meta_field("generateName"))
    }

    fn namespace(&self) -> &str {
        text(self.meta_field("namespace"))
    }

    fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace(), self.name())
    }

    fn uid(&self) -> &str {
        text(self.meta_field("uid"))
    }

    fn resource_version(&self) -> &str {
        text(self.meta_field("resourceVersion"))
    }

    /// 0 when absent.
    fn generation(&self) -> i64 {
        self.meta_field("generation").and_then(Value::as_i64).unwrap_or(0)
    }

    fn labels(&self) -> Option<&Map<String, Value>> {
        self.meta_field("labels")?.as_object()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key)?.as_str()
    }

    fn annotations(&self) -> Option<&Map<String, Value>> {
        self.meta_field("annotations")?.as_object()
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations()?.get(key)?.as_str()
    }

    fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.meta_field("finalizers").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    }

    fn owner_references(&self) -> impl Iterator<Item = OwnerReference<'_>> {
        let references = self.meta_field("ownerReferences").and_then(Value::as_array);
        references.into_iter().flatten().map(OwnerReference::new)
    }

    /// The owner that has `controller: true`.
    fn controller(&self) -> Option<OwnerReference<'_>> {
        self.owner_references().find(|owner| owner.controller)
    }

    fn creation_timestamp(&self) -> Option<Timestamp> {
        time::parse(self.meta_field("creationTimestamp")?.as_str()?).ok()
    }

    fn deletion_timestamp(&self) -> Option<Timestamp> {
        time::parse(self.meta_field("deletionTimestamp")?.as_str()?).ok()
    }

    fn deletion_grace_period_seconds(&self) -> Option<i64> {
        self.meta_field("deletionGracePeriodSeconds")?.as_i64()
    }

    fn is_terminating(&self) -> bool {
        self.meta_field("deletionTimestamp").is_some_and(|time| !time.is_null())
    }

    fn managed_fields(&self) -> &[Value] {
        self.meta_field("managedFields").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

impl Meta for Value {
    fn root(&self) -> &Value {
        self
    }
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnerReference<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

impl<'a> OwnerReference<'a> {
    fn new(value: &'a Value) -> Self {
        let flag = |name| value.get(name).and_then(Value::as_bool).unwrap_or(false);
        Self {
            api_version: text(value.get("apiVersion")),
            kind: text(value.get("kind")),
            name: text(value.get("name")),
            uid: text(value.get("uid")),
            controller: flag("controller"),
            block_owner_deletion: flag("blockOwnerDeletion"),
        }
    }
}

/// Changes `metadata`. An object without one gets one; a root that is no object becomes one.
pub trait MetaMut: Meta {
    fn root_mut(&mut self) -> &mut Value;

    fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        object(object(self.root_mut()).entry("metadata").or_insert(Value::Null))
    }

    /// Sets a field, or removes it for null.
    fn set_meta_field(&mut self, name: &str, value: Value) {
        if value.is_null() {
            if self.metadata().is_some() {
                self.metadata_mut().remove(name);
            }
        } else {
            self.metadata_mut().insert(name.to_owned(), value);
        }
    }

    fn set_name(&mut self, name: &str) {
        self.set_meta_field("name", nonempty(name));
    }

    fn set_namespace(&mut self, namespace: &str) {
        self.set_meta_field("namespace", nonempty(namespace));
    }

    fn set_uid(&mut self, uid: &str) {
        self.set_meta_field("uid", nonempty(uid));
    }

    fn set_resource_version(&mut self, version: &str) {
        self.set_meta_field("resourceVersion", nonempty(version));
    }

    /// 0 removes it.
    fn set_generation(&mut self, generation: i64) {
        self.set_meta_field("generation", if generation == 0 { Value::Null } else { Value::from(generation) });
    }

    fn set_creation_timestamp(&mut self, at: Option<Timestamp>) {
        self.set_meta_field("creationTimestamp", at.map_or(Value::Null, |at| Value::from(time::format(at))));
    }

    fn set_deletion_timestamp(&mut self, at: Option<Timestamp>) {
        self.set_meta_field("deletionTimestamp", at.map_or(Value::Null, |at| Value::from(time::format(at))));
    }

    fn set_deletion_grace_period_seconds(&mut self, seconds: Option<i64>) {
        self.set_meta_field("deletionGracePeriodSeconds", seconds.map_or(Value::Null, Value::from));
    }

    fn set_finalizers(&mut self, finalizers: Vec<String>) {
        self.set_meta_field("finalizers", nonempty_list(finalizers.into_iter().map(Value::from).collect()));
    }

    fn set_owner_references(&mut self, references: Vec<Value>) {
        self.set_meta_field("ownerReferences", nonempty_list(references));
    }

    fn set_managed_fields(&mut self, entries: Vec<Value>) {
        self.set_meta_field("managedFields", nonempty_list(entries));
    }

    fn set_label(&mut self, key: &str, value: &str) {
        let labels = object(self.metadata_mut().entry("labels").or_insert(Value::Null));
        labels.insert(key.to_owned(), Value::from(value));
    }

    fn set_annotation(&mut self, key: &str, value: &str) {
        let annotations = object(self.metadata_mut().entry("annotations").or_insert(Value::Null));
        annotations.insert(key.to_owned(), Value::from(value));
    }

    fn remove_annotation(&mut self, key: &str) {
        if self.annotation(key).is_none() {
            return;
        }
        let metadata = self.metadata_mut();
        if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
            annotations.remove(key);
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
}

impl MetaMut for Value {
    fn root_mut(&mut self) -> &mut Value {
        self
    }
}

/// The value as an object, made one if it is not.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("the value was just made an object"),
    }
}

fn nonempty(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { Value::from(text) }
}

fn nonempty_list(items: Vec<Value>) -> Value {
    if items.is_empty() { Value::Null } else { Value::from(items) }
}

/// A condition to set; see [`set_condition`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition<'a> {
    pub kind: &'a str,
    /// `True`, `False` or `Unknown`.
    pub status: &'a str,
    pub reason: &'a str,
    pub message: &'a str,
    /// 0 for conditions without one.
    pub observed_generation: i64,
}

/// The condition of type `kind` in a list of conditions.
pub fn find_condition<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a Value> {
    conditions.iter().find(|condition| text(condition.get("type")) == kind)
}

/// Whether the condition of type `kind` has this status.
pub fn has_condition(conditions: &[Value], kind: &str, status: &str) -> bool {
    find_condition(conditions, kind).is_some_and(|condition| text(condition.get("status")) == status)
}

/// Adds or updates a condition; `lastTransitionTime` moves only with the status. Whether anything changed.
pub fn set_condition(conditions: &mut Vec<Value>, new: &Condition<'_>, now: Timestamp) -> bool {
    let found = conditions.iter_mut().find(|condition| text(condition.get("type")) == new.kind);
    let Some(Value::Object(condition)) = found else {
        let mut condition = Map::new();
        condition.insert("type".to_owned(), Value::from(new.kind));
        write_condition(&mut condition, new, now);
        conditions.retain(|condition| text(condition.get("type")) != new.kind);
        conditions.push(Value::Object(condition));
        return true;
    };
    write_condition(condition, new, now)
}

fn write_condition(condition: &mut Map<String, Value>, new: &Condition<'_>, now: Timestamp) -> bool {
    let mut changed = false;
    if text(condition.get("status")) != new.status {
        condition.insert("lastTransitionTime".to_owned(), Value::from(time::format(now)));
        changed = true;
    }
    let mut put = |name: &str, value: Value| {
        if condition.get(name) != Some(&value) {
            condition.insert(name.to_owned(), value);
            changed = true;
        }
    };
    put("status", Value::from(new.status));
    put("reason", Value::from(new.reason));
    put("message", Value::from(new.message));
    if new.observed_generation != 0 {
        put("observedGeneration", Value::from(new.observed_generation));
    }
    changed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_is_there_and_nothing_else() {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": "web", "namespace": "ns", "generation": 3, "labels": {"a": "b"},
                "finalizers": ["x", 7, "y"], "deletionTimestamp": "2024-01-01T00:00:00Z",
                "ownerReferences": [{"kind": "A", "uid": "1"}, {"kind": "B", "uid": "2", "controller": true}],
            },
        });
        assert_eq!(object.gvk().map(|gvk| gvk.to_string()).as_deref(), Some("apps/v1, Kind=ReplicaSet"));
        assert_eq!(object.key().to_string(), "ns/web");
        assert_eq!(object.finalizers().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(object.controller().map(|owner| owner.kind), Some("B"));
        assert!(object.is_terminating() && object.creation_timestamp().is_none());
        for hostile in
            [json!(null), json!([]), json!({"metadata": []}), json!({"metadata": {"name": 1, "labels": "x"}})]
        {
            assert_eq!((hostile.name(), hostile.labels(), hostile.managed_fields().len()), ("", None, 0));
        }
    }

    #[test]
    fn setting_nothing_removes() {
        let mut object = json!({"metadata": {"name": "a", "annotations": {"k": "v"}, "generation": 1}});
        object.remove_annotation("k");
        object.set_generation(0);
        object.set_finalizers(Vec::new());
        object.set_label("l", "1");
        assert_eq!(object, json!({"metadata": {"name": "a", "labels": {"l": "1"}}}));
        let mut empty = json!(null);
        empty.set_resource_version("");
        assert_eq!(empty, json!(null));
    }

    #[test]
    fn transition_time_moves_with_the_status() {
        let at = |text: &str| time::parse(text).expect("valid");
        let mut conditions = Vec::new();
        let ready = Condition { kind: "Ready", status: "True", reason: "R", message: "", observed_generation: 0 };
        assert!(set_condition(&mut conditions, &ready, at("2024-01-01T00:00:00Z")));
        assert!(!set_condition(&mut conditions, &ready, at("2024-01-02T00:00:00Z")));
        assert!(set_condition(&mut conditions, &Condition { reason: "S", ..ready }, at("2024-01-03T00:00:00Z")));
        assert_eq!(conditions[0]["lastTransitionTime"], "2024-01-01T00:00:00Z");
        assert!(set_condition(&mut conditions, &Condition { status: "False", ..ready }, at("2024-01-04T00:00:00Z")));
        assert_eq!(conditions[0]["lastTransitionTime"], "2024-01-04T00:00:00Z");
        assert!(has_condition(&conditions, "Ready", "False"));
    }
}
