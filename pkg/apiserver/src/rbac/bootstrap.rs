//! The roles and bindings every cluster starts with, read from `bootstrap.policy`.
//!
//! They are reconciled at each start: what is missing is added, what an administrator added stays.
//! Behaves as `pkg/registry/rbac/rest/storage_rbac.go`, v1.36.

use rkube_api::k8s::rbac::v1::{
    AggregationRule, ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use rkube_api::meta::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

const TEXT: &str = include_str!("bootstrap.policy");
const API_GROUP: &str = "rbac.authorization.k8s.io";
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";
/// `false` on an object tells the reconciler to leave it alone.
pub const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// The objects of the bootstrap policy, in the file's order.
#[derive(Debug, Default)]
pub struct Bootstrap {
    pub cluster_roles: Vec<ClusterRole>,
    pub roles: Vec<Role>,
    pub cluster_role_bindings: Vec<ClusterRoleBinding>,
    pub role_bindings: Vec<RoleBinding>,
}

/// Reads the embedded policy.
///
/// # Panics
/// If the embedded file is malformed, which a test rules out.
pub fn policy() -> Bootstrap {
    parse(TEXT).unwrap_or_else(|line| panic!("the embedded bootstrap.policy is malformed: {line}"))
}

/// What the indented lines below belong to.
enum Last {
    None,
    ClusterRole,
    Role,
    ClusterRoleBinding,
    RoleBinding,
}

/// The line that cannot be read is the error.
fn parse(text: &str) -> Result<Bootstrap, String> {
    let mut out = Bootstrap::default();
    let mut last = Last::None;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let bad = || line.to_owned();
        if let Some(detail) = line.strip_prefix("    ") {
            match last {
                Last::ClusterRole => {
                    let role = out.cluster_roles.last_mut().ok_or_else(bad)?;
                    role.rules.get_or_insert_default().push(rule(detail).ok_or_else(bad)?);
                }
                Last::Role => {
                    let role = out.roles.last_mut().ok_or_else(bad)?;
                    role.rules.get_or_insert_default().push(rule(detail).ok_or_else(bad)?);
                }
                Last::ClusterRoleBinding => {
                    let binding = out.cluster_role_bindings.last_mut().ok_or_else(bad)?;
                    binding.subjects.get_or_insert_default().push(subject(detail).ok_or_else(bad)?);
                }
                Last::RoleBinding => {
                    let binding = out.role_bindings.last_mut().ok_or_else(bad)?;
                    binding.subjects.get_or_insert_default().push(subject(detail).ok_or_else(bad)?);
                }
                Last::None => return Err(bad()),
            }
            continue;
        }
        let (kind, rest) = line.split_once(' ').ok_or_else(bad)?;
        match kind {
            "clusterrole" => {
                out.cluster_roles.push(cluster_role(rest).ok_or_else(bad)?);
                last = Last::ClusterRole;
            }
            "role" => {
                out.roles.push(Role { metadata: metadata(rest), rules: None });
                last = Last::Role;
            }
            "clusterrolebinding" => {
                let (metadata, role_ref) = binding(rest).ok_or_else(bad)?;
                out.cluster_role_bindings.push(ClusterRoleBinding { metadata, role_ref, subjects: None });
                last = Last::ClusterRoleBinding;
            }
            "rolebinding" => {
                let (metadata, role_ref) = binding(rest).ok_or_else(bad)?;
                out.role_bindings.push(RoleBinding { metadata, role_ref, subjects: None });
                last = Last::RoleBinding;
            }
            _ => return Err(bad()),
        }
    }
    Ok(out)
}

fn words(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

fn metadata(name: &str) -> ObjectMeta {
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, name),
    };
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace,
        labels: Some([("kubernetes.io/bootstrapping".to_owned(), "rbac-defaults".to_owned())].into()),
        annotations: Some([(AUTOUPDATE.to_owned(), "true".to_owned())].into()),
        ..ObjectMeta::default()
    }
}

/// `NAME [into GROUP]... [collects GROUP]`
fn cluster_role(text: &str) -> Option<ClusterRole> {
    let mut words = text.split(' ');
    let mut role = ClusterRole { metadata: metadata(words.next()?), ..ClusterRole::default() };
    while let Some(word) = words.next() {
        let label = (format!("{AGGREGATE}{}", words.next()?), "true".to_owned());
        match word {
            "into" => {
                role.metadata.labels.get_or_insert_default().insert(label.0, label.1);
            }
            "collects" => {
                let selector = LabelSelector { match_labels: Some([label].into()), ..LabelSelector::default() };
                role.aggregation_rule = Some(AggregationRule { cluster_role_selectors: Some(vec![selector]) });
            }
            _ => return None,
        }
    }
    Some(role)
}

