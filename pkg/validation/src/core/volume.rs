//! Volumes of a pod, and the volume sources that pods and PersistentVolumes share.
//!
//! Behaves as ValidateVolumes and the source checks of pkg/apis/core/validation/validation.go, v1.36.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::k8s::core::v1::{
    AzureDiskVolumeSource, CSIVolumeSource, ConfigMapVolumeSource, DownwardAPIVolumeFile, DownwardAPIVolumeSource,
    EphemeralVolumeSource, FCVolumeSource, FlockerVolumeSource, GitRepoVolumeSource, HostPathVolumeSource,
    ISCSIVolumeSource, KeyToPath, NFSVolumeSource, ProjectedVolumeSource, QuobyteVolumeSource, SecretVolumeSource,
    StorageOSVolumeSource, Volume,
};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use super::env::{validate_container_resource_field_selector, validate_object_field_selector};
use super::persistent_volume_claim;
use super::pod_options::PodOptions;
use super::volume_projected::validate_projected;
use crate::common::names::{dns_subdomain, validate_dns1123_label};
use crate::common::quantity::is_negative;
use crate::common::report::{OptList, OptText, Report, Sources};

pub(crate) const MORE_THAN_ONE_VOLUME_TYPE: &str = "may not specify more than 1 volume type";
pub(crate) const NO_VOLUME_TYPE: &str = "must specify a volume type";
pub(crate) const FILE_MODE_ERROR: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// The volumes that are valid, by name: what mounts may refer to.
pub(crate) type Volumes<'a> = BTreeMap<&'a str, &'a Volume>;

