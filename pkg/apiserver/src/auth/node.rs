//! What a node may do: what every kubelet needs, and of secrets and the like only what its pods use.
//!
//! Behaves as `plugin/pkg/auth/authorizer/node/node_authorizer.go`, v1.36.

// Differs from upstream: there is no graph of all references. A node runs some hundred pods, which the watch
// cache finds by `spec.nodeName`; whether one of them uses an object is looked at when it is asked.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::{EnvFromSource, EnvVar, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec};
use rkube_api::k8s::rbac::v1::PolicyRule;
use rkube_api::k8s::storage::v1::VolumeAttachment;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::UserInfo;

use super::{Attributes, Authorizer, Decision, Rules};
use crate::admission::Objects;
use crate::rbac::{Request, bootstrap, rule};

const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node a user is, by name and group.
pub fn node_name(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(USER_PREFIX).filter(|name| !name.is_empty())?;
    user.groups.iter().any(|group| group == GROUP).then_some(name)
}

/// Answers for users that are nodes; has no opinion of others.
pub struct NodeAuthorizer {
    objects: Objects,
    rules: Vec<PolicyRule>,
}

impl NodeAuthorizer {
    pub fn new(objects: Objects) -> Self {
        let role = bootstrap::policy()
            .cluster_roles
            .into_iter()
            .find(|role| role.metadata.name.as_deref() == Some("system:node"));
        Self { objects, rules: role.and_then(|role| role.rules).unwrap_or_default() }
    }

    async fn decide(&self, node: &str, wish: &Attributes) -> Result<bool, ApiStatus> {
        let read = matches!(wish.verb.as_str(), "get" | "list" | "watch");
        let plain = wish.subresource.is_empty();
        match (wish.group.as_str(), wish.resource.as_str()) {
            ("", "secrets") => Ok(read && plain && self.uses(node, wish, uses_secret).await?),
            ("", "configmaps") => Ok(read && plain && self.uses(node, wish, uses_config_map).await?),
            ("", "persistentvolumeclaims") => {
                let verb = (wish.verb == "get" && plain)
                    || (wish.subresource == "status" && matches!(wish.verb.as_str(), "get" | "update" | "patch"));
                Ok(verb && self.uses(node, wish, uses_claim).await?)
            }
            ("", "persistentvolumes") => Ok(wish.verb == "get" && plain && self.uses_volume(node, &wish.name).await?),
            ("", "serviceaccounts") => {
                let verb = (wish.verb == "create" && wish.subresource == "token") || (wish.verb == "get" && plain);
                Ok(verb && self.uses(node, wish, uses_service_account).await?)
            }
            ("storage.k8s.io", "volumeattachments") => {
                let attachment = self.objects.cached_or_live::<VolumeAttachment>("", &wish.name).await?;
                let here = attachment.is_some_and(|attachment| attachment.spec.node_name == node);
                Ok(wish.verb == "get" && plain && here)
            }
            ("storage.k8s.io", "csinodes") => Ok(plain && own(wish, node) && self.by_rule(wish)),
            ("coordination.k8s.io", "leases") => {
                Ok(wish.namespace == LEASE_NAMESPACE && own(wish, node) && self.by_rule(wish))
            }
            ("", "nodes") => Ok(self.node(node, wish)),
            ("", "pods") => self.pod(node, wish).await,
            _ => Ok(self.by_rule(wish)),
        }
    }

    /// Of nodes, only itself is seen and changed.
    fn node(&self, node: &str, wish: &Attributes) -> bool {
        let itself = match wish.verb.as_str() {
            "create" => true,
            "list" | "watch" => wish.name == node || selects(wish, "metadata.name", node),
            _ => wish.name == node,
        };
        itself && self.by_rule(wish)
    }

    /// Of pods, only its own. New ones are mirrors of what it runs; admission checks that.
    async fn pod(&self, node: &str, wish: &Attributes) -> Result<bool, ApiStatus> {
        let allowed = match wish.verb.as_str() {
            "create" if wish.subresource.is_empty() => true,
            "list" | "watch" if wish.name.is_empty() => selects(wish, "spec.nodeName", node),
            _ => {
                let pod = self.objects.cached_or_live::<Pod>(&wish.namespace, &wish.name).await?;
                // A pod that is gone is told to be gone.
                pod.is_none_or(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node))
            }
        };
        Ok(allowed && self.by_rule(wish))
    }

    fn by_rule(&self, wish: &Attributes) -> bool {
        let request = Request::Resource {
            verb: &wish.verb,
            group: &wish.group,
            resource: &wish.resource,
            subresource: &wish.subresource,
            namespace: &wish.namespace,
            name: &wish.name,
        };
        self.rules.iter().any(|rule| rule::allows(rule, &request))
    }

    async fn uses(
        &self,
        node: &str,
        wish: &Attributes,
        uses: fn(&PodSpec, &Pod, &str) -> bool,
    ) -> Result<bool, ApiStatus> {
        if wish.name.is_empty() || wish.namespace.is_empty() {
            return Ok(false);
        }
        let pods = self.objects.select::<Pod>(&wish.namespace, &format!("spec.nodeName={node}")).await?;
        Ok(pods.iter().any(|pod| {
            let is_mirror =
                pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"));
            // Whoever can make mirror pods could read anything by naming it in one.
            !is_mirror && pod.spec.as_ref().is_some_and(|spec| uses(spec, pod, &wish.name))
        }))
    }

    /// A volume is used through the claim it is bound to.
    async fn uses_volume(&self, node: &str, name: &str) -> Result<bool, ApiStatus> {
        let Some(volume) = self.objects.cached_or_live::<PersistentVolume>("", name).await? else { return Ok(false) };
        let Some(claim) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return Ok(false) };
        let (Some(namespace), Some(claim)) = (&claim.namespace, &claim.name) else { return Ok(false) };
        let bound = self.objects.cached_or_live::<PersistentVolumeClaim>(namespace, claim).await?;
        let is_bound =
            bound.is_some_and(|claim| claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()) == Some(name));
        let wish = Attributes { namespace: namespace.clone(), name: claim.clone(), ..Attributes::default() };
        Ok(is_bound && self.uses(node, &wish, uses_claim).await?)
    }
}

