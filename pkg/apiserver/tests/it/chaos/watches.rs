//! Watchers that live through everything, and what they must have seen.
//!
//! The promises are those etcd's robustness tests name: events are *ordered*, *unique* and *atomic*; a watch is
//! *reliable*, *resumable* and *bookmarkable*; and what an event says of the object before, of its creation and of the
//! filter is right.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use parking_lot::Mutex;
use rkube_api::StoredObject;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::Client;
use rkube_client::reflector::{Scope, Sink};
use rkube_client::transport::{ClientError, ListRequest, SharedResource, WatchEvent, WatchRequest, WatchStream};
use tokio::sync::watch;

use super::linearizable::Tag;

/// The label that one watcher selects by.
pub(crate) const PARITY: &str = "parity";
pub(crate) const SELECTOR: &str = "parity=even";

pub(crate) fn is_selected(tag: Tag) -> bool {
    tag.is_multiple_of(2)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Added,
    Modified,
    Deleted,
}

/// What a watcher saw, in the order it did.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// Everything there is at a version: the beginning, and again when history was forgotten. A reflector does not say
    /// at which: then the version is that of the newest object, and not exact.
    Listed {
        version: u64,
        exact: bool,
        state: BTreeMap<String, Tag>,
    },
    Event {
        kind: Kind,
        version: u64,
        name: String,
        tag: Tag,
    },
    Bookmark {
        version: u64,
    },
    /// The connection was lost, and the watch goes on from the last version.
    Resumed,
}

pub(crate) type Log = Arc<Mutex<Vec<Seen>>>;

/// The number in a map's data.
pub(crate) fn tag_of(object: &StoredObject) -> Tag {
    object.value().unwrap()["data"]["tag"].as_str().unwrap().parse().unwrap()
}

fn state_of<'a>(objects: impl Iterator<Item = &'a Arc<StoredObject>>) -> BTreeMap<String, Tag> {
    objects.map(|object| (object.key.name.to_string(), tag_of(object))).collect()
}

/// A client that lists once, watches, and goes on where it was.
pub(crate) struct Watcher {
    pub(crate) client: Client,
    pub(crate) resource: SharedResource,
    pub(crate) selector: &'static str,
    pub(crate) log: Log,
    /// The version everything was seen up to.
    pub(crate) progress: watch::Sender<u64>,
    /// Counts the servers there were.
    pub(crate) epoch: watch::Receiver<u64>,
}

impl Watcher {
    pub(crate) async fn run(mut self) {
        let mut version = 0;
        loop {
            let epoch = *self.epoch.borrow_and_update();
            let error = match self.follow(&mut version).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            if error.status().is_some_and(|status| status.code() == 410) {
                version = 0;
            } else if self.epoch.wait_for(|now| *now > epoch).await.is_err() {
                return;
            }
        }
    }

    async fn follow(&self, version: &mut u64) -> Result<(), ClientError> {
        if *version == 0 {
            *version = self.list().await?;
        } else {
            self.log.lock().push(Seen::Resumed);
        }
        let mut stream = self.watch(*version).await?;
        while let Some(event) = stream.next().await {
            let seen = match event? {
                WatchEvent::Added(object) => seen(Kind::Added, &object),
                WatchEvent::Modified(object) => seen(Kind::Modified, &object),
                WatchEvent::Deleted(object) => seen(Kind::Deleted, &object),
                WatchEvent::Bookmark { resource_version, .. } => {
                    Seen::Bookmark { version: resource_version.parse().unwrap() }
                }
            };
            if let Seen::Event { version: at, .. } | Seen::Bookmark { version: at } = &seen {
                *version = *at;
            }
            self.log.lock().push(seen);
            self.progress.send_replace(*version);
        }
        Ok(())
    }

    async fn list(&self) -> Result<u64, ClientError> {
        let list = self
            .client
            .list(ListRequest {
                resource: self.resource.clone(),
                namespace: super::NAMESPACE.to_owned(),
                label_selector: self.selector.to_owned(),
                field_selector: String::new(),
                resource_version: String::new(),
                resource_version_match: String::new(),
                limit: 0,
                continue_token: String::new(),
            })
            .await?;
        let version = list.resource_version.parse().unwrap();
        self.log.lock().push(Seen::Listed { version, exact: true, state: state_of(list.items.iter()) });
        Ok(version)
    }

    async fn watch(&self, version: u64) -> Result<WatchStream, ClientError> {
        let request = WatchRequest {
            resource: self.resource.clone(),
            namespace: super::NAMESPACE.to_owned(),
            label_selector: self.selector.to_owned(),
            field_selector: String::new(),
            resource_version: version.to_string(),
            send_initial_events: false,
            allow_bookmarks: true,
            timeout_seconds: 600,
        };
        self.client.watch(request).await
    }
}

fn seen(kind: Kind, object: &StoredObject) -> Seen {
    Seen::Event { kind, version: object.revision, name: object.key.name.to_string(), tag: tag_of(object) }
}

/// What the client library's reflector does to a store: its events have no kinds, and no bookmarks.
pub(crate) struct Reflected {
    pub(crate) log: Log,
    pub(crate) known: Mutex<BTreeMap<ObjectKey, Arc<StoredObject>>>,
    pub(crate) progress: watch::Sender<u64>,
}

