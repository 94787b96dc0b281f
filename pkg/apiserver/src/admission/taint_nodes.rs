//! A new node is not ready until its kubelet says so and the node lifecycle controller believes it.
//!
//! Behaves as `plugin/pkg/admission/nodetaint/admission.go`, v1.36.

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::{Node, Taint};
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Plugin, is_resource, object};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const NO_SCHEDULE: &str = "NoSchedule";

pub(super) struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move {
            if !is_resource(attributes, "", "nodes") {
                return Ok(());
            }
            let node = object!(attributes, Node);
            let taints = node.spec.get_or_insert_default().taints.get_or_insert_default();
            if !taints.iter().any(|taint| taint.key == NOT_READY && taint.effect == NO_SCHEDULE) {
                let (key, effect) = (NOT_READY.to_owned(), NO_SCHEDULE.to_owned());
                taints.push(Taint { key, effect, ..Taint::default() });
            }
            Ok(())
        })
    }
}