pub(crate) fn validate_volumes<'a>(
    volumes: &'a [Volume],
    pod_meta: Option<&ObjectMeta>,
    path: &Path,
    options: &PodOptions,
    errors: &mut ErrorList,
) -> Volumes<'a> {
    let pod_name = pod_meta.map_or("", |meta| meta.name.text());
    let created_claims: BTreeSet<String> = volumes
        .iter()
        .filter(|volume| !pod_name.is_empty() && volume.ephemeral.is_some())
        .map(|volume| format!("{pod_name}-{}", volume.name))
        .collect();

    let mut valid = Volumes::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let name_path = path.child("name");
        let found_before = errors.len();
        validate_volume_source(volume, pod_name, &path, options, errors);
        if volume.name.is_empty() {
            errors.required(&name_path, "");
        } else {
            validate_dns1123_label(&volume.name, &name_path, errors);
        }
        if valid.contains_key(volume.name.as_str()) {
            errors.duplicate(&name_path, volume.name.as_str());
        }
        if errors.len() == found_before {
            valid.insert(&volume.name, volume);
        }
        if let Some(claim) = &volume.persistent_volume_claim
            && created_claims.contains(&claim.claim_name)
        {
            errors.invalid(
                path.child("persistentVolumeClaim").child("claimName"),
                claim.claim_name.as_str(),
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
    valid
}

#[allow(clippy::too_many_lines, reason = "a list of volume types, in upstream's order")]
fn validate_volume_source(volume: &Volume, pod_name: &str, path: &Path, options: &PodOptions, errors: &mut ErrorList) {
    let mut sources = Sources::new(path, MORE_THAN_ONE_VOLUME_TYPE);
    if let Some(empty_dir) = &volume.empty_dir {
        sources.found += 1;
        if empty_dir.size_limit.as_ref().is_some_and(is_negative) {
            errors.forbidden(
                path.child("emptyDir").child("sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            );
        }
    }
    sources.take(errors, volume.host_path.as_ref(), "hostPath", validate_host_path);
    sources.take(errors, volume.git_repo.as_ref(), "gitRepo", validate_git_repo);
    sources.take(errors, volume.gce_persistent_disk.as_ref(), "gcePersistentDisk", |source, _, errors| {
        validate_disk(&source.pd_name, "pdName", source.partition, &path.child("persistentDisk"), errors);
    });
    sources.take(errors, volume.aws_elastic_block_store.as_ref(), "awsElasticBlockStore", |source, path, errors| {
        validate_disk(&source.volume_id, "volumeID", source.partition, path, errors);
    });
    sources.take(errors, volume.secret.as_ref(), "secret", validate_secret);
    sources.take(errors, volume.nfs.as_ref(), "nfs", validate_nfs);
    sources.take(errors, volume.iscsi.as_ref(), "iscsi", validate_iscsi);
    if let Some(iscsi) = &volume.iscsi
        && iscsi.initiator_name.is_some()
        && volume.name.len() + 1 + iscsi.target_portal.len() > 64
    {
        errors.invalid(path.child("name"), volume.name.as_str(), ISCSI_NAME_TOO_LONG);
    }
    sources.take(errors, volume.glusterfs.as_ref(), "glusterfs", |source, path, errors| {
        errors.not_empty(path.child("endpoints"), &source.endpoints);
        errors.not_empty(path.child("path"), &source.path);
    });
    sources.take(errors, volume.flocker.as_ref(), "flocker", validate_flocker);
    sources.take(errors, volume.persistent_volume_claim.as_ref(), "persistentVolumeClaim", |source, path, errors| {
        errors.not_empty(path.child("claimName"), &source.claim_name);
    });
    sources.take(errors, volume.rbd.as_ref(), "rbd", |source, path, errors| {
        validate_rbd(&source.monitors, &source.image, path, errors);
    });
    sources.take(errors, volume.cinder.as_ref(), "cinder", |source, path, errors| {
        errors.not_empty(path.child("volumeID"), &source.volume_id);
        if let Some(secret) = &source.secret_ref {
            errors.not_empty(path.child("secretRef").child("name"), &secret.name);
        }
    });
    sources.take(errors, volume.cephfs.as_ref(), "cephFS", |source, _, errors| {
        validate_monitors(&source.monitors, &path.child("cephfs"), errors);
    });
    sources.take(errors, volume.quobyte.as_ref(), "quobyte", validate_quobyte);
    // The misspelling is upstream's and shows in errors.
    sources.take(errors, volume.downward_api.as_ref(), "downwarAPI", |source, _, errors| {
        validate_downward_api(source, &path.child("downwardAPI"), errors);
    });
    sources.take(errors, volume.fc.as_ref(), "fc", validate_fc);
    sources.take(errors, volume.flex_volume.as_ref(), "flexVolume", |source, path, errors| {
        validate_flex_volume(&source.driver, source.options.as_ref(), path, errors);
    });
    sources.take(errors, volume.config_map.as_ref(), "configMap", validate_config_map);
    sources.take(errors, volume.azure_file.as_ref(), "azureFile", |source, path, errors| {
        errors.not_empty(path.child("secretName"), &source.secret_name);
        errors.not_empty(path.child("shareName"), &source.share_name);
    });
    sources.take(errors, volume.vsphere_volume.as_ref(), "vsphereVolume", |source, path, errors| {
        errors.not_empty(path.child("volumePath"), &source.volume_path);
    });
    sources.take(errors, volume.photon_persistent_disk.as_ref(), "photonPersistentDisk", |source, path, errors| {
        errors.not_empty(path.child("pdID"), &source.pd_id);
    });
    sources.take(errors, volume.portworx_volume.as_ref(), "portworxVolume", |source, path, errors| {
        errors.not_empty(path.child("volumeID"), &source.volume_id);
    });
    sources.take(errors, volume.azure_disk.as_ref(), "azureDisk", validate_azure_disk);
    sources.take(errors, volume.storageos.as_ref(), "storageos", validate_storageos);
    sources.take(errors, volume.projected.as_ref(), "projected", |source: &ProjectedVolumeSource, path, errors| {
        validate_projected(source, path, options, errors);
    });
    sources.take(errors, volume.scale_io.as_ref(), "scaleIO", |source, path, errors| {
        errors.not_empty(path.child("gateway"), &source.gateway);
        errors.not_empty(path.child("system"), &source.system);
        errors.not_empty(path.child("volumeName"), source.volume_name.text());
    });
    sources.take(errors, volume.csi.as_ref(), "csi", validate_csi);
    let ephemeral_name = (!pod_name.is_empty() && !volume.name.is_empty()).then_some(&volume.name);
    sources.take(errors, volume.ephemeral.as_ref(), "ephemeral", |source, ephemeral_path, errors| {
        validate_ephemeral(source, ephemeral_path, errors);
        if let Some(name) = ephemeral_name {
            let claim = format!("{pod_name}-{name}");
            for message in dns_subdomain(&claim, false) {
                errors.invalid(path.child("name"), name.as_str(), format!("PVC name {claim:?}: {message}"));
            }
        }
    });
    sources.take(errors, volume.image.as_ref(), "image", |source, path, errors| {
        if options.resource_is_pod && source.reference.is_blank() {
            errors.required(path.child("reference"), "");
        }
        errors.required_one_of(
            path.child("pullPolicy"),
            source.pull_policy.text(),
            &["Always", "IfNotPresent", "Never"],
        );
    });
    if sources.found == 0 {
        errors.required(path, NO_VOLUME_TYPE);
    }
}

pub(crate) const ISCSI_NAME_TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

pub(crate) fn validate_host_path(source: &HostPathVolumeSource, path: &Path, errors: &mut ErrorList) {
    if source.path.is_empty() {
        errors.required(path.child("path"), "");
        return;
    }
    validate_path_no_backsteps(&source.path, &path.child("path"), errors);
    if let Some(kind) = &source.type_ {
        const TYPES: [&str; 8] =
            ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
        errors.one_of(path.child("type"), kind, &TYPES);
    }
}

fn validate_git_repo(source: &GitRepoVolumeSource, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child("repository"), &source.repository);
    validate_local_descending_path(source.directory.text(), &path.child("directory"), errors);
}

pub(crate) fn validate_disk(name: &str, name_field: &str, partition: Option<i32>, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child(name_field), name);
    if let Some(partition) = partition.filter(|partition| !(0..=255).contains(partition)) {
        errors.invalid(path.child("partition"), partition, names::inclusive_range_error(1, 255));
    }
}

fn validate_mode(mode: Option<i32>, path: &Path, errors: &mut ErrorList) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(path, mode, FILE_MODE_ERROR);
    }
}

