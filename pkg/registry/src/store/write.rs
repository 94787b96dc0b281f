//! Creates, replaces and patches objects: the order of steps that every write has.
//!
//! In: a body in the client's version. In between: default, own fields, mutating admission, the strategy's
//! preparation and validation, generic metadata, validating admission. Out: stored bytes.
//!
//! Behaves as `apiserver/pkg/registry/rest/{create,update}.go` and `endpoints/handlers/{create,update}.go`,
//! v1.36.

use std::sync::Arc;

use rkube_api::StoredObject;
use rkube_api::draft::Draft;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::gvk::GroupKind;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::meta::{Meta, MetaMut};
use rkube_apimachinery::random;
use rkube_apimachinery::status::{ApiStatus, OPTIMISTIC_LOCK, Reason};
use rkube_codec::canonicalize;
use rkube_storage::MAX_VALUE_BYTES;
use serde_json::Value;

use crate::admission::{Attributes, Operation, OperationOptions};
use crate::context::RequestContext;
use crate::encode::Encoded;
use crate::hooks::Transaction;
use crate::managed;
use crate::metadata;
use crate::options::{CreateOptions, UpdateOptions};
use crate::store::core::decode_status;
use crate::store::delete::has_spec_finalizers;
use crate::store::rewrite::Source;
use crate::store::{Answer, Store, Target, Written};
use crate::strategy::{SharedStrategy, StrategyContext};

/// Attempts at a generated name: with 27^5 suffixes eight in a row clash once in a million names a thousandth
/// of the time. Only when another create takes the name that was found free does the client have to try again.
const GENERATED_NAMES_MAX: usize = 8;

/// One write request, as its steps need it.
pub(crate) struct WriteRequest<'a> {
    pub(crate) store: &'a Store,
    pub(crate) context: &'a Arc<RequestContext>,
    pub(crate) target: &'a Target,
    /// Of the resource or of the subresource.
    pub(crate) strategy: &'a SharedStrategy,
    pub(crate) field_manager: &'a str,
    pub(crate) dry_run: bool,
}

impl<'a> WriteRequest<'a> {
    pub(crate) fn new(
        store: &'a Store,
        context: &'a Arc<RequestContext>,
        target: &'a Target,
        field_manager: &'a str,
        dry_run: bool,
    ) -> Result<Self, ApiStatus> {
        let strategy = match target.subresource.as_str() {
            "scale" if store.core.scale.is_none() => return Err(store.no_subresource("scale")),
            "" | "scale" => &store.core.strategy,
            name => store.core.subresources.get(name).ok_or_else(|| store.no_subresource(name))?,
        };
        let field_manager = if field_manager.is_empty() { &context.default_field_manager } else { field_manager };
        Ok(Self { store, context, target, strategy, field_manager, dry_run })
    }

