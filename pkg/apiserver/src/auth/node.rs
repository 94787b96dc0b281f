//! What a node may do: what every kubelet needs, and of secrets and the like only what its pods use.
//!
//! Behaves as `plugin/pkg/auth/authorizer/node/{node_authorizer,graph}.go`, v1.36.

// Differs from upstream: there is no graph of all references. A node runs some hundred pods, which the watch
// cache finds by `spec.nodeName`; whether one of them uses an object is looked at when it is asked.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use rkube_api::k8s::rbac::v1::PolicyRule;
use rkube_api::k8s::resource::v1::ResourceSlice;
use rkube_api::k8s::storage::v1::VolumeAttachment;
use rkube_apimachinery::quote::quote;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::UserInfo;

use super::{Attributes, Authorizer, Decision, Rules};
use crate::admission::Objects;
use crate::rbac::{Request, bootstrap, rule};
use crate::references;

const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";
pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node a user is, by name and group. The name may be empty: a node nobody can tell from others.
pub fn node_identity(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(USER_PREFIX)?;
    user.groups.iter().any(|group| group == GROUP).then_some(name)
}

/// Answers for users that are nodes; has no opinion of others.
pub struct NodeAuthorizer {
    objects: Objects,
    rules: Vec<PolicyRule>,
}

/// `Err` is why not, for the answer; the error of a lookup counts as a denial too.
type Verdict = Result<(), String>;

fn allowed_if(is: bool, otherwise: &str) -> Verdict {
    if is { Ok(()) } else { Err(otherwise.to_owned()) }
}

impl NodeAuthorizer {
    pub fn new(objects: Objects) -> Self {
        let role = bootstrap::policy()
            .cluster_roles
            .into_iter()
            .find(|role| role.metadata.name.as_deref() == Some("system:node"));
        Self { objects, rules: role.and_then(|role| role.rules).unwrap_or_default() }
    }

    async fn decide(&self, node: &str, wish: &Attributes) -> Verdict {
        let plain = wish.subresource.is_empty();
        let verb = wish.verb.as_str();
        let is_read = matches!(verb, "get" | "list" | "watch");
        match (wish.group.as_str(), wish.resource.as_str()) {
            ("", "secrets" | "configmaps") => self.read(node, wish, is_read).await,
            ("", "persistentvolumeclaims") if wish.subresource == "status" => {
                allowed_if(matches!(verb, "update" | "patch"), "can only get/update/patch this type")?;
                self.related(node, wish).await
            }
            ("", "persistentvolumeclaims" | "persistentvolumes")
            | ("resource.k8s.io", "resourceclaims")
            | ("storage.k8s.io", "volumeattachments") => self.get(node, wish).await,
            ("", "serviceaccounts") if verb == "get" && plain => self.read(node, wish, is_read).await,
            ("", "serviceaccounts") => {
                let is_create = verb == "create" && !wish.name.is_empty();
                allowed_if(is_create, "can only create tokens for individual service accounts")?;
                allowed_if(wish.subresource == "token", "can only create token subresource of serviceaccount")?;
                self.related(node, wish).await
            }
            ("coordination.k8s.io", "leases") => lease(node, wish),
            ("storage.k8s.io", "csinodes") => csi_node(node, wish),
            ("resource.k8s.io", "resourceslices") => self.resource_slice(node, wish).await,
            ("", "nodes") => own_node(node, wish),
            ("", "pods") => self.pod(node, wish).await,
            _ => allowed_if(self.by_rule(wish), ""),
        }
    }

    /// Reads of one named object in a namespace.
    async fn read(&self, node: &str, wish: &Attributes, is_read: bool) -> Verdict {
        allowed_if(is_read, "can only read resources of this type")?;
        allowed_if(wish.subresource.is_empty(), "cannot read subresource")?;
        allowed_if(!wish.namespace.is_empty(), "can only read namespaced object of this type")?;
        self.related(node, wish).await
    }

    async fn get(&self, node: &str, wish: &Attributes) -> Verdict {
        allowed_if(wish.verb == "get", "can only get individual resources of this type")?;
        allowed_if(wish.subresource.is_empty(), "cannot get subresource")?;
        self.related(node, wish).await
    }

    /// Whether something of the node leads to the object.
    async fn related(&self, node: &str, wish: &Attributes) -> Verdict {
        allowed_if(!wish.name.is_empty(), "No Object name found")?;
        let related = self.is_related(node, wish).await.unwrap_or(false);
        allowed_if(related, &format!("no relationship found between node '{node}' and this object"))
    }

