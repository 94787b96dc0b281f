//! What the node authorizer cannot see because it looks at no objects: that a node makes mirror pods of its own
//! and no others, changes its own Node and not the labels and taints by which others steer pods, asks for tokens of
//! its own pods, and so on.
//!
//! Behaves as `plugin/pkg/admission/noderestriction/admission.go`, v1.36.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::k8s::certificates::v1::CertificateSigningRequest;
use rkube_api::k8s::core::v1::{Node, PersistentVolumeClaim, Pod};
use rkube_api::k8s::resource::v1::ResourceSlice;
use rkube_api::meta::pkg::apis::meta::v1::OwnerReference;
use rkube_apimachinery::gvk::GroupResource;
use rkube_apimachinery::quote::quote;
use rkube_apimachinery::status::ApiStatus;
use rkube_pki::csr::SigningRequest;
use rkube_registry::{Attributes, Operation};
use serde_json::Value;

use super::{Objects, Plugin, forbidden, not_convertible, object, token_audience, without_empty};
use crate::auth::Authorizer;
use crate::auth::node::{LEASE_NAMESPACE, node_identity};
use crate::references;

const MIRROR_ONLY: &str = "can only create mirror pods";
const NODE_RESTRICTION: &str = "node-restriction.kubernetes.io";
/// Labels of the `kubernetes.io` and `k8s.io` domains that kubelets set on their own nodes.
const KUBELET_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains in which kubelets may set any label, those below them included.
const KUBELET_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Signers of kubelets' own certificates.
const KUBELET_SIGNERS: [&str; 2] = ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];

pub(super) struct NodeRestriction {
    objects: Objects,
    authorizer: Arc<dyn Authorizer>,
}

impl NodeRestriction {
    pub(super) fn new(objects: Objects, authorizer: Arc<dyn Authorizer>) -> Self {
        Self { objects, authorizer }
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let user = attributes.context.user.clone();
        let Some(node) = node_identity(&user) else { return Ok(()) };
        if node.is_empty() {
            let text = format!("could not determine node from user {}", quote(&user.name));
            return Err(forbidden(attributes, text));
        }
        let row = attributes.resource.clone();
        let subresource = attributes.subresource.clone();
        match (row.group.as_ref(), row.plural.as_ref(), subresource.as_str()) {
            ("", "pods", "") => self.pod(node, attributes).await,
            ("", "pods", "status") => pod_status(node, attributes),
            ("", "pods", "eviction") => self.eviction(node, attributes).await,
            ("", "pods", other) => {
                let only = "only 'status' and 'eviction' are allowed";
                Err(forbidden(attributes, format!("unexpected pod subresource {}, {only}", quote(other))))
            }
            ("", "nodes", _) => own_node(node, attributes),
            ("", "persistentvolumeclaims", "status") => claim_status(node, attributes),
            ("", "persistentvolumeclaims", _) => Err(forbidden(attributes, "may only update PVC status")),
            ("", "serviceaccounts", "token") => self.token(node, attributes).await,
            ("coordination.k8s.io", "leases", _) => {
                if &*attributes.namespace != LEASE_NAMESPACE {
                    let text = format!("can only access leases in the {} system namespace", quote(LEASE_NAMESPACE));
                    return Err(forbidden(attributes, text));
                }
                named_like(node, attributes, "node lease")
            }
            ("storage.k8s.io", "csinodes", _) => named_like(node, attributes, "CSINode"),
            ("resource.k8s.io", "resourceslices", _) => resource_slice(node, attributes),
            ("certificates.k8s.io", "certificatesigningrequests", _) => signing_request(node, attributes),
            _ => Ok(()),
        }
    }

    async fn pod(&self, node: &str, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        match attributes.operation {
            Operation::Create => self.create_pod(node, attributes).await,
            Operation::Delete => {
                let Some(old) = attributes.old_object.clone() else { return Ok(()) };
                let pod = old.typed::<Pod>().map_err(not_convertible)?;
                if references::node_of(&pod) == node {
                    return Ok(());
                }
                let only = "can only delete pods with spec.nodeName set to itself";
                Err(forbidden(attributes, format!("node {} {only}", quote(node))))
            }
            other => {
                let operation = quote(other.name());
                let text = format!(
                    "unexpected operation {operation}, node {} can only create and delete mirror pods",
                    quote(node)
                );
                Err(forbidden(attributes, text))
            }
        }
    }

