//! Creating patches: what `kubectl apply` and `kubectl edit` send.

use serde_json::{Map, Value, json};

use crate::quote::go_print;
use crate::schema::{SchemaSet, TypeId};

use super::apply::merge_map;
use super::list::{Items, Order, item_type, sort_by_order, unique};
use super::{DELETE_FROM_LIST, DIRECTIVE, ELEMENT_ORDER, Error, FieldMeta, Node, Options, RETAIN_KEYS, key_of};

/// Which differences a patch is made of.
#[derive(Clone, Copy)]
struct DiffOptions {
    changes: bool,
    deletions: bool,
    element_order: bool,
    retain_keys: bool,
}

/// The patch that turns `original` into `modified`.
pub fn create(set: &SchemaSet, ty: TypeId, original: &Value, modified: &Value) -> Result<Value, Error> {
    let options = DiffOptions { changes: true, deletions: true, element_order: true, retain_keys: false };
    let patch = diff_maps(object(original)?, object(modified)?, Node::new(set, ty), options)?;
    Ok(Value::Object(patch))
}

/// The patch that brings `current` to `modified`, removing only what `original` (the last applied
/// configuration) had. Without `overwrite`, changes others made to the same fields are a conflict.
pub fn create_three_way(
    set: &SchemaSet,
    ty: TypeId,
    original: &Value,
    modified: &Value,
    current: &Value,
    overwrite: bool,
) -> Result<Value, Error> {
    let node = Node::new(set, ty);
    let (original, modified, current) = (object(original)?, object(modified)?, object(current)?);
    let both = DiffOptions { changes: true, deletions: true, element_order: true, retain_keys: false };
    let delta = diff_maps(current, modified, node, DiffOptions { deletions: false, ..both })?;
    let mut patch = diff_maps(original, modified, node, DiffOptions { changes: false, ..both })?;
    merge_map(&mut patch, delta, node, Options { into_document: false })?;
    if !overwrite {
        let changed = diff_maps(original, current, node, DiffOptions { element_order: false, ..both })?;
        if maps_conflict(&patch, &changed, node)? {
            let print = |map: Map<String, Value>| go_print(&Value::Object(map));
            return Err(Error::Conflict { patch: print(patch), changed: print(changed) });
        }
    }
    Ok(Value::Object(patch))
}

fn object(value: &Value) -> Result<&Map<String, Value>, Error> {
    value.as_object().ok_or_else(|| Error::NotAnObject(crate::quote::go_json_kind(value)))
}

fn diff_maps(
    original: &Map<String, Value>,
    modified: &Map<String, Value>,
    node: Node<'_>,
    options: DiffOptions,
) -> Result<Map<String, Value>, Error> {
    let mut patch = Map::new();
    for (key, new) in modified {
        match (original.get(key), new) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let meta = match node.field(key) {
                    Err(_) if old == new => continue,
                    meta => meta?,
                };
                if meta.strategy.replace {
                    if options.changes && old != new {
                        patch.insert(key.clone(), Value::Object(new.clone()));
                    }
                    continue;
                }
                let options = DiffOptions { retain_keys: meta.strategy.retain_keys, ..options };
                let inner = diff_maps(old, new, meta.node, options)?;
                if !inner.is_empty() {
                    patch.insert(key.clone(), Value::Object(inner));
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                if old != new {
                    diff_list_field(key, old, new, node.field(key)?, options, &mut patch)?;
                }
            }
            (Some(old), new) if old == new => {}
            (_, new) => {
                if options.changes {
                    patch.insert(key.clone(), new.clone());
                }
            }
        }
    }
    let gone: Vec<&String> = original.keys().filter(|key| !modified.contains_key(*key)).collect();
    if options.deletions {
        for key in &gone {
            patch.insert((*key).clone(), Value::Null);
        }
    }
    if options.retain_keys {
        let mut keys: Vec<&String> =
            modified.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key).collect();
        let lost = gone.iter().any(|key| original.get(*key).is_some_and(|value| !value.is_null()));
        if !keys.is_empty() && (!patch.is_empty() || lost) {
            keys.sort_unstable();
            patch.insert(RETAIN_KEYS.to_owned(), json!(keys));
        }
    }
    Ok(patch)
}

