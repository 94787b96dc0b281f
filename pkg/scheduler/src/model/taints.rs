//! Which taints a pod's tolerations cover.
//!
//! Behaves as component-helpers/scheduling/corev1/helpers.go, v1.36.

use rkube_api::k8s::core::v1::{Taint, Toleration};

pub(crate) const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

fn tolerates(toleration: &Toleration, key: &str, value: &str, effect: &str) -> bool {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
    let wanted_effect = toleration.effect.as_deref().unwrap_or_default();
    if !wanted_effect.is_empty() && wanted_effect != effect {
        return false;
    }
    let wanted_key = toleration.key.as_deref().unwrap_or_default();
    if !wanted_key.is_empty() && wanted_key != key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => text(&toleration.value) == value,
        "Exists" => true,
        _ => false,
    }
}

pub(crate) fn tolerates_taint(tolerations: &[Toleration], taint: &Taint) -> bool {
    let value = taint.value.as_deref().unwrap_or_default();
    tolerations.iter().any(|toleration| tolerates(toleration, &taint.key, value, &taint.effect))
}

/// Whether the node's taints keep new pods with these tolerations away.
pub(crate) fn is_repelled(tolerations: &[Toleration], taints: &[Taint]) -> bool {
    taints
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .any(|taint| !tolerates_taint(tolerations, taint))
}

/// How many taints would rather not have the pod.
pub(crate) fn count_soft(tolerations: &[Toleration], taints: &[Taint]) -> i64 {
    let soft =
        |toleration: &&Toleration| matches!(toleration.effect.as_deref().unwrap_or_default(), "" | "PreferNoSchedule");
    let unwanted = taints.iter().filter(|taint| taint.effect == "PreferNoSchedule").filter(|taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        !tolerations.iter().filter(soft).any(|toleration| tolerates(toleration, &taint.key, value, &taint.effect))
    });
    i64::try_from(unwanted.count()).unwrap_or(i64::MAX)
}

/// Whether the pod may go to a cordoned node.
pub(crate) fn tolerates_unschedulable(tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, UNSCHEDULABLE_TAINT, "", "NoSchedule"))
}
