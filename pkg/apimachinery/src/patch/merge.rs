//! JSON Merge Patch, RFC 7386.
//!
//! In: document and patch as trees. Out: the document changed, or a patch that changes one document into
//! another.
//! Behaves as gopkg.in/evanphx/json-patch.v4 (`MergePatch`, `CreateMergePatch`) as apiserver v1.36 uses it.

use serde_json::{Map, Value};

use crate::status::ApiStatus;

/// A merge patch that is neither an object nor an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid JSON Patch")]
pub struct BadPatch;

impl From<BadPatch> for ApiStatus {
    fn from(error: BadPatch) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// Applies `patch`: null removes a key, objects merge, everything else replaces.
pub fn apply(document: &mut Value, patch: Value) -> Result<(), BadPatch> {
    match (document, patch) {
        (Value::Object(document), Value::Object(patch)) => merge(document, patch),
        (document, mut patch @ (Value::Object(_) | Value::Array(_))) => {
            prune_nulls(&mut patch);
            *document = patch;
        }
        _ => return Err(BadPatch),
    }
    Ok(())
}

fn merge(document: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, mut value) in patch {
        match (document.get_mut(&key), value) {
            (_, Value::Null) => {
                document.remove(&key);
            }
            (Some(Value::Object(current)), Value::Object(patch)) => merge(current, patch),
            // A list over an object is taken as it is; over anything else its objects lose their nulls.
            (Some(slot @ Value::Object(_)), new) => *slot = new,
            (Some(slot), new) => {
                value = new;
                prune_nulls(&mut value);
                *slot = value;
            }
            (None, new) => {
                value = new;
                prune_nulls(&mut value);
                document.insert(key, value);
            }
        }
    }
}

/// Removes null members of objects, at any depth; nulls in lists stay.
fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(prune_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

/// The patch that turns `original` into `modified`, as far as merge patches can (they cannot set null).
pub fn create(original: &Value, modified: &Value) -> Value {
    let (Value::Object(original), Value::Object(modified)) = (original, modified) else { return modified.clone() };
    let mut patch = Map::new();
    for (key, new) in modified {
        match original.get(key) {
            Some(old) if old == new => {}
            Some(old @ Value::Object(_)) if new.is_object() => {
                patch.insert(key.clone(), create(old, new));
            }
            _ => {
                patch.insert(key.clone(), new.clone());
            }
        }
    }
    for key in original.keys().filter(|key| !modified.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn merges_as_the_rfc_says() {
        for (document, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1]), json!({"a": null, "b": 1}), json!({"b": 1})),
            (json!({"a": 1}), json!([{"a": null}]), json!([{}])),
        ] {
            let mut merged = document.clone();
            apply(&mut merged, patch.clone()).expect("an object or array");
            assert_eq!(merged, expected, "{document} + {patch}");
        }
        assert_eq!(apply(&mut json!({}), json!(null)), Err(BadPatch));
        assert_eq!(apply(&mut json!({}), json!("x")), Err(BadPatch));
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..5).prop_map(Value::from)];
        let inner = leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[abc]", inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        });
        prop::collection::btree_map("[abc]", inner, 0..4).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a_created_patch_leads_to_the_target(original in tree(), modified in tree()) {
            let mut patched = original.clone();
            apply(&mut patched, create(&original, &modified)).expect("an object");
            prop_assert_eq!(patched, modified);
        }
    }
}
