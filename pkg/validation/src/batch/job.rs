//! batch/v1 Job: the spec. The status is in [`super::job_status`].
//!
//! Behaves as ValidateJob of pkg/apis/batch/validation/validation.go, pkg/apis/batch/v1/defaults.go and
//! pkg/registry/batch/job/strategy.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::batch::v1::{
    Job, JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
    SuccessPolicyRule,
};
use rkube_api::k8s::core::v1::{Affinity, PodSpec, PodTemplateSpec};
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::names;
use serde_json::Value;

use super::indexes;
use crate::common::defaults::{default_to, text_default};
use crate::common::meta::{
    SelectorOptions, has_invalid_label_value, selector_error, selector_matches, validate_label_selector,
    validate_object_meta, validate_object_meta_update,
};
use crate::common::names::{dns_subdomain, validate_qualified_name};
use crate::common::report::{OptList, OptMap, OptText, Report, immutable, semantic_eq, shown};
use crate::core::pod::validate_template;
use crate::core::pod_defaults::set_template_defaults;
use crate::core::pod_options::PodOptions;

pub const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
pub const JOB_NAME: &str = "batch.kubernetes.io/job-name";
pub const LEGACY_CONTROLLER_UID: &str = "controller-uid";
pub const LEGACY_JOB_NAME: &str = "job-name";

const INDEXED_PARALLELISM_MAX: i32 = 100_000;
const INDEXED_FAILED_INDEXES_MAX: i32 = 100_000;
/// Above this many completions the limits below hold.
const COMPLETIONS_SOFT_LIMIT: i32 = 100_000;
const PARALLELISM_MAX_FOR_MANY_COMPLETIONS: i32 = 10_000;
const FAILED_INDEXES_MAX_FOR_MANY_COMPLETIONS: i32 = 10_000;
const FAILURE_RULES_MAX: usize = 20;
const FAILURE_EXIT_CODES_MAX: usize = 255;
const FAILURE_CONDITIONS_MAX: usize = 20;
const MANAGED_BY_LENGTH_MAX: usize = 63;
const SUCCEEDED_INDEXES_LENGTH_MAX: usize = 64 * 1024;
const SUCCESS_RULES_MAX: usize = 20;

/// An Invalid without its value, as upstream's `OmitValueType`.
pub(crate) fn invalid_without_value(path: &Path, detail: &str) -> Error {
    Error::invalid(path, Value::Null, detail).omit_value()
}

pub fn set_defaults(job: &mut Job) {
    let spec = job.spec.get_or_insert_default();
    if spec.completions.is_none() && spec.parallelism.is_none() {
        spec.completions = Some(1);
    }
    default_to(&mut spec.parallelism, 1);
    let backoff = if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 };
    default_to(&mut spec.backoff_limit, backoff);
    let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone());
    if labels.is_some() && job.metadata.labels.count() == 0 {
        job.metadata.labels = labels;
    }
    default_to(&mut spec.completion_mode, "NonIndexed".to_owned());
    default_to(&mut spec.suspend, false);
    let replacement = if spec.pod_failure_policy.is_some() { "Failed" } else { "TerminatingOrFailed" };
    default_to(&mut spec.pod_replacement_policy, replacement.to_owned());
    default_to(&mut spec.manual_selector, false);
    set_spec_defaults(spec);
    job.status.get_or_insert_default();
}

/// What the template of a CronJob gets too.
pub(crate) fn set_spec_defaults(spec: &mut JobSpec) {
    set_template_defaults(&mut spec.template);
    let rules = spec.pod_failure_policy.iter_mut().flat_map(|policy| &mut policy.rules);
    for condition in rules.flat_map(|rule| rule.on_pod_conditions.iter_mut().flatten()) {
        text_default(&mut condition.status, "True");
    }
}

