//! Strategies of the core group.
//!
//! Behaves as pkg/registry/core/*/strategy.go, v1.36.

mod event;
mod pod;

use rkube_api::k8s::core::v1::{
    ConfigMap, Endpoints, LimitRange, Namespace, NamespaceStatus, Node, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimStatus, PersistentVolumeStatus, PodTemplate, ReplicationController, ResourceQuota, Secret,
    Service, ServiceAccount, ServiceStatus,
};
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::field::Path;
use rkube_apimachinery::names::ip;
use rkube_validation::core as validation;
use rkube_validation::workload_warnings;

use super::rules::{RESET_STATUS, Rules, first_generation, next_generation, optional_template, status_only};
use super::{GarbageCollectionPolicy, Registration};

const KUBERNETES_FINALIZER: &str = "kubernetes";

pub(super) fn strategies() -> Vec<Registration> {
    let mut all = vec![event::events(), pod::pods()];
    all.extend(configuration());
    all.extend(cluster());
    all.extend(volumes());
    all.extend(workloads());
    all
}

fn configuration() -> Vec<Registration> {
    use validation::{config_map, namespace, secret};
    vec![
        Registration::new("", "configmaps", Rules::<ConfigMap>::new(config_map::validate, config_map::validate_update)),
        Registration::new(
            "",
            "secrets",
            Rules::<Secret>::new(secret::validate, secret::validate_update)
                .defaults(secret::set_defaults)
                .on_update(|_, new, old| secret::prepare_for_update(new, old)),
        ),
        Registration::new(
            "",
            "serviceaccounts",
            Rules::<ServiceAccount>::new(
                namespace::validate_service_account,
                namespace::validate_service_account_update,
            )
            .on_create(|_, new| clean_secret_references(new))
            .on_update(|_, new, _| clean_secret_references(new))
            .warnings(service_account_warnings)
            .returns_deleted(),
        ),
    ]
}

/// Secrets of an account are named, and nothing else about them is kept.
fn clean_secret_references(account: &mut ServiceAccount) {
    for secret in account.secrets.iter_mut().flatten() {
        *secret = rkube_api::k8s::core::v1::ObjectReference { name: secret.name.take(), ..Default::default() };
    }
}

fn service_account_warnings(new: &ServiceAccount, old: Option<&ServiceAccount>) -> Vec<String> {
    const KEY: &str = "kubernetes.io/enforce-mountable-secrets";
    let has = |account: &ServiceAccount| {
        account.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(KEY))
    };
    if !has(new) || old.is_some_and(has) {
        return Vec::new();
    }
    vec![format!(
        "metadata.annotations[{KEY}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
    )]
}

