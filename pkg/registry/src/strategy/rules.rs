//! A strategy written as a list of rules: one table row per kind instead of one type per kind.
//!
//! What a kind does not mention has upstream's usual behaviour: PUT does not create, unconditional updates are
//! allowed, dependents are deleted. Kinds with more particular needs implement [`TypedStrategy`] themselves.

use rkube_api::Kind;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::field::ErrorList;

use super::{GarbageCollectionPolicy, ResetFields, StrategyContext, TypedStrategy};

/// The policy of one kind.
pub(crate) struct Rules<K> {
    defaults: fn(&mut K),
    create: fn(&StrategyContext<'_>, &mut K),
    update: fn(&StrategyContext<'_>, &mut K, &K),
    validate: fn(&K) -> ErrorList,
    validate_update: fn(&K, &K) -> ErrorList,
    warnings: fn(&K, Option<&K>) -> Vec<String>,
    canonicalize: fn(&mut K),
    create_on_update: bool,
    unconditional_update: bool,
    returns_deleted: bool,
    garbage: GarbageCollectionPolicy,
    reset: ResetFields,
}

impl<K: Kind> Rules<K> {
    pub(crate) fn new(validate: fn(&K) -> ErrorList, validate_update: fn(&K, &K) -> ErrorList) -> Self {
        Self {
            defaults: |_| {},
            create: |_, _| {},
            update: |_, _, _| {},
            validate,
            validate_update,
            warnings: |_, _| Vec::new(),
            canonicalize: |_| {},
            create_on_update: false,
            unconditional_update: true,
            returns_deleted: false,
            garbage: GarbageCollectionPolicy::DeleteDependents,
            reset: &[],
        }
    }

    /// Of a subresource, which is only ever updated.
    pub(crate) fn subresource(defaults: fn(&mut K), validate_update: fn(&K, &K) -> ErrorList) -> Self {
        Self::new(|_| ErrorList::new(), validate_update).defaults(defaults)
    }

    /// A status subresource: clients cannot set the spec through it.
    pub(crate) fn status(defaults: fn(&mut K), validate_update: fn(&K, &K) -> ErrorList) -> Self {
        Self::subresource(defaults, validate_update).reset(&[&["spec"]])
    }

    pub(crate) fn defaults(mut self, defaults: fn(&mut K)) -> Self {
        self.defaults = defaults;
        self
    }

    pub(crate) fn on_create(mut self, create: fn(&StrategyContext<'_>, &mut K)) -> Self {
        self.create = create;
        self
    }

    pub(crate) fn on_update(mut self, update: fn(&StrategyContext<'_>, &mut K, &K)) -> Self {
        self.update = update;
        self
    }

    /// The second argument is none when the object is new.
    pub(crate) fn warnings(mut self, warnings: fn(&K, Option<&K>) -> Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }

    pub(crate) fn canonicalize(mut self, canonicalize: fn(&mut K)) -> Self {
        self.canonicalize = canonicalize;
        self
    }

    pub(crate) fn create_on_update(mut self) -> Self {
        self.create_on_update = true;
        self
    }

    pub(crate) fn no_unconditional_update(mut self) -> Self {
        self.unconditional_update = false;
        self
    }

    pub(crate) fn returns_deleted(mut self) -> Self {
        self.returns_deleted = true;
        self
    }

    pub(crate) fn garbage(mut self, policy: GarbageCollectionPolicy) -> Self {
        self.garbage = policy;
        self
    }

    pub(crate) fn reset(mut self, fields: ResetFields) -> Self {
        self.reset = fields;
        self
    }
}

impl<K: Kind> TypedStrategy for Rules<K> {
    type Object = K;

    fn default(&self, object: &mut K) {
        (self.defaults)(object);
    }

    fn prepare_for_create(&self, context: &StrategyContext<'_>, object: &mut K) {
        (self.create)(context, object);
    }

    fn validate(&self, _: &StrategyContext<'_>, object: &K) -> ErrorList {
        (self.validate)(object)
    }

    fn warnings_on_create(&self, _: &StrategyContext<'_>, object: &K) -> Vec<String> {
        (self.warnings)(object, None)
    }

    fn canonicalize(&self, object: &mut K) {
        (self.canonicalize)(object);
    }

    fn prepare_for_update(&self, context: &StrategyContext<'_>, new: &mut K, old: &K) {
        (self.update)(context, new, old);
    }

    fn validate_update(&self, _: &StrategyContext<'_>, new: &K, old: &K) -> ErrorList {
        (self.validate_update)(new, old)
    }

    fn warnings_on_update(&self, _: &StrategyContext<'_>, new: &K, old: &K) -> Vec<String> {
        (self.warnings)(new, Some(old))
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn default_garbage_collection_policy(&self) -> GarbageCollectionPolicy {
        self.garbage
    }

    fn returns_deleted_object(&self) -> bool {
        self.returns_deleted
    }

    fn reset_fields(&self) -> ResetFields {
        self.reset
    }
}

pub(crate) const RESET_STATUS: ResetFields = &[&["status"]];

/// A new object is at its first generation.
pub(crate) fn first_generation(meta: &mut ObjectMeta) {
    meta.generation = Some(1);
}

/// The intent changed.
pub(crate) fn next_generation(new: &mut ObjectMeta, old: &ObjectMeta) {
    new.generation = Some(old.generation.unwrap_or(0).saturating_add(1));
}

/// Of the metadata, a status update may change what identifies the write and nothing else.
/// Behaves as `metav1.ResetObjectMetaForStatus`.
pub(crate) fn reset_meta_for_status(new: &mut ObjectMeta, old: &ObjectMeta) {
    new.deletion_timestamp.clone_from(&old.deletion_timestamp);
    new.generation = old.generation;
    new.self_link.clone_from(&old.self_link);
    new.labels.clone_from(&old.labels);
    new.annotations.clone_from(&old.annotations);
    new.finalizers.clone_from(&old.finalizers);
    new.owner_references.clone_from(&old.owner_references);
}

/// Rules of a kind whose status clients cannot set, and whose generation counts changes of the spec.
macro_rules! with_status {
    ($kind:ty, $validate:expr, $validate_update:expr) => {
        $crate::strategy::rules::Rules::<$kind>::new($validate, $validate_update)
            .on_create(|_, new| {
                new.status = Some(Default::default());
                $crate::strategy::rules::first_generation(&mut new.metadata);
            })
            .on_update(|_, new, old| {
                new.status.clone_from(&old.status);
                if new.spec != old.spec {
                    $crate::strategy::rules::next_generation(&mut new.metadata, &old.metadata);
                }
            })
            .reset($crate::strategy::rules::RESET_STATUS)
    };
}

/// Rules of a kind with status whose pod template may be missing; what is behind gates that are off is dropped from it.
macro_rules! optional_template {
    ($kind:ty, $validate:expr, $validate_update:expr) => {
        $crate::strategy::rules::with_status!($kind, $validate, $validate_update)
            .on_create(|_, new: &mut $kind| {
                new.status = Some(Default::default());
                $crate::strategy::rules::first_generation(&mut new.metadata);
                if let Some(template) = new.spec.as_mut().and_then(|spec| spec.template.as_mut()) {
                    drop_disabled_template_fields(template, None);
                }
            })
            .on_update(|_, new: &mut $kind, old: &$kind| {
                new.status.clone_from(&old.status);
                if let Some(template) = new.spec.as_mut().and_then(|spec| spec.template.as_mut()) {
                    let old = old.spec.as_ref().and_then(|spec| spec.template.as_ref());
                    drop_disabled_template_fields(template, old);
                }
                if new.spec != old.spec {
                    $crate::strategy::rules::next_generation(&mut new.metadata, &old.metadata);
                }
            })
    };
}

/// Rules of a kind without a status, whose generation counts changes of the spec.
macro_rules! spec_generation {
    ($kind:ty, $validate:expr, $validate_update:expr) => {
        $crate::strategy::rules::Rules::<$kind>::new($validate, $validate_update)
            .on_create(|_, new| $crate::strategy::rules::first_generation(&mut new.metadata))
            .on_update(|_, new, old| {
                if new.spec != old.spec {
                    $crate::strategy::rules::next_generation(&mut new.metadata, &old.metadata);
                }
            })
    };
}

/// The status half of a kind: the spec stays as it is stored.
macro_rules! status_only {
    ($kind:ty, $defaults:expr, $validate_update:expr) => {
        $crate::strategy::rules::Rules::<$kind>::status($defaults, $validate_update)
            .on_update(|_, new, old| new.spec.clone_from(&old.spec))
    };
}

pub(crate) use {optional_template, spec_generation, status_only, with_status};
