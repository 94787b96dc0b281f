//! flowcontrol.apiserver.k8s.io/v1 FlowSchema and PriorityLevelConfiguration.
//!
//! Behaves as pkg/apis/flowcontrol/validation/validation.go and pkg/apis/flowcontrol/v1/defaults.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::flowcontrol::v1::{
    ExemptPriorityLevelConfiguration, FlowDistinguisherMethod, FlowSchema, FlowSchemaSpec, GroupSubject, LimitResponse,
    LimitedPriorityLevelConfiguration, NonResourcePolicyRule, PolicyRulesWithSubjects, PriorityLevelConfiguration,
    PriorityLevelConfigurationReference, PriorityLevelConfigurationSpec, QueuingConfiguration, ResourcePolicyRule,
    Subject,
};
use rkube_apimachinery::field::{Error, ErrorList, Path};
use serde_json::Value;

use crate::common::defaults::{default_to, number_default};
use crate::common::meta::validate_object_meta;
use crate::common::names::{dns_label, dns_subdomain};
use crate::common::report::{OptList, OptMap, OptText, Report, semantic_eq, shown};

const PRECEDENCE_MAX: i32 = 10_000;
const QUEUES_MAX: i32 = 10_000_000;
/// A hash has as many bits to deal hands with.
const HASH_BITS: f64 = 60.0;
const VERBS: [&str; 9] = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
const PRESERVE_ZERO: &str = "flowcontrol.k8s.io/preserve-zero-concurrency-shares";

pub fn set_schema_defaults(schema: &mut FlowSchema) {
    number_default(&mut schema.spec.get_or_insert_default().matching_precedence, 1000);
    schema.status.get_or_insert_default();
}

pub fn validate_schema(schema: &FlowSchema) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&schema.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    let path = Path::new("spec");
    let (name, spec) = (schema.metadata.name.text(), schema.spec.clone().unwrap_or_default());
    validate_schema_spec(name, &spec, &path, &mut errors);
    if mandatory_schema(name).is_some_and(|fixed| !semantic_eq(&fixed, &spec)) {
        errors.invalid(path, shown(&spec), format!("spec of '{name}' must equal the fixed value"));
    }
    errors.extend(validate_schema_status(schema));
    errors
}

pub fn validate_schema_status(schema: &FlowSchema) -> ErrorList {
    let status = schema.status.clone().unwrap_or_default();
    let types: Vec<String> =
        status.conditions.items().iter().map(|condition| condition.type_.text().to_owned()).collect();
    validate_condition_types(&types)
}

fn validate_condition_types(types: &[String]) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (index, kind) in types.iter().enumerate() {
        let path = Path::new("status").child("conditions").index(index).child("type");
        if !seen.insert(kind) {
            errors.duplicate(&path, kind.as_str());
        }
        errors.not_empty(path, kind);
    }
    errors
}

/// The schemas every server has; what they say is fixed.
fn mandatory_schema(name: &str) -> Option<FlowSchemaSpec> {
    let (level, precedence, distinguisher, groups): (&str, i32, Option<&str>, &[&str]) = match name {
        "exempt" => ("exempt", 1, None, &["system:masters"]),
        "catch-all" => {
            ("catch-all", PRECEDENCE_MAX, Some("ByUser"), &["system:unauthenticated", "system:authenticated"])
        }
        _ => return None,
    };
    let all = || vec!["*".to_owned()];
    let subject = |group: &&str| Subject {
        kind: "Group".to_owned(),
        group: Some(GroupSubject { name: (*group).to_owned() }),
        ..Subject::default()
    };
    Some(FlowSchemaSpec {
        distinguisher_method: distinguisher.map(|kind| FlowDistinguisherMethod { type_: kind.to_owned() }),
        matching_precedence: Some(precedence),
        priority_level_configuration: PriorityLevelConfigurationReference { name: level.to_owned() },
        rules: Some(vec![PolicyRulesWithSubjects {
            subjects: groups.iter().map(subject).collect(),
            resource_rules: Some(vec![ResourcePolicyRule {
                verbs: all(),
                api_groups: all(),
                resources: all(),
                namespaces: Some(all()),
                cluster_scope: Some(true),
            }]),
            non_resource_rules: Some(vec![NonResourcePolicyRule { verbs: all(), non_resource_urls: all() }]),
        }]),
    })
}

