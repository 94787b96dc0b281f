//! Replaces, patches and scales objects: one change on what is stored, decided again when that has changed.
//!
//! Behaves as `apiserver/pkg/registry/generic/registry/store.go` (`Update`) and
//! `endpoints/handlers/{update,patch}.go`, v1.36.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::StoredObject;
use rkube_api::draft::Draft;
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::meta::{Meta, MetaMut};
use rkube_apimachinery::status::ApiStatus;
use serde_json::Value;

use super::write::{BuiltUpdate, WriteRequest, take};
use crate::admission::{Operation, OperationOptions};
use crate::hooks::Transaction;
use crate::managed::ScaleWrite;
use crate::metadata;
use crate::options::{CreateOptions, UpdateOptions};
use crate::store::convert::object_of;
use crate::store::core::{ChangeMade, Outcome, Updater};
use crate::store::patch::PatchRequest;
use crate::store::{Store, Written};
use crate::subresource::scale::ScalePaths;

impl Store {
    /// Replaces or patches, and finishes a deletion if that was the last finalizer.
    pub(crate) async fn rewrite(
        &self,
        request: WriteRequest<'_>,
        source: Source,
        allow_create: bool,
        uid: Option<String>,
        options: &UpdateOptions,
    ) -> Result<Written, ApiStatus> {
        let key = self.key(request.target);
        let dry_run = request.dry_run;
        let is_scale = request.target.subresource == "scale";
        let mut rewrite = Rewrite { request, source, allow_create, uid, options, transaction: None, finished: None };
        let resource = self.row.group_resource();
        let updated = self.core.guaranteed_update(&resource, &key, dry_run, &mut rewrite).await?;
        let mut object = updated.object;
        match updated.change {
            ChangeMade::Deleted => {
                if !dry_run {
                    self.core.hooks.after_delete(&object).await;
                }
                // The client sees what it sent, not the last state with the finalizer.
                if let Some(value) = rewrite.finished.take() {
                    object = Arc::new(object_of(&object, &value)?);
                }
            }
            ChangeMade::Created | ChangeMade::Updated if !dry_run => {
                if let Some(transaction) = rewrite.transaction.take() {
                    transaction.commit().await;
                }
            }
            _ => {}
        }
        let object = if is_scale { self.scale_of(&object)? } else { self.version.convert_stored(&object)? };
        Ok(Written { object, created: updated.change == ChangeMade::Created })
    }
}

/// Where the new state comes from.
pub(crate) enum Source {
    /// The body of a PUT, in the stored version, with defaults; or a scale.
    Put(Value),
    Patch(PatchRequest),
}

struct Rewrite<'a> {
    request: WriteRequest<'a>,
    source: Source,
    allow_create: bool,
    uid: Option<String>,
    options: &'a UpdateOptions,
    transaction: Option<Box<dyn Transaction>>,
    finished: Option<Value>,
}

impl Updater for Rewrite<'_> {
    fn update<'a>(&'a mut self, existing: Option<&'a Arc<StoredObject>>) -> BoxFuture<'a, Result<Outcome, ApiStatus>> {
        Box::pin(async move {
            self.transaction = None;
            self.finished = None;
            self.check_uid(existing)?;
            match existing {
                Some(existing) => self.change(existing).await,
                None if self.allow_create => self.create().await,
                None => {
                    let resource = self.request.store.row.group_resource();
                    Err(ApiStatus::not_found(&resource, &self.request.target.name))
                }
            }
        })
    }
}