/// A named object must be the node's own; a new one is checked by admission.
fn own(wish: &Attributes, node: &str) -> bool {
    wish.name == node || (wish.verb == "create" && wish.name.is_empty())
}

fn selects(wish: &Attributes, field: &str, value: &str) -> bool {
    wish.field_selector.split(',').any(|term| {
        let (name, wanted) = term.split_once('=').unwrap_or((term, ""));
        name == field && wanted.trim_start_matches('=') == value
    })
}

/// Environments of all containers.
fn environments(spec: &PodSpec) -> impl Iterator<Item = (&[EnvVar], &[EnvFromSource])> {
    let regular = spec.init_containers.iter().flatten().chain(&spec.containers);
    let regular = regular.map(|c| (c.env.as_deref().unwrap_or_default(), c.env_from.as_deref().unwrap_or_default()));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    regular.chain(ephemeral.map(|c| (c.env.as_deref().unwrap_or_default(), c.env_from.as_deref().unwrap_or_default())))
}

fn uses_secret(spec: &PodSpec, _: &Pod, name: &str) -> bool {
    let in_environment = environments(spec).any(|(env, env_from)| {
        env.iter().any(|variable| {
            let source = variable.value_from.as_ref().and_then(|source| source.secret_key_ref.as_ref());
            source.is_some_and(|secret| secret.name == name)
        }) || env_from.iter().any(|source| source.secret_ref.as_ref().is_some_and(|secret| secret.name == name))
    });
    let in_volumes = spec.volumes.iter().flatten().any(|volume| {
        let direct = volume.secret.as_ref().and_then(|secret| secret.secret_name.as_deref()) == Some(name);
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        let mut projected = projected.filter_map(|source| source.secret.as_ref());
        let csi = volume.csi.as_ref().and_then(|csi| csi.node_publish_secret_ref.as_ref());
        direct || projected.any(|secret| secret.name == name) || csi.is_some_and(|secret| secret.name == name)
    });
    let for_images = spec.image_pull_secrets.iter().flatten().any(|secret| secret.name == name);
    in_environment || in_volumes || for_images
}

fn uses_config_map(spec: &PodSpec, _: &Pod, name: &str) -> bool {
    let in_environment = environments(spec).any(|(env, env_from)| {
        env.iter().any(|variable| {
            let source = variable.value_from.as_ref().and_then(|source| source.config_map_key_ref.as_ref());
            source.is_some_and(|map| map.name == name)
        }) || env_from.iter().any(|source| source.config_map_ref.as_ref().is_some_and(|map| map.name == name))
    });
    let in_volumes = spec.volumes.iter().flatten().any(|volume| {
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        let mut projected = projected.filter_map(|source| source.config_map.as_ref());
        volume.config_map.as_ref().is_some_and(|map| map.name == name) || projected.any(|map| map.name == name)
    });
    in_environment || in_volumes
}

fn uses_claim(spec: &PodSpec, pod: &Pod, name: &str) -> bool {
    spec.volumes.iter().flatten().any(|volume| {
        let direct = volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.claim_name == name);
        // The claim of an ephemeral volume is named after its pod.
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        direct || (volume.ephemeral.is_some() && name == format!("{pod}-{}", volume.name))
    })
}

fn uses_service_account(spec: &PodSpec, _: &Pod, name: &str) -> bool {
    spec.service_account_name.as_deref() == Some(name)
}

impl Authorizer for NodeAuthorizer {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision> {
        Box::pin(async move {
            let none = |reason: String| Decision::NoOpinion { reason };
            let Some(node) = node_name(&attributes.user).filter(|_| attributes.is_resource) else {
                return none(String::new());
            };
            match self.decide(node, attributes).await {
                Ok(true) => Decision::Allow { reason: String::new() },
                Ok(false) => none(format!("no relationship found between node '{node}' and this object")),
                Err(error) => none(error.message().to_owned()),
            }
        })
    }

    fn rules<'a>(&'a self, _: &'a UserInfo, _: &'a str) -> BoxFuture<'a, Rules> {
        // What a node may do depends on its pods and cannot be listed.
        Box::pin(std::future::ready(Rules { incomplete: true, ..Rules::default() }))
    }
}

/// Asks one authorizer after another until one decides.
pub struct Union(pub Vec<Arc<dyn Authorizer>>);

impl Authorizer for Union {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision> {
        Box::pin(async move {
            let mut reasons = Vec::new();
            for authorizer in &self.0 {
                match authorizer.authorize(attributes).await {
                    Decision::NoOpinion { reason } if reason.is_empty() => {}
                    Decision::NoOpinion { reason } => reasons.push(reason),
                    decided => return decided,
                }
            }
            Decision::NoOpinion { reason: reasons.join("\n") }
        })
    }

    fn rules<'a>(&'a self, user: &'a UserInfo, namespace: &'a str) -> BoxFuture<'a, Rules> {
        Box::pin(async move {
            let mut all = Rules::default();
            for authorizer in &self.0 {
                let rules = authorizer.rules(user, namespace).await;
                all.resource_rules.extend(rules.resource_rules);
                all.non_resource_rules.extend(rules.non_resource_rules);
                all.incomplete |= rules.incomplete;
            }
            all
        })
    }
}