    async fn is_related(&self, node: &str, wish: &Attributes) -> Result<bool, ApiStatus> {
        let name = wish.name.as_str();
        let uses = |find: fn(&Pod, &str) -> bool| self.any_pod(node, &wish.namespace, move |pod| find(pod, name));
        Ok(match (wish.group.as_str(), wish.resource.as_str()) {
            ("", "secrets") => {
                uses(|pod, name| pod.spec.iter().any(|spec| references::secrets(spec).any(|known| known == name)))
                    .await?
                    || self.mounts_with(node, &wish.namespace, name).await?
            }
            ("", "configmaps") => {
                uses(|pod, name| pod.spec.iter().any(|spec| references::config_maps(spec).any(|known| known == name)))
                    .await?
            }
            ("", "serviceaccounts") => {
                uses(|pod, name| pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()) == Some(name))
                    .await?
            }
            ("", "persistentvolumeclaims") => {
                uses(|pod, name| references::claims(pod).any(|known| known == name)).await?
            }
            ("resource.k8s.io", "resourceclaims") => {
                uses(|pod, name| references::resource_claims(pod).any(|known| known == name)).await?
            }
            ("", "persistentvolumes") => {
                let volume = self.objects.cached_or_live::<PersistentVolume>("", name).await?;
                match volume.as_deref().and_then(claim_of) {
                    Some((namespace, claim)) => self.uses_claim(node, namespace, claim).await?,
                    None => false,
                }
            }
            ("storage.k8s.io", "volumeattachments") => {
                let attachment = self.objects.cached_or_live::<VolumeAttachment>("", name).await?;
                attachment.is_some_and(|attachment| attachment.spec.node_name == node)
            }
            ("resource.k8s.io", "resourceslices") => {
                let slice = self.objects.cached_or_live::<ResourceSlice>("", name).await?;
                slice.is_some_and(|slice| slice.spec.node_name.as_deref() == Some(node))
            }
            ("", "pods") => {
                let pod = self.objects.cached_or_live::<Pod>(&wish.namespace, name).await?;
                pod.is_some_and(|pod| references::node_of(&pod) == node)
            }
            _ => false,
        })
    }

    /// Whether one of the node's pods is so. Mirror pods do not count: whoever can make them could read
    /// anything by naming it in one.
    async fn any_pod(&self, node: &str, namespace: &str, is: impl Fn(&Pod) -> bool) -> Result<bool, ApiStatus> {
        Ok(self.pods(node, namespace).await?.iter().any(|pod| is(pod)))
    }

    async fn pods(&self, node: &str, namespace: &str) -> Result<Vec<Arc<Pod>>, ApiStatus> {
        let mut pods = self.objects.select::<Pod>(namespace, &format!("spec.nodeName={node}")).await?;
        pods.retain(|pod| !references::is_mirror(pod));
        Ok(pods)
    }

    async fn uses_claim(&self, node: &str, namespace: &str, claim: &str) -> Result<bool, ApiStatus> {
        self.any_pod(node, namespace, |pod| references::claims(pod).any(|known| known == claim)).await
    }

    /// Whether a volume that is bound to a claim of the node's pods is mounted with the secret.
    async fn mounts_with(&self, node: &str, namespace: &str, secret: &str) -> Result<bool, ApiStatus> {
        for pod in self.pods(node, "").await? {
            let of_pod = pod.metadata.namespace.as_deref().unwrap_or_default();
            for name in references::claims(&pod) {
                let claim = self.objects.cached::<PersistentVolumeClaim>(of_pod, &name).await?;
                let volume = claim.as_ref().and_then(|claim| claim.spec.as_ref()?.volume_name.as_deref());
                let Some(volume) = volume.filter(|volume| !volume.is_empty()) else { continue };
                let Some(volume) = self.objects.cached::<PersistentVolume>("", volume).await? else { continue };
                let is_bound = claim_of(&volume) == Some((of_pod, name.as_str()));
                let mut secrets = references::volume_secrets(&volume).into_iter();
                if is_bound && secrets.any(|known| known.0 == namespace && known.1 == secret) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// A new slice's node is checked by admission, which sees the object.
    async fn resource_slice(&self, node: &str, wish: &Attributes) -> Verdict {
        allowed_if(wish.subresource.is_empty(), "cannot authorize ResourceSlice subresources")?;
        match wish.verb.as_str() {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.related(node, wish).await,
            "watch" | "list" | "deletecollection" => allowed_if(
                selects(wish, "spec.nodeName", node),
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, \
                      patch, delete, deletecollection"
                .to_owned()),
        }
    }

    /// Of pods, only its own. Which ones it makes, deletes and evicts is checked by admission.
    async fn pod(&self, node: &str, wish: &Attributes) -> Verdict {
        match (wish.subresource.as_str(), wish.verb.as_str()) {
            ("", "get") => self.get(node, wish).await,
            ("", "list" | "watch") if selects(wish, "spec.nodeName", node) => Ok(()),
            ("", "list" | "watch") if !wish.name.is_empty() => self.related(node, wish).await,
            ("", "list" | "watch") => Err("can only list/watch pods with spec.nodeName field selector".to_owned()),
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => Err(String::new()),
        }
    }

    fn by_rule(&self, wish: &Attributes) -> bool {
        let request = if wish.is_resource {
            Request::Resource {
                verb: &wish.verb,
                group: &wish.group,
                resource: &wish.resource,
                subresource: &wish.subresource,
                namespace: &wish.namespace,
                name: &wish.name,
            }
        } else {
            Request::Path { verb: &wish.verb, path: &wish.path }
        };
        self.rules.iter().any(|rule| rule::allows(rule, &request))
    }
}

/// Its own lease. The name of a new one is checked by admission.
fn lease(node: &str, wish: &Attributes) -> Verdict {
    let verb = wish.verb.as_str();
    let is_known = matches!(verb, "get" | "create" | "update" | "patch" | "delete");
    allowed_if(is_known, "can only get, create, update, patch, or delete a node lease")?;
    let text = format!("can only access leases in the {} system namespace", quote(LEASE_NAMESPACE));
    allowed_if(wish.namespace == LEASE_NAMESPACE, &text)?;
    let is_own = verb == "create" || wish.name == node;
    allowed_if(is_own, "can only access node lease with the same name as the requesting node")
}

fn csi_node(node: &str, wish: &Attributes) -> Verdict {
    let verb = wish.verb.as_str();
    let is_known = matches!(verb, "get" | "create" | "update" | "patch" | "delete");
    allowed_if(is_known, "can only get, create, update, patch, or delete a CSINode")?;
    allowed_if(wish.subresource.is_empty(), "cannot authorize CSINode subresources")?;
    let is_own = verb == "create" || wish.name == node;
    allowed_if(is_own, "can only access CSINode with the same name as the requesting node")
}

/// Of nodes, only itself is seen, also before it is there; that only itself is changed is checked by admission.
fn own_node(node: &str, wish: &Attributes) -> Verdict {
    match (wish.subresource.as_str(), wish.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if wish.name == node => Ok(()),
        ("", "get" | "list" | "watch") if wish.name.is_empty() => {
            Err(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            Err(format!("node '{node}' cannot read '{}', only its own Node object", wish.name))
        }
        _ => Err(String::new()),
    }
}

/// Namespace and name of the claim a volume is for.
fn claim_of(volume: &PersistentVolume) -> Option<(&str, &str)> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some((claim.namespace.as_deref()?, claim.name.as_deref()?))
}

fn selects(wish: &Attributes, field: &str, value: &str) -> bool {
    wish.field_selector.split(',').any(|term| {
        let (name, wanted) = term.split_once('=').unwrap_or((term, ""));
        name.trim() == field && wanted.strip_prefix('=').unwrap_or(wanted).trim() == value
    })
}

impl Authorizer for NodeAuthorizer {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision> {
        Box::pin(async move {
            let none = |reason: String| Decision::NoOpinion { reason };
            let Some(node) = node_identity(&attributes.user) else { return none(String::new()) };
            if node.is_empty() {
                return none(format!("unknown node for user {}", quote(&attributes.user.name)));
            }
            let verdict = if attributes.is_resource {
                self.decide(node, attributes).await
            } else {
                allowed_if(self.by_rule(attributes), "")
            };
            match verdict {
                Ok(()) => Decision::Allow { reason: String::new() },
                Err(reason) => none(reason),
            }
        })
    }

    fn rules<'a>(&'a self, user: &'a UserInfo, _: &'a str) -> BoxFuture<'a, Rules> {
        // What a node may do depends on its pods and cannot be listed.
        let evaluation_error = node_identity(user).map(|_| "node authorizer does not support user rule resolution");
        let rules = match evaluation_error {
            Some(error) => Rules { incomplete: true, errors: vec![error.to_owned()], ..Rules::default() },
            None => Rules::default(),
        };
        Box::pin(std::future::ready(rules))
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
                all.errors.extend(rules.errors);
            }
            all
        })
    }
}
