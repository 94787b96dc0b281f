//! Annotations that Kubernetes itself reads from a pod.
//!
//! Behaves as ValidatePodSpecificAnnotations of pkg/apis/core/validation/validation.go, v1.36.

use std::collections::BTreeMap;

use rkube_api::k8s::core::v1::{AppArmorProfile, Pod, PodSpec, SeccompProfile, Toleration};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::field::{ErrorList, Path};

use super::containers::all_containers;
use super::pod_options::PodOptions;
use super::scheduling::validate_tolerations;
use super::security::is_windows;
use super::volume::validate_local_descending_path;
use crate::common::report::{OptMap, OptText, Report};

pub(crate) const MIRROR_POD: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
pub(crate) const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
pub(crate) const SECCOMP_CONTAINER_PREFIX: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub(crate) const APP_ARMOR_PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";

type Annotations = BTreeMap<String, String>;

pub(crate) fn is_mirror(meta: &ObjectMeta) -> bool {
    meta.annotations.value(MIRROR_POD).is_some()
}

pub(crate) fn deletion_cost_is_valid(annotations: Option<&Annotations>) -> bool {
    let Some(cost) = annotations.and_then(|annotations| annotations.get(DELETION_COST)) else { return true };
    // No plus sign and no leading zero.
    let first_digit = cost == "0" || cost.starts_with(|first: char| first == '-' || ('1'..='9').contains(&first));
    first_digit && cost.parse::<i32>().is_ok()
}

pub(crate) fn validate_pod_annotations(
    annotations: Option<&Annotations>,
    spec: &PodSpec,
    path: &Path,
    options: &PodOptions,
    errors: &mut ErrorList,
) {
    let Some(annotations) = annotations else { return };
    if let Some(mirror) = annotations.get(MIRROR_POD)
        && spec.node_name.is_blank()
    {
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        errors.invalid(path.key(MIRROR_POD), mirror.as_str(), detail);
    }
    if let Some(tolerations) = annotations.get(TOLERATIONS).filter(|text| !text.is_empty()) {
        match serde_json::from_str::<Vec<Toleration>>(tolerations) {
            Ok(tolerations) => validate_tolerations(&tolerations, &path.child(TOLERATIONS), errors),
            Err(error) => errors.invalid(path, TOLERATIONS, error.to_string()),
        }
    }
    if !options.allow_invalid_pod_deletion_cost && !deletion_cost_is_valid(Some(annotations)) {
        let cost = annotations.get(DELETION_COST).cloned().unwrap_or_default();
        errors.invalid(path.key(DELETION_COST), cost, "must be a 32bit integer");
    }
    if let Some(profile) = annotations.get(SECCOMP_POD) {
        validate_seccomp_profile(profile, &path.child(SECCOMP_POD), errors);
    }
    for (key, profile) in annotations {
        if key.starts_with(SECCOMP_CONTAINER_PREFIX) {
            validate_seccomp_profile(profile, &path.child(key), errors);
        }
    }
    for (key, profile) in annotations {
        let Some(container) = key.strip_prefix(APP_ARMOR_PREFIX) else { continue };
        if !all_containers(spec).iter().any(|view| view.name == container) {
            errors.invalid(path.key(key), container, "container not found");
        }
        let known = matches!(profile.as_str(), "" | "runtime/default" | "unconfined");
        if !known && !profile.starts_with("localhost/") {
            errors.invalid(path.key(key), profile.as_str(), format!("invalid AppArmor profile name: {profile:?}"));
        }
    }
}

fn validate_seccomp_profile(profile: &str, path: &Path, errors: &mut ErrorList) {
    if matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
        return;
    }
    match profile.strip_prefix("localhost/") {
        Some(local) => validate_local_descending_path(local, path, errors),
        None => errors.invalid(path, profile, "must be a valid seccomp profile"),
    }
}