    pub(crate) fn strategy_context(&self) -> StrategyContext<'a> {
        StrategyContext {
            request: self.context,
            resource: &self.store.row,
            namespace: &self.target.namespace,
            now: self.store.core.shared.clock.now(),
        }
    }

    pub(crate) fn managed(&self) -> managed::Write<'a> {
        let core = &self.store.core;
        managed::Write {
            ownership: &core.ownership,
            version: &self.store.version,
            ty: if self.store.version.is_stored() { core.ownership.ty() } else { self.store.row.schema },
            schema: &core.schema,
            manager: self.field_manager,
            subresource: &self.target.subresource,
            now: core.shared.clock.now(),
        }
    }

    pub(crate) fn attributes(
        &self,
        operation: Operation,
        name: Arc<str>,
        object: Option<Draft>,
        old_object: Option<Arc<StoredObject>>,
        options: OperationOptions,
    ) -> Attributes {
        self.store.attributes(self.context, self.target, operation, name, object, old_object, options, self.dry_run)
    }

    fn invalid(&self, name: &str, errors: &ErrorList) -> ApiStatus {
        ApiStatus::invalid(&self.store.core.group_kind(), name, errors)
    }

    /// Fills in what a client may leave out. The result is JSON again: field ownership is counted on it.
    pub(crate) fn default(&self, value: Value) -> Result<Value, ApiStatus> {
        let mut value = self.default_new(value)?.into_value();
        self.canonicalize(&mut value);
        Ok(value)
    }

    fn default_new(&self, value: Value) -> Result<Draft, ApiStatus> {
        let mut draft = Draft::new(value);
        // Defaults are the kind's, whichever subresource is written.
        self.store.core.strategy.default(&mut draft).map_err(|error| decode_status(&error))?;
        Ok(draft)
    }

    fn canonicalize(&self, value: &mut Value) {
        let core = &self.store.core;
        canonicalize(value, &core.schema, core.ownership.ty());
    }

    /// Mutating admission, for a body in the stored version.
    pub(crate) async fn admit(&self, attributes: &mut Attributes) -> Result<Draft, ApiStatus> {
        self.context.admission.admit(attributes).await?;
        take(attributes)
    }

    /// Brings the metadata of a new object into order.
    fn complete(&self, object: &mut Value) -> Result<(ObjectKey, ErrorList), ApiStatus> {
        let core = &self.store.core;
        let shared = &core.shared;
        self.dedup_owners(object);
        object.set_creation_timestamp(Some(shared.clock.now()));
        object.set_uid(&new_uid(shared.random.as_ref()));
        metadata::ensure_namespace(object, core.namespaced, &self.target.namespace)?;
        if object.name().is_empty() && !object.generate_name().is_empty() {
            let name = self.free_name(object.namespace(), object.generate_name());
            object.set_name(&name);
        }
        Ok((object.key(), metadata::validate_new(object, core.namespaced)))
    }

    /// A name that nobody has, as far as the cache knows.
    fn free_name(&self, namespace: &str, generate_name: &str) -> String {
        let core = &self.store.core;
        let new_name = || random::generate_name(core.shared.random.as_ref(), generate_name);
        let is_free = |name: &String| core.cache.get(&ObjectKey::new(namespace, name.as_str())).is_none();
        (1..GENERATED_NAMES_MAX).map(|_| new_name()).find(is_free).unwrap_or_else(new_name)
    }

    fn dedup_owners(&self, object: &mut Value) {
        if let Some(warning) = metadata::dedup_owner_references(object, true) {
            self.context.warn(warning);
        }
    }

    /// Everything between mutating admission and storage, for a new object.
    pub(super) async fn build_new(&self, mut draft: Draft, attributes: &mut Attributes) -> Result<Built, ApiStatus> {
        let core = &self.store.core;
        let completed = draft.change_metadata(|object| self.complete(object));
        let (key, metadata_errors) = completed.map_err(|error| decode_status(&error))??;

        let transaction = core.hooks.begin_create(&mut draft, self.dry_run).await?;
        let strategy = &core.strategy;
        let context = self.strategy_context();
        let typed = |error| decode_status(&error);
        strategy.prepare_for_create(&context, &mut draft).map_err(typed)?;
        let errors = strategy.validate(&context, &mut draft).map_err(typed)?;
        // The kind's own findings come first: they name the rule that applies.
        let errors = if errors.is_empty() { metadata_errors } else { errors };
        if !errors.is_empty() {
            return Err(self.invalid(&key.name, &errors));
        }
        for warning in strategy.warnings_on_create(&context, &mut draft).map_err(typed)? {
            self.context.warn(warning);
        }
        strategy.canonicalize(&mut draft).map_err(typed)?;

        attributes.object = Some(draft);
        attributes.name = key.name.clone();
        self.context.admission.validate(attributes).await?;
        let stored = self.encode(take(attributes)?.into_value())?;
        Ok(Built { key, stored, transaction })
    }

    /// Everything between mutating admission and storage, for a change.
    pub(super) async fn build_update(
        &self,
        mut draft: Draft,
        old: &Value,
        existing: &Arc<StoredObject>,
        attributes: &mut Attributes,
    ) -> Result<BuiltUpdate, ApiStatus> {
        let core = &self.store.core;
        let resource = self.store.row.group_resource();
        let name = &self.target.name;
        let completed = draft.change_metadata(|object| self.complete_update(object, old, existing));
        let mut errors = completed.map_err(|error| decode_status(&error))??;

        let transaction = if self.target.subresource.is_empty() {
            core.hooks.begin_update(&mut draft, existing, self.dry_run).await?
        } else {
            None
        };
        let strategy = self.strategy;
        let context = self.strategy_context();
        let typed = |error| decode_status(&error);
        // The cache and its history must not keep a typed form for every state that was ever replaced.
        let existing = &existing.scratch();
        strategy.prepare_for_update(&context, &mut draft, existing).map_err(typed)?;
        errors.extend(strategy.validate_update(&context, &mut draft, existing).map_err(typed)?);
        if !errors.is_empty() {
            return Err(self.invalid(name, &without_repeats(errors)));
        }
        for warning in strategy.warnings_on_update(&context, &mut draft, existing).map_err(typed)? {
            self.context.warn(warning);
        }
        strategy.canonicalize(&mut draft).map_err(typed)?;

        attributes.object = Some(draft);
        // A scale was admitted as a scale.
        if self.target.subresource != "scale" {
            self.context.admission.validate(attributes).await?;
        }
        let mut value = take(attributes)?.into_value();
        self.canonicalize(&mut value);
        managed::keep_times_if_unchanged(old, &mut value);
        if value.name() != &**name {
            return Err(ApiStatus::conflict(&resource, name, "the name of the object was changed"));
        }
        let finished = value.finalizers().next().is_none()
            && old.is_terminating()
            && old.deletion_grace_period_seconds().unwrap_or(0) == 0
            // Only a namespace has finalizers in its spec as well.
            && !has_spec_finalizers(&value);
        if finished {
            return Ok(BuiltUpdate::Finished(value));
        }
        Ok(BuiltUpdate::Changed(self.encode_canonical(value)?, transaction))
    }

    /// Brings the metadata of a changed object into order.
    fn complete_update(
        &self,
        object: &mut Value,
        old: &Value,
        existing: &StoredObject,
    ) -> Result<ErrorList, ApiStatus> {
        let namespaced = self.store.core.namespaced;
        self.dedup_owners(object);
        self.check_version(object, existing)?;
        metadata::ensure_namespace(object, namespaced, &self.target.namespace)?;

        object.set_generation(old.generation());
        if object.uid().is_empty() {
            object.set_uid(old.uid());
        }
        let keep = |field: &str, object: &mut Value| {
            if let Some(known) = old.meta_field(field).filter(|known| !known.is_null()) {
                object.set_meta_field(field, known.clone());
            }
        };
        keep("creationTimestamp", object);
        keep("deletionTimestamp", object);
        if object.deletion_grace_period_seconds().is_none() {
            keep("deletionGracePeriodSeconds", object);
        }
        Ok(metadata::validate_update(object, old, namespaced))
    }

    /// Encodes for storage. Typed values leave out what Go writes; a stored object has one form.
    fn encode(&self, mut value: Value) -> Result<Encoded, ApiStatus> {
        self.canonicalize(&mut value);
        self.encode_canonical(value)
    }

    /// Field ownership is given up rather than the write, when that makes the object fit.
    fn encode_canonical(&self, mut value: Value) -> Result<Encoded, ApiStatus> {
        let cache = &self.store.core.cache;
        let stored = cache.encode(&mut value).map_err(|error| ApiStatus::bad_request(chain(&error).to_string()))?;
        if stored.bytes.len() <= MAX_VALUE_BYTES || value.managed_fields().is_empty() {
            return Ok(stored);
        }
        value.set_managed_fields(Vec::new());
        cache.encode(&mut value).map_err(|error| ApiStatus::internal(chain(&error)))
    }

    /// A version in the body must be the stored one; without one the kind decides whether that is allowed.
    fn check_version(&self, value: &mut Value, existing: &StoredObject) -> Result<(), ApiStatus> {
        let name = &self.target.name;
        let resource = self.store.row.group_resource();
        let path = Path::new("metadata").child("resourceVersion");
        let kind = GroupKind::new(resource.group.as_str(), resource.resource.as_str());
        let given = value.resource_version();
        let version = match given {
            "" | "0" => 0,
            text => text.parse::<u64>().map_err(|_| {
                let detail = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
                ApiStatus::invalid(&kind, name, &[Error::invalid(&path, text, detail)])
            })?,
        };
        if version == 0 && self.strategy.allow_unconditional_update() {
            value.set_resource_version(&existing.revision.to_string());
            return Ok(());
        }
        if version == 0 {
            let error = Error::invalid(&path, 0, "must be specified for an update");
            return Err(ApiStatus::invalid(&kind, name, &[error]));
        }
        if version != existing.revision {
            return Err(ApiStatus::conflict(&resource, name, OPTIMISTIC_LOCK));
        }
        Ok(())
    }
}

