//! What to do with a pod, from what its containers do.

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{
    ContainerRestartRule, ContainerRestartRuleOnExitCodes, EphemeralContainer, PodSpec, Probe,
};

use super::*;
use crate::pod::PodUid;
use crate::runtime::state::RuntimeSandbox;

/// Results of probes: containers listed as failed, everything else undecided or, for startup, done.
#[derive(Default)]
struct Seen {
    dead: &'static str,
    not_started: &'static str,
}

impl Observations for Seen {
    fn liveness(&self, container_id: &str) -> Option<bool> {
        Some(container_id != self.dead)
    }

    fn startup(&self, container_id: &str) -> Option<bool> {
        (container_id != self.not_started).then_some(true)
    }

    fn actuated(&self, _: &str) -> Option<ContainerResources> {
        None
    }
}

fn pod(policy: &str, containers: &str) -> Pod {
    let mut spec = PodSpec { restart_policy: Some(policy.into()), ..PodSpec::default() };
    for word in containers.split_whitespace() {
        let (kind, name) = word.split_once(':').unwrap_or(("", word));
        let container = Container {
            name: name.into(),
            startup_probe: (kind == "side").then(Probe::default),
            liveness_probe: (kind == "side").then(Probe::default),
            restart_policy: (kind == "side").then(|| "Always".to_owned()),
            ..Container::default()
        };
        match kind {
            "" => spec.containers.push(container),
            "eph" => {
                let container = EphemeralContainer { name: name.into(), ..EphemeralContainer::default() };
                spec.ephemeral_containers.get_or_insert_default().push(container);
            }
            _ => spec.init_containers.get_or_insert_default().push(container),
        }
    }
    Pod { spec: Some(spec), ..Pod::default() }
}

/// `s` a ready sandbox, `x` one that is down; `a=run b=0 c=1 d=created e=unknown f=old`.
fn runtime(pod: &Pod, text: &str) -> RuntimePod {
    let mut runtime = RuntimePod::new(PodUid::from("u"), "ns", "p");
    for word in text.split_whitespace() {
        let Some((name, state)) = word.split_once('=') else {
            runtime.sandboxes.push(RuntimeSandbox {
                id: word.into(),
                attempt: 0,
                ready: word == "s",
                created_at: Timestamp::UNIX_EPOCH,
                ips: vec!["10.42.0.2".into()],
                host_network: false,
                runtime_handler: String::new(),
            });
            continue;
        };
        let hash = pod.container(name).map(|(_, container)| container_hash(&container)).unwrap_or_default();
        let (state, exit_code, hash) = match state {
            "run" => (State::Running, 0, hash),
            "old" => (State::Running, 0, "other".to_owned()),
            "created" => (State::Created, 0, hash),
            "unknown" => (State::Unknown, 0, hash),
            code => (State::Exited, code.parse().unwrap(), hash),
        };
        runtime.containers.push(RuntimeContainer {
            id: name.into(),
            name: name.into(),
            sandbox_id: "s".into(),
            state,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            exit_code,
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_id: String::new(),
            hash,
            restart_count: 0,
            log_path: String::new(),
            actuated: None,
            user: None,
        });
    }
    runtime
}

fn text(pod: &Pod, actions: &PodActions) -> String {
    let spec = pod.pod_spec();
    let mut words = Vec::new();
    if actions.kill_pod {
        words.push("kill-pod".to_owned());
    }
    if actions.create_sandbox {
        words.push(format!("sandbox({})", actions.attempt));
    }
    words.extend(actions.kill.iter().map(|kill| format!("kill({})", kill.name)));
    words.extend(actions.ephemeral.iter().map(|index| format!("start({})", ephemeral_containers(spec)[*index].name)));
    words.extend(actions.init.iter().map(|index| format!("start({})", init_containers(spec)[*index].name)));
    words.extend(actions.regular.iter().map(|index| format!("start({})", spec.containers[*index].name)));
    words.join(" ")
}

fn check_pod(pod: &Pod, state: &str, seen: &Seen, expected: &str) {
    let actions = compute(pod, &runtime(pod, state), seen);
    assert_eq!(text(pod, &actions), expected, "{state}");
}

fn check(policy: &str, containers: &str, state: &str, expected: &str) {
    check_pod(&pod(policy, containers), state, &Seen::default(), expected);
}

