//! What webhooks and policies share: rules, match conditions, clients.
//!
//! Behaves as pkg/apis/admissionregistration/validation/validation.go and
//! apiserver/pkg/util/webhook/validation.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::admissionregistration::v1::{MatchCondition, RuleWithOperations};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use crate::common::names::validate_qualified_name;
use crate::common::report::{OptList, Report};

const MATCH_CONDITIONS_MAX: usize = 64;
const STATIC_SUFFIX: &str = ".static.k8s.io";
pub(crate) const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
pub(crate) const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
pub(crate) const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];

/// Names that only configuration in files may have.
pub fn static_suffix_warnings(name: Option<&str>) -> Vec<String> {
    if !name.is_some_and(|name| name.ends_with(STATIC_SUFFIX)) {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: names ending with \"{STATIC_SUFFIX}\" are reserved for static manifest-based \
         configurations and cannot be managed via the API"
    )]
}

pub(crate) fn is_wild(values: &[String]) -> bool {
    values.iter().any(|value| value == "*")
}

pub(crate) fn validate_rule(rule: &RuleWithOperations, path: &Path, errors: &mut ErrorList) {
    let operations = rule.operations.items();
    let operations_path = path.child("operations");
    if operations.is_empty() {
        errors.required(&operations_path, "");
    }
    if operations.len() > 1 && is_wild(operations) {
        let detail = "if '*' is present, must not specify other operations";
        errors.invalid(&operations_path, operations.to_vec(), detail);
    }
    for (index, operation) in operations.iter().enumerate() {
        errors.one_of(operations_path.index(index), operation, &OPERATIONS);
    }
    for (field, values, what) in
        [("apiGroups", rule.api_groups.items(), "groups"), ("apiVersions", rule.api_versions.items(), "versions")]
    {
        let path = path.child(field);
        if values.is_empty() {
            errors.required(&path, "");
        }
        if values.len() > 1 && is_wild(values) {
            let detail = format!("if '*' is present, must not specify other API {what}");
            errors.invalid(path, values.to_vec(), detail);
        }
    }
    for (index, version) in rule.api_versions.items().iter().enumerate() {
        errors.not_empty(path.child("apiVersions").index(index), version);
    }
    validate_resources(rule.resources.items(), &path.child("resources"), errors);
    if let Some(scope) = &rule.scope {
        errors.one_of(path.child("scope"), scope, &["*", "Cluster", "Namespaced"]);
    }
}

fn validate_resources(resources: &[String], path: &Path, errors: &mut ErrorList) {
    if resources.is_empty() {
        errors.required(path, "");
    }
    let (mut all_subresources_of, mut subresources_of_all) = (BTreeSet::new(), BTreeSet::new());
    let (mut everything, mut all_resources, mut plain) = (false, false, false);
    for (index, name) in resources.iter().enumerate() {
        let path = path.index(index);
        if name.is_empty() {
            errors.required(path, "");
            continue;
        }
        everything |= name == "*/*";
        all_resources |= name == "*";
        let Some((resource, subresource)) = name.split_once('/') else {
            plain = name != "*";
            continue;
        };
        if all_subresources_of.contains(resource) {
            let detail = format!("if '{resource}/*' is present, must not specify {name}");
            errors.invalid(&path, name.as_str(), detail);
        }
        if subresources_of_all.contains(subresource) {
            let detail = format!("if '*/{subresource}' is present, must not specify {name}");
            errors.invalid(path, name.as_str(), detail);
        }
        if subresource == "*" {
            all_subresources_of.insert(resource);
        }
        if resource == "*" {
            subresources_of_all.insert(subresource);
        }
    }
    if resources.len() > 1 && everything {
        errors.invalid(path, resources.to_vec(), "if '*/*' is present, must not specify other resources");
    }
    if all_resources && plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(path, resources.to_vec(), detail);
    }
}

/// Expressions are compiled by whoever evaluates them.
pub(crate) fn validate_match_conditions(conditions: &[MatchCondition], path: &Path, errors: &mut ErrorList) {
    if conditions.len() > MATCH_CONDITIONS_MAX {
        errors.too_many(path, conditions.len(), MATCH_CONDITIONS_MAX);
    }
    let mut taken = BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        errors.not_empty(path.child("expression"), condition.expression.trim());
        let (name, path) = (condition.name.as_str(), path.child("name"));
        if name.is_empty() {
            errors.required(path, "");
            continue;
        }
        validate_qualified_name(name, &path, errors);
        if !taken.insert(name) {
            errors.duplicate(path, name);
        }
    }
}

/// `https://host[/path]`, without user, query and fragment.
pub(crate) fn validate_url(url: &str, path: &Path, errors: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (rest, fragment) = url.split_once('#').map_or((url, ""), |(rest, fragment)| (rest, fragment));
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, query)| (rest, query));
    let (scheme, rest) = rest.split_once(':').unwrap_or(("", rest));
    let authority = rest.strip_prefix("//").map_or("", |rest| rest.split('/').next().unwrap_or_default());
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if url.chars().any(char::is_control) {
        let quoted = rkube_apimachinery::quote::quote(url);
        let detail =
            format!("url must be a valid URL: parse {quoted}: net/url: invalid control character in URL{FORM}");
        errors.required(path, detail);
        return;
    }
    if scheme != "https" {
        errors.invalid(path, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        errors.invalid(path, host, format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        errors.invalid(path, user, "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        errors.invalid(path, fragment, "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        errors.invalid(path, query, "query parameters are not permitted in the URL");
    }
}

/// The service a webhook is behind.
pub(crate) struct ServiceTarget<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) path: Option<&'a str>,
    pub(crate) port: i32,
}

pub(crate) fn validate_service(service: &ServiceTarget<'_>, path: &Path, errors: &mut ErrorList) {
    // Upstream hands over name and namespace the wrong way round; the order of the faults shows it.
    errors.not_empty(path.child("name"), service.namespace);
    errors.not_empty(path.child("namespace"), service.name);
    let faults = names::is_valid_port_num(i64::from(service.port));
    if !faults.is_empty() {
        errors.invalid(path.child("port"), service.port, format!("port is not valid: {}", faults.join(", ")));
    }
    let Some(url_path) = service.path.filter(|path| !path.is_empty() && *path != "/") else { return };
    let path = path.child("path");
    if url_path == "//" {
        errors.invalid(path, url_path, "segment[0] may not be empty");
        return;
    }
    if !url_path.starts_with('/') {
        errors.invalid(&path, url_path, "must start with a '/'");
    }
    let mut rest = url_path.chars();
    rest.next();
    let rest = rest.as_str();
    for (index, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(&path, url_path, format!("segment[{index}] may not be empty"));
            continue;
        }
        for fault in names::is_dns1123_subdomain(step) {
            errors.invalid(&path, url_path, format!("segment[{index}]: {fault}"));
        }
    }
}
