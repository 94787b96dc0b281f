//! Whether a Job is to be started now, and when to look again.
//!
//! Behaves as the second half of `syncCronJob` of pkg/controller/cronjob/cronjob_controllerv2.go, v1.36.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rkube_api::k8s::batch::v1::{CronJob, Job};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::cron::{CronError, Schedule, time_zone};
use rkube_apimachinery::quote::quote;
use rkube_client::EventType;
use rkube_client::owner::new_controller_ref;

use super::active::Remark;
use super::timing::{look_back, until_next};

const SCHEDULED_TIME: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Until the spec changes.
    Nothing,
    /// Until the next scheduled time.
    Wait,
    Start(Timestamp),
}

/// The step, and when the next scheduled time is.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) step: Step,
    pub(super) next: Option<Duration>,
    pub(super) remarks: Vec<Remark>,
}

/// The schedule in its zone. A zone within the schedule beats the field, as long as there are such schedules.
pub(super) fn schedule_of(cron_job: &CronJob) -> Result<Schedule, CronError> {
    let schedule = Schedule::parse(&cron_job.spec.schedule)?;
    let zone = cron_job.spec.time_zone.as_deref().filter(|_| !cron_job.spec.schedule.contains("TZ"));
    Ok(match zone.and_then(time_zone) {
        Some(zone) => schedule.in_zone(zone),
        None => schedule,
    })
}

fn warning(reason: &'static str, text: impl Into<String>) -> Remark {
    (EventType::Warning, reason, text.into())
}

/// `cron_job` is one whose active list is in line with its Jobs.
pub(super) fn plan(cron_job: &CronJob, now: Timestamp) -> Plan {
    let mut remarks = Vec::new();
    let (step, next) = decide(cron_job, now, &mut remarks);
    Plan { step, next, remarks }
}

fn decide(cron_job: &CronJob, now: Timestamp, remarks: &mut Vec<Remark>) -> (Step, Option<Duration>) {
    let spec = &cron_job.spec;
    if cron_job.metadata.deletion_timestamp.is_some() {
        return (Step::Nothing, None);
    }
    if let Some(zone) = spec.time_zone.as_deref().filter(|zone| time_zone(zone).is_none()) {
        let text = format!("invalid timeZone: {}: unknown time zone {zone}", quote(zone));
        remarks.push(warning("UnknownTimeZone", text));
        return (Step::Nothing, None);
    }
    if spec.suspend == Some(true) {
        return (Step::Nothing, None);
    }
    if spec.schedule.contains("TZ") {
        let text = format!(
            "CRON_TZ or TZ used in schedule {} is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
            quote(&spec.schedule)
        );
        remarks.push(warning("UnsupportedSchedule", text));
    }
    let schedule = match schedule_of(cron_job) {
        Ok(schedule) => schedule,
        Err(error) => {
            let text = format!("unparseable schedule: {} : {error}", quote(&spec.schedule));
            remarks.push(warning("UnparseableSchedule", text));
            return (Step::Nothing, None);
        }
    };
    let look = match look_back(cron_job, &schedule, now, true) {
        Ok(look) => look,
        Err(error) => {
            remarks.push(warning("InvalidSchedule", format!("invalid schedule: {} : {error}", spec.schedule)));
            return (Step::Nothing, None);
        }
    };
    let next = until_next(cron_job, &schedule, now);
    let Some(due) = look.due else { return (Step::Wait, next) };
    if look.missed_too_many() {
        let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        remarks.push(warning("TooManyMissedTimes", text));
    }
    let latest = |deadline: i64| due.checked_add(SignedDuration::from_secs(deadline)).unwrap_or(Timestamp::MAX);
    if spec.starting_deadline_seconds.is_some_and(|deadline| latest(deadline) < now) {
        let time = due.strftime("%a, %d %b %Y %H:%M:%S +0000");
        remarks.push(warning("MissSchedule", format!("Missed scheduled time to start a job: {time}")));
        return (Step::Wait, next);
    }
    let status = cron_job.status.as_ref();
    let served = status.and_then(|status| status.last_schedule_time.as_ref()).is_some_and(|last| last.0 == due);
    let active = status.and_then(|status| status.active.as_deref()).unwrap_or_default();
    let name = job_name(cron_job, due);
    if served || active.iter().any(|reference| reference.name.as_ref() == Some(&name)) {
        return (Step::Wait, next);
    }
    if spec.concurrency_policy.as_deref() == Some("Forbid") && !active.is_empty() {
        let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
        remarks.push((EventType::Normal, "JobAlreadyActive", text.to_owned()));
        return (Step::Wait, next);
    }
    (Step::Start(due), next)
}

/// The name of the Job for a time: the same for every try, another for every minute.
pub(super) fn job_name(cron_job: &CronJob, scheduled: Timestamp) -> String {
    let minutes = scheduled.as_second().div_euclid(60);
    format!("{}-{minutes}", cron_job.metadata.name.as_deref().unwrap_or_default())
}

/// The Job for a time.
pub(super) fn new_job(cron_job: &CronJob, scheduled: Timestamp) -> Job {
    let template = cron_job.spec.job_template.metadata.clone().unwrap_or_default();
    let zone = cron_job.spec.time_zone.as_deref().and_then(time_zone).unwrap_or(TimeZone::UTC);
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_TIME.to_owned(), shown_in(scheduled, &zone));
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron_job, scheduled)),
            namespace: cron_job.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![new_controller_ref(cron_job)]),
            ..ObjectMeta::default()
        },
        spec: cron_job.spec.job_template.spec.clone(),
        status: None,
    }
}

/// RFC 3339 with the zone's offset, `Z` for none.
fn shown_in(time: Timestamp, zone: &TimeZone) -> String {
    let shown = zone.to_datetime(time).strftime("%Y-%m-%dT%H:%M:%S").to_string();
    let minutes = zone.to_offset(time).seconds() / 60;
    match minutes {
        0 => format!("{shown}Z"),
        _ => {
            let sign = if minutes < 0 { '-' } else { '+' };
            format!("{shown}{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
        }
    }
}