fn validate_secret(source: &SecretVolumeSource, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child("secretName"), source.secret_name.text());
    validate_mode(source.default_mode, &path.child("defaultMode"), errors);
    validate_key_to_paths(source.items.items(), &path.child("items"), errors);
}

fn validate_config_map(source: &ConfigMapVolumeSource, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child("name"), &source.name);
    validate_mode(source.default_mode, &path.child("defaultMode"), errors);
    validate_key_to_paths(source.items.items(), &path.child("items"), errors);
}

fn validate_key_to_paths(items: &[KeyToPath], path: &Path, errors: &mut ErrorList) {
    for (index, item) in items.iter().enumerate() {
        validate_key_to_path(item, &path.index(index), errors);
    }
}

pub(crate) fn validate_key_to_path(item: &KeyToPath, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child("key"), &item.key);
    errors.not_empty(path.child("path"), &item.path);
    validate_local_non_reserved_path(&item.path, &path.child("path"), errors);
    validate_mode(item.mode, &path.child("mode"), errors);
}

pub(crate) fn validate_nfs(source: &NFSVolumeSource, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child("server"), &source.server);
    errors.not_empty(path.child("path"), &source.path);
    if !source.path.starts_with('/') {
        errors.invalid(path.child("path"), source.path.as_str(), "must be an absolute path");
    }
}