/// Gives a new Job the selector and labels by which its pods are found, unless the client chose its own.
pub fn generate_selector(job: &mut Job) {
    let spec = job.spec.get_or_insert_default();
    if spec.manual_selector == Some(true) {
        return;
    }
    let (name, uid) = (job.metadata.name.text().to_owned(), job.metadata.uid.text().to_owned());
    let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
    for (key, value) in
        [(LEGACY_JOB_NAME, &name), (JOB_NAME, &name), (LEGACY_CONTROLLER_UID, &uid), (CONTROLLER_UID, &uid)]
    {
        labels.entry(key.to_owned()).or_insert_with(|| value.clone());
    }
    let selector = spec.selector.get_or_insert_default();
    selector.match_labels.get_or_insert_default().entry(CONTROLLER_UID.to_owned()).or_insert(uid);
}

#[derive(Default)]
struct JobOptions {
    pod: PodOptions,
    require_prefixed_labels: bool,
    mutable_template: bool,
}

impl JobOptions {
    fn for_update(old: &Job) -> Self {
        let spec = old.spec.clone().unwrap_or_default();
        let mut pod = PodOptions::for_template(Some(&spec.template));
        pod.allow_invalid_label_value_in_selector |= has_invalid_label_value(spec.selector.as_ref());
        let labels = spec.template.metadata.and_then(|meta| meta.labels);
        let status = old.status.clone().unwrap_or_default();
        let suspended_condition = super::job_status::is_true(&status, "Suspended");
        Self {
            pod,
            require_prefixed_labels: labels.value(JOB_NAME).is_some() && labels.value(CONTROLLER_UID).is_some(),
            // A suspended job without pods can still be given other resources and another place.
            mutable_template: spec.suspend == Some(true)
                && (status.start_time.is_none() || suspended_condition)
                && status.active.unwrap_or(0) == 0,
        }
    }
}

pub fn validate(job: &Job) -> ErrorList {
    let mut errors = ErrorList::new();
    let options = JobOptions { require_prefixed_labels: true, ..JobOptions::default() };
    validate_job(job, &options, &mut errors);
    errors
}

fn validate_job(job: &Job, options: &JobOptions, errors: &mut ErrorList) {
    let spec = job.spec.clone().unwrap_or_default();
    validate_object_meta(&job.metadata, true, dns_subdomain, &Path::new("metadata"), errors);
    validate_generated_selector(job, &spec, options.require_prefixed_labels, errors);
    validate_spec_with_selector(&spec, &options.pod, errors);
    if spec.completion_mode.as_deref() == Some("Indexed")
        && let Some(completions) = spec.completions.filter(|completions| *completions > 0)
    {
        let name = job.metadata.name.text();
        let hostname = format!("{name}-{}", completions - 1);
        if !names::is_dns1123_label(&hostname).is_empty() {
            let detail = format!("will not able to create pod with invalid DNS label: {hostname}");
            errors.invalid(Path::new("metadata").child("name"), name, detail);
        }
    }
}

fn validate_generated_selector(job: &Job, spec: &JobSpec, prefixed: bool, errors: &mut ErrorList) {
    let Some(selector) = spec.selector.as_ref().filter(|_| spec.manual_selector != Some(true)) else { return };
    let (name, uid) = (job.metadata.name.text(), job.metadata.uid.text());
    if uid.is_empty() {
        errors.required(Path::new("metadata").child("uid"), "");
    }
    let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone());
    let path = Path::new("spec").child("template").child("metadata").child("labels");
    let mut expected = vec![(LEGACY_CONTROLLER_UID, uid), (LEGACY_JOB_NAME, name)];
    if prefixed {
        expected.extend([(CONTROLLER_UID, uid), (JOB_NAME, name)]);
    }
    for (key, value) in &expected {
        let detail = format!("must be '{value}'");
        match labels.value(key) {
            None => errors.required(path.key(key), detail),
            Some(found) if found != value => errors.invalid(path.key(key), shown(&labels), detail),
            Some(_) => {}
        }
    }
    let expected = expected.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    if selector_error(selector).is_none() && !selector_matches(selector, Some(&expected)) {
        errors.invalid(Path::new("spec").child("selector"), shown(selector), "`selector` not auto-generated");
    }
}

