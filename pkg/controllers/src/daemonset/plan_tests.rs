//! What a DaemonSet does to its nodes, as data: nodes and pods in, steps out.

use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::Kind;
use rkube_api::k8s::apps::v1::DaemonSet;
use rkube_api::k8s::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::plan::{Found, Plan, bounded, manage};
use super::rollout::rolling_update;
use super::status::calculate;
use super::tests::counts;

const NOW: &str = "2030-01-01T01:00:00Z";

fn set(spec: Value) -> DaemonSet {
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"namespace": "ns", "name": "d"}, "spec": spec});
    DaemonSet::from_value(set).expect("a DaemonSet")
}

/// `name` and then labels as `key=value` and taints as `key:Effect`.
fn node(text: &str) -> Arc<Node> {
    let mut words = text.split_whitespace();
    let name = words.next().unwrap_or_default();
    let (mut labels, mut taints) = (json!({}), Vec::new());
    for word in words {
        match (word.split_once('='), word.split_once(':')) {
            (Some((key, value)), _) => labels[key] = value.into(),
            (None, Some((key, effect))) => taints.push(json!({"key": key, "effect": effect})),
            _ => panic!("{word} says nothing about a node"),
        }
    }
    let metadata = json!({"name": name, "labels": labels});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}});
    Arc::new(Node::from_value(node).expect("a node"))
}

/// `name node hash` and then any of `ready`, `ready=SECONDS ago`, `deleted`, `pending` (not bound), `Failed`, `Succeeded`.
fn pod(text: &str) -> Arc<Pod> {
    let mut words = text.split_whitespace();
    let mut next = || words.next().unwrap_or_default();
    let (name, node, hash) = (next(), next(), next());
    let names = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
    let required = json!({"nodeSelectorTerms": [{"matchFields": names}]});
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "ns", "uid": name, "labels": {"controller-revision-hash": hash},
            "creationTimestamp": "2030-01-01T00:00:00Z",
        },
        "spec": {
            "nodeName": node, "containers": [{"name": "main"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}},
        },
        "status": {"phase": "Running"},
    });
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, "3600"));
        match key {
            "ready" => {
                let ago = Duration::from_secs(value.parse().expect("seconds"));
                let since = (NOW.parse::<jiff::Timestamp>().expect("a timestamp") - ago).to_string();
                pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}]);
            }
            "deleted" => pod["metadata"]["deletionTimestamp"] = NOW.into(),
            "pending" => pod["spec"]["nodeName"] = "".into(),
            phase => pod["status"]["phase"] = phase.into(),
        }
    }
    Arc::new(Pod::from_value(pod).expect("a pod"))
}

fn describe(plan: &Plan) -> String {
    let names: Vec<_> = plan.delete.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    format!("create on [{}] delete [{}]", plan.create.join(" "), names.join(" "))
}

/// `manage` where that has something to do, else the rollout; and the status.
fn check(spec: Value, nodes: &[&str], pods: &[&str], expected: Expect) {
    let set = set(spec);
    let nodes: Vec<_> = nodes.iter().map(|text| node(text)).collect();
    let pods: Vec<_> = pods.iter().map(|text| pod(text)).collect();
    let now = NOW.parse().expect("a timestamp");
    let found = Found::new(&set, set.spec.as_ref().expect("it has one"), &nodes, &pods, "new", now);
    let status = calculate(&found, &Default::default());
    let managed = bounded(manage(&found, |_| None));
    let idle = managed.create.is_empty() && managed.delete.is_empty();
    let step = match idle {
        false => describe(&managed),
        true => format!("roll: {}", describe(&rolling_update(&found))),
    };
    expected.assert_eq(&format!("{step}\n{}", counts(&status)));
}

fn rolling(unavailable: Value, surge: Value) -> Value {
    let rolling = json!({"maxUnavailable": unavailable, "maxSurge": surge});
    json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}})
}

