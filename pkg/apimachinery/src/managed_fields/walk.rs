//! The four walks over typed values: which fields a value sets, how two values differ, what two values make
//! together, and what is left of one without some fields.
//!
//! Behaves as structured-merge-diff v6, typed/{tofieldset,compare,merge,remove,reconcile_schema}.go.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::schema::List;

use super::set::{PathElement, Set, compare_values};
use super::types::{Type, Types};

/// Fields that differ between two values.
#[derive(Clone, Debug, Default)]
pub(super) struct Comparison {
    pub(super) removed: Set,
    pub(super) modified: Set,
    pub(super) added: Set,
}

impl Comparison {
    pub(super) fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }
}

/// A comparison of one node: of what is below it, and whether the node itself is among the differences.
#[derive(Default)]
struct Difference {
    below: Comparison,
    removed: bool,
    modified: bool,
    added: bool,
}

impl Difference {
    fn attach_to(self, parent: &mut Comparison, element: impl Fn() -> PathElement) {
        let put = |set: &mut Set, member: bool, below: Set| {
            if member || !below.is_empty() {
                set.attach(element(), member, below);
            }
        };
        put(&mut parent.removed, self.removed, self.below.removed);
        put(&mut parent.modified, self.modified, self.below.modified);
        put(&mut parent.added, self.added, self.below.added);
    }
}

fn list(value: Option<&Value>) -> Option<&Vec<Value>> {
    value.and_then(Value::as_array)
}

fn map(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// Equality in which numbers compare by value.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || compare_values(a, b).is_eq()
}

impl<'s> Types<'s> {
    /// The fields a value sets.
    pub(super) fn field_set(self, value: &Value, ty: Type<'s>) -> Set {
        self.fields_below(value, ty).0
    }

    /// The fields below a node, and whether the node is one itself.
    fn fields_below(self, value: &Value, ty: Type<'s>) -> (Set, bool) {
        let ty = ty.of(Some(value));
        let mut set = Set::new();
        if matches!(ty, Type::Scalar(_)) || ty.is_atomic() {
            return (set, true);
        }
        match (ty, value) {
            (Type::List(list), Value::Array(items)) => {
                let elements: Vec<Option<PathElement>> =
                    items.iter().map(|item| self.item_element(list, item).ok()).collect();
                let (mut seen, mut repeated) = (BTreeSet::new(), BTreeSet::new());
                for element in elements.iter().flatten() {
                    if !seen.insert(element) {
                        repeated.insert(element);
                    }
                }
                for (element, item) in elements.iter().zip(items) {
                    let Some(element) = element else { continue };
                    if repeated.contains(element) {
                        set.attach(element.clone(), true, Set::new());
                    } else {
                        set.attach(element.clone(), true, self.fields_below(item, self.item(list)).0);
                    }
                }
            }
            (_, Value::Object(fields)) => {
                for (key, value) in fields {
                    let (below, member) = self.fields_below(value, self.child(ty, key));
                    let hollow = match value {
                        Value::Null => true,
                        Value::Object(fields) => fields.is_empty(),
                        _ => false,
                    };
                    let member = member || hollow || !ty.declares(key);
                    if member || !below.is_empty() {
                        set.attach(PathElement::field(key), member, below);
                    }
                }
            }
            _ => {}
        }
        (set, false)
    }

    /// How `rhs` differs from `lhs`.
    pub(super) fn compare(self, lhs: &Value, rhs: &Value, ty: Type<'s>) -> Comparison {
        self.difference(Some(lhs), Some(rhs), ty).below
    }

    fn difference(self, lhs: Option<&Value>, rhs: Option<&Value>, ty: Type<'s>) -> Difference {
        let (left, right) = (ty.of(lhs), ty.of(rhs));
        let mut out = Difference::default();
        let leaf = if rhs.is_none() {
            self.compare_as(lhs, rhs, left, &mut out)
        } else if lhs.is_none() || left.same(right) {
            self.compare_as(lhs, rhs, right, &mut out)
        } else {
            self.compare_as(lhs, rhs, left, &mut out);
            self.compare_as(lhs, rhs, right, &mut out)
        };
        if !leaf {
            out.added |= lhs.is_none();
            out.removed |= rhs.is_none();
        }
        out
    }

    /// Compares as one type; whether the node was compared as a whole.
    fn compare_as(self, lhs: Option<&Value>, rhs: Option<&Value>, ty: Type<'s>, out: &mut Difference) -> bool {
        match ty {
            Type::List(items) if !ty.is_atomic() => {
                let (left, right) = (list(lhs), list(rhs));
                if left.is_some_and(|list| !list.is_empty()) || right.is_some_and(|list| !list.is_empty()) {
                    if left != right {
                        self.compare_items(items, left, right, &mut out.below);
                    }
                    return false;
                }
            }
            Type::Object(_) | Type::Map(_) | Type::AnyObject if !ty.is_atomic() => {
                let (left, right) = (map(lhs), map(rhs));
                if left.is_some_and(|map| !map.is_empty()) || right.is_some_and(|map| !map.is_empty()) {
                    self.compare_fields(ty, left, right, &mut out.below);
                    return false;
                }
            }
            _ => {}
        }
        match (lhs, rhs) {
            (None, _) => out.added = true,
            (_, None) => out.removed = true,
            (Some(lhs), Some(rhs)) => out.modified |= !equal(lhs, rhs),
        }
        true
    }

