//! Calculations as tables, and rounds against faked metrics APIs.

use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use jiff::{SignedDuration, Timestamp};
use rkube_api::Kind;
use rkube_api::k8s::apps::v1::Deployment;
use rkube_api::k8s::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerBehavior};
use rkube_api::k8s::core::v1::Pod;
use serde_json::{Value, json};

use super::HORIZONTAL_POD_AUTOSCALER;
use super::behavior::{History, Range, limit};
use super::metrics::{PodMetric, PodMetrics};
use super::replicas::{Calculator, Proposal, Tolerances};
use crate::testing::{World, events, survives_any_crash};

const START: &str = "2030-01-01T00:00:00Z";

fn start() -> Timestamp {
    START.parse().expect("a timestamp")
}

/// A pod of one container that runs since an hour.
fn pod(name: &str, cpu: &str, ready: &str) -> Pod {
    let value = json!({
        "metadata": {"namespace": "ns", "name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": cpu}}}]},
        "status": {
            "phase": "Running", "startTime": "2029-12-31T23:00:00Z",
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2029-12-31T23:01:00Z"}],
        },
    });
    Pod::from_value(value).expect("a pod")
}

/// A pod that became ready, or not, this long after its start, and started this long ago.
fn young(mut pod: Pod, age: i64, ready_after: i64) -> Pod {
    let started = start() - SignedDuration::from_secs(age);
    let time = |seconds| rkube_api::meta::pkg::apis::meta::v1::Time(started + SignedDuration::from_secs(seconds));
    let status = pod.status.get_or_insert_default();
    status.start_time = Some(time(0));
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_transition_time = Some(time(ready_after));
    }
    pod
}

fn measured(values: &[(&str, i64)]) -> PodMetrics {
    let metric = |value| PodMetric { timestamp: start(), window: Duration::from_secs(60), value };
    values.iter().map(|(name, value)| ((*name).to_owned(), metric(*value))).collect()
}

