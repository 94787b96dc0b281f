//! A pod that is bound gets its node's zone and region as labels, where the downward API finds them.
//!
//! Behaves as `plugin/pkg/admission/podtopologylabels/admission.go`, v1.36.

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::Node;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};
use serde_json::{Map, Value};

use super::{Objects, Plugin};

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub(super) struct PodTopologyLabels {
    objects: Objects,
}

impl PodTopologyLabels {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    async fn label(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let row = &attributes.resource;
        let is_pod = row.group.is_empty() && row.plural == "pods";
        let Some(object) = attributes.object.as_mut().filter(|_| is_pod) else { return Ok(()) };
        let object = object.value();
        let node = match attributes.subresource.as_str() {
            "" => &object["spec"]["nodeName"],
            // The registry copies a binding's labels to the pod.
            "binding" if object["target"]["kind"] == "Node" => &object["target"]["name"],
            _ => return Ok(()),
        };
        let Some(name) = node.as_str().filter(|name| !name.is_empty()).map(str::to_owned) else { return Ok(()) };
        let Some(node) = self.objects.cached::<Node>("", &name).await? else { return Ok(()) };
        for key in LABELS {
            if let Some(value) = node.metadata.labels.as_ref().and_then(|labels| labels.get(key)) {
                let labels = &mut object["metadata"]["labels"];
                if !labels.is_object() {
                    *labels = Value::Object(Map::new());
                }
                labels[key] = Value::from(value.as_str());
            }
        }
        Ok(())
    }
}

impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.label(attributes))
    }
}
