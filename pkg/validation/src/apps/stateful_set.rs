//! apps/v1 StatefulSet and ControllerRevision.
//!
//! Behaves as ValidateStatefulSet and ValidateControllerRevisionCreate of
//! pkg/apis/apps/validation/validation.go and pkg/apis/apps/v1/defaults.go, v1.36.

use std::collections::BTreeMap;

use rkube_api::k8s::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use rkube_api::k8s::core::v1::{PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume};
use rkube_apimachinery::field::{ErrorList, Path};
use serde_json::Value;

use super::workload::{
    validate_collision_count, validate_counts, validate_runs_forever, validate_selector, validate_selects_template,
};
use crate::common::defaults::{default_to, text_default};
use crate::common::int_or_percent;
use crate::common::meta::{selector_error, validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_label, dns_subdomain, validate_dns1123_label};
use crate::common::report::{FIELD_IMMUTABLE, OptList, OptText, Report, semantic_eq, shown};
use crate::core::persistent_volume_claim::{self, ClaimOptions};
use crate::core::pod::validate_template;
use crate::core::pod_defaults::set_template_defaults;
use crate::core::pod_options::PodOptions;

const ONLY: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

pub fn set_defaults(set: &mut StatefulSet) {
    let spec = set.spec.get_or_insert_default();
    text_default(&mut spec.pod_management_policy, "OrderedReady");
    let strategy = spec.update_strategy.get_or_insert_default();
    if strategy.type_.is_blank() {
        strategy.type_ = Some("RollingUpdate".to_owned());
        strategy.rolling_update.get_or_insert_default();
    }
    if strategy.type_.text() == "RollingUpdate"
        && let Some(update) = &mut strategy.rolling_update
    {
        default_to(&mut update.partition, 0);
    }
    let retention = spec.persistent_volume_claim_retention_policy.get_or_insert_default();
    text_default(&mut retention.when_deleted, "Retain");
    text_default(&mut retention.when_scaled, "Retain");
    default_to(&mut spec.replicas, 1);
    default_to(&mut spec.revision_history_limit, 10);
    set_template_defaults(&mut spec.template);
    for claim in spec.volume_claim_templates.iter_mut().flatten() {
        persistent_volume_claim::set_defaults(claim);
    }
    set.status.get_or_insert_default();
}

/// What an update leaves unchecked, because the field cannot change or was stored like that.
#[derive(Clone, Copy, Default)]
struct SetOptions {
    allow_invalid_service_name: bool,
    skip_claim_templates: bool,
    skip_template: bool,
}

pub fn validate(set: &StatefulSet) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&set.metadata, true, dns_label, &Path::new("metadata"), &mut errors);
    let spec = set.spec.clone().unwrap_or_default();
    validate_spec(&spec, &PodOptions::strict(), SetOptions::default(), &mut errors);
    errors
}

pub fn validate_update(new: &StatefulSet, old: &StatefulSet) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (new, old) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let options = PodOptions::for_template(Some(&old.template));
    let mut set_options =
        SetOptions { allow_invalid_service_name: true, skip_claim_templates: true, skip_template: false };
    let mut old_errors = ErrorList::new();
    validate_spec(&old, &options, set_options, &mut old_errors);
    set_options.skip_template = !old_errors.is_empty();
    validate_spec(&new, &options, set_options, &mut errors);

    let munged = StatefulSetSpec {
        replicas: old.replicas,
        template: old.template.clone(),
        update_strategy: old.update_strategy.clone(),
        min_ready_seconds: old.min_ready_seconds,
        ordinals: old.ordinals.clone(),
        revision_history_limit: old.revision_history_limit,
        persistent_volume_claim_retention_policy: old.persistent_volume_claim_retention_policy.clone(),
        ..new
    };
    if !semantic_eq(&munged, &old) {
        errors.forbidden(Path::new("spec"), ONLY);
    }
    errors
}