/// What is wrong with an iSCSI qualified name, if anything; `bad_prefix` is the text for an unknown form.
pub(crate) fn iscsi_name_error(name: &str, bad_prefix: &'static str) -> Option<&'static str> {
    const INVALID: &str = "must be valid format";
    let alphanumeric = |text: &str, length: usize| {
        text.len() == length + 1 && text.chars().skip(1).all(|character| character.is_ascii_alphanumeric())
    };
    let valid = if let Some(rest) = name.strip_prefix("iqn") {
        is_iqn(rest)
    } else if let Some(rest) = name.strip_prefix("eui") {
        alphanumeric(rest, 16)
    } else if let Some(rest) = name.strip_prefix("naa") {
        alphanumeric(rest, 32)
    } else {
        return Some(bad_prefix);
    };
    (!valid).then_some(INVALID)
}

/// `.yyyy-mm.reversed.domain:unique`, after `iqn`.
fn is_iqn(rest: &str) -> bool {
    let bytes = rest.as_bytes();
    let digit = |index: usize| bytes.get(index).is_some_and(u8::is_ascii_digit);
    let dated = rest.starts_with('.')
        && (1..5).all(digit)
        && bytes.get(5) == Some(&b'-')
        && (6..8).all(digit)
        && bytes.get(8) == Some(&b'.');
    let Some((domain, unique)) = rest.get(9..).and_then(|tail| tail.split_once(':')) else { return false };
    dated
        && !domain.is_empty()
        && domain.chars().all(|character| character.is_ascii_alphanumeric() || matches!(character, '-' | '.'))
        && !unique.is_empty()
        && !unique.chars().any(|character| ",;*&$|".contains(character) || character.is_whitespace())
}

fn validate_iscsi(source: &ISCSIVolumeSource, path: &Path, errors: &mut ErrorList) {
    const UNKNOWN_FORM: &str = "must be valid format starting with iqn, eui, or naa";
    errors.not_empty(path.child("targetPortal"), &source.target_portal);
    if source.iqn.is_empty() {
        errors.required(path.child("iqn"), "");
    } else if let Some(detail) = iscsi_name_error(&source.iqn, UNKNOWN_FORM) {
        errors.invalid(path.child("iqn"), source.iqn.as_str(), detail);
    }
    validate_lun(source.lun, path, errors);
    let chap = source.chap_auth_discovery == Some(true) || source.chap_auth_session == Some(true);
    if chap && source.secret_ref.is_none() {
        errors.required(path.child("secretRef"), "");
    }
    if let Some(initiator) = &source.initiator_name
        && let Some(detail) = iscsi_name_error(initiator, UNKNOWN_FORM)
    {
        errors.invalid(path.child("initiatorname"), initiator.as_str(), detail);
    }
}

pub(crate) fn validate_lun(lun: i32, path: &Path, errors: &mut ErrorList) {
    if !(0..=255).contains(&lun) {
        errors.invalid(path.child("lun"), lun, names::inclusive_range_error(0, 255));
    }
}

pub(crate) fn validate_fc(source: &FCVolumeSource, path: &Path, errors: &mut ErrorList) {
    let (names, ids) = (source.target_wwns.items(), source.wwids.items());
    if names.is_empty() && ids.is_empty() {
        errors.required(path.child("targetWWNs"), "must specify either targetWWNs or wwids, but not both");
    }
    if !names.is_empty() && !ids.is_empty() {
        let detail = "targetWWNs and wwids can not be specified simultaneously";
        errors.invalid(path.child("targetWWNs"), names.to_vec(), detail);
    }
    if !names.is_empty() {
        match source.lun {
            None => errors.required(path.child("lun"), "lun is required if targetWWNs is specified"),
            Some(lun) => validate_lun(lun, path, errors),
        }
    }
}

pub(crate) fn validate_flocker(source: &FlockerVolumeSource, path: &Path, errors: &mut ErrorList) {
    let (name, uuid) = (source.dataset_name.text(), source.dataset_uuid.text());
    if name.is_empty() && uuid.is_empty() {
        errors.required(path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errors.invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        errors.invalid(path.child("datasetName"), name, "must not contain '/'");
    }
}

pub(crate) fn validate_monitors(monitors: &[String], path: &Path, errors: &mut ErrorList) {
    if monitors.is_empty() {
        errors.required(path.child("monitors"), "");
    }
}

pub(crate) fn validate_rbd(monitors: &[String], image: &str, path: &Path, errors: &mut ErrorList) {
    validate_monitors(monitors, path, errors);
    errors.not_empty(path.child("image"), image);
}

pub(crate) fn validate_quobyte(source: &QuobyteVolumeSource, path: &Path, errors: &mut ErrorList) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    if source.registry.is_empty() {
        errors.required(path.child("registry"), PAIRS);
    } else if source.tenant.text().len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errors.required(path.child("tenant"), detail);
    } else {
        for pair in source.registry.split(',') {
            // `[v6]:port` or `host:port`, with nothing else between.
            let valid = match pair.strip_prefix('[') {
                Some(rest) => rest.split_once("]:").is_some_and(|(_, port)| !port.contains(':')),
                None => pair.matches(':').count() == 1,
            };
            if !valid {
                errors.invalid(path.child("registry"), source.registry.as_str(), PAIRS);
            }
        }
    }
    errors.not_empty(path.child("volume"), &source.volume);
}

fn validate_downward_api(source: &DownwardAPIVolumeSource, path: &Path, errors: &mut ErrorList) {
    validate_mode(source.default_mode, &path.child("defaultMode"), errors);
    for file in source.items.items() {
        validate_downward_api_file(file, path, errors);
    }
}

const VOLUME_FIELD_PATHS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

pub(crate) fn validate_downward_api_file(file: &DownwardAPIVolumeFile, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child("path"), &file.path);
    validate_local_non_reserved_path(&file.path, &path.child("path"), errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), resource) => {
            validate_object_field_selector(field, &VOLUME_FIELD_PATHS, &path.child("fieldRef"), errors);
            if resource.is_some() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid(path, "resource", detail);
            }
        }
        (None, Some(resource)) => {
            validate_container_resource_field_selector(resource, &path.child("resourceFieldRef"), true, errors);
        }
        (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    validate_mode(file.mode, &path.child("mode"), errors);
}

