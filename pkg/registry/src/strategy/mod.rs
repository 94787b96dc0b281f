//! What is particular about a kind: what clients may set, what is valid, how it is deleted.
//!
//! Strategies work on the **storage version** of a kind; the store converts before and after. They see
//! no HTTP, no authorization, no storage keys, no conflicts, no finalizers and no watch.
//!
//! The order of steps is upstream's `rest.BeforeCreate` and `rest.BeforeUpdate`:
//! decode, `default`, mutating admission, `prepare_for_*`, `validate*`, `warnings_on_*`, `canonicalize`,
//! validating admission, write.
//!
//! Behaves as `apiserver/pkg/registry/rest/{create,update,delete}.go`, v1.36.

mod apps;
mod batch;
mod cluster;
mod core;
mod extension;
pub mod generic;
mod networking;
mod resource;
mod rules;
mod storage;
mod table;

use std::sync::Arc;

use jiff::Timestamp;
use rkube_api::draft::Draft;
use rkube_api::kind::DecodeError;
use rkube_api::{Kind, Resource, StoredObject};
use rkube_apimachinery::field::ErrorList;

use crate::context::RequestContext;
use crate::options::DeleteOptions;

pub use table::{Registration, strategies};

/// What a strategy may know of the request.
#[derive(Clone, Copy)]
pub struct StrategyContext<'a> {
    pub request: &'a RequestContext,
    /// The row the client spoke to, which may be of another version than the object (events, autoscalers).
    pub resource: &'a Resource,
    pub namespace: &'a str,
    pub now: Timestamp,
}

/// What a delete that names no policy does with dependents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GarbageCollectionPolicy {
    #[default]
    DeleteDependents,
    /// `replicationcontrollers` and `batch/v1` Jobs, by compatibility.
    OrphanDependents,
    /// Objects that cannot have dependents: no finalizer is ever set for them.
    Unsupported,
}

/// Paths from the root that requests through this strategy cannot set, so nobody comes to own them by
/// applying: `["status"]`, `["metadata", "deletionTimestamp"]`.
pub type ResetFields = &'static [&'static [&'static str]];

/// The policy of one kind, with the object typed. Status and other same-kind subresources
/// (`status`, `approval`, `finalize`, `ephemeralcontainers`, `resize`) have strategies of their own, of
/// which only the update half is used.
#[allow(unused_variables, reason = "the names document what an implementation gets")]
pub trait TypedStrategy: Send + Sync + 'static {
    type Object: Kind;

    /// Fills in what the client left out. Runs on what clients send and on results of patches, before
    /// admission sees them.
    fn default(&self, object: &mut Self::Object) {}

    fn prepare_for_create(&self, context: &StrategyContext<'_>, object: &mut Self::Object) {}

    /// Everything about a new object, its name included; generic metadata is checked by the store.
    fn validate(&self, context: &StrategyContext<'_>, object: &Self::Object) -> ErrorList {
        ErrorList::new()
    }

    fn warnings_on_create(&self, context: &StrategyContext<'_>, object: &Self::Object) -> Vec<String> {
        Vec::new()
    }

    fn canonicalize(&self, object: &mut Self::Object) {}

    /// `new.metadata.generation` comes in as the old one; raise it when the intent changed.
    fn prepare_for_update(&self, context: &StrategyContext<'_>, new: &mut Self::Object, old: &Self::Object) {}

    fn validate_update(&self, context: &StrategyContext<'_>, new: &Self::Object, old: &Self::Object) -> ErrorList {
        ErrorList::new()
    }

    fn warnings_on_update(&self, context: &StrategyContext<'_>, new: &Self::Object, old: &Self::Object) -> Vec<String> {
        Vec::new()
    }

    /// PUT of an object that does not exist creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// PUT without a resourceVersion is allowed.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    fn default_garbage_collection_policy(&self) -> GarbageCollectionPolicy {
        GarbageCollectionPolicy::DeleteDependents
    }

    /// True when the object is deleted gracefully; then `options.grace_period_seconds` must be set.
    fn check_graceful_delete(
        &self,
        context: &StrategyContext<'_>,
        object: &Self::Object,
        options: &mut DeleteOptions,
    ) -> bool {
        false
    }

    /// DELETE answers with the object instead of a Status.
    fn returns_deleted_object(&self) -> bool {
        false
    }

    fn reset_fields(&self) -> ResetFields {
        &[]
    }
}

/// A strategy with the kind erased. Built-in kinds implement [`TypedStrategy`]; custom resources
/// implement this on `Draft::value`.
///
/// # Assumptions
/// Drafts hold an object of the strategy's kind, checked against its schema.
#[allow(unused_variables, reason = "the names document what an implementation gets")]
pub trait Strategy: Send + Sync + 'static {
    fn default(&self, object: &mut Draft) -> Result<(), DecodeError> {
        Ok(())
    }

    fn prepare_for_create(&self, context: &StrategyContext<'_>, object: &mut Draft) -> Result<(), DecodeError> {
        Ok(())
    }

    fn validate(&self, context: &StrategyContext<'_>, object: &mut Draft) -> Result<ErrorList, DecodeError> {
        Ok(ErrorList::new())
    }

    fn warnings_on_create(
        &self,
        context: &StrategyContext<'_>,
        object: &mut Draft,
    ) -> Result<Vec<String>, DecodeError> {
        Ok(Vec::new())
    }

    fn canonicalize(&self, object: &mut Draft) -> Result<(), DecodeError> {
        Ok(())
    }

    fn prepare_for_update(
        &self,
        context: &StrategyContext<'_>,
        new: &mut Draft,
        old: &StoredObject,
    ) -> Result<(), DecodeError> {
        Ok(())
    }

    fn validate_update(
        &self,
        context: &StrategyContext<'_>,
        new: &mut Draft,
        old: &StoredObject,
    ) -> Result<ErrorList, DecodeError> {
        Ok(ErrorList::new())
    }

    fn warnings_on_update(
        &self,
        context: &StrategyContext<'_>,
        new: &mut Draft,
        old: &StoredObject,
    ) -> Result<Vec<String>, DecodeError> {
        Ok(Vec::new())
    }

    fn allow_create_on_update(&self) -> bool {
        false
    }

    fn allow_unconditional_update(&self) -> bool {
        true
    }

    fn default_garbage_collection_policy(&self) -> GarbageCollectionPolicy {
        GarbageCollectionPolicy::DeleteDependents
    }

    fn check_graceful_delete(
        &self,
        context: &StrategyContext<'_>,
        object: &StoredObject,
        options: &mut DeleteOptions,
    ) -> Result<bool, DecodeError> {
        Ok(false)
    }

    fn returns_deleted_object(&self) -> bool {
        false
    }

    fn reset_fields(&self) -> ResetFields {
        &[]
    }
}

