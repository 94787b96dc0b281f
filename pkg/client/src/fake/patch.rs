//! Patches as far as controllers send them. The server's own algorithms are in apimachinery; this one has
//! no schema and knows the merge keys of the lists that controllers touch.

use rkube_apimachinery::status::ApiStatus;
use serde_json::{Map, Value};

/// The field that identifies an item of the list `name`, in strategic merge patches.
fn merge_key(name: &str) -> Option<&'static str> {
    match name {
        "ownerReferences" => Some("uid"),
        "conditions" | "addresses" => Some("type"),
        "containers" | "initContainers" | "env" | "volumes" | "imagePullSecrets" | "secrets" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        _ => None,
    }
}

/// RFC 7386.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = as_object(target);
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// Strategic merge, with directives for deleting.
pub(super) fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = as_object(target);
    if patch.get("$patch").and_then(Value::as_str) == Some("replace") {
        target.clear();
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value.as_array().cloned().unwrap_or_default();
            if let Some(items) = target.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| !gone.contains(item));
            }
        } else if name.starts_with('$') {
            // Order and retained keys do not matter to controllers.
        } else if value.is_null() {
            target.remove(name);
        } else if let (Some(key), Some(changes)) = (merge_key(name), value.as_array()) {
            merge_list(target.entry(name).or_insert(Value::Null), key, changes);
        } else if let ("finalizers", Some(added)) = (name.as_str(), value.as_array()) {
            let items = as_array(target.entry(name).or_insert(Value::Null));
            for item in added {
                if !items.contains(item) {
                    items.push(item.clone());
                }
            }
        } else {
            strategic(target.entry(name).or_insert(Value::Null), value);
        }
    }
    target.retain(|_, value| !value.as_array().is_some_and(Vec::is_empty));
}

fn merge_list(target: &mut Value, key: &str, changes: &[Value]) {
    let items = as_array(target);
    for change in changes {
        let found = items.iter().position(|item| item.get(key) == change.get(key));
        let deletes = change.get("$patch").and_then(Value::as_str) == Some("delete");
        match (found, deletes) {
            (Some(index), true) => drop(items.remove(index)),
            (Some(index), false) => strategic(&mut items[index], change),
            (None, true) => {}
            (None, false) => items.push(change.clone()),
        }
    }
}

/// RFC 6902: add, remove, replace, test.
pub(super) fn json(target: &mut Value, operations: &Value) -> Result<(), ApiStatus> {
    for operation in operations.as_array().into_iter().flatten() {
        let path = operation["path"].as_str().unwrap_or_default();
        let value = operation.get("value").cloned().unwrap_or_default();
        let failed = || ApiStatus::bad_request(format!("the operation on {path} failed"));
        match operation["op"].as_str() {
            Some("test") => {
                if target.pointer(path).unwrap_or(&Value::Null) != &value {
                    let text = "the server rejected our request due to an error in our request";
                    let reason = rkube_apimachinery::status::Reason::Invalid;
                    return Err(ApiStatus::failure(reason, text));
                }
            }
            Some(op @ ("add" | "replace" | "remove")) => {
                let (parent, last) = path.rsplit_once('/').ok_or_else(failed)?;
                let last = last.replace("~1", "/").replace("~0", "~");
                match target.pointer_mut(parent).ok_or_else(failed)? {
                    Value::Object(fields) if op == "remove" => drop(fields.remove(&last).ok_or_else(failed)?),
                    Value::Object(fields) => drop(fields.insert(last, value)),
                    Value::Array(items) if op == "add" && last == "-" => items.push(value),
                    Value::Array(items) => {
                        let index: usize = last.parse().map_err(|_| failed())?;
                        match op {
                            "add" if index <= items.len() => items.insert(index, value),
                            "replace" if index < items.len() => items[index] = value,
                            "remove" if index < items.len() => drop(items.remove(index)),
                            _ => return Err(failed()),
                        }
                    }
                    _ => return Err(failed()),
                }
            }
            _ => return Err(failed()),
        }
    }
    Ok(())
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was just made an object")
}

fn as_array(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("it was just made an array")
}
