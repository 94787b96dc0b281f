//! Budgets over pods of several controllers, and evictions that did not happen.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::k8s::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use rkube_api::k8s::core::v1::Pod;
use rkube_api::k8s::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use rkube_api::meta::pkg::apis::meta::v1::{LabelSelector, OwnerReference, Time};
use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_client::owner::new_controller_ref;
use serde_json::json;

use super::DISRUPTION;
use crate::testing::{World, events, labels, metadata, run_pod, set_pod_condition, survives_any_crash};

fn budget(min_available: Option<IntOrString>, max_unavailable: Option<IntOrString>) -> PodDisruptionBudget {
    let selector = LabelSelector { match_labels: Some(labels(&[("app", "web")])), ..LabelSelector::default() };
    PodDisruptionBudget {
        metadata: metadata("ns", "budget"),
        spec: Some(PodDisruptionBudgetSpec {
            selector: Some(selector),
            min_available,
            max_unavailable,
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

fn percent(text: &str) -> Option<IntOrString> {
    Some(IntOrString::String(text.to_owned()))
}

fn number(count: i32) -> Option<IntOrString> {
    Some(IntOrString::Int(count))
}

/// Puts `count` pods that run, of a controller or of none.
fn put_pods(world: &World, count: usize, owner: Option<&OwnerReference>) {
    for index in 0..count {
        let mut pod = Pod { metadata: metadata("ns", &format!("web-{index}")), ..Pod::default() };
        pod.metadata.labels = Some(labels(&[("app", "web")]));
        pod.metadata.owner_references = owner.map(|owner| vec![owner.clone()]);
        run_pod(&mut pod, "node", world.now());
        world.api.put(&pod);
    }
}

/// Puts a ReplicaSet of a Deployment that wants `replicas`, and returns the reference of its pods.
fn put_deployment(world: &World, replicas: i32) -> OwnerReference {
    let spec = DeploymentSpec { replicas: Some(replicas), ..DeploymentSpec::default() };
    world.api.put(&Deployment { metadata: metadata("ns", "web"), spec: Some(spec), status: None });
    let deployment = world.api.get::<Deployment>("ns", "web").expect("it was put");
    // Scaled otherwise than the Deployment, as in the middle of a rollout.
    let spec = ReplicaSetSpec { replicas: Some(1), ..ReplicaSetSpec::default() };
    let mut set = ReplicaSet { metadata: metadata("ns", "web-1"), spec: Some(spec), status: None };
    set.metadata.owner_references = Some(vec![new_controller_ref(&*deployment)]);
    world.api.put(&set);
    new_controller_ref(&*world.api.get::<ReplicaSet>("ns", "web-1").expect("it was put"))
}

fn world(budget: &PodDisruptionBudget) -> World {
    let world = World::new(&[DISRUPTION]);
    world.api.put(budget);
    world
}

fn outcome(world: &World) -> String {
    let budget = world.api.get::<PodDisruptionBudget>("ns", "budget").expect("it was put");
    let status = budget.status.clone().unwrap_or_default();
    let count = |count: Option<i32>| count.map_or("-".to_owned(), |count| count.to_string());
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .flatten()
        .map(|condition| format!("{}={} {} {}", condition.type_, condition.status, condition.reason, condition.message))
        .collect();
    let disrupted: Vec<_> = status.disrupted_pods.iter().flatten().map(|(name, _)| name.as_str()).collect();
    let text = format!(
        "allowed {} healthy {}/{} of {} disrupted [{}] {}",
        count(status.disruptions_allowed),
        count(status.current_healthy),
        count(status.desired_healthy),
        count(status.expected_pods),
        disrupted.join(" "),
        conditions.join(", "),
    );
    text.trim_end().to_owned()
}

async fn check(mut world: World, expected: Expect) -> World {
    world.start();
    world.settle().await;
    expected.assert_eq(&outcome(&world));
    world
}

#[tokio::test]
async fn a_number_of_available_pods_counts_those_that_are_there() {
    let world = world(&budget(number(2), None));
    put_pods(&world, 3, None);
    check(world, expect!["allowed 1 healthy 3/2 of 3 disrupted [] DisruptionAllowed=True SufficientPods"]).await;
}

#[tokio::test]
async fn shares_are_of_what_the_deployment_wants() {
    let world = world(&budget(percent("50%"), None));
    let owner = put_deployment(&world, 5);
    put_pods(&world, 4, Some(&owner));
    let mut world =
        check(world, expect!["allowed 1 healthy 4/3 of 5 disrupted [] DisruptionAllowed=True SufficientPods"]).await;
    world.api.edit::<Pod>("ns", "web-0", |pod| {
        set_pod_condition(pod, "Ready", "False", "2030-01-01T00:00:00Z".parse().expect("a timestamp"));
    });
    world.settle().await;
    expect!["allowed 0 healthy 3/3 of 5 disrupted [] DisruptionAllowed=False InsufficientPods"]
        .assert_eq(&outcome(&world));
}

#[tokio::test]
async fn unavailable_shares_are_rounded_up() {
    let world = world(&budget(None, percent("30%")));
    let owner = put_deployment(&world, 5);
    put_pods(&world, 5, Some(&owner));
    check(world, expect!["allowed 2 healthy 5/3 of 5 disrupted [] DisruptionAllowed=True SufficientPods"]).await;
}

#[tokio::test]
async fn a_budget_without_pods_allows_nothing_and_costs_nothing() {
    let world = world(&budget(number(0), None));
    let mut world =
        check(world, expect!["allowed 0 healthy 0/0 of 0 disrupted [] DisruptionAllowed=False InsufficientPods"]).await;
    world.api.take_actions();
    world.run_for(Duration::from_secs(3600)).await;
    assert!(world.api.take_actions().is_empty());
}

#[tokio::test]
async fn pods_of_a_custom_controller_are_counted_by_its_scale() {
    let world = world(&budget(percent("50%"), None));
    let verbs = ["get", "list", "watch"];
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    world.api.set_raw(
        "/apis",
        json!({"items": [{"metadata": {"name": "example.com"}, "versions": [{"version": "v1", "resources": [{
            "resource": "apps", "scope": "Namespaced", "verbs": verbs, "responseKind": kind("example.com", "v1", "App"),
            "subresources": [{"subresource": "scale", "verbs": ["get"],
                "responseKind": kind("autoscaling", "v1", "Scale")}],
        }]}]}]}),
    );
    world.api.put_value(
        "apps",
        json!({"apiVersion": "example.com/v1", "kind": "App",
            "metadata": {"namespace": "ns", "name": "web", "uid": "app-uid"}, "spec": {"replicas": 4}}),
    );
    let owner = OwnerReference {
        api_version: "example.com/v1".to_owned(),
        kind: "App".to_owned(),
        name: "web".to_owned(),
        uid: "app-uid".to_owned(),
        controller: Some(true),
        ..OwnerReference::default()
    };
    put_pods(&world, 3, Some(&owner));
    check(world, expect!["allowed 1 healthy 3/2 of 4 disrupted [] DisruptionAllowed=True SufficientPods"]).await;
}

#[tokio::test]
async fn pods_of_what_has_no_scale_stop_all_evictions() {
    let world = world(&budget(percent("50%"), None));
    let owner = OwnerReference {
        api_version: "batch/v1".to_owned(),
        kind: "Job".to_owned(),
        name: "web".to_owned(),
        uid: "uid".to_owned(),
        controller: Some(true),
        ..OwnerReference::default()
    };
    put_pods(&world, 1, Some(&owner));
    let world = check(
        world,
        expect![
            "allowed 0 healthy 0/0 of 0 disrupted [] DisruptionAllowed=False SyncFailed jobs.batch does not implement the scale subresource"
        ],
    )
    .await;
    expect![[r#"
        Warning CalculateExpectedPodCountFailed: Failed to calculate the number of expected pods: jobs.batch does not implement the scale subresource"#]]
    .assert_eq(&events(&world, "ns"));
}

#[tokio::test]
async fn unmanaged_pods_are_reported_and_two_budgets_of_a_pod_too() {
    let world = world(&budget(None, number(1)));
    let mut second = budget(number(1), None);
    second.metadata = metadata("ns", "other");
    world.api.put(&second);
    let mut world =
        check(world, expect!["allowed 0 healthy 0/0 of 0 disrupted [] DisruptionAllowed=False InsufficientPods"]).await;
    put_pods(&world, 1, None);
    world.settle().await;
    expect!["allowed 0 healthy 1/0 of 0 disrupted [] DisruptionAllowed=False InsufficientPods"]
        .assert_eq(&outcome(&world));
    let text = events(&world, "ns");
    assert!(text.contains(r#"Warning MultiplePodDisruptionBudgets: Pod "ns"/"web-0" matches multiple PodDisruptionBudgets.  Chose "budget" arbitrarily."#), "{text}");
    assert!(text.contains("Warning UnmanagedPods: Pods selected by this PodDisruptionBudget (selector: &LabelSelector{MatchLabels:map[string]string{app: web,},MatchExpressions:[]LabelSelectorRequirement{},}) were found to be unmanaged."), "{text}");
}

#[tokio::test]
async fn a_granted_eviction_counts_until_its_time_is_up() {
    let world = world(&budget(number(1), None));
    put_pods(&world, 3, None);
    let mut world =
        check(world, expect!["allowed 2 healthy 3/1 of 3 disrupted [] DisruptionAllowed=True SufficientPods"]).await;
    let now = world.now();
    world.api.edit::<PodDisruptionBudget>("ns", "budget", |budget| {
        let disrupted = ["web-0", "gone"].map(|name| (name.to_owned(), Time(now)));
        budget.status.get_or_insert_default().disrupted_pods = Some(disrupted.into());
    });
    world.settle().await;
    expect!["allowed 1 healthy 2/1 of 3 disrupted [web-0] DisruptionAllowed=True SufficientPods"]
        .assert_eq(&outcome(&world));
    world.run_for(Duration::from_secs(121)).await;
    expect!["allowed 2 healthy 3/1 of 3 disrupted [] DisruptionAllowed=True SufficientPods"]
        .assert_eq(&outcome(&world));
    assert!(
        events(&world, "ns").contains("Warning NotDeleted: Pod was expected by PDB ns/ns to be deleted but it wasn't")
    );
}

#[tokio::test]
async fn a_disruption_target_that_nobody_deletes_is_taken_back() {
    let world = world(&budget(number(1), None));
    put_pods(&world, 2, None);
    let now = world.now();
    for (name, reason) in [("web-0", "PreemptionByScheduler"), ("web-1", "TerminationByKubelet")] {
        world.api.edit::<Pod>("ns", name, |pod| {
            set_pod_condition(pod, "DisruptionTarget", "True", now);
            let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
            conditions.iter_mut().for_each(|condition| condition.reason = Some(reason.to_owned()));
        });
    }
    let mut world =
        check(world, expect!["allowed 1 healthy 2/1 of 2 disrupted [] DisruptionAllowed=True SufficientPods"]).await;
    let target = |world: &World, name: &str| {
        let pod = world.api.get::<Pod>("ns", name).expect("it was put");
        let condition = crate::common::pods::condition(&pod, "DisruptionTarget").expect("it was set");
        format!("{} {}", condition.status, condition.reason.as_deref().unwrap_or("-"))
    };
    world.run_for(Duration::from_secs(119)).await;
    assert_eq!(target(&world, "web-0"), "True PreemptionByScheduler");
    world.run_for(Duration::from_secs(2)).await;
    assert_eq!(target(&world, "web-0"), "False -");
    assert_eq!(target(&world, "web-1"), "True TerminationByKubelet");
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let fresh = || {
        let world = world(&budget(percent("50%"), None));
        let owner = put_deployment(&world, 3);
        put_pods(&world, 3, Some(&owner));
        world
    };
    let drive = async |world: &mut World| {
        world.settle().await;
        let now = world.now();
        world.api.edit::<PodDisruptionBudget>("ns", "budget", |budget| {
            budget.status.get_or_insert_default().disrupted_pods = Some([("web-0".to_owned(), Time(now))].into());
        });
        world.api.edit::<Pod>("ns", "web-1", |pod| set_pod_condition(pod, "DisruptionTarget", "True", now));
        world.run_for(Duration::from_secs(300)).await;
    };
    survives_any_crash(fresh, drive, outcome).await;
}