pub type SharedStrategy = Arc<dyn Strategy>;

/// Erases the kind of a strategy.
pub fn erase<S: TypedStrategy>(strategy: S) -> SharedStrategy {
    Arc::new(Erased(strategy))
}

struct Erased<S>(S);

impl<S: TypedStrategy> Strategy for Erased<S> {
    fn default(&self, object: &mut Draft) -> Result<(), DecodeError> {
        self.0.default(object.typed()?);
        Ok(())
    }

    fn prepare_for_create(&self, context: &StrategyContext<'_>, object: &mut Draft) -> Result<(), DecodeError> {
        self.0.prepare_for_create(context, object.typed()?);
        Ok(())
    }

    fn validate(&self, context: &StrategyContext<'_>, object: &mut Draft) -> Result<ErrorList, DecodeError> {
        Ok(self.0.validate(context, object.typed()?))
    }

    fn warnings_on_create(
        &self,
        context: &StrategyContext<'_>,
        object: &mut Draft,
    ) -> Result<Vec<String>, DecodeError> {
        Ok(self.0.warnings_on_create(context, object.typed()?))
    }

    fn canonicalize(&self, object: &mut Draft) -> Result<(), DecodeError> {
        self.0.canonicalize(object.typed()?);
        Ok(())
    }

    fn prepare_for_update(
        &self,
        context: &StrategyContext<'_>,
        new: &mut Draft,
        old: &StoredObject,
    ) -> Result<(), DecodeError> {
        let old = old.typed::<S::Object>()?;
        self.0.prepare_for_update(context, new.typed()?, &old);
        Ok(())
    }

    fn validate_update(
        &self,
        context: &StrategyContext<'_>,
        new: &mut Draft,
        old: &StoredObject,
    ) -> Result<ErrorList, DecodeError> {
        let old = old.typed::<S::Object>()?;
        Ok(self.0.validate_update(context, new.typed()?, &old))
    }

    fn warnings_on_update(
        &self,
        context: &StrategyContext<'_>,
        new: &mut Draft,
        old: &StoredObject,
    ) -> Result<Vec<String>, DecodeError> {
        let old = old.typed::<S::Object>()?;
        Ok(self.0.warnings_on_update(context, new.typed()?, &old))
    }

    fn allow_create_on_update(&self) -> bool {
        self.0.allow_create_on_update()
    }

    fn allow_unconditional_update(&self) -> bool {
        self.0.allow_unconditional_update()
    }

    fn default_garbage_collection_policy(&self) -> GarbageCollectionPolicy {
        self.0.default_garbage_collection_policy()
    }

    fn check_graceful_delete(
        &self,
        context: &StrategyContext<'_>,
        object: &StoredObject,
        options: &mut DeleteOptions,
    ) -> Result<bool, DecodeError> {
        let object = object.typed::<S::Object>()?;
        Ok(self.0.check_graceful_delete(context, &object, options))
    }

    fn returns_deleted_object(&self) -> bool {
        self.0.returns_deleted_object()
    }

    fn reset_fields(&self) -> ResetFields {
        self.0.reset_fields()
    }
}
