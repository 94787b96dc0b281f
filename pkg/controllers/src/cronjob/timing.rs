//! Which scheduled time is due, and when to look again.
//!
//! Behaves as pkg/controller/cronjob/utils.go, v1.36.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rkube_api::k8s::batch::v1::CronJob;
use rkube_apimachinery::cron::Schedule;

/// Clocks differ a little; looking early would find nothing due.
const PADDING: SignedDuration = SignedDuration::from_millis(100);
/// More missed times than this are worth a warning: a clock may be wrong, or a controller was away for long.
const MISSED_MAX: i64 = 100;

/// The schedule is well formed and makes no sense: it has no two times.
#[derive(Debug, thiserror::Error)]
#[error("time difference between two schedules is less than 1 second")]
pub(super) struct NotASchedule;

/// What a look back from now finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// From where it looked.
    since: Timestamp,
    /// The last scheduled time that has passed.
    pub(super) due: Option<Timestamp>,
    missed: i64,
}

impl Look {
    pub(super) fn missed_too_many(&self) -> bool {
        self.missed > MISSED_MAX
    }
}

fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

/// The last scheduled time between the one that was served last and now. `with_deadline` leaves out what is too late.
pub(super) fn look_back(
    cron_job: &CronJob,
    schedule: &Schedule,
    now: Timestamp,
    with_deadline: bool,
) -> Result<Look, NotASchedule> {
    let last = cron_job.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    let created = cron_job.metadata.creation_timestamp.as_ref();
    let mut since = last.or(created).map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    if let Some(deadline) = cron_job.spec.starting_deadline_seconds.filter(|_| with_deadline) {
        since = since.max(now.checked_sub(seconds(deadline)).unwrap_or(Timestamp::MIN));
    }
    let first = schedule.next(since).ok_or(NotASchedule)?;
    if now < first {
        return Ok(Look { since, due: None, missed: 0 });
    }
    let second = schedule.next(first).ok_or(NotASchedule)?;
    if now < second {
        return Ok(Look { since, due: Some(first), missed: 0 });
    }
    let interval = second.duration_since(first).as_secs();
    if interval < 1 {
        return Err(NotASchedule);
    }
    // How many times were missed is an estimate that takes all intervals for equal. It starts the search two
    // intervals early, so that the last time is found where they are not.
    let missed = now.duration_since(first).as_secs() / interval + 1;
    let start = first.checked_add(seconds((missed - 2).saturating_mul(interval))).unwrap_or(first);
    let times = std::iter::successors(schedule.next(start), |time| schedule.next(*time));
    Ok(Look { since, due: times.take_while(|time| *time <= now).last(), missed })
}

/// How long until the next scheduled time.
pub(super) fn until_next(cron_job: &CronJob, schedule: &Schedule, now: Timestamp) -> Option<Duration> {
    let from = match look_back(cron_job, schedule, now, false) {
        Err(NotASchedule) => now,
        Ok(Look { due: Some(due), .. }) => due,
        Ok(Look { since, missed: 0, .. }) => since,
        Ok(_) => now,
    };
    let wait = schedule.next(from)?.checked_add(PADDING).ok()?.duration_since(now);
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO))
}
