//! Nobody grants more than they have: roles and bindings are written only by those who have all that is
//! granted, or who may `escalate` the role or `bind` to it.
//!
//! No plugin of upstream, where the storage of these kinds does it; here it is the last step that mutates, which is
//! the same place.
//!
//! Behaves as `pkg/registry/rbac/{role,clusterrole,rolebinding,clusterrolebinding}/policybased/storage.go` and
//! `pkg/registry/rbac/escalation_check.go`, v1.36.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::k8s::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef};
use rkube_apimachinery::gvk::GroupResource;
use rkube_apimachinery::quote::{quote, quote_list};
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};
use serde_json::{Value, json};

use super::{Objects, Plugin, forbidden, object, without_empty};
use crate::auth::basic::MASTERS;
use crate::auth::{Attributes as Question, Authorizer};
use crate::rbac::authorizer::compile_live;
use crate::rbac::{Subjects, rule};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) struct RoleEscalation {
    objects: Objects,
    authorizer: Arc<dyn Authorizer>,
}

impl RoleEscalation {
    pub(super) fn new(objects: Objects, authorizer: Arc<dyn Authorizer>) -> Self {
        Self { objects, authorizer }
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let row = attributes.resource.clone();
        let is_master = attributes.context.user.groups.iter().any(|group| group == MASTERS);
        if row.group != GROUP || is_master || changes_only_ownership(attributes)? {
            return Ok(());
        }
        match row.plural.as_ref() {
            "roles" => {
                let rules = object!(attributes, Role).rules.clone().unwrap_or_default();
                self.role(attributes, &rules, false).await
            }
            "clusterroles" => {
                let role = object!(attributes, ClusterRole);
                let rules = role.rules.clone().unwrap_or_default();
                let mut aggregates = has_selectors(role);
                if let Some(old) = attributes.old_object.clone() {
                    aggregates |= has_selectors(old.typed::<ClusterRole>().map_err(super::not_convertible)?.as_ref());
                }
                self.role(attributes, &rules, aggregates).await
            }
            "rolebindings" => {
                let role = object!(attributes, RoleBinding).role_ref.clone();
                self.binding(attributes, role).await
            }
            "clusterrolebindings" => {
                let role = object!(attributes, ClusterRoleBinding).role_ref.clone();
                self.binding(attributes, role).await
            }
            _ => Ok(()),
        }
    }

    async fn role(&self, attributes: &mut Attributes, rules: &[PolicyRule], aggregates: bool) -> Result<(), ApiStatus> {
        let row = attributes.resource.clone();
        // A new role has no name yet when its writer is authorized.
        let name = if attributes.operation == Operation::Create { "" } else { &attributes.name };
        if self.may(attributes, "escalate", GROUP, &row.plural, name).await {
            return Ok(());
        }
        self.confirm(attributes, rules).await?;
        if !aggregates {
            return Ok(());
        }
        // It can collect anything.
        let text = "must have cluster-admin privileges to use the aggregationRule";
        match self.confirm(attributes, &everything()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(forbidden(attributes, text)),
        }
    }

    async fn binding(&self, attributes: &mut Attributes, role: RoleRef) -> Result<(), ApiStatus> {
        let group = role.api_group.as_deref().unwrap_or(GROUP);
        let plural = match role.kind.as_str() {
            "ClusterRole" => "clusterroles",
            "Role" => "roles",
            other => return Err(ApiStatus::internal(format!("unsupported role reference kind: {}", quote(other)))),
        };
        if self.may(attributes, "bind", group, plural, &role.name).await {
            return Ok(());
        }
        let rules = match plural {
            "clusterroles" => self.objects.live::<ClusterRole>("", &role.name).await?.map(|role| role.rules.clone()),
            // A cluster-wide binding has no namespace to find a role in.
            _ if attributes.namespace.is_empty() => None,
            _ => self.objects.live::<Role>(&attributes.namespace, &role.name).await?.map(|role| role.rules.clone()),
        };
        let Some(rules) = rules else {
            return Err(ApiStatus::not_found(&GroupResource::new(GROUP, plural), &role.name));
        };
        self.confirm(attributes, &rules.unwrap_or_default()).await
    }

    async fn may(&self, attributes: &Attributes, verb: &str, group: &str, plural: &str, name: &str) -> bool {
        let question = Question {
            user: attributes.context.user.clone(),
            verb: verb.to_owned(),
            is_resource: true,
            group: group.to_owned(),
            version: "*".to_owned(),
            namespace: attributes.namespace.to_string(),
            resource: plural.to_owned(),
            name: name.to_owned(),
            ..Question::default()
        };
        self.authorizer.authorize(&question).await.is_allowed()
    }

    /// Whether the user has all of `rules`, by roles and bindings as they are now.
    async fn confirm(&self, attributes: &mut Attributes, rules: &[PolicyRule]) -> Result<(), ApiStatus> {
        if rule::is_too_large(rules) {
            return Err(forbidden(attributes, "the rules are too many to be compared with those of the user"));
        }
        let policy = compile_live(&self.objects).await?;
        let user = attributes.context.user.clone();
        let owned = policy.rules_for(Subjects { user: &user.name, groups: &user.groups }, &attributes.namespace);
        let missing = rule::uncovered(&owned, rules);
        if missing.is_empty() {
            return Ok(());
        }
        let lines: BTreeSet<String> = rule::merge_verbs(missing).iter().map(rule::compact).collect();
        let text = format!(
            "user {} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            quote(&user.name),
            quote_list(&user.groups),
            lines.into_iter().collect::<Vec<_>>().join("\n")
        );
        Err(forbidden(attributes, text))
    }
}

fn has_selectors(role: &ClusterRole) -> bool {
    let selectors = role.aggregation_rule.as_ref().and_then(|rule| rule.cluster_role_selectors.as_ref());
    selectors.is_some_and(|selectors| !selectors.is_empty())
}

fn everything() -> [PolicyRule; 2] {
    let all = || vec!["*".to_owned()];
    [
        PolicyRule { verbs: all(), api_groups: Some(all()), resources: Some(all()), ..PolicyRule::default() },
        PolicyRule { verbs: all(), non_resource_urls: Some(all()), ..PolicyRule::default() },
    ]
}

/// The garbage collector may take off owners and finalizers of what it may not grant.
fn changes_only_ownership(attributes: &mut Attributes) -> Result<bool, ApiStatus> {
    let (Some(old), Some(new)) = (attributes.old_object.clone(), attributes.object.as_mut()) else {
        return Ok(false);
    };
    let rest = |mut value: Value| {
        for field in ["ownerReferences", "finalizers", "selfLink", "managedFields"] {
            value["metadata"][field] = json!(null);
        }
        without_empty(value)
    };
    let old = old.value().map_err(|error| ApiStatus::internal(format!("reading {}: {error}", old.key)))?;
    Ok(rest(old) == rest(new.value().clone()))
}

impl Plugin for RoleEscalation {
    fn name(&self) -> &'static str {
        "RoleEscalation"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}