impl Reflected {
    fn put(&self, kind: Kind, object: &StoredObject) {
        self.log.lock().push(seen(kind, object));
        self.progress.send_replace(object.revision);
    }
}

impl Sink for Reflected {
    fn replace(&self, objects: BTreeMap<ObjectKey, Arc<StoredObject>>) {
        let version = objects.values().map(|object| object.revision).max().unwrap_or_default();
        self.log.lock().push(Seen::Listed { version, exact: false, state: state_of(objects.values()) });
        *self.known.lock() = objects;
        self.progress.send_replace(version);
    }

    fn upsert(&self, object: Arc<StoredObject>) {
        let before = self.known.lock().insert(object.key.clone(), object.clone());
        self.put(if before.is_some() { Kind::Modified } else { Kind::Added }, &object);
    }

    fn remove(&self, last: Arc<StoredObject>) {
        assert!(self.known.lock().remove(&last.key).is_some(), "{} is removed and was not there", last.key);
        self.put(Kind::Deleted, &last);
    }
}

pub(crate) fn scope(resource: SharedResource) -> Scope {
    let namespace = super::NAMESPACE.to_owned();
    Scope { resource, namespace, label_selector: String::new(), field_selector: String::new() }
}

/// A change that happened: what a version is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) name: String,
    /// `None` is a deletion.
    pub(crate) tag: Option<Tag>,
}

pub(crate) type Changes = BTreeMap<u64, Change>;

/// Adds what watchers of everything saw to what writers were told. Two that differ over one version are an error:
/// *unique* and *atomic*.
pub(crate) fn merge(changes: &mut Changes, log: &[Seen]) -> Result<(), String> {
    for seen in log {
        let Seen::Event { kind, version, name, tag } = seen else { continue };
        let change = Change { name: name.clone(), tag: (*kind != Kind::Deleted).then_some(*tag) };
        let found = changes.entry(*version).or_insert_with(|| change.clone());
        if *found != change {
            return Err(format!("version {version} is {found:?} and {change:?}"));
        }
    }
    Ok(())
}

/// Checks one watcher's log against everything that happened. Returns how often it resumed.
pub(crate) fn check(log: &[Seen], changes: &Changes, selector: &str) -> Result<usize, String> {
    let selects = |tag: Tag| selector.is_empty() || is_selected(tag);
    let mut state: BTreeMap<String, Tag> = BTreeMap::new();
    let (mut at, mut exact, mut resumed) = (0, true, 0);
    let missed = |state: &BTreeMap<String, Tag>, exact: bool, at: u64, before: u64| {
        if exact { nothing_missed(state, at, before, changes, &selects) } else { is_state(state, at, before, changes) }
    };
    for seen in log {
        match seen {
            Seen::Resumed => resumed += 1,
            Seen::Listed { version, exact: is_exact, state: listed } => {
                if *version < at {
                    return Err(format!("listed {version} after {at}"));
                }
                (at, exact) = (*version, *is_exact);
                state.clone_from(listed);
            }
            // Everything up to a bookmark was delivered before it.
            Seen::Bookmark { version } => {
                if *version < at {
                    return Err(format!("bookmark {version} after {at}"));
                }
                missed(&state, exact, at, *version + 1)?;
                (at, exact) = (*version, true);
            }
            Seen::Event { kind, version, name, tag } => {
                if *version <= at {
                    return Err(format!("{seen:?} after {at}"));
                }
                missed(&state, exact, at, *version)?;
                (at, exact) = (*version, true);
                let before = state.get(name).copied();
                let right = match kind {
                    Kind::Added => before.is_none() && selects(*tag),
                    Kind::Modified => before.is_some() && selects(*tag),
                    // The last state the watcher knew, whether the object went or left the selection.
                    Kind::Deleted => before == Some(*tag),
                };
                if !right {
                    return Err(format!("{seen:?} where {before:?} was"));
                }
                match kind {
                    Kind::Deleted => state.remove(name),
                    Kind::Added | Kind::Modified => state.insert(name.clone(), *tag),
                };
            }
        }
    }
    Ok(resumed)
}

/// No change between two versions would have been an event for this watcher.
fn nothing_missed(
    state: &BTreeMap<String, Tag>,
    after: u64,
    before: u64,
    changes: &Changes,
    selects: &dyn Fn(Tag) -> bool,
) -> Result<(), String> {
    for (version, change) in changes.range(after + 1..before) {
        let was = state.contains_key(&change.name);
        if was || change.tag.is_some_and(selects) {
            return Err(format!("{change:?} at {version} was missed"));
        }
    }
    Ok(())
}

/// A list at an unknown version has the changes between two versions in it already.
fn is_state(state: &BTreeMap<String, Tag>, after: u64, before: u64, changes: &Changes) -> Result<(), String> {
    let last: BTreeMap<&str, Option<Tag>> =
        changes.range(after + 1..before).map(|(_, change)| (change.name.as_str(), change.tag)).collect();
    match last.into_iter().find(|(name, tag)| state.get(*name).copied() != *tag) {
        Some((name, tag)) => Err(format!("{name} is {tag:?} between {after} and {before}, and was listed otherwise")),
        None => Ok(()),
    }
}
