//! The four kinds of patches.
//!
//! Behaves as `apiserver/pkg/endpoints/handlers/patch.go`, v1.36.

use std::sync::Arc;

use bytes::Bytes;
use rkube_apimachinery::meta::Meta;
use rkube_apimachinery::patch::json::JsonPatch;
use rkube_apimachinery::patch::{merge, strategic};
use rkube_apimachinery::status::ApiStatus;
use serde_json::Value;

use crate::context::RequestContext;
use crate::managed;
use crate::metadata;
use crate::options::{PatchOptions, UpdateOptions};
use crate::store::write::{Source, WriteRequest};
use crate::store::{Patch, Store, Target, Written};

/// A patch, parsed.
pub(crate) struct PatchRequest {
    patch: Parsed,
    force: bool,
}

enum Parsed {
    Json(JsonPatch),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

impl Store {
    pub(crate) async fn patch_object(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        patch: Patch,
        options: &PatchOptions,
    ) -> Result<Written, ApiStatus> {
        let apply = matches!(patch, Patch::Apply(_));
        options.validate(apply)?;
        let request = WriteRequest::new(self, context, target, &options.field_manager, options.is_dry_run())?;
        let patch = PatchRequest { patch: parse(patch)?, force: options.force.unwrap_or(false) };
        let update = UpdateOptions {
            dry_run: options.dry_run.clone(),
            field_manager: options.field_manager.clone(),
            field_validation: options.field_validation.clone(),
        };
        let allow_create = apply && target.subresource.is_empty();
        self.rewrite(request, Source::Patch(patch), allow_create, None, &update).await
    }
}

fn parse(patch: Patch) -> Result<Parsed, ApiStatus> {
    match patch {
        Patch::Json(body) => Ok(Parsed::Json(JsonPatch::parse(&body)?)),
        Patch::Merge(body) => parse_object(&body).map(Parsed::Merge),
        Patch::Strategic(body) => parse_object(&body).map(Parsed::Strategic),
        Patch::Apply(body) => parse_object(&body).map(Parsed::Apply),
    }
}

fn parse_object(body: &Bytes) -> Result<Value, ApiStatus> {
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(ApiStatus::bad_request("error decoding patch: the patch is not an object")),
        Err(error) => Err(ApiStatus::bad_request(format!("error decoding patch: {error}"))),
    }
}

impl PatchRequest {
    /// The object after the patch, in the stored version, with defaults and owned fields. `current` is the
    /// object in the client's version and as it is stored; `None` when an apply creates it.
    pub(crate) fn apply(
        &mut self,
        request: &WriteRequest<'_>,
        current: Option<(Value, &Value)>,
    ) -> Result<Value, ApiStatus> {
        let store = request.store;
        let target = request.target;
        let Some((current, old)) = current else {
            let Parsed::Apply(config) = &self.patch else {
                return Err(ApiStatus::not_found(&store.row.group_resource(), &target.name));
            };
            let new = managed::apply(None, config.clone(), self.force, &request.managed())?;
            let new = self.finish(request, new)?;
            if !new.uid().is_empty() {
                let text = format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    new.uid()
                );
                return Err(ApiStatus::conflict(&store.row.group_resource(), &target.name, &text));
            }
            return Ok(new);
        };
        let patched = match &self.patch {
            Parsed::Json(patch) => {
                let mut patched = current;
                patch.clone().apply(&mut patched)?;
                patched
            }
            Parsed::Merge(patch) => {
                let mut patched = current;
                merge::apply(&mut patched, patch.clone())?;
                patched
            }
            Parsed::Strategic(patch) => {
                let mut patched = current;
                strategic::apply(&store.core.schema, store.row.schema, &mut patched, patch.clone())?;
                patched
            }
            Parsed::Apply(config) => managed::apply(Some(&current), config.clone(), self.force, &request.managed())?,
        };
        let mut new = self.finish(request, patched)?;
        if !matches!(self.patch, Parsed::Apply(_)) {
            managed::update(Some(old), &mut new, &request.managed());
        }
        Ok(new)
    }

    fn finish(&self, request: &WriteRequest<'_>, patched: Value) -> Result<Value, ApiStatus> {
        let mut new = request.store.version.to_stored(patched)?;
        metadata::ensure_namespace(&mut new, request.store.core.namespaced, &request.target.namespace)?;
        metadata::check_name(&new, &request.target.name)?;
        request.default(new)
    }
}
