//! admissionregistration.k8s.io/v1: admission policies in expressions, and their bindings.
//!
//! Expressions are compiled by whoever evaluates them; here they only must be there.
//!
//! Behaves as ValidateValidatingAdmissionPolicy and ValidateMutatingAdmissionPolicy of
//! pkg/apis/admissionregistration/validation/validation.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::admissionregistration::v1::{
    AuditAnnotation, MatchResources, MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, Mutation,
    NamedRuleWithOperations, ParamKind, ParamRef, RuleWithOperations, ValidatingAdmissionPolicy,
    ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicySpec, Validation, Variable,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use super::rules::{FAILURE_POLICIES, MATCH_POLICIES, validate_match_conditions, validate_rule};
use crate::common::defaults::default_to;
use crate::common::meta::{SelectorOptions, validate_conditions, validate_label_selector, validate_object_meta};
use crate::common::names::{dns_subdomain, validate_qualified_name};
use crate::common::report::{OptList, OptText, Report, semantic_eq, shown};

const ANNOTATIONS_MAX: usize = 20;
const ANNOTATION_EXPRESSION_MAX: usize = 5 * 1024;
const MUTATING_OPERATIONS: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
const CEL_RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

fn set_match_defaults(resources: Option<&mut MatchResources>) {
    let Some(resources) = resources else { return };
    default_to(&mut resources.match_policy, "Equivalent".to_owned());
    resources.namespace_selector.get_or_insert_default();
    resources.object_selector.get_or_insert_default();
    let rules = resources.resource_rules.iter_mut().chain(&mut resources.exclude_resource_rules);
    for rule in rules.flatten() {
        default_to(&mut rule.scope, "*".to_owned());
    }
}

pub fn set_policy_defaults(policy: &mut ValidatingAdmissionPolicy) {
    let spec = policy.spec.get_or_insert_default();
    default_to(&mut spec.failure_policy, "Fail".to_owned());
    set_match_defaults(spec.match_constraints.as_mut());
    policy.status.get_or_insert_default();
}

pub fn set_mutating_policy_defaults(policy: &mut MutatingAdmissionPolicy) {
    let spec = policy.spec.get_or_insert_default();
    default_to(&mut spec.failure_policy, "Fail".to_owned());
    set_match_defaults(spec.match_constraints.as_mut());
}

pub fn set_binding_defaults(binding: &mut ValidatingAdmissionPolicyBinding) {
    set_match_defaults(binding.spec.match_resources.as_mut());
}

pub fn set_mutating_binding_defaults(binding: &mut MutatingAdmissionPolicyBinding) {
    set_match_defaults(binding.spec.get_or_insert_default().match_resources.as_mut());
}

pub fn validate_policy(policy: &ValidatingAdmissionPolicy) -> ErrorList {
    validate_policy_with(policy, true)
}

pub fn validate_policy_update(new: &ValidatingAdmissionPolicy, old: &ValidatingAdmissionPolicy) -> ErrorList {
    let (new_spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let same = semantic_eq(&new_spec.param_kind, &old_spec.param_kind)
        && semantic_eq(&new_spec.match_conditions, &old_spec.match_conditions);
    validate_policy_with(new, !same)
}

fn validate_policy_with(policy: &ValidatingAdmissionPolicy, check_conditions: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&policy.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    let spec = policy.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    validate_failure_policy(spec.failure_policy.as_deref(), &path, &mut errors);
    validate_param_kind(spec.param_kind.as_ref(), &path, &mut errors);
    validate_constraints(spec.match_constraints.as_ref(), &path, &mut errors);
    if check_conditions {
        validate_match_conditions(spec.match_conditions.items(), &path.child("matchConditions"), &mut errors);
    }
    validate_variables(spec.variables.items(), &path, &mut errors);
    validate_validations(policy.metadata.name.text(), &spec, &path, &mut errors);
    errors
}

fn validate_validations(name: &str, spec: &ValidatingAdmissionPolicySpec, path: &Path, errors: &mut ErrorList) {
    let (validations, annotations) = (spec.validations.items(), spec.audit_annotations.items());
    let annotations_path = path.child("auditAnnotations");
    if validations.is_empty() && annotations.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        errors.required(path.child("validations"), detail);
        errors.required(annotations_path, detail);
        return;
    }
    for (index, validation) in validations.iter().enumerate() {
        validate_validation(validation, &path.child("validations").index(index), errors);
    }
    if annotations.len() > ANNOTATIONS_MAX {
        let detail = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        errors.invalid(&annotations_path, shown(&annotations), detail);
    }
    let mut keys = BTreeSet::new();
    for (index, annotation) in annotations.iter().enumerate() {
        let path = annotations_path.index(index);
        validate_audit_annotation(name, annotation, &path, errors);
        if !keys.insert(annotation.key.as_str()) {
            errors.duplicate(path.child("key"), annotation.key.as_str());
        }
    }
}

