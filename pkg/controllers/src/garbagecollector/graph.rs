//! Who owns whom, as far as the caches know.
//!
//! A pure data structure: events go in, uids to look at come out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rkube_api::StoredObject;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::gvk::GroupVersion;
use rkube_apimachinery::key::ObjectKey;
use serde::Deserialize;
use serde::de::IgnoredAny;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

pub(super) type Uid = Arc<str>;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Owner {
    #[serde(default)]
    pub(super) api_version: String,
    #[serde(default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) uid: Uid,
    #[serde(default)]
    pub(super) block_owner_deletion: Option<bool>,
}

impl Owner {
    pub(super) fn group(&self) -> String {
        GroupVersion::parse(&self.api_version).map(|version| version.group).unwrap_or_default()
    }
}

/// The part of an object's metadata that matters here.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PartialMeta {
    deletion_timestamp: Option<IgnoredAny>,
    finalizers: Vec<String>,
    owner_references: Vec<Owner>,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) resource: SharedResource,
    pub(super) key: ObjectKey,
    pub(super) owners: Vec<Owner>,
    pub(super) deleting: bool,
    /// Being deleted, and waits for its dependents to go.
    pub(super) deleting_dependents: bool,
    /// Being deleted, and its dependents are to be kept.
    pub(super) orphaning: bool,
}

/// Uids that an event gives reason to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) delete: Vec<Uid>,
    pub(super) orphan: Vec<Uid>,
}

#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<Uid, Node>,
    /// Owner to dependents, whether the owner is known or not.
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &Uid) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Whether the owner that a dependent names is known, by uid and by everything else a reference says.
    pub(super) fn owner(&self, owner: &Owner, dependent: &Node) -> Option<&Node> {
        let node = self.nodes.get(&owner.uid)?;
        let same_namespace = !node.resource.namespaced || node.key.namespace == dependent.key.namespace;
        let same = *node.key.name == *owner.name && node.resource.kind == owner.kind;
        (same && same_namespace && node.resource.group == owner.group()).then_some(node)
    }

    /// Whether there is nothing to ask the API about: every owner is known and stays.
    pub(super) fn is_held(&self, node: &Node) -> bool {
        node.owners.iter().all(|owner| self.owner(owner, node).is_some_and(|known| !known.deleting_dependents))
    }

    pub(super) fn dependents(&self, uid: &Uid) -> Vec<Uid> {
        let mut dependents: Vec<Uid> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        dependents.sort();
        dependents
    }

    /// Dependents that the owner's deletion has to wait for.
    pub(super) fn blocking_dependents(&self, uid: &Uid) -> Vec<Uid> {
        let blocks = |dependent: &Uid| {
            self.nodes.get(dependent).is_some_and(|node| {
                node.owners.iter().any(|owner| owner.uid == *uid && owner.block_owner_deletion == Some(true))
            })
        };
        self.dependents(uid).into_iter().filter(blocks).collect()
    }

    /// An object appeared or changed.
    pub(super) fn upsert(&mut self, resource: &SharedResource, object: &StoredObject) -> Work {
        let uid: Uid = object.selection.uid.as_str().into();
        let metadata = object.metadata_json().unwrap_or(b"{}");
        let Ok(metadata) = serde_json::from_slice::<PartialMeta>(metadata) else { return Work::default() };
        if uid.is_empty() {
            return Work::default();
        }
        let deleting = metadata.deletion_timestamp.is_some();
        let has = |finalizer: &str| deleting && metadata.finalizers.iter().any(|known| known == finalizer);
        let node = Node {
            resource: Arc::clone(resource),
            key: object.key.clone(),
            deleting,
            deleting_dependents: has(FOREGROUND),
            orphaning: has(ORPHAN),
            owners: metadata.owner_references,
        };
        let old = self.nodes.insert(uid.clone(), node.clone());
        let mut work = Work::default();
        let old_owners = old.as_ref().map(|old| old.owners.as_slice()).unwrap_or_default();
        if old_owners != node.owners {
            self.move_edges(&uid, old_owners, &node.owners, &mut work);
        }
        // Also a known object whose owners are as before may have to go: the owner's state may have changed.
        if (old.is_none() || old_owners != node.owners) && !self.is_held(&node) {
            work.delete.push(uid.clone());
        }
        if node.deleting_dependents && !old.as_ref().is_some_and(|old| old.deleting_dependents) {
            work.delete.push(uid.clone());
            work.delete.extend(self.dependents(&uid));
        }
        if node.orphaning && !old.as_ref().is_some_and(|old| old.orphaning) {
            work.orphan.push(uid);
        }
        work
    }

    fn move_edges(&mut self, uid: &Uid, old: &[Owner], new: &[Owner], work: &mut Work) {
        for owner in old {
            if !new.contains(owner) {
                // The owner may have waited for this dependent, which blocks no more.
                if self.nodes.get(&owner.uid).is_some_and(|owner| owner.deleting_dependents) {
                    work.delete.push(owner.uid.clone());
                }
                self.cut(&owner.uid, uid);
            }
        }
        for owner in new {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
    }

    fn cut(&mut self, owner: &Uid, dependent: &Uid) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, uid: &Uid) -> Work {
        let mut work = Work::default();
        let Some(node) = self.nodes.remove(uid) else { return work };
        for owner in &node.owners {
            self.cut(&owner.uid, uid);
            if self.nodes.get(&owner.uid).is_some_and(|owner| owner.deleting_dependents) {
                work.delete.push(owner.uid.clone());
            }
        }
        work.delete.extend(self.dependents(uid));
        work
    }

    /// A resource is no longer served: its objects are gone from view, which does not mean that they do not exist.
    pub(super) fn forget(&mut self, resource: &SharedResource) {
        let gvr = resource.gvr();
        let gone: Vec<Uid> =
            self.nodes.iter().filter(|(_, node)| node.resource.gvr() == gvr).map(|(uid, _)| uid.clone()).collect();
        for uid in gone {
            if let Some(node) = self.nodes.remove(&uid) {
                for owner in &node.owners {
                    self.cut(&owner.uid, &uid);
                }
            }
        }
    }
}