fn calculate<T>(pods: Vec<Pod>, calculation: impl FnOnce(&Calculator<'_>) -> T) -> T {
    let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
    calculation(&Calculator {
        pods: &pods,
        tolerances: Tolerances { down: 0.1, up: 0.1 },
        cpu_initialization_period: Duration::from_secs(120),
        initial_readiness_delay: Duration::from_secs(10),
        now: start(),
    })
}

fn by_utilization(pods: Vec<Pod>, current: i32, target: i32, values: &[(&str, i64)]) -> String {
    let result = calculate(pods, |it| it.by_utilization(current, target, "cpu", None, measured(values)));
    match result {
        Ok(Proposal { replicas, usage, utilization }) => {
            format!("{replicas} at {}% {usage}m", utilization.unwrap_or(-1))
        }
        Err(error) => error,
    }
}

fn three(ready: [&str; 3]) -> Vec<Pod> {
    ["a", "b", "c"].into_iter().zip(ready).map(|(name, ready)| pod(name, "1", ready)).collect()
}

#[test]
fn utilization_is_of_requests_and_tolerance_holds_it() {
    let all = || three(["True"; 3]);
    assert_eq!(by_utilization(all(), 3, 30, &[("a", 300), ("b", 500), ("c", 700)]), "5 at 50% 500m");
    assert_eq!(by_utilization(all(), 3, 100, &[("a", 100), ("b", 200), ("c", 300)]), "1 at 20% 200m");
    assert_eq!(by_utilization(all(), 3, 50, &[("a", 500), ("b", 520), ("c", 540)]), "3 at 52% 520m");
    // Pods of other targets are none of ours.
    assert_eq!(by_utilization(all(), 3, 30, &[("a", 500), ("b", 500), ("c", 500), ("x", 9000)]), "5 at 50% 500m");
}

#[test]
fn missing_pods_lessen_a_change_and_never_turn_it() {
    let all = || three(["True"; 3]);
    // Up: as if they used nothing. 2 of 3 at 100% of a target of 50%: 200/150 of it.
    assert_eq!(by_utilization(all(), 3, 50, &[("a", 1000), ("b", 1000)]), "4 at 100% 1000m");
    // Up by less than it would go down with them: nothing.
    assert_eq!(by_utilization(all(), 3, 50, &[("a", 600), ("b", 600)]), "3 at 60% 600m");
    // Down: as if they used all they requested.
    assert_eq!(by_utilization(all(), 3, 100, &[("a", 100), ("b", 100)]), "2 at 10% 100m");
    assert_eq!(by_utilization(all(), 3, 50, &[("a", 200), ("b", 200)]), "3 at 20% 200m");
}

#[test]
fn pods_that_are_not_ready_lessen_only_scaling_up() {
    let some = || three(["True", "True", "False"]);
    // Not ready for long: counted as any other.
    assert_eq!(by_utilization(some(), 3, 50, &[("a", 1000), ("b", 1000), ("c", 1000)]), "6 at 100% 1000m");
    let starting = || {
        let mut pods = some();
        pods[2] = young(pods[2].clone(), 60, 0);
        pods
    };
    assert_eq!(by_utilization(starting(), 3, 50, &[("a", 1000), ("b", 1000), ("c", 1000)]), "4 at 100% 1000m");
    assert_eq!(by_utilization(starting(), 3, 50, &[("a", 100), ("b", 100), ("c", 9000)]), "1 at 10% 100m");
    // Ready, but measured while it started.
    let mut just_ready = some();
    just_ready[2] = young(pod("c", "1", "True"), 60, 30);
    assert_eq!(by_utilization(just_ready, 3, 50, &[("a", 1000), ("b", 1000), ("c", 9000)]), "4 at 100% 1000m");
    let mut pending = some();
    pending[2].status.get_or_insert_default().phase = Some("Pending".to_owned());
    assert_eq!(by_utilization(pending, 3, 50, &[("a", 1000), ("b", 1000)]), "4 at 100% 1000m");
    let mut failed = some();
    failed[2].status.get_or_insert_default().phase = Some("Failed".to_owned());
    assert_eq!(by_utilization(failed, 3, 50, &[("a", 1000), ("b", 1000), ("c", 9000)]), "4 at 100% 1000m");
}

#[test]
fn what_cannot_be_calculated_says_why() {
    let none: &[(&str, i64)] = &[];
    assert_eq!(by_utilization(vec![], 1, 50, none), "no pods returned by selector while calculating replica count");
    assert_eq!(
        by_utilization(three(["True"; 3]), 3, 50, none),
        "did not receive metrics for targeted pods (pods might be unready)"
    );
    let mut pods = three(["True"; 3]);
    pods[1].spec.get_or_insert_default().containers[0].resources = None;
    let values = [("a", 1), ("b", 1), ("c", 1)];
    assert_eq!(by_utilization(pods, 3, 50, &values), "missing request for cpu in container main of Pod b");
    let result = calculate(three(["True"; 3]), |it| it.by_utilization(3, 50, "cpu", Some("x"), measured(&values)));
    assert_eq!(result, Err("container x not found in Pod a".to_owned()));
}

#[test]
fn values_are_shared_or_compared_as_a_whole() {
    let replicas = |result: Result<Proposal, String>| result.map(|proposal| (proposal.replicas, proposal.usage));
    let pods = || three(["True", "True", "False"]);
    // By the ready pods: 2, at twice the target.
    assert_eq!(replicas(calculate(pods(), |it| it.by_value(3, 100, 200))), Ok((4, 200)));
    assert_eq!(replicas(calculate(pods(), |it| it.by_value(3, 100, 105))), Ok((3, 105)));
    assert_eq!(replicas(calculate(vec![], |it| it.by_value(0, 100, 250))), Ok((3, 250)));
    assert_eq!(replicas(Ok(calculate(vec![], |it| it.by_share(2, 100, 900)))), Ok((9, 450)));
    assert_eq!(replicas(Ok(calculate(vec![], |it| it.by_share(4, 100, 410)))), Ok((4, 103)));
    assert_eq!(replicas(Ok(calculate(vec![], |it| it.by_share(4, 1, i64::MAX)))).map(|it| it.0), Ok(i32::MAX));
}

fn range(current: i32) -> Range {
    Range { current, min: 2, max: 20 }
}

#[test]
fn without_rules_targets_are_doubled_at_most() {
    let show = |wanted, current| {
        let verdict = limit(wanted, range(current));
        format!("{} {} {}", verdict.replicas, verdict.reason, verdict.held)
    };
    assert_eq!(show(5, 3), "5 DesiredWithinRange false");
    assert_eq!(show(9, 2), "4 ScaleUpLimit true");
    assert_eq!(show(30, 8), "16 ScaleUpLimit true");
    assert_eq!(show(30, 12), "20 TooManyReplicas true");
    assert_eq!(show(1, 12), "2 TooFewReplicas true");
}

#[test]
fn the_highest_recommendation_of_the_window_holds() {
    let mut history = History::default();
    let window = Duration::from_secs(300);
    let mut at = |seconds, wanted| history.stabilize(wanted, window, Duration::from_secs(seconds)).replicas;
    assert_eq!(at(0, 8), 8);
    assert_eq!(at(100, 3), 8);
    assert_eq!(at(300, 3), 8);
    assert_eq!(at(301, 3), 3);
    assert_eq!(at(302, 9), 9);
}

fn behavior(value: Value) -> HorizontalPodAutoscalerBehavior {
    let spec = json!({"maxReplicas": 20, "scaleTargetRef": {"kind": "x", "name": "x"}, "behavior": value});
    let hpa = HorizontalPodAutoscaler::from_value(json!({"spec": spec})).expect("an autoscaler");
    hpa.spec.behavior.expect("it was given")
}

#[test]
fn policies_limit_changes_per_period() {
    let rules = behavior(json!({
        "scaleUp": {"selectPolicy": "Max", "policies": [
            {"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60},
        ]},
        "scaleDown": {"selectPolicy": "Min", "policies": [
            {"type": "Pods", "value": 3, "periodSeconds": 60}, {"type": "Percent", "value": 10, "periodSeconds": 60},
        ]},
    }));
    let mut history = History::default();
    let mut step = |seconds, current, wanted| {
        let now = Duration::from_secs(seconds);
        let verdict = history.limit_with(wanted, range(current), &rules, now);
        history.changed(current, verdict.replicas, Some(&rules), now);
        format!("{} {}", verdict.replicas, verdict.reason)
    };
    assert_eq!(step(0, 3, 20), "5 ScaleUpLimit");
    assert_eq!(step(30, 5, 20), "5 ScaleUpLimit", "two were added within the period");
    assert_eq!(step(61, 5, 20), "8 ScaleUpLimit", "half of five, rounded up, is more than two");
    assert_eq!(step(200, 8, 9), "9 DesiredWithinRange");
    assert_eq!(step(300, 10, 2), "9 ScaleDownLimit", "the smaller change counts");
    assert_eq!(step(400, 20, 30), "20 TooManyReplicas");
    let disabled = behavior(json!({"scaleDown": {"selectPolicy": "Disabled"}}));
    let verdict = History::default().limit_with(2, range(8), &disabled, Duration::ZERO);
    assert_eq!((verdict.replicas, verdict.reason), (8, "ScaleDownLimit"));
}

#[test]
fn each_direction_has_its_window() {
    let rules = behavior(json!({
        "scaleUp": {"stabilizationWindowSeconds": 60}, "scaleDown": {"stabilizationWindowSeconds": 120},
    }));
    let mut history = History::default();
    let mut at = |seconds, wanted| {
        let now = Duration::from_secs(seconds);
        let verdict = history.stabilize_with(wanted, 5, &rules, Duration::from_secs(300), now);
        format!("{} {}", verdict.replicas, verdict.reason)
    };
    assert_eq!(at(0, 5), "5 ReadyForNewScale");
    assert_eq!(at(30, 9), "5 ScaleUpStabilized");
    assert_eq!(at(61, 8), "8 ReadyForNewScale");
    assert_eq!(at(90, 2), "5 ScaleDownStabilized");
    assert_eq!(at(205, 2), "2 ReadyForNewScale");
}

fn autoscaler(metrics: Value) -> HorizontalPodAutoscaler {
    let value = json!({
        "metadata": {"namespace": "ns", "name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 2, "maxReplicas": 6, "metrics": metrics,
        },
    });
    HorizontalPodAutoscaler::from_value(value).expect("an autoscaler")
}

fn cpu(percent: i32) -> Value {
    json!([{"type": "Resource", "resource":
        {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}])
}

/// A Deployment with so many running pods.
fn world(hpa: &HorizontalPodAutoscaler, replicas: i32) -> World {
    let world = World::new(&[HORIZONTAL_POD_AUTOSCALER]);
    let value = json!({
        "metadata": {"namespace": "ns", "name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {}},
        "status": {"replicas": replicas},
    });
    world.api.put(&Deployment::from_value(value).expect("a Deployment"));
    for index in 0..replicas {
        world.api.put(&pod(&format!("web-{index}"), "1", "True"));
    }
    world.api.put(hpa);
    world
}

/// Every pod uses this much.
fn measure_cpu(world: &World, pods: i32, usage: &str) {
    let items: Vec<Value> = (0..pods)
        .map(|index| {
            json!({"metadata": {"name": format!("web-{index}")}, "timestamp": START, "window": "30s",
                "containers": [{"name": "main", "usage": {"cpu": usage, "memory": "10Mi"}}]})
        })
        .collect();
    world.api.set_raw("/apis/metrics.k8s.io/v1beta1/namespaces/ns/pods", json!({"items": items}));
}

fn outcome(world: &World) -> String {
    let hpa = world.api.get::<HorizontalPodAutoscaler>("ns", "web").expect("it was put");
    let deployment = world.api.get::<Deployment>("ns", "web").expect("it was put");
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(-1);
    let status = hpa.status.clone().unwrap_or_default();
    let mut lines = vec![format!(
        "target {replicas} current {} desired {} metrics {}",
        status.current_replicas.unwrap_or(-1),
        status.desired_replicas,
        json!(hpa.to_value()["status"]["currentMetrics"]),
    )];
    lines.extend(status.conditions.iter().flatten().map(|condition| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{} {} {}: {}", condition.type_, condition.status, text(&condition.reason), text(&condition.message))
    }));
    lines.join("\n")
}

async fn check(world: &mut World, expected: Expect) {
    world.settle().await;
    expected.assert_eq(&outcome(world));
}

#[tokio::test]
async fn load_scales_up_and_idleness_down_after_the_window() {
    let mut world = world(&autoscaler(cpu(50)), 3);
    measure_cpu(&world, 3, "900m");
    world.start();
    check(
        &mut world,
        expect![[r#"
            target 6 current 3 desired 6 metrics [{"resource":{"current":{"averageUtilization":90,"averageValue":"900m"},"name":"cpu"},"type":"Resource"}]
            AbleToScale True SucceededRescale: the HPA controller was able to update the target scale to 6
            ScalingActive True ValidMetricFound: the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)
            ScalingLimited False DesiredWithinRange: the desired count is within the acceptable range"#]],
    )
    .await;
    expect![
        "Normal SuccessfulRescale: New size: 6; reason: cpu resource utilization (percentage of request) above target"
    ]
    .assert_eq(&events(&world, "ns"));
    measure_cpu(&world, 3, "100m");
    world.run_for(Duration::from_secs(60)).await;
    check(
        &mut world,
        expect![[r#"
            target 6 current 6 desired 6 metrics [{"resource":{"current":{"averageUtilization":10,"averageValue":"100m"},"name":"cpu"},"type":"Resource"}]
            AbleToScale True ScaleDownStabilized: recent recommendations were higher than current one, applying the highest recent recommendation
            ScalingActive True ValidMetricFound: the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)
            ScalingLimited False DesiredWithinRange: the desired count is within the acceptable range"#]],
    )
    .await;
    // Nothing is written while nothing changes.
    world.api.take_actions();
    world.run_for(Duration::from_secs(120)).await;
    assert_eq!(world.api.take_writes(), "");
    world.run_for(Duration::from_secs(200)).await;
    check(
        &mut world,
        expect![[r#"
            target 2 current 2 desired 2 metrics [{"resource":{"current":{"averageUtilization":10,"averageValue":"100m"},"name":"cpu"},"type":"Resource"}]
            AbleToScale True ReadyForNewScale: recommended size matches current size
            ScalingActive True ValidMetricFound: the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)
            ScalingLimited True TooFewReplicas: the desired replica count is less than the minimum replica count"#]],
    )
    .await;
}

#[tokio::test]
async fn without_metrics_nothing_moves_and_the_condition_says_why() {
    let mut world = world(&autoscaler(cpu(50)), 3);
    measure_cpu(&world, 0, "");
    world.start();
    check(
        &mut world,
        expect![[r#"
            target 3 current 3 desired 0 metrics [{"type":""}]
            AbleToScale True SucceededGetScale: the HPA controller was able to get the target's current scale
            ScalingActive False FailedGetResourceMetric: the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API"#]],
    )
    .await;
    let text = events(&world, "ns");
    for wanted in [
        "Warning FailedGetResourceMetric: failed to get cpu utilization: unable to get metrics for resource cpu: no \
         metrics returned from resource metrics API",
        "Warning FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 1), first error is: failed to get cpu \
         resource metric value: failed to get cpu utilization: unable to get metrics for resource cpu: no metrics \
         returned from resource metrics API",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in:\n{text}");
    }
}

#[tokio::test]
async fn targets_out_of_range_are_put_in_it_without_metrics() {
    let mut below = world(&autoscaler(cpu(50)), 1);
    below.start();
    below.settle().await;
    assert!(outcome(&below).starts_with("target 2 current 1 desired 2"), "{}", outcome(&below));
    assert!(events(&below, "ns").contains("New size: 2; reason: Current number of replicas below Spec.MinReplicas"));
    let mut above = world(&autoscaler(cpu(50)), 9);
    above.start();
    above.settle().await;
    assert!(outcome(&above).starts_with("target 6 current 9 desired 6"), "{}", outcome(&above));
    let mut off = world(&autoscaler(cpu(50)), 0);
    off.start();
    check(
        &mut off,
        expect![[r#"
            target 0 current 0 desired 0 metrics null
            AbleToScale True SucceededGetScale: the HPA controller was able to get the target's current scale
            ScalingActive False ScalingDisabled: scaling is disabled since the replica count of the target is zero"#]],
    )
    .await;
}

#[tokio::test]
async fn a_target_that_is_not_there_or_has_no_kind_is_reported() {
    let mut hpa = autoscaler(cpu(50));
    hpa.spec.scale_target_ref.name = "missing".to_owned();
    let mut gone = world(&hpa, 1);
    gone.start();
    gone.settle().await;
    let wanted = "AbleToScale False FailedGetScale: the HPA controller was unable to get the target's current scale: \
                  deployments.apps \"missing\" not found";
    assert!(outcome(&gone).contains(wanted), "{}", outcome(&gone));
    hpa.spec.scale_target_ref.kind = "Nonsense".to_owned();
    let mut unknown = world(&hpa, 1);
    unknown.start();
    unknown.settle().await;
    let wanted = "current scale: no matches for kind \"Nonsense\" in group \"apps\"";
    assert!(outcome(&unknown).contains(wanted), "{}", outcome(&unknown));
}

#[tokio::test]
async fn two_autoscalers_of_the_same_pods_stand_still() {
    let mut world = world(&autoscaler(cpu(50)), 3);
    measure_cpu(&world, 3, "900m");
    let mut second = autoscaler(cpu(50));
    second.metadata.name = Some("other".to_owned());
    world.api.edit::<Deployment>("ns", "web", |deployment| deployment.spec.get_or_insert_default().replicas = Some(3));
    world.start();
    world.settle().await;
    world.api.put(&second);
    world.run_for(Duration::from_secs(16)).await;
    let wanted = "ScalingActive False AmbiguousSelector: pods by selector app=web are controlled by multiple HPAs: \
                  [ns/other ns/web]";
    assert!(outcome(&world).contains(wanted), "{}", outcome(&world));
}

#[tokio::test]
async fn every_kind_of_metric_is_read_and_the_largest_proposal_counts() {
    let metrics = json!([
        {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "main",
            "target": {"type": "AverageValue", "averageValue": "10Mi"}}},
        {"type": "Pods", "pods": {"metric": {"name": "rps", "selector": {"matchLabels": {"verb": "GET"}}},
            "target": {"type": "AverageValue", "averageValue": "100"}}},
        {"type": "Object", "object": {"describedObject": {"apiVersion": "v1", "kind": "Service", "name": "web"},
            "metric": {"name": "latency"}, "target": {"type": "Value", "value": "2"}}},
        {"type": "External", "external": {"metric": {"name": "queue"},
            "target": {"type": "AverageValue", "averageValue": "30"}}},
    ]);
    let mut world = world(&autoscaler(metrics), 3);
    measure_cpu(&world, 3, "100m");
    world.api.set_raw(
        "/apis/custom.metrics.k8s.io",
        json!({"preferredVersion": {"version": "v1beta2"}, "versions": [{"version": "v1beta2"}]}),
    );
    let custom = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns";
    let of_pod =
        |index: i32| json!({"describedObject": {"name": format!("web-{index}")}, "timestamp": START, "value": "110"});
    world.api.set_raw(&format!("{custom}/pods/*/rps"), json!({"items": [of_pod(0), of_pod(1), of_pod(2)]}));
    world.api.set_raw(&format!("{custom}/services/web/latency"), json!({"items": [{"value": "2100m"}]}));
    let queue = json!({"items": [{"value": "80"}, {"value": "70"}]});
    world.api.set_raw("/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/queue", queue);
    world.start();
    check(
        &mut world,
        expect![[r#"
            target 5 current 3 desired 5 metrics [{"containerResource":{"container":"main","current":{"averageValue":"10Mi"},"name":"memory"},"type":"ContainerResource"},{"pods":{"current":{"averageValue":"110"},"metric":{"name":"rps","selector":{"matchLabels":{"verb":"GET"}}}},"type":"Pods"},{"object":{"current":{"value":"2100m"},"describedObject":{"apiVersion":"v1","kind":"Service","name":"web"},"metric":{"name":"latency"}},"type":"Object"},{"external":{"current":{"averageValue":"50"},"metric":{"name":"queue"}},"type":"External"}]
            AbleToScale True SucceededRescale: the HPA controller was able to update the target scale to 5
            ScalingActive True ValidMetricFound: the HPA was able to successfully calculate a replica count from external metric queue(nil)
            ScalingLimited False DesiredWithinRange: the desired count is within the acceptable range"#]],
    )
    .await;
}

#[tokio::test]
async fn a_metric_that_fails_forbids_scaling_down_but_not_up() {
    let metrics = json!([cpu(50)[0], {"type": "External", "external":
        {"metric": {"name": "queue"}, "target": {"type": "Value", "value": "30"}}}]);
    let mut down = world(&autoscaler(metrics.clone()), 4);
    measure_cpu(&down, 4, "100m");
    down.start();
    down.run_for(Duration::from_secs(400)).await;
    assert!(outcome(&down).starts_with("target 4"), "{}", outcome(&down));
    assert!(outcome(&down).contains("ScalingActive False FailedGetExternalMetric"), "{}", outcome(&down));
    let mut up = world(&autoscaler(metrics), 3);
    measure_cpu(&up, 3, "900m");
    up.start();
    up.settle().await;
    assert!(outcome(&up).starts_with("target 6"), "{}", outcome(&up));
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let fresh = || {
        let world = world(&autoscaler(cpu(50)), 3);
        measure_cpu(&world, 3, "900m");
        world
    };
    let drive = async |world: &mut World| {
        world.run_for(Duration::from_secs(40)).await;
        measure_cpu(world, 3, "100m");
        world.run_for(Duration::from_secs(700)).await;
    };
    survives_any_crash(fresh, drive, outcome).await;
}
