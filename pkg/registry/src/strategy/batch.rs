//! Strategies of the batch group.
//!
//! Behaves as pkg/registry/batch/*/strategy.go, v1.36.

use rkube_api::k8s::batch::v1::{CronJob, Job};
use rkube_validation::batch::{cron_job, job, job_status};
use rkube_validation::core::pod_prepare::drop_disabled_template_fields;

use super::rules::{RESET_STATUS, Rules, first_generation, next_generation, status_only, with_status};
use super::{GarbageCollectionPolicy, Registration};

pub(super) fn strategies() -> Vec<Registration> {
    vec![
        Registration::new(
            "batch",
            "jobs",
            with_status!(Job, job::validate, job::validate_update)
                .defaults(job::set_defaults)
                .on_create(|_, new| {
                    job::generate_selector(new);
                    // Upstream defaults again what it reads back, and now the template has labels to give.
                    job::set_defaults(new);
                    new.status = Some(Default::default());
                    first_generation(&mut new.metadata);
                    if let Some(spec) = &mut new.spec {
                        drop_disabled_template_fields(&mut spec.template, None);
                    }
                })
                .warnings(|new, old| match old {
                    None => job::warnings(new),
                    Some(old) => job::warnings_on_update(new, old),
                })
                .garbage(GarbageCollectionPolicy::OrphanDependents),
        )
        .status(status_only!(Job, job::set_defaults, job_status::validate_status_update)),
        Registration::new(
            "batch",
            "cronjobs",
            Rules::<CronJob>::new(cron_job::validate, cron_job::validate_update)
                .defaults(cron_job::set_defaults)
                .on_create(|_, new| {
                    new.status = Some(Default::default());
                    first_generation(&mut new.metadata);
                    if let Some(spec) = &mut new.spec.job_template.spec {
                        drop_disabled_template_fields(&mut spec.template, None);
                    }
                })
                .on_update(|_, new, old| {
                    new.status.clone_from(&old.status);
                    if let Some(spec) = &mut new.spec.job_template.spec {
                        let old = old.spec.job_template.spec.as_ref().map(|spec| &spec.template);
                        drop_disabled_template_fields(&mut spec.template, old);
                    }
                    if new.spec != old.spec {
                        next_generation(&mut new.metadata, &old.metadata);
                    }
                })
                .warnings(cron_job::warnings)
                .reset(RESET_STATUS),
        )
        .status(status_only!(CronJob, cron_job::set_defaults, |new, old| {
            rkube_validation::metadata_update(&new.metadata, &old.metadata)
        })),
    ]
}