    async fn create_pod(&self, node: &str, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let pod = object!(attributes, Pod).clone();
        if let Err(text) = check_mirror(node, &pod) {
            return Err(forbidden(attributes, text));
        }
        let owner = pod.metadata.owner_references.iter().flatten().next();
        let uid = owner.map(|owner| owner.uid.clone()).unwrap_or_default();
        let Some(known) = self.objects.cached_or_live::<Node>("", node).await? else {
            return Err(ApiStatus::not_found(&GroupResource::new("", "nodes"), node));
        };
        let known = known.metadata.uid.clone().unwrap_or_default();
        if uid != known {
            return Err(forbidden(attributes, format!("node {node} UID mismatch: expected {uid} got {known}")));
        }
        match references::api_object(&pod) {
            Ok(None) => Ok(()),
            Ok(Some(kind)) => {
                Err(forbidden(attributes, format!("node {} can not create pods that reference {kind}", quote(node))))
            }
            Err(text) => Err(forbidden(attributes, format!("error checking mirror pod for API references: {text}"))),
        }
    }

    async fn eviction(&self, node: &str, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        if attributes.operation != Operation::Create {
            return Err(forbidden(attributes, format!("unexpected operation {}", attributes.operation.name())));
        }
        let mut name = attributes.name.to_string();
        if name.is_empty() {
            let value = attributes.object.as_mut().map(|object| object.value().clone()).unwrap_or_default();
            name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        }
        if name.is_empty() {
            return Err(forbidden(attributes, "could not determine pod from request data"));
        }
        let Some(pod) = self.objects.cached_or_live::<Pod>(&attributes.namespace, &name).await? else {
            return Err(ApiStatus::not_found(&GroupResource::new("", "pods"), &name));
        };
        if references::node_of(&pod) == node {
            return Ok(());
        }
        Err(forbidden(attributes, format!("node {node} can only evict pods with spec.nodeName set to itself")))
    }

    /// A token must be bound to a pod of the node, and be for an audience the pod has use for.
    async fn token(&self, node: &str, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        if attributes.operation != Operation::Create {
            return Ok(());
        }
        let request = attributes.object.as_mut().map(|object| object.value().clone()).unwrap_or_default();
        let reference = &request["spec"]["boundObjectRef"];
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
            return Err(forbidden(attributes, "node requested token not bound to a pod"));
        }
        let uid = text("uid");
        if uid.is_empty() {
            return Err(forbidden(attributes, "node requested token with a pod binding without a uid"));
        }
        let Some(pod) = self.objects.cached_or_live::<Pod>(&attributes.namespace, text("name")).await? else {
            return Err(ApiStatus::not_found(&GroupResource::new("", "pods"), text("name")));
        };
        if pod.metadata.uid.as_deref() != Some(uid) {
            let text = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
                 been deleted and then recreated"
            );
            return Err(forbidden(attributes, text));
        }
        if references::node_of(&pod) != node {
            return Err(forbidden(attributes, "node requested token bound to a pod scheduled on a different node"));
        }
        let audiences = request["spec"]["audiences"].as_array().map(Vec::as_slice).unwrap_or_default();
        let audiences: Vec<&str> = audiences.iter().filter_map(Value::as_str).collect();
        let asked = token_audience::Asked { pod: &pod, audiences: &audiences, attributes };
        let outcome = token_audience::check(&self.objects, self.authorizer.as_ref(), &asked).await;
        outcome.map_err(|text| forbidden(attributes, text))
    }
}

/// What a node's new pod must be, but for the uid of its owner.
fn check_mirror(node: &str, pod: &Pod) -> Result<(), String> {
    let name = quote(node);
    if !references::is_mirror(pod) {
        let annotation = quote(references::MIRROR_POD);
        return Err(format!("pod does not have {annotation} annotation, node {name} {MIRROR_ONLY}"));
    }
    if references::node_of(pod) != node {
        return Err(format!("node {name} can only create pods with spec.nodeName set to itself"));
    }
    let owners: Vec<&OwnerReference> = pod.metadata.owner_references.iter().flatten().collect();
    let owner = match owners.as_slice() {
        [owner] => owner,
        [] => return Err(format!("node {name} can only create pods with an owner reference set to itself")),
        _ => return Err(format!("node {name} can only create pods with a single owner reference set to itself")),
    };
    if owner.api_version != "v1" || owner.kind != "Node" || owner.name != node {
        return Err(format!("node {name} can only create pods with an owner reference set to itself"));
    }
    if owner.controller != Some(true) {
        return Err(format!("node {name} can only create pods with a controller owner reference set to itself"));
    }
    if owner.block_owner_deletion == Some(true) {
        return Err(format!("node {name} must not set blockOwnerDeletion on an owner reference"));
    }
    Ok(())
}

