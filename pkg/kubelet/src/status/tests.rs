//! The status of a pod, from what its containers do.

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{Container, PodSpec};

use super::*;
use crate::pod::{PodUid, container_hash};
use crate::runtime::resources::ContainerResources;
use crate::runtime::state::{RuntimeContainer, RuntimeSandbox, State};

struct NoProbes;

impl ProbeState for NoProbes {
    fn started(&self, _: &str) -> Option<bool> {
        None
    }

    fn ready(&self, _: &str) -> Option<bool> {
        None
    }
}

/// `init:a side:b c d`, with the pod's policy.
fn pod(policy: &str, containers: &str) -> Pod {
    let mut spec = PodSpec { restart_policy: Some(policy.into()), ..PodSpec::default() };
    for word in containers.split_whitespace() {
        let (kind, name) = word.split_once(':').unwrap_or(("", word));
        let restart_policy = (kind == "side").then(|| "Always".to_owned());
        let container =
            Container { name: name.into(), image: Some("i".into()), restart_policy, ..Container::default() };
        match kind {
            "" => spec.containers.push(container),
            _ => spec.init_containers.get_or_insert_default().push(container),
        }
    }
    Pod { spec: Some(spec), ..Pod::default() }
}

/// `a=run b=0 c=137 d=created`
fn runtime(pod: &Pod, states: &str) -> RuntimePod {
    let mut runtime = RuntimePod::new(PodUid::from("u"), "ns", "p");
    runtime.sandboxes.push(RuntimeSandbox {
        id: "s".into(),
        attempt: 0,
        ready: true,
        created_at: Timestamp::UNIX_EPOCH,
        ips: vec!["10.42.0.2".into()],
        host_network: false,
        runtime_handler: String::new(),
    });
    for word in states.split_whitespace() {
        let (name, state) = word.split_once('=').unwrap();
        let (_, container) = pod.container(name).unwrap();
        let (state, exit_code) = match state {
            "run" => (State::Running, 0),
            "created" => (State::Created, 0),
            code => (State::Exited, code.parse().unwrap()),
        };
        runtime.containers.push(RuntimeContainer {
            id: format!("id-{name}"),
            name: name.into(),
            sandbox_id: "s".into(),
            state,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: Some(Timestamp::UNIX_EPOCH),
            finished_at: (state == State::Exited).then_some(Timestamp::UNIX_EPOCH),
            exit_code,
            reason: if exit_code == 0 { "Completed".into() } else { "Error".into() },
            message: String::new(),
            image: "i".into(),
            image_id: String::new(),
            hash: container_hash(&container),
            restart_count: 0,
            log_path: String::new(),
            actuated: None,
            user: None,
        });
    }
    runtime
}

fn state_text(status: &rkube_api::k8s::core::v1::ContainerStatus) -> String {
    let state = status.state.clone().unwrap_or_default();
    let text = match (state.running, state.terminated, state.waiting) {
        (Some(_), ..) => "running".to_owned(),
        (_, Some(terminated), _) => format!("exited({})", terminated.exit_code),
        (.., Some(waiting)) => waiting.reason.unwrap_or_default(),
        _ => String::new(),
    };
    let ready = if status.ready { "+" } else { "" };
    format!("{}:{text}{ready}", status.name)
}

fn status_of(pod: &Pod, runtime: &RuntimePod, waiting: &[Waiting]) -> PodStatus {
    generate(&StatusInputs {
        pod,
        runtime,
        old: &PodStatus::default(),
        waiting,
        probes: &NoProbes,
        is_terminal: false,
        verdict: None,
        host_ips: &["192.0.2.1".to_owned()],
        runtime_name: "containerd",
        now: Timestamp::UNIX_EPOCH,
        resize: &[],
        limits: None,
    })
}