#[test]
fn a_pod_starts_with_its_sandbox() {
    check("Always", "a b", "", "kill-pod sandbox(0) start(a) start(b)");
    check("Always", "init:i a", "", "kill-pod sandbox(0) start(i)");
    check("Always", "a b", "s", "start(a) start(b)");
    check("Always", "a b", "s a=run b=run", "");
}

#[test]
fn a_dead_sandbox_is_replaced_unless_the_pod_is_over() {
    check("Always", "a", "x a=0", "kill-pod sandbox(1) start(a)");
    check("Never", "a", "x a=1", "kill-pod");
    check("OnFailure", "a b", "x a=0 b=1", "kill-pod sandbox(1) start(b)");
    check("OnFailure", "a", "x a=0", "kill-pod");
    // The sandbox failed before any container was made.
    check("Never", "a", "x", "kill-pod sandbox(1) start(a)");
    // Two at once: somebody lost count.
    check("Always", "a", "s s a=run", "kill-pod sandbox(1) start(a)");
}

#[test]
fn restart_policies_decide_about_the_dead() {
    check("Always", "a b", "s a=0 b=run", "start(a)");
    check("OnFailure", "a b", "s a=0 b=run", "");
    check("OnFailure", "a b", "s a=2 b=run", "start(a)");
    check("Never", "a b", "s a=2 b=run", "");
    check("Never", "a", "s a=2", "kill-pod");
    check("Always", "a", "s a=created", "start(a)");
    check("Always", "a", "s a=unknown", "kill(a) start(a)");
}

#[test]
fn rules_of_a_container_come_before_its_policy() {
    let mut pod = pod("Never", "a b");
    let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![42]) };
    let rule = ContainerRestartRule { action: "Restart".into(), exit_codes: Some(codes) };
    pod.spec.as_mut().unwrap().containers[0].restart_policy_rules = Some(vec![rule]);
    check_pod(&pod, "s a=42 b=run", &Seen::default(), "start(a)");
    check_pod(&pod, "s a=1 b=run", &Seen::default(), "");
}

#[test]
fn init_containers_run_one_after_another() {
    check("Always", "init:i init:j a", "s i=run", "");
    check("Always", "init:i init:j a", "s i=0", "start(j)");
    check("Always", "init:i init:j a", "s i=0 j=0", "start(a)");
    check("Always", "init:i init:j a", "s i=0 j=1", "start(j)");
    check("Never", "init:i init:j a", "s i=0 j=1", "kill-pod");
    // Removed since: the last one tells.
    check("Always", "init:i init:j a", "s j=0", "start(a)");
    check("Always", "init:i a", "s a=run", "");
    check("Always", "init:i a", "s i=created", "start(i)");
}

#[test]
fn sidecars_let_the_next_start_and_are_kept_running() {
    check("Always", "side:x init:i a", "s x=run", "start(i)");
    check("Always", "side:x init:i a", "s x=run i=0", "start(a)");
    check("Always", "side:x a", "s x=1 a=run", "start(x)");
    check("Never", "side:x a", "s x=run a=0", "kill-pod");
    // Whether initialization was done shows again once the sidecar runs.
    check("Never", "side:x a", "s x=1 a=0", "start(x)");
    let pod = pod("Always", "side:x init:i a");
    check_pod(&pod, "s x=run", &Seen { not_started: "x", ..Seen::default() }, "");
    check_pod(&pod, "s x=run i=0 a=run", &Seen { dead: "x", ..Seen::default() }, "kill(x) start(x)");
}

#[test]
fn running_containers_are_killed_for_probes_and_changes() {
    let dead = Seen { dead: "a", ..Seen::default() };
    check_pod(&pod("Always", "a b"), "s a=run b=run", &dead, "kill(a) start(a)");
    check_pod(&pod("Never", "a b"), "s a=run b=run", &dead, "kill(a)");
    check("Never", "a b", "s a=old b=run", "kill(a) start(a)");
}

#[test]
fn ephemeral_containers_start_once_and_early() {
    check("Always", "eph:e init:i a", "s i=run", "start(e)");
    check("Always", "eph:e a", "s a=run e=1", "");
}

#[test]
fn nothing_starts_in_a_pod_that_is_deleted() {
    let mut pod = pod("Always", "a b");
    pod.metadata.deletion_timestamp = Some(rkube_api::meta::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    check_pod(&pod, "s a=0 b=run", &Seen::default(), "");
}