pub(crate) fn validate_pod_annotation_updates(
    new: &Pod,
    old: &Pod,
    path: &Path,
    options: &PodOptions,
    errors: &mut ErrorList,
) {
    let (new_annotations, old_annotations) = (&new.metadata.annotations, &old.metadata.annotations);
    for (key, value) in old_annotations.pairs() {
        if new_annotations.value(key) == Some(value) {
            continue;
        }
        if key.starts_with(APP_ARMOR_PREFIX) {
            errors.forbidden(path.key(key), "may not remove or update AppArmor annotations");
        }
        if key == MIRROR_POD {
            errors.forbidden(path.key(key), "may not remove or update mirror pod annotation");
        }
    }
    for (key, _) in new_annotations.pairs() {
        if old_annotations.value(key).is_some() {
            continue;
        }
        if key.starts_with(APP_ARMOR_PREFIX) {
            errors.forbidden(path.key(key), "may not add AppArmor annotations");
        }
        if key == MIRROR_POD {
            errors.forbidden(path.key(key), "may not add mirror pod annotation");
        }
    }
    let spec = new.spec.clone().unwrap_or_default();
    validate_pod_annotations(new_annotations.as_ref(), &spec, path, options, errors);
}

/// Old annotations and the fields that replaced them must say the same.
pub(crate) fn validate_annotations_match_fields(
    meta: &ObjectMeta,
    spec: &PodSpec,
    spec_path: &Path,
    errors: &mut ErrorList,
) {
    let security = spec.security_context.as_ref();
    if let Some(profile) = security.and_then(|security| security.seccomp_profile.as_ref())
        && let Some(annotation) = meta.annotations.value(SECCOMP_POD)
    {
        let path = spec_path.child("securityContext").child("seccompProfile");
        match_seccomp(annotation, profile, &path, errors);
    }
    let containers = all_containers(spec);
    for container in &containers {
        if let Some(profile) = container.security_context.and_then(|security| security.seccomp_profile.as_ref())
            && let Some(annotation) = meta.annotations.value(&format!("{SECCOMP_CONTAINER_PREFIX}{}", container.name))
        {
            let path = container.path(spec_path).child("securityContext").child("seccompProfile");
            match_seccomp(annotation, profile, &path, errors);
        }
    }
    if is_windows(spec) {
        return;
    }
    let pod_profile = security.and_then(|security| security.app_armor_profile.as_ref());
    for container in &containers {
        let own = container.security_context.and_then(|security| security.app_armor_profile.as_ref());
        if let Some(profile) = own.or(pod_profile)
            && let Some(annotation) = meta.annotations.value(&format!("{APP_ARMOR_PREFIX}{}", container.name))
        {
            let path = container.path(spec_path).child("securityContext").child("appArmorProfile");
            match_app_armor(annotation, profile, &path, errors);
        }
    }
}

fn match_seccomp(annotation: &str, profile: &SeccompProfile, path: &Path, errors: &mut ErrorList) {
    let local = annotation.strip_prefix("localhost/");
    let types_match = match profile.type_.as_str() {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => matches!(annotation, "runtime/default" | "docker/default"),
        "Localhost" => local.is_some(),
        _ => true,
    };
    if !types_match {
        errors.forbidden(path.child("type"), "seccomp type in annotation and field must match");
    } else if profile.type_ == "Localhost" && local != profile.localhost_profile.as_deref() {
        errors.forbidden(path.child("localhostProfile"), "seccomp profile in annotation and field must match");
    }
}

fn match_app_armor(annotation: &str, profile: &AppArmorProfile, path: &Path, errors: &mut ErrorList) {
    let local = annotation.strip_prefix("localhost/");
    let types_match = match profile.type_.as_str() {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => annotation == "runtime/default",
        "Localhost" => local.is_some(),
        _ => true,
    };
    if !types_match {
        errors.forbidden(path.child("type"), "apparmor type in annotation and field must match");
    } else if profile.type_ == "Localhost" && local != profile.localhost_profile.as_deref() {
        errors.forbidden(path.child("localhostProfile"), "apparmor profile in annotation and field must match");
    }
}
