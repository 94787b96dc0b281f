//! Merging a patch into a document, or into another patch.

use serde_json::{Map, Value};

use crate::quote::{go_json_kind, go_print};
use crate::schema::{SchemaSet, TypeId};

use super::list::{Items, Order, arrange, identity, item_type, unique};
use super::{
    DELETE_FROM_LIST, DIRECTIVE, ELEMENT_ORDER, Error, FieldMeta, Node, Options, RETAIN_KEYS, as_list, has_directive,
    key_of, no_merge_key,
};

/// Applies `patch` to `document`, an object of type `ty`. After an error the document may be half changed.
pub fn apply(set: &SchemaSet, ty: TypeId, document: &mut Value, patch: Value) -> Result<(), Error> {
    let patch = match patch {
        Value::Object(patch) => patch,
        Value::Null => Map::new(),
        other => return Err(Error::NotAnObject(go_json_kind(&other))),
    };
    let Value::Object(document) = document else { return Err(Error::NotAnObject(go_json_kind(document))) };
    merge_map(document, patch, Node::new(set, ty), Options { into_document: true })
}

pub(super) fn merge_map(
    original: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    node: Node<'_>,
    options: Options,
) -> Result<(), Error> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => *original = patch,
            Some("delete") => original.clear(),
            _ => {
                patch.insert(DIRECTIVE.to_owned(), directive.clone());
                let (directive, map) = (go_print(&directive), go_print(&Value::Object(patch)));
                return Err(Error::Directive { directive, map });
            }
        }
        return Ok(());
    }
    retain_keys(original, &mut patch, options)?;
    set_element_orders(original, &mut patch, node, options)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM_LIST) {
            if !options.into_document {
                original.insert(key, value);
                continue;
            }
            let list = list.strip_prefix('/').ok_or(Error::PrimitiveList)?;
            delete_from_list(original, list, value);
            continue;
        }
        merge_field(original, key, value, node, options)?;
    }
    Ok(())
}

fn merge_field(
    original: &mut Map<String, Value>,
    key: String,
    value: Value,
    node: Node<'_>,
    options: Options,
) -> Result<(), Error> {
    if value.is_null() {
        original.remove(&key);
        if !options.into_document {
            original.insert(key, Value::Null);
        }
        return Ok(());
    }
    match (original.get_mut(&key), value) {
        (Some(Value::Object(current)), Value::Object(value)) => {
            let meta = node.field(&key)?;
            if meta.strategy.replace {
                *current = value;
            } else {
                merge_map(current, value, meta.node, options)?;
            }
        }
        (Some(Value::Array(current)), Value::Array(value)) => {
            let meta = node.field(&key)?;
            *current = merge_list_field(std::mem::take(current), value, meta, options)?;
        }
        (_, value) => match clean(value, options) {
            Some(value) => {
                original.insert(key, value);
            }
            None => {
                original.remove(&key);
            }
        },
    }
    Ok(())
}

/// A value that meets nothing to merge with: without directives, and in a document without nulls.
fn clean(value: Value, options: Options) -> Option<Value> {
    match value {
        Value::Object(fields) => {
            if fields.contains_key(DIRECTIVE) {
                return None;
            }
            let keep = |value: &Value| !(options.into_document && value.is_null());
            let fields = fields.into_iter().filter(|(_, value)| keep(value));
            let fields = fields.filter_map(|(key, value)| Some((key, clean(value, options)?)));
            Some(Value::Object(fields.collect()))
        }
        Value::Array(items) => Some(items.into_iter().filter_map(|item| clean(item, options)).collect()),
        other => Some(other),
    }
}

/// `$retainKeys`: every other key of the document goes; the patch may set only keys that stay.
fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    options: Options,
) -> Result<(), Error> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    if !options.into_document {
        match original.get(RETAIN_KEYS) {
            Some(known) if *known != keys => {
                return Err(Error::RetainKeysDiffer { one: go_print(known), other: go_print(&keys) });
            }
            Some(_) => {}
            None => {
                original.insert(RETAIN_KEYS.to_owned(), keys);
            }
        }
        return Ok(());
    }
    let keys: Vec<&str> = keys.as_array().ok_or(Error::RetainKeys)?.iter().filter_map(Value::as_str).collect();
    let unlisted = patch.iter().any(|(key, value)| {
        !value.is_null()
            && !key.starts_with(DELETE_FROM_LIST)
            && !key.starts_with(ELEMENT_ORDER)
            && !keys.contains(&key.as_str())
    });
    if unlisted {
        return Err(Error::RetainKeys);
    }
    original.retain(|key, _| keys.contains(&key.as_str()));
    Ok(())
}