fn validate_validation(validation: &Validation, path: &Path, errors: &mut ErrorList) {
    const BLANK: &str = "must be non-empty if specified";
    let blank = |text: &str| !text.is_empty() && text.trim().is_empty();
    if validation.expression.trim().is_empty() {
        errors.required(path.child("expression"), "expression is not specified");
    }
    let (message_expression, message) = (validation.message_expression.text(), validation.message.text());
    if blank(message_expression) {
        errors.invalid(path.child("messageExpression"), message_expression, BLANK);
    }
    if blank(message) {
        errors.invalid(path.child("message"), message, BLANK);
    } else if message.trim().contains(['\n', '\r']) {
        errors.invalid(path.child("message"), message, "must not contain line breaks");
    }
    if let Some(reason) = &validation.reason {
        errors.one_of(path.child("reason"), reason, &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
    }
}

fn validate_audit_annotation(name: &str, annotation: &AuditAnnotation, path: &Path, errors: &mut ErrorList) {
    let key_path = path.child("key");
    if name.is_empty() {
        errors.invalid(key_path, annotation.key.as_str(), "requires metadata.name be non-empty");
    } else {
        validate_qualified_name(&format!("{name}/{}", annotation.key), key_path, errors);
    }
    let expression = annotation.value_expression.trim();
    if expression.is_empty() {
        errors.required(path.child("valueExpression"), "valueExpression is not specified");
    } else if expression.len() > ANNOTATION_EXPRESSION_MAX {
        let detail = format!("must not exceed {ANNOTATION_EXPRESSION_MAX} bytes in length");
        errors.required(path.child("valueExpression"), detail);
    }
}

fn validate_failure_policy(policy: Option<&str>, path: &Path, errors: &mut ErrorList) {
    let path = path.child("failurePolicy");
    match policy {
        None => errors.required(path, ""),
        Some(policy) => errors.one_of(path, policy, &FAILURE_POLICIES),
    }
}

fn validate_param_kind(kind: Option<&ParamKind>, path: &Path, errors: &mut ErrorList) {
    let Some(kind) = kind else { return };
    let path = path.child("paramKind");
    let version_path = path.child("apiVersion");
    let api_version = kind.api_version.text();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if api_version.is_empty() {
        errors.required(version_path, "");
    } else if version.contains('/') {
        errors.invalid(version_path, api_version, format!("unexpected GroupVersion string: {api_version}"));
    } else {
        let faults = names::is_dns1123_subdomain(group);
        if !group.is_empty() && !faults.is_empty() {
            errors.invalid(&version_path, group, faults.join(","));
        }
        let faults = names::is_dns1035_label(version);
        if version.is_empty() {
            errors.invalid(version_path, api_version, "version must be specified");
        } else if !faults.is_empty() {
            errors.invalid(version_path, version, faults.join(","));
        }
    }
    let (kind, path) = (kind.kind.text(), path.child("kind"));
    let faults = names::is_dns1035_label(&kind.to_lowercase());
    if kind.is_empty() {
        errors.required(path, "");
    } else if !faults.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", faults.join(","));
        errors.invalid(path, kind, detail);
    }
}

fn validate_constraints(constraints: Option<&MatchResources>, path: &Path, errors: &mut ErrorList) {
    let path = path.child("matchConstraints");
    let Some(constraints) = constraints else {
        errors.required(path, "");
        return;
    };
    validate_match_resources(constraints, &path, errors);
    if constraints.resource_rules.items().is_empty() {
        errors.required(path.child("resourceRules"), "");
    }
}

fn validate_match_resources(resources: &MatchResources, path: &Path, errors: &mut ErrorList) {
    let policy_path = path.child("matchPolicy");
    match &resources.match_policy {
        None => errors.required(policy_path, ""),
        Some(policy) => errors.one_of(policy_path, policy, &MATCH_POLICIES),
    }
    for (field, selector) in
        [("namespaceSelector", &resources.namespace_selector), ("objectSelector", &resources.object_selector)]
    {
        let path = path.child(field);
        if selector.is_none() {
            errors.required(&path, "");
        }
        validate_label_selector(selector.as_ref(), SelectorOptions::default(), &path, errors);
    }
    for (field, rules) in
        [("resourceRules", &resources.resource_rules), ("excludeResourceRules", &resources.exclude_resource_rules)]
    {
        for (index, rule) in rules.items().iter().enumerate() {
            validate_named_rule(rule, &path.child(field).index(index), errors);
        }
    }
}

