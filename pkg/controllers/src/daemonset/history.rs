//! The revisions of a DaemonSet, as pods are labelled with them.
//!
//! Behaves as `constructHistory` and `cleanupHistory` of pkg/controller/daemon/update.go, v1.36.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use rkube_api::k8s::apps::v1::{ControllerRevision, DaemonSet};
use rkube_api::k8s::core::v1::{Pod, PodTemplateSpec};
use rkube_client::owner::uid_of;
use rkube_client::{Client, DeleteOptions, Patch, SyncError};
use serde_json::json;

use super::pods::{HASH_LABEL, hash_of};
use crate::common::errors::ignore_not_found;
use crate::common::history::{self, History, name_of};

/// The revision of the current template, with its hash.
pub(super) struct Current {
    pub(super) name: String,
    pub(super) hash: String,
    pub(super) collisions: i32,
}

fn label_of(revision: &ControllerRevision) -> &str {
    let labels = revision.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(HASH_LABEL)).map_or("", String::as_str)
}

/// Finds or makes the current revision. `revisions` are the set's, sorted; those that are equal to it go.
pub(super) async fn current(
    client: &Client,
    set: &DaemonSet,
    template: &PodTemplateSpec,
    revisions: &mut Vec<Arc<ControllerRevision>>,
    members: &[Arc<Pod>],
) -> Result<Current, SyncError> {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let api = client.namespaced::<ControllerRevision>(namespace);
    // Without its label a revision would fit no pod, and every pod would be replaced again and again.
    for revision in revisions.iter_mut().filter(|revision| label_of(revision).is_empty()) {
        let name = name_of(revision).to_owned();
        let patch = json!({"metadata": {"uid": revision.metadata.uid, "labels": {HASH_LABEL: name}}});
        let labelled = api.patch(&name, &Patch::Merge(patch)).await;
        *revision = Arc::new(labelled.map_err(SyncError::during("labelling a revision"))?);
    }
    let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let history = History { hash_label: HASH_LABEL, client, owner: set, template };
    let (current, collisions) = history.current(revisions, collisions).await?;
    let hash = label_of(&current).to_owned();
    let is_twin =
        |revision: &ControllerRevision| name_of(revision) != name_of(&current) && history::stores(revision, template);
    for twin in revisions.iter().filter(|revision| is_twin(revision)) {
        merge(client, namespace, twin, &hash, members).await?;
    }
    revisions.retain(|revision| !is_twin(revision));
    Ok(Current { name: name_of(&current).to_owned(), hash, collisions })
}

/// Gives the pods of a revision to the one that is equal to it, and deletes it.
///
/// // Differs from upstream: pods of other revisions keep their label; they are of another template.
async fn merge(
    client: &Client,
    namespace: &str,
    twin: &ControllerRevision,
    hash: &str,
    members: &[Arc<Pod>],
) -> Result<(), SyncError> {
    for pod in members.iter().filter(|pod| hash_of(pod) == label_of(twin)) {
        let patch = json!({"metadata": {"uid": pod.metadata.uid, "labels": {HASH_LABEL: hash}}});
        let api = client.namespaced::<Pod>(namespace);
        let patched = api.patch(pod.metadata.name.as_deref().unwrap_or_default(), &Patch::Merge(patch)).await;
        ignore_not_found(patched).map_err(SyncError::during("relabelling a pod"))?;
    }
    let api = client.namespaced::<ControllerRevision>(namespace);
    let deleted = api.delete(name_of(twin), &DeleteOptions::uid(uid_of(twin))).await;
    ignore_not_found(deleted).map_err(SyncError::during("deleting a double revision"))
}

/// Deletes the oldest revisions that no pod is of. Those in use count towards the limit.
pub(super) async fn clean_up(
    history: &History<'_, DaemonSet>,
    revisions: &[Arc<ControllerRevision>],
    current: &Current,
    members: &[Arc<Pod>],
    limit: Option<i32>,
) -> Result<(), SyncError> {
    let hashes: HashSet<&str> = members.iter().map(|pod| hash_of(pod)).collect();
    let in_use = |revision: &ControllerRevision| hashes.contains(label_of(revision));
    let live = revisions.iter().filter(|revision| in_use(revision)).map(|revision| name_of(revision).to_owned());
    let mut live: BTreeSet<String> = live.collect();
    live.insert(current.name.clone());
    let old_in_use = i32::try_from(live.len() - 1).unwrap_or(i32::MAX);
    let left = limit.unwrap_or(10).saturating_sub(old_in_use).max(0);
    history.truncate(revisions, &live, Some(left)).await
}