    fn compare_fields(
        self,
        ty: Type<'s>,
        left: Option<&Map<String, Value>>,
        right: Option<&Map<String, Value>>,
        out: &mut Comparison,
    ) {
        for (key, old) in left.into_iter().flatten() {
            let new = right.and_then(|right| right.get(key));
            self.difference(Some(old), new, self.child(ty, key)).attach_to(out, || PathElement::field(key));
        }
        for (key, new) in right.into_iter().flatten() {
            if left.is_none_or(|left| !left.contains_key(key)) {
                self.difference(None, Some(new), self.child(ty, key)).attach_to(out, || PathElement::field(key));
            }
        }
    }

    fn compare_items(
        self,
        list: &'s List,
        left: Option<&Vec<Value>>,
        right: Option<&Vec<Value>>,
        out: &mut Comparison,
    ) {
        let mut items: BTreeMap<PathElement, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
        for item in left.into_iter().flatten() {
            if let Ok(element) = self.item_element(list, item) {
                items.entry(element).or_default().0.push(item);
            }
        }
        for item in right.into_iter().flatten() {
            if let Ok(element) = self.item_element(list, item) {
                items.entry(element).or_default().1.push(item);
            }
        }
        let ty = self.item(list);
        for (element, (old, new)) in items {
            let mut difference = match (old.as_slice(), new.as_slice()) {
                ([] | [_], [] | [_]) => self.difference(old.first().copied(), new.first().copied(), ty),
                ([_, _, ..], [_, _, ..]) => {
                    let same = old.len() == new.len() && old.iter().zip(&new).all(|(a, b)| equal(a, b));
                    Difference { modified: !same, ..Difference::default() }
                }
                ([_, _, ..], [new]) => self.difference(None, Some(new), ty),
                ([old], [_, _, ..]) => self.difference(Some(old), None, ty),
                _ => Difference::default(),
            };
            // An item that is repeated on one side only is as a whole not what it was.
            difference.removed |= old.len() >= 2 && new.len() < 2;
            difference.added |= new.len() >= 2 && old.len() < 2;
            difference.attach_to(out, || element.clone());
        }
    }

    /// `lhs` with everything `rhs` sets.
    pub(super) fn merge(self, lhs: &Value, rhs: &Value, ty: Type<'s>) -> Value {
        self.merged(Some(lhs), Some(rhs), ty).unwrap_or_default()
    }

    fn merged(self, lhs: Option<&Value>, rhs: Option<&Value>, ty: Type<'s>) -> Option<Value> {
        let ty = if rhs.is_none() { ty.of(lhs) } else { ty.of(rhs) };
        match ty {
            Type::List(items) if !ty.is_atomic() => {
                let (left, right) = (list(lhs), list(rhs));
                if left.is_some_and(|list| !list.is_empty()) || right.is_some_and(|list| !list.is_empty()) {
                    let empty = Vec::new();
                    let merged = self.merge_items(items, left.unwrap_or(&empty), right.unwrap_or(&empty));
                    return (!merged.is_empty()).then(|| Value::from(merged));
                }
            }
            Type::Object(_) | Type::Map(_) | Type::AnyObject if !ty.is_atomic() => {
                let (left, right) = (map(lhs), map(rhs));
                if left.is_some_and(|map| !map.is_empty()) || right.is_some_and(|map| !map.is_empty()) {
                    let mut out = Map::new();
                    for (key, old) in left.into_iter().flatten() {
                        let new = right.and_then(|right| right.get(key));
                        if let Some(value) = self.merged(Some(old), new, self.child(ty, key)) {
                            out.insert(key.clone(), value);
                        }
                    }
                    for (key, new) in right.into_iter().flatten() {
                        if left.is_none_or(|left| !left.contains_key(key))
                            && let Some(value) = self.merged(None, Some(new), self.child(ty, key))
                        {
                            out.insert(key.clone(), value);
                        }
                    }
                    return (!out.is_empty()).then_some(Value::Object(out));
                }
            }
            _ => {}
        }
        rhs.or(lhs).cloned()
    }

