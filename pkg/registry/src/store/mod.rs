//! The generic store: every verb of every kind, over one strategy and one watch cache.
//!
//! Behaves as `apiserver/pkg/registry/generic/registry/store.go`, v1.36.

pub(crate) mod convert;
pub(crate) mod core;
mod delete;
mod patch;
mod read;
mod rewrite;
pub mod watch;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use rkube_api::StoredObject;
use rkube_api::draft::Draft;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::status::{ApiStatus, Status};
use serde_json::Value;

use crate::admission::{Attributes, Operation, OperationOptions};
use crate::context::RequestContext;
use crate::options::{CreateOptions, DeleteOptions, GetOptions, ListOptions, PatchOptions, UpdateOptions};

pub(crate) use delete::success;

use convert::Version;
use core::Core;

pub use watch::{WatchEvent, Watcher};

/// One resource in one version. Objects go in and come out in that version; versions of a resource
/// share their objects, their cache and their strategies.
#[derive(Clone)]
pub struct Store {
    row: SharedResource,
    version: Version,
    core: Arc<Core>,
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// As in the URL: empty for a create of the resource itself.
    pub name: Arc<str>,
    /// Empty for the resource itself.
    pub subresource: String,
}

impl Target {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into(), subresource: String::new() }
    }

    #[must_use]
    pub fn subresource(mut self, name: &str) -> Self {
        self.subresource = name.to_owned();
        self
    }
}

/// What a create or a delete answers with.
#[derive(Clone, Debug)]
pub enum Answer {
    Object(Arc<StoredObject>),
    Status(Box<Status>),
}

/// The object after an update, a patch or an apply.
#[derive(Clone, Debug)]
pub struct Written {
    pub object: Arc<StoredObject>,
    /// It did not exist before: 201.
    pub created: bool,
}

#[derive(Clone, Debug)]
pub struct Deleted {
    pub answer: Answer,
    /// False when finalizers or a grace period keep the object: 202 if the request set `orphanDependents: false`.
    pub immediate: bool,
}

/// A page of objects at one revision.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    pub items: Vec<Arc<StoredObject>>,
    pub revision: u64,
    /// Empty on the last page.
    pub continue_token: String,
    pub remaining_item_count: Option<i64>,
}

/// A patch body as the client sent it.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Bytes),
    /// RFC 7386.
    Merge(Bytes),
    Strategic(Bytes),
    /// Server-side apply, YAML or JSON.
    Apply(Bytes),
}

impl Store {
    pub(crate) fn new(row: SharedResource, core: Arc<Core>) -> Self {
        let version = Version::new(&row, &core.stored);
        Self { row, version, core }
    }

    pub fn resource(&self) -> &SharedResource {
        &self.row
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Reads an object, or a subresource that can be read (`status`, `scale`).
    pub async fn get(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        options: &GetOptions,
    ) -> Result<Arc<StoredObject>, ApiStatus> {
        let object = self.get_object(context, target, options).await?;
        if target.subresource == "scale" { self.scale_of(&object) } else { Ok(object) }
    }

    /// Lists a namespace, or everything for an empty `namespace`.
    pub async fn list(
        &self,
        context: &Arc<RequestContext>,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<ListPage, ApiStatus> {
        self.list_objects(context, namespace, options).await
    }

    /// Watches a namespace, or everything for an empty `namespace`. A version that is too old ends the
    /// watch with an `Error` event.
    pub async fn watch(
        &self,
        context: &Arc<RequestContext>,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<Watcher, ApiStatus> {
        self.watch_objects(context, namespace, options).await
    }

    /// Creates an object, or posts to a subresource (`binding`, `eviction`, `token`). `body` has passed
    /// the schema check and is in this store's version.
    pub async fn create(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        body: Value,
        options: &CreateOptions,
    ) -> Result<Answer, ApiStatus> {
        match target.subresource.as_str() {
            "" => self.create_object(context, target, body, options).await,
            "binding" => self.bind(context, target, body, options).await,
            "eviction" => self.evict(context, target, body, options).await,
            "token" => self.request_token(context, target, body, options).await,
            other => Err(self.no_subresource(other)),
        }
    }

    /// Replaces an object or a subresource. `body` has passed the schema check.
    pub async fn update(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        body: Value,
        options: &UpdateOptions,
    ) -> Result<Written, ApiStatus> {
        self.update_object(context, target, body, options).await
    }

    pub async fn patch(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        patch: Patch,
        options: &PatchOptions,
    ) -> Result<Written, ApiStatus> {
        self.patch_object(context, target, patch, options).await
    }

    pub async fn delete(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        options: DeleteOptions,
    ) -> Result<Deleted, ApiStatus> {
        self.delete_object(context, target, options).await
    }

    /// Deletes what `list` selects and answers with what was deleted.
    pub async fn delete_collection(
        &self,
        context: &Arc<RequestContext>,
        namespace: &str,
        options: DeleteOptions,
        list: &ListOptions,
    ) -> Result<ListPage, ApiStatus> {
        self.delete_objects(context, namespace, options, list).await
    }

    pub(crate) fn key(&self, target: &Target) -> ObjectKey {
        let namespace = if self.core.namespaced { target.namespace.clone() } else { Arc::from("") };
        ObjectKey::new(namespace, target.name.clone())
    }

    pub(crate) fn no_subresource(&self, name: &str) -> ApiStatus {
        let resource = self.row.group_resource();
        ApiStatus::method_not_supported(&resource, &format!("{name} of this resource: writing"))
    }

    #[allow(clippy::too_many_arguments, reason = "attributes are this many independent facts")]
    pub(crate) fn attributes(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        operation: Operation,
        name: Arc<str>,
        object: Option<Draft>,
        old_object: Option<Arc<StoredObject>>,
        options: OperationOptions,
        dry_run: bool,
    ) -> Attributes {
        // A request about a namespace is in that namespace, to everybody who decides about it.
        let is_namespace = self.row.group.is_empty() && self.row.plural == "namespaces";
        let namespace = if is_namespace { name.clone() } else { target.namespace.clone() };
        Attributes {
            operation,
            resource: self.row.clone(),
            subresource: target.subresource.clone(),
            kind: self.version.stored().clone(),
            namespace,
            name,
            object,
            old_object,
            options,
            dry_run,
            context: context.clone(),
        }
    }
}