fn cluster() -> Vec<Registration> {
    use validation::{endpoints, namespace, node, quota, service};
    vec![
        Registration::new(
            "",
            "namespaces",
            Rules::<Namespace>::new(namespace::validate, namespace::validate_update)
                .defaults(namespace::set_defaults)
                .on_create(|_, new| {
                    new.status = Some(NamespaceStatus { phase: Some("Active".to_owned()), conditions: None });
                    let finalizers = new.spec.get_or_insert_default().finalizers.get_or_insert_default();
                    if !finalizers.iter().any(|finalizer| finalizer == KUBERNETES_FINALIZER) {
                        finalizers.push(KUBERNETES_FINALIZER.to_owned());
                    }
                })
                .on_update(|_, new, old| {
                    new.spec.clone_from(&old.spec);
                    new.status.clone_from(&old.status);
                })
                .canonicalize(namespace::set_defaults)
                .returns_deleted()
                .reset(RESET_STATUS),
        )
        .status(status_only!(Namespace, namespace::set_defaults, namespace::validate_status_update))
        .subresource(
            "finalize",
            Rules::<Namespace>::subresource(namespace::set_defaults, namespace::validate_finalize_update)
                .on_update(|_, new, old| new.status.clone_from(&old.status))
                .reset(RESET_STATUS),
        ),
        Registration::new(
            "",
            "nodes",
            Rules::<Node>::new(node::validate, node::validate_update)
                .defaults(node::set_defaults)
                .on_create(|_, new| drop_dynamic_config(new, None))
                .on_update(|_, new, old| {
                    new.status.clone_from(&old.status);
                    drop_dynamic_config(new, Some(old));
                })
                .warnings(|new, _| node_warnings(new))
                .reset(RESET_STATUS),
        )
        .status(Rules::<Node>::status(node::set_defaults, node::validate_update).on_update(|_, new, old| {
            new.spec.clone_from(&old.spec);
            drop_dynamic_config(new, Some(old));
        })),
        Registration::new(
            "",
            "services",
            Rules::<Service>::new(service::validate, service::validate_update)
                .defaults(service::set_defaults)
                .on_create(|_, new| {
                    let load_balancer = Some(Default::default());
                    new.status = Some(ServiceStatus { load_balancer, conditions: None });
                })
                .on_update(|_, new, old| {
                    new.status.clone_from(&old.status);
                    service::drop_type_dependent_fields(new, old);
                })
                .warnings(|new, _| service::warnings(new))
                .create_on_update()
                .returns_deleted()
                .reset(RESET_STATUS),
        )
        .status(status_only!(Service, service::set_defaults, service::validate_status_update)),
        Registration::new(
            "",
            "endpoints",
            Rules::<Endpoints>::new(endpoints::validate, endpoints::validate_update)
                .defaults(endpoints::set_defaults)
                .warnings(|new, _| endpoints::warnings(new))
                .create_on_update(),
        ),
        Registration::new(
            "",
            "resourcequotas",
            Rules::<ResourceQuota>::new(quota::validate_quota, quota::validate_quota_update)
                .defaults(quota::set_quota_defaults)
                .on_create(|_, new| new.status = Some(Default::default()))
                .on_update(|_, new, old| new.status.clone_from(&old.status))
                .warnings(|new, old| if old.is_none() { quota::quota_warnings(new) } else { Vec::new() })
                .returns_deleted()
                .reset(RESET_STATUS),
        )
        .status(status_only!(ResourceQuota, quota::set_quota_defaults, quota::validate_quota_status_update)),
        Registration::new(
            "",
            "limitranges",
            Rules::<LimitRange>::new(quota::validate_limit_range, quota::validate_limit_range_update)
                .defaults(quota::set_limit_range_defaults)
                .on_create(|_, new| {
                    if new.metadata.name.as_deref().is_none_or(str::is_empty) {
                        new.metadata.name.clone_from(&new.metadata.uid);
                    }
                })
                .create_on_update(),
        ),
    ]
}

/// Dynamic kubelet configuration is gone; objects that have it may keep it.
fn drop_dynamic_config(new: &mut Node, old: Option<&Node>) {
    let spec_used = old.and_then(|old| old.spec.as_ref()).is_some_and(|spec| spec.config_source.is_some());
    let status_used = old.and_then(|old| old.status.as_ref()).is_some_and(|status| status.config.is_some());
    if let Some(spec) = new.spec.as_mut().filter(|_| !spec_used) {
        spec.config_source = None;
    }
    if let Some(status) = new.status.as_mut().filter(|_| !status_used) {
        status.config = None;
    }
}

fn node_warnings(node: &Node) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(spec) = &node.spec {
        if spec.config_source.is_some() {
            warnings.push("spec.configSource: the feature is removed".to_owned());
        }
        if spec.external_id.as_ref().is_some_and(|id| !id.is_empty()) {
            warnings.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        for (index, cidr) in spec.pod_cidrs.iter().flatten().enumerate() {
            warnings.extend(ip::warnings_for_cidr(&Path::new("spec").child("podCIDRs").index(index), cidr));
        }
    }
    warnings
}

