//! core/v1 PersistentVolume.
//!
//! Behaves as ValidatePersistentVolume of pkg/apis/core/validation/validation.go, v1.36.

use rkube_api::k8s::core::v1::{
    CSIPersistentVolumeSource, GlusterfsPersistentVolumeSource, ISCSIPersistentVolumeSource, PersistentVolume,
    PersistentVolumeSpec, SecretReference,
};
use rkube_apimachinery::field::{ErrorList, Path};

use super::persistent_volume_claim::{VOLUME_MODES, validate_access_modes};
use super::pod_defaults::{round_up, set_azure_disk_defaults};
use super::resources::{validate_basic_resource, validate_positive_quantity};
use super::scheduling::{has_invalid_label_value_in_terms, validate_node_selector};
use super::volume::{
    ISCSI_NAME_TOO_LONG, MORE_THAN_ONE_VOLUME_TYPE, NO_VOLUME_TYPE, iscsi_name_error, validate_azure_disk,
    validate_csi_driver_name, validate_disk, validate_fc, validate_flex_volume, validate_flocker, validate_host_path,
    validate_lun, validate_monitors, validate_nfs, validate_path_no_backsteps, validate_quobyte, validate_rbd,
    validate_storageos_names,
};
use crate::common::defaults::{default_to, text_default};
use crate::common::diff::diff;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_label, dns_subdomain, validate_dns1123_label, validate_dns1123_subdomain};
use crate::common::report::{FIELD_IMMUTABLE, OptList, OptMap, OptText, Report, Sources, semantic_eq, shown};

pub fn set_defaults(volume: &mut PersistentVolume) {
    text_default(&mut volume.status.get_or_insert_default().phase, "Pending");
    let spec = volume.spec.get_or_insert_default();
    text_default(&mut spec.persistent_volume_reclaim_policy, "Retain");
    default_to(&mut spec.volume_mode, "Filesystem".to_owned());
    set_spec_defaults(spec);
}