/// Merges every list whose order the patch gives, and arranges it so.
fn set_element_orders(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    node: Node<'_>,
    options: Options,
) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(ELEMENT_ORDER)).cloned().collect();
    for directive in directives {
        let Some(order) = patch.remove(&directive) else { continue };
        if !options.into_document {
            match original.get(&directive) {
                Some(known) if *known != order => return Err(Error::ElementOrder),
                Some(_) => {}
                None => {
                    original.insert(directive.clone(), order.clone());
                }
            }
        }
        let order = as_list(order)?;
        let key = directive.strip_prefix(ELEMENT_ORDER).and_then(|key| key.strip_prefix('/'));
        let key = key.ok_or(Error::ElementOrder)?;
        let meta = node.field(key)?;
        let current = original.remove(key).map(as_list).transpose()?;
        let wanted = patch.remove(key).map(as_list).transpose()?;
        if let Some(wanted) = &wanted {
            check_order(wanted, &order, meta.merge_key)?;
        }
        let server = Order::new(current.as_deref().unwrap_or_default(), meta.merge_key);
        let merged = match (current, wanted) {
            (None, None) => continue,
            (Some(current), None) => current,
            (None, Some(wanted)) => wanted.into_iter().filter_map(|item| clean(item, options)).collect(),
            (Some(current), Some(wanted)) => merge_list_field(current, wanted, meta, options)?,
        };
        // Types are checked as merging would, also when there was nothing to merge.
        item_type([&merged, &[]])?;
        let listed = Order::new(&order, meta.merge_key);
        original.insert(key.to_owned(), Value::from(arrange(merged, &listed, &server, meta.merge_key)?));
    }
    Ok(())
}

/// The patch's items must stand in the order they are listed in.
fn check_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<(), Error> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut listed = order.iter();
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let wanted = if merge_key.is_empty() { item } else { key_of(item, merge_key)? };
        let mut found = false;
        for candidate in listed.by_ref() {
            let candidate = if merge_key.is_empty() { candidate } else { key_of(candidate, merge_key)? };
            if candidate == wanted {
                found = true;
                break;
            }
        }
        if !found {
            let print = |items: &[Value]| go_print(&Value::from(items.to_vec()));
            return Err(Error::OrderMismatch { patch: print(patch), order: print(order) });
        }
    }
    Ok(())
}

fn merge_list_field(
    original: Vec<Value>,
    patch: Vec<Value>,
    meta: FieldMeta<'_>,
    options: Options,
) -> Result<Vec<Value>, Error> {
    if meta.strategy.merge { merge_list(original, patch, meta, options) } else { Ok(patch) }
}

fn merge_list(
    original: Vec<Value>,
    patch: Vec<Value>,
    meta: FieldMeta<'_>,
    options: Options,
) -> Result<Vec<Value>, Error> {
    let Some(items) = item_type([&original, &patch])? else { return Ok(original) };
    let key = meta.merge_key;
    if items == Items::Scalars {
        let (listed, server) = (Order::new(&patch, ""), Order::new(&original, ""));
        let mut both = original;
        both.extend(patch);
        return arrange(unique(both), &listed, &server, "");
    }
    if key.is_empty() {
        return Err(Error::NoDeclaredKey(meta.node.name()));
    }
    let (original, patch) = without_directives(original, patch, key, options)?;
    let (listed, server) = (Order::new(&patch, key), Order::new(&original, key));
    let mut merged = original;
    let mut places = Order::new(&merged, key);
    for item in patch {
        let Value::Object(item) = item else { return Err(Error::Type { expected: super::GO_MAP, received: "" }) };
        let Some(value) = item.get(key) else { return Err(no_merge_key(&item, key)) };
        let place = places.find(value);
        match place.and_then(|place| merged.get_mut(place)) {
            Some(Value::Object(current)) => merge_map(current, item, meta.node, options)?,
            _ => {
                places.insert(value, merged.len());
                let item = Value::Object(item);
                // Two patches keep their directives and nulls; a document has none.
                if options.into_document { merged.extend(clean(item, options)) } else { merged.push(item) }
            }
        }
    }
    arrange(merged, &listed, &server, key)
}

/// Carries out `$patch` in list items: deletions remove from the original, `replace` anywhere makes the
/// patch's other items the whole list.
fn without_directives(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
    options: Options,
) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let mut kept = Vec::with_capacity(patch.len());
    let mut deleted = Vec::new();
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE) {
            None => kept.push(item),
            Some(_) if has_directive(&item, "delete") => {
                key_of(&item, merge_key)?;
                deleted.push(identity(&item, merge_key));
            }
            Some(_) if has_directive(&item, "replace") => replace = true,
            Some(_) if has_directive(&item, "merge") => return Err(Error::MergeDirective),
            Some(other) => {
                return Err(Error::Directive { directive: go_print(other), map: go_print(&item) });
            }
        }
    }
    if replace {
        return Ok((kept.into_iter().filter_map(|item| clean(item, options)).collect(), Vec::new()));
    }
    if !deleted.is_empty() {
        deleted.sort_unstable();
        original.retain(|item| deleted.binary_search(&identity(item, merge_key)).is_err());
    }
    Ok((original, kept))
}

/// `$deleteFromPrimitiveList/<list>`.
fn delete_from_list(original: &mut Map<String, Value>, list: &str, values: Value) {
    match (original.get_mut(list), values) {
        (_, Value::Null) => {
            original.remove(list);
        }
        (Some(Value::Array(items)), Value::Array(values)) => {
            let gone = Order::new(&values, "");
            items.retain(|item| gone.position(item, "").is_none());
        }
        _ => {}
    }
}
