//! coordination.k8s.io/v1 Lease.
//!
//! Behaves as ValidateLease of pkg/apis/coordination/validation/validation.go, v1.36.

use rkube_api::k8s::coordination::v1::Lease;
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::dns_subdomain;
use crate::common::report::{OptText, Report};

pub fn set_defaults(lease: &mut Lease) {
    lease.spec.get_or_insert_default();
}

pub fn validate(lease: &Lease) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&lease.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_spec(lease, &mut errors);
    errors
}

pub fn validate_update(new: &Lease, old: &Lease) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_spec(new, &mut errors);
    errors
}

fn validate_spec(lease: &Lease, errors: &mut ErrorList) {
    let spec = lease.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    if let Some(seconds) = spec.lease_duration_seconds.filter(|seconds| *seconds <= 0) {
        errors.invalid(path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
    }
    if let Some(transitions) = spec.lease_transitions.filter(|transitions| *transitions < 0) {
        errors.invalid(path.child("leaseTransitions"), transitions, "must be greater than or equal to 0");
    }
    if let Some(strategy) = &spec.strategy {
        // The path is upstream's.
        let path = path.child("strategy").child("strategy");
        if strategy.contains('/') {
            errors.invalid_each(path, strategy, names::is_qualified_name(strategy));
        } else {
            errors.one_of(path, strategy, &["OldestEmulationVersion"]);
        }
    }
    if !spec.preferred_holder.is_blank() && spec.strategy.is_blank() {
        errors.forbidden(path.child("preferredHolder"), "may only be specified if `strategy` is defined");
    }
}
