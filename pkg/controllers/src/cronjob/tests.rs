//! CronJobs over time. Jobs do not run here: tests finish them by hand.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::Kind;
use rkube_api::k8s::batch::v1::{CronJob, CronJobSpec, Job, JobStatus};
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::status::{ApiStatus, Reason};
use rkube_client::owner::new_controller_ref;
use serde_json::{Value, json};

use super::CRONJOB;
use super::plan::{Step, new_job, plan};
use crate::testing::{World, events, metadata, names, survives_any_crash};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// `cron` in `ns`, made at midnight.
fn cron_job(spec: Value, status: Value) -> CronJob {
    let mut cron_job = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "status": status, "spec": spec,
        "metadata": {"namespace": "ns", "name": "cron", "uid": "cron-uid", "creationTimestamp": "2030-01-01T00:00:00Z"},
    });
    cron_job["spec"]["jobTemplate"] = json!({
        "metadata": {"labels": {"app": "cron"}, "annotations": {"a": "b"}},
        "spec": {"template": {"spec": {"containers": []}}},
    });
    CronJob::from_value(cron_job).expect("a CronJob")
}

fn world(spec: Value) -> World {
    let world = World::new(&[CRONJOB]);
    world.api.put(&cron_job(spec, json!({})));
    world
}

async fn started(spec: Value) -> World {
    let mut world = world(spec);
    world.start();
    world.settle().await;
    world
}

fn edit(world: &World, edit: impl FnOnce(&mut CronJobSpec)) {
    world.api.edit::<CronJob>("ns", "cron", |cron_job| edit(&mut cron_job.spec));
}

fn finish(world: &World, name: &str, condition: &str) {
    let now = world.now().to_string();
    world.api.edit::<Job>("ns", name, |job| {
        let mut status = json!({"startTime": now, "conditions": [{"type": condition, "status": "True"}]});
        if condition == "Complete" {
            status["completionTime"] = now.clone().into();
        }
        let holder = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "status": status});
        job.status = Job::from_value(holder).expect("a job").status.take();
    });
}

fn is_open(job: &Job) -> bool {
    crate::job::finished_condition(job).is_none()
}

