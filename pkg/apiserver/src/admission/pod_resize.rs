//! A pod is not resized beyond what its node could ever give it.
//!
//! Behaves as `plugin/pkg/admission/podresize/admission.go`, v1.36.

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::{Node, Pod};
use rkube_api::pod_resources::{self, Side};
use rkube_apimachinery::quantity::Quantity;
use rkube_apimachinery::quote::quote;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Objects, Plugin, forbidden, not_convertible, object};
use crate::references;

const OS_LABEL: &str = "kubernetes.io/os";

pub(super) struct PodResizeValidator {
    objects: Objects,
}

impl PodResizeValidator {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let row = &attributes.resource;
        let is_resize = row.group.is_empty() && row.plural == "pods" && attributes.subresource == "resize";
        let Some(old) = attributes.old_object.clone().filter(|_| is_resize) else { return Ok(()) };
        let old = old.typed::<Pod>().map_err(not_convertible)?;
        let pod = object!(attributes, Pod).clone();
        let name = references::node_of(&pod);
        // The generation counts changes of the spec.
        if name.is_empty() || pod.metadata.generation == old.metadata.generation {
            return Ok(());
        }
        let Some(node) = self.objects.cached::<Node>("", name).await? else {
            return Err(forbidden(attributes, format!("node {} not found", quote(name))));
        };
        let os = node.metadata.labels.as_ref().and_then(|labels| labels.get(OS_LABEL));
        if let Some(os) = os.filter(|os| *os != "linux") {
            let text = format!("pod resize is only supported on linux nodes, node {} is {}", quote(name), quote(os));
            return Err(forbidden(attributes, text).cause("UnsupportedPlatform", "", ""));
        }
        let excess = excess(&pod, &node);
        if excess.is_empty() {
            return Ok(());
        }
        let text = format!("node didn't have enough allocatable resources: {}", excess.join("; "));
        Err(forbidden(attributes, text).cause("NodeCapacity", "", ""))
    }
}

/// What the pod requests and the node does not have, all other pods gone.
fn excess(pod: &Pod, node: &Node) -> Vec<String> {
    let requests = pod.spec.as_ref().map(|spec| pod_resources::of_pod(spec, Side::Requests)).unwrap_or_default();
    let allocatable = pod_resources::parse(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
    let zero = Quantity::zero();
    let more = |name: &str, number: fn(&Quantity) -> i64| {
        let (asked, there) = (requests.get(name).unwrap_or(&zero), allocatable.get(name).unwrap_or(&zero));
        (asked > there).then(|| format!("{name}, requested: {}, allocatable: {}", number(asked), number(there)))
    };
    more("cpu", Quantity::milli_value).into_iter().chain(more("memory", Quantity::value)).collect()
}

impl Plugin for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}
