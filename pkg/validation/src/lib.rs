//! Defaulting, validation and warnings of every built-in kind: pure functions of one object, and of its
//! predecessor where there is one.
//!
//! Each kind's module has `set_defaults`, `validate`, `validate_update`, `validate_status_update` and
//! `warnings`, as far as the kind needs them. Faults carry upstream's field paths, reasons and texts, in
//! upstream's order; maps are walked in the order of their keys, where upstream's order is random.
//!
//! **Invariant:** nothing here performs I/O or reads a clock.
//! **Invariant:** feature gates have their v1.36 defaults. Fields behind a gate that is off are dropped by the
//! strategies before validation, so they are not validated.

pub mod admission_registration;
pub mod api_registration;
pub mod apiextensions;
pub mod apps;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
mod common;
pub mod coordination;
pub mod core;
pub mod discovery;
pub mod flow_control;
pub mod networking;
pub mod policy;
pub mod rbac;
pub mod resource;
pub mod reviews;
pub mod scheduling;
pub mod storage;

pub use common::workload_warnings::workload_warnings;

/// The generic rules for the metadata of an update, for kinds that have no others.
pub fn metadata_update(
    new: &rkube_api::meta::pkg::apis::meta::v1::ObjectMeta,
    old: &rkube_api::meta::pkg::apis::meta::v1::ObjectMeta,
) -> rkube_apimachinery::field::ErrorList {
    let mut errors = rkube_apimachinery::field::ErrorList::new();
    common::meta::validate_object_meta_update(new, old, &rkube_apimachinery::field::Path::new("metadata"), &mut errors);
    errors
}
