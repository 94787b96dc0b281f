//! Strategies of the groups that steer a cluster: policy, rbac, scheduling, node, coordination, autoscaling.
//!
//! Behaves as pkg/registry/{policy,rbac,scheduling,node,coordination,autoscaling}/*/strategy.go, v1.36.

use rkube_api::k8s::autoscaling::v2::HorizontalPodAutoscaler;
use rkube_api::k8s::coordination::v1::Lease;
use rkube_api::k8s::node::v1::RuntimeClass;
use rkube_api::k8s::policy::v1::PodDisruptionBudget;
use rkube_api::k8s::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use rkube_api::k8s::scheduling::v1::PriorityClass;
use rkube_validation::{autoscaling, coordination, policy, rbac, scheduling};

use super::Registration;
use super::rules::{RESET_STATUS, Rules, first_generation, status_only, with_status};

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn strategies() -> Vec<Registration> {
    let mut all = vec![
        Registration::new(
            "policy",
            "poddisruptionbudgets",
            with_status!(PodDisruptionBudget, policy::validate, policy::validate_update)
                .defaults(policy::set_defaults)
                .no_unconditional_update(),
        )
        .status(status_only!(PodDisruptionBudget, policy::set_defaults, policy::validate_status_update)),
        Registration::new(
            "scheduling.k8s.io",
            "priorityclasses",
            Rules::<PriorityClass>::new(
                scheduling::validate_priority_class,
                scheduling::validate_priority_class_update,
            )
            .defaults(scheduling::set_priority_class_defaults)
            .on_create(|_, new| first_generation(&mut new.metadata)),
        ),
        Registration::new(
            "node.k8s.io",
            "runtimeclasses",
            Rules::<RuntimeClass>::new(scheduling::validate_runtime_class, scheduling::validate_runtime_class_update)
                .defaults(scheduling::set_runtime_class_defaults)
                .warnings(|new, _| scheduling::runtime_class_warnings(new))
                .create_on_update()
                .no_unconditional_update(),
        ),
        Registration::new(
            "coordination.k8s.io",
            "leases",
            // Leader election between versions is behind a gate that is off.
            Rules::<Lease>::new(coordination::validate, coordination::validate_update)
                .defaults(coordination::set_defaults)
                .on_create(|_, new| {
                    if let Some(spec) = &mut new.spec {
                        spec.strategy = None;
                        spec.preferred_holder = None;
                    }
                })
                .on_update(|_, new, old| {
                    let old = old.spec.as_ref();
                    if let Some(spec) = &mut new.spec {
                        if old.is_none_or(|old| old.strategy.is_none()) {
                            spec.strategy = None;
                        }
                        if old.is_none_or(|old| old.preferred_holder.is_none()) {
                            spec.preferred_holder = None;
                        }
                    }
                })
                .create_on_update()
                .no_unconditional_update(),
        ),
        Registration::new(
            "autoscaling",
            "horizontalpodautoscalers",
            Rules::<HorizontalPodAutoscaler>::new(autoscaling::validate, autoscaling::validate_update)
                .defaults(autoscaling::set_defaults)
                .on_create(|_, new| new.status = Some(Default::default()))
                .on_update(|_, new, old| new.status.clone_from(&old.status))
                .reset(RESET_STATUS),
        )
        .status(status_only!(
            HorizontalPodAutoscaler,
            autoscaling::set_defaults,
            autoscaling::validate_status_update
        )),
    ];
    all.extend(roles());
    all
}

fn roles() -> Vec<Registration> {
    vec![
        Registration::new(
            RBAC,
            "roles",
            Rules::<Role>::new(rbac::validate_role, rbac::validate_role_update).create_on_update(),
        ),
        Registration::new(
            RBAC,
            "clusterroles",
            Rules::<ClusterRole>::new(rbac::validate_cluster_role, rbac::validate_cluster_role_update)
                .create_on_update(),
        ),
        Registration::new(
            RBAC,
            "rolebindings",
            Rules::<RoleBinding>::new(rbac::validate_role_binding, rbac::validate_role_binding_update)
                .defaults(rbac::set_role_binding_defaults)
                .create_on_update(),
        ),
        Registration::new(
            RBAC,
            "clusterrolebindings",
            Rules::<ClusterRoleBinding>::new(
                rbac::validate_cluster_role_binding,
                rbac::validate_cluster_role_binding_update,
            )
            .defaults(rbac::set_cluster_role_binding_defaults)
            .create_on_update(),
        ),
    ]
}