impl Rewrite<'_> {
    fn check_uid(&self, existing: Option<&Arc<StoredObject>>) -> Result<(), ApiStatus> {
        let Some(wanted) = &self.uid else {
            return Ok(());
        };
        let uid = match existing {
            Some(object) => object.selection.uid.as_str(),
            None if self.allow_create => "",
            None => return Ok(()),
        };
        if wanted == uid {
            return Ok(());
        }
        let text = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        Err(ApiStatus::conflict(&self.request.store.row.group_resource(), &self.request.target.name, &text))
    }

    async fn change(&mut self, existing: &Arc<StoredObject>) -> Result<Outcome, ApiStatus> {
        let request = &self.request;
        let store = request.store;
        let read = |error| ApiStatus::internal(format!("reading {}: {error}", existing.key));
        let old = existing.value().map_err(read)?;
        if let (Some(paths), "scale") = (&store.core.scale, request.target.subresource.as_str()) {
            return self.change_scale(paths, old, existing).await;
        }
        let managed = request.managed();
        let new = match &mut self.source {
            Source::Put(body) => {
                let mut new = body.clone();
                managed.update(Some(&old), &mut new);
                new
            }
            Source::Patch(patch) => patch.apply(request, Some(&old))?,
        };
        let options = OperationOptions::Update(self.options.clone());
        let mut attributes = request.attributes(
            Operation::Update,
            request.target.name.clone(),
            Some(Draft::new(new)),
            Some(existing.clone()),
            options,
        );
        let new = request.admit(&mut attributes).await?;
        match request.build_update(new, &old, existing, &mut attributes).await? {
            BuiltUpdate::Changed(stored, transaction) => {
                self.transaction = transaction;
                Ok(Outcome::Put(stored))
            }
            BuiltUpdate::Finished(value) => {
                self.finished = Some(value);
                Ok(Outcome::Delete)
            }
        }
    }

    /// The scale is what is sent and admitted; the object it scales is what is validated and stored.
    async fn change_scale(
        &mut self,
        paths: &ScalePaths,
        old: Value,
        existing: &Arc<StoredObject>,
    ) -> Result<Outcome, ApiStatus> {
        let request = &self.request;
        let store = request.store;
        let managed = request.managed();
        let owners = ScaleWrite::new(&managed, paths)?;
        let mut current = paths.read(&old)?;
        owners.own(&mut current, &old)?;
        let mut scale = match &self.source {
            Source::Put(body) => body.clone(),
            Source::Patch(patch) => patch.apply_to_scale(request.context, &current, &owners)?,
        };
        metadata::ensure_namespace(&mut scale, store.core.namespaced, &request.target.namespace)?;
        metadata::check_name(&scale, &request.target.name)?;
        if !scale.uid().is_empty() && scale.uid() != old.uid() {
            let text =
                format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", scale.uid(), old.uid());
            return Err(ApiStatus::conflict(&store.scale_resource(), &request.target.name, &text));
        }
        if !matches!(&self.source, Source::Patch(patch) if patch.is_apply()) {
            owners.update(&current, &mut scale);
        }
        let options = OperationOptions::Update(self.options.clone());
        let old_scale = Arc::new(object_of(existing, &current)?);
        let name = request.target.name.clone();
        let mut attributes =
            request.attributes(Operation::Update, name.clone(), Some(Draft::new(scale)), Some(old_scale), options);
        attributes.kind = GroupVersionKind::new("autoscaling", "v1", "Scale");
        request.context.admission.admit(&mut attributes).await?;
        let scale = take(&mut attributes)?.into_value();

        let mut new = old.clone();
        paths.write(&scale, &mut new, &name)?;
        new.set_resource_version(scale.resource_version());
        owners.give_back(&scale, &mut new)?;
        attributes.object = Some(Draft::new(scale));
        request.context.admission.validate(&mut attributes).await?;
        match request.build_update(Draft::new(new), &old, existing, &mut attributes).await? {
            BuiltUpdate::Changed(stored, transaction) => {
                self.transaction = transaction;
                Ok(Outcome::Put(stored))
            }
            BuiltUpdate::Finished(_) => Ok(Outcome::Keep),
        }
    }

    async fn create(&mut self) -> Result<Outcome, ApiStatus> {
        let request = &self.request;
        let mut new = match &mut self.source {
            Source::Put(body) => {
                let mut new = body.clone();
                request.managed().update(None, &mut new);
                new
            }
            Source::Patch(patch) => patch.apply(request, None)?,
        };
        new.set_resource_version("");
        let options = OperationOptions::Create(CreateOptions {
            dry_run: self.options.dry_run.clone(),
            field_manager: self.options.field_manager.clone(),
            field_validation: self.options.field_validation.clone(),
        });
        let name = request.target.name.clone();
        let mut attributes = request.attributes(Operation::Create, name, Some(Draft::new(new)), None, options);
        let new = request.admit(&mut attributes).await?;
        if let Some(authorizer) = &request.context.create_authorizer {
            authorizer.authorize_create(&attributes).await?;
        }
        let built = request.build_new(new, &mut attributes).await?;
        self.transaction = built.transaction;
        Ok(Outcome::Put(built.stored))
    }
}