fn validate_spec_with_selector(spec: &JobSpec, options: &PodOptions, errors: &mut ErrorList) {
    let path = Path::new("spec");
    validate_spec(spec, &path, options, errors);
    let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone());
    let selects_template = match &spec.selector {
        None => {
            errors.required(path.child("selector"), "");
            false
        }
        Some(selector) => {
            let selector_options = SelectorOptions {
                allow_invalid_label_value: options.allow_invalid_label_value_in_selector,
                ..SelectorOptions::default()
            };
            validate_label_selector(Some(selector), selector_options, &path.child("selector"), errors);
            selector_error(selector).is_some() || selector_matches(selector, labels.as_ref())
        }
    };
    if !selects_template {
        let path = path.child("template").child("metadata").child("labels");
        errors.invalid(path, shown(&labels), "`selector` does not match template `labels`");
    }
}

pub(crate) fn validate_spec(spec: &JobSpec, path: &Path, options: &PodOptions, errors: &mut ErrorList) {
    for (field, value) in [
        ("parallelism", spec.parallelism.map(i64::from)),
        ("completions", spec.completions.map(i64::from)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds),
        ("backoffLimit", spec.backoff_limit.map(i64::from)),
        ("ttlSecondsAfterFinished", spec.ttl_seconds_after_finished.map(i64::from)),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.map(i64::from)),
        ("maxFailedIndexes", spec.max_failed_indexes.map(i64::from)),
    ] {
        errors.not_negative(path.child(field), value.unwrap_or(0));
    }
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() {
        errors.required(path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = &spec.managed_by {
        errors.extend(names::is_domain_prefixed_path(&path.child("managedBy"), manager));
        if manager.len() > MANAGED_BY_LENGTH_MAX {
            errors.too_long(path.child("managedBy"), MANAGED_BY_LENGTH_MAX);
        }
    }
    let mode = spec.completion_mode.as_deref().unwrap_or("NonIndexed");
    errors.one_of(path.child("completionMode"), mode, &["NonIndexed", "Indexed"]);
    match mode {
        "Indexed" => validate_indexed(spec, path, errors),
        "NonIndexed" => {
            for (field, value) in
                [("backoffLimitPerIndex", spec.backoff_limit_per_index), ("maxFailedIndexes", spec.max_failed_indexes)]
            {
                if let Some(value) = value {
                    errors.invalid(path.child(field), value, "requires indexed completion mode");
                }
            }
        }
        _ => {}
    }
    if let Some(policy) = &spec.pod_failure_policy {
        let path = path.child("podFailurePolicy").child("rules");
        if policy.rules.len() > FAILURE_RULES_MAX {
            errors.too_many(&path, policy.rules.len(), FAILURE_RULES_MAX);
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            validate_failure_rule(spec, rule, &path.index(index), errors);
        }
    }
    if let Some(policy) = &spec.success_policy {
        let path = path.child("successPolicy");
        if mode == "Indexed" {
            let path = path.child("rules");
            if policy.rules.is_empty() {
                errors.required(&path, "at least one rules must be specified when the successPolicy is specified");
            }
            if policy.rules.len() > SUCCESS_RULES_MAX {
                errors.too_many(&path, policy.rules.len(), SUCCESS_RULES_MAX);
            }
            for (index, rule) in policy.rules.iter().enumerate() {
                validate_success_rule(spec.completions.unwrap_or(0), rule, &path.index(index), errors);
            }
        } else {
            errors.invalid(path, shown(policy), "requires indexed completion mode");
        }
    }
    if let Some(policy) = &spec.pod_replacement_policy {
        let allowed: &[&str] =
            if spec.pod_failure_policy.is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        errors.one_of(path.child("podReplacementPolicy"), policy, allowed);
    }
    validate_template(&spec.template, &path.child("template"), options, errors);
    let path = path.child("template").child("spec").child("restartPolicy");
    match spec.template.spec.as_ref().map_or("", |pod| pod.restart_policy.text()) {
        "Always" | "" => errors.required(path, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.pod_failure_policy.is_some() => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.invalid(path, "OnFailure", detail);
        }
        "OnFailure" | "Never" => {}
        other => errors.not_supported(path, other, &["OnFailure", "Never"]),
    }
}

fn validate_indexed(spec: &JobSpec, path: &Path, errors: &mut ErrorList) {
    let parallelism = spec.parallelism.unwrap_or(0);
    let (parallelism_path, failed_path) = (path.child("parallelism"), path.child("maxFailedIndexes"));
    if spec.completions.is_none() {
        errors.required(path.child("completions"), "when completion mode is Indexed");
    }
    if parallelism > INDEXED_PARALLELISM_MAX {
        let detail = format!("must be less than or equal to {INDEXED_PARALLELISM_MAX} when completion mode is Indexed");
        errors.invalid(&parallelism_path, parallelism, detail);
    }
    if let Some(failed) = spec.max_failed_indexes {
        if spec.completions.is_some_and(|completions| failed > completions) {
            errors.invalid(&failed_path, failed, "must be less than or equal to completions");
        }
        if failed > INDEXED_FAILED_INDEXES_MAX {
            let detail = format!("must be less than or equal to {INDEXED_FAILED_INDEXES_MAX}");
            errors.invalid(&failed_path, failed, detail);
        }
    }
    let many = spec.completions.is_some_and(|completions| completions > COMPLETIONS_SOFT_LIMIT);
    if !many || spec.backoff_limit_per_index.is_none() {
        return;
    }
    let detail = |limit: i32| {
        format!(
            "must be less than or equal to {limit} when completions are above {COMPLETIONS_SOFT_LIMIT} and used with backoff limit per index"
        )
    };
    if spec.max_failed_indexes.is_none() {
        let detail = format!("must be specified when completions is above {COMPLETIONS_SOFT_LIMIT}");
        errors.required(&failed_path, detail);
    }
    if parallelism > PARALLELISM_MAX_FOR_MANY_COMPLETIONS {
        errors.invalid(parallelism_path, parallelism, detail(PARALLELISM_MAX_FOR_MANY_COMPLETIONS));
    }
    if let Some(failed) = spec.max_failed_indexes.filter(|failed| *failed > FAILED_INDEXES_MAX_FOR_MANY_COMPLETIONS) {
        errors.invalid(failed_path, failed, detail(FAILED_INDEXES_MAX_FOR_MANY_COMPLETIONS));
    }
}

/// A choice whose absence names the choices.
fn validate_choice(value: &str, valid: &[&str], path: &Path, errors: &mut ErrorList) {
    if value.is_empty() {
        let quoted: Vec<String> = valid.iter().map(|value| format!("{value:?}")).collect();
        errors.required(path, format!("valid values: [{}]", quoted.join(" ")));
    } else {
        errors.one_of(path, value, valid);
    }
}

fn validate_failure_rule(spec: &JobSpec, rule: &PodFailurePolicyRule, path: &Path, errors: &mut ErrorList) {
    let action_path = path.child("action");
    if rule.action == "FailIndex" {
        if spec.backoff_limit_per_index.is_none() {
            errors.invalid(action_path, "FailIndex", "requires the backoffLimitPerIndex to be set");
        }
    } else {
        validate_choice(&rule.action, &["Count", "FailIndex", "FailJob", "Ignore"], &action_path, errors);
    }
    if let Some(codes) = &rule.on_exit_codes {
        validate_exit_codes(spec, codes, &path.child("onExitCodes"), errors);
    }
    let conditions = rule.on_pod_conditions.items();
    validate_failure_conditions(conditions, &path.child("onPodConditions"), errors);
    match (rule.on_exit_codes.is_some(), conditions.is_empty()) {
        (true, false) => {
            let detail = "specifying both OnExitCodes and OnPodConditions is not supported";
            errors.push(invalid_without_value(path, detail));
        }
        (false, true) => {
            let detail = "specifying one of OnExitCodes and OnPodConditions is required";
            errors.push(invalid_without_value(path, detail));
        }
        _ => {}
    }
}

fn validate_failure_conditions(
    patterns: &[PodFailurePolicyOnPodConditionsPattern],
    path: &Path,
    errors: &mut ErrorList,
) {
    if patterns.len() > FAILURE_CONDITIONS_MAX {
        errors.too_many(path, patterns.len(), FAILURE_CONDITIONS_MAX);
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let path = path.index(index);
        validate_qualified_name(&pattern.type_, path.child("type"), errors);
        validate_choice(pattern.status.text(), &["False", "True", "Unknown"], &path.child("status"), errors);
    }
}

fn validate_exit_codes(
    spec: &JobSpec,
    codes: &PodFailurePolicyOnExitCodesRequirement,
    path: &Path,
    errors: &mut ErrorList,
) {
    validate_choice(&codes.operator, &["In", "NotIn"], &path.child("operator"), errors);
    let pod = spec.template.spec.clone().unwrap_or_default();
    if let Some(name) = &codes.container_name
        && !pod.containers.iter().chain(pod.init_containers.items()).any(|container| container.name == *name)
    {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.invalid(path.child("containerName"), name.as_str(), detail);
    }
    let path = path.child("values");
    if codes.values.is_empty() {
        errors.invalid(&path, Value::Array(Vec::new()), "at least one value is required");
    } else if codes.values.len() > FAILURE_EXIT_CODES_MAX {
        errors.too_many(&path, codes.values.len(), FAILURE_EXIT_CODES_MAX);
    }
    let mut taken = BTreeSet::new();
    for (index, code) in codes.values.iter().enumerate() {
        if codes.operator == "In" && *code == 0 {
            errors.invalid(path.index(index), 0, "must not be 0 for the In operator");
        }
        if !taken.insert(*code) {
            errors.duplicate(path.index(index), *code);
        }
    }
    if !codes.values.is_sorted() {
        errors.invalid(path, codes.values.clone(), "must be ordered");
    }
}

fn validate_success_rule(completions: i32, rule: &SuccessPolicyRule, path: &Path, errors: &mut ErrorList) {
    if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
        errors.required(path, "at least one of succeededCount or succeededIndexes must be specified");
    }
    let mut total = 0;
    if let Some(list) = &rule.succeeded_indexes {
        let path = path.child("succeededIndexes");
        if list.len() > SUCCEEDED_INDEXES_LENGTH_MAX {
            errors.too_long(&path, SUCCEEDED_INDEXES_LENGTH_MAX);
        }
        match indexes::total(list, completions) {
            Ok(count) => total = count,
            Err(reason) => {
                let detail = format!("error parsing succeededIndexes: {reason}");
                errors.invalid(path, list.as_str(), detail);
            }
        }
    }
    if let Some(count) = rule.succeeded_count {
        let path = path.child("succeededCount");
        errors.not_negative(&path, count);
        if count > completions {
            let detail = format!("must be less than or equal to {completions} (the number of specified completions)");
            errors.invalid(&path, count, detail);
        }
        if rule.succeeded_indexes.is_some() && i64::from(count) > total {
            let detail = format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            );
            errors.invalid(path, count, detail);
        }
    }
}

