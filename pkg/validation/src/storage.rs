//! storage.k8s.io/v1: classes, CSI drivers, nodes and capacities, volume attachments.
//!
//! Behaves as pkg/apis/storage/validation/validation.go and pkg/apis/storage/v1/defaults.go, v1.36.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::k8s::core::v1::TopologySelectorTerm;
use rkube_api::k8s::storage::v1::{
    CSIDriver, CSIDriverSpec, CSINode, CSINodeDriver, CSIStorageCapacity, StorageClass, TokenRequest, VolumeAttachment,
    VolumeAttachmentSource, VolumeAttributesClass, VolumeError,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use crate::common::defaults::default_to;
use crate::common::meta::{
    SelectorOptions, has_invalid_label_value, validate_label_selector, validate_object_meta,
    validate_object_meta_update,
};
use crate::common::names::{dns_subdomain, validate_qualified_name};
use crate::common::quantity::{canonical, is_negative};
use crate::common::report::{
    FIELD_IMMUTABLE, MUST_NOT_BE_NEGATIVE, OptList, OptMap, OptText, Report, immutable, semantic_eq, shown,
};
use crate::core::persistent_volume;
use crate::core::pod_warnings::deprecated_node_label;
use crate::core::scheduling::validate_topology_selector_term;
use crate::core::volume::validate_csi_driver_name;

const PARAMETERS_MAX: usize = 512;
const PARAMETERS_SIZE_MAX: usize = 256 << 10;
const ATTACHMENT_METADATA_SIZE_MAX: usize = 256 << 10;
const ERROR_MESSAGE_MAX: usize = 1024;
const NODE_ID_MAX: usize = 256;
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;

pub fn set_class_defaults(class: &mut StorageClass) {
    default_to(&mut class.reclaim_policy, "Delete".to_owned());
    default_to(&mut class.volume_binding_mode, "Immediate".to_owned());
}

pub fn validate_class(class: &StorageClass) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&class.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_provisioner(&class.provisioner, &Path::new("provisioner"), &mut errors);
    validate_parameters(class.parameters.as_ref(), &mut errors);
    if !class.reclaim_policy.is_blank() {
        errors.one_of(Path::new("reclaimPolicy"), class.reclaim_policy.text(), &["Delete", "Retain"]);
    }
    let path = Path::new("volumeBindingMode");
    match &class.volume_binding_mode {
        None => errors.required(path, ""),
        Some(mode) => errors.one_of(path, mode, &["Immediate", "WaitForFirstConsumer"]),
    }
    validate_allowed_topologies(class.allowed_topologies.items(), &mut errors);
    errors
}

pub fn validate_class_update(new: &StorageClass, old: &StorageClass) -> ErrorList {
    let mut errors = validate_class(new);
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    immutable(&new.parameters, &old.parameters, Path::new("parameters"), &mut errors);
    immutable(&new.provisioner, &old.provisioner, Path::new("provisioner"), &mut errors);
    immutable(&new.reclaim_policy, &old.reclaim_policy, Path::new("reclaimPolicy"), &mut errors);
    immutable(&new.volume_binding_mode, &old.volume_binding_mode, Path::new("volumeBindingMode"), &mut errors);
    errors
}

pub fn class_warnings(class: &StorageClass) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, term) in class.allowed_topologies.items().iter().enumerate() {
        let path = Path::new("allowedTopologies").index(index).child("matchLabelExpressions");
        for (index, expression) in term.match_label_expressions.items().iter().enumerate() {
            if let Some(message) = deprecated_node_label(&expression.key) {
                warnings.push(format!("{}: {message}", path.index(index).child("key")));
            }
        }
    }
    warnings
}

fn validate_provisioner(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(path, "");
    } else {
        validate_qualified_name(&name.to_lowercase(), path, errors);
    }
}

fn validate_parameters(parameters: Option<&BTreeMap<String, String>>, errors: &mut ErrorList) {
    let path = Path::new("parameters");
    let count = parameters.map_or(0, BTreeMap::len);
    if count > PARAMETERS_MAX {
        errors.too_long(path, PARAMETERS_MAX);
        return;
    }
    let mut size = 0;
    for (key, value) in parameters.into_iter().flatten() {
        if key.is_empty() {
            errors.invalid(&path, key.as_str(), "field can not be empty.");
        }
        size += key.len() + value.len();
    }
    if size > PARAMETERS_SIZE_MAX {
        errors.too_long(path, PARAMETERS_SIZE_MAX);
    }
}