pub(crate) fn validate_default_mode(mode: Option<i32>, path: &Path, errors: &mut ErrorList) {
    validate_mode(mode, &path.child("defaultMode"), errors);
}

pub(crate) fn validate_flex_volume(
    driver: &str,
    options: Option<&BTreeMap<String, String>>,
    path: &Path,
    errors: &mut ErrorList,
) {
    errors.not_empty(path.child("driver"), driver);
    for key in options.into_iter().flatten().map(|(key, _)| key) {
        let namespace = key.split_once('/').map_or(key.as_str(), |(namespace, _)| namespace);
        let normalized = format!(".{}", namespace.to_lowercase());
        if normalized.ends_with(".kubernetes.io") || normalized.ends_with(".k8s.io") {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            errors.invalid(path.child("options").key(key), key.as_str(), detail);
        }
    }
}

pub(crate) fn validate_azure_disk(source: &AzureDiskVolumeSource, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child("diskName"), &source.disk_name);
    errors.not_empty(path.child("diskURI"), &source.disk_uri);
    if let Some(mode) = &source.caching_mode {
        errors.one_of(path.child("cachingMode"), mode, &["None", "ReadOnly", "ReadWrite"]);
    }
    let Some(kind) = &source.kind else { return };
    errors.one_of(path.child("kind"), kind, &["Dedicated", "Managed", "Shared"]);
    let uri = source.disk_uri.as_str();
    if kind == "Managed" && !uri.starts_with("/subscriptions/") {
        let form = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
        errors.not_supported(path.child("diskURI"), uri, &[form]);
    }
    if kind != "Managed" && !uri.starts_with("https://") {
        let form = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
        errors.not_supported(path.child("diskURI"), uri, &[form]);
    }
}

fn validate_storageos(source: &StorageOSVolumeSource, path: &Path, errors: &mut ErrorList) {
    validate_storageos_names(source.volume_name.text(), source.volume_namespace.text(), path, errors);
    if let Some(secret) = &source.secret_ref {
        errors.not_empty(path.child("secretRef").child("name"), &secret.name);
    }
}

pub(crate) fn validate_storageos_names(name: &str, namespace: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(path.child("volumeName"), "");
    } else {
        validate_dns1123_label(name, path.child("volumeName"), errors);
    }
    if !namespace.is_empty() {
        validate_dns1123_label(namespace, path.child("volumeNamespace"), errors);
    }
}

/// The name of a CSI driver: a DNS subdomain of at most 63 bytes, in any case.
pub(crate) fn validate_csi_driver_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > 63 {
        errors.too_long(path, 63);
    }
    errors.invalid_each(path, name, names::is_dns1123_subdomain(&name.to_lowercase()));
}

fn validate_csi(source: &CSIVolumeSource, path: &Path, errors: &mut ErrorList) {
    validate_csi_driver_name(&source.driver, &path.child("driver"), errors);
    if let Some(secret) = &source.node_publish_secret_ref {
        if secret.name.is_empty() {
            errors.required(path.child("nodePublishSecretRef").child("name"), "");
        } else {
            errors.invalid_each(path.child("name"), &secret.name, dns_subdomain(&secret.name, false));
        }
    }
}

fn validate_ephemeral(source: &EphemeralVolumeSource, path: &Path, errors: &mut ErrorList) {
    let path = path.child("volumeClaimTemplate");
    match &source.volume_claim_template {
        None => errors.required(path, ""),
        Some(template) => persistent_volume_claim::validate_template(template, &path, errors),
    }
}

pub(crate) fn validate_local_descending_path(target: &str, path: &Path, errors: &mut ErrorList) {
    if target.starts_with('/') {
        errors.invalid(path, target, "must be a relative path");
    }
    validate_path_no_backsteps(target, path, errors);
}

pub(crate) fn has_backsteps(target: &str) -> bool {
    target.split('/').any(|part| part == "..")
}

pub(crate) fn validate_path_no_backsteps(target: &str, path: &Path, errors: &mut ErrorList) {
    if has_backsteps(target) {
        errors.invalid(path, target, "must not contain '..'");
    }
}

pub(crate) fn validate_local_non_reserved_path(target: &str, path: &Path, errors: &mut ErrorList) {
    validate_local_descending_path(target, path, errors);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.invalid(path, target, "must not start with '..'");
    }
}
