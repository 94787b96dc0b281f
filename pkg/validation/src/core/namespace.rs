//! core/v1 Namespace and ServiceAccount.
//!
//! Behaves as ValidateNamespace and ValidateServiceAccount of pkg/apis/core/validation/validation.go, v1.36.

use rkube_api::k8s::core::v1::{Namespace, ServiceAccount};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use crate::common::defaults::text_default;
use crate::common::meta::{validate_kube_finalizer, validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_label, dns_subdomain};
use crate::common::report::{OptList, OptText, Report};

/// The label by which selectors can name a namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub fn set_defaults(namespace: &mut Namespace) {
    let name = namespace.metadata.name.text().to_owned();
    if !name.is_empty() {
        namespace.metadata.labels.get_or_insert_default().insert(NAME_LABEL.to_owned(), name);
    }
    namespace.spec.get_or_insert_default();
    text_default(&mut namespace.status.get_or_insert_default().phase, "Active");
}

pub fn validate(namespace: &Namespace) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&namespace.metadata, false, dns_label, &Path::new("metadata"), &mut errors);
    let path = Path::new("spec").child("finalizers");
    for finalizer in finalizers(namespace) {
        validate_finalizer(finalizer, &path, &mut errors);
    }
    errors
}

fn finalizers(namespace: &Namespace) -> &[String] {
    namespace.spec.as_ref().map_or(&[], |spec| spec.finalizers.items())
}

fn validate_finalizer(finalizer: &str, path: &Path, errors: &mut ErrorList) {
    errors.invalid_each(path, finalizer, names::is_qualified_name(finalizer));
    validate_kube_finalizer(finalizer, path, errors);
}

pub fn validate_update(new: &Namespace, old: &Namespace) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors
}

/// `PUT namespaces/x/status`.
pub fn validate_status_update(new: &Namespace, old: &Namespace) -> ErrorList {
    let mut errors = validate_update(new, old);
    let phase = new.status.as_ref().map_or("", |status| status.phase.text());
    let path = Path::new("status").child("Phase");
    if new.metadata.deletion_timestamp.is_none() {
        if phase != "Active" {
            errors.invalid(path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
        }
    } else if phase != "Terminating" {
        errors.invalid(path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
    }
    errors
}

/// `PUT namespaces/x/finalize`.
pub fn validate_finalize_update(new: &Namespace, old: &Namespace) -> ErrorList {
    let mut errors = validate_update(new, old);
    let path = Path::new("spec").child("finalizers");
    for (index, finalizer) in finalizers(new).iter().enumerate() {
        validate_finalizer(finalizer, &path.index(index), &mut errors);
    }
    errors
}

pub fn validate_service_account(account: &ServiceAccount) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&account.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    errors
}

pub fn validate_service_account_update(new: &ServiceAccount, old: &ServiceAccount) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors.extend(validate_service_account(new));
    errors
}
