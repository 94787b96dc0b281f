//! Pods at the door of a node with 2 processors, 1 GiB, one huge page and room for four.

use expect_test::{Expect, expect};
use rkube_api::k8s::core::v1::{
    Container, ContainerPort, NodeSpec, NodeStatus, PodSecurityContext, PodSpec, ResourceRequirements, Sysctl,
    Toleration,
};
use rkube_api::meta::pkg::api::resource::Quantity as Text;

use super::*;

fn node() -> Node {
    let mut node = Node::default();
    node.metadata.name = Some("n".into());
    node.metadata.labels = Some([("zone".to_owned(), "a".to_owned())].into());
    let allocatable = [("cpu", "2"), ("memory", "1Gi"), ("hugepages-2Mi", "2Mi")];
    let allocatable = allocatable.map(|(name, amount)| (name.to_owned(), Text(amount.to_owned()))).into();
    node.status = Some(NodeStatus { allocatable: Some(allocatable), ..NodeStatus::default() });
    node
}

/// `name cpu=1 port=80 zone=b priority=5`
fn pod(text: &str) -> Arc<Pod> {
    let mut words = text.split_whitespace();
    let mut pod = Pod::default();
    pod.metadata.name = words.next().map(str::to_owned);
    pod.metadata.uid.clone_from(&pod.metadata.name);
    let mut spec = PodSpec::default();
    let mut container = Container::default();
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        match key {
            "port" => {
                let host_port = value.parse().ok();
                container.ports.get_or_insert_default().push(ContainerPort { host_port, ..Default::default() });
            }
            "zone" => drop(spec.node_selector.get_or_insert_default().insert(key.into(), value.into())),
            "priority" => spec.priority = value.parse().ok(),
            "node" => spec.node_name = Some(value.into()),
            "tolerates" => {
                let toleration =
                    Toleration { key: Some(value.into()), operator: Some("Exists".into()), ..Default::default() };
                spec.tolerations.get_or_insert_default().push(toleration);
            }
            "sysctl" => {
                let sysctl = Sysctl { name: value.into(), value: "1".into() };
                let context = spec.security_context.get_or_insert_with(PodSecurityContext::default);
                context.sysctls.get_or_insert_default().push(sysctl);
            }
            "network" => spec.host_network = Some(value == "host"),
            resource => {
                let resources = container.resources.get_or_insert_with(ResourceRequirements::default);
                resources.requests.get_or_insert_default().insert(resource.into(), Text(value.into()));
            }
        }
    }
    spec.containers.push(container);
    pod.spec = Some(spec);
    Arc::new(pod)
}