fn validate_schema_spec(name: &str, spec: &FlowSchemaSpec, path: &Path, errors: &mut ErrorList) {
    let precedence = spec.matching_precedence.unwrap_or(0);
    let precedence_path = path.child("matchingPrecedence");
    if precedence <= 0 {
        errors.invalid(&precedence_path, precedence, "must be a positive value");
    }
    if precedence > PRECEDENCE_MAX {
        errors.invalid(&precedence_path, precedence, format!("must not be greater than {PRECEDENCE_MAX}"));
    }
    if precedence == 1 && name != "exempt" {
        errors.invalid(precedence_path, precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    if let Some(method) = spec.distinguisher_method.as_ref()
        && !matches!(method.type_.as_str(), "ByNamespace" | "ByUser")
    {
        let path = path.child("distinguisherMethod").child("type");
        errors.not_supported(path, shown(method), &["ByNamespace", "ByUser"]);
    }
    let level = spec.priority_level_configuration.name.as_str();
    let level_path = path.child("priorityLevelConfiguration").child("name");
    if level.is_empty() {
        errors.required(level_path, "must reference a priority level");
    } else {
        errors.invalid_each(level_path, level, dns_subdomain(level, false));
    }
    for (index, rule) in spec.rules.items().iter().enumerate() {
        validate_rule(rule, &path.child("rules").index(index), errors);
    }
}

fn validate_rule(rule: &PolicyRulesWithSubjects, path: &Path, errors: &mut ErrorList) {
    if rule.subjects.is_empty() {
        errors.required(path.child("subjects"), "subjects must contain at least one value");
    }
    for (index, subject) in rule.subjects.iter().enumerate() {
        validate_subject(subject, &path.child("subjects").index(index), errors);
    }
    let (resource_rules, other_rules) = (rule.resource_rules.items(), rule.non_resource_rules.items());
    if resource_rules.is_empty() && other_rules.is_empty() {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (index, rule) in resource_rules.iter().enumerate() {
        validate_resource_rule(rule, &path.child("resourceRules").index(index), errors);
    }
    for (index, rule) in other_rules.iter().enumerate() {
        validate_non_resource_rule(rule, &path.child("nonResourceRules").index(index), errors);
    }
}

fn validate_subject(subject: &Subject, path: &Path, errors: &mut ErrorList) {
    const KINDS: [(&str, &str); 3] = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let Some((kind, own)) = KINDS.into_iter().find(|(kind, _)| *kind == subject.kind) else {
        errors.not_supported(path.child("kind"), subject.kind.as_str(), &["Group", "ServiceAccount", "User"]);
        return;
    };
    let own_path = path.child(own);
    let missing = || format!("{own} is required when subject kind is '{kind}'");
    match kind {
        "ServiceAccount" => match &subject.service_account {
            None => errors.required(&own_path, missing()),
            Some(account) => {
                let name_path = own_path.child("name");
                if account.name.is_empty() {
                    errors.required(name_path, "");
                } else if account.name != "*" {
                    errors.invalid_each(name_path, &account.name, dns_subdomain(&account.name, false));
                }
                let namespace = &account.namespace;
                if namespace.is_empty() {
                    errors.required(own_path.child("namespace"), "must specify namespace for service account");
                } else {
                    errors.invalid_each(own_path.child("namespace"), namespace, dns_label(namespace, false));
                }
            }
        },
        "User" => match &subject.user {
            None => errors.required(&own_path, missing()),
            Some(user) => errors.not_empty(own_path.child("name"), &user.name),
        },
        _ => match &subject.group {
            None => errors.required(&own_path, missing()),
            Some(group) => errors.not_empty(own_path.child("name"), &group.name),
        },
    }
    let given = [subject.service_account.is_some(), subject.user.is_some(), subject.group.is_some()];
    for ((other, field), _) in KINDS.into_iter().zip(given).filter(|((other, _), given)| *given && *other != kind) {
        errors.forbidden(path.child(field), format!("{field} is forbidden when subject kind is not '{other}'"));
    }
}

fn validate_verbs(verbs: &[String], path: &Path, errors: &mut ErrorList) {
    let path = path.child("verbs");
    if verbs.is_empty() {
        errors.required(path, "verbs must contain at least one value");
    } else if is_wild(verbs) {
        if verbs.len() > 1 {
            errors.invalid(path, verbs.to_vec(), "if '*' is present, must not specify other verbs");
        }
    } else if !verbs.iter().all(|verb| VERBS.contains(&verb.as_str())) {
        errors.not_supported(path, verbs.to_vec(), &VERBS);
    }
}

fn is_wild(values: &[String]) -> bool {
    values.iter().any(|value| value == "*")
}

fn validate_resource_rule(rule: &ResourcePolicyRule, path: &Path, errors: &mut ErrorList) {
    validate_verbs(&rule.verbs, path, errors);
    let lists = [
        (&rule.api_groups, "apiGroups", "api group", "api groups"),
        (&rule.resources, "resources", "resource", "resources"),
    ];
    for (values, field, one, many) in lists {
        let path = path.child(field);
        if values.is_empty() {
            errors.required(path, format!("resource rules must supply at least one {one}"));
        } else if values.len() > 1 && is_wild(values) {
            errors.invalid(path, values.clone(), format!("if '*' is present, must not specify other {many}"));
        }
    }
    let namespaces = rule.namespaces.items();
    let path = path.child("namespaces");
    if namespaces.is_empty() && rule.cluster_scope != Some(true) {
        let detail = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.required(path, detail);
    } else if is_wild(namespaces) {
        if namespaces.len() > 1 {
            errors.invalid(path, namespaces.to_vec(), "if '*' is present, must not specify other namespaces");
        }
    } else {
        for (index, namespace) in namespaces.iter().enumerate() {
            for fault in dns_label(namespace, false) {
                let detail = format!("each member of this list must be '*' or a DNS-1123 label; {fault}");
                errors.invalid(path.index(index), namespace.as_str(), detail);
            }
        }
    }
}

fn validate_non_resource_rule(rule: &NonResourcePolicyRule, path: &Path, errors: &mut ErrorList) {
    validate_verbs(&rule.verbs, path, errors);
    let urls = &rule.non_resource_urls;
    let path = path.child("nonResourceURLs");
    if urls.is_empty() {
        errors.required(path, "nonResourceURLs must contain at least one value");
    } else if is_wild(urls) {
        if urls.len() > 1 {
            errors.invalid(path, urls.clone(), "if '*' is present, must not specify other non-resource URLs");
        }
    } else {
        for (index, url) in urls.iter().enumerate() {
            if let Some(fault) = url_error(url) {
                errors.invalid(path.index(index), url.as_str(), fault);
            }
        }
    }
}

fn url_error(url: &str) -> Option<&'static str> {
    let wildcards = url.matches('*').count();
    if url.is_empty() {
        Some("must not be empty")
    } else if !url.starts_with('/') {
        Some("must start with slash")
    } else if url.contains(' ') {
        Some("must not contain white-space")
    } else if url.contains("//") {
        Some("must not contain double slash")
    } else if wildcards > 1 || wildcards == 1 && !url.ends_with("/*") {
        Some("wildcard can only do suffix matching")
    } else {
        None
    }
}

pub fn set_level_defaults(level: &mut PriorityLevelConfiguration) {
    let spec = level.spec.get_or_insert_default();
    if let Some(limited) = &mut spec.limited {
        default_to(&mut limited.nominal_concurrency_shares, 30);
        default_to(&mut limited.lendable_percent, 0);
        if let Some(queuing) = limited.limit_response.as_mut().and_then(|response| response.queuing.as_mut()) {
            number_default(&mut queuing.hand_size, 8);
            number_default(&mut queuing.queues, 64);
            number_default(&mut queuing.queue_length_limit, 50);
        }
    }
    if let Some(exempt) = &mut spec.exempt {
        default_to(&mut exempt.nominal_concurrency_shares, 0);
        default_to(&mut exempt.lendable_percent, 0);
    }
    level.status.get_or_insert_default();
}

/// Creates and updates alike.
pub fn validate_level(level: &PriorityLevelConfiguration) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&level.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    if level.metadata.annotations.value(PRESERVE_ZERO).is_some() {
        let path = Path::new("metadata").child("annotations");
        errors.forbidden(path, format!("annotation '{PRESERVE_ZERO}' is forbidden"));
    }
    let (name, path) = (level.metadata.name.text(), Path::new("spec"));
    let spec = level.spec.clone().unwrap_or_default();
    validate_level_spec(name, &spec, &path, &mut errors);
    match name {
        "exempt" => {
            let fixed = PriorityLevelConfigurationSpec {
                type_: "Exempt".to_owned(),
                exempt: spec.exempt.clone(),
                limited: None,
            };
            if !semantic_eq(&fixed, &spec) {
                let detail = format!("spec of '{name}' except the 'spec.exempt' field must equal the fixed value");
                errors.invalid(path, shown(&spec), detail);
            }
        }
        "catch-all" if !semantic_eq(&catch_all_level(), &spec) => {
            errors.invalid(path, shown(&spec), format!("spec of '{name}' must equal the fixed value"));
        }
        _ => {}
    }
    errors.extend(validate_level_status(level));
    errors
}

fn catch_all_level() -> PriorityLevelConfigurationSpec {
    PriorityLevelConfigurationSpec {
        type_: "Limited".to_owned(),
        limited: Some(LimitedPriorityLevelConfiguration {
            nominal_concurrency_shares: Some(5),
            lendable_percent: Some(0),
            limit_response: Some(LimitResponse { type_: "Reject".to_owned(), queuing: None }),
            borrowing_limit_percent: None,
        }),
        exempt: None,
    }
}

pub fn validate_level_status(level: &PriorityLevelConfiguration) -> ErrorList {
    let status = level.status.clone().unwrap_or_default();
    let types: Vec<String> =
        status.conditions.items().iter().map(|condition| condition.type_.text().to_owned()).collect();
    validate_condition_types(&types)
}

fn validate_level_spec(name: &str, spec: &PriorityLevelConfigurationSpec, path: &Path, errors: &mut ErrorList) {
    if (name == "exempt") != (spec.type_ == "Exempt") {
        let detail = "must be 'Exempt' if and only if `name` is 'exempt'";
        errors.invalid(path.child("type"), spec.type_.as_str(), detail);
    }
    match spec.type_.as_str() {
        "Exempt" => {
            if spec.limited.is_some() {
                errors.forbidden(path.child("limited"), "must be nil if the type is not Limited");
            }
            if let Some(exempt) = &spec.exempt {
                validate_exempt(exempt, &path.child("exempt"), errors);
            }
        }
        "Limited" => {
            if spec.exempt.is_some() {
                errors.forbidden(path.child("exempt"), "must be nil if the type is Limited");
            }
            match &spec.limited {
                None => errors.required(path.child("limited"), "must not be empty when type is Limited"),
                Some(limited) => validate_limited(limited, &path.child("limited"), errors),
            }
        }
        other => errors.not_supported(path.child("type"), other, &["Exempt", "Limited"]),
    }
}

fn validate_shares(shares: Option<i32>, lendable: Option<i32>, path: &Path) -> (Option<Error>, Option<Error>) {
    let shares = shares.filter(|shares| *shares < 0).map(|shares| {
        let path = path.child("nominalConcurrencyShares");
        Error::invalid(&path, shares, "must be a non-negative integer")
    });
    let lendable = lendable
        .filter(|percent| !(0..=100).contains(percent))
        .map(|percent| Error::invalid(&path.child("lendablePercent"), percent, "must be between 0 and 100, inclusive"));
    (shares, lendable)
}

fn validate_exempt(exempt: &ExemptPriorityLevelConfiguration, path: &Path, errors: &mut ErrorList) {
    let (shares, lendable) = validate_shares(exempt.nominal_concurrency_shares, exempt.lendable_percent, path);
    errors.extend(shares.into_iter().chain(lendable));
}

fn validate_limited(limited: &LimitedPriorityLevelConfiguration, path: &Path, errors: &mut ErrorList) {
    let (shares, lendable) = validate_shares(limited.nominal_concurrency_shares, limited.lendable_percent, path);
    errors.extend(shares);
    let response = limited.limit_response.clone().unwrap_or_default();
    let response_path = path.child("limitResponse");
    let queuing_path = response_path.child("queuing");
    match (response.type_.as_str(), &response.queuing) {
        ("Reject", Some(_)) => {
            errors.forbidden(queuing_path, "must be nil if limited.limitResponse.type is not Limited");
        }
        ("Reject", None) => {}
        ("Queue", None) => errors.required(queuing_path, "must not be empty if limited.limitResponse.type is Limited"),
        ("Queue", Some(queuing)) => validate_queuing(queuing, &queuing_path, errors),
        (other, _) => errors.not_supported(response_path.child("type"), Value::from(other), &["Queue", "Reject"]),
    }
    errors.extend(lendable);
    if let Some(percent) = limited.borrowing_limit_percent.filter(|percent| *percent < 0) {
        let detail = "if specified, must be a non-negative integer";
        errors.invalid(path.child("borrowingLimitPercent"), percent, detail);
    }
}

fn validate_queuing(queuing: &QueuingConfiguration, path: &Path, errors: &mut ErrorList) {
    let number = |field: Option<i32>| field.unwrap_or(0);
    let (limit, queues, hand) = (number(queuing.queue_length_limit), number(queuing.queues), number(queuing.hand_size));
    if limit <= 0 {
        errors.invalid(path.child("queueLengthLimit"), limit, "must be positive");
    }
    if queues <= 0 {
        errors.invalid(path.child("queues"), queues, "must be positive");
    } else if queues > QUEUES_MAX {
        errors.invalid(path.child("queues"), queues, format!("must not be greater than {QUEUES_MAX}"));
    }
    let path = path.child("handSize");
    if hand <= 0 {
        errors.invalid(path, hand, "must be positive");
    } else if hand > queues {
        errors.invalid(path, hand, format!("should not be greater than queues ({queues})"));
    } else if (f64::from(queues).log2() * f64::from(hand)).ceil() > HASH_BITS {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        errors.invalid(path, hand, detail);
    }
}
