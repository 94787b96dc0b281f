//! Pods: graceful deletion, and four ways to update one.
//!
//! Behaves as pkg/registry/core/pod/strategy.go, v1.36.

use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names::{self, ip};
use rkube_validation::core::{pod, pod_defaults, pod_prepare, pod_status, pod_update, pod_warnings};

use crate::options::DeleteOptions;
use crate::strategy::rules::{RESET_STATUS, Rules};
use crate::strategy::{Registration, ResetFields, StrategyContext, TypedStrategy};

struct PodStrategy;

pub(super) fn pods() -> Registration {
    Registration::new("", "pods", PodStrategy)
        .status(
            Rules::<Pod>::subresource(pod_defaults::set_defaults, pod_status::validate_status_update)
                .on_update(|_, new, old| pod_prepare::prepare_for_status_update(new, old))
                .warnings(|new, _| status_warnings(new))
                .reset(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]),
        )
        .subresource(
            "ephemeralcontainers",
            Rules::<Pod>::subresource(pod_defaults::set_defaults, pod_update::validate_ephemeral_containers_update)
                .on_update(|_, new, old| pod_prepare::prepare_for_ephemeral_containers_update(new, old))
                .reset(RESET_STATUS),
        )
        .subresource(
            "resize",
            Rules::<Pod>::subresource(pod_defaults::set_defaults, pod_update::validate_resize)
                .on_update(|_, new, old| pod_prepare::prepare_for_resize(new, old))
                .reset(RESET_STATUS),
        )
}

fn status_warnings(pod: &Pod) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let path = Path::new("status");
    let pod_ips = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).enumerate();
    let host_ips = status.host_ips.iter().flatten().map(|ip| ip.ip.as_str()).enumerate();
    let of = |field: &str, index: usize, address: &str| {
        ip::warnings_for_ip(&path.child(field).index(index).child("ip"), address)
    };
    let mut warnings: Vec<String> = pod_ips.flat_map(|(index, address)| of("podIPs", index, address)).collect();
    warnings.extend(host_ips.flat_map(|(index, address)| of("hostIPs", index, address)));
    warnings
}

impl TypedStrategy for PodStrategy {
    type Object = Pod;

    fn default(&self, object: &mut Pod) {
        pod_defaults::set_defaults(object);
    }

    fn prepare_for_create(&self, context: &StrategyContext<'_>, object: &mut Pod) {
        for warning in pod_prepare::prepare_for_create(object) {
            context.request.warn(warning);
        }
    }

    fn validate(&self, _: &StrategyContext<'_>, object: &Pod) -> ErrorList {
        pod::validate(object)
    }

    fn warnings_on_create(&self, _: &StrategyContext<'_>, object: &Pod) -> Vec<String> {
        let mut warnings = Vec::new();
        let messages = names::is_dns1123_label(object.metadata.name.as_deref().unwrap_or_default());
        if !messages.is_empty() {
            warnings.push(format!(
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
                messages.join(" ")
            ));
        }
        warnings.extend(pod_warnings::warnings(object));
        warnings
    }

    fn prepare_for_update(&self, _: &StrategyContext<'_>, new: &mut Pod, old: &Pod) {
        pod_prepare::prepare_for_update(new, old);
    }

    fn validate_update(&self, _: &StrategyContext<'_>, new: &Pod, old: &Pod) -> ErrorList {
        pod_update::validate_update(new, old)
    }

    /// A pod that no kubelet knows, or that has ended, goes at once.
    fn check_graceful_delete(&self, _: &StrategyContext<'_>, object: &Pod, options: &mut DeleteOptions) -> bool {
        let (spec, status) = (object.spec.as_ref(), object.status.as_ref());
        let asked = options.grace_period_seconds;
        let wanted = asked.or_else(|| spec.and_then(|spec| spec.termination_grace_period_seconds)).unwrap_or(0);
        let bound = spec.and_then(|spec| spec.node_name.as_ref()).is_some_and(|node| !node.is_empty());
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let ended = matches!(phase, "Failed" | "Succeeded");
        let seconds = match wanted {
            _ if !bound || ended => 0,
            wanted if wanted < 0 => 1,
            wanted => wanted,
        };
        options.grace_period_seconds = Some(seconds);
        true
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn reset_fields(&self) -> ResetFields {
        RESET_STATUS
    }
}
