//! An ordered set of objects whose clones are snapshots.
//!
//! A B-tree of reference-counted nodes. Cloning costs one reference count; a change copies the nodes on
//! its path only when a snapshot still shares them. Every inner entry knows how many objects are below
//! it, so ranks and remaining counts cost no walk.
//!
//! The order is that of storage keys: the bytes of `namespace/name`.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::sync::Arc;

use rkube_api::StoredObject;
use rkube_apimachinery::key::ObjectKey;

/// 64 pointers are 512 bytes: a copied path of three nodes stays below 4 KiB.
const NODE_ENTRIES_MAX: usize = 64;
/// Smaller nodes are merged with a neighbour when both fit well.
const NODE_ENTRIES_MIN: usize = NODE_ENTRIES_MAX / 4;

type Object = Arc<StoredObject>;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    root: Option<Arc<Node>>,
}

#[derive(Clone)]
enum Node {
    Leaf(Vec<Object>),
    Inner(Vec<Child>),
}

#[derive(Clone)]
struct Child {
    /// Not greater than any key below, and greater than every key below the children before.
    first: ObjectKey,
    count: usize,
    node: Arc<Node>,
}

impl Tree {
    pub(crate) fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |node| node.count())
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Object> {
        let mut node = self.root.as_ref()?;
        loop {
            match node.as_ref() {
                Node::Leaf(objects) => {
                    let found = objects.binary_search_by(|object| compare(&object.key, key)).ok()?;
                    return objects.get(found);
                }
                Node::Inner(children) => {
                    let at = child_for(children, |first| compare(first, key));
                    node = &children.get(at)?.node;
                }
            }
        }
    }

    /// Adds or replaces; returns what was replaced.
    pub(crate) fn insert(&mut self, object: Object) -> Option<Object> {
        let Some(root) = &mut self.root else {
            self.root = Some(Arc::new(Node::Leaf(vec![object])));
            return None;
        };
        let (replaced, split) = Arc::make_mut(root).insert(object);
        if let Some(right) = split {
            let left = self.root.take().map(Child::new);
            self.root = Some(Arc::new(Node::Inner(left.into_iter().chain([right]).collect())));
        }
        replaced
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey) -> Option<Object> {
        // Look first: a miss must not copy nodes.
        self.get(key)?;
        let root = self.root.as_mut()?;
        let removed = Arc::make_mut(root).remove(key);
        while let Some(node) = &self.root {
            let only = match node.as_ref() {
                Node::Leaf(objects) if objects.is_empty() => None,
                Node::Inner(children) if children.len() <= 1 => children.first().map(|child| child.node.clone()),
                _ => break,
            };
            self.root = only;
        }
        removed
    }

    /// Visits objects in order whose key is at or after `start`, until told to stop.
    pub(crate) fn walk(&self, start: &[u8], visit: &mut dyn FnMut(&Object) -> ControlFlow<()>) {
        if let Some(root) = &self.root {
            // Whether the visitor stopped or the objects ended is its own affair.
            let _ = root.walk(Some(start), visit);
        }
    }

    /// How many objects are before `position`.
    pub(crate) fn rank(&self, position: &[u8]) -> usize {
        let mut rank = 0;
        let mut next = self.root.as_ref();
        while let Some(node) = next.take() {
            match node.as_ref() {
                Node::Leaf(objects) => {
                    rank += objects.partition_point(|object| compare_bytes(&object.key, position).is_lt());
                }
                Node::Inner(children) => {
                    let at = child_for(children, |first| compare_bytes(first, position));
                    rank += children.iter().take(at).map(|child| child.count).sum::<usize>();
                    next = children.get(at).map(|child| &child.node);
                }
            }
        }
        rank
    }
}

/// The child whose range holds what `compare_first` compares firsts with.
fn child_for(children: &[Child], compare_first: impl Fn(&ObjectKey) -> Ordering) -> usize {
    children.partition_point(|child| compare_first(&child.first).is_le()).saturating_sub(1)
}

impl Child {
    fn new(node: Arc<Node>) -> Self {
        Self { first: node.first(), count: node.count(), node }
    }
}

impl Node {
    fn count(&self) -> usize {
        match self {
            Self::Leaf(objects) => objects.len(),
            Self::Inner(children) => children.iter().map(|child| child.count).sum(),
        }
    }

    fn entries(&self) -> usize {
        match self {
            Self::Leaf(objects) => objects.len(),
            Self::Inner(children) => children.len(),
        }
    }

    fn first(&self) -> ObjectKey {
        match self {
            Self::Leaf(objects) => objects.first().map(|object| object.key.clone()),
            Self::Inner(children) => children.first().map(|child| child.first.clone()),
        }
        .expect("nodes below the root are never empty")
    }

    fn insert(&mut self, object: Object) -> (Option<Object>, Option<Child>) {
        let replaced = match self {
            Self::Leaf(objects) => match objects.binary_search_by(|known| compare(&known.key, &object.key)) {
                Ok(at) => return (Some(std::mem::replace(&mut objects[at], object)), None),
                Err(at) => {
                    objects.insert(at, object);
                    None
                }
            },
            Self::Inner(children) => {
                let at = child_for(children, |first| compare(first, &object.key));
                let child = &mut children[at];
                if compare(&object.key, &child.first).is_lt() {
                    child.first = object.key.clone();
                }
                let (replaced, split) = Arc::make_mut(&mut child.node).insert(object);
                child.count += usize::from(replaced.is_none());
                if let Some(right) = split {
                    child.count -= right.count;
                    children.insert(at + 1, right);
                }
                replaced
            }
        };
        (replaced, self.split())
    }

