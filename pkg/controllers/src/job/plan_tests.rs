//! What a Job decides, as data: its spec and pods in, the decision out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use jiff::Timestamp;
use rkube_api::Kind;
use rkube_api::k8s::batch::v1::{JobSpec, JobStatus};
use rkube_api::k8s::core::v1::Pod;
use serde_json::{Value, json};

use super::backoff::{Backoff, Moment};
use super::plan::{Assessment, Found, Step, assess, is_complete, plan};
use super::tracking::count;

fn now() -> Timestamp {
    "2030-01-01T01:00:00Z".parse().expect("a timestamp")
}

fn spec(fields: Value) -> JobSpec {
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": fields});
    let mut job = rkube_api::k8s::batch::v1::Job::from_value(job).expect("a job");
    job.spec.take().expect("it has a spec")
}

fn status(fields: Value) -> JobStatus {
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "status": fields});
    let mut job = rkube_api::k8s::batch::v1::Job::from_value(job).expect("a job");
    job.status.take().unwrap_or_default()
}

/// `name phase` and then any of `ready`, `i=INDEX`, `f=FAILURES`, `ig=IGNORED`, `exit=CODE`, `ended=SECONDS ago`,
/// `deleted`, `released` (no finalizer), `disrupted`, `restarts=N`.
fn pod(text: &str) -> Arc<Pod> {
    let mut words = text.split_whitespace();
    let (name, phase) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "ns", "uid": name, "creationTimestamp": "2030-01-01T00:00:00Z",
            "finalizers": ["batch.kubernetes.io/job-tracking"], "annotations": {},
        },
        "spec": {"containers": [{"name": "main"}], "nodeName": "n"},
        "status": {"phase": phase, "conditions": [], "containerStatuses": [{
            "name": "main", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {},
        }]},
    });
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let condition =
            |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"});
        let annotation = |name: &str| format!("batch.kubernetes.io/{name}");
        let container = &mut pod["status"]["containerStatuses"][0];
        match key {
            "ready" => pod["status"]["conditions"] = json!([condition("Ready")]),
            "disrupted" => pod["status"]["conditions"] = json!([condition("DisruptionTarget")]),
            "i" => pod["metadata"]["annotations"][annotation("job-completion-index")] = value.into(),
            "f" => pod["metadata"]["annotations"][annotation("job-index-failure-count")] = value.into(),
            "ig" => pod["metadata"]["annotations"][annotation("job-index-ignored-failure-count")] = value.into(),
            "exit" => container["state"] = json!({"terminated": {"exitCode": value.parse::<i32>().expect("a code")}}),
            "restarts" => container["restartCount"] = value.parse::<i32>().expect("a count").into(),
            "ended" => {
                let ended = now() - Duration::from_secs(value.parse().expect("seconds"));
                container["state"]["terminated"]["finishedAt"] = ended.to_string().into();
                if container["state"]["terminated"]["exitCode"].is_null() {
                    container["state"]["terminated"]["exitCode"] = 1.into();
                }
            }
            "deleted" => pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:59:00Z".into(),
            "released" => pod["metadata"]["finalizers"] = json!([]),
            other => panic!("{other} says nothing about a pod"),
        }
    }
    Arc::new(Pod::from_value(pod).expect("a pod"))
}

fn names(pods: &[Arc<Pod>]) -> String {
    pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect::<Vec<_>>().join(" ")
}

fn describe(found: &Found<'_>, assessment: &Assessment) -> String {
    let step = match plan(found, assessment) {
        _ if assessment.finished.is_some() => "stop".to_owned(),
        Step::Nothing if is_complete(found.spec, assessment.succeeded, 0) && assessment.active.is_empty() => {
            "complete".to_owned()
        }
        Step::Nothing => "nothing".to_owned(),
        Step::Delete(pods) => format!("delete {}", names(&pods)),
        Step::Create(indexes) if indexes.iter().all(Option::is_none) => format!("create {}", indexes.len()),
        Step::Create(indexes) => {
            let indexes: Vec<_> = indexes.iter().flatten().map(ToString::to_string).collect();
            format!("create [{}]", indexes.join(" "))
        }
        Step::Wait(wait) => format!("wait {}s", wait.as_secs()),
    };
    let mut next = found.status.clone();
    let counted = count(found, assessment, &mut next, false);
    let mut lines = vec![format!(
        "{step}; active {} ready {} terminating {} succeeded {} failed {}; releases [{}]",
        assessment.active.len(),
        assessment.ready,
        assessment.terminating,
        assessment.succeeded,
        assessment.failed,
        names(&counted.release),
    )];
    let uncounted = next.uncounted_terminated_pods.unwrap_or_default();
    let list = |uids: Option<Vec<String>>| uids.unwrap_or_default().join(" ");
    let (succeeded, failed) = (list(uncounted.succeeded), list(uncounted.failed));
    if !succeeded.is_empty() || !failed.is_empty() {
        lines.push(format!("uncounted succeeded [{succeeded}] failed [{failed}]"));
    }
    if let Some(completed) = next.completed_indexes {
        lines.push(format!("completed {completed}"));
    }
    if let Some(failed) = next.failed_indexes {
        lines.push(format!("failed indexes {failed}"));
    }
    if let Some(end) = &assessment.finished {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        lines.push(format!("{} {}: {}", end.type_, text(&end.reason), text(&end.message)));
    }
    lines.join("\n")
}

