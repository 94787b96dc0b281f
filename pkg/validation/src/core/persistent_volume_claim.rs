//! core/v1 PersistentVolumeClaim, and the claim templates of other kinds.
//!
//! Behaves as ValidatePersistentVolumeClaim of pkg/apis/core/validation/validation.go and
//! pkg/api/persistentvolumeclaim, v1.36.

use std::cmp::Ordering;

use rkube_api::k8s::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate, TypedLocalObjectReference,
    TypedObjectReference,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use super::pod_defaults::round_up;
use super::resources::{is_native, validate_basic_resource, validate_positive_quantity, validate_quantity_value};
use crate::common::defaults::{default_to, text_default};
use crate::common::diff::diff;
use crate::common::meta::{
    SelectorOptions, validate_label_selector, validate_object_meta, validate_object_meta_update,
    validate_template_object_meta,
};
use crate::common::names::{dns_label, dns_subdomain};
use crate::common::quantity::{amount, canonical, compare, is_positive};
use crate::common::report::{FIELD_IMMUTABLE, OptList, OptMap, OptText, Report, semantic_eq, shown};

pub(crate) const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
pub(crate) const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const RESIZE_STATUSES: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

pub fn set_defaults(claim: &mut PersistentVolumeClaim) {
    set_spec_defaults(claim.spec.get_or_insert_default());
    let status = claim.status.get_or_insert_default();
    text_default(&mut status.phase, "Pending");
    round_up(&mut status.capacity);
    round_up(&mut status.allocated_resources);
}

pub(crate) fn set_spec_defaults(spec: &mut PersistentVolumeClaimSpec) {
    default_to(&mut spec.volume_mode, "Filesystem".to_owned());
    let resources = spec.resources.get_or_insert_default();
    round_up(&mut resources.limits);
    round_up(&mut resources.requests);
}

/// What an old claim may keep.
#[derive(Clone, Copy, Default)]
pub(crate) struct ClaimOptions {
    selector: SelectorOptions,
    allow_invalid_api_group: bool,
}

impl ClaimOptions {
    fn for_update(old: &PersistentVolumeClaim) -> Self {
        let spec = old.spec.clone().unwrap_or_default();
        let mut errors = ErrorList::new();
        validate_label_selector(spec.selector.as_ref(), SelectorOptions::default(), &Path::root(), &mut errors);
        let source = spec.data_source.and_then(|source| source.api_group);
        let reference = spec.data_source_ref.and_then(|reference| reference.api_group);
        Self {
            selector: SelectorOptions { allow_invalid_label_value: !errors.is_empty(), ..SelectorOptions::default() },
            allow_invalid_api_group: source.is_some() || reference.is_some(),
        }
    }
}

pub fn validate(claim: &PersistentVolumeClaim) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_claim(claim, ClaimOptions::default(), &mut errors);
    errors
}

fn validate_claim(claim: &PersistentVolumeClaim, options: ClaimOptions, errors: &mut ErrorList) {
    validate_object_meta(&claim.metadata, true, dns_subdomain, &Path::new("metadata"), errors);
    validate_spec(&claim.spec.clone().unwrap_or_default(), &Path::new("spec"), options, errors);
}

/// The template of an ephemeral volume.
pub(crate) fn validate_template(template: &PersistentVolumeClaimTemplate, path: &Path, errors: &mut ErrorList) {
    let meta = template.metadata.clone().unwrap_or_default();
    validate_template_object_meta(&meta, &path.child("metadata"), errors);
    validate_spec(&template.spec, &path.child("spec"), ClaimOptions::default(), errors);
}

