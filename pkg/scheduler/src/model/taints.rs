//! What a node's taints mean to a pod that is to be placed.
//!
//! Behaves as component-helpers/scheduling/corev1/helpers.go, v1.36.

use std::sync::LazyLock;

use rkube_api::k8s::core::v1::{Taint, Toleration};
use rkube_api::taints::{is_tolerated, tolerates};

pub(crate) const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// Whether the node's taints keep new pods with these tolerations away.
pub(crate) fn is_repelled(tolerations: &[Toleration], taints: &[Taint]) -> bool {
    taints
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .any(|taint| !is_tolerated(tolerations, taint))
}

/// How many taints would rather not have the pod.
pub(crate) fn count_soft(tolerations: &[Toleration], taints: &[Taint]) -> i64 {
    let soft =
        |toleration: &&Toleration| matches!(toleration.effect.as_deref().unwrap_or_default(), "" | "PreferNoSchedule");
    let unwanted = taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule")
        .filter(|taint| !tolerations.iter().filter(soft).any(|toleration| tolerates(toleration, taint)));
    i64::try_from(unwanted.count()).unwrap_or(i64::MAX)
}

/// Whether the pod may go to a cordoned node.
pub(crate) fn tolerates_unschedulable(tolerations: &[Toleration]) -> bool {
    static CORDON: LazyLock<Taint> = LazyLock::new(|| Taint {
        key: UNSCHEDULABLE_TAINT.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    });
    is_tolerated(tolerations, &CORDON)
}