fn validate_allowed_topologies(terms: &[TopologySelectorTerm], errors: &mut ErrorList) {
    let mut seen: Vec<BTreeMap<&str, BTreeSet<&str>>> = Vec::new();
    for (index, term) in terms.iter().enumerate() {
        let path = Path::new("allowedTopologies").index(index);
        let expressions = validate_topology_selector_term(term, &path, errors);
        // A term without expressions counts as a repetition of the nothing that upstream starts with.
        let repeated = seen.iter().filter(|other| **other == expressions).count();
        let blank = if expressions.is_empty() { terms.len() - index } else { 0 };
        for _ in 0..repeated + blank {
            errors.duplicate(path.child("matchLabelExpressions"), "");
        }
        seen.push(expressions);
    }
}

pub fn validate_attributes_class(class: &VolumeAttributesClass) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&class.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_provisioner(&class.driver_name, &Path::new("driverName"), &mut errors);
    validate_parameters(class.parameters.as_ref(), &mut errors);
    if class.parameters.count() == 0 {
        errors.required(Path::new("parameters"), "must contain at least one key/value pair");
    }
    errors
}

pub fn validate_attributes_class_update(new: &VolumeAttributesClass, old: &VolumeAttributesClass) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    if new.driver_name != old.driver_name {
        errors.forbidden(Path::new("driverName"), "updates to driverName are forbidden.");
    }
    if new.parameters != old.parameters {
        errors.forbidden(Path::new("parameters"), "updates to parameters are forbidden.");
    }
    errors.extend(validate_attributes_class(new));
    errors
}

pub fn set_attachment_defaults(attachment: &mut VolumeAttachment) {
    if let Some(volume) = &mut attachment.spec.source.inline_volume_spec {
        persistent_volume::set_spec_defaults(volume);
    }
    attachment.status.get_or_insert_default();
}

pub fn validate_attachment(attachment: &VolumeAttachment) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&attachment.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    let (spec, path) = (&attachment.spec, Path::new("spec"));
    validate_csi_driver_name(&spec.attacher, &path.child("attacher"), &mut errors);
    validate_attachment_source(&spec.source, &path.child("source"), &mut errors);
    errors.invalid_each(path.child("nodeName"), &spec.node_name, dns_subdomain(&spec.node_name, false));
    let status = attachment.status.clone().unwrap_or_default();
    let path = Path::new("status");
    let size: usize = status.attachment_metadata.pairs().map(|(key, value)| key.len() + value.len()).sum();
    if size > ATTACHMENT_METADATA_SIZE_MAX {
        errors.too_long(path.child("attachmentMetadata"), ATTACHMENT_METADATA_SIZE_MAX);
    }
    validate_volume_error(status.attach_error.as_ref(), &path.child("attachError"), &mut errors);
    validate_volume_error(status.detach_error.as_ref(), &path.child("detachError"), &mut errors);
    if let Some(name) = &spec.source.persistent_volume_name {
        errors.invalid_each(Path::new("spec.source.persistentVolumeName"), name, dns_subdomain(name, false));
    }
    errors
}

fn validate_attachment_source(source: &VolumeAttachmentSource, path: &Path, errors: &mut ErrorList) {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (&source.inline_volume_spec, &source.persistent_volume_name) {
        (None, None) => errors.required(path, ONE),
        (Some(_), Some(_)) => errors.forbidden(path, ONE),
        (None, Some(name)) => {
            if name.is_empty() {
                errors.required(path.child("persistentVolumeName"), "must specify non empty persistentVolumeName");
            }
        }
        (Some(volume), None) => {
            persistent_volume::validate_spec(volume, "", true, false, &path.child("inlineVolumeSpec"), errors);
        }
    }
}

fn validate_volume_error(error: Option<&VolumeError>, path: &Path, errors: &mut ErrorList) {
    let Some(error) = error else { return };
    if error.message.text().len() > ERROR_MESSAGE_MAX {
        // The limit that the text names is upstream's, though it is not the one that was checked.
        errors.too_long(path.child("message"), ATTACHMENT_METADATA_SIZE_MAX);
    }
    if let Some(code) = error.error_code.filter(|code| *code < 0) {
        errors.invalid(path.child("errorCode"), code, names::inclusive_range_error(0, i64::from(i32::MAX)));
    }
}

