//! Deletion: preconditions, grace periods, finalizers and propagation policies.
//!
//! An object with finalizers or a grace period is marked (deletionTimestamp) and stays; whoever removes the
//! last finalizer, or deletes with grace period 0, makes it go.
//!
//! Behaves as `apiserver/pkg/registry/generic/registry/store.go`, `registry/rest/delete.go` and, for
//! namespaces, `pkg/registry/core/namespace/storage/storage.go`, v1.36.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use rkube_api::StoredObject;
use rkube_api::object::Parts;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::gvk::GroupResource;
use rkube_apimachinery::meta::{Meta, MetaMut};
use rkube_apimachinery::status::{ApiStatus, Status, StatusDetails};
use serde_json::Value;

use crate::admission::{Operation, OperationOptions};
use crate::context::RequestContext;
use crate::metadata::{DELETE_DEPENDENTS, ORPHAN_DEPENDENTS};
use crate::options::{DeleteOptions, ListOptions};
use crate::store::core::{ChangeMade, Outcome, Updated, Updater, decode_status};
use crate::store::{Answer, Deleted, ListPage, Store, Target};
use crate::strategy::{GarbageCollectionPolicy, StrategyContext};
use crate::subresource::check;

/// Items of a collection deleted at once.
const COLLECTION_CONCURRENCY: usize = 16;
/// Items of a collection listed at once.
const COLLECTION_PAGE: i64 = 10_000;

impl Store {
    pub(crate) async fn delete_object(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        options: DeleteOptions,
    ) -> Result<Deleted, ApiStatus> {
        options.validate()?;
        let resource = self.row.group_resource();
        let dry_run = options.is_dry_run();
        let key = self.key(target);
        let mut delete = Delete { store: self, context, target, options, resource: &resource, made: Made::Nothing };
        let mut updated = self.core.guaranteed_update(&resource, &key, dry_run, &mut delete).await?;
        let mut by_others = false;
        if delete.made == Made::Ending && !dry_run {
            delete.go_on_from(&updated.object);
            match self.core.guaranteed_update(&resource, &key, false, &mut delete).await {
                Ok(ended) => updated = ended,
                // Somebody who saw the mark was faster.
                Err(status) if status.is_not_found() => by_others = true,
                Err(status) => return Err(status),
            }
        }
        let made = delete.made;
        let gone = by_others || matches!(made, Made::Gone | Made::Ending) || updated.change == ChangeMade::Deleted;
        if gone && !dry_run && !by_others {
            self.core.hooks.after_delete(&updated.object).await;
        }
        self.deleted(&resource, updated, &made, gone)
    }

    /// What a client is told. An object that stays is shown as it is now.
    fn deleted(
        &self,
        resource: &GroupResource,
        updated: Updated,
        made: &Made,
        gone: bool,
    ) -> Result<Deleted, ApiStatus> {
        let object = self.version.convert_stored(&updated.object)?;
        let whole = matches!(made, Made::Marked) || self.core.strategy.returns_deleted_object();
        if whole {
            return Ok(Deleted { answer: Answer::Object(object), immediate: gone });
        }
        let details = StatusDetails {
            name: object.key.name.to_string(),
            group: resource.group.clone(),
            // Upstream has the resource in the field for the kind.
            kind: resource.resource.clone(),
            uid: object.selection.uid.clone(),
            ..StatusDetails::default()
        };
        Ok(Deleted { answer: Answer::Status(Box::new(success(Some(details)))), immediate: gone })
    }