fn volumes() -> Vec<Registration> {
    use validation::{persistent_volume, persistent_volume_claim};
    vec![
        Registration::new(
            "",
            "persistentvolumes",
            Rules::<PersistentVolume>::new(persistent_volume::validate, persistent_volume::validate_update)
                .defaults(persistent_volume::set_defaults)
                .on_create(|context, new| {
                    new.status = Some(PersistentVolumeStatus {
                        phase: Some("Pending".to_owned()),
                        last_phase_transition_time: Some(Time(context.now)),
                        ..Default::default()
                    });
                })
                .on_update(|_, new, old| new.status.clone_from(&old.status))
                .warnings(|new, _| persistent_volume::warnings(new))
                .returns_deleted()
                .reset(RESET_STATUS),
        )
        .status(
            Rules::<PersistentVolume>::status(
                persistent_volume::set_defaults,
                persistent_volume::validate_status_update,
            )
            .on_update(|context, new, old| {
                new.spec.clone_from(&old.spec);
                let old = old.status.clone().unwrap_or_default();
                let status = new.status.get_or_insert_default();
                let time = &mut status.last_phase_transition_time;
                if status.phase == old.phase {
                    *time = time.take().or(old.last_phase_transition_time);
                } else if time.is_none() || *time == old.last_phase_transition_time {
                    *time = Some(Time(context.now));
                }
            }),
        ),
        Registration::new(
            "",
            "persistentvolumeclaims",
            Rules::<PersistentVolumeClaim>::new(
                persistent_volume_claim::validate,
                persistent_volume_claim::validate_update,
            )
            .defaults(persistent_volume_claim::set_defaults)
            .on_create(|_, new| {
                let phase = Some("Pending".to_owned());
                new.status = Some(PersistentVolumeClaimStatus { phase, ..Default::default() });
                persistent_volume_claim::normalize_data_sources(new, None);
            })
            .on_update(|_, new, old| {
                new.status.clone_from(&old.status);
                persistent_volume_claim::normalize_data_sources(new, Some(old));
            })
            .warnings(|new, _| persistent_volume_claim::warnings(new))
            .returns_deleted()
            .reset(RESET_STATUS),
        )
        .status(status_only!(
            PersistentVolumeClaim,
            persistent_volume_claim::set_defaults,
            persistent_volume_claim::validate_status_update
        )),
    ]
}

fn workloads() -> Vec<Registration> {
    use validation::pod_prepare::drop_disabled_template_fields;
    use validation::{pod, pod_defaults, replication_controller};
    vec![
        Registration::new(
            "",
            "podtemplates",
            Rules::<PodTemplate>::new(pod::validate_pod_template, pod::validate_pod_template_update)
                .defaults(pod_defaults::set_pod_template_defaults)
                .on_create(|_, new| {
                    first_generation(&mut new.metadata);
                    if let Some(template) = &mut new.template {
                        drop_disabled_template_fields(template, None);
                    }
                })
                .on_update(|_, new, old| {
                    if let Some(template) = &mut new.template {
                        drop_disabled_template_fields(template, old.template.as_ref());
                    }
                    if new.template != old.template {
                        next_generation(&mut new.metadata, &old.metadata);
                    }
                })
                .warnings(|new, old| {
                    let old = old.map(|old| &old.metadata);
                    workload_warnings(&new.metadata, new.template.as_ref(), old, &Path::new("template"), false)
                })
                .returns_deleted(),
        ),
        Registration::new(
            "",
            "replicationcontrollers",
            optional_template!(
                ReplicationController,
                replication_controller::validate,
                replication_controller::validate_update
            )
            .defaults(replication_controller::set_defaults)
            .warnings(|new, old| {
                let template = new.spec.as_ref().and_then(|spec| spec.template.as_ref());
                let path = Path::new("spec").child("template");
                workload_warnings(&new.metadata, template, old.map(|old| &old.metadata), &path, true)
            })
            .garbage(GarbageCollectionPolicy::OrphanDependents),
        )
        .status(status_only!(
            ReplicationController,
            replication_controller::set_defaults,
            replication_controller::validate_status_update
        )),
    ]
}