pub(super) struct Built {
    key: ObjectKey,
    pub(super) stored: Encoded,
    pub(super) transaction: Option<Box<dyn Transaction>>,
}

pub(super) enum BuiltUpdate {
    Changed(Encoded, Option<Box<dyn Transaction>>),
    /// The last finalizer of a deleted object is gone.
    Finished(Value),
}

pub(super) fn take(attributes: &mut Attributes) -> Result<Draft, ApiStatus> {
    attributes.object.take().ok_or_else(|| ApiStatus::internal("admission removed the object"))
}

/// Generic and kind-specific rules may find the same fault.
fn without_repeats(errors: ErrorList) -> ErrorList {
    let mut kept = ErrorList::with_capacity(errors.len());
    for error in errors {
        if !kept.contains(&error) {
            kept.push(error);
        }
    }
    kept
}

fn new_uid(random: &dyn random::Random) -> String {
    let (high, low) = (random.next_u64(), random.next_u64());
    let bytes = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

impl Store {
    pub(crate) async fn create_object(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        body: Value,
        options: &CreateOptions,
    ) -> Result<Answer, ApiStatus> {
        options.validate()?;
        let request = WriteRequest::new(self, context, target, &options.field_manager, options.is_dry_run())?;
        let mut value = self.version.to_stored(body)?;
        metadata::wipe_system_fields(&mut value);
        metadata::ensure_namespace(&mut value, self.core.namespaced, &target.namespace)?;
        if !matches!(value.resource_version(), "" | "0") {
            let text = "resourceVersion should not be set on objects to be created";
            return Err(ApiStatus::failure(Reason::Unknown, text));
        }
        if let Some(warning) = metadata::dedup_owner_references(&mut value, false) {
            context.warn(warning);
        }
        let name = Arc::from(value.name());
        let generated = !value.generate_name().is_empty();
        let mut draft = request.default_new(value)?;
        draft.own_fields(|value| {
            request.canonicalize(value);
            request.managed().update(None, value);
        });
        let operation = OperationOptions::Create(options.clone());
        let mut attributes = request.attributes(Operation::Create, name, Some(draft), None, operation);
        let draft = request.admit(&mut attributes).await?;
        let built = request.build_new(draft, &mut attributes).await?;
        let created = self.core.create(&built.key, built.stored, request.dry_run).await?;
        match created {
            Ok(object) => {
                if let Some(transaction) = built.transaction {
                    transaction.commit().await;
                }
                self.version.convert_stored(&object).map(Answer::Object)
            }
            Err(existing) => {
                let resource = self.row.group_resource();
                let mut status = ApiStatus::already_exists(&resource, &built.key.name);
                if generated {
                    let text = format!(
                        "{resource} {:?} already exists, the server was not able to generate a unique name for the object",
                        &*built.key.name
                    );
                    status = with_message(status, text).retry_after(1);
                }
                let deleting = existing.is_some_and(|object| object.value().is_ok_and(|value| value.is_terminating()));
                if deleting {
                    let text = format!("object is being deleted: {}", status.message());
                    status = with_message(status, text);
                }
                Err(status)
            }
        }
    }

    pub(crate) async fn update_object(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        body: Value,
        options: &UpdateOptions,
    ) -> Result<Written, ApiStatus> {
        options.validate()?;
        let request = WriteRequest::new(self, context, target, &options.field_manager, options.is_dry_run())?;
        if target.subresource == "scale" {
            return self.rewrite(request, Source::Put(body), false, None, options).await;
        }
        let mut value = self.version.to_stored(body)?;
        metadata::ensure_namespace(&mut value, self.core.namespaced, &target.namespace)?;
        metadata::check_name(&value, &target.name)?;
        if let Some(warning) = metadata::dedup_owner_references(&mut value, false) {
            context.warn(warning);
        }
        let value = request.default(value)?;
        let uid = Some(value.uid().to_owned()).filter(|uid| !uid.is_empty());
        let allow_create = target.subresource.is_empty() && request.strategy.allow_create_on_update();
        self.rewrite(request, Source::Put(value), allow_create, uid, options).await
    }
}

fn with_message(status: ApiStatus, message: String) -> ApiStatus {
    let mut status = status.into_status();
    status.message = message;
    ApiStatus::from_wire(status)
}
