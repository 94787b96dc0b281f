//! Pods stay five minutes on a node that stopped answering, unless they say otherwise.
//!
//! Behaves as `plugin/pkg/admission/defaulttolerationseconds/admission.go`, v1.36.

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::{Pod, Toleration};
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Plugin, is_resource, object};

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const NO_EXECUTE: &str = "NoExecute";
const TOLERATION_SECONDS: i64 = 300;

pub(super) struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move {
            if !is_resource(attributes, "", "pods") {
                return Ok(());
            }
            let pod = object!(attributes, Pod);
            let tolerations = pod.spec.get_or_insert_default().tolerations.get_or_insert_default();
            let given = tolerations.clone();
            for key in TAINTS.iter().filter(|key| !given.iter().any(|toleration| covers(toleration, key))) {
                tolerations.push(Toleration {
                    key: Some((*key).to_owned()),
                    operator: Some("Exists".to_owned()),
                    effect: Some(NO_EXECUTE.to_owned()),
                    toleration_seconds: Some(TOLERATION_SECONDS),
                    ..Toleration::default()
                });
            }
            Ok(())
        })
    }
}

fn covers(toleration: &Toleration, key: &str) -> bool {
    let is_or_any =
        |field: &Option<String>, wanted: &str| field.as_deref().is_none_or(|text| text.is_empty() || text == wanted);
    is_or_any(&toleration.key, key) && is_or_any(&toleration.effect, NO_EXECUTE)
}
