//! The four kinds of patches.
//!
//! Behaves as `apiserver/pkg/endpoints/handlers/patch.go`, v1.36.

use std::sync::Arc;

use bytes::Bytes;
use rkube_apimachinery::field::{Error, Path};
use rkube_apimachinery::gvk::{GroupKind, GroupVersionKind};
use rkube_apimachinery::meta::Meta;
use rkube_apimachinery::patch::json::JsonPatch;
use rkube_apimachinery::patch::{merge, strategic};
use rkube_apimachinery::schema::{SchemaSet, TypeId};
use rkube_apimachinery::status::ApiStatus;
use rkube_codec::json::decode as json;
use rkube_codec::{FieldValidation, yaml};
use serde_json::Value;

use crate::context::RequestContext;
use crate::managed::ScaleWrite;
use crate::metadata;
use crate::options::{PatchOptions, UpdateOptions};
use crate::store::rewrite::Source;
use crate::store::write::WriteRequest;
use crate::store::{Patch, Store, Target, Written};

/// A patch, parsed.
pub(crate) struct PatchRequest {
    patch: Parsed,
    force: bool,
    validation: FieldValidation,
    /// What strict decoding has against the patch itself.
    problems: Vec<String>,
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
        let validation = FieldValidation::parse(&options.field_validation).unwrap_or_default();
        let mut patch = PatchRequest::parse(patch, validation)?;
        patch.force = options.force.unwrap_or(false);
        if apply {
            patch.report_yaml(context)?;
        }
        let update = UpdateOptions {
            dry_run: options.dry_run.clone(),
            field_manager: options.field_manager.clone(),
            field_validation: options.field_validation.clone(),
        };
        let allow_create = apply && target.subresource.is_empty();
        self.rewrite(request, Source::Patch(patch), allow_create, None, &update).await
    }
}

impl PatchRequest {
    fn parse(patch: Patch, validation: FieldValidation) -> Result<Self, ApiStatus> {
        let check = validation != FieldValidation::Ignore;
        let mut problems = Vec::new();
        let mut object = |body: &Bytes| {
            let decoded = json::untyped(body, check);
            let decoded = decoded.map_err(|error| ApiStatus::bad_request(format!("error decoding patch: {error}")))?;
            problems = decoded.problems;
            Ok::<Value, ApiStatus>(decoded.value)
        };
        let patch = match patch {
            Patch::Json(body) => {
                let patch = JsonPatch::parse(&body)?;
                if check {
                    object(&body)?;
                    problems.extend(patch.unknown_members());
                    problems.iter_mut().for_each(|problem| problem.insert_str(0, "json patch "));
                }
                Parsed::Json(patch)
            }
            Patch::Merge(body) => Parsed::Merge(object(&body)?),
            Patch::Strategic(body) => Parsed::Strategic(object(&body)?),
            Patch::Apply(body) => {
                let parsed = yaml::parse(&body);
                let parsed = parsed.map_err(|error| ApiStatus::bad_request(format!("error decoding YAML: {error}")))?;
                if !parsed.value.is_object() {
                    return Err(ApiStatus::bad_request("error decoding YAML: the configuration is not an object"));
                }
                problems.extend(parsed.duplicate.filter(|_| check));
                Parsed::Apply(parsed.value)
            }
        };
        Ok(Self { patch, force: false, validation, problems })
    }

    /// Says what is wrong with the text of an applied configuration.
    fn report_yaml(&self, context: &RequestContext) -> Result<(), ApiStatus> {
        match (self.validation, self.problems.first()) {
            (FieldValidation::Strict, Some(first)) => {
                Err(ApiStatus::bad_request(format!("error strict decoding YAML: {first}")))
            }
            _ => {
                self.problems.iter().for_each(|problem| context.warn(problem.as_str()));
                Ok(())
            }
        }
    }