fn pod_status(node: &str, attributes: &mut Attributes) -> Result<(), ApiStatus> {
    let old = attributes.old_object.clone().filter(|_| attributes.operation == Operation::Update);
    let Some(old) = old else {
        let operation = quote(attributes.operation.name());
        return Err(forbidden(attributes, format!("unexpected operation {operation}")));
    };
    let old = old.typed::<Pod>().map_err(not_convertible)?;
    let new = object!(attributes, Pod);
    let (new_status, old_status) = (new.status.clone().unwrap_or_default(), old.status.clone().unwrap_or_default());
    let name = quote(node);
    let denied = if references::node_of(&old) != node {
        format!("node {name} can only update pod status for pods with spec.nodeName set to itself")
    } else if !equal_or_empty(new.metadata.labels.as_ref(), old.metadata.labels.as_ref()) {
        format!("node {name} cannot update labels through pod status")
    } else if new_status.resource_claim_statuses.unwrap_or_default()
        != old_status.resource_claim_statuses.unwrap_or_default()
    {
        format!("node {name} cannot update resource claim statues")
    } else if new_status.extended_resource_claim_status != old_status.extended_resource_claim_status {
        format!("node {name} cannot update extended resource claim status")
    } else {
        return Ok(());
    };
    Err(forbidden(attributes, denied))
}

/// Nothing and an empty map or list are the same.
fn equal_or_empty<T: Default + PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
    let empty = T::default();
    a.unwrap_or(&empty) == b.unwrap_or(&empty)
}

/// Only how large a volume has become, and what is wrong with it.
fn claim_status(node: &str, attributes: &mut Attributes) -> Result<(), ApiStatus> {
    let old = attributes.old_object.clone().filter(|_| attributes.operation == Operation::Update);
    let Some(old) = old else {
        let operation = quote(attributes.operation.name());
        return Err(forbidden(attributes, format!("unexpected operation {operation}")));
    };
    let rest = |claim: &PersistentVolumeClaim| {
        let mut claim = claim.clone();
        claim.metadata.resource_version = None;
        claim.metadata.managed_fields = None;
        if let Some(status) = claim.status.as_mut() {
            status.capacity = None;
            status.conditions = None;
            status.allocated_resource_statuses = None;
            status.allocated_resources = None;
        }
        without_empty(rkube_api::Kind::to_value(&claim))
    };
    let old = rest(old.typed::<PersistentVolumeClaim>().map_err(not_convertible)?.as_ref());
    let new = rest(object!(attributes, PersistentVolumeClaim));
    if old == new {
        return Ok(());
    }
    // Differs from upstream: what follows is the fields, not a diff of them with their values.
    let text = format!(
        "node {} is not allowed to update fields other than status.quantity and status.conditions: {}",
        quote(node),
        differences(&old, &new).join(", ")
    );
    Err(forbidden(attributes, text))
}

/// `metadata.labels` and the like: the paths of two members at which objects differ.
fn differences(old: &Value, new: &Value) -> Vec<String> {
    let mut paths = BTreeSet::new();
    let members = |value: &Value| value.as_object().cloned().unwrap_or_default();
    for first in members(old).keys().chain(members(new).keys()) {
        for second in members(&old[first]).keys().chain(members(&new[first]).keys()) {
            if old[first][second] != new[first][second] {
                paths.insert(format!("{first}.{second}"));
            }
        }
    }
    paths.into_iter().collect()
}

fn own_node(node: &str, attributes: &mut Attributes) -> Result<(), ApiStatus> {
    let name = quote(node);
    if &*attributes.name != node {
        let text = format!("node {name} is not allowed to modify node {}", quote(&attributes.name));
        return Err(forbidden(attributes, text));
    }
    let denied = match (attributes.operation, attributes.old_object.clone()) {
        (Operation::Create, _) => {
            let new = object!(attributes, Node);
            let labels = forbidden_labels(new.metadata.labels.as_ref(), None);
            if new.spec.as_ref().is_some_and(|spec| spec.config_source.is_some()) {
                Some(format!("node {name} is not allowed to create pods with a non-nil configSource"))
            } else if !labels.is_empty() {
                Some(format!("node {name} is not allowed to set the following labels: {}", labels.join(", ")))
            } else {
                None
            }
        }
        (Operation::Update, Some(old)) => {
            let old = old.typed::<Node>().map_err(not_convertible)?;
            changed_node(&name.to_string(), object!(attributes, Node), &old)
        }
        _ => None,
    };
    denied.map_or(Ok(()), |text| Err(forbidden(attributes, text)))
}