/// `VERBS of GROUPS: RESOURCES [named NAMES]` or `VERBS on PATHS`
fn rule(text: &str) -> Option<PolicyRule> {
    let (verbs, rest) = text.split_once(' ')?;
    let verbs = words(verbs);
    if let Some(paths) = rest.strip_prefix("on ") {
        return Some(PolicyRule { verbs, non_resource_urls: Some(words(paths)), ..PolicyRule::default() });
    }
    let (groups, resources) = rest.strip_prefix("of ")?.split_once(": ")?;
    let (resources, names) = match resources.split_once(" named ") {
        Some((resources, names)) => (resources, Some(words(names))),
        None => (resources, None),
    };
    let groups =
        groups.split(',').map(|group| if group == "core" { String::new() } else { group.to_owned() }).collect();
    Some(PolicyRule {
        verbs,
        api_groups: Some(groups),
        resources: Some(words(resources)),
        resource_names: names,
        non_resource_urls: None,
    })
}

/// `NAME grants ROLE-KIND ROLE-NAME`
fn binding(text: &str) -> Option<(ObjectMeta, RoleRef)> {
    let (name, role) = text.split_once(" grants ")?;
    let (kind, role) = role.split_once(' ')?;
    let role_ref = RoleRef { api_group: Some(API_GROUP.to_owned()), kind: kind.to_owned(), name: role.to_owned() };
    Some((metadata(name), role_ref))
}

/// `to SUBJECT-KIND NAME`
fn subject(text: &str) -> Option<Subject> {
    let (kind, name) = text.strip_prefix("to ")?.split_once(' ')?;
    let mut subject = Subject { kind: kind.to_owned(), name: name.to_owned(), ..Subject::default() };
    if kind == "ServiceAccount" {
        let (namespace, name) = name.split_once('/')?;
        subject.namespace = Some(namespace.to_owned());
        subject.name = name.to_owned();
    } else {
        subject.api_group = Some(API_GROUP.to_owned());
    }
    Some(subject)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_embedded_policy_reads_whole() {
        let policy = policy();
        assert!(policy.cluster_roles.len() > 60 && policy.cluster_role_bindings.len() > 40);
        let names: Vec<_> = policy.cluster_roles.iter().filter_map(|role| role.metadata.name.as_deref()).collect();
        for binding in &policy.cluster_role_bindings {
            assert!(
                names.contains(&binding.role_ref.name.as_str()),
                "{:?} grants a role that is not there",
                binding.metadata.name
            );
        }
    }

    /// Every object of the golden files, and no other, rule for rule.
    #[test]
    fn the_policy_is_golden() {
        let folder = rkube_testing::golden::folder();
        let golden = |file: &str| -> Vec<Value> {
            let text = std::fs::read_to_string(folder.join("rbac").join(file)).unwrap();
            let list: Value = serde_saphyr::from_str(&text).unwrap();
            list["items"].as_array().unwrap().iter().map(canonical).collect()
        };
        let policy = policy();
        let mut ours: Vec<Value> = Vec::new();
        ours.extend(policy.cluster_roles.iter().map(|object| canonical(&serde_json::to_value(object).unwrap())));
        ours.extend(policy.roles.iter().map(|object| canonical(&serde_json::to_value(object).unwrap())));
        ours.extend(
            policy.cluster_role_bindings.iter().map(|object| canonical(&serde_json::to_value(object).unwrap())),
        );
        ours.extend(policy.role_bindings.iter().map(|object| canonical(&serde_json::to_value(object).unwrap())));
        let mut theirs = Vec::new();
        for file in [
            "cluster-roles.yaml",
            "controller-roles.yaml",
            "namespace-roles.yaml",
            "cluster-role-bindings.yaml",
            "controller-role-bindings.yaml",
            "namespace-role-bindings.yaml",
        ] {
            theirs.extend(golden(file));
        }
        assert_eq!(ours.len(), theirs.len());
        for object in &theirs {
            assert!(ours.contains(object), "missing or different: {object:#}");
        }
    }

    /// Null rules and subjects are absent ones.
    fn canonical(object: &Value) -> Value {
        let mut object = object.clone();
        object.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        object
    }

    #[test]
    fn a_line_that_cannot_be_read_is_the_error() {
        for line in ["clusterrole a b c", "    get of core: pods", "rolebinding x grants y", "what is this"] {
            assert_eq!(parse(line).unwrap_err(), line);
        }
    }
}
