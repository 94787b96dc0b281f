//! Which taints of a node a pod's tolerations cover. The scheduler, the taint eviction controller, the DaemonSet
//! controller and the kubelet must agree on it.
//!
//! Behaves as ToleratesTaint in staging/src/k8s.io/api/core/v1/toleration.go, v1.36, without the operators `Lt` and
//! `Gt`: they are behind a feature gate that is off.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Whether a toleration is for a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        "Exists" => true,
        _ => false,
    }
}

/// Whether any of a pod's tolerations is for a taint.
pub fn is_tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}