pub(crate) fn validate_access_modes(modes: &[String], path: &Path, errors: &mut ErrorList) {
    for mode in modes {
        errors.one_of(path, mode, &ACCESS_MODES);
    }
    let once_per_pod = modes.iter().any(|mode| mode == "ReadWriteOncePod");
    let other = modes.iter().any(|mode| mode != "ReadWriteOncePod" && ACCESS_MODES.contains(&mode.as_str()));
    if once_per_pod && other {
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

pub(crate) fn validate_spec(
    spec: &PersistentVolumeClaimSpec,
    path: &Path,
    options: ClaimOptions,
    errors: &mut ErrorList,
) {
    let modes = spec.access_modes.items();
    if modes.is_empty() {
        errors.required(path.child("accessModes"), "at least 1 access mode is required");
    }
    validate_label_selector(spec.selector.as_ref(), options.selector, &path.child("selector"), errors);
    validate_access_modes(modes, &path.child("accessModes"), errors);
    let storage_path = path.child("resources").key("storage");
    match spec.resources.as_ref().and_then(|resources| resources.requests.value("storage")) {
        None => errors.required(storage_path, ""),
        Some(storage) if !is_positive(storage) => validate_positive_quantity(storage, &storage_path, errors),
        Some(storage) => validate_quantity_value("storage", storage, &storage_path, errors),
    }
    for (field, class) in [("storageClassName", &spec.storage_class_name)] {
        if !class.is_blank() {
            errors.invalid_each(path.child(field), class.text(), dns_subdomain(class.text(), false));
        }
    }
    if let Some(mode) = &spec.volume_mode {
        errors.one_of(path.child("volumeMode"), mode, &VOLUME_MODES);
    }
    if let Some(source) = &spec.data_source {
        let reference = TypedObjectReference {
            api_group: source.api_group.clone(),
            kind: source.kind.clone(),
            name: source.name.clone(),
            namespace: None,
        };
        validate_data_source(&reference, &path.child("dataSource"), options, errors);
    }
    if let Some(reference) = &spec.data_source_ref {
        validate_data_source(reference, &path.child("dataSourceRef"), options, errors);
    }
    if let (Some(source), Some(reference)) = (&spec.data_source, &spec.data_source_ref) {
        let value = path.child("dataSource").to_string();
        if !reference.namespace.is_blank() {
            errors.invalid(path, value, "may not be specified when dataSourceRef.namespace is specified");
        } else if (&source.api_group, &source.kind, &source.name)
            != (&reference.api_group, &reference.kind, &reference.name)
        {
            errors.invalid(path, value, "must match dataSourceRef");
        }
    }
    let class = spec.volume_attributes_class_name.text();
    if !class.is_empty() {
        errors.invalid_each(path.child("volumeAttributesClassName"), class, dns_subdomain(class, false));
    }
}

fn validate_data_source(source: &TypedObjectReference, path: &Path, options: ClaimOptions, errors: &mut ErrorList) {
    errors.not_empty(path.child("name"), &source.name);
    errors.not_empty(path.child("kind"), &source.kind);
    let group = source.api_group.text();
    if group.is_empty() && source.kind != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.invalid(path, source.kind.as_str(), detail);
    }
    if !group.is_empty() && !options.allow_invalid_api_group {
        errors.invalid_each(path.child("apiGroup"), group, names::is_dns1123_subdomain(group));
    }
    let namespace = source.namespace.text();
    if !namespace.is_empty() {
        errors.invalid_each(path.child("namespace"), namespace, dns_label(namespace, false));
    }
}

pub fn validate_update(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim) -> ErrorList {
    let mut errors = ErrorList::new();
    let options = ClaimOptions::for_update(old);
    let meta_path = Path::new("metadata");
    validate_object_meta_update(&new.metadata, &old.metadata, &meta_path, &mut errors);
    validate_claim(new, options, &mut errors);

    let (new_spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let (mut munged, mut old_munged) = (new_spec.clone(), old_spec.clone());
    // Binding fills in the volume.
    if old_spec.volume_name.is_blank() {
        old_munged.volume_name.clone_from(&munged.volume_name);
    }
    validate_class_upgrade(new, old, &mut munged, &old_munged, &mut errors);
    let bound = new.status.as_ref().is_some_and(|status| status.phase.text() == "Bound");
    let size = |spec: &PersistentVolumeClaimSpec| {
        spec.resources.as_ref().and_then(|resources| resources.requests.value("storage").cloned())
    };
    let (new_size, old_size) = (size(&new_spec), size(&old_spec));
    if bound {
        if let Some(requests) = munged.resources.as_mut().and_then(|resources| resources.requests.as_mut())
            && let Some(old_size) = &old_size
        {
            requests.insert("storage".to_owned(), old_size.clone());
        }
        munged.volume_attributes_class_name.clone_from(&old_munged.volume_attributes_class_name);
    }
    let path = Path::new("spec");
    if !semantic_eq(&munged, &old_munged) {
        let detail = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
            diff(&old_munged, &munged)
        );
        errors.forbidden(&path, detail);
    }
    let zero = rkube_api::meta::pkg::api::resource::Quantity("0".to_owned());
    let capacity = old.status.as_ref().and_then(|status| status.capacity.value("storage").cloned());
    let new_amount = new_size.as_ref().unwrap_or(&zero);
    if compare(new_amount, old_size.as_ref().unwrap_or(&zero)) == Ordering::Less
        && compare(new_amount, capacity.as_ref().unwrap_or(&zero)) != Ordering::Greater
    {
        let path = path.child("resources").child("requests").child("storage");
        errors.forbidden(path, "field can not be less than status.capacity");
    }
    if new_spec.volume_mode != old_spec.volume_mode {
        errors.invalid(Path::new("volumeMode"), shown(&new_spec.volume_mode), FIELD_IMMUTABLE);
    }
    let current = old.status.as_ref().and_then(|status| status.current_volume_attributes_class_name.as_ref());
    if new_spec.volume_attributes_class_name != old_spec.volume_attributes_class_name && current.is_some() {
        let path = path.child("volumeAttributesClassName");
        let detail = |what: &str| {
            format!("update to {what} is forbidden when status.currentVolumeAttributesClassName is not nil")
        };
        match new_spec.volume_attributes_class_name.as_deref() {
            None => errors.forbidden(path, detail("nil")),
            Some("") => errors.forbidden(path, detail("empty string")),
            Some(_) => {}
        }
    }
    errors
}

/// The class may move from the old annotation to the field, or be filled in once.
fn validate_class_upgrade(
    new: &PersistentVolumeClaim,
    old: &PersistentVolumeClaim,
    munged: &mut PersistentVolumeClaimSpec,
    old_spec: &PersistentVolumeClaimSpec,
    errors: &mut ErrorList,
) {
    let annotation = |claim: &PersistentVolumeClaim| claim.metadata.annotations.value(BETA_STORAGE_CLASS).cloned();
    let (new_annotation, old_annotation) = (annotation(new), annotation(old));
    let (new_class, old_class) = (munged.storage_class_name.clone(), &old_spec.storage_class_name);
    let from_annotation = old_annotation.is_some()
        && old_class.is_none()
        && new_class == old_annotation
        && (new_annotation.is_none() || new_annotation == old_annotation);
    if from_annotation {
        munged.storage_class_name = None;
        return;
    }
    if new_annotation.text() != old_annotation.text() {
        let path = Path::new("metadata").child("annotations").child(BETA_STORAGE_CLASS);
        errors.invalid(path, new_annotation.text(), FIELD_IMMUTABLE);
    }
    let from_nil =
        new_class.is_some() && old_class.is_none() && (old_annotation.is_none() || new_class == old_annotation);
    if from_nil {
        munged.storage_class_name.clone_from(old_class);
    }
}

/// `PUT persistentvolumeclaims/x/status`.
pub fn validate_status_update(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    if new.spec.as_ref().is_none_or(|spec| spec.access_modes.items().is_empty()) {
        errors.required(Path::new("Spec").child("accessModes"), "");
    }
    let status = new.status.clone().unwrap_or_default();
    let path = Path::new("status");
    for (name, value) in status.capacity.pairs() {
        validate_basic_resource(value, &path.child("capacity").key(name), &mut errors);
    }
    let statuses_path = path.child("allocatedResourceStatuses");
    for (name, value) in status.allocated_resource_statuses.pairs() {
        validate_resource_key(name, &statuses_path, &mut errors);
        if !RESIZE_STATUSES.contains(&value.as_str()) {
            errors.not_supported(&statuses_path, name.as_str(), &RESIZE_STATUSES);
        }
    }
    let allocated_path = path.child("allocatedResources");
    for (name, value) in status.allocated_resources.pairs() {
        let found = errors.len();
        validate_resource_key(name, &allocated_path, &mut errors);
        if errors.len() == found {
            validate_basic_resource(value, &allocated_path.key(name), &mut errors);
        }
        if errors.len() == found {
            validate_quantity_value("storage", value, &allocated_path.key(name), &mut errors);
        }
    }
    errors
}

fn validate_resource_key(name: &str, path: &Path, errors: &mut ErrorList) {
    let messages = names::is_qualified_name(name);
    if !messages.is_empty() {
        errors.invalid_each(path, name, messages);
    } else if is_native(name) && name != "storage" {
        errors.not_supported(path, name, &["storage"]);
    }
}

pub fn warnings(claim: &PersistentVolumeClaim) -> Vec<String> {
    let mut warnings = Vec::new();
    if claim.metadata.annotations.value(BETA_STORAGE_CLASS).is_some() {
        let path = Path::new("metadata").child("annotations").key(BETA_STORAGE_CLASS);
        warnings.push(format!("{path}: deprecated since v1.8; use \"storageClassName\" attribute instead"));
    }
    if let Some(spec) = &claim.spec {
        warnings.extend(spec_warnings(spec, &Path::new("spec")));
    }
    warnings
}

pub(crate) fn spec_warnings(spec: &PersistentVolumeClaimSpec, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(resources) = &spec.resources else { return warnings };
    for (field, list) in [("requests", &resources.requests), ("limits", &resources.limits)] {
        if let Some(value) = list.value("storage").filter(|value| amount(value).milli_value() % 1000 != 0) {
            let path = path.child("resources").child(field).key("storage");
            let value = canonical(value);
            warnings.push(format!("{path}: fractional byte value {value:?} is invalid, must be an integer"));
        }
    }
    warnings
}

/// The two ways to name a source are kept in step, and a source that cannot be used is dropped.
///
/// Behaves as EnforceDataSourceBackwardsCompatibility and NormalizeDataSources of
/// pkg/api/persistentvolumeclaim/util.go, v1.36.
pub fn normalize_data_sources(new: &mut PersistentVolumeClaim, old: Option<&PersistentVolumeClaim>) {
    let Some(spec) = &mut new.spec else { return };
    let old_spec = old.and_then(|old| old.spec.as_ref());
    // Sources in other namespaces are off by default.
    let in_use =
        old_spec.and_then(|spec| spec.data_source_ref.as_ref()).is_some_and(|reference| reference.namespace.is_some());
    if !in_use && spec.data_source_ref.as_ref().is_some_and(|reference| reference.namespace.is_some()) {
        spec.data_source_ref = None;
    }
    let invalid_before =
        old_spec.is_some_and(|spec| spec.data_source.as_ref().is_some_and(|source| !is_usable(source)));
    if spec.data_source_ref.is_none()
        && !invalid_before
        && spec.data_source.as_ref().is_some_and(|source| !is_usable(source))
    {
        spec.data_source = None;
    }
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), None) => {
            spec.data_source_ref = Some(TypedObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
                namespace: None,
            });
        }
        (None, Some(reference)) if reference.namespace.is_none() => {
            spec.data_source = Some(TypedLocalObjectReference {
                api_group: reference.api_group.clone(),
                kind: reference.kind.clone(),
                name: reference.name.clone(),
            });
        }
        _ => {}
    }
}

/// A claim, or a snapshot of one.
fn is_usable(source: &TypedLocalObjectReference) -> bool {
    matches!(
        (source.api_group.text(), source.kind.as_str()),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    )
}
