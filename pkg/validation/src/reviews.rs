//! authorization.k8s.io/v1: questions about what somebody may do.
//!
//! Behaves as pkg/apis/authorization/validation/validation.go, v1.36.

use rkube_api::k8s::authorization::v1::{
    LocalSubjectAccessReview, NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use rkube_api::meta::pkg::apis::meta::v1::{FieldSelectorRequirement, ObjectMeta};
use rkube_apimachinery::field::{ErrorList, Path};

use crate::common::meta::{SelectorOptions, validate_label_selector_requirement};
use crate::common::report::{OptList, OptText, Report, shown};

pub fn validate(review: &SubjectAccessReview) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_spec(&review.spec, &mut errors);
    validate_metadata(&review.metadata, "must be empty", &mut errors);
    errors
}

/// Of oneself: the user is whoever asks.
pub fn validate_self(review: &SelfSubjectAccessReview) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = &review.spec;
    let (resource, other) = (spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref());
    validate_one_of(resource, other, &mut errors);
    validate_attributes(resource, &mut errors);
    validate_metadata(&review.metadata, "must be empty", &mut errors);
    errors
}

/// In one namespace, which the object names as well.
pub fn validate_local(review: &LocalSubjectAccessReview) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_spec(&review.spec, &mut errors);
    let elsewhere = ObjectMeta { namespace: None, ..review.metadata.clone() };
    validate_metadata(&elsewhere, "must be empty except for namespace", &mut errors);
    if let Some(resource) = &review.spec.resource_attributes
        && resource.namespace.text() != review.metadata.namespace.text()
    {
        let path = Path::new("spec.resourceAttributes.namespace");
        errors.invalid(path, resource.namespace.text(), "must match metadata.namespace");
    }
    if let Some(other) = &review.spec.non_resource_attributes {
        let path = Path::new("spec.nonResourceAttributes");
        errors.invalid(path, shown(other), "disallowed on this kind of request");
    }
    errors
}

fn validate_metadata(meta: &ObjectMeta, detail: &str, errors: &mut ErrorList) {
    let rest = ObjectMeta { managed_fields: None, ..meta.clone() };
    if rest != ObjectMeta::default() {
        errors.invalid(Path::new("metadata"), shown(meta), detail);
    }
}

fn validate_spec(spec: &SubjectAccessReviewSpec, errors: &mut ErrorList) {
    let (resource, other) = (spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref());
    validate_one_of(resource, other, errors);
    if spec.user.is_blank() && spec.groups.items().is_empty() {
        let detail = "at least one of user or group must be specified";
        errors.invalid(Path::new("spec").child("user"), spec.user.text(), detail);
    }
    validate_attributes(resource, errors);
}

fn validate_one_of(
    resource: Option<&ResourceAttributes>,
    other: Option<&NonResourceAttributes>,
    errors: &mut ErrorList,
) {
    let path = Path::new("spec");
    match (resource, other) {
        (Some(_), Some(other)) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            errors.invalid(path.child("nonResourceAttributes"), shown(other), detail);
        }
        (None, None) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.invalid(path.child("resourceAttributes"), shown(&other), detail);
        }
        _ => {}
    }
}

fn validate_attributes(attributes: Option<&ResourceAttributes>, errors: &mut ErrorList) {
    let Some(attributes) = attributes else { return };
    let path = Path::new("spec.resourceAttributes");
    if let Some(selector) = &attributes.field_selector {
        let path = path.child("fieldSelector");
        let requirements = selector.requirements.items();
        validate_selector(selector.raw_selector.text(), requirements.is_empty(), &path, errors);
        for (index, requirement) in requirements.iter().enumerate() {
            validate_field_requirement(requirement, &path.child("requirements").index(index), errors);
        }
    }
    if let Some(selector) = &attributes.label_selector {
        let path = path.child("labelSelector");
        let requirements = selector.requirements.items();
        validate_selector(selector.raw_selector.text(), requirements.is_empty(), &path, errors);
        let options = SelectorOptions { allow_unknown_operator: true, ..SelectorOptions::default() };
        for (index, requirement) in requirements.iter().enumerate() {
            let path = path.child("requirements").index(index);
            validate_label_selector_requirement(requirement, options, &path, errors);
        }
    }
}

/// As text or in parts, but not both.
fn validate_selector(raw: &str, no_requirements: bool, path: &Path, errors: &mut ErrorList) {
    if !raw.is_empty() && !no_requirements {
        let detail = "may not specified at the same time as requirements";
        errors.invalid(path.child("rawSelector"), raw, detail);
    } else if raw.is_empty() && no_requirements {
        let detail = format!("when {path} is specified, requirements or rawSelector is required");
        errors.required(path.child("requirements"), detail);
    }
}

fn validate_field_requirement(requirement: &FieldSelectorRequirement, path: &Path, errors: &mut ErrorList) {
    if requirement.key.is_empty() {
        errors.required(path.child("key"), "must be specified");
    }
    let path = path.child("values");
    match (requirement.operator.as_str(), requirement.values.items()) {
        ("In" | "NotIn", []) => errors.required(path, "must be specified when `operator` is 'In' or 'NotIn'"),
        ("Exists" | "DoesNotExist", [_, ..]) => {
            errors.forbidden(path, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        _ => {}
    }
}
