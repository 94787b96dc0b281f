//! admissionregistration.k8s.io/v1: configurations of webhooks.
//!
//! Behaves as ValidateValidatingWebhookConfiguration and ValidateMutatingWebhookConfiguration of
//! pkg/apis/admissionregistration/validation/validation.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ValidatingWebhook,
    ValidatingWebhookConfiguration, WebhookClientConfig,
};
use rkube_api::meta::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use super::rules::{
    FAILURE_POLICIES, MATCH_POLICIES, ServiceTarget, validate_match_conditions, validate_rule, validate_service,
    validate_url,
};
use crate::common::defaults::default_to;
use crate::common::meta::{SelectorOptions, validate_label_selector, validate_object_meta};
use crate::common::names::dns_subdomain;
use crate::common::report::{OptList, Report};

const HTTPS_PORT: i32 = 443;
const SIDE_EFFECTS: [&str; 4] = ["None", "NoneOnDryRun", "Some", "Unknown"];
const NO_SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// A webhook of either kind.
struct Webhook<'a> {
    name: &'a str,
    rules: &'a [RuleWithOperations],
    failure_policy: Option<&'a str>,
    match_policy: Option<&'a str>,
    side_effects: &'a str,
    timeout_seconds: Option<i32>,
    namespace_selector: Option<&'a LabelSelector>,
    object_selector: Option<&'a LabelSelector>,
    reinvocation_policy: Option<&'a str>,
    client: &'a WebhookClientConfig,
    match_conditions: &'a [MatchCondition],
    review_versions: &'a [String],
}

macro_rules! webhook {
    ($hook:expr, $reinvocation:expr) => {
        Webhook {
            name: &$hook.name,
            rules: $hook.rules.items(),
            failure_policy: $hook.failure_policy.as_deref(),
            match_policy: $hook.match_policy.as_deref(),
            side_effects: &$hook.side_effects,
            timeout_seconds: $hook.timeout_seconds,
            namespace_selector: $hook.namespace_selector.as_ref(),
            object_selector: $hook.object_selector.as_ref(),
            reinvocation_policy: $reinvocation,
            client: &$hook.client_config,
            match_conditions: $hook.match_conditions.items(),
            review_versions: &$hook.admission_review_versions,
        }
    };
}

impl<'a> From<&'a ValidatingWebhook> for Webhook<'a> {
    fn from(hook: &'a ValidatingWebhook) -> Self {
        webhook!(hook, None)
    }
}

impl<'a> From<&'a MutatingWebhook> for Webhook<'a> {
    fn from(hook: &'a MutatingWebhook) -> Self {
        webhook!(hook, hook.reinvocation_policy.as_deref())
    }
}

macro_rules! set_hook_defaults {
    ($hook:expr) => {{
        default_to(&mut $hook.failure_policy, "Fail".to_owned());
        default_to(&mut $hook.match_policy, "Equivalent".to_owned());
        $hook.namespace_selector.get_or_insert_default();
        $hook.object_selector.get_or_insert_default();
        default_to(&mut $hook.timeout_seconds, 10);
        if let Some(service) = &mut $hook.client_config.service {
            default_to(&mut service.port, HTTPS_PORT);
        }
        for rule in $hook.rules.iter_mut().flatten() {
            default_to(&mut rule.scope, "*".to_owned());
        }
    }};
}

pub fn set_validating_defaults(configuration: &mut ValidatingWebhookConfiguration) {
    for hook in configuration.webhooks.iter_mut().flatten() {
        set_hook_defaults!(hook);
    }
}

pub fn set_mutating_defaults(configuration: &mut MutatingWebhookConfiguration) {
    for hook in configuration.webhooks.iter_mut().flatten() {
        set_hook_defaults!(hook);
        default_to(&mut hook.reinvocation_policy, "Never".to_owned());
    }
}

fn validating(configuration: &ValidatingWebhookConfiguration) -> Vec<Webhook<'_>> {
    configuration.webhooks.items().iter().map(Webhook::from).collect()
}

fn mutating(configuration: &MutatingWebhookConfiguration) -> Vec<Webhook<'_>> {
    configuration.webhooks.items().iter().map(Webhook::from).collect()
}

pub fn validate_validating(configuration: &ValidatingWebhookConfiguration) -> ErrorList {
    validate(&configuration.metadata, &validating(configuration), None)
}

pub fn validate_validating_update(
    new: &ValidatingWebhookConfiguration,
    old: &ValidatingWebhookConfiguration,
) -> ErrorList {
    validate(&new.metadata, &validating(new), Some(&validating(old)))
}

pub fn validate_mutating(configuration: &MutatingWebhookConfiguration) -> ErrorList {
    validate(&configuration.metadata, &mutating(configuration), None)
}

pub fn validate_mutating_update(new: &MutatingWebhookConfiguration, old: &MutatingWebhookConfiguration) -> ErrorList {
    validate(&new.metadata, &mutating(new), Some(&mutating(old)))
}

/// What old webhooks have proved to obey, new ones must obey.
struct Options {
    check_match_conditions: bool,
    no_side_effects: bool,
    recognized_version: bool,
    unique_names: bool,
    selectors: SelectorOptions,
}

