//! How long a decision takes at 5,000 nodes. Run by hand, with optimization:
//! `cargo test --release -p rkube-scheduler speed -- --ignored --nocapture`.

use std::sync::Arc;

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Node, Pod};
use rkube_apimachinery::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::config::Profile;
use crate::decide::Verdict;
use crate::model::pod::PodInfo;
use crate::testing::{node, pod};
use crate::tests::oracle::decider;

const NODES: usize = 5_000;
const PODS: usize = 5_000;

fn measure(shape: &str, change: impl Fn(usize, &mut Value)) {
    let mut cluster = Cluster::default();
    for index in 0..NODES {
        let mut value = node(&format!("node-{index}"), "8");
        value["metadata"]["labels"]["topology.kubernetes.io/zone"] = format!("zone-{}", index % 3).into();
        cluster.set_node(&Arc::new(Node::from_value(value).expect("a node")));
    }
    let pods: Vec<_> = (0..PODS)
        .map(|index| {
            let mut value = pod(&format!("pod-{index}"), "100m");
            change(index, &mut value);
            Arc::new(Pod::from_value(value).expect("a pod"))
        })
        .collect();
    let (mut decider, profile, clock) = (decider(), Profile::default(), SystemClock::new());
    let start = clock.monotonic();
    let mut placed = 0;
    for pod in pods {
        let info = PodInfo::new(pod);
        if let Verdict::Node(name) = decider.decide(&mut cluster, (0, &profile), &info) {
            cluster.assume(info, &name);
            placed += 1;
        }
    }
    let took = clock.monotonic() - start;
    println!("{shape}: {placed} of {PODS} placed, {:.1} us each", took.as_secs_f64() * 1e6 / PODS as f64);
}

#[test]
#[ignore = "a measurement, not a check"]
fn decisions_at_5000_nodes() {
    measure("basic", |_, _| {});
    measure("anti-affinity", |_, pod| {
        pod["metadata"]["labels"] = json!({"color": "green"});
        pod["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"color": "green"}}, "topologyKey": "kubernetes.io/hostname"},
        ]}});
    });
    measure("affinity", |_, pod| {
        pod["metadata"]["labels"] = json!({"color": "blue"});
        pod["spec"]["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"color": "blue"}}, "topologyKey": "topology.kubernetes.io/zone"},
        ]}});
    });
    measure("spreading", |_, pod| {
        pod["metadata"]["labels"] = json!({"color": "blue"});
        pod["spec"]["topologySpreadConstraints"] = json!([{
            "maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"color": "blue"}},
        }]);
    });
    measure("own labels each", |index, pod| {
        pod["metadata"]["labels"] = json!({"color": "blue", "index": format!("{index}")});
    });
}