    pub(crate) async fn delete_objects(
        &self,
        context: &Arc<RequestContext>,
        namespace: &str,
        options: DeleteOptions,
        list: &ListOptions,
    ) -> Result<ListPage, ApiStatus> {
        options.validate()?;
        let mut list = list.clone();
        let one_page = list.limit > 0;
        if !one_page {
            list.limit = COLLECTION_PAGE;
        }
        let mut answer: Option<ListPage> = None;
        loop {
            let page = self.list_objects(context, namespace, &list).await?;
            // Boxed, and made before the first is awaited: the compiler cannot see that a lazy chain is `Send`.
            let mut deletions: Vec<BoxFuture<'_, Result<(), ApiStatus>>> = Vec::with_capacity(page.items.len());
            for item in &page.items {
                let target = Target::new(item.key.namespace.clone(), item.key.name.clone());
                let options = options.clone();
                deletions.push(Box::pin(async move {
                    match self.delete_object(context, &target, options).await {
                        Err(status) if !status.is_not_found() => Err(status),
                        _ => Ok(()),
                    }
                }));
            }
            stream::iter(deletions).buffer_unordered(COLLECTION_CONCURRENCY).try_collect::<()>().await?;
            if one_page {
                return Ok(page);
            }
            list.continue_token.clone_from(&page.continue_token);
            list.resource_version.clear();
            list.resource_version_match.clear();
            let all = match answer.take() {
                None => page,
                Some(mut all) => {
                    all.items.extend(page.items);
                    all
                }
            };
            if list.continue_token.is_empty() {
                return Ok(ListPage { continue_token: String::new(), remaining_item_count: None, ..all });
            }
            answer = Some(all);
        }
    }
}

pub(crate) fn success(details: Option<StatusDetails>) -> Status {
    Status {
        kind: "Status".to_owned(),
        api_version: "v1".to_owned(),
        status: "Success".to_owned(),
        details,
        ..Status::default()
    }
}

/// What one attempt decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// The object is on its way out already.
    Nothing,
    Marked,
    /// Marked with no grace left: it is deleted next, and watchers see both, as with kube-apiserver.
    Ending,
    Gone,
}

struct Delete<'a> {
    store: &'a Store,
    context: &'a Arc<RequestContext>,
    target: &'a Target,
    options: DeleteOptions,
    resource: &'a GroupResource,
    made: Made,
}

/// What graceful deletion asks for.
enum Grace {
    /// Delete as soon as there are no finalizers.
    None,
    /// Being deleted with a shorter period than asked for.
    Pending,
    /// Marked with this period.
    Seconds(i64),
}

impl Updater for Delete<'_> {
    fn update<'a>(&'a mut self, existing: Option<&'a Arc<StoredObject>>) -> BoxFuture<'a, Result<Outcome, ApiStatus>> {
        Box::pin(async move {
            self.made = Made::Nothing;
            let existing = existing.ok_or_else(|| ApiStatus::not_found(self.resource, &self.target.name))?;
            self.check_preconditions(existing)?;
            let read = |error| ApiStatus::internal(format!("reading {}: {error}", existing.key));
            let mut begun = None;
            if self.is_namespace() {
                let mut namespace = existing.value().map_err(read)?;
                begun = (!self.ends_namespace(&namespace)).then(|| self.begin_namespace(&mut namespace));
            }
            let outcome = match begun {
                Some(outcome) => outcome,
                None => {
                    let mut parts = existing.parts().map_err(read)?.ok_or_else(no_metadata)?;
                    self.decide(&mut parts, existing)?
                }
            };
            if !matches!(outcome, Outcome::Keep) {
                self.admit(existing).await?;
            }
            Ok(outcome)
        })
    }
}