fn check(policy: &str, containers: &str, states: &str, waiting: &[(&str, &str)], expected: &str) {
    let pod = pod(policy, containers);
    let waiting: Vec<Waiting> = waiting
        .iter()
        .map(|(container, reason)| Waiting {
            container: (*container).into(),
            reason: (*reason).into(),
            message: String::new(),
        })
        .collect();
    let status = status_of(&pod, &runtime(&pod, states), &waiting);
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let containers: Vec<String> = containers.map(state_text).collect();
    let conditions: Vec<&str> =
        status.conditions.iter().flatten().filter(|c| c.status == "True").map(|c| c.type_.as_str()).collect();
    assert_eq!(
        format!("{} [{}] {}", status.phase.unwrap_or_default(), containers.join(" "), conditions.join(" ")),
        expected
    );
}

#[test]
fn phases_and_conditions_follow_the_containers() {
    const UP: &str = "PodReadyToStartContainers Initialized Ready ContainersReady PodScheduled";
    const UNREADY: &str = "PodReadyToStartContainers Initialized PodScheduled";
    const STARTING: &str = "PodReadyToStartContainers PodScheduled";
    check("Always", "a", "", &[], &format!("Pending [a:ContainerCreating] {UNREADY}"));
    check("Always", "a b", "a=run b=run", &[], &format!("Running [a:running+ b:running+] {UP}"));
    check("Always", "init:i a", "i=run", &[], &format!("Pending [i:running a:PodInitializing] {STARTING}"));
    check("Always", "init:i a", "i=0 a=run", &[], &format!("Running [i:exited(0)+ a:running+] {UP}"));
    check("Never", "init:i a", "i=1", &[], &format!("Failed [i:exited(1) a:PodInitializing] {STARTING}"));
    check(
        "Always",
        "init:i a",
        "i=1",
        &[("i", "CrashLoopBackOff")],
        &format!("Pending [i:CrashLoopBackOff a:PodInitializing] {STARTING}"),
    );
    check("Always", "side:s a", "s=run a=run", &[], &format!("Running [s:running+ a:running+] {UP}"));
    check("Always", "a", "a=1", &[("a", "CrashLoopBackOff")], &format!("Running [a:CrashLoopBackOff] {UNREADY}"));
    check("Always", "a", "", &[("a", "ErrImagePull")], &format!("Pending [a:ErrImagePull] {UNREADY}"));
    check("Never", "a b", "a=0 b=0", &[], &format!("Succeeded [a:exited(0) b:exited(0)] {UNREADY}"));
    check("Never", "a b", "a=0 b=1", &[], &format!("Failed [a:exited(0) b:exited(1)] {UNREADY}"));
    check("OnFailure", "a b", "a=0 b=1", &[], &format!("Running [a:exited(0) b:exited(1)] {UNREADY}"));
}

#[test]
fn a_resize_is_told_as_far_as_it_came() {
    let mut pod = pod("Always", "a b");
    let wanted = serde_json::json!({"requests": {"cpu": "20m", "memory": "40Mi"}, "limits": {"cpu": "0.02"}});
    for container in &mut pod.spec.as_mut().unwrap().containers {
        container.resources = Some(serde_json::from_value(wanted.clone()).unwrap());
    }
    let mut runtime = runtime(&pod, "a=run b=run");
    let done = ContainerResources::of(&pod, &pod.pod_spec().containers[0]);
    let before = ContainerResources { cpu_limit_milli: None, memory_request: Some(32 << 20), ..done };
    let mut check = |second: ContainerResources, expected: serde_json::Value| {
        runtime.containers[0].actuated = Some(done);
        runtime.containers[1].actuated = Some(second);
        let status = status_of(&pod, &runtime, &[]);
        let containers = status.container_statuses.unwrap();
        let told = |index: usize| serde_json::to_value(&containers[index].resources).unwrap();
        assert_eq!((told(0), told(1)), (wanted.clone(), expected));
        let allocated = serde_json::to_value(&containers[1].allocated_resources).unwrap();
        assert_eq!(allocated, wanted["requests"]);
    };
    check(before, serde_json::json!({"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {}}));
    check(done, wanted.clone());
}
