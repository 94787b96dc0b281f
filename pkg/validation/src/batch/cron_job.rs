//! batch/v1 CronJob.
//!
//! Behaves as ValidateCronJobCreate of pkg/apis/batch/validation/validation.go and
//! pkg/apis/batch/v1/defaults.go, v1.36.

use rkube_api::k8s::batch::v1::{CronJob, CronJobSpec};
use rkube_apimachinery::cron::{self, Schedule};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use super::job;
use crate::common::defaults::{default_to, text_default};
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::dns_subdomain;
use crate::common::report::{OptText, Report, shown};
use crate::core::pod_options::PodOptions;

/// A Job's name is the CronJob's with eleven more characters.
const NAME_LENGTH_MAX: usize = names::DNS1035_LABEL_MAX_LENGTH - 11;

pub fn set_defaults(cron_job: &mut CronJob) {
    let spec = &mut cron_job.spec;
    text_default(&mut spec.concurrency_policy, "Allow");
    default_to(&mut spec.suspend, false);
    default_to(&mut spec.successful_jobs_history_limit, 3);
    default_to(&mut spec.failed_jobs_history_limit, 1);
    spec.job_template.metadata.get_or_insert_default();
    job::set_spec_defaults(spec.job_template.spec.get_or_insert_default());
    cron_job.status.get_or_insert_default();
}

pub fn validate(cron_job: &CronJob) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&cron_job.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_spec(&cron_job.spec, None, &PodOptions::strict(), &mut errors);
    let name = cron_job.metadata.name.text();
    if name.len() > NAME_LENGTH_MAX {
        let detail = format!("must be no more than {NAME_LENGTH_MAX} characters");
        errors.invalid(Path::new("metadata").child("name"), name, detail);
    }
    errors
}

pub fn validate_update(new: &CronJob, old: &CronJob) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let options = PodOptions::for_template(old.spec.job_template.spec.as_ref().map(|spec| &spec.template));
    validate_spec(&new.spec, Some(&old.spec), &options, &mut errors);
    errors
}

fn validate_spec(spec: &CronJobSpec, old: Option<&CronJobSpec>, options: &PodOptions, errors: &mut ErrorList) {
    let path = Path::new("spec");
    if spec.schedule.is_empty() {
        errors.required(path.child("schedule"), "");
    } else {
        let zone_allowed = old.is_some_and(|old| old.schedule.contains("TZ"));
        validate_schedule(spec, zone_allowed, &path.child("schedule"), errors);
    }
    errors.not_negative(path.child("startingDeadlineSeconds"), spec.starting_deadline_seconds.unwrap_or(0));
    if old.is_none_or(|old| old.time_zone != spec.time_zone)
        && let Some(zone) = &spec.time_zone
    {
        validate_time_zone(zone, &path.child("timeZone"), errors);
    }
    let policies = ["Allow", "Forbid", "Replace"];
    errors.required_one_of(path.child("concurrencyPolicy"), spec.concurrency_policy.text(), &policies);
    let template_path = path.child("jobTemplate").child("spec");
    let job = spec.job_template.spec.clone().unwrap_or_default();
    job::validate_spec(&job, &template_path, options, errors);
    if let Some(selector) = &job.selector {
        errors.invalid(template_path.child("selector"), shown(selector), "`selector` will be auto-generated");
    }
    if job.manual_selector == Some(true) {
        errors.not_supported(template_path.child("manualSelector"), true, &["nil", "false"]);
    }
    for (field, limit) in [
        ("successfulJobsHistoryLimit", spec.successful_jobs_history_limit),
        ("failedJobsHistoryLimit", spec.failed_jobs_history_limit),
    ] {
        errors.not_negative(path.child(field), limit.unwrap_or(0));
    }
}

fn validate_schedule(spec: &CronJobSpec, zone_allowed: bool, path: &Path, errors: &mut ErrorList) {
    let text = spec.schedule.as_str();
    if let Err(reason) = Schedule::parse(text) {
        errors.invalid(path, text, reason.to_string());
    }
    if !text.contains("TZ") {
        return;
    }
    if !zone_allowed {
        errors.invalid(path, text, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    } else if spec.time_zone.is_some() {
        errors.invalid(path, text, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
    }
}

fn validate_time_zone(zone: &str, path: &Path, errors: &mut ErrorList) {
    if zone.is_empty() {
        errors.invalid(path, "", "timeZone must be nil or non-empty string");
        return;
    }
    let well_formed = |part: &str| {
        let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_' | '+');
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.chars().all(allowed)
    };
    if !zone.split('/').all(well_formed) {
        errors.invalid(path, zone, format!("unknown time zone {zone}"));
        return;
    }
    if zone.eq_ignore_ascii_case("Local") {
        let detail = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(path, zone, detail);
    }
    if cron::time_zone(zone).is_none() {
        errors.invalid(path, zone, format!("unknown time zone {zone}"));
    }
}

pub fn warnings(cron_job: &CronJob, old: Option<&CronJob>) -> Vec<String> {
    let mut warnings = Vec::new();
    if old.is_none() {
        let messages = names::is_dns1123_label(cron_job.metadata.name.text());
        if !messages.is_empty() {
            warnings.push(format!(
                "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
                messages.join(" ")
            ));
        }
    }
    let changed = old.is_none_or(|old| old.metadata.generation != cron_job.metadata.generation);
    if let Some(spec) = cron_job.spec.job_template.spec.as_ref().filter(|_| changed) {
        let old = old.and_then(|old| old.spec.job_template.spec.as_ref());
        let path = Path::new("spec").child("jobTemplate").child("spec");
        warnings.extend(job::spec_warnings(spec, old, &path));
    }
    if cron_job.spec.schedule.contains("TZ") {
        warnings.push("CRON_TZ or TZ used in spec.schedule is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".to_owned());
    }
    warnings
}
