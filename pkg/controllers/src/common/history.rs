//! ControllerRevisions: the templates a StatefulSet or DaemonSet had.
//!
//! Behaves as pkg/controller/history/controller_history.go, v1.36.
//!
//! // Differs from upstream: revisions are compared as JSON, not as bytes, so that the order of fields and the
//! version of the serializer do not make new ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use rkube_api::Kind;
use rkube_api::k8s::apps::v1::ControllerRevision;
use rkube_api::k8s::core::v1::{PodTemplate, PodTemplateSpec};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_api::meta::pkg::runtime::RawExtension;
use rkube_client::owner::{is_controlled_by, new_controller_ref, uid_of};
use rkube_client::{Client, ClientError, DeleteOptions, Patch, SyncError};
use serde_json::{Value, json};

use super::errors::ignore_not_found;
use super::hash;

/// A name leaves room for a dash and a hash.
const PREFIX_MAX: usize = 223;
/// Hashes tried for one template before giving up until the next sync.
const COLLISIONS_MAX: i32 = 16;

/// What a revision stores: the patch that brings the template back.
fn patch_of(template: &PodTemplateSpec) -> Value {
    let mut template = hash::template_value(template);
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template a revision stores.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    PodTemplate::from_value(json!({"apiVersion": "v1", "kind": "PodTemplate", "template": template})).ok()?.template
}

/// The oldest first.
pub(crate) fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    let created = |revision: &ControllerRevision| revision.metadata.creation_timestamp.as_ref().map(|time| time.0);
    revisions.sort_by(|a, b| {
        let name = |revision: &ControllerRevision| revision.metadata.name.clone();
        (a.revision, created(a), name(a)).cmp(&(b.revision, created(b), name(b)))
    });
}

pub(crate) fn name_of(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// Whether the revision stores this template.
pub(crate) fn stores(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    revision.data.as_ref().is_some_and(|stored| stored.0 == patch_of(template))
}

/// Makes and finds the revisions of one owner.
pub(crate) struct History<'a, O> {
    /// What the owner's kind calls the hash in a revision's labels.
    pub(crate) hash_label: &'static str,
    pub(crate) client: &'a Client,
    pub(crate) owner: &'a O,
    pub(crate) template: &'a PodTemplateSpec,
}

impl<O: Kind> History<'_, O> {
    fn namespace(&self) -> &str {
        self.owner.metadata().namespace.as_deref().unwrap_or_default()
    }

    fn new_revision(&self, number: i64, collisions: i32) -> ControllerRevision {
        let data = patch_of(self.template);
        // No collision is no part of the hash, as for ReplicaSets.
        let hash = hash::encode(&data, (collisions > 0).then_some(collisions));
        let owner = self.owner.metadata();
        let name = owner.name.as_deref().unwrap_or_default();
        let prefix = name.get(..PREFIX_MAX).unwrap_or(name);
        let labels = self.template.metadata.as_ref().and_then(|metadata| metadata.labels.clone());
        let mut labels = labels.unwrap_or_default();
        labels.insert(self.hash_label.to_owned(), hash.clone());
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{prefix}-{hash}")),
                namespace: owner.namespace.clone(),
                labels: Some(labels),
                annotations: owner.annotations.clone(),
                owner_references: Some(vec![new_controller_ref(self.owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data)),
            revision: number,
        }
    }

    /// The revision of the owner's template, made or made the newest if it is not; and the collision count.
    /// `revisions` are sorted.
    pub(crate) async fn current(
        &self,
        revisions: &[Arc<ControllerRevision>],
        collisions: i32,
    ) -> Result<(Arc<ControllerRevision>, i32), SyncError> {
        let next = revisions.last().map_or(1, |last| last.revision.saturating_add(1));
        let equal = revisions.iter().rfind(|known| stores(known, self.template));
        match equal {
            Some(equal) if revisions.last().is_some_and(|last| name_of(last) == name_of(equal)) => {
                Ok((Arc::clone(equal), collisions))
            }
            Some(equal) => {
                let patch = json!({"metadata": {"uid": equal.metadata.uid}, "revision": next});
                let api = self.client.namespaced::<ControllerRevision>(self.namespace());
                let updated = api.patch(name_of(equal), &Patch::Merge(patch)).await;
                Ok((Arc::new(updated.map_err(SyncError::during("renewing a revision"))?), collisions))
            }
            None => self.create(next, collisions).await.map_err(SyncError::during("creating a revision")),
        }
    }

    async fn create(&self, number: i64, mut collisions: i32) -> Result<(Arc<ControllerRevision>, i32), ClientError> {
        let api = self.client.namespaced::<ControllerRevision>(self.namespace());
        loop {
            let wanted = self.new_revision(number, collisions);
            let error = match api.create(&wanted).await {
                Ok(created) => return Ok((Arc::new(created), collisions)),
                Err(error) if error.is_already_exists() && collisions < COLLISIONS_MAX => error,
                Err(error) => return Err(error),
            };
            let existing = match api.get(name_of(&wanted)).await {
                Ok(existing) => existing,
                Err(gone) if gone.is_not_found() => return Err(error),
                Err(other) => return Err(other),
            };
            // What an earlier sync made and the cache does not show yet.
            if existing.data == wanted.data && is_controlled_by(&existing.metadata, self.owner) {
                return Ok((Arc::new(existing), collisions));
            }
            collisions += 1;
        }
    }

    /// Deletes the oldest revisions that nothing uses beyond the limit.
    pub(crate) async fn truncate(
        &self,
        revisions: &[Arc<ControllerRevision>],
        live: &BTreeSet<String>,
        limit: Option<i32>,
    ) -> Result<(), SyncError> {
        let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(usize::MAX);
        let unused: Vec<_> = revisions.iter().filter(|revision| !live.contains(name_of(revision))).collect();
        let excess = unused.len().saturating_sub(limit);
        let api = self.client.namespaced::<ControllerRevision>(self.namespace());
        for revision in unused.into_iter().take(excess) {
            let deleted = api.delete(name_of(revision), &DeleteOptions::uid(uid_of(&**revision))).await;
            ignore_not_found(deleted).map_err(SyncError::during("deleting an old revision"))?;
        }
        Ok(())
    }
}
