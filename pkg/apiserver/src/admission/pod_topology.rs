//! A pod that is bound gets its node's zone and region as labels, where the downward API finds them.
//!
//! Behaves as `plugin/pkg/admission/podtopologylabels/admission.go`, v1.36.

use futures_util::future::BoxFuture;
use rkube_api::draft::Draft;
use rkube_api::k8s::core::v1::{Node, Pod};
use rkube_apimachinery::meta::MetaMut;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};
use serde_json::Value;

use super::{Objects, Plugin, object};

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
        if !row.group.is_empty() || row.plural != "pods" {
            return Ok(());
        }
        match attributes.subresource.as_str() {
            "" => {
                let pod = object!(attributes, Pod);
                let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { return Ok(()) };
                let labels = self.labels(&node).await?;
                if !labels.is_empty() {
                    object!(attributes, Pod).metadata.labels.get_or_insert_default().extend(labels);
                }
            }
            // The registry copies a binding's labels to the pod.
            "binding" => {
                let Some(binding) = attributes.object.as_mut().map(Draft::value) else { return Ok(()) };
                let target = binding.get("target").filter(|target| text(target, "kind") == "Node");
                let node = target.map(|target| text(target, "name").to_owned()).unwrap_or_default();
                for (key, value) in self.labels(&node).await? {
                    binding.set_label(&key, &value);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The labels that pods on the node get.
    async fn labels(&self, node: &str) -> Result<Vec<(String, String)>, ApiStatus> {
        if node.is_empty() {
            return Ok(Vec::new());
        }
        let node = self.objects.cached::<Node>("", node).await?;
        let labels = node.as_ref().and_then(|node| node.metadata.labels.as_ref());
        let wanted = labels.into_iter().flat_map(|labels| LABELS.map(|key| labels.get_key_value(key)));
        Ok(wanted.flatten().map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value.get(member).and_then(Value::as_str).unwrap_or_default()
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