/// The part that volumes inlined in a VolumeAttachment have too.
pub(crate) fn set_spec_defaults(spec: &mut PersistentVolumeSpec) {
    round_up(&mut spec.capacity);
    if let Some(host_path) = &mut spec.host_path {
        default_to(&mut host_path.type_, String::new());
    }
    if let Some(rbd) = &mut spec.rbd {
        text_default(&mut rbd.pool, "rbd");
        text_default(&mut rbd.user, "admin");
        text_default(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(iscsi) = &mut spec.iscsi {
        text_default(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(disk) = &mut spec.azure_disk {
        set_azure_disk_defaults(disk);
    }
    if let Some(scale_io) = &mut spec.scale_io {
        text_default(&mut scale_io.storage_mode, "ThinProvisioned");
        text_default(&mut scale_io.fs_type, "xfs");
    }
}

pub fn validate(volume: &PersistentVolume) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_volume(volume, false, &mut errors);
    errors
}

fn validate_volume(volume: &PersistentVolume, lenient: bool, errors: &mut ErrorList) {
    validate_object_meta(&volume.metadata, false, dns_subdomain, &Path::new("metadata"), errors);
    let spec = volume.spec.clone().unwrap_or_default();
    validate_spec(&spec, volume.metadata.name.text(), false, lenient, &Path::new("spec"), errors);
}

/// `inline` is a volume in a VolumeAttachment, which is a CSI volume and nothing else.
#[allow(clippy::too_many_lines, reason = "a list of volume types, in upstream's order")]
pub(crate) fn validate_spec(
    spec: &PersistentVolumeSpec,
    name: &str,
    inline: bool,
    lenient: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    const INLINE: &str = "may not be specified in the context of inline volumes";
    let policy = spec.persistent_volume_reclaim_policy.text();
    let capacity_path = path.child("capacity");
    if inline {
        if spec.claim_ref.is_some() {
            errors.forbidden(path.child("claimRef"), INLINE);
        }
        if spec.capacity.count() > 0 {
            errors.forbidden(&capacity_path, INLINE);
        }
        if spec.csi.is_none() {
            errors.required(path.child("csi"), "has to be specified in the context of inline volumes");
        }
    }
    let modes = spec.access_modes.items();
    if modes.is_empty() {
        errors.required(path.child("accessModes"), "");
    }
    validate_access_modes(modes, &path.child("accessModes"), errors);
    if !inline {
        if spec.capacity.count() == 0 {
            errors.required(&capacity_path, "");
        }
        if spec.capacity.value("storage").is_none() || spec.capacity.count() > 1 {
            errors.not_supported(&capacity_path, shown(&spec.capacity), &["storage"]);
        }
        for (name, value) in spec.capacity.pairs() {
            validate_basic_resource(value, &capacity_path.key(name), errors);
            validate_positive_quantity(value, &capacity_path.key(name), errors);
        }
    }
    let policy_path = path.child("persistentVolumeReclaimPolicy");
    if inline && !matches!(policy, "" | "Retain") {
        errors.forbidden(&policy_path, "may only be Retain in the context of inline volumes");
    } else if !inline && !policy.is_empty() {
        errors.one_of(&policy_path, policy, &["Delete", "Recycle", "Retain"]);
    }
    if let Some(affinity) = &spec.node_affinity {
        let path = path.child("nodeAffinity");
        match &affinity.required {
            _ if inline => errors.forbidden(path, INLINE),
            Some(selector) => validate_node_selector(selector, lenient, &path.child("required"), errors),
            None => errors.required(path.child("required"), "must specify required node constraints"),
        }
    }

    let mut sources = Sources::new(path, MORE_THAN_ONE_VOLUME_TYPE);
    sources.take(errors, spec.host_path.as_ref(), "hostPath", validate_host_path);
    sources.take(errors, spec.gce_persistent_disk.as_ref(), "gcePersistentDisk", |source, _, errors| {
        validate_disk(&source.pd_name, "pdName", source.partition, &path.child("persistentDisk"), errors);
    });
    sources.take(errors, spec.aws_elastic_block_store.as_ref(), "awsElasticBlockStore", |source, path, errors| {
        validate_disk(&source.volume_id, "volumeID", source.partition, path, errors);
    });
    sources.take(errors, spec.glusterfs.as_ref(), "glusterfs", validate_glusterfs);
    sources.take(errors, spec.flocker.as_ref(), "flocker", validate_flocker);
    sources.take(errors, spec.nfs.as_ref(), "nfs", validate_nfs);
    sources.take(errors, spec.rbd.as_ref(), "rbd", |source, path, errors| {
        validate_rbd(&source.monitors, &source.image, path, errors);
    });
    sources.take(errors, spec.quobyte.as_ref(), "quobyte", validate_quobyte);
    sources.take(errors, spec.cephfs.as_ref(), "cephFS", |source, _, errors| {
        validate_monitors(&source.monitors, &path.child("cephfs"), errors);
    });
    sources.take(errors, spec.iscsi.as_ref(), "iscsi", |source, path, errors| {
        validate_iscsi(source, name, path, errors);
    });
    sources.take(errors, spec.cinder.as_ref(), "cinder", |source, path, errors| {
        errors.not_empty(path.child("volumeID"), &source.volume_id);
        if let Some(secret) = &source.secret_ref {
            errors.not_empty(path.child("secretRef").child("name"), secret.name.text());
            errors.not_empty(path.child("secretRef").child("namespace"), secret.namespace.text());
        }
    });
    sources.take(errors, spec.fc.as_ref(), "fc", validate_fc);
    if let Some(flex) = &spec.flex_volume {
        sources.found += 1;
        validate_flex_volume(&flex.driver, flex.options.as_ref(), &path.child("flexVolume"), errors);
    }
    sources.take(errors, spec.azure_file.as_ref(), "azureFile", |source, path, errors| {
        errors.not_empty(path.child("secretName"), &source.secret_name);
        errors.not_empty(path.child("shareName"), &source.share_name);
        if source.secret_namespace.as_ref().is_some_and(String::is_empty) {
            errors.required(path.child("secretNamespace"), "");
        }
    });
    sources.take(errors, spec.vsphere_volume.as_ref(), "vsphereVolume", |source, path, errors| {
        errors.not_empty(path.child("volumePath"), &source.volume_path);
    });
    sources.take(errors, spec.photon_persistent_disk.as_ref(), "photonPersistentDisk", |source, path, errors| {
        errors.not_empty(path.child("pdID"), &source.pd_id);
    });
    sources.take(errors, spec.portworx_volume.as_ref(), "portworxVolume", |source, path, errors| {
        errors.not_empty(path.child("volumeID"), &source.volume_id);
    });
    sources.take(errors, spec.azure_disk.as_ref(), "azureDisk", validate_azure_disk);
    sources.take(errors, spec.scale_io.as_ref(), "scaleIO", |source, path, errors| {
        errors.not_empty(path.child("gateway"), &source.gateway);
        errors.not_empty(path.child("system"), &source.system);
        errors.not_empty(path.child("volumeName"), source.volume_name.text());
    });
    let has_affinity = spec.node_affinity.is_some() && !inline;
    sources.take(errors, spec.local.as_ref(), "local", |source, local_path, errors| {
        if source.path.is_empty() {
            errors.required(local_path.child("path"), "");
        } else {
            validate_path_no_backsteps(&source.path, &local_path.child("path"), errors);
        }
        if !has_affinity {
            errors.required(path.child("nodeAffinity"), "Local volume requires node affinity");
        }
    });
    sources.take(errors, spec.storageos.as_ref(), "storageos", |source, path, errors| {
        validate_storageos_names(source.volume_name.text(), source.volume_namespace.text(), path, errors);
        if let Some(secret) = &source.secret_ref {
            errors.not_empty(path.child("secretRef").child("name"), secret.name.text());
            errors.not_empty(path.child("secretRef").child("namespace"), secret.namespace.text());
        }
    });
    sources.take(errors, spec.csi.as_ref(), "csi", validate_csi);
    if sources.found == 0 {
        errors.required(path, NO_VOLUME_TYPE);
    }

    let root = spec
        .host_path
        .as_ref()
        .is_some_and(|host| host.path.starts_with('/') && host.path.split('/').all(|part| matches!(part, "" | ".")));
    if root && policy == "Recycle" {
        errors.forbidden(&policy_path, "may not be 'recycle' for a hostPath mount of '/'");
    }
    let class = spec.storage_class_name.text();
    if !class.is_empty() {
        let path = path.child("storageClassName");
        if inline {
            errors.forbidden(path, INLINE);
        } else {
            errors.invalid_each(path, class, dns_subdomain(class, false));
        }
    }
    if let Some(mode) = &spec.volume_mode {
        let path = path.child("volumeMode");
        if !inline {
            errors.one_of(path, mode, &VOLUME_MODES);
        } else if mode != "Filesystem" {
            let detail = "may not specify volumeMode other than Filesystem in the context of inline volumes";
            errors.forbidden(path, detail);
        }
    }
    if let Some(class) = &spec.volume_attributes_class_name {
        let class_path = path.child("volumeAttributesClassName");
        if class.is_empty() {
            errors.required(class_path, "an empty string is disallowed");
        } else {
            errors.invalid_each(class_path, class, dns_subdomain(class, false));
        }
        if spec.csi.is_none() {
            errors.required(path.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn validate_glusterfs(source: &GlusterfsPersistentVolumeSource, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child("endpoints"), &source.endpoints);
    errors.not_empty(path.child("path"), &source.path);
    if let Some(namespace) = &source.endpoints_namespace {
        let path = path.child("endpointsNamespace");
        if namespace.is_empty() {
            let detail = "if the endpointnamespace is set, it must be a valid namespace name";
            errors.invalid(path, "", detail);
        } else {
            errors.invalid_each(path, namespace, dns_label(namespace, false));
        }
    }
}

fn validate_iscsi(source: &ISCSIPersistentVolumeSource, name: &str, path: &Path, errors: &mut ErrorList) {
    const INVALID: &str = "must be valid format";
    errors.not_empty(path.child("targetPortal"), &source.target_portal);
    if source.initiator_name.is_some() && name.len() + 1 + source.target_portal.len() > 64 {
        errors.invalid(path.child("targetportal"), source.target_portal.as_str(), ISCSI_NAME_TOO_LONG);
    }
    if source.iqn.is_empty() {
        errors.required(path.child("iqn"), "");
    } else if let Some(detail) = iscsi_name_error(&source.iqn, INVALID) {
        errors.invalid(path.child("iqn"), source.iqn.as_str(), detail);
    }
    validate_lun(source.lun, path, errors);
    let chap = source.chap_auth_discovery == Some(true) || source.chap_auth_session == Some(true);
    match &source.secret_ref {
        None if chap => errors.required(path.child("secretRef"), ""),
        None => {}
        Some(secret) => errors.not_empty(path.child("secretRef").child("name"), secret.name.text()),
    }
    if let Some(initiator) = &source.initiator_name
        && let Some(detail) = iscsi_name_error(initiator, INVALID)
    {
        errors.invalid(path.child("initiatorname"), initiator.as_str(), detail);
    }
}

fn validate_csi(source: &CSIPersistentVolumeSource, path: &Path, errors: &mut ErrorList) {
    validate_csi_driver_name(&source.driver, &path.child("driver"), errors);
    errors.not_empty(path.child("volumeHandle"), &source.volume_handle);
    for (field, secret) in [
        ("controllerPublishSecretRef", &source.controller_publish_secret_ref),
        ("controllerExpandSecretRef", &source.controller_expand_secret_ref),
        ("nodePublishSecretRef", &source.node_publish_secret_ref),
        ("nodeExpandSecretRef", &source.node_expand_secret_ref),
    ] {
        if let Some(secret) = secret {
            validate_secret_reference(secret, &path.child(field), errors);
        }
    }
}

fn validate_secret_reference(secret: &SecretReference, path: &Path, errors: &mut ErrorList) {
    if secret.name.is_blank() {
        errors.required(path.child("name"), "");
    } else {
        validate_dns1123_subdomain(secret.name.text(), path.child("name"), errors);
    }
    if secret.namespace.is_blank() {
        errors.required(path.child("namespace"), "");
    } else {
        validate_dns1123_label(secret.namespace.text(), path.child("namespace"), errors);
    }
}

/// The spec with nothing in it but its source.
fn source_of(spec: &PersistentVolumeSpec) -> PersistentVolumeSpec {
    PersistentVolumeSpec {
        access_modes: None,
        capacity: None,
        claim_ref: None,
        mount_options: None,
        node_affinity: None,
        persistent_volume_reclaim_policy: None,
        storage_class_name: None,
        volume_attributes_class_name: None,
        volume_mode: None,
        ..spec.clone()
    }
}

pub fn validate_update(new: &PersistentVolume, old: &PersistentVolume) -> ErrorList {
    let mut errors = ErrorList::new();
    let (new_spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let old_selector = old_spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let lenient = old_selector.is_some_and(|selector| has_invalid_label_value_in_terms(&selector.node_selector_terms));
    validate_volume(new, lenient, &mut errors);
    let path = Path::new("spec");
    let (mut new_source, old_source) = (source_of(&new_spec), source_of(&old_spec));
    // Drivers may add the secret for expansion later.
    if let (Some(new), Some(old)) = (&mut new_source.csi, &old_source.csi)
        && old.controller_expand_secret_ref.is_none()
    {
        new.controller_expand_secret_ref = None;
    }
    if !semantic_eq(&new_source, &old_source) {
        let detail =
            format!("spec.persistentvolumesource is immutable after creation\n{}", diff(&old_source, &new_source));
        errors.forbidden(path.child("persistentvolumesource"), detail);
    }
    if new_spec.volume_mode != old_spec.volume_mode {
        errors.invalid(Path::new("volumeMode"), shown(&new_spec.volume_mode), FIELD_IMMUTABLE);
    }
    if old_spec.node_affinity.is_some()
        && new_spec.node_affinity != old_spec.node_affinity
        && new_spec.node_affinity != with_stable_labels(&old_spec, &new_spec).node_affinity
    {
        let detail = format!("{FIELD_IMMUTABLE}, except for updating from beta label to GA");
        errors.invalid(Path::new("nodeAffinity"), shown(&new_spec.node_affinity), detail);
    }
    if old_spec.volume_attributes_class_name.is_some() && new_spec.volume_attributes_class_name.is_none() {
        let detail = "update from non-nil value to nil is forbidden";
        errors.forbidden(path.child("volumeAttributesClassName"), detail);
    }
    errors
}

/// The old spec with each beta label replaced by the stable one where the new spec has that in its place.
fn with_stable_labels(old: &PersistentVolumeSpec, new: &PersistentVolumeSpec) -> PersistentVolumeSpec {
    let stable = |label: &str| match label {
        "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
        "beta.kubernetes.io/os" => "kubernetes.io/os",
        "beta.kubernetes.io/arch" => "kubernetes.io/arch",
        "beta.kubernetes.io/instance-type" => "node.kubernetes.io/instance-type",
        _ => "",
    };
    let mut replaced = old.clone();
    let terms = |spec: &PersistentVolumeSpec| {
        let selector = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.clone());
        selector.map(|selector| selector.node_selector_terms).unwrap_or_default()
    };
    let new_terms = terms(new);
    let selector = replaced.node_affinity.as_mut().and_then(|affinity| affinity.required.as_mut());
    for (old, new) in selector.into_iter().flat_map(|selector| &mut selector.node_selector_terms).zip(&new_terms) {
        let expressions = old.match_expressions.iter_mut().flatten().zip(new.match_expressions.items());
        for (old, new) in expressions {
            if stable(&old.key) == new.key {
                old.key.clone_from(&new.key);
            }
        }
    }
    replaced
}

/// `PUT persistentvolumes/x/status`.
pub fn validate_status_update(new: &PersistentVolume, old: &PersistentVolume) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors
}

/// Behaves as GetWarningsForPersistentVolume of pkg/api/persistentvolume/util.go, v1.36.
pub fn warnings(volume: &PersistentVolume) -> Vec<String> {
    const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
    const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
    let mut warnings = Vec::new();
    let annotations = Path::new("metadata").child("annotations");
    for (key, message) in [
        (BETA_STORAGE_CLASS, "deprecated since v1.8; use \"storageClassName\" attribute instead"),
        (MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead"),
    ] {
        if volume.metadata.annotations.value(key).is_some() {
            warnings.push(format!("{}: {message}", annotations.key(key)));
        }
    }
    let Some(spec) = &volume.spec else { return warnings };
    let path = Path::new("spec");
    if spec.persistent_volume_reclaim_policy.text() == "Recycle" {
        warnings.push(format!(
            "{}: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.",
            path.child("persistentVolumeReclaimPolicy")
        ));
    }
    let selector = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    for (index, term) in selector.into_iter().flat_map(|selector| &selector.node_selector_terms).enumerate() {
        let path = path.child("nodeAffinity").child("required").child("nodeSelectorTerms").index(index);
        super::pod_warnings::node_selector_term_warnings(term, false, &path, &mut warnings);
    }
    for (field, used, message) in [
        ("cephfs", spec.cephfs.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
        (
            "photonPersistentDisk",
            spec.photon_persistent_disk.is_some(),
            "deprecated in v1.11, non-functional in v1.16+",
        ),
        ("scaleIO", spec.scale_io.is_some(), "deprecated in v1.16, non-functional in v1.22+"),
        ("storageOS", spec.storageos.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", spec.glusterfs.is_some(), "deprecated in v1.25, non-functional in v1.26+"),
        ("rbd", spec.rbd.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
    ] {
        if used {
            warnings.push(format!("{}: {message}", path.child(field)));
        }
    }
    warnings
}