/// Of the attachment and of its status alike.
pub fn validate_attachment_update(new: &VolumeAttachment, old: &VolumeAttachment) -> ErrorList {
    let mut errors = validate_attachment(new);
    immutable(&new.spec, &old.spec, Path::new("spec"), &mut errors);
    errors
}

pub fn validate_csi_node(node: &CSINode) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&node.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    let mut taken = BTreeSet::new();
    for (index, driver) in node.spec.drivers.iter().enumerate() {
        let path = Path::new("spec").child("drivers").index(index);
        validate_csi_node_driver(driver, !taken.insert(driver.name.as_str()), &path, &mut errors);
    }
    errors
}

fn validate_csi_node_driver(driver: &CSINodeDriver, repeated: bool, path: &Path, errors: &mut ErrorList) {
    validate_csi_driver_name(&driver.name, &path.child("name"), errors);
    let id_path = path.child("nodeID");
    errors.not_empty(&id_path, &driver.node_id);
    if driver.node_id.len() > NODE_ID_MAX {
        let detail = format!("must be {NODE_ID_MAX} characters or less");
        errors.invalid(id_path, driver.node_id.as_str(), detail);
    }
    if let Some(count) = driver.allocatable.as_ref().and_then(|allocatable| allocatable.count) {
        errors.not_negative(path.child("allocatable").child("count"), count);
    }
    if repeated {
        errors.duplicate(path.child("name"), driver.name.as_str());
    }
    let mut keys = BTreeSet::new();
    for key in driver.topology_keys.items() {
        errors.not_empty(path, key);
        if !keys.insert(key) {
            errors.duplicate(path, key.as_str());
        }
        validate_qualified_name(key, path, errors);
    }
}

/// A driver may come, go, and change its limit.
pub fn validate_csi_node_update(new: &CSINode, old: &CSINode) -> ErrorList {
    let mut errors = validate_csi_node(new);
    let unlimited = |driver: &CSINodeDriver| CSINodeDriver { allocatable: None, ..driver.clone() };
    for old_driver in &old.spec.drivers {
        for driver in new.spec.drivers.iter().filter(|driver| driver.name == old_driver.name) {
            immutable(&unlimited(driver), &unlimited(old_driver), Path::new("spec").child("drivers"), &mut errors);
        }
    }
    errors
}

pub fn set_csi_driver_defaults(driver: &mut CSIDriver) {
    let spec = &mut driver.spec;
    default_to(&mut spec.attach_required, true);
    default_to(&mut spec.pod_info_on_mount, false);
    default_to(&mut spec.storage_capacity, false);
    default_to(&mut spec.fs_group_policy, "ReadWriteOnceWithFSType".to_owned());
    if spec.volume_lifecycle_modes.items().is_empty() {
        spec.volume_lifecycle_modes = Some(vec!["Persistent".to_owned()]);
    }
    default_to(&mut spec.requires_republish, false);
    default_to(&mut spec.se_linux_mount, false);
}

pub fn validate_csi_driver(driver: &CSIDriver) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&driver.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_csi_driver_spec(&driver.spec, &Path::new("spec"), &mut errors);
    errors
}

fn validate_csi_driver_spec(spec: &CSIDriverSpec, path: &Path, errors: &mut ErrorList) {
    let required = [
        (spec.attach_required, "attachedRequired"),
        (spec.pod_info_on_mount, "podInfoOnMount"),
        (spec.storage_capacity, "storageCapacity"),
    ];
    for (_, field) in required.into_iter().filter(|(value, _)| value.is_none()) {
        errors.required(path.child(field), "");
    }
    if let Some(policy) = &spec.fs_group_policy {
        errors.one_of(path.child("fsGroupPolicy"), policy, &["File", "None", "ReadWriteOnceWithFSType"]);
    }
    validate_token_requests(spec.token_requests.items(), &path.child("tokenRequests"), errors);
    for mode in spec.volume_lifecycle_modes.items() {
        errors.one_of(path.child("volumeLifecycleModes"), mode, &["Persistent", "Ephemeral"]);
    }
    if spec.se_linux_mount.is_none() {
        errors.required(path.child("seLinuxMount"), "");
    }
    if let Some(period) = spec.node_allocatable_update_period_seconds.filter(|period| *period < 10) {
        let detail = "must be greater than or equal to 10 seconds";
        errors.invalid(path.child("nodeAllocatableUpdatePeriodSeconds"), period, detail);
    }
    if let Some(in_secrets) = spec.service_account_token_in_secrets
        && spec.token_requests.items().is_empty()
    {
        let detail = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        errors.invalid(path.child("serviceAccountTokenInSecrets"), in_secrets, detail);
    }
}