fn validate_named_rule(rule: &NamedRuleWithOperations, path: &Path, errors: &mut ErrorList) {
    let mut taken = BTreeSet::new();
    for (index, name) in rule.resource_names.items().iter().enumerate() {
        let path = path.child("resourceNames").index(index);
        errors.invalid_each(&path, name, names::is_path_segment_name(name));
        if !taken.insert(name) {
            errors.duplicate(path, name.as_str());
        }
    }
    let unnamed = RuleWithOperations {
        api_groups: rule.api_groups.clone(),
        api_versions: rule.api_versions.clone(),
        operations: rule.operations.clone(),
        resources: rule.resources.clone(),
        scope: rule.scope.clone(),
    };
    validate_rule(&unnamed, path, errors);
}

fn validate_variables(variables: &[Variable], path: &Path, errors: &mut ErrorList) {
    for (index, variable) in variables.iter().enumerate() {
        let path = path.child("variables").index(index);
        if variable.name.trim().is_empty() {
            errors.required(path.child("name"), "name is not specified");
        } else if !is_cel_identifier(&variable.name) {
            errors.invalid(path.child("name"), variable.name.as_str(), "must be a valid CEL identifier");
        }
        if variable.expression.trim().is_empty() {
            errors.required(path.child("expression"), "expression is not specified");
        }
    }
}

fn is_cel_identifier(name: &str) -> bool {
    let start = name.starts_with(|first: char| first == '_' || first.is_ascii_alphabetic());
    start
        && name.chars().all(|character| character == '_' || character.is_ascii_alphanumeric())
        && !CEL_RESERVED.contains(&name)
}

pub fn validate_policy_status_update(new: &ValidatingAdmissionPolicy, _: &ValidatingAdmissionPolicy) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = new.status.clone().unwrap_or_default();
    let path = Path::new("status");
    let checked = status.type_checking.unwrap_or_default();
    for (index, warning) in checked.expression_warnings.items().iter().enumerate() {
        let path = path.child("typeChecking").child("expressionWarnings").index(index);
        errors.not_empty(path.child("warning"), &warning.warning);
        errors.not_empty(path.child("fieldRef"), warning.field_ref.trim());
    }
    validate_conditions(status.conditions.items(), &path.child("conditions"), &mut errors);
    errors
}

pub fn validate_binding(binding: &ValidatingAdmissionPolicyBinding) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&binding.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    let (spec, path) = (&binding.spec, Path::new("spec"));
    validate_policy_name(&spec.policy_name, &path, &mut errors);
    validate_param_ref(spec.param_ref.as_ref(), &path, &mut errors);
    if let Some(resources) = &spec.match_resources {
        validate_match_resources(resources, &path.child("matchResources"), &mut errors);
    }
    let path = path.child("validationActions");
    let mut actions = BTreeSet::new();
    for (index, action) in spec.validation_actions.iter().enumerate() {
        errors.one_of(path.index(index), action, &["Audit", "Deny", "Warn"]);
        if !actions.insert(action.as_str()) {
            errors.duplicate(path.index(index), action.as_str());
        }
    }
    if actions.contains("Deny") && actions.contains("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the \
                      API response and headers serves no purpose)";
        errors.invalid(&path, spec.validation_actions.clone(), detail);
    }
    if actions.is_empty() {
        errors.required(path, "at least one validation action is required");
    }
    errors
}

fn validate_policy_name(name: &str, path: &Path, errors: &mut ErrorList) {
    let path = path.child("policyName");
    if name.is_empty() {
        errors.required(path, "");
    } else {
        errors.invalid_each(path, name, dns_subdomain(name, false));
    }
}

