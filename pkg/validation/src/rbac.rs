//! rbac.authorization.k8s.io/v1: roles and bindings.
//!
//! Behaves as pkg/apis/rbac/validation/validation.go and pkg/apis/rbac/v1/defaults.go, v1.36.

use rkube_api::k8s::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use crate::common::defaults::text_default;
use crate::common::meta::{
    SelectorOptions, has_invalid_label_value, selector_error, validate_label_selector, validate_object_meta,
    validate_object_meta_update,
};
use crate::common::names::dns_subdomain;
use crate::common::report::{OptList, OptText, Report, shown};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Roles may have any name that fits a URL, colons included.
fn rbac_name(name: &str, _prefix: bool) -> Vec<String> {
    names::is_path_segment_name(name)
}

pub fn validate_role(role: &Role) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&role.metadata, true, rbac_name, &Path::new("metadata"), &mut errors);
    validate_rules(role.rules.items(), true, &mut errors);
    errors
}

pub fn validate_role_update(new: &Role, old: &Role) -> ErrorList {
    let mut errors = validate_role(new);
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors
}

pub fn validate_cluster_role(role: &ClusterRole) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_cluster_role_with(role, SelectorOptions::default(), &mut errors);
    errors
}

pub fn validate_cluster_role_update(new: &ClusterRole, old: &ClusterRole) -> ErrorList {
    let mut errors = ErrorList::new();
    let selectors = old.aggregation_rule.iter().flat_map(|rule| rule.cluster_role_selectors.items());
    let lenient = selectors.into_iter().any(|selector| has_invalid_label_value(Some(selector)));
    let options = SelectorOptions { allow_invalid_label_value: lenient, ..SelectorOptions::default() };
    validate_cluster_role_with(new, options, &mut errors);
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    errors
}

fn validate_cluster_role_with(role: &ClusterRole, options: SelectorOptions, errors: &mut ErrorList) {
    validate_object_meta(&role.metadata, false, rbac_name, &Path::new("metadata"), errors);
    validate_rules(role.rules.items(), false, errors);
    let Some(rule) = &role.aggregation_rule else { return };
    let path = Path::new("aggregationRule").child("clusterRoleSelectors");
    let selectors = rule.cluster_role_selectors.items();
    if selectors.is_empty() {
        let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.required(&path, detail);
    }
    for (index, selector) in selectors.iter().enumerate() {
        let path = path.index(index);
        validate_label_selector(Some(selector), options, &path, errors);
        if !options.allow_invalid_label_value && selector_error(selector).is_some() {
            errors.invalid(path, shown(selector), "invalid label selector.");
        }
    }
}

fn validate_rules(rules: &[PolicyRule], namespaced: bool, errors: &mut ErrorList) {
    for (index, rule) in rules.iter().enumerate() {
        let path = Path::new("rules").index(index);
        if rule.verbs.is_empty() {
            errors.required(path.child("verbs"), "verbs must contain at least one value");
        }
        let urls = rule.non_resource_urls.items();
        let (groups, resources) = (rule.api_groups.items(), rule.resources.items());
        if !urls.is_empty() {
            let path = path.child("nonResourceURLs");
            if namespaced {
                errors.invalid(&path, urls.to_vec(), "namespaced rules cannot apply to non-resource URLs");
            }
            if !groups.is_empty() || !resources.is_empty() || !rule.resource_names.items().is_empty() {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(path, urls.to_vec(), detail);
            }
            continue;
        }
        if groups.is_empty() {
            errors.required(path.child("apiGroups"), "resource rules must supply at least one api group");
        }
        if resources.is_empty() {
            errors.required(path.child("resources"), "resource rules must supply at least one resource");
        }
    }
}

fn set_binding_defaults(role: &mut RoleRef, subjects: Option<&mut Vec<Subject>>) {
    text_default(&mut role.api_group, GROUP);
    for subject in subjects.into_iter().flatten().filter(|subject| matches!(subject.kind.as_str(), "User" | "Group")) {
        text_default(&mut subject.api_group, GROUP);
    }
}

pub fn set_role_binding_defaults(binding: &mut RoleBinding) {
    set_binding_defaults(&mut binding.role_ref, binding.subjects.as_mut());
}

pub fn set_cluster_role_binding_defaults(binding: &mut ClusterRoleBinding) {
    set_binding_defaults(&mut binding.role_ref, binding.subjects.as_mut());
}

pub fn validate_role_binding(binding: &RoleBinding) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&binding.metadata, true, rbac_name, &Path::new("metadata"), &mut errors);
    validate_role_ref(&binding.role_ref, &["Role", "ClusterRole"], &mut errors);
    validate_subjects(binding.subjects.items(), true, &mut errors);
    errors
}

pub fn validate_role_binding_update(new: &RoleBinding, old: &RoleBinding) -> ErrorList {
    let mut errors = validate_role_binding(new);
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_same_role(&new.role_ref, &old.role_ref, &mut errors);
    errors
}

pub fn validate_cluster_role_binding(binding: &ClusterRoleBinding) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&binding.metadata, false, rbac_name, &Path::new("metadata"), &mut errors);
    validate_role_ref(&binding.role_ref, &["ClusterRole"], &mut errors);
    validate_subjects(binding.subjects.items(), false, &mut errors);
    errors
}

pub fn validate_cluster_role_binding_update(new: &ClusterRoleBinding, old: &ClusterRoleBinding) -> ErrorList {
    let mut errors = validate_cluster_role_binding(new);
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_same_role(&new.role_ref, &old.role_ref, &mut errors);
    errors
}

fn validate_same_role(new: &RoleRef, old: &RoleRef, errors: &mut ErrorList) {
    if new != old {
        errors.invalid(Path::new("roleRef"), shown(new), "cannot change roleRef");
    }
}

fn validate_role_ref(role: &RoleRef, kinds: &[&str], errors: &mut ErrorList) {
    let path = Path::new("roleRef");
    errors.one_of(path.child("apiGroup"), role.api_group.text(), &[GROUP]);
    errors.one_of(path.child("kind"), &role.kind, kinds);
    if role.name.is_empty() {
        errors.required(path.child("name"), "");
    } else {
        errors.invalid_each(path.child("name"), &role.name, rbac_name(&role.name, false));
    }
}

fn validate_subjects(subjects: &[Subject], namespaced: bool, errors: &mut ErrorList) {
    for (index, subject) in subjects.iter().enumerate() {
        let path = Path::new("subjects").index(index);
        let group = subject.api_group.text();
        errors.not_empty(path.child("name"), &subject.name);
        match subject.kind.as_str() {
            "ServiceAccount" => {
                if !subject.name.is_empty() {
                    errors.invalid_each(path.child("name"), &subject.name, dns_subdomain(&subject.name, false));
                }
                if !group.is_empty() {
                    errors.not_supported(path.child("apiGroup"), group, &[""]);
                }
                if !namespaced && subject.namespace.is_blank() {
                    errors.required(path.child("namespace"), "");
                }
            }
            "User" | "Group" => errors.one_of(path.child("apiGroup"), group, &[GROUP]),
            other => errors.not_supported(path.child("kind"), other, &["ServiceAccount", "User", "Group"]),
        }
    }
}
