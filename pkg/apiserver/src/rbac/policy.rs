//! Who may do what, compiled for fast answers: rules by subject, so that a decision looks at the
//! caller's own bindings only.
//!
//! Behaves as `plugin/pkg/auth/authorizer/rbac/rbac.go` and `pkg/registry/rbac/validation/rule.go`, v1.36.

use std::collections::HashMap;
use std::sync::Arc;

use rkube_api::k8s::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::rule;

/// What someone wants to do.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    Resource {
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        subresource: &'a str,
        /// Empty for cluster-scoped resources and for all namespaces.
        namespace: &'a str,
        name: &'a str,
    },
    Path {
        verb: &'a str,
        path: &'a str,
    },
}

impl<'a> Request<'a> {
    fn namespace(&self) -> &'a str {
        match self {
            Self::Resource { namespace, .. } => namespace,
            Self::Path { .. } => "",
        }
    }
}

/// The names a user is bound by.
#[derive(Clone, Copy, Debug)]
pub struct Subjects<'a> {
    pub user: &'a str,
    pub groups: &'a [String],
}

/// A binding's effect on one of its subjects.
#[derive(Clone, Debug)]
struct Grant {
    rules: Arc<[PolicyRule]>,
    /// `ClusterRoleBinding "x" of ClusterRole "y" to Group "z"`, for the answer's reason.
    reason: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum SubjectKey {
    User(String),
    Group(String),
}

/// Everything RBAC knows, immutable. A change of any role or binding builds a new one.
#[derive(Debug, Default)]
pub struct Policy {
    cluster: HashMap<SubjectKey, Vec<Grant>>,
    /// By namespace, then subject.
    namespaced: HashMap<String, HashMap<SubjectKey, Vec<Grant>>>,
    roles: HashMap<(String, String), Arc<[PolicyRule]>>,
    cluster_roles: HashMap<String, Arc<[PolicyRule]>>,
}

impl Policy {
    pub fn build<'a>(
        roles: impl IntoIterator<Item = &'a Role>,
        cluster_roles: impl IntoIterator<Item = &'a ClusterRole>,
        role_bindings: impl IntoIterator<Item = &'a RoleBinding>,
        cluster_role_bindings: impl IntoIterator<Item = &'a ClusterRoleBinding>,
    ) -> Self {
        let mut policy = Self::default();
        for role in roles {
            let name = role.metadata.name.clone().unwrap_or_default();
            let namespace = role.metadata.namespace.clone().unwrap_or_default();
            policy.roles.insert((namespace, name), shared(role.rules.as_ref()));
        }
        for role in cluster_roles {
            policy.cluster_roles.insert(role.metadata.name.clone().unwrap_or_default(), shared(role.rules.as_ref()));
        }
        for binding in cluster_role_bindings {
            let name = binding.metadata.name.as_deref().unwrap_or_default();
            // A binding to a role that does not exist grants nothing, and says so to nobody.
            let Some(rules) = policy.rules_of(&binding.role_ref, "") else { continue };
            for subject in binding.subjects.iter().flatten() {
                let described = describe_subject(subject, "");
                let text =
                    format!("ClusterRoleBinding {name:?} of {} to {described}", describe_role(&binding.role_ref));
                add(&mut policy.cluster, subject, "", &rules, &text);
            }
        }
        for binding in role_bindings {
            let name = binding.metadata.name.as_deref().unwrap_or_default();
            let namespace = binding.metadata.namespace.clone().unwrap_or_default();
            let Some(rules) = policy.rules_of(&binding.role_ref, &namespace) else { continue };
            let grants = policy.namespaced.entry(namespace.clone()).or_default();
            for subject in binding.subjects.iter().flatten() {
                let described = describe_subject(subject, &namespace);
                let text = format!(
                    "RoleBinding {:?} of {} to {described}",
                    format!("{name}/{namespace}"),
                    describe_role(&binding.role_ref)
                );
                add(grants, subject, &namespace, &rules, &text);
            }
        }
        policy
    }

    /// Why `request` is allowed; `None` if no rule allows it.
    pub fn allows(&self, subjects: Subjects<'_>, request: &Request<'_>) -> Option<Arc<str>> {
        self.grants(subjects, request.namespace())
            .find(|grant| grant.rules.iter().any(|rule| rule::allows(rule, request)))
            .map(|grant| Arc::clone(&grant.reason))
    }

    /// All rules a user has in a namespace (and cluster-wide). Empty namespace: cluster-wide only.
    pub fn rules_for(&self, subjects: Subjects<'_>, namespace: &str) -> Vec<PolicyRule> {
        self.grants(subjects, namespace).flat_map(|grant| grant.rules.iter().cloned()).collect()
    }

    /// The rules a role reference leads to; `None` if there is no such role.
    pub fn rules_of(&self, role: &RoleRef, namespace: &str) -> Option<Arc<[PolicyRule]>> {
        match role.kind.as_str() {
            "ClusterRole" => self.cluster_roles.get(&role.name).cloned(),
            "Role" => self.roles.get(&(namespace.to_owned(), role.name.clone())).cloned(),
            _ => None,
        }
    }

    fn grants<'a>(&'a self, subjects: Subjects<'a>, namespace: &str) -> impl Iterator<Item = &'a Grant> {
        let keys = std::iter::once(SubjectKey::User(subjects.user.to_owned()))
            .chain(subjects.groups.iter().map(|group| SubjectKey::Group(group.clone())));
        let namespaced = if namespace.is_empty() { None } else { self.namespaced.get(namespace) };
        keys.flat_map(move |key| {
            let everywhere = self.cluster.get(&key).into_iter().flatten();
            let here = namespaced.and_then(|grants| grants.get(&key)).into_iter().flatten();
            everywhere.chain(here)
        })
    }
}

fn shared(rules: Option<&Vec<PolicyRule>>) -> Arc<[PolicyRule]> {
    rules.map(|rules| rules.as_slice().into()).unwrap_or_default()
}

fn add(
    grants: &mut HashMap<SubjectKey, Vec<Grant>>,
    subject: &Subject,
    namespace: &str,
    rules: &Arc<[PolicyRule]>,
    reason: &str,
) {
    let key = match subject.kind.as_str() {
        "User" => SubjectKey::User(subject.name.clone()),
        "Group" => SubjectKey::Group(subject.name.clone()),
        "ServiceAccount" => {
            let namespace = subject.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or(namespace);
            if namespace.is_empty() {
                return;
            }
            SubjectKey::User(format!("system:serviceaccount:{namespace}:{}", subject.name))
        }
        _ => return,
    };
    grants.entry(key).or_default().push(Grant { rules: Arc::clone(rules), reason: reason.into() });
}

fn describe_role(role: &RoleRef) -> String {
    format!("{} {:?}", role.kind, role.name)
}

fn describe_subject(subject: &Subject, namespace: &str) -> String {
    if subject.kind == "ServiceAccount" {
        let namespace = subject.namespace.as_deref().unwrap_or(namespace);
        return format!("ServiceAccount {:?}", format!("{}/{namespace}", subject.name));
    }
    format!("{} {:?}", subject.kind, subject.name)
}
