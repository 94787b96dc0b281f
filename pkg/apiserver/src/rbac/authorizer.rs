//! The authorizer over the cluster's roles and bindings: reads them once, follows them by watch, and
//! compiles a new [`Policy`] when one changes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use rkube_api::Kind;
use rkube_api::k8s::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_apimachinery::status::ApiStatus;
use rkube_apimachinery::task;
use rkube_registry::options::ListOptions;
use rkube_registry::{Registry, RequestContext, Store, UserInfo};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info_span, warn};

use super::policy::{Policy, Request, Subjects};
use crate::admission::Objects;
use crate::auth::basic::MASTERS;
use crate::auth::{Attributes, Authorizer, Decision, Rules};

/// Between a watch that failed and the next.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Answers from memory. Members of `system:masters` may do everything, whatever the policy says.
pub struct RbacAuthorizer {
    policy: Arc<ArcSwap<Policy>>,
}

impl RbacAuthorizer {
    /// Reads the policy and follows it until `stop`.
    pub async fn start(
        registry: &Arc<Registry>,
        clock: SharedClock,
        stop: CancellationToken,
    ) -> Result<Self, ApiStatus> {
        let objects = Objects::new(Arc::clone(registry));
        let policy = Arc::new(ArcSwap::from_pointee(compile(&objects).await?));
        let changed = Arc::new(Notify::new());
        for store in stores(registry)? {
            let (changed, clock, stop) = (Arc::clone(&changed), clock.clone(), stop.clone());
            task::spawn(info_span!("rbac-watch", resource = %store.resource().plural), async move {
                tokio::select! { () = follow(store, changed, clock) => {}, () = stop.cancelled() => {} }
            });
        }
        let current = Arc::clone(&policy);
        task::spawn(info_span!("rbac-policy"), async move {
            loop {
                // One permit is kept while compiling, so a change meanwhile is not lost and many are one.
                tokio::select! { () = changed.notified() => {}, () = stop.cancelled() => return }
                match compile(&objects).await {
                    Ok(policy) => current.store(Arc::new(policy)),
                    Err(error) => {
                        warn!(%error, "Could not read roles and bindings");
                        clock.sleep(RETRY_DELAY).await;
                        changed.notify_one();
                    }
                }
            }
        });
        Ok(Self { policy })
    }
}

async fn compile(objects: &Objects) -> Result<Policy, ApiStatus> {
    Ok(build(
        &objects.list::<Role>("").await?,
        &objects.list::<ClusterRole>("").await?,
        &objects.list::<RoleBinding>("").await?,
        &objects.list::<ClusterRoleBinding>("").await?,
    ))
}

/// What roles and bindings say at this moment, those the authorizer has not heard of yet included: a role made
/// just now can be bound.
pub(crate) async fn compile_live(objects: &Objects) -> Result<Policy, ApiStatus> {
    Ok(build(
        &objects.list_live::<Role>("").await?,
        &objects.list_live::<ClusterRole>("").await?,
        &objects.list_live::<RoleBinding>("").await?,
        &objects.list_live::<ClusterRoleBinding>("").await?,
    ))
}

fn build(
    roles: &[Arc<Role>],
    cluster_roles: &[Arc<ClusterRole>],
    role_bindings: &[Arc<RoleBinding>],
    cluster_role_bindings: &[Arc<ClusterRoleBinding>],
) -> Policy {
    Policy::build(
        roles.iter().map(AsRef::as_ref),
        cluster_roles.iter().map(AsRef::as_ref),
        role_bindings.iter().map(AsRef::as_ref),
        cluster_role_bindings.iter().map(AsRef::as_ref),
    )
}

fn stores(registry: &Registry) -> Result<Vec<Store>, ApiStatus> {
    [Role::PLURAL, ClusterRole::PLURAL, RoleBinding::PLURAL, ClusterRoleBinding::PLURAL]
        .into_iter()
        .map(|plural| {
            let resource = GroupVersionResource::new(Role::GROUP, Role::VERSION, plural);
            registry.store(&resource).ok_or_else(|| ApiStatus::internal(format!("{resource} is not served")))
        })
        .collect()
}

/// Says that something changed, whenever something did.
async fn follow(store: Store, changed: Arc<Notify>, clock: SharedClock) {
    let context = Arc::new(RequestContext::internal());
    loop {
        let options = ListOptions { watch: true, ..ListOptions::default() };
        match store.watch(&context, "", &options).await {
            Ok(mut watcher) => {
                let mut events = Vec::new();
                while watcher.next_batch(&mut events).await {
                    changed.notify_one();
                }
            }
            Err(error) => warn!(%error, "Could not watch roles and bindings"),
        }
        clock.sleep(RETRY_DELAY).await;
        // Whatever happened while nothing watched.
        changed.notify_one();
    }
}

fn subjects(user: &UserInfo) -> Subjects<'_> {
    Subjects { user: &user.name, groups: &user.groups }
}

impl Authorizer for RbacAuthorizer {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision> {
        let decision = if attributes.user.groups.iter().any(|group| group == MASTERS) {
            Decision::Allow { reason: String::new() }
        } else {
            let request = if attributes.is_resource {
                Request::Resource {
                    verb: &attributes.verb,
                    group: &attributes.group,
                    resource: &attributes.resource,
                    subresource: &attributes.subresource,
                    namespace: &attributes.namespace,
                    name: &attributes.name,
                }
            } else {
                Request::Path { verb: &attributes.verb, path: &attributes.path }
            };
            match self.policy.load().allows(subjects(&attributes.user), &request) {
                Some(reason) => Decision::Allow { reason: format!("RBAC: allowed by {reason}") },
                None => Decision::NoOpinion { reason: String::new() },
            }
        };
        Box::pin(std::future::ready(decision))
    }

    fn rules<'a>(&'a self, user: &'a UserInfo, namespace: &'a str) -> BoxFuture<'a, Rules> {
        let mut own = self.policy.load().rules_for(subjects(user), namespace);
        if user.groups.iter().any(|group| group == MASTERS) {
            let all = || Some(vec!["*".to_owned()]);
            let verbs = vec!["*".to_owned()];
            own.push(PolicyRule { verbs: verbs.clone(), api_groups: all(), resources: all(), ..PolicyRule::default() });
            own.push(PolicyRule { verbs, non_resource_urls: all(), ..PolicyRule::default() });
        }
        let (paths, resources): (Vec<_>, Vec<_>) = own.iter().partition(|rule| rule.non_resource_urls.is_some());
        let rules = Rules {
            resource_rules: resources.into_iter().map(resource_rule).collect(),
            non_resource_rules: paths
                .into_iter()
                .map(|rule| json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls }))
                .collect(),
            ..Rules::default()
        };
        Box::pin(std::future::ready(rules))
    }
}

fn resource_rule(rule: &PolicyRule) -> Value {
    let mut value = json!({ "verbs": rule.verbs });
    let fields =
        [("apiGroups", &rule.api_groups), ("resources", &rule.resources), ("resourceNames", &rule.resource_names)];
    for (name, list) in fields {
        if let Some(list) = list {
            value[name] = json!(list);
        }
    }
    value
}