fn diff_list_field(
    key: &str,
    original: &[Value],
    modified: &[Value],
    meta: FieldMeta<'_>,
    options: DiffOptions,
    patch: &mut Map<String, Value>,
) -> Result<(), Error> {
    if !meta.strategy.merge {
        if options.changes {
            patch.insert(key.to_owned(), Value::from(modified.to_vec()));
        }
        return Ok(());
    }
    let options = DiffOptions { retain_keys: meta.strategy.retain_keys, ..options };
    if original.is_empty() {
        if !modified.is_empty() && options.changes {
            patch.insert(key.to_owned(), Value::from(modified.to_vec()));
        }
        return Ok(());
    }
    let mut put = |key: String, items: Vec<Value>| {
        if !items.is_empty() {
            patch.insert(key, Value::from(items));
        }
    };
    match item_type([original, modified])? {
        Some(Items::Objects) => {
            let (changed, deleted) = diff_objects(original, modified, meta, options)?;
            let same_order = original.len() == modified.len()
                && original.iter().zip(modified).all(|(a, b)| a.get(meta.merge_key) == b.get(meta.merge_key));
            let mut items = sort_by_order(changed, &Order::new(modified, meta.merge_key), meta.merge_key);
            items.extend(deleted);
            let ordered = options.element_order
                && ((options.changes && (!items.is_empty() || !same_order))
                    || (options.deletions && !items.is_empty()));
            put(key.to_owned(), items);
            if ordered {
                let keys = modified.iter().map(|item| Ok(json!({meta.merge_key: key_of(item, meta.merge_key)?})));
                put(format!("{ELEMENT_ORDER}/{key}"), keys.collect::<Result<_, Error>>()?);
            }
        }
        Some(Items::Scalars) => {
            let (old, new) = (Order::new(original, ""), Order::new(modified, ""));
            let absent = |items: &[Value], from: &Order| -> Vec<Value> {
                items.iter().filter(|item| from.position(item, "").is_none()).cloned().collect()
            };
            let added = if options.changes { absent(modified, &old) } else { Vec::new() };
            let deleted = if options.deletions { unique(absent(original, &new)) } else { Vec::new() };
            let ordered = options.element_order && ((options.deletions && !deleted.is_empty()) || options.changes);
            put(key.to_owned(), added);
            put(format!("{DELETE_FROM_LIST}/{key}"), deleted);
            if ordered {
                put(format!("{ELEMENT_ORDER}/{key}"), modified.to_vec());
            }
        }
        None => {}
    }
    Ok(())
}

/// Changed or added items, and deletions of items that are gone.
fn diff_objects(
    original: &[Value],
    modified: &[Value],
    meta: FieldMeta<'_>,
    options: DiffOptions,
) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let key = meta.merge_key;
    let (old, new) = (Order::new(original, key), Order::new(modified, key));
    let mut changed = Vec::new();
    for item in modified {
        let value = key_of(item, key)?;
        match old.find(value).and_then(|place| original.get(place)) {
            Some(before) => {
                let mut patch = diff_maps(object(before)?, object(item)?, meta.node, options)?;
                if !patch.is_empty() {
                    patch.insert(key.to_owned(), value.clone());
                    changed.push(Value::Object(patch));
                }
            }
            None if options.changes => changed.push(item.clone()),
            None => {}
        }
    }
    let mut deleted = Vec::new();
    for item in original {
        let value = key_of(item, key)?;
        if options.deletions && new.find(value).is_none() {
            deleted.push(json!({key: value, DIRECTIVE: "delete"}));
        }
    }
    deleted.sort_by_cached_key(|item| item.get(key).map(go_print));
    Ok((changed, deleted))
}

/// Whether two patches would change the same thing differently.
fn maps_conflict(left: &Map<String, Value>, right: &Map<String, Value>, node: Node<'_>) -> Result<bool, Error> {
    for (key, one) in left.iter().filter(|(key, _)| *key != DIRECTIVE && *key != RETAIN_KEYS) {
        let Some(other) = right.get(key) else { continue };
        let conflict = match (one, other) {
            (Value::Object(one), Value::Object(other)) => {
                let meta = node.field(key)?;
                one.get(DIRECTIVE) != other.get(DIRECTIVE)
                    || (!meta.strategy.replace && maps_conflict(one, other, meta.node)?)
            }
            (Value::Array(one), Value::Array(other)) if !key.starts_with('$') => {
                lists_conflict(one, other, node.field(key)?)?
            }
            (one, other) => one != other,
        };
        if conflict {
            return Ok(true);
        }
    }
    Ok(false)
}

fn lists_conflict(left: &[Value], right: &[Value], meta: FieldMeta<'_>) -> Result<bool, Error> {
    let items = item_type([left, right])?;
    if !meta.strategy.merge {
        return Ok(if items == Some(Items::Scalars) {
            let sorted = |list: &[Value]| {
                let mut texts: Vec<String> = list.iter().map(Value::to_string).collect();
                texts.sort_unstable();
                texts
            };
            sorted(left) != sorted(right)
        } else {
            left != right
        });
    }
    if items != Some(Items::Objects) {
        return Ok(false);
    }
    let places = Order::new(right, meta.merge_key);
    for one in left {
        let value = key_of(one, meta.merge_key)?;
        let Some(other) = places.find(value).and_then(|place| right.get(place)) else { continue };
        if let (Value::Object(one), Value::Object(other)) = (one, other)
            && (one.get(DIRECTIVE) != other.get(DIRECTIVE) || maps_conflict(one, other, meta.node)?)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