fn validate_token_requests(requests: &[TokenRequest], path: &Path, errors: &mut ErrorList) {
    let mut audiences = BTreeSet::new();
    for (index, request) in requests.iter().enumerate() {
        let path = path.index(index);
        if !audiences.insert(request.audience.as_str()) {
            errors.duplicate(path.child("audience"), request.audience.as_str());
            continue;
        }
        let Some(seconds) = request.expiration_seconds else { continue };
        let path = path.child("expirationSeconds");
        if seconds < TOKEN_SECONDS_MIN {
            errors.invalid(path, seconds, "may not specify a duration less than 10 minutes");
        } else if seconds > TOKEN_SECONDS_MAX {
            errors.invalid(path, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
}

pub fn validate_csi_driver_update(new: &CSIDriver, old: &CSIDriver) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("spec");
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_csi_driver_spec(&new.spec, &path, &mut errors);
    immutable(&new.spec.attach_required, &old.spec.attach_required, path.child("attachedRequired"), &mut errors);
    let (modes, old_modes) = (&new.spec.volume_lifecycle_modes, &old.spec.volume_lifecycle_modes);
    immutable(modes, old_modes, path.child("volumeLifecycleModes"), &mut errors);
    errors
}

pub fn csi_driver_warnings(driver: &CSIDriver, old: Option<&CSIDriver>) -> Vec<String> {
    let requests = driver.spec.token_requests.items();
    let changed = old.is_none_or(|old| old.spec.token_requests.items() != requests);
    if requests.is_empty() || !changed || driver.spec.service_account_token_in_secrets.is_some() {
        return Vec::new();
    }
    vec![
        "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent \
         possible logging of tokens in volume attributes"
            .to_owned(),
    ]
}

pub fn validate_capacity(capacity: &CSIStorageCapacity) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_capacity_with(capacity, SelectorOptions::default(), &mut errors);
    errors
}

fn validate_capacity_with(capacity: &CSIStorageCapacity, options: SelectorOptions, errors: &mut ErrorList) {
    validate_object_meta(&capacity.metadata, true, dns_subdomain, &Path::new("metadata"), errors);
    validate_label_selector(capacity.node_topology.as_ref(), options, &Path::new("nodeTopology"), errors);
    let class = &capacity.storage_class_name;
    errors.invalid_each(Path::new("storageClassName"), class, dns_subdomain(class, false));
    if let Some(amount) = capacity.capacity.as_ref().filter(|amount| is_negative(amount)) {
        errors.invalid(Path::new("capacity"), canonical(amount), MUST_NOT_BE_NEGATIVE);
    }
}

pub fn validate_capacity_update(new: &CSIStorageCapacity, old: &CSIStorageCapacity) -> ErrorList {
    let mut errors = ErrorList::new();
    let lenient = has_invalid_label_value(old.node_topology.as_ref());
    let options = SelectorOptions { allow_invalid_label_value: lenient, ..SelectorOptions::default() };
    validate_capacity_with(new, options, &mut errors);
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    if !semantic_eq(&new.node_topology, &old.node_topology) {
        errors.invalid(Path::new("nodeTopology"), shown(&new.node_topology), FIELD_IMMUTABLE);
    }
    if new.storage_class_name != old.storage_class_name {
        errors.invalid(Path::new("storageClassName"), new.storage_class_name.as_str(), FIELD_IMMUTABLE);
    }
    errors
}

pub fn capacity_warnings(capacity: &CSIStorageCapacity) -> Vec<String> {
    let Some(selector) = &capacity.node_topology else { return Vec::new() };
    let path = Path::new("nodeTopology");
    let mut warnings = Vec::new();
    for (index, expression) in selector.match_expressions.items().iter().enumerate() {
        if let Some(message) = deprecated_node_label(&expression.key) {
            let path = path.child("matchExpressions").index(index).child("key");
            warnings.push(format!("{path}: {} is {message}", expression.key));
        }
    }
    for (label, _) in selector.match_labels.pairs() {
        if let Some(message) = deprecated_node_label(label) {
            warnings.push(format!("{}: {message}", path.child("matchLabels").child(label)));
        }
    }
    warnings
}