fn validate_spec(spec: &StatefulSetSpec, options: &PodOptions, set_options: SetOptions, errors: &mut ErrorList) {
    let path = Path::new("spec");
    match spec.pod_management_policy.text() {
        "" => errors.required(path.child("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        other => errors.invalid(path.child("podManagementPolicy"), other, "must be 'OrderedReady' or 'Parallel'"),
    }
    validate_strategy(&spec.update_strategy.clone().unwrap_or_default(), &path.child("updateStrategy"), errors);
    if let Some(policy) = &spec.persistent_volume_claim_retention_policy {
        let path = path.child("persistentVolumeClaimRetentionPolicy");
        for (field, policy) in [("whenDeleted", &policy.when_deleted), ("whenScaled", &policy.when_scaled)] {
            errors.one_of(path.child(field), policy.text(), &["Retain", "Delete"]);
        }
    }
    let claims = spec.volume_claim_templates.items();
    if !set_options.skip_claim_templates {
        for (index, claim) in claims.iter().enumerate() {
            let path = path.child("volumeClaimTemplates").index(index).child("spec");
            let spec = claim.spec.clone().unwrap_or_default();
            persistent_volume_claim::validate_spec(&spec, &path, ClaimOptions::default(), errors);
        }
    }
    errors.not_negative(path.child("replicas"), spec.replicas.unwrap_or(0));
    errors.not_negative(path.child("minReadySeconds"), spec.min_ready_seconds.unwrap_or(0));
    if let Some(ordinals) = &spec.ordinals {
        errors.not_negative(path.child("ordinals.start"), ordinals.start.unwrap_or(0));
    }
    let service = spec.service_name.text();
    if !set_options.allow_invalid_service_name && !service.is_empty() {
        validate_dns1123_label(service, path.child("serviceName"), errors);
    }
    validate_selector(&spec.selector, "statefulset", &path.child("selector"), errors);
    let template_path = path.child("template");
    if selector_error(&spec.selector).is_some() {
        errors.invalid(path.child("selector"), shown(&spec.selector), "");
    } else {
        let template = with_claims(spec);
        validate_selects_template(&spec.selector, &template, &template_path, errors);
        if !set_options.skip_template {
            validate_template(&template, &template_path, options, errors);
        }
    }
    validate_runs_forever(&spec.template, "StatefulSet", &template_path, errors);
}

/// The template as pods will have it: with a volume per claim template, and the names filled in by the controller.
fn with_claims(spec: &StatefulSetSpec) -> PodTemplateSpec {
    let mut template = spec.template.clone();
    let pod = template.spec.get_or_insert_default();
    pod.subdomain = None;
    pod.hostname = None;
    let claims: BTreeMap<&str, Volume> = spec
        .volume_claim_templates
        .items()
        .iter()
        .map(|claim| {
            let name = claim.metadata.name.text();
            let source = PersistentVolumeClaimVolumeSource { claim_name: name.to_owned(), read_only: None };
            let volume = Volume { name: name.to_owned(), persistent_volume_claim: Some(source), ..Volume::default() };
            (name, volume)
        })
        .collect();
    if !claims.is_empty() {
        let own = pod.volumes.take().unwrap_or_default();
        let own = own.into_iter().filter(|volume| !claims.contains_key(volume.name.as_str()));
        pod.volumes = Some(claims.values().cloned().chain(own).collect());
    }
    template
}

fn validate_strategy(strategy: &StatefulSetUpdateStrategy, path: &Path, errors: &mut ErrorList) {
    let update_path = path.child("rollingUpdate");
    match (strategy.type_.text(), &strategy.rolling_update) {
        ("", _) => errors.required(path, ""),
        ("OnDelete", Some(update)) => {
            errors.invalid(update_path, shown(update), "only allowed for updateStrategy 'RollingUpdate'");
        }
        ("OnDelete", None) | ("RollingUpdate", None) => {}
        ("RollingUpdate", Some(update)) => {
            errors.not_negative(update_path.child("partition"), update.partition.unwrap_or(0));
            if let Some(unavailable) = &update.max_unavailable {
                let path = update_path.child("maxUnavailable");
                int_or_percent::validate_positive(unavailable, &path, errors);
                if int_or_percent::number(unavailable) == 0 {
                    errors.invalid(&path, int_or_percent::shown(unavailable), "cannot be 0");
                }
                int_or_percent::validate_at_most_100_percent(unavailable, &path, errors);
            }
        }
        _ => errors.invalid(path, shown(strategy), "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

/// `PUT statefulsets/x/status`.
pub fn validate_status_update(new: &StatefulSet, old: &StatefulSet) -> ErrorList {
    let mut errors = ErrorList::new();
    let (status, old_status) = (new.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
    let path = Path::new("status");
    let parts = [
        ("readyReplicas", status.ready_replicas.unwrap_or(0)),
        ("currentReplicas", status.current_replicas.unwrap_or(0)),
        ("updatedReplicas", status.updated_replicas.unwrap_or(0)),
        ("availableReplicas", status.available_replicas.unwrap_or(0)),
    ];
    errors.not_negative(path.child("replicas"), status.replicas);
    for (field, count) in parts {
        errors.not_negative(path.child(field), count);
    }
    let counts =
        [("observedGeneration", status.observed_generation), ("collisionCount", status.collision_count.map(i64::from))];
    validate_counts(&counts, &path, &mut errors);
    for (field, count) in parts.into_iter().filter(|(_, count)| *count > status.replicas) {
        errors.invalid(path.child(field), count, "cannot be greater than status.replicas");
    }
    let (available, ready) = (status.available_replicas.unwrap_or(0), status.ready_replicas.unwrap_or(0));
    if available > ready {
        errors.invalid(path.child("availableReplicas"), available, "cannot be greater than status.readyReplicas");
    }
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_collision_count(status.collision_count, old_status.collision_count, &mut errors);
    errors
}

pub fn validate_revision(revision: &ControllerRevision) -> ErrorList {
    let mut errors = validate_revision_meta(revision);
    let path = Path::new("data");
    match revision.data.as_ref().map(|data| &data.0) {
        None | Some(Value::Null) => errors.required(path, "data is mandatory"),
        Some(Value::Object(_)) => {}
        Some(_) => errors.required(path, "data must be a valid JSON object"),
    }
    errors
}

fn validate_revision_meta(revision: &ControllerRevision) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&revision.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    errors.not_negative(Path::new("revision"), revision.revision);
    errors
}

pub fn validate_revision_update(new: &ControllerRevision, old: &ControllerRevision) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors.extend(validate_revision_meta(new));
    if new.data != old.data {
        errors.invalid(Path::new("data"), shown(&new.data), FIELD_IMMUTABLE);
    }
    errors
}