fn ask(node: &Node, pressure: &[&'static str], text: &str, others: &[&str]) -> String {
    let view = NodeView {
        node,
        pods_max: 4,
        pressure,
        is_shutting_down: false,
        allowed_unsafe_sysctls: &["kernel.msg*".to_owned()],
        apparmor_enabled: false,
    };
    let others: Vec<_> = others.iter().map(|text| pod(text)).collect();
    match admit(&view, &pod(text), &others) {
        Decision::Admitted => format!("{text}: admitted\n"),
        Decision::Preempts(pods) => {
            let names: Vec<&str> = pods.iter().map(|pod| pod.name()).collect();
            format!("{text}: ends {}\n", names.join(" "))
        }
        Decision::Refused(refusal) => format!("{text}: {}: {}\n", refusal.reason, refusal.message),
    }
}

fn check(pods: &[&str], others: &[&str], expected: Expect) {
    expected.assert_eq(&pods.iter().map(|text| ask(&node(), &[], text, others)).collect::<String>());
}

#[test]
fn what_does_not_fit_is_refused_for_the_first_reason() {
    check(
        &[
            "a cpu=500m",
            "b cpu=600m",
            "c memory=2Gi cpu=3",
            "d hugepages-1Gi=1Gi",
            "e x.io/gpu=1",
            "f zone=b",
            "g node=m",
        ],
        &["old cpu=1500m"],
        expect![[r#"
            a cpu=500m: admitted
            b cpu=600m: OutOfcpu: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000
            c memory=2Gi cpu=3: OutOfcpu: Node didn't have enough resource: cpu, requested: 3000, used: 1500, capacity: 2000
            d hugepages-1Gi=1Gi: OutOfhugepages-1Gi: Node didn't have enough resource: hugepages-1Gi, requested: 1073741824, used: 0, capacity: 0
            e x.io/gpu=1: admitted
            f zone=b: NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector
            g node=m: NodeName: Predicate NodeName failed: node(s) didn't match the requested node name
        "#]],
    );
}

#[test]
fn ports_and_places_are_taken_once() {
    check(
        &["a port=80", "b port=81"],
        &["old port=80"],
        expect![[r#"
            a port=80: NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports
            b port=81: admitted
        "#]],
    );
    check(
        &["a"],
        &["1", "2", "3", "4"],
        expect![[r#"
            a: OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 4, capacity: 4
        "#]],
    );
}

#[test]
fn sysctls_are_those_of_the_pod_alone() {
    check(
        &[
            "a sysctl=net.ipv4.tcp_syncookies",
            "b sysctl=kernel.msgmax",
            "c sysctl=vm.swappiness",
            "d network=host sysctl=net.ipv4.tcp_syncookies",
        ],
        &[],
        expect![[r#"
            a sysctl=net.ipv4.tcp_syncookies: admitted
            b sysctl=kernel.msgmax: admitted
            c sysctl=vm.swappiness: SysctlForbidden: forbidden sysctl: "vm.swappiness" not allowlisted
            d network=host sysctl=net.ipv4.tcp_syncookies: SysctlForbidden: forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host net enabled
        "#]],
    );
}

#[test]
fn pressure_and_taints_spare_who_can_bear_them() {
    let memory = &["MemoryPressure"];
    let text = ask(&node(), memory, "a", &[])
        + &ask(&node(), memory, "b memory=1Mi", &[])
        + &ask(&node(), memory, "c tolerates=node.kubernetes.io/memory-pressure", &[])
        + &ask(&node(), &["DiskPressure", "MemoryPressure"], "d memory=1Mi", &[])
        + &ask(&node(), &["DiskPressure"], "e priority=2000000000", &[]);
    let mut tainted = node();
    let taint = Taint { key: "broken".into(), effect: "NoExecute".into(), ..Taint::default() };
    tainted.spec = Some(NodeSpec { taints: Some(vec![taint]), ..NodeSpec::default() });
    let text = text + &ask(&tainted, &[], "f", &[]) + &ask(&tainted, &[], "g tolerates=broken", &[]);
    expect![[r#"
        a: Evicted: The node had condition: [MemoryPressure]. 
        b memory=1Mi: admitted
        c tolerates=node.kubernetes.io/memory-pressure: admitted
        d memory=1Mi: Evicted: The node had condition: [DiskPressure MemoryPressure]. 
        e priority=2000000000: admitted
        f: TaintToleration: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate
        g tolerates=broken: admitted
    "#]]
    .assert_eq(&text);
}

#[test]
fn a_critical_pod_ends_as_few_and_as_unimportant_pods_as_it_can() {
    check(
        &["a priority=2000000000 cpu=1", "b priority=2000000000 cpu=3", "c priority=2000000000 zone=b cpu=1"],
        &["small cpu=500m priority=1", "large cpu=1 priority=5", "critical cpu=500m priority=2000000001"],
        expect![[r#"
            a priority=2000000000 cpu=1: ends large
            b priority=2000000000 cpu=3: UnexpectedAdmissionError: Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [(res: cpu, q: 1500), ]
            c priority=2000000000 zone=b cpu=1: NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector
        "#]],
    );
    check(
        &["a priority=2000000000"],
        &["1", "2 cpu=1", "3", "4"],
        expect![[r#"
            a priority=2000000000: ends 1
        "#]],
    );
}