/// Jobs with their times of the day, and the status.
fn outcome(world: &World) -> String {
    let shown =
        |time: &Option<Time>| time.as_ref().map_or("-".to_owned(), |time| time.0.strftime("%dT%H:%M").to_string());
    let jobs = world.api.list::<Job>("ns");
    let jobs = jobs.iter().map(|job| {
        let annotations = job.metadata.annotations.clone().unwrap_or_default();
        let time = annotations.get("batch.kubernetes.io/cronjob-scheduled-timestamp").cloned();
        let time = time.unwrap_or_else(|| job.metadata.name.clone().unwrap_or_default());
        format!("{time}{}", if is_open(job) { " open" } else { "" })
    });
    let jobs: Vec<_> = jobs.collect();
    let cron_job = world.api.get::<CronJob>("ns", "cron").expect("it was put");
    let status = cron_job.status.clone().unwrap_or_default();
    format!(
        "jobs [{}] active {} scheduled {} successful {}",
        jobs.join(", "),
        status.active.map_or(0, |active| active.len()),
        shown(&status.last_schedule_time),
        shown(&status.last_successful_time),
    )
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

/// What the plan says at a time of January 1, 2030.
fn check_plan(spec: Value, status: Value, time: &str, expected: Expect) {
    let now: jiff::Timestamp = format!("2030-01-01T{time}Z").parse().expect("a time");
    let plan = plan(&cron_job(spec, status), now);
    let step = match plan.step {
        Step::Start(time) => format!("start {}", time.strftime("%H:%M:%S")),
        other => format!("{other:?}"),
    };
    let next = plan.next.map_or("never".to_owned(), |next| format!("{:.1}s", next.as_secs_f64()));
    let mut lines = vec![format!("{step}, next in {next}")];
    lines.extend(plan.remarks.into_iter().map(|(kind, reason, text)| format!("{kind:?} {reason}: {text}")));
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn times_come_one_after_the_other() {
    let hourly = || json!({"schedule": "0 * * * *"});
    check_plan(hourly(), json!({}), "00:30:00", expect!["Wait, next in 1800.1s"]);
    check_plan(hourly(), json!({}), "01:00:00", expect!["start 01:00:00, next in 3600.1s"]);
    check_plan(
        hourly(),
        json!({"lastScheduleTime": "2030-01-01T01:00:00Z"}),
        "01:10:00",
        expect!["Wait, next in 3000.1s"],
    );
    // Of several missed times only the last is made up for.
    check_plan(
        hourly(),
        json!({"lastScheduleTime": "2030-01-01T01:00:00Z"}),
        "05:10:00",
        expect!["start 05:00:00, next in 3000.1s"],
    );
    check_plan(json!({"schedule": "@every 90m"}), json!({}), "05:10:00", expect!["start 04:30:00, next in 3000.1s"]);
    // Not regular: estimates alone would miss the last.
    check_plan(
        json!({"schedule": "0 0,1,7 * * *"}),
        json!({}),
        "08:00:00",
        expect!["start 07:00:00, next in 57600.1s"],
    );
}

#[test]
fn many_missed_times_are_worth_a_warning() {
    let minutely = || json!({"schedule": "* * * * *"});
    check_plan(minutely(), json!({}), "01:39:30", expect!["start 01:39:00, next in 30.1s"]);
    check_plan(
        minutely(),
        json!({}),
        "01:41:30",
        expect![[r#"
        start 01:41:00, next in 30.1s
        Warning TooManyMissedTimes: too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew"#]],
    );
    let mut limited = minutely();
    limited["startingDeadlineSeconds"] = 200.into();
    check_plan(limited, json!({}), "01:41:30", expect!["start 01:41:00, next in 30.1s"]);
}

#[test]
fn what_is_too_late_is_left_out() {
    let hourly = || json!({"schedule": "0 * * * *", "startingDeadlineSeconds": 300});
    check_plan(hourly(), json!({}), "01:04:59", expect!["start 01:00:00, next in 3301.1s"]);
    check_plan(hourly(), json!({}), "01:05:00", expect!["Wait, next in 3300.1s"]);
}

#[test]
fn running_jobs_keep_others_from_starting_where_they_must() {
    let hourly = |policy: &str| json!({"schedule": "0 * * * *", "concurrencyPolicy": policy});
    let running = |name: &str| json!({"active": [{"name": name, "uid": "u"}]});
    check_plan(
        hourly("Forbid"),
        running("cron-1"),
        "01:00:00",
        expect![[r#"
        Wait, next in 3600.1s
        Normal JobAlreadyActive: Not starting job because prior execution is running and concurrency policy is Forbid"#]],
    );
    check_plan(hourly("Allow"), running("cron-1"), "01:00:00", expect!["start 01:00:00, next in 3600.1s"]);
    check_plan(hourly("Replace"), running("cron-1"), "01:00:00", expect!["start 01:00:00, next in 3600.1s"]);
    // This time's job is on the list already.
    check_plan(hourly("Allow"), running("cron-31557660"), "01:00:00", expect!["Wait, next in 3600.1s"]);
}

#[test]
fn what_makes_no_sense_waits_for_a_change() {
    check_plan(
        json!({"schedule": "not a schedule"}),
        json!({}),
        "01:00:00",
        expect![[r#"
        Nothing, next in never
        Warning UnparseableSchedule: unparseable schedule: "not a schedule" : expected exactly 5 fields, found 3: [not a schedule]"#]],
    );
    check_plan(
        json!({"schedule": "0 0 31 2 *"}),
        json!({}),
        "01:00:00",
        expect![[r#"
        Nothing, next in never
        Warning InvalidSchedule: invalid schedule: 0 0 31 2 * : time difference between two schedules is less than 1 second"#]],
    );
    check_plan(
        json!({"schedule": "* * * * *", "timeZone": "Nowhere/Land"}),
        json!({}),
        "01:00:00",
        expect![[r#"
        Nothing, next in never
        Warning UnknownTimeZone: invalid timeZone: "Nowhere/Land": unknown time zone Nowhere/Land"#]],
    );
    check_plan(
        json!({"schedule": "* * * * *", "suspend": true}),
        json!({}),
        "01:00:00",
        expect!["Nothing, next in never"],
    );
    check_plan(
        json!({"schedule": "TZ=Europe/Berlin 30 3 * * *"}),
        json!({}),
        "02:35:00",
        expect![[r#"
        start 02:30:00, next in 86100.1s
        Warning UnsupportedSchedule: CRON_TZ or TZ used in schedule "TZ=Europe/Berlin 30 3 * * *" is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"#]],
    );
}

#[test]
fn times_are_of_the_time_zone() {
    let berlin = || json!({"schedule": "30 3 * * *", "timeZone": "Europe/Berlin"});
    check_plan(berlin(), json!({}), "02:35:00", expect!["start 02:30:00, next in 86100.1s"]);
    let job = new_job(&cron_job(berlin(), json!({})), "2030-01-01T02:30:00Z".parse().expect("a timestamp"));
    expect![[r#"cron-31557750 Some({"a": "b", "batch.kubernetes.io/cronjob-scheduled-timestamp": "2030-01-01T03:30:00+01:00"}) Some({"app": "cron"})"#]].assert_eq(&format!(
        "{} {:?} {:?}",
        job.metadata.name.unwrap_or_default(),
        job.metadata.annotations,
        job.metadata.labels
    ));
}

#[tokio::test]
async fn jobs_start_on_time_and_the_list_follows() {
    let mut world = started(json!({"schedule": "0 * * * *"})).await;
    world.run_for(HOUR + MINUTE).await;
    check(&world, expect!["jobs [2030-01-01T01:00:00Z open] active 1 scheduled 01T01:00 successful -"]);
    let job = names::<Job>(&world, "ns");
    assert_eq!(job, ["cron-31557660"]);
    finish(&world, &job[0], "Complete");
    world.run_for(HOUR).await;
    check(
        &world,
        expect![
            "jobs [2030-01-01T01:00:00Z, 2030-01-01T02:00:00Z open] active 1 scheduled 01T02:00 successful 01T01:01"
        ],
    );
    expect![[r#"
        Normal SuccessfulCreate: Created job cron-31557660
        Normal SawCompletedJob: Saw completed job: cron-31557660, condition: Complete
        Normal SuccessfulCreate: Created job cron-31557720"#]]
    .assert_eq(&events(&world, "ns"));

    // Between two times nothing is asked or written.
    world.stays_idle(50 * MINUTE).await;
}

#[tokio::test]
async fn a_job_that_still_runs_is_waited_for_or_replaced() {
    let first = "2030-01-01T01:00:00Z open";
    let second = "2030-01-01T02:00:00Z open";
    for (policy, expected) in [
        ("Allow", format!("jobs [{first}, {second}] active 2 scheduled 01T02:00 successful -")),
        ("Forbid", format!("jobs [{first}] active 1 scheduled 01T01:00 successful -")),
        ("Replace", format!("jobs [{second}] active 1 scheduled 01T02:00 successful -")),
    ] {
        let mut world = started(json!({"schedule": "0 * * * *", "concurrencyPolicy": policy})).await;
        world.run_for(2 * HOUR + MINUTE).await;
        assert_eq!(outcome(&world), expected, "{policy}");
        if policy == "Forbid" {
            // As soon as the first has ended, the time that was held back comes.
            finish(&world, "cron-31557660", "Failed");
            world.run_for(MINUTE).await;
            check(
                &world,
                expect![
                    "jobs [2030-01-01T01:00:00Z, 2030-01-01T02:00:00Z open] active 1 scheduled 01T02:00 successful -"
                ],
            );
        }
    }
}

#[tokio::test]
async fn old_jobs_go_beyond_the_limits() {
    let spec = json!({"schedule": "0 * * * *", "successfulJobsHistoryLimit": 2, "failedJobsHistoryLimit": 1});
    let mut world = started(spec).await;
    for hour in 1..=6 {
        world.run_for(HOUR + Duration::from_secs(1)).await;
        let open =
            world.api.list::<Job>("ns").iter().find(|job| is_open(job)).and_then(|job| job.metadata.name.clone());
        finish(&world, &open.expect("one was started"), if hour % 2 == 0 { "Failed" } else { "Complete" });
        world.settle().await;
    }
    check(
        &world,
        expect![
            "jobs [2030-01-01T03:00:00Z, 2030-01-01T05:00:00Z, 2030-01-01T06:00:00Z] active 0 scheduled 01T06:00 successful 01T05:00"
        ],
    );
}

#[tokio::test]
async fn a_suspended_cron_job_starts_nothing_and_then_the_last_missed() {
    let mut world = started(json!({"schedule": "0 * * * *", "suspend": true})).await;
    world.run_for(5 * HOUR).await;
    check(&world, expect!["jobs [] active 0 scheduled - successful -"]);
    edit(&world, |spec| spec.suspend = Some(false));
    world.run_for(MINUTE).await;
    check(&world, expect!["jobs [2030-01-01T05:00:00Z open] active 1 scheduled 01T05:00 successful -"]);
}

#[tokio::test]
async fn a_new_schedule_is_for_the_future() {
    let mut world = started(json!({"schedule": "0 12 * * *"})).await;
    world.run_for(HOUR + 30 * MINUTE).await;
    edit(&world, |spec| spec.schedule = "45 * * * *".to_owned());
    world.run_for(10 * MINUTE).await;
    check(&world, expect!["jobs [] active 0 scheduled - successful -"]);
    world.run_for(10 * MINUTE).await;
    check(&world, expect!["jobs [2030-01-01T01:45:00Z open] active 1 scheduled 01T01:45 successful -"]);
}

#[tokio::test]
async fn jobs_by_hand_run_beside_the_schedule() {
    // What kubectl create job --from=cronjob/cron makes.
    let mut world = started(json!({"schedule": "0 * * * *", "concurrencyPolicy": "Forbid"})).await;
    let owner = world.api.get::<CronJob>("ns", "cron").expect("it was put");
    let mut manual = Job { metadata: metadata("ns", "by-hand"), ..Job::default() };
    manual.metadata.owner_references = Some(vec![new_controller_ref(&*owner)]);
    manual.metadata.annotations = Some(crate::testing::labels(&[("cronjob.kubernetes.io/instantiate", "manual")]));
    world.api.put(&manual);
    // And one of another owner under a similar name.
    let mut foreign = Job { metadata: metadata("ns", "foreign"), ..Job::default() };
    let mut reference = new_controller_ref(&*owner);
    reference.uid = "another".to_owned();
    foreign.metadata.owner_references = Some(vec![reference]);
    foreign.status = Some(JobStatus::default());
    world.api.put(&foreign);
    world.run_for(HOUR + MINUTE).await;
    check(
        &world,
        expect![
            "jobs [by-hand open, 2030-01-01T01:00:00Z open, foreign open] active 1 scheduled 01T01:00 successful -"
        ],
    );
    assert!(
        events(&world, "ns")
            .contains("Warning UnexpectedJob: Saw a job that the controller did not create or forgot: by-hand")
    );
}

#[tokio::test]
async fn a_job_that_is_gone_leaves_the_list() {
    let mut world = started(json!({"schedule": "0 * * * *", "concurrencyPolicy": "Forbid"})).await;
    world.run_for(HOUR + MINUTE).await;
    world.api.remove::<Job>("ns", "cron-31557660");
    world.run_for(MINUTE).await;
    check(&world, expect!["jobs [] active 0 scheduled 01T01:00 successful -"]);
    assert!(events(&world, "ns").contains("Normal MissingJob: Active job went missing: cron-31557660"));
}

#[tokio::test]
async fn a_name_that_is_taken_costs_one_time_only() {
    let mut world = world(json!({"schedule": "0 * * * *"}));
    world.api.put(&Job { metadata: metadata("ns", "cron-31557660"), ..Job::default() });
    world.start();
    world.run_for(2 * HOUR + MINUTE).await;
    check(
        &world,
        expect!["jobs [cron-31557660 open, 2030-01-01T02:00:00Z open] active 1 scheduled 01T02:00 successful -"],
    );
}

#[tokio::test]
async fn a_refused_job_is_tried_again() {
    let mut world = world(json!({"schedule": "0 * * * *"}));
    world.api.react(|action| {
        (action.verb == "create" && action.resource == "jobs").then(|| ApiStatus::failure(Reason::InternalError, "no"))
    });
    world.start();
    world.run_for(HOUR + MINUTE).await;
    assert!(events(&world, "ns").contains("Warning FailedCreate: Error creating job: no"), "{}", events(&world, "ns"));
    world.api.clear_reactions();
    world.run_for(5 * MINUTE).await;
    check(&world, expect!["jobs [2030-01-01T01:00:00Z open] active 1 scheduled 01T01:00 successful -"]);
}

#[tokio::test]
async fn a_clock_that_is_set_back_repeats_nothing() {
    let mut world = started(json!({"schedule": "0 * * * *"})).await;
    world.run_for(3 * HOUR + MINUTE).await;
    world.clock.set_wall("2030-01-01T01:30:00Z".parse().expect("a timestamp"));
    world.run_for(2 * HOUR).await;
    check(
        &world,
        expect![
            "jobs [2030-01-01T01:00:00Z open, 2030-01-01T02:00:00Z open, 2030-01-01T03:00:00Z open] active 3 scheduled 01T03:00 successful -"
        ],
    );
    world.run_for(HOUR).await;
    check(
        &world,
        expect![
            "jobs [2030-01-01T01:00:00Z open, 2030-01-01T02:00:00Z open, 2030-01-01T03:00:00Z open, 2030-01-01T04:00:00Z open] active 4 scheduled 01T04:00 successful -"
        ],
    );
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    for policy in ["Allow", "Forbid", "Replace"] {
        let arrange =
            || world(json!({"schedule": "0 * * * *", "concurrencyPolicy": policy, "successfulJobsHistoryLimit": 1}));
        let drive = async |world: &mut World| {
            for _ in 0..3 {
                world.run_for(HOUR + MINUTE).await;
                let open = world.api.list::<Job>("ns").iter().rfind(|job| is_open(job)).cloned();
                if let Some(name) = open.and_then(|job| job.metadata.name.clone()) {
                    finish(world, &name, "Complete");
                }
            }
            world.run_for(2 * HOUR).await;
        };
        survives_any_crash(arrange, drive, outcome).await;
    }
}