    /// Checks and prunes a patched object against its schema, as a body is when it is decoded.
    fn checked(
        &self,
        context: &RequestContext,
        patched: Value,
        kind: &GroupVersionKind,
        schema: &SchemaSet,
        ty: TypeId,
    ) -> Result<Value, ApiStatus> {
        // An applied configuration was checked field by field before it was merged.
        let check = self.validation != FieldValidation::Ignore && !self.is_apply();
        // The text of the whole object is made only for an error.
        // Differs from upstream: errors are written to logs, so a Secret is not repeated in one.
        let is_secret = kind.group.is_empty() && kind.kind == "Secret";
        let invalid = |text: String| {
            let shown = if is_secret { "a Secret".to_owned() } else { patched.to_string() };
            let error = Error::invalid(&Path::new("patch"), shown, text);
            ApiStatus::invalid(&GroupKind::new("", ""), "", &[error])
        };
        let decoded = json::from_value(&patched, schema, ty, check).map_err(|error| invalid(error.to_string()))?;
        if let Some(found) =
            decoded.value.gvk().filter(|found| !found.kind.is_empty() && !found.version.is_empty() && found != kind)
        {
            let name = |kind: &GroupVersionKind| format!("({}.{})", kind.version, kind.kind);
            return Err(invalid(format!("converting {} to {}: unknown conversion", name(&found), name(kind))));
        }
        let problems: Vec<&str> = self.problems.iter().chain(&decoded.problems).map(String::as_str).collect();
        if check && !problems.is_empty() {
            if self.validation == FieldValidation::Strict {
                return Err(invalid(format!("strict decoding error: {}", problems.join(", "))));
            }
            problems.into_iter().for_each(|problem| context.warn(problem));
        }
        Ok(decoded.value)
    }

    /// The object after the patch, in the stored version, with defaults and owned fields. `old` is the object as it
    /// is stored; `None` when an apply creates it.
    pub(crate) fn apply(&self, request: &WriteRequest<'_>, old: Option<&Value>) -> Result<Value, ApiStatus> {
        let store = request.store;
        let target = request.target;
        let Some(old) = old else {
            let Parsed::Apply(config) = &self.patch else {
                return Err(ApiStatus::not_found(&store.row.group_resource(), &target.name));
            };
            let new = self.finish(request, request.managed().apply(None, config, self.force)?)?;
            if !new.uid().is_empty() {
                let text = format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    new.uid()
                );
                return Err(ApiStatus::conflict(&store.row.group_resource(), &target.name, &text));
            }
            return Ok(new);
        };
        if let Parsed::Apply(config) = &self.patch {
            let applied = request.managed().apply(Some(old), config, self.force)?;
            return self.finish(request, applied);
        }
        // The patch is written for the version the client speaks.
        let current = store.version.of_stored(old.clone());
        let patched = self.apply_plain(current, &store.core.schema, store.row.schema)?;
        let checked = self.checked(request.context, patched, &store.row.gvk(), &store.core.schema, store.row.schema)?;
        let mut new = self.finish(request, store.version.to_stored(checked)?)?;
        request.managed().update(Some(old), &mut new);
        Ok(new)
    }

    /// The three kinds of patches that know no owners.
    fn apply_plain(&self, mut document: Value, schema: &SchemaSet, ty: TypeId) -> Result<Value, ApiStatus> {
        match &self.patch {
            Parsed::Json(patch) => patch.clone().apply(&mut document)?,
            Parsed::Merge(patch) => merge::apply(&mut document, patch.clone())?,
            Parsed::Strategic(patch) => strategic::apply(schema, ty, &mut document, patch.clone())?,
            Parsed::Apply(_) => return Err(ApiStatus::internal("an apply is no plain patch")),
        }
        Ok(document)
    }

    /// The scale after the patch.
    pub(crate) fn apply_to_scale(
        &self,
        context: &RequestContext,
        current: &Value,
        owners: &ScaleWrite<'_>,
    ) -> Result<Value, ApiStatus> {
        if let Parsed::Apply(config) = &self.patch {
            return owners.apply(current, config, self.force);
        }
        let kind = GroupVersionKind::new("autoscaling", "v1", "Scale");
        let ty = rkube_api::type_of(&kind).ok_or_else(|| ApiStatus::internal("the schema has no Scale"))?;
        let patched = self.apply_plain(current.clone(), rkube_api::schema(), ty)?;
        self.checked(context, patched, &kind, rkube_api::schema(), ty)
    }

    pub(crate) fn is_apply(&self) -> bool {
        matches!(self.patch, Parsed::Apply(_))
    }

    fn finish(&self, request: &WriteRequest<'_>, patched: Value) -> Result<Value, ApiStatus> {
        let mut new = patched;
        metadata::ensure_namespace(&mut new, request.store.core.namespaced, &request.target.namespace)?;
        metadata::check_name(&new, &request.target.name)?;
        request.default(new)
    }
}