pub fn validate_update(new: &Job, old: &Job) -> ErrorList {
    let mut errors = ErrorList::new();
    let options = JobOptions::for_update(old);
    validate_job(new, &options, &mut errors);
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let (spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let path = Path::new("spec");
    validate_spec_with_selector(&spec, &options.pod, &mut errors);
    let completions_path = path.child("completions");
    if spec.completion_mode.as_deref() != Some("Indexed") {
        immutable(&spec.completions, &old_spec.completions, completions_path, &mut errors);
    } else if spec.completions.is_some()
        && spec.completions != old_spec.completions
        && spec.completions != spec.parallelism
    {
        let detail = "can only be modified in tandem with spec.parallelism";
        errors.invalid(completions_path, spec.completions, detail);
    }
    immutable(&spec.selector, &old_spec.selector, path.child("selector"), &mut errors);
    validate_template_update(&spec, &old_spec, &options, &path, &mut errors);
    immutable(&spec.completion_mode, &old_spec.completion_mode, path.child("completionMode"), &mut errors);
    immutable(&spec.pod_failure_policy, &old_spec.pod_failure_policy, path.child("podFailurePolicy"), &mut errors);
    let (limit, old_limit) = (&spec.backoff_limit_per_index, &old_spec.backoff_limit_per_index);
    immutable(limit, old_limit, path.child("backoffLimitPerIndex"), &mut errors);
    immutable(&spec.managed_by, &old_spec.managed_by, path.child("managedBy"), &mut errors);
    immutable(&spec.success_policy, &old_spec.success_policy, path.child("successPolicy"), &mut errors);
    errors
}

fn validate_template_update(
    spec: &JobSpec,
    old_spec: &JobSpec,
    options: &JobOptions,
    path: &Path,
    errors: &mut ErrorList,
) {
    let mut old = old_spec.template.clone();
    if options.mutable_template {
        take_scheduling_directives(&mut old, &spec.template);
    }
    if options.mutable_template && old_spec.suspend == Some(true) {
        let new_pod = spec.template.spec.clone().unwrap_or_default();
        let mut old_pod = old.spec.clone().unwrap_or_default();
        take_resources(&mut old_pod, &new_pod);
        immutable(&new_pod, &old_pod, path.child("template.spec"), errors);
    } else if !semantic_eq(&spec.template, &old) {
        immutable(&spec.template, &old, path.child("template"), errors);
    }
}

/// Where pods may run, and what they are called, can change while there are none.
fn take_scheduling_directives(old: &mut PodTemplateSpec, new: &PodTemplateSpec) {
    let new_pod = new.spec.clone().unwrap_or_default();
    let pod = old.spec.get_or_insert_default();
    match (&new_pod.affinity, &mut pod.affinity) {
        (None, Some(affinity)) => {
            affinity.node_affinity = None;
            if *affinity == Affinity::default() {
                pod.affinity = None;
            }
        }
        (Some(new), None) => {
            let node_affinity = new.node_affinity.clone();
            pod.affinity = Some(Affinity { node_affinity, ..Affinity::default() });
        }
        (Some(new), Some(old)) => old.node_affinity.clone_from(&new.node_affinity),
        (None, None) => {}
    }
    pod.node_selector = new_pod.node_selector;
    pod.tolerations = new_pod.tolerations;
    pod.scheduling_gates = new_pod.scheduling_gates;
    let new_meta = new.metadata.clone().unwrap_or_default();
    let meta = old.metadata.get_or_insert_default();
    meta.annotations = new_meta.annotations;
    meta.labels = new_meta.labels;
}

fn take_resources(old: &mut PodSpec, new: &PodSpec) {
    let init = old.init_containers.iter_mut().flatten().zip(new.init_containers.items());
    let regular = old.containers.iter_mut().zip(&new.containers);
    for (old, new) in init.chain(regular).filter(|(old, new)| old.name == new.name) {
        old.resources.clone_from(&new.resources);
    }
}

pub fn warnings(job: &Job) -> Vec<String> {
    let mut warnings = Vec::new();
    let messages = names::is_dns1123_label(job.metadata.name.text());
    if !messages.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
            messages.join(" ")
        ));
    }
    if let Some(spec) = &job.spec {
        warnings.extend(spec_warnings(spec, None, &Path::new("spec")));
    }
    warnings
}

pub fn warnings_on_update(new: &Job, old: &Job) -> Vec<String> {
    match (&new.spec, &old.spec) {
        (Some(spec), old_spec) if new.metadata.generation != old.metadata.generation => {
            spec_warnings(spec, old_spec.as_ref(), &Path::new("spec"))
        }
        _ => Vec::new(),
    }
}

pub(crate) fn spec_warnings(spec: &JobSpec, old: Option<&JobSpec>, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    if spec.completion_mode.as_deref() == Some("Indexed")
        && spec.completions.unwrap_or(0) > COMPLETIONS_SOFT_LIMIT
        && spec.parallelism.unwrap_or(0) > PARALLELISM_MAX_FOR_MANY_COMPLETIONS
    {
        warnings.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
    let old_template = old.map(|old| &old.template);
    warnings.extend(crate::core::pod_warnings::template_warnings(
        &spec.template,
        old_template,
        &path.child("template"),
    ));
    warnings
}
