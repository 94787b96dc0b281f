//! A bound pod is not changed in ways that its node has not declared it can carry out.
//!
//! Behaves as `plugin/pkg/admission/nodedeclaredfeatures/admission.go` and what
//! `k8s.io/component-helpers/nodedeclaredfeatures/features` infers from updates, v1.36. The features there that no update
//! can need are the scheduler's business.

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::{Container, Node, Pod};
use rkube_api::pod_resources::is_same;
use rkube_apimachinery::quote::quote;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Objects, Plugin, forbidden, not_convertible, object};
use crate::references;

/// Pod-level resources changed.
const POD_LEVEL_RESIZE: &str = "InPlacePodLevelResourcesVerticalScaling";
/// An init container that ends changed.
const INIT_CONTAINER_RESIZE: &str = "InPlacePodVerticalScalingInitContainers";

pub(super) struct NodeDeclaredFeatureValidator {
    objects: Objects,
}

impl NodeDeclaredFeatureValidator {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let row = &attributes.resource;
        let is_pod = row.group.is_empty() && row.plural == "pods";
        let is_update = is_pod && matches!(attributes.subresource.as_str(), "" | "resize");
        let Some(old) = attributes.old_object.clone().filter(|_| is_update) else { return Ok(()) };
        let old = old.typed::<Pod>().map_err(not_convertible)?;
        let pod = object!(attributes, Pod).clone();
        let name = references::node_of(&pod);
        // The generation counts changes of the spec.
        if name.is_empty() || pod.metadata.generation == old.metadata.generation {
            return Ok(());
        }
        let needed = needed(&old, &pod);
        if needed.is_empty() {
            return Ok(());
        }
        let Some(node) = self.objects.cached::<Node>("", name).await? else {
            return Err(forbidden(attributes, format!("node {} not found", quote(name))));
        };
        let declared = node.status.as_ref().and_then(|status| status.declared_features.as_deref()).unwrap_or_default();
        let missing: Vec<&str> =
            needed.into_iter().filter(|feature| !declared.iter().any(|have| have == feature)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let (missing, node) = (missing.join(", "), quote(name));
        Err(forbidden(
            attributes,
            format!("pod update requires features {missing} which are not available on node {node}"),
        ))
    }
}

/// What the node must have declared for the update, sorted.
fn needed(old: &Pod, new: &Pod) -> Vec<&'static str> {
    let (Some(old), Some(new)) = (&old.spec, &new.spec) else { return Vec::new() };
    let mut features = Vec::new();
    if !is_same(old.resources.as_ref(), new.resources.as_ref()) {
        features.push(POD_LEVEL_RESIZE);
    }
    let pairs = old.init_containers.iter().flatten().zip(new.init_containers.iter().flatten());
    let is_resized = |(old, new): (&Container, &Container)| {
        old.restart_policy.as_deref() != Some("Always") && !is_same(old.resources.as_ref(), new.resources.as_ref())
    };
    if pairs.into_iter().any(is_resized) {
        features.push(INIT_CONTAINER_RESIZE);
    }
    features
}

impl Plugin for NodeDeclaredFeatureValidator {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatureValidator"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}