fn validate_param_ref(reference: Option<&ParamRef>, path: &Path, errors: &mut ErrorList) {
    const EXCLUSIVE: &str = "name and selector are mutually exclusive";
    let Some(reference) = reference else { return };
    let path = path.child("paramRef");
    let (name, selector) = (reference.name.text(), reference.selector.as_ref());
    if !name.is_empty() {
        errors.invalid_each(path.child("name"), name, names::is_path_segment_name(name));
        if selector.is_some() {
            errors.forbidden(path.child("name"), EXCLUSIVE);
        }
    }
    validate_label_selector(selector, SelectorOptions::default(), &path.child("selector"), errors);
    if selector.is_some() && !name.is_empty() {
        errors.forbidden(path.child("selector"), EXCLUSIVE);
    }
    if selector.is_none() && name.is_empty() {
        errors.required(&path, "one of name or selector must be specified");
    }
    let action = reference.parameter_not_found_action.text();
    errors.required_one_of(path.child("parameterNotFoundAction"), action, &["Deny", "Allow"]);
}

pub fn validate_mutating_policy(policy: &MutatingAdmissionPolicy) -> ErrorList {
    validate_mutating_policy_with(policy, true)
}

pub fn validate_mutating_policy_update(new: &MutatingAdmissionPolicy, old: &MutatingAdmissionPolicy) -> ErrorList {
    let (new_spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let same = semantic_eq(&new_spec.param_kind, &old_spec.param_kind)
        && semantic_eq(&new_spec.match_conditions, &old_spec.match_conditions);
    validate_mutating_policy_with(new, !same)
}

fn validate_mutating_policy_with(policy: &MutatingAdmissionPolicy, check_conditions: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&policy.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    let spec = policy.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    validate_failure_policy(spec.failure_policy.as_deref(), &path, &mut errors);
    validate_param_kind(spec.param_kind.as_ref(), &path, &mut errors);
    validate_constraints(spec.match_constraints.as_ref(), &path, &mut errors);
    validate_mutating_operations(spec.match_constraints.as_ref(), &path.child("matchConstraints"), &mut errors);
    if check_conditions {
        validate_match_conditions(spec.match_conditions.items(), &path.child("matchConditions"), &mut errors);
    }
    validate_variables(spec.variables.items(), &path, &mut errors);
    if spec.mutations.items().is_empty() {
        errors.required(path.child("mutations"), "mutations must contain at least one item");
    }
    for (index, mutation) in spec.mutations.items().iter().enumerate() {
        validate_mutation(mutation, &path.child("mutations").index(index), &mut errors);
    }
    let reinvocation = spec.reinvocation_policy.text();
    errors.required_one_of(path.child("reinvocationPolicy"), reinvocation, &["IfNeeded", "Never"]);
    errors
}

/// What is deleted cannot be changed.
fn validate_mutating_operations(resources: Option<&MatchResources>, path: &Path, errors: &mut ErrorList) {
    let rules = resources.into_iter().flat_map(|resources| resources.resource_rules.items());
    for operation in rules.flat_map(|rule| rule.operations.items()) {
        errors.one_of(path.child("resourceRules").child("operations"), operation, &MUTATING_OPERATIONS);
    }
}

fn validate_mutation(mutation: &Mutation, path: &Path, errors: &mut ErrorList) {
    let apply = mutation.apply_configuration.as_ref().map(|apply| apply.expression.text());
    let patch = mutation.json_patch.as_ref().map(|patch| patch.expression.text());
    let (own, own_value, other, other_value) = match mutation.patch_type.as_str() {
        "" => {
            errors.required(path.child("patchType"), "");
            return;
        }
        "JSONPatch" => ("jsonPatch", patch, "applyConfiguration", apply),
        "ApplyConfiguration" => ("applyConfiguration", apply, "jsonPatch", patch),
        unknown => {
            errors.not_supported(path.child("patchType"), unknown, &["ApplyConfiguration", "JSONPatch"]);
            return;
        }
    };
    let kind = &mutation.patch_type;
    match own_value {
        None => errors.required(path.child(own), format!("must be specified when patchType is {kind}")),
        Some(expression) => errors.not_empty(path.child(own).child("expression"), expression.trim()),
    }
    if other_value.is_some() {
        let detail = format!("must not be specified when patchType is {kind}");
        errors.invalid(path.child(other), format!("{{{other}}}"), detail);
    }
}

pub fn validate_mutating_binding(binding: &MutatingAdmissionPolicyBinding) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&binding.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    let spec = binding.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    validate_policy_name(spec.policy_name.text(), &path, &mut errors);
    validate_param_ref(spec.param_ref.as_ref(), &path, &mut errors);
    let resources = spec.match_resources.as_ref();
    if let Some(resources) = resources {
        validate_match_resources(resources, &path.child("matchResources"), &mut errors);
    }
    validate_mutating_operations(resources, &path.child("matchResources"), &mut errors);
    errors
}