impl Options {
    fn of(new: &[Webhook<'_>], old: Option<&[Webhook<'_>]>) -> Self {
        let Some(old) = old else {
            return Self {
                check_match_conditions: true,
                no_side_effects: true,
                recognized_version: true,
                unique_names: true,
                selectors: SelectorOptions::default(),
            };
        };
        let mut names = BTreeSet::new();
        let lenient = old.iter().flat_map(|hook| [hook.namespace_selector, hook.object_selector]).any(|selector| {
            let mut errors = ErrorList::new();
            validate_label_selector(selector, SelectorOptions::default(), &Path::root(), &mut errors);
            !errors.is_empty()
        });
        let same_conditions = new.len() == old.len()
            && new.iter().zip(old).all(|(new, old)| new.match_conditions == old.match_conditions);
        Self {
            check_match_conditions: !same_conditions,
            no_side_effects: old.iter().all(|hook| NO_SIDE_EFFECTS.contains(&hook.side_effects)),
            recognized_version: old.iter().all(|hook| {
                hook.review_versions.is_empty() || hook.review_versions.iter().any(|version| is_recognized(version))
            }),
            unique_names: old.iter().all(|hook| names.insert(hook.name)),
            selectors: SelectorOptions { allow_invalid_label_value: lenient, ..SelectorOptions::default() },
        }
    }
}

fn is_recognized(version: &str) -> bool {
    REVIEW_VERSIONS.contains(&version)
}

fn validate(meta: &ObjectMeta, hooks: &[Webhook<'_>], old: Option<&[Webhook<'_>]>) -> ErrorList {
    let options = Options::of(hooks, old);
    let mut errors = ErrorList::new();
    validate_object_meta(meta, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    let mut taken = BTreeSet::new();
    for (index, hook) in hooks.iter().enumerate() {
        let path = Path::new("webhooks").index(index);
        validate_webhook(hook, &options, &path, &mut errors);
        validate_review_versions(
            hook.review_versions,
            options.recognized_version,
            &path.child("admissionReviewVersions"),
            &mut errors,
        );
        if options.unique_names && !hook.name.is_empty() && !taken.insert(hook.name) {
            errors.duplicate(path.child("name"), hook.name);
        }
    }
    errors
}

fn validate_review_versions(versions: &[String], recognized: bool, path: &Path, errors: &mut ErrorList) {
    let known = REVIEW_VERSIONS.join(", ");
    if versions.is_empty() {
        errors.required(path, format!("must specify one of {known}"));
        return;
    }
    validate_version_names(versions, path, errors);
    if recognized && !versions.iter().any(|version| is_recognized(version)) {
        errors.invalid(path, versions.to_vec(), format!("must include at least one of {known}"));
    }
}

/// Versions of reviews that a webhook understands, in either kind of webhook.
pub(crate) fn validate_version_names(versions: &[String], path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let path = path.index(index);
        if seen.insert(version) {
            errors.invalid_each(path, version, names::is_dns1035_label(version));
        } else {
            errors.invalid(path, version.as_str(), "duplicate version");
        }
    }
}

fn validate_webhook(hook: &Webhook<'_>, options: &Options, path: &Path, errors: &mut ErrorList) {
    errors.extend(names::is_fully_qualified_name(&path.child("name"), hook.name));
    for (index, rule) in hook.rules.iter().enumerate() {
        validate_rule(rule, &path.child("rules").index(index), errors);
    }
    if let Some(policy) = hook.failure_policy {
        errors.one_of(path.child("failurePolicy"), policy, &FAILURE_POLICIES);
    }
    if let Some(policy) = hook.match_policy {
        errors.one_of(path.child("matchPolicy"), policy, &MATCH_POLICIES);
    }
    let allowed: &[&str] = if options.no_side_effects { &NO_SIDE_EFFECTS } else { &SIDE_EFFECTS };
    if hook.side_effects.is_empty() {
        errors.required(path.child("sideEffects"), format!("must specify one of {}", allowed.join(", ")));
    } else {
        errors.one_of(path.child("sideEffects"), hook.side_effects, allowed);
    }
    if let Some(seconds) = hook.timeout_seconds.filter(|seconds| !(1..=30).contains(seconds)) {
        errors.invalid(path.child("timeoutSeconds"), seconds, "the timeout value must be between 1 and 30 seconds");
    }
    for (field, selector) in [("namespaceSelector", hook.namespace_selector), ("objectSelector", hook.object_selector)]
    {
        validate_label_selector(selector, options.selectors, &path.child(field), errors);
    }
    if let Some(policy) = hook.reinvocation_policy {
        errors.one_of(path.child("reinvocationPolicy"), policy, &["IfNeeded", "Never"]);
    }
    let client_path = path.child("clientConfig");
    match (&hook.client.url, &hook.client.service) {
        (Some(url), None) => validate_url(url, &client_path.child("url"), errors),
        (None, Some(service)) => {
            let target = ServiceTarget {
                namespace: &service.namespace,
                name: &service.name,
                path: service.path.as_deref(),
                port: service.port.unwrap_or(HTTPS_PORT),
            };
            validate_service(&target, &client_path.child("service"), errors);
        }
        _ => errors.required(client_path, "exactly one of url or service is required"),
    }
    if options.check_match_conditions {
        validate_match_conditions(hook.match_conditions, &path.child("matchConditions"), errors);
    }
}