fn check_with(fields: Value, state: Value, pods: &[&str], expected: Expect) {
    let (spec, status) = (spec(fields), status(state));
    let pods: Vec<_> = pods.iter().map(|text| pod(text)).collect();
    let (releasing, failures_seen) = (HashSet::new(), HashMap::new());
    let found = Found {
        spec: &spec,
        status: &status,
        pods: &pods,
        releasing: &releasing,
        backoff: Backoff::default(),
        failures_seen: &failures_seen,
        now: Moment { wall: now(), monotonic: Duration::ZERO },
    };
    expected.assert_eq(&describe(&found, &assess(&found)));
}

fn check(fields: Value, pods: &[&str], expected: Expect) {
    check_with(fields, json!({"startTime": "2030-01-01T00:00:00Z"}), pods, expected);
}

#[test]
fn pods_are_made_for_what_is_left() {
    let three = || json!({"completions": 3, "parallelism": 2});
    check(three(), &[], expect!["create 2; active 0 ready 0 terminating 0 succeeded 0 failed 0; releases []"]);
    check(
        three(),
        &["a Running ready"],
        expect!["create 1; active 1 ready 1 terminating 0 succeeded 0 failed 0; releases []"],
    );
    check(
        three(),
        &["a Succeeded", "b Succeeded", "c Running"],
        expect![[r#"
            nothing; active 1 ready 0 terminating 0 succeeded 2 failed 0; releases [a b]
            uncounted succeeded [a b] failed []"#]],
    );
    check(
        three(),
        &["a Succeeded", "b Succeeded", "c Succeeded"],
        expect![[r#"
            complete; active 0 ready 0 terminating 0 succeeded 3 failed 0; releases [a b c]
            uncounted succeeded [a b c] failed []"#]],
    );
    // Counted before, and gone or without finalizer now: once is enough.
    check_with(
        three(),
        json!({"succeeded": 1, "uncountedTerminatedPods": {"succeeded": ["b", "c"]}}),
        &["a Succeeded released", "b Succeeded"],
        expect![[r#"
            complete; active 0 ready 0 terminating 0 succeeded 3 failed 0; releases [b]
            uncounted succeeded [b] failed []"#]],
    );
}

#[test]
fn without_completions_the_first_success_is_the_end() {
    let queue = || json!({"parallelism": 3});
    check(
        queue(),
        &["a Running"],
        expect!["create 2; active 1 ready 0 terminating 0 succeeded 0 failed 0; releases []"],
    );
    check(
        queue(),
        &["a Running", "b Succeeded"],
        expect![[r#"
            nothing; active 1 ready 0 terminating 0 succeeded 1 failed 0; releases [b]
            uncounted succeeded [b] failed []"#]],
    );
}

#[test]
fn surplus_pods_go_least_useful_first() {
    check(
        json!({"completions": 5, "parallelism": 1}),
        &["a Running ready", "b Pending", "c Running"],
        expect!["delete b c; active 3 ready 1 terminating 0 succeeded 0 failed 0; releases []"],
    );
    check(
        json!({"completions": 5, "parallelism": 2, "suspend": true}),
        &["a Running ready", "b Running"],
        expect!["delete b a; active 2 ready 1 terminating 0 succeeded 0 failed 0; releases []"],
    );
}

#[test]
fn indexes_are_filled_from_the_lowest() {
    let five = || json!({"completions": 5, "parallelism": 3, "completionMode": "Indexed"});
    check_with(
        five(),
        json!({"completedIndexes": "1"}),
        &["a Running i=0", "b Succeeded i=2"],
        expect![[r#"
            create [3 4]; active 1 ready 0 terminating 0 succeeded 2 failed 0; releases [b]
            completed 1,2"#]],
    );
    // A taken index, one beyond the end, none at all, and one that a hand wrote.
    check(
        five(),
        &["a Pending i=0", "b Running ready i=0", "c Running i=9", "d Running", "e Running i=x"],
        expect!["delete a c d e; active 5 ready 1 terminating 0 succeeded 0 failed 0; releases []"],
    );
    // A second success of an index is no second success.
    check_with(
        five(),
        json!({"completedIndexes": "0", "succeeded": 1}),
        &["a Succeeded i=0", "b Succeeded i=7"],
        expect![[r#"
            create [1 2 3]; active 0 ready 0 terminating 0 succeeded 1 failed 0; releases [a b]
            completed 0"#]],
    );
}

#[test]
fn failed_pods_are_replaced_after_a_growing_delay() {
    let job = || json!({"completions": 1, "parallelism": 1, "backoffLimit": 6});
    check(
        job(),
        &["a Failed ended=3"],
        expect![[r#"
            wait 7s; active 0 ready 0 terminating 0 succeeded 0 failed 1; releases [a]
            uncounted succeeded [] failed [a]"#]],
    );
    check(
        job(),
        &["a Failed ended=40", "b Failed ended=3"],
        expect![[r#"
            wait 17s; active 0 ready 0 terminating 0 succeeded 0 failed 2; releases [a b]
            uncounted succeeded [] failed [a b]"#]],
    );
    check(
        job(),
        &["a Failed ended=11"],
        expect![[r#"
            create 1; active 0 ready 0 terminating 0 succeeded 0 failed 1; releases [a]
            uncounted succeeded [] failed [a]"#]],
    );
    // A success ends the delay.
    check(
        json!({"completions": 2, "parallelism": 1}),
        &["a Failed ended=5", "b Succeeded ended=2"],
        expect![[r#"
            create 1; active 0 ready 0 terminating 0 succeeded 1 failed 1; releases [a b]
            uncounted succeeded [b] failed [a]"#]],
    );
}

#[test]
fn too_many_failures_end_the_job() {
    check_with(
        json!({"completions": 3, "parallelism": 2, "backoffLimit": 2}),
        json!({"failed": 2}),
        &["a Failed ended=1", "b Running"],
        expect![[r#"
            stop; active 1 ready 0 terminating 0 succeeded 0 failed 3; releases [a b]
            uncounted succeeded [] failed [a b]
            FailureTarget BackoffLimitExceeded: Job has reached the specified backoff limit"#]],
    );
    // Containers that restart in their pod.
    let on_failure = |limit: i32| json!({"completions": 1, "backoffLimit": limit, "template": {"spec": {"restartPolicy": "OnFailure", "containers": []}}});
    check(
        on_failure(3),
        &["a Running restarts=3"],
        expect![[r#"
            stop; active 1 ready 0 terminating 0 succeeded 0 failed 0; releases [a]
            uncounted succeeded [] failed [a]
            FailureTarget BackoffLimitExceeded: Job has reached the specified backoff limit"#]],
    );
    check(
        on_failure(0),
        &["a Running"],
        expect!["nothing; active 1 ready 0 terminating 0 succeeded 0 failed 0; releases []"],
    );
}

#[test]
fn time_ends_the_job() {
    let job = |seconds: i64| json!({"completions": 1, "activeDeadlineSeconds": seconds});
    check(
        job(3600),
        &["a Running"],
        expect![[r#"
            stop; active 1 ready 0 terminating 0 succeeded 0 failed 0; releases [a]
            uncounted succeeded [] failed [a]
            FailureTarget DeadlineExceeded: Job was active longer than specified deadline"#]],
    );
    check(
        job(3601),
        &["a Running"],
        expect!["nothing; active 1 ready 0 terminating 0 succeeded 0 failed 0; releases []"],
    );
    // A clock that was set back makes the deadline later, never earlier.
    check_with(
        job(10),
        json!({"startTime": "2030-01-02T00:00:00Z"}),
        &["a Running"],
        expect!["nothing; active 1 ready 0 terminating 0 succeeded 0 failed 0; releases []"],
    );
}

#[test]
fn a_deleted_pod_is_replaced_at_once_or_when_it_has_ended() {
    let job = |policy: &str| json!({"completions": 1, "podReplacementPolicy": policy});
    check(
        job("TerminatingOrFailed"),
        &["a Running deleted ended=20"],
        expect![[r#"
            create 1; active 0 ready 0 terminating 1 succeeded 0 failed 1; releases [a]
            uncounted succeeded [] failed [a]"#]],
    );
    check(
        job("Failed"),
        &["a Running deleted"],
        expect!["nothing; active 0 ready 0 terminating 1 succeeded 0 failed 0; releases []"],
    );
    check(
        json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "podReplacementPolicy": "Failed"}),
        &["a Running deleted i=0"],
        expect!["create [1]; active 0 ready 0 terminating 1 succeeded 0 failed 0; releases []"],
    );
}

#[test]
fn the_failure_policy_decides_what_a_failure_means() {
    let job = |rules: Value| json!({"completions": 2, "parallelism": 2, "backoffLimit": 0, "podFailurePolicy": {"rules": rules}});
    let exit = |action: &str, operator: &str| json!([{"action": action, "onExitCodes": {"containerName": "main", "operator": operator, "values": [42]}}]);
    check(
        job(exit("FailJob", "In")),
        &["a Failed exit=42 ended=1", "b Running"],
        expect![[r#"
            stop; active 1 ready 0 terminating 0 succeeded 0 failed 1; releases [a b]
            uncounted succeeded [] failed [a b]
            FailureTarget PodFailurePolicy: Container main for pod ns/a failed with exit code 42 matching FailJob rule at index 0"#]],
    );
    check(
        job(exit("Ignore", "NotIn")),
        &["a Failed exit=7 ended=60", "b Running"],
        expect!["create 1; active 1 ready 0 terminating 0 succeeded 0 failed 0; releases [a]"],
    );
    let disrupted = json!([
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [0]}},
    ]);
    check(
        job(disrupted),
        &["a Failed disrupted exit=137 ended=60", "b Failed exit=1 ended=60"],
        expect![[r#"
            stop; active 0 ready 0 terminating 0 succeeded 0 failed 1; releases [a b]
            uncounted succeeded [] failed [b]
            FailureTarget PodFailurePolicy: Container main for pod ns/b failed with exit code 1 matching FailJob rule at index 1"#]],
    );
    // An action of a later version is passed over.
    check(
        job(exit("Shrug", "In")),
        &["a Failed exit=42 ended=60", "b Running"],
        expect![[r#"
            stop; active 1 ready 0 terminating 0 succeeded 0 failed 1; releases [a b]
            uncounted succeeded [] failed [a b]
            FailureTarget BackoffLimitExceeded: Job has reached the specified backoff limit"#]],
    );
}

#[test]
fn each_index_has_its_own_limit() {
    let job = || json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
    // The failed pod keeps its finalizer until its successor has its failure count.
    check(
        job(),
        &["a Failed i=0 f=0 ended=20", "b Running i=1", "c Running i=2"],
        expect![[r#"
            create [0]; active 2 ready 0 terminating 0 succeeded 0 failed 1; releases []
            failed indexes "#]],
    );
    check(
        job(),
        &["a Failed i=0 f=0 ended=4", "b Running i=1", "c Running i=2"],
        expect![[r#"
            wait 6s; active 2 ready 0 terminating 0 succeeded 0 failed 1; releases []
            failed indexes "#]],
    );
    check(
        job(),
        &["a Failed i=0 f=0 ended=40", "d Running i=0 f=1", "b Running i=1", "c Running i=2"],
        expect![[r#"
            nothing; active 3 ready 0 terminating 0 succeeded 0 failed 1; releases [a]
            uncounted succeeded [] failed [a]
            failed indexes "#]],
    );
    check(
        job(),
        &["d Failed i=0 f=1 ended=40", "b Running i=1", "c Succeeded i=2"],
        expect![[r#"
            nothing; active 1 ready 0 terminating 0 succeeded 1 failed 1; releases [d c]
            uncounted succeeded [] failed [d]
            completed 2
            failed indexes 0"#]],
    );
    check_with(
        job(),
        json!({"completedIndexes": "1,2", "failedIndexes": "0"}),
        &[],
        expect![[r#"
            stop; active 0 ready 0 terminating 0 succeeded 2 failed 0; releases []
            completed 1,2
            failed indexes 0
            FailureTarget FailedIndexes: Job has failed indexes"#]],
    );
    let mut limited = job();
    limited["maxFailedIndexes"] = 1.into();
    check_with(
        limited,
        json!({"failedIndexes": "0,1"}),
        &["c Running i=2"],
        expect![[r#"
            stop; active 1 ready 0 terminating 0 succeeded 0 failed 0; releases [c]
            uncounted succeeded [] failed [c]
            failed indexes 0,1
            FailureTarget MaxFailedIndexesExceeded: Job has exceeded the specified maximal number of failed indexes"#]],
    );
    let mut policy = job();
    policy["podFailurePolicy"] =
        json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}}]});
    check(
        policy,
        &["a Failed i=0 f=0 exit=42 ended=20", "b Running i=1", "c Running i=2"],
        expect![[r#"
            nothing; active 2 ready 0 terminating 0 succeeded 0 failed 1; releases [a]
            uncounted succeeded [] failed [a]
            failed indexes 0"#]],
    );
    // A count that a hand wrote is no count.
    check(
        job(),
        &["a Failed i=0 f=-7 ended=20", "b Running i=1", "c Running i=2"],
        expect![[r#"
            create [0]; active 2 ready 0 terminating 0 succeeded 0 failed 1; releases []
            failed indexes "#]],
    );
}

#[test]
fn enough_successes_end_the_job() {
    let job = |rule: Value| json!({"completions": 5, "parallelism": 5, "completionMode": "Indexed", "successPolicy": {"rules": [rule]}});
    let pods = ["a Succeeded i=0", "b Succeeded i=2", "c Running i=3"];
    check(
        job(json!({"succeededIndexes": "0,2"})),
        &pods,
        expect![[r#"
            stop; active 1 ready 0 terminating 0 succeeded 2 failed 0; releases [a b c]
            completed 0,2
            SuccessCriteriaMet SuccessPolicy: Matched rules at index 0"#]],
    );
    check(
        job(json!({"succeededIndexes": "0-3", "succeededCount": 2})),
        &pods,
        expect![[r#"
            stop; active 1 ready 0 terminating 0 succeeded 2 failed 0; releases [a b c]
            completed 0,2
            SuccessCriteriaMet SuccessPolicy: Matched rules at index 0"#]],
    );
    check(
        job(json!({"succeededCount": 3})),
        &pods,
        expect![[r#"
            create [1 4]; active 1 ready 0 terminating 0 succeeded 2 failed 0; releases [a b]
            completed 0,2"#]],
    );
}

#[test]
fn an_earlier_decision_stands() {
    check_with(
        json!({"completions": 2, "parallelism": 2, "backoffLimit": 0}),
        json!({"conditions": [
            {"type": "SomeoneElses", "status": "True"},
            {"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "message": "late"},
        ]}),
        &["a Running", "b Succeeded"],
        expect![[r#"
            stop; active 1 ready 0 terminating 0 succeeded 1 failed 0; releases [a b]
            uncounted succeeded [b] failed [a]
            Failed DeadlineExceeded: late"#]],
    );
    check_with(
        json!({"completions": 2, "parallelism": 2, "backoffLimit": 0}),
        json!({"conditions": [{"type": "SuccessCriteriaMet", "status": "True", "reason": "SuccessPolicy", "message": "m"}]}),
        &["a Running", "b Failed ended=1"],
        expect![[r#"
            stop; active 1 ready 0 terminating 0 succeeded 0 failed 1; releases [a b]
            uncounted succeeded [] failed [b]
            SuccessCriteriaMet SuccessPolicy: m"#]],
    );
}

#[test]
fn at_most_five_hundred_ends_are_counted_at_once() {
    let spec = spec(json!({"completions": 2000, "parallelism": 2000}));
    let status = JobStatus::default();
    let pods: Vec<_> = (0..700).map(|number| pod(&format!("p{number} Succeeded"))).collect();
    let (releasing, failures_seen) = (HashSet::new(), HashMap::new());
    let found = Found {
        spec: &spec,
        status: &status,
        pods: &pods,
        releasing: &releasing,
        backoff: Backoff::default(),
        failures_seen: &failures_seen,
        now: Moment { wall: now(), monotonic: Duration::ZERO },
    };
    let assessment = assess(&found);
    let mut next = status.clone();
    let counted = count(&found, &assessment, &mut next, false);
    assert_eq!((counted.release.len(), counted.full, assessment.succeeded), (500, true, 700));
    let Step::Create(new) = plan(&found, &assessment) else { panic!("pods are missing") };
    assert_eq!(new.len(), 500);
}