#[test]
fn every_node_that_fits_gets_one_pod() {
    let spec = json!({"template": {"spec": {"containers": [], "nodeSelector": {"disk": "ssd"}}}});
    check(
        spec.clone(),
        &["a disk=ssd", "b disk=hdd", "c disk=ssd", "d disk=ssd"],
        &["p a new ready", "q b new ready", "r c new pending"],
        expect![[r#"
            create on [d] delete [q]
            desired 3 current 2 misscheduled 1 ready 1 updated 2 available 1 unavailable 2"#]],
    );
    // A second pod on a node goes: the younger, or the one that is not bound.
    check(
        spec,
        &["a disk=ssd"],
        &["p a new pending", "q a new ready"],
        expect![[r#"
        create on [] delete [p]
        desired 1 current 1 misscheduled 0 ready 1 updated 1 available 1 unavailable 0"#]],
    );
}

#[test]
fn required_affinity_selects_nodes() {
    let term = json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["z1"]}]});
    let required = json!({"nodeSelectorTerms": [term]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
    let spec = json!({"template": {"spec": {"containers": [], "affinity": affinity}}});
    check(
        spec,
        &["a zone=z1", "b zone=z2", "c"],
        &[],
        expect![[r#"
        create on [b c] delete []
        desired 2 current 0 misscheduled 0 ready 0 updated 0 available 0 unavailable 2"#]],
    );
}

#[test]
fn taints_keep_pods_away_and_only_no_execute_removes_them() {
    let spec = || json!({"template": {"spec": {"containers": []}}});
    check(
        spec(),
        &["a gpu:NoSchedule", "b gpu:NoExecute", "c gpu:PreferNoSchedule"],
        &[],
        expect![[r#"
        create on [c] delete []
        desired 1 current 0 misscheduled 0 ready 0 updated 0 available 0 unavailable 1"#]],
    );
    check(
        spec(),
        &["a gpu:NoSchedule", "b gpu:NoExecute"],
        &["p a new ready", "q b new ready"],
        expect![[r#"
        create on [] delete [q]
        desired 0 current 0 misscheduled 2 ready 0 updated 0 available 0 unavailable 0"#]],
    );
    // What a node that is not well gets is borne.
    check(
        spec(),
        &[
            "a node.kubernetes.io/not-ready:NoExecute node.kubernetes.io/unschedulable:NoSchedule",
            "b node.kubernetes.io/network-unavailable:NoSchedule",
        ],
        &[],
        expect![[r#"
            create on [a] delete []
            desired 1 current 0 misscheduled 0 ready 0 updated 0 available 0 unavailable 1"#]],
    );
    let host = json!({"template": {"spec": {"containers": [], "hostNetwork": true}}});
    check(
        host,
        &["b node.kubernetes.io/network-unavailable:NoSchedule"],
        &[],
        expect![[r#"
        create on [b] delete []
        desired 1 current 0 misscheduled 0 ready 0 updated 0 available 0 unavailable 1"#]],
    );
}

#[test]
fn pods_that_ended_and_pods_without_a_node_go() {
    check(
        json!({}),
        &["a", "b", "c"],
        &["p a new Failed", "q b new Succeeded", "r c new deleted", "s gone new pending", "t gone new ready"],
        expect![[r#"
            create on [] delete [p q s]
            desired 3 current 3 misscheduled 0 ready 0 updated 3 available 0 unavailable 3"#]],
    );
}

#[test]
fn a_rollout_keeps_as_many_pods_as_it_must() {
    let four = ["a", "b", "c", "d"];
    let ready = ["p a old ready", "q b old ready", "r c old ready", "s d old ready"];
    check(
        rolling(1.into(), 0.into()),
        &four,
        &ready,
        expect![[r#"
        roll: create on [] delete [p]
        desired 4 current 4 misscheduled 0 ready 4 updated 0 available 4 unavailable 0"#]],
    );
    check(
        rolling("50%".into(), 0.into()),
        &four,
        &ready,
        expect![[r#"
        roll: create on [] delete [p q]
        desired 4 current 4 misscheduled 0 ready 4 updated 0 available 4 unavailable 0"#]],
    );
    // Neither unavailable nor surging would be no rollout.
    check(
        rolling(0.into(), 0.into()),
        &four,
        &ready,
        expect![[r#"
        roll: create on [] delete [p]
        desired 4 current 4 misscheduled 0 ready 4 updated 0 available 4 unavailable 0"#]],
    );
    // One is down already.
    check(
        rolling(1.into(), 0.into()),
        &four,
        &["p a new", "q b old ready", "r c old ready", "s d old ready"],
        expect![[r#"
            roll: create on [] delete []
            desired 4 current 4 misscheduled 0 ready 3 updated 1 available 3 unavailable 1"#]],
    );
    // Old pods that do not serve go at once.
    check(
        rolling(1.into(), 0.into()),
        &four,
        &["p a old", "q b old ready", "r c old", "s d new ready"],
        expect![[r#"
        roll: create on [] delete [p r]
        desired 4 current 4 misscheduled 0 ready 2 updated 1 available 2 unavailable 2"#]],
    );
    check(
        json!({"updateStrategy": {"type": "OnDelete"}}),
        &four,
        &ready,
        expect![[r#"
        roll: create on [] delete []
        desired 4 current 4 misscheduled 0 ready 4 updated 0 available 4 unavailable 0"#]],
    );
}

#[test]
fn new_pods_count_when_they_are_available() {
    let mut spec = rolling(1.into(), 0.into());
    spec["minReadySeconds"] = 60.into();
    check(
        spec.clone(),
        &["a", "b"],
        &["p a new ready=59", "q b old ready"],
        expect![[r#"
        roll: create on [] delete []
        desired 2 current 2 misscheduled 0 ready 2 updated 1 available 1 unavailable 1"#]],
    );
    check(
        spec,
        &["a", "b"],
        &["p a new ready=60", "q b old ready"],
        expect![[r#"
        roll: create on [] delete [q]
        desired 2 current 2 misscheduled 0 ready 2 updated 1 available 2 unavailable 0"#]],
    );
}

#[test]
fn surging_pods_come_before_old_ones_go() {
    let spec = || rolling(0.into(), 2.into());
    let three = ["a", "b", "c"];
    check(
        spec(),
        &three,
        &["p a old ready", "q b old ready", "r c old ready"],
        expect![[r#"
        roll: create on [a b] delete []
        desired 3 current 3 misscheduled 0 ready 3 updated 0 available 3 unavailable 0"#]],
    );
    // One surges, so one more may.
    check(
        spec(),
        &three,
        &["p a old ready", "x a new", "q b old ready", "r c old ready"],
        expect![[r#"
        roll: create on [b] delete []
        desired 3 current 3 misscheduled 0 ready 3 updated 0 available 3 unavailable 0"#]],
    );
    check(
        spec(),
        &three,
        &["p a old ready", "x a new ready", "q b old ready", "r c old ready"],
        expect![[r#"
        create on [] delete [p]
        desired 3 current 3 misscheduled 0 ready 3 updated 0 available 3 unavailable 0"#]],
    );
    // An old pod that does not serve is no loss, and its successor no surge.
    check(
        spec(),
        &three,
        &["p a old", "q b old ready", "r c old ready"],
        expect![[r#"
        roll: create on [a b c] delete []
        desired 3 current 3 misscheduled 0 ready 2 updated 0 available 2 unavailable 1"#]],
    );
    check(
        spec(),
        &["a"],
        &["p a old", "x a new"],
        expect![[r#"
        create on [] delete [p]
        desired 1 current 1 misscheduled 0 ready 0 updated 0 available 0 unavailable 1"#]],
    );
    check(
        spec(),
        &["a"],
        &["p a old ready", "o a older ready", "x a new"],
        expect![[r#"
        create on [] delete [p]
        desired 1 current 1 misscheduled 0 ready 1 updated 0 available 1 unavailable 0"#]],
    );
}

#[test]
fn with_surge_a_misplaced_pod_waits_for_others_to_serve() {
    let mut spec = rolling(0.into(), 1.into());
    spec["template"] = json!({"spec": {"containers": []}});
    let nodes = ["a gpu:NoSchedule", "b"];
    check(
        spec.clone(),
        &nodes,
        &["p a old ready", "q b new"],
        expect![[r#"
        roll: create on [] delete []
        desired 1 current 1 misscheduled 1 ready 0 updated 1 available 0 unavailable 1"#]],
    );
    check(
        spec,
        &nodes,
        &["p a old ready", "q b new ready"],
        expect![[r#"
        roll: create on [] delete [p]
        desired 1 current 1 misscheduled 1 ready 1 updated 1 available 1 unavailable 0"#]],
    );
}

#[test]
fn one_sync_does_not_do_everything() {
    let set = set(json!({}));
    let nodes: Vec<_> = (0..600).map(|number| node(&format!("n{number:03}"))).collect();
    let now = NOW.parse().expect("a timestamp");
    let found = Found::new(&set, set.spec.as_ref().expect("it has one"), &nodes, &[], "new", now);
    assert_eq!(bounded(manage(&found, |_| None)).create.len(), 250);
}