    fn split(&mut self) -> Option<Child> {
        if self.entries() <= NODE_ENTRIES_MAX {
            return None;
        }
        let right = match self {
            Self::Leaf(objects) => Self::Leaf(objects.split_off(NODE_ENTRIES_MAX / 2)),
            Self::Inner(children) => Self::Inner(children.split_off(NODE_ENTRIES_MAX / 2)),
        };
        Some(Child::new(Arc::new(right)))
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Object> {
        match self {
            Self::Leaf(objects) => {
                let at = objects.binary_search_by(|object| compare(&object.key, key)).ok()?;
                Some(objects.remove(at))
            }
            Self::Inner(children) => {
                let at = child_for(children, |first| compare(first, key));
                let child = children.get_mut(at)?;
                let removed = Arc::make_mut(&mut child.node).remove(key)?;
                child.count -= 1;
                if child.count == 0 {
                    children.remove(at);
                } else if child.node.entries() < NODE_ENTRIES_MIN {
                    merge(children, at);
                }
                Some(removed)
            }
        }
    }

    fn walk(&self, start: Option<&[u8]>, visit: &mut dyn FnMut(&Object) -> ControlFlow<()>) -> ControlFlow<()> {
        match self {
            Self::Leaf(objects) => {
                let from = start.map_or(0, |start| objects.partition_point(|o| compare_bytes(&o.key, start).is_lt()));
                objects.iter().skip(from).try_for_each(visit)
            }
            Self::Inner(children) => {
                let from = start.map_or(0, |start| child_for(children, |first| compare_bytes(first, start)));
                children
                    .iter()
                    .enumerate()
                    .skip(from)
                    .try_for_each(|(index, child)| child.node.walk(start.filter(|_| index == from), visit))
            }
        }
    }
}

/// Joins the small child at `at` with a neighbour if the result is not nearly full again.
fn merge(children: &mut Vec<Child>, at: usize) {
    let left = if at + 1 < children.len() { at } else { at.saturating_sub(1) };
    let (Some(first), Some(second)) = (children.get(left), children.get(left + 1)) else {
        return;
    };
    if first.node.entries() + second.node.entries() > NODE_ENTRIES_MAX * 3 / 4 {
        return;
    }
    let second = children.remove(left + 1);
    let first = &mut children[left];
    match (Arc::make_mut(&mut first.node), second.node.as_ref()) {
        (Node::Leaf(objects), Node::Leaf(more)) => objects.extend(more.iter().cloned()),
        (Node::Inner(children), Node::Inner(more)) => children.extend(more.iter().cloned()),
        _ => unreachable!("all leaves are at the same depth"),
    }
    first.count += second.count;
}

/// Compares as the bytes of `namespace/name` do.
fn compare(left: &ObjectKey, right: &ObjectKey) -> Ordering {
    if left.namespace == right.namespace {
        return left.name.as_bytes().cmp(right.name.as_bytes());
    }
    bytes(left).cmp(bytes(right))
}

/// Compares a key with a position: the bytes of a key, or a part of them.
fn compare_bytes(key: &ObjectKey, position: &[u8]) -> Ordering {
    bytes(key).cmp(position.iter().copied())
}

fn bytes(key: &ObjectKey) -> impl Iterator<Item = u8> + '_ {
    let separator = if key.namespace.is_empty() { "" } else { "/" };
    key.namespace.bytes().chain(separator.bytes()).chain(key.name.bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;
    use rkube_api::object::Selection;

    use super::*;

    fn object(key: &str, revision: u64) -> Object {
        Arc::new(StoredObject::new(ObjectKey::parse(key), revision, Bytes::new(), Selection::default()))
    }

    fn contents(tree: &Tree, start: &str) -> Vec<(String, u64)> {
        let mut seen = Vec::new();
        tree.walk(start.as_bytes(), &mut |object| {
            seen.push((object.key.to_string(), object.revision));
            ControlFlow::Continue(())
        });
        seen
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Against a sorted map of strings: same contents, same order, same ranks, snapshots unmoved.
        #[test]
        fn behaves_as_a_sorted_map(
            changes in proptest::collection::vec(("(a|a-b|b)/[a-d]{1,5}", any::<bool>()), 1..1500),
            start in "(a|a-b|b)/[a-d]{0,3}",
        ) {
            let mut tree = Tree::default();
            let mut model = BTreeMap::new();
            let mut snapshot = None;
            for (revision, (key, keep)) in changes.iter().enumerate() {
                if revision == changes.len() / 2 {
                    snapshot = Some((tree.clone(), contents(&tree, "")));
                }
                let revision = revision as u64;
                if *keep {
                    let replaced = tree.insert(object(key, revision)).map(|object| object.revision);
                    prop_assert_eq!(replaced, model.insert(key.clone(), revision));
                } else {
                    let removed = tree.remove(&ObjectKey::parse(key)).map(|object| object.revision);
                    prop_assert_eq!(removed, model.remove(key));
                }
            }
            prop_assert_eq!(tree.len(), model.len());
            let expected: Vec<_> = model.range(start.clone()..).map(|(key, revision)| (key.clone(), *revision)).collect();
            prop_assert_eq!(contents(&tree, &start), expected);
            prop_assert_eq!(tree.rank(start.as_bytes()), model.range(..start).count());
            for (key, revision) in &model {
                prop_assert_eq!(tree.get(&ObjectKey::parse(key)).map(|object| object.revision), Some(*revision));
            }
            if let Some((snapshot, before)) = snapshot {
                prop_assert_eq!(contents(&snapshot, ""), before);
            }
        }
    }
}
