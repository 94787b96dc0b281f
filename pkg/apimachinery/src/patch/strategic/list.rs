//! Order and identity of list items, shared by applying and creating patches.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::quote::go_print;

use super::{Error, key_of};

/// What the items of merged lists are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Items {
    Objects,
    Scalars,
}

/// The one type of all items; `None` if there are none.
pub(super) fn item_type(lists: [&[Value]; 2]) -> Result<Option<Items>, Error> {
    let mut types = lists.iter().flat_map(|list| list.iter()).map(super::go_type);
    let Some(first) = types.next() else { return Ok(None) };
    if first == super::GO_LIST {
        return Err(Error::ListOfLists);
    }
    if types.any(|other| other != first) {
        let all = Value::from(vec![Value::from(lists[0].to_vec()), Value::from(lists[1].to_vec())]);
        return Err(Error::MixedList(go_print(&all)));
    }
    Ok(Some(if first == super::GO_MAP { Items::Objects } else { Items::Scalars }))
}

/// What tells an item from others: its merge key's value, or itself. JSON text, so that it hashes.
pub(super) fn identity(item: &Value, merge_key: &str) -> String {
    if merge_key.is_empty() {
        return item.to_string();
    }
    item.get(merge_key).map_or_else(String::new, Value::to_string)
}

/// Positions of items by identity; the first of equals counts.
pub(super) struct Order(HashMap<String, usize>);

impl Order {
    pub(super) fn new(items: &[Value], merge_key: &str) -> Self {
        let mut positions = HashMap::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            positions.entry(identity(item, merge_key)).or_insert(index);
        }
        Self(positions)
    }

    pub(super) fn position(&self, item: &Value, merge_key: &str) -> Option<usize> {
        self.0.get(&identity(item, merge_key)).copied()
    }

    /// Where the item with this merge key value is.
    pub(super) fn find(&self, merge_value: &Value) -> Option<usize> {
        self.0.get(&merge_value.to_string()).copied()
    }

    pub(super) fn insert(&mut self, merge_value: &Value, place: usize) {
        self.0.entry(merge_value.to_string()).or_insert(place);
    }
}

/// Sorts `items` by `order`. Items marked for deletion have no place and go last.
pub(super) fn sort_by_order(items: Vec<Value>, order: &Order, merge_key: &str) -> Vec<Value> {
    let (deleted, mut kept): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| super::has_directive(item, "delete"));
    kept.sort_by_cached_key(|item| order.position(item, merge_key).unwrap_or(usize::MAX));
    kept.extend(deleted);
    kept
}

/// Splits `merged` into what `listed` names and the rest, sorts the first as the patch wants and the rest as
/// the server had it, and interleaves: an item only the server has keeps its place before a named item that
/// followed it on the server.
pub(super) fn arrange(
    merged: Vec<Value>,
    listed: &Order,
    server: &Order,
    merge_key: &str,
) -> Result<Vec<Value>, Error> {
    if !merge_key.is_empty() {
        for item in &merged {
            key_of(item, merge_key)?;
        }
    }
    let (named, rest): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| listed.position(item, merge_key).is_some());
    let named = sort_by_order(named, listed, merge_key);
    let rest = sort_by_order(rest, server, merge_key);

    let mut out = Vec::with_capacity(named.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for item in named {
        let place = server.position(&item, merge_key);
        while let Some(next) = rest.peek() {
            let before = match (server.position(next, merge_key), place) {
                (Some(next), Some(place)) => next < place,
                _ => false,
            };
            if !before {
                break;
            }
            out.extend(rest.next());
        }
        out.push(item);
    }
    out.extend(rest);
    Ok(out)
}

/// Scalars without repetition, the first of equals kept.
pub(super) fn unique(items: Vec<Value>) -> Vec<Value> {
    let mut seen = HashSet::with_capacity(items.len());
    items.into_iter().filter(|item| seen.insert(item.to_string())).collect()
}