/// Why a node may not change itself like this.
fn changed_node(name: &str, new: &Node, old: &Node) -> Option<String> {
    let (new_spec, old_spec) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    // Old kubelets drop the field, which is no harm.
    if new_spec.config_source.is_some() && new_spec.config_source != old_spec.config_source {
        return Some(format!("node {name} is not allowed to update configSource to a new non-nil configSource"));
    }
    if !equal_or_empty(new_spec.taints.as_ref(), old_spec.taints.as_ref()) {
        return Some(format!("node {name} is not allowed to modify taints"));
    }
    if !equal_or_empty(new.metadata.owner_references.as_ref(), old.metadata.owner_references.as_ref()) {
        return Some(format!("node {name} is not allowed to modify ownerReferences"));
    }
    let labels = forbidden_labels(new.metadata.labels.as_ref(), old.metadata.labels.as_ref());
    (!labels.is_empty()).then(|| format!("is not allowed to modify labels: {}", labels.join(", ")))
}

type Labels = BTreeMap<String, String>;

/// Labels that are added, removed or changed, and that are not the kubelet's.
fn forbidden_labels<'a>(new: Option<&'a Labels>, old: Option<&'a Labels>) -> Vec<&'a str> {
    let keys = new.into_iter().flatten().chain(old.into_iter().flatten()).map(|(key, _)| key.as_str());
    let changed = keys.filter(|key| new.and_then(|new| new.get(*key)) != old.and_then(|old| old.get(*key)));
    let refused: BTreeSet<&str> = changed.filter(|key| !is_kubelets(key)).collect();
    refused.into_iter().collect()
}

fn is_kubelets(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let within = |outer: &str| domain == outer || domain.strip_suffix(outer).is_some_and(|rest| rest.ends_with('.'));
    if within(NODE_RESTRICTION) {
        return false;
    }
    let is_kubernetes = within("kubernetes.io") || within("k8s.io");
    !is_kubernetes || KUBELET_LABELS.contains(&key) || KUBELET_DOMAINS.into_iter().any(within)
}

/// The object's name must be the node's.
fn named_like(node: &str, attributes: &mut Attributes, what: &str) -> Result<(), ApiStatus> {
    let name = match (attributes.operation, attributes.object.as_mut()) {
        (Operation::Create, Some(object)) => object.value()["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        _ => attributes.name.to_string(),
    };
    if name == node {
        return Ok(());
    }
    Err(forbidden(attributes, format!("can only access {what} with the same name as the requesting node")))
}

fn resource_slice(node: &str, attributes: &mut Attributes) -> Result<(), ApiStatus> {
    let (of, verb) = match (attributes.operation, attributes.old_object.clone()) {
        (Operation::Create, _) => (object!(attributes, ResourceSlice).spec.node_name.clone(), "create"),
        (Operation::Delete, Some(old)) => {
            (old.typed::<ResourceSlice>().map_err(not_convertible)?.spec.node_name.clone(), "delete")
        }
        // The authorizer has seen to whom it belongs, and the field cannot change.
        _ => return Ok(()),
    };
    if of.as_deref() == Some(node) {
        return Ok(());
    }
    let text = format!("can only {verb} ResourceSlice with the same NodeName as the requesting node");
    Err(forbidden(attributes, text))
}

/// A kubelet asks for certificates of its own name only.
fn signing_request(node: &str, attributes: &mut Attributes) -> Result<(), ApiStatus> {
    if attributes.operation != Operation::Create {
        return Ok(());
    }
    let spec = object!(attributes, CertificateSigningRequest).spec.clone();
    if !KUBELET_SIGNERS.contains(&spec.signer_name.as_str()) {
        return Ok(());
    }
    match SigningRequest::parse(&spec.request.0) {
        Ok(request) if request.common_name == format!("system:node:{node}") => Ok(()),
        Ok(_) => Err(forbidden(attributes, format!("can only create a node CSR with CN=system:node:{node}"))),
        Err(error) => {
            let text = format!("unable to parse csr: {}", rkube_apimachinery::chain::chain(&error));
            Err(forbidden(attributes, text))
        }
    }
}

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}