    /// Items of both lists. Those both have come in the order of `right`; those only `left` has keep their
    /// places relative to their neighbours.
    fn merge_items(self, list: &'s List, left: &[Value], right: &[Value]) -> Vec<Value> {
        let index = |items: &[Value]| -> Vec<PathElement> {
            items.iter().filter_map(|item| self.item_element(list, item).ok()).collect()
        };
        let (left_elements, right_elements) = (index(left), index(right));
        // Items without an identity were refused when the value was validated.
        if left_elements.len() != left.len() || right_elements.len() != right.len() {
            return right.to_vec();
        }
        let mut old: BTreeMap<&PathElement, Option<&Value>> = BTreeMap::new();
        for (element, item) in left_elements.iter().zip(left) {
            // A repeated item has no single old value to merge with.
            old.entry(element).and_modify(|value| *value = None).or_insert(Some(item));
        }
        let new: BTreeMap<&PathElement, &Value> = right_elements.iter().zip(right).collect();
        let mut shared = right_elements.iter().filter(|element| old.contains_key(element));
        let mut next_shared = shared.next();
        let mut done: BTreeSet<&PathElement> = BTreeSet::new();
        let mut out = Vec::with_capacity(left.len().max(right.len()));
        let ty = self.item(list);
        let (mut l, mut r) = (0, 0);
        while l < left_elements.len() || r < right_elements.len() {
            if let (Some(left_element), Some(right_element)) = (left_elements.get(l), right_elements.get(r)) {
                if left_element == right_element {
                    done.insert(left_element);
                    let before = old.get(left_element).copied().flatten();
                    out.extend(self.merged(before, new.get(left_element).copied(), ty));
                    (l, r) = (l + 1, r + 1);
                    next_shared = shared.next();
                    continue;
                }
                // A shared item whose turn has not come is emitted where `right` has it.
                if new.contains_key(left_element) && next_shared.is_some_and(|next| next != left_element) {
                    l += 1;
                    continue;
                }
            }
            if let Some((element, item)) = left_elements.get(l).zip(left.get(l)) {
                if !new.contains_key(element) {
                    out.extend(self.merged(Some(item), None, ty));
                    l += 1;
                    continue;
                }
                if done.contains(element) {
                    l += 1;
                }
            }
            if let Some(element) = right_elements.get(r) {
                done.insert(element);
                let before = old.get(element).copied().flatten();
                out.extend(self.merged(before, new.get(element).copied(), ty));
                r += 1;
                if next_shared == Some(element) {
                    next_shared = shared.next();
                }
            }
        }
        out
    }

    /// What is left of `value` without the fields in `gone`; `None` when nothing is.
    pub(super) fn remove(self, value: &Value, gone: &Set, ty: Type<'s>) -> Option<Value> {
        let ty = ty.of(Some(value));
        match (ty, value) {
            (Type::Scalar(_), value) => Some(value.clone()),
            (Type::List(list), Value::Array(items)) if !ty.is_atomic() => {
                let kept = items.iter().filter_map(|item| {
                    let Ok(element) = self.item_element(list, item) else { return Some(item.clone()) };
                    match gone.node(&element) {
                        None => Some(item.clone()),
                        Some(node) if node.member => None,
                        Some(node) => self.remove(item, &node.children, self.item(list)),
                    }
                });
                let kept: Vec<Value> = kept.collect();
                (!kept.is_empty()).then(|| Value::from(kept))
            }
            (Type::Object(_) | Type::Map(_) | Type::AnyObject, Value::Object(fields)) if !ty.is_atomic() => {
                let kept = fields.iter().filter_map(|(key, value)| {
                    let kept = match gone.field_node(key) {
                        None => Some(value.clone()),
                        Some(node) if node.member => None,
                        Some(node) => self.remove(value, &node.children, self.child(ty, key)),
                    };
                    Some((key.clone(), kept?))
                });
                let kept: Map<String, Value> = kept.collect();
                (!kept.is_empty()).then_some(Value::Object(kept))
            }
            _ => None,
        }
    }

    /// The set with every struct field that has children made a member, so that differences see it.
    pub(super) fn with_named_fields(self, mut set: Set, ty: Option<Type<'s>>) -> Set {
        for node in set.nodes_mut() {
            let below = match (&node.element, ty) {
                (PathElement::Field(name), Some(ty @ (Type::Object(_) | Type::Map(_) | Type::AnyObject))) => {
                    node.member |= ty.declares(name);
                    Some(self.child(ty, name))
                }
                (PathElement::Field(_), Some(Type::Deduced)) => Some(Type::Deduced),
                (PathElement::Key(_), Some(Type::List(list))) => Some(self.item(list)),
                _ => None,
            };
            if !node.children.is_empty() {
                node.children = self.with_named_fields(std::mem::take(&mut node.children), below);
            }
        }
        set
    }

    /// Brings a stored set in line with a schema that changed: what has become atomic is owned as a whole.
    /// Whether anything changed.
    pub(super) fn reconcile(self, set: &mut Set, ty: Type<'s>) -> bool {
        let mut changed = false;
        for node in set.nodes_mut() {
            if node.children.is_empty() {
                continue;
            }
            let below = match (&node.element, ty) {
                (PathElement::Field(name), Type::Object(object)) => match object.field(name) {
                    Some(field) => self.get(field.ty),
                    None => continue,
                },
                (PathElement::Field(_), Type::Map(map)) => self.get(map.value),
                (_, Type::List(list)) => self.item(list),
                _ => continue,
            };
            if below.is_atomic() {
                node.member = true;
                node.children = Set::new();
                changed = true;
            } else {
                changed |= self.reconcile(&mut node.children, below);
            }
        }
        changed
    }
}
