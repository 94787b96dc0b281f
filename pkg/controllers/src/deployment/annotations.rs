//! Revisions and the other annotations that Deployments and their ReplicaSets exchange.
//!
//! Behaves as the annotation helpers of pkg/controller/deployment/util/deployment_util.go, v1.36.

use std::collections::BTreeMap;

use rkube_api::k8s::apps::v1::{Deployment, ReplicaSet};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;

use super::plan::{max_surge, replicas_of};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
pub(super) const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// About 100 revisions.
const REVISION_HISTORY_CHARS_MAX: usize = 2000;

/// Annotations that mean the Deployment or the ReplicaSet itself and are not copied between them.
fn is_own(name: &str) -> bool {
    [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS, ROLLBACK_TO].contains(&name)
}

pub(super) fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// 0 for none; `None` for one that is no number.
pub(super) fn revision(replica_set: &ReplicaSet) -> Option<i64> {
    annotation(&replica_set.metadata, REVISION).map_or(Some(0), |text| text.parse().ok())
}

pub(super) fn max_revision<'a>(replica_sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    replica_sets.into_iter().filter_map(revision).max().unwrap_or(0)
}

/// The second highest revision; 0 if there is none.
pub(super) fn last_revision<'a>(replica_sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    let mut revisions: Vec<i64> = replica_sets.into_iter().filter_map(revision).collect();
    revisions.sort_unstable_by(|a, b| b.cmp(a));
    revisions.get(1).copied().unwrap_or(0)
}

fn non_negative(replica_set: &ReplicaSet, name: &str) -> Option<i32> {
    annotation(&replica_set.metadata, name)?.parse().ok().filter(|count| *count >= 0)
}

pub(super) fn desired_replicas(replica_set: &ReplicaSet) -> Option<i32> {
    non_negative(replica_set, DESIRED_REPLICAS)
}

pub(super) fn max_replicas(replica_set: &ReplicaSet) -> Option<i32> {
    non_negative(replica_set, MAX_REPLICAS)
}

/// Sets what proportional scaling later compares with; whether that changed anything.
pub(super) fn set_replicas_annotations(replica_set: &mut ReplicaSet, deployment: &Deployment) -> bool {
    let desired = replicas_of(deployment);
    let maximum = desired.saturating_add(max_surge(deployment));
    let annotations = replica_set.metadata.annotations.get_or_insert_default();
    let mut set = |name: &str, count: i32| {
        let text = count.to_string();
        annotations.insert(name.to_owned(), text.clone()) != Some(text)
    };
    // Both are set, whatever the first says.
    set(DESIRED_REPLICAS, desired) | set(MAX_REPLICAS, maximum)
}

/// Brings the annotations of the new ReplicaSet up to date; whether that changed anything.
pub(super) fn set_new_replica_set_annotations(
    deployment: &Deployment,
    replica_set: &mut ReplicaSet,
    new_revision: i64,
    exists: bool,
) -> bool {
    let annotations = replica_set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (name, value) in deployment.metadata.annotations.iter().flatten().filter(|(name, _)| !is_own(name)) {
        changed |= annotations.insert(name.clone(), value.clone()).as_ref() != Some(value);
    }
    let old_text = annotations.get(REVISION).cloned();
    let old = match old_text.as_deref() {
        None | Some("") => 0,
        Some(text) => match text.parse::<i64>() {
            Ok(revision) => revision,
            // Not ours to repair.
            Err(_) => return false,
        },
    };
    if old < new_revision {
        annotations.insert(REVISION.to_owned(), new_revision.to_string());
        changed = true;
        if let Some(old_text) = old_text {
            append_history(annotations, &old_text);
        }
    }
    if !exists {
        changed |= set_replicas_annotations(replica_set, deployment);
    }
    changed
}

/// Adds a revision that this ReplicaSet had before, dropping the oldest when the list is too long.
fn append_history(annotations: &mut BTreeMap<String, String>, revision: &str) {
    let history = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
    if history.is_empty() {
        annotations.insert(REVISION_HISTORY.to_owned(), revision.to_owned());
        return;
    }
    let mut length = history.len() + revision.len() + 1;
    let mut kept: Vec<&str> = history.split(',').collect();
    while length > REVISION_HISTORY_CHARS_MAX && !kept.is_empty() {
        length -= kept.remove(0).len() + 1;
    }
    if length <= REVISION_HISTORY_CHARS_MAX {
        kept.push(revision);
        annotations.insert(REVISION_HISTORY.to_owned(), kept.join(","));
    }
}

/// Whether that changed anything.
pub(super) fn set_deployment_revision(deployment: &mut Deployment, revision: &str) {
    let annotations = deployment.metadata.annotations.get_or_insert_default();
    annotations.insert(REVISION.to_owned(), revision.to_owned());
}

/// For a rollback: the Deployment's own annotations stay, all others are those of the revision.
pub(super) fn take_annotations_from(deployment: &mut Deployment, replica_set: &ReplicaSet) {
    let own = deployment.metadata.annotations.take().into_iter().flatten().filter(|(name, _)| is_own(name));
    let theirs = replica_set.metadata.annotations.clone().into_iter().flatten().filter(|(name, _)| !is_own(name));
    deployment.metadata.annotations = Some(own.chain(theirs).collect());
}

/// The revision a client of the deprecated rollback asks for; 0 for the previous one.
pub(super) fn rollback_to(deployment: &Deployment) -> Option<i64> {
    annotation(&deployment.metadata, ROLLBACK_TO)?.parse().ok()
}