impl Delete<'_> {
    /// The next attempt is about the object that this request has just marked.
    fn go_on_from(&mut self, marked: &StoredObject) {
        let preconditions = self.options.preconditions.get_or_insert_default();
        preconditions.uid.get_or_insert_with(|| marked.selection.uid.clone());
        if let Some(version) = &mut preconditions.resource_version {
            *version = marked.revision.to_string();
        }
    }

    async fn admit(&self, existing: &Arc<StoredObject>) -> Result<(), ApiStatus> {
        let mut attributes = self.store.attributes(
            self.context,
            self.target,
            Operation::Delete,
            self.target.name.clone(),
            None,
            Some(existing.clone()),
            OperationOptions::Delete(self.options.clone()),
            self.options.is_dry_run(),
        );
        self.context.admission.admit(&mut attributes).await?;
        self.context.admission.validate(&mut attributes).await
    }

    fn check_preconditions(&self, existing: &StoredObject) -> Result<(), ApiStatus> {
        match &self.options.preconditions {
            Some(preconditions) => check(preconditions, existing, self.resource, &self.target.name),
            None => Ok(()),
        }
    }

    fn now(&self) -> Timestamp {
        self.store.core.shared.clock.now()
    }

    /// Marks the object, or says that it can go. That is all about its metadata.
    fn decide(&mut self, parts: &mut Parts, existing: &StoredObject) -> Result<Outcome, ApiStatus> {
        let object = &mut parts.object;
        // The strategy may change the options; each attempt begins with the client's.
        let mut options = self.options.clone();
        if options.grace_period_seconds.is_some_and(|seconds| seconds < 0) {
            options.grace_period_seconds = Some(1);
        }
        let grace = self.grace(object, existing, &mut options)?;
        if matches!(grace, Grace::Pending) {
            return Ok(Outcome::Keep);
        }
        if let Some(finalizers) = self.finalizers(object) {
            object.set_finalizers(finalizers);
        }
        let pending = object.finalizers().next().is_some();
        match grace {
            Grace::Seconds(seconds) if seconds > 0 || pending => {}
            Grace::Seconds(_) => {
                self.made = Made::Ending;
                return self.put_parts(existing, parts);
            }
            _ if pending => self.mark_now(object),
            _ => {
                self.made = Made::Gone;
                return Ok(Outcome::Delete);
            }
        }
        self.made = Made::Marked;
        self.put_parts(existing, parts)
    }

    fn put_parts(&self, existing: &StoredObject, parts: &mut Parts) -> Result<Outcome, ApiStatus> {
        let encoded = self.store.core.cache.encode_parts(existing, parts);
        encoded.map(Outcome::Put).map_err(|error| ApiStatus::internal(chain(&error)))
    }

    /// Decides about graceful deletion and marks the object for it.
    fn grace(
        &self,
        object: &mut Value,
        existing: &StoredObject,
        options: &mut DeleteOptions,
    ) -> Result<Grace, ApiStatus> {
        let context = StrategyContext {
            request: self.context,
            resource: &self.store.row,
            namespace: &self.target.namespace,
            now: self.now(),
        };
        let asked = options.grace_period_seconds;
        let strategy = &self.store.core.strategy;
        let graceful =
            strategy.check_graceful_delete(&context, existing, options).map_err(|error| decode_status(&error))?;
        if !graceful {
            return Ok(Grace::None);
        }
        if object.is_terminating() {
            let known = object.deletion_grace_period_seconds().map(|known| if known < 0 { 1 } else { known });
            let Some(known) = known.filter(|known| *known > 0) else {
                return Ok(Grace::None);
            };
            return Ok(match asked {
                Some(seconds) if seconds < known => self.shorten(object, known, seconds),
                _ => Grace::Pending,
            });
        }
        let seconds = options
            .grace_period_seconds
            .ok_or_else(|| ApiStatus::internal("options.GracePeriodSeconds should not be nil"))?;
        object.set_deletion_timestamp(Some(self.now() + SignedDuration::from_secs(seconds)));
        object.set_deletion_grace_period_seconds(Some(seconds));
        raise_generation(object);
        Ok(Grace::Seconds(seconds))
    }

    /// A grace period only ever gets shorter, and its end never moves into the past.
    fn shorten(&self, object: &mut Value, known: i64, asked: i64) -> Grace {
        let now = self.now();
        let ends = object.deletion_timestamp().unwrap_or(now);
        let mut end = ends - SignedDuration::from_secs(known) + SignedDuration::from_secs(asked);
        let mut seconds = asked;
        if end < now {
            end = now;
            if seconds != 0 {
                // Still graceful: whoever watches does the final delete.
                seconds = 1;
            }
        }
        object.set_deletion_timestamp(Some(end));
        object.set_deletion_grace_period_seconds(Some(seconds));
        Grace::Seconds(seconds)
    }

    fn mark_now(&self, object: &mut Value) {
        if !object.is_terminating() {
            raise_generation(object);
        }
        let now = self.now();
        if object.deletion_timestamp().is_none_or(|known| known > now) {
            object.set_deletion_timestamp(Some(now));
        }
        object.set_deletion_grace_period_seconds(Some(0));
    }

    /// The finalizers that the options ask for, if they differ from what is there.
    fn finalizers(&self, object: &Value) -> Option<Vec<String>> {
        let policy = self.store.core.strategy.default_garbage_collection_policy();
        let has = |name: &str| object.finalizers().any(|finalizer| finalizer == name);
        let (orphan, foreground) = if policy == GarbageCollectionPolicy::Unsupported {
            (false, false)
        } else if let Some(orphan) = self.options.orphan_dependents {
            (orphan, false)
        } else if let Some(policy) = self.options.propagation_policy.as_deref() {
            (policy == "Orphan", policy == "Foreground")
        } else if has(ORPHAN_DEPENDENTS) || has(DELETE_DEPENDENTS) {
            (has(ORPHAN_DEPENDENTS), has(DELETE_DEPENDENTS))
        } else {
            (policy == GarbageCollectionPolicy::OrphanDependents, false)
        };
        if orphan == has(ORPHAN_DEPENDENTS) && foreground == has(DELETE_DEPENDENTS) {
            return None;
        }
        Some(with_policy(object, orphan, foreground))
    }

    fn is_namespace(&self) -> bool {
        let stored = &self.store.core.stored;
        stored.group.is_empty() && stored.kind == "Namespace"
    }

    /// A namespace goes only when nothing is in it any more, which its spec's finalizers stand for.
    fn ends_namespace(&self, namespace: &Value) -> bool {
        namespace.is_terminating() && !has_spec_finalizers(namespace)
    }

    fn begin_namespace(&mut self, namespace: &mut Value) -> Outcome {
        if namespace.is_terminating() {
            self.made = Made::Marked;
            return Outcome::Keep;
        }
        namespace.set_deletion_timestamp(Some(self.now()));
        if let Some(root) = namespace.as_object_mut() {
            let status = root.entry("status").or_insert_with(|| Value::Object(serde_json::Map::new()));
            if let Some(status) = status.as_object_mut() {
                status.insert("phase".to_owned(), Value::from("Terminating"));
            }
        }
        let has = |name: &str| namespace.finalizers().any(|finalizer| finalizer == name);
        let (orphan, foreground) = match (self.options.orphan_dependents, self.options.propagation_policy.as_deref()) {
            (Some(orphan), _) => (orphan, !orphan),
            (None, Some(policy)) => (policy == "Orphan", policy == "Foreground"),
            (None, None) => (has(ORPHAN_DEPENDENTS), has(DELETE_DEPENDENTS)),
        };
        let finalizers = with_policy(namespace, orphan, foreground);
        namespace.set_finalizers(finalizers);
        self.made = Made::Marked;
        self.store.core.cache.encode(namespace).map_or(Outcome::Keep, Outcome::Put)
    }
}

fn no_metadata() -> ApiStatus {
    ApiStatus::internal("a stored object has no metadata")
}

/// Whether `spec.finalizers` of a namespace has any.
pub(crate) fn has_spec_finalizers(namespace: &Value) -> bool {
    let finalizers = namespace.pointer("/spec/finalizers").and_then(Value::as_array);
    finalizers.is_some_and(|finalizers| !finalizers.is_empty())
}

fn with_policy(object: &Value, orphan: bool, foreground: bool) -> Vec<String> {
    let others = object.finalizers().filter(|finalizer| !matches!(*finalizer, ORPHAN_DEPENDENTS | DELETE_DEPENDENTS));
    let policy = [(orphan, ORPHAN_DEPENDENTS), (foreground, DELETE_DEPENDENTS)];
    let policy = policy.into_iter().filter(|(wanted, _)| *wanted).map(|(_, name)| name);
    others.chain(policy).map(str::to_owned).collect()
}

fn raise_generation(object: &mut Value) {
    let generation = object.generation();
    if generation > 0 {
        object.set_generation(generation + 1);
    }
}
