//! Sets of field paths: what a manager owns, what a write changed.
//!
//! A set is a trie. A node may be a member (the path to it is in the set), have children, or both.
//! Invariant: siblings are sorted and distinct; a node is a member or has children.
//! Behaves as structured-merge-diff v6, fieldpath.

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

use crate::quote::{go_float, quote};

/// One step of a path.
#[derive(Clone, Debug)]
pub enum PathElement {
    /// A struct field or map key.
    Field(String),
    /// An item of a list with keys: its key fields, sorted by name.
    Key(Vec<(String, Value)>),
    /// An item of a set.
    Value(Value),
    /// An item of a list by position. Nothing here makes these; stored sets may hold some.
    Index(i64),
}

impl PathElement {
    pub fn field(name: &str) -> Self {
        Self::Field(name.to_owned())
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => {
                for ((a_name, a_value), (b_name, b_value)) in a.iter().zip(b) {
                    let order = a_name.cmp(b_name).then_with(|| compare_values(a_value, b_value));
                    if order.is_ne() {
                        return order;
                    }
                }
                a.len().cmp(&b.len())
            }
            (Self::Value(a), Self::Value(b)) => compare_values(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PathElement {}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                f.write_str("[")?;
                for (index, (name, value)) in fields.iter().enumerate() {
                    if index > 0 {
                        f.write_str(",")?;
                    }
                    write!(f, "{name}={}", shown(value))?;
                }
                f.write_str("]")
            }
            Self::Value(value) => write!(f, "[={}]", shown(value)),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text).to_string(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => go_float(float, -4),
            _ => number.to_string(),
        },
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(fields) => fields.iter().map(|(name, value)| format!("{name}={}", shown(value))).collect(),
        other => other.to_string(),
    }
}

/// A total order over JSON values, in which numbers compare by value.
pub(super) fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn rank(value: &Value) -> u8 {
        match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => match (a.as_f64(), b.as_f64()) {
                (Some(a), Some(b)) => a.total_cmp(&b),
                _ => Ordering::Equal,
            },
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let pairs = a.iter().zip(b).map(|(a, b)| compare_values(a, b));
            pairs.into_iter().find(|order| order.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let pairs =
                a.iter().zip(b).map(|((a_key, a), (b_key, b))| a_key.cmp(b_key).then_with(|| compare_values(a, b)));
            pairs.into_iter().find(|order| order.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// Paths, as a trie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) element: PathElement,
    pub(super) member: bool,
    pub(super) children: Set,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

impl Set {
    pub fn new() -> Self {
        Self::default()
    }

    /// From paths of field names: `["spec", "replicas"]`.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::new();
        for path in paths {
            let path: Vec<PathElement> = path.iter().map(|name| PathElement::field(name)).collect();
            set.insert(&path);
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.nodes.iter().map(|node| usize::from(node.member) + node.children.len()).sum()
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(super) fn nodes_mut(&mut self) -> &mut Vec<Node> {
        &mut self.nodes
    }

    fn position(&self, element: &PathElement) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.element.cmp(element))
    }

    pub(super) fn node(&self, element: &PathElement) -> Option<&Node> {
        self.position(element).ok().and_then(|place| self.nodes.get(place))
    }

    /// The same without making an element of the name.
    pub(super) fn field_node(&self, name: &str) -> Option<&Node> {
        let place = self.nodes.binary_search_by(|node| match &node.element {
            PathElement::Field(known) => known.as_str().cmp(name),
            _ => Ordering::Greater,
        });
        place.ok().and_then(|place| self.nodes.get(place))
    }

    /// Adds a path; the empty one is in no set.
    pub fn insert(&mut self, path: &[PathElement]) {
        let Some((first, rest)) = path.split_first() else { return };
        let mut below = Self::new();
        below.insert(rest);
        self.attach(first.clone(), rest.is_empty(), below);
    }

    /// Adds a node, or to it. Nodes that are neither member nor parent are not added.
    pub(super) fn attach(&mut self, element: PathElement, member: bool, children: Set) {
        if !member && children.is_empty() {
            return;
        }
        // Walks visit siblings in order most of the time.
        if self.nodes.last().is_none_or(|last| last.element < element) {
            self.nodes.push(Node { element, member, children });
            return;
        }
        match self.position(&element) {
            Ok(place) => {
                if let Some(node) = self.nodes.get_mut(place) {
                    node.member |= member;
                    node.children = std::mem::take(&mut node.children).union(children);
                }
            }
            Err(place) => self.nodes.insert(place, Node { element, member, children }),
        }
    }

    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.node(last).is_some_and(|node| node.member),
            [first, rest @ ..] => self.node(first).is_some_and(|node| node.children.has(rest)),
        }
    }

    #[must_use]
    pub fn union(self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let mut out = Vec::with_capacity(self.nodes.len() + other.nodes.len());
        let (mut ours, mut theirs) = (self.nodes.into_iter().peekable(), other.nodes.into_iter().peekable());
        while let (Some(a), Some(b)) = (ours.peek(), theirs.peek()) {
            match a.element.cmp(&b.element) {
                Ordering::Less => out.extend(ours.next()),
                Ordering::Greater => out.extend(theirs.next()),
                Ordering::Equal => {
                    if let (Some(a), Some(b)) = (ours.next(), theirs.next()) {
                        out.push(Node { member: a.member || b.member, children: a.children.union(b.children), ..a });
                    }
                }
            }
        }
        out.extend(ours);
        out.extend(theirs);
        Self { nodes: out }
    }

    #[must_use]
    pub fn intersection(self, other: &Self) -> Self {
        self.pair(other, |node, other| {
            let other = other?;
            let member = node.member && other.member;
            Some(Node { member, children: node.children.intersection(&other.children), ..node })
        })
    }

    /// Paths of `self` that are not in `other`. A path stays when only its parent is in `other`.
    #[must_use]
    pub fn difference(self, other: &Self) -> Self {
        self.pair(other, |node, other| {
            let Some(other) = other else { return Some(node) };
            let member = node.member && !other.member;
            Some(Node { member, children: node.children.difference(&other.children), ..node })
        })
    }

    /// Paths of `self` that are neither in `other` nor below a path of `other`.
    #[must_use]
    pub fn recursive_difference(self, other: &Self) -> Self {
        self.pair(other, |node, other| match other {
            Some(other) if other.member => None,
            Some(other) => Some(Node { children: node.children.recursive_difference(&other.children), ..node }),
            None => Some(node),
        })
    }

    /// Whether every path of `self` is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        let mut theirs = other.nodes.iter().peekable();
        self.nodes.iter().all(|node| {
            while theirs.next_if(|other| other.element < node.element).is_some() {}
            theirs
                .next_if(|other| other.element == node.element)
                .is_some_and(|other| (other.member || !node.member) && node.children.is_subset(&other.children))
        })
    }

    /// What `keep` makes of each node and its counterpart in `other`, empty ones left out.
    fn pair(self, other: &Self, keep: impl Fn(Node, Option<&Node>) -> Option<Node>) -> Self {
        let mut theirs = other.nodes.iter().peekable();
        let nodes = self.nodes.into_iter().filter_map(|node| {
            while theirs.next_if(|other| other.element < node.element).is_some() {}
            let other = theirs.next_if(|other| other.element == node.element);
            keep(node, other).filter(|node| !node.is_empty())
        });
        Self { nodes: nodes.collect() }
    }

    /// All paths: at each level the members, then what is below them.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut out = Vec::new();
        self.collect_paths(&mut Vec::new(), &mut out);
        out
    }

    fn collect_paths(&self, prefix: &mut Vec<PathElement>, out: &mut Vec<Vec<PathElement>>) {
        for node in self.nodes.iter().filter(|node| node.member) {
            let mut path = prefix.clone();
            path.push(node.element.clone());
            out.push(path);
        }
        for node in &self.nodes {
            prefix.push(node.element.clone());
            node.children.collect_paths(prefix, out);
            prefix.pop();
        }
    }
}

