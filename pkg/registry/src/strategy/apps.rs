//! Strategies of the apps group.
//!
//! Behaves as pkg/registry/apps/*/strategy.go, v1.36.

use rkube_api::k8s::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use rkube_apimachinery::field::Path;
use rkube_validation::apps as validation;
use rkube_validation::core::pod_prepare::drop_disabled_template_fields;
use rkube_validation::workload_warnings;

use super::Registration;
use super::rules::{Rules, first_generation, next_generation, optional_template, status_only, with_status};

/// Drops what is behind gates, resets the status, counts generations and warns about the template.
macro_rules! workload {
    ($kind:ty, $validate:expr, $validate_update:expr, $annotations_count:expr, $hostname:expr) => {
        workload!($kind, $validate, $validate_update, $annotations_count, $hostname, |_, _| {})
    };
    // `$number` counts what this kind counts besides, after the rest is prepared.
    ($kind:ty, $validate:expr, $validate_update:expr, $annotations_count:expr, $hostname:expr, $number:expr) => {
        with_status!($kind, $validate, $validate_update)
            .on_create(|_, new: &mut $kind| {
                let number: fn(&mut $kind, Option<&$kind>) = $number;
                new.status = Some(Default::default());
                first_generation(&mut new.metadata);
                if let Some(spec) = &mut new.spec {
                    drop_disabled_template_fields(&mut spec.template, None);
                }
                number(new, None);
            })
            .on_update(|_, new: &mut $kind, old: &$kind| {
                let number: fn(&mut $kind, Option<&$kind>) = $number;
                new.status.clone_from(&old.status);
                if let Some(spec) = &mut new.spec {
                    drop_disabled_template_fields(&mut spec.template, old.spec.as_ref().map(|spec| &spec.template));
                }
                number(new, Some(old));
                let annotated = $annotations_count && new.metadata.annotations != old.metadata.annotations;
                if new.spec != old.spec || annotated {
                    next_generation(&mut new.metadata, &old.metadata);
                }
            })
            .warnings(|new: &$kind, old: Option<&$kind>| {
                let template = new.spec.as_ref().map(|spec| &spec.template);
                let path = Path::new("spec").child("template");
                workload_warnings(&new.metadata, template, old.map(|old| &old.metadata), &path, $hostname)
            })
    };
}

pub(super) fn strategies() -> Vec<Registration> {
    use validation::{daemon_set, deployment, stateful_set};
    vec![
        // Annotations count as a change of intent: the controller copies them to its ReplicaSets.
        Registration::new(
            "apps",
            "deployments",
            workload!(Deployment, deployment::validate, deployment::validate_update, true, true)
                .defaults(deployment::set_defaults),
        )
        .status(
            Rules::<Deployment>::status(deployment::set_defaults, deployment::validate_status_update)
                .on_update(|_, new, old| {
                    new.spec.clone_from(&old.spec);
                    new.metadata.labels.clone_from(&old.metadata.labels);
                })
                .reset(&[&["spec"], &["metadata", "labels"]]),
        ),
        Registration::new(
            "apps",
            "replicasets",
            optional_template!(ReplicaSet, deployment::validate_replica_set, deployment::validate_replica_set_update)
                .defaults(deployment::set_replica_set_defaults)
                .warnings(|new, old| {
                    let template = new.spec.as_ref().and_then(|spec| spec.template.as_ref());
                    let path = Path::new("spec").child("template");
                    workload_warnings(&new.metadata, template, old.map(|old| &old.metadata), &path, true)
                }),
        )
        .status(status_only!(
            ReplicaSet,
            deployment::set_replica_set_defaults,
            deployment::validate_replica_set_status_update
        )),
        Registration::new(
            "apps",
            "daemonsets",
            workload!(
                DaemonSet,
                daemon_set::validate,
                daemon_set::validate_update,
                false,
                false,
                daemon_set::number_template
            )
            .defaults(daemon_set::set_defaults),
        )
        .status(
            status_only!(DaemonSet, daemon_set::set_defaults, daemon_set::validate_status_update).on_update(
                |_, new, old| {
                    new.spec.clone_from(&old.spec);
                    daemon_set::number_template(new, Some(old));
                },
            ),
        ),
        Registration::new(
            "apps",
            "statefulsets",
            workload!(StatefulSet, stateful_set::validate, stateful_set::validate_update, false, false)
                .defaults(stateful_set::set_defaults),
        )
        .status(status_only!(StatefulSet, stateful_set::set_defaults, stateful_set::validate_status_update)),
        Registration::new(
            "apps",
            "controllerrevisions",
            Rules::<ControllerRevision>::new(stateful_set::validate_revision, stateful_set::validate_revision_update),
        ),
    ]
}
