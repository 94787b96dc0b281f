//! Jobs on nodes that run their pods to the end.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::Kind;
use rkube_api::k8s::batch::v1::{Job, JobSpec};
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::status::{ApiStatus, Reason};
use rkube_client::owner::new_controller_ref;
use serde_json::{Value, json};

use super::JOB;
use super::pods::{TRACKING_FINALIZER, index_failures, index_of, is_tracked};
use crate::testing::{World, end_pod, events, metadata, survives_any_crash};

const MINUTE: Duration = Duration::from_secs(60);
const ALL_SUCCEED: fn(&Pod) -> Option<(&'static str, i32)> = |_| Some(("Succeeded", 0));
const ALL_FAIL: fn(&Pod) -> Option<(&'static str, i32)> = |_| Some(("Failed", 1));

fn job(spec: Value) -> Job {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"namespace": "ns", "name": "work"}, "spec": spec,
    });
    job["spec"]["selector"] = json!({"matchLabels": {"app": "work"}});
    job["spec"]["template"] = json!({
        "metadata": {"labels": {"app": "work"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "image:1"}]},
    });
    Job::from_value(job).expect("a job")
}

fn world(spec: Value, ending: fn(&Pod) -> Option<(&'static str, i32)>) -> World {
    let mut world = World::with_nodes(&[JOB]);
    world.ending = ending;
    world.api.put(&job(spec));
    world
}

async fn started(spec: Value, ending: fn(&Pod) -> Option<(&'static str, i32)>) -> World {
    let mut world = world(spec, ending);
    world.start();
    world.run_for(Duration::from_secs(5)).await;
    world
}

fn edit(world: &World, edit: impl FnOnce(&mut JobSpec)) {
    world.api.edit::<Job>("ns", "work", |job| {
        edit(job.spec.get_or_insert_default());
        job.metadata.generation = job.metadata.generation.map(|generation| generation + 1);
    });
}

/// What a user sees of the job, without names and times.
fn outcome(world: &World) -> String {
    let job = world.api.get::<Job>("ns", "work").expect("it was put");
    let status = job.status.clone().unwrap_or_default();
    let mut lines = vec![format!(
        "active {} ready {} terminating {} succeeded {} failed {}{}{}",
        status.active.unwrap_or(0),
        status.ready.unwrap_or(0),
        status.terminating.unwrap_or(0),
        status.succeeded.unwrap_or(0),
        status.failed.unwrap_or(0),
        status.completed_indexes.map(|indexes| format!(" completed {indexes}")).unwrap_or_default(),
        status.failed_indexes.map(|indexes| format!(" failed {indexes}")).unwrap_or_default(),
    )];
    lines.extend(status.conditions.iter().flatten().map(|condition| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{}={} {}: {}", condition.type_, condition.status, text(&condition.reason), text(&condition.message))
    }));
    let mut pods: Vec<_> = world.api.list::<Pod>("ns").iter().map(|pod| describe(pod)).collect();
    pods.sort();
    lines.extend(pods);
    lines.join("\n")
}

fn describe(pod: &Pod) -> String {
    let mut text = crate::common::pods::phase(pod).to_owned();
    if let Some(index) = index_of(pod) {
        text += &format!(" index {index} after {:?}", index_failures(pod));
    }
    for (says, holds) in [
        ("held", is_tracked(pod)),
        ("deleted", pod.metadata.deletion_timestamp.is_some()),
        ("alone", pod.metadata.owner_references.is_none()),
    ] {
        if holds {
            text += &format!(" {says}");
        }
    }
    text
}

fn check(world: &World, expected: Expect) {
    expected.assert_eq(&outcome(world));
}

/// The events of the kinds that do not name pods.
fn said(world: &World) -> Vec<String> {
    let lines = events(world, "ns");
    let about_pods = |line: &&str| line.contains("Created pod") || line.contains("Deleted pod");
    lines.lines().filter(|line| !about_pods(line)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_job_runs_to_its_end_and_costs_nothing_then() {
    let mut world = world(json!({"completions": 3, "parallelism": 2}), ALL_SUCCEED);
    world.start();
    world.settle().await;
    let created = world.api.list::<Pod>("ns");
    assert_eq!(created.len(), 2);
    assert!(created.iter().all(|pod| pod.metadata.name.as_deref().is_some_and(|name| name.starts_with("work-"))));
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![[r#"
            active 0 ready 0 terminating 0 succeeded 3 failed 0
            SuccessCriteriaMet=True CompletionsReached: Reached expected number of succeeded pods
            Complete=True CompletionsReached: Reached expected number of succeeded pods
            Succeeded
            Succeeded
            Succeeded"#]],
    );
    assert_eq!(said(&world), ["Normal Completed: Job completed"]);
    let status = world.api.get::<Job>("ns", "work").and_then(|job| job.status.clone()).unwrap_or_default();
    assert!(status.start_time.is_some() && status.completion_time >= status.start_time);

    world.stays_idle(Duration::from_secs(7200)).await;
}

#[tokio::test]
async fn indexed_pods_know_their_index() {
    let world = started(json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed"}), |_| None).await;
    let pods = world.api.list::<Pod>("ns");
    let pod = pods.iter().find(|pod| index_of(pod) == Some(1)).expect("there is a pod of index 1");
    let spec = pod.spec.clone().unwrap_or_default();
    let variable = serde_json::to_value(&spec.containers[0].env).expect("JSON");
    let text = format!(
        "{} {} {} {}",
        pod.metadata.name.clone().unwrap_or_default().starts_with("work-1-"),
        spec.hostname.unwrap_or_default(),
        pod.metadata.labels.clone().unwrap_or_default()["batch.kubernetes.io/job-completion-index"],
        variable,
    );
    expect![[r#"true work-1 1 [{"name":"JOB_COMPLETION_INDEX","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['batch.kubernetes.io/job-completion-index']"}}}]"#]]
        .assert_eq(&text);
}

#[tokio::test]
async fn failures_are_retried_later_and_later_until_the_limit() {
    let mut world = world(json!({"completions": 1, "parallelism": 1, "backoffLimit": 3}), ALL_FAIL);
    world.start();
    world.run_for(Duration::from_secs(300)).await;
    let began = world.clock.shared().now() - Duration::from_secs(300);
    let mut ages: Vec<i64> = world
        .api
        .list::<Pod>("ns")
        .iter()
        .filter_map(|pod| Some(pod.metadata.creation_timestamp.as_ref()?.0.duration_since(began).as_secs()))
        .collect();
    ages.sort_unstable();
    // 10, 20 and 40 seconds after the end of the pod before.
    assert_eq!(ages, [0, 10, 30, 70]);
    check(
        &world,
        expect![[r#"
            active 0 ready 0 terminating 0 succeeded 0 failed 4
            FailureTarget=True BackoffLimitExceeded: Job has reached the specified backoff limit
            Failed=True BackoffLimitExceeded: Job has reached the specified backoff limit
            Failed
            Failed
            Failed
            Failed"#]],
    );
    assert_eq!(said(&world), ["Warning BackoffLimitExceeded: Job has reached the specified backoff limit"]);
}

#[tokio::test]
async fn an_index_that_fails_too_often_does_not_stop_the_others() {
    let spec = json!({
        "completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX,
    });
    let mut world =
        started(spec, |pod| Some(if index_of(pod) == Some(1) { ("Failed", 1) } else { ("Succeeded", 0) })).await;
    world.run_for(Duration::from_secs(120)).await;
    check(
        &world,
        expect![[r#"
            active 0 ready 0 terminating 0 succeeded 2 failed 2 completed 0,2 failed 1
            FailureTarget=True FailedIndexes: Job has failed indexes
            Failed=True FailedIndexes: Job has failed indexes
            Failed index 1 after (0, 0)
            Failed index 1 after (1, 0)
            Succeeded index 0 after (0, 0)
            Succeeded index 2 after (0, 0)"#]],
    );
}

#[tokio::test]
async fn a_suspended_job_has_no_pods_and_its_time_stands_still() {
    let mut world = started(json!({"completions": 2, "parallelism": 2, "activeDeadlineSeconds": 600}), |_| None).await;
    edit(&world, |spec| spec.suspend = Some(true));
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![[r#"
            active 0 ready 0 terminating 0 succeeded 0 failed 0
            Suspended=True JobSuspended: Job suspended"#]],
    );
    world.run_for(Duration::from_secs(3600)).await;
    edit(&world, |spec| spec.suspend = Some(false));
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![[r#"
            active 2 ready 2 terminating 0 succeeded 0 failed 0
            Suspended=False JobResumed: Job resumed
            Running held
            Running held"#]],
    );
    assert_eq!(said(&world), ["Normal Suspended: Job suspended", "Normal Resumed: Job resumed"]);
    world.run_for(Duration::from_secs(700)).await;
    check(
        &world,
        expect![[r#"
            active 0 ready 0 terminating 0 succeeded 0 failed 2
            Suspended=False JobResumed: Job resumed
            FailureTarget=True DeadlineExceeded: Job was active longer than specified deadline
            Failed=True DeadlineExceeded: Job was active longer than specified deadline"#]],
    );
}

#[tokio::test]
async fn enough_successes_end_what_still_runs() {
    let spec = json!({
        "completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    });
    let mut world = started(spec, |pod| (index_of(pod) == Some(0)).then_some(("Succeeded", 0))).await;
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![[r#"
            active 0 ready 0 terminating 0 succeeded 1 failed 0 completed 0
            SuccessCriteriaMet=True SuccessPolicy: Matched rules at index 0
            Complete=True SuccessPolicy: Matched rules at index 0
            Succeeded index 0 after (0, 0)"#]],
    );
}

#[tokio::test]
async fn parallelism_and_completions_can_change() {
    let mut world = started(json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed"}), |_| None).await;
    edit(&world, |spec| spec.parallelism = Some(1));
    world.run_for(MINUTE).await;
    assert_eq!(world.api.list::<Pod>("ns").len(), 1);
    // An elastic job: both go down together.
    edit(&world, |spec| (spec.parallelism, spec.completions) = (Some(2), Some(2)));
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![[r#"
            active 2 ready 2 terminating 0 succeeded 0 failed 0
            Running index 0 after (0, 0) held
            Running index 1 after (0, 0) held"#]],
    );
}

#[tokio::test]
async fn a_pod_deleted_by_hand_counts_as_failed_and_is_replaced() {
    for policy in ["TerminatingOrFailed", "Failed"] {
        let mut world = started(json!({"completions": 1, "podReplacementPolicy": policy}), |_| None).await;
        let name = world.api.list::<Pod>("ns")[0].metadata.name.clone().unwrap_or_default();
        let api = world.client().namespaced::<Pod>("ns");
        api.delete(&name, &Default::default()).await.expect("it is deleted");
        world.run_for(MINUTE).await;
        let expected = "active 1 ready 1 terminating 0 succeeded 0 failed 1\nRunning held";
        assert_eq!(outcome(&world), expected, "{policy}");
    }
}

#[tokio::test]
async fn a_job_of_another_controller_is_left_alone() {
    let mut world = started(json!({"completions": 1, "managedBy": "example.com/scheduler"}), ALL_SUCCEED).await;
    let job = world.api.get::<Job>("ns", "work").expect("it was put");
    let mut pod = Pod { metadata: metadata("ns", "theirs"), ..Pod::default() };
    pod.metadata.owner_references = Some(vec![new_controller_ref(&*job)]);
    pod.metadata.finalizers = Some(vec![TRACKING_FINALIZER.to_owned()]);
    world.api.put(&pod);
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![[r#"
            active 0 ready 0 terminating 0 succeeded 0 failed 0
            Succeeded held"#]],
    );
}

#[tokio::test]
async fn an_unknown_completion_mode_is_left_alone() {
    let world = started(json!({"completions": 1, "completionMode": "Sometimes"}), ALL_SUCCEED).await;
    assert_eq!(said(&world), ["Warning UnknownCompletionMode: Skipped Job sync because completion mode is unknown"]);
    assert!(world.api.list::<Pod>("ns").is_empty());
}

#[tokio::test]
async fn pods_are_adopted_and_released_with_their_finalizer() {
    let mut world = world(json!({"completions": 2, "parallelism": 2}), |_| None);
    let mut stray = Pod { metadata: metadata("ns", "stray"), ..Pod::default() };
    stray.metadata.labels = Some(crate::testing::labels(&[("app", "work")]));
    world.api.put(&stray);
    world.start();
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![[r#"
            active 2 ready 2 terminating 0 succeeded 0 failed 0
            Running held
            Running held"#]],
    );
    world.api.edit::<Pod>("ns", "stray", |pod| pod.metadata.labels = None);
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![[r#"
            active 2 ready 2 terminating 0 succeeded 0 failed 0
            Running alone
            Running held
            Running held"#]],
    );
}

#[tokio::test]
async fn pods_without_a_job_lose_the_finalizer_and_foreign_ones_keep_theirs() {
    let mut world = started(json!({"completions": 2, "parallelism": 2}), |_| None).await;
    let mut foreign = Pod { metadata: metadata("ns", "foreign"), ..Pod::default() };
    let mut reference = new_controller_ref(&*world.api.get::<Job>("ns", "work").expect("it was put"));
    reference.api_version = "example.com/v1".to_owned();
    foreign.metadata.owner_references = Some(vec![reference]);
    foreign.metadata.finalizers = Some(vec![TRACKING_FINALIZER.to_owned(), "example.com/hold".to_owned()]);
    world.api.put(&foreign);
    world.settle().await;
    world.api.remove::<Job>("ns", "work");
    world.run_for(MINUTE).await;
    let mut pods: Vec<_> = world.api.list::<Pod>("ns").iter().map(|pod| describe(pod)).collect();
    pods.sort();
    assert_eq!(pods, ["Running", "Running", "Running held"]);
}

#[tokio::test]
async fn a_conflicting_writer_delays_nothing_for_long() {
    let mut world = world(json!({"completions": 1}), |_| None);
    world.api.react({
        let refused = std::sync::atomic::AtomicU32::new(0);
        move |action| {
            let hit =
                action.resource == "jobs/status" && refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 3;
            hit.then(|| ApiStatus::failure(Reason::Conflict, "the object has been modified"))
        }
    });
    world.start();
    world.run_for(MINUTE).await;
    check(
        &world,
        expect![[r#"
            active 1 ready 1 terminating 0 succeeded 0 failed 0
            Running held"#]],
    );
}

#[tokio::test]
async fn a_clock_that_is_set_back_does_not_stop_a_job() {
    let mut world = started(json!({"completions": 1, "backoffLimit": 3}), |_| None).await;
    let name = world.api.list::<Pod>("ns")[0].metadata.name.clone().unwrap_or_default();
    let now = world.now();
    world.api.edit::<Pod>("ns", &name, |pod| end_pod(pod, "Failed", 1, now));
    world.run_for(Duration::from_secs(2)).await;
    world.clock.set_wall("2029-01-01T00:00:00Z".parse().expect("a timestamp"));
    world.run_for(Duration::from_secs(30)).await;
    check(
        &world,
        expect![[r#"
            active 1 ready 1 terminating 0 succeeded 0 failed 1
            Failed
            Running held"#]],
    );
}

#[tokio::test]
async fn a_finalizer_that_cannot_be_removed_is_counted_when_it_can() {
    let mut world = world(json!({"completions": 1}), ALL_SUCCEED);
    world.api.react(|action| {
        let hit = action.verb == "patch" && action.resource == "pods";
        hit.then(|| ApiStatus::failure(Reason::InternalError, "no"))
    });
    world.start();
    world.run_for(MINUTE).await;
    let status = world.api.get::<Job>("ns", "work").and_then(|job| job.status.clone()).unwrap_or_default();
    let uncounted = status.uncounted_terminated_pods.and_then(|uncounted| uncounted.succeeded).unwrap_or_default();
    assert_eq!((status.succeeded, uncounted.len()), (None, 1));
    world.api.clear_reactions();
    world.run_for(Duration::from_secs(120)).await;
    assert!(
        outcome(&world).starts_with("active 0 ready 0 terminating 0 succeeded 1 failed 0\n"),
        "{}",
        outcome(&world)
    );
}

#[tokio::test]
async fn what_one_sync_leaves_over_is_not_put_off() {
    let mut world = world(json!({"completions": 600, "parallelism": 600}), ALL_SUCCEED);
    world.start();
    world.settle().await;
    assert_eq!(world.api.list::<Pod>("ns").len(), 600);
    world.run_for(Duration::from_secs(1)).await;
    let status = world.api.get::<Job>("ns", "work").expect("it was put").status.clone().unwrap_or_default();
    assert_eq!((status.active, status.succeeded), (None, Some(600)));
    assert!(status.conditions.iter().flatten().any(|condition| condition.type_ == "Complete"));
}

#[tokio::test]
async fn a_completed_job_survives_a_crash_at_any_write() {
    let arrange = || world(json!({"completions": 5, "parallelism": 2}), ALL_SUCCEED);
    survives_any_crash(arrange, async |world: &mut World| world.run_for(2 * MINUTE).await, outcome).await;
}

#[tokio::test]
async fn a_failing_indexed_job_survives_a_crash_at_any_write() {
    let arrange = || {
        let spec = json!({
            "completions": 3, "parallelism": 3, "completionMode": "Indexed",
            "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX,
        });
        world(spec, |pod| Some(if index_of(pod) == Some(1) { ("Failed", 1) } else { ("Succeeded", 0) }))
    };
    survives_any_crash(arrange, async |world: &mut World| world.run_for(3 * MINUTE).await, outcome).await;
}

#[tokio::test]
async fn a_job_given_up_survives_a_crash_at_any_write() {
    let arrange = || world(json!({"completions": 3, "parallelism": 3, "activeDeadlineSeconds": 60}), |_| None);
    survives_any_crash(arrange, async |world: &mut World| world.run_for(4 * MINUTE).await, outcome).await;
}

#[tokio::test]
async fn suspending_survives_a_crash_at_any_write() {
    let arrange = || world(json!({"completions": 3, "parallelism": 2}), |_| None);
    let drive = async |world: &mut World| {
        world.run_for(MINUTE).await;
        edit(world, |spec| spec.suspend = Some(true));
        world.run_for(MINUTE).await;
        edit(world, |spec| spec.suspend = Some(false));
        world.ending = ALL_SUCCEED;
        world.run_for(2 * MINUTE).await;
    };
    survives_any_crash(arrange, drive, outcome).await;
}