/// One path per line.
impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.paths().iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&path_text(path))?;
        }
        Ok(())
    }
}

/// `.spec.containers[name="web"].image`.
pub fn path_text(path: &[PathElement]) -> String {
    path.iter().map(PathElement::to_string).collect()
}

/// Which fields writes to a (sub)resource cannot touch, and so cannot own.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Everything but these and what is below them.
    Exclude(Set),
    /// Only what begins with one of these; `None` stands for any element.
    Include(Vec<Vec<Option<PathElement>>>),
}

impl Filter {
    /// Excludes paths of field names.
    pub fn exclude(paths: &[&[&str]]) -> Self {
        Self::Exclude(Set::of_fields(paths))
    }

    /// Includes paths of field names, where `*` is any element.
    pub fn include(paths: &[&[&str]]) -> Self {
        let element = |name: &&str| (*name != "*").then(|| PathElement::field(name));
        Self::Include(paths.iter().map(|path| path.iter().map(element).collect()).collect())
    }

    pub(super) fn apply(&self, set: Set) -> Set {
        match self {
            Self::Exclude(excluded) => set.recursive_difference(excluded),
            Self::Include(patterns) => {
                let patterns: Vec<&[Option<PathElement>]> = patterns.iter().map(Vec::as_slice).collect();
                include(set, &patterns)
            }
        }
    }
}

fn include(set: Set, patterns: &[&[Option<PathElement>]]) -> Set {
    let mut out = Set::new();
    for node in set.nodes {
        let matching: Vec<&[Option<PathElement>]> = patterns
            .iter()
            .filter_map(|pattern| match pattern.split_first() {
                Some((Some(element), rest)) if *element == node.element => Some(rest),
                Some((None, rest)) => Some(rest),
                _ => None,
            })
            .collect();
        if matching.iter().any(|rest| rest.is_empty()) {
            out.nodes.push(node);
        } else if !matching.is_empty() {
            out.attach(node.element, node.member, include(node.children, &matching));
        }
    }
    out
}
