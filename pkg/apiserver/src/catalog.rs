//! What is served: the resource rows of the moment, looked up by name and in discovery's order.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use rkube_api::resource::SharedResource;
use rkube_apimachinery::gvk::GroupVersionResource;

use crate::discovery::aggregated::Document;

/// An immutable set of rows; a change of custom resources makes a new one.
pub struct Catalog {
    rows: Vec<SharedResource>,
    by_name: HashMap<GroupVersionResource, SharedResource>,
    groups: Vec<Group>,
    documents: OnceLock<Documents>,
}

/// The aggregated discovery documents, encoded once per catalog.
pub(crate) struct Documents {
    pub(crate) core: Document,
    pub(crate) groups: Document,
}

/// A group and its versions, the preferred one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub versions: Vec<String>,
}

impl Catalog {
    /// Rows in discovery's order. Groups and versions come in the order they first appear in `groups`, then
    /// in the order of rows.
    pub fn new(rows: Vec<SharedResource>, order: &[(&str, &[&str])]) -> Arc<Self> {
        let mut groups: Vec<Group> = Vec::new();
        let mut place = |group: &str, version: &str| {
            let at = groups.iter().position(|known| known.name == group).unwrap_or_else(|| {
                groups.push(Group { name: group.to_owned(), versions: Vec::new() });
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(at)
                && !group.versions.iter().any(|known| known == version)
            {
                group.versions.push(version.to_owned());
            }
        };
        let has = |group: &str, version: &str| rows.iter().any(|row| row.group == group && row.version == version);
        for (group, versions) in order {
            for version in versions.iter().filter(|version| has(group, version)) {
                place(group, version);
            }
        }
        for row in &rows {
            place(&row.group, &row.version);
        }
        let by_name = rows.iter().map(|row| (row.gvr(), Arc::clone(row))).collect();
        Arc::new(Self { rows, by_name, groups, documents: OnceLock::new() })
    }

    pub fn find(&self, gvr: &GroupVersionResource) -> Option<&SharedResource> {
        self.by_name.get(gvr)
    }

    pub fn rows(&self) -> &[SharedResource] {
        &self.rows
    }

    pub fn rows_of<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a SharedResource> {
        self.rows.iter().filter(move |row| row.group == group && row.version == version)
    }

    /// All groups, the core group (named "") among them.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    pub fn serves(&self, group: &str, version: &str) -> bool {
        self.group(group).is_some_and(|group| group.versions.iter().any(|known| known == version))
    }

    pub(crate) fn documents(&self) -> &Documents {
        self.documents.get_or_init(|| Documents {
            core: Document::new(self, |group| group.name.is_empty()),
            groups: Document::new(self, |group| !group.name.is_empty()),
        })
    }
}
