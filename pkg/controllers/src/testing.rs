//! A cluster in one thread for controller tests: the in-memory API, a fake clock, controllers that can crash
//! after any write, and nodes that run every pod.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodSpec, PodTemplateSpec,
};
use rkube_api::meta::pkg::apis::meta::v1::{ObjectMeta, Time};
use rkube_apimachinery::clock::{Clock, FakeClock};
use rkube_apimachinery::random::SeededRandom;
use rkube_apimachinery::task;
use rkube_apimachinery::time::whole_seconds;
use rkube_client::fake::FakeApi;
use rkube_client::{Client, EventRecorder, InformerFactory, SharedTransport};
use tokio_util::sync::CancellationToken;

use crate::config::ControllerConfig;
use crate::context::{ControllerContext, Descriptor};

/// More writes than any scenario makes; a loop that never ends is found by it.
const CRASHES_MAX: i64 = 400;

pub(crate) struct World {
    pub(crate) clock: FakeClock,
    pub(crate) api: FakeApi,
    pub(crate) config: ControllerConfig,
    controllers: Vec<Descriptor>,
    process: CancellationToken,
    /// Set while the process is one that is to crash; cancelled when it has.
    dead: Option<CancellationToken>,
    /// Whether pods are bound, run and stop by themselves.
    pub(crate) nodes: bool,
    /// How a running pod ends: the phase and the exit code. `None` while it goes on.
    pub(crate) ending: fn(&Pod) -> Option<(&'static str, i32)>,
}

impl World {
    /// Controllers that are not started yet.
    pub(crate) fn new(controllers: &[Descriptor]) -> Self {
        let clock = FakeClock::new("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
        let api = FakeApi::new(clock.shared());
        let (config, process) = (ControllerConfig::default(), CancellationToken::new());
        Self {
            clock,
            api,
            config,
            controllers: controllers.to_vec(),
            process,
            dead: None,
            nodes: false,
            ending: |_| None,
        }
    }

    /// The same with nodes that run pods.
    pub(crate) fn with_nodes(controllers: &[Descriptor]) -> Self {
        let world = Self { nodes: true, ..Self::new(controllers) };
        world.api.keep_terminating_pods();
        world
    }

    /// A client that is none of the controllers'.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.api.connect(), self.clock.shared(), SeededRandom::shared(99))
    }

    pub(crate) fn start(&mut self) {
        self.start_with(self.api.connect());
    }

    /// Starts controllers as a fresh process, with empty caches and no memory.
    pub(crate) fn start_with(&mut self, transport: SharedTransport) {
        self.process = CancellationToken::new();
        let client = Client::new(transport, self.clock.shared(), SeededRandom::shared(1));
        let context = ControllerContext {
            as_account: None,
            informers: InformerFactory::new(client.clone(), self.process.clone()),
            // Events go their own way: they are no part of the state that crashes must not lose.
            recorder: EventRecorder::start(self.client(), "test", self.process.clone()),
            config: Arc::new(self.config.clone()),
            shutdown: self.process.clone(),
            client,
        };
        let running: Vec<_> = self.controllers.iter().map(|descriptor| (descriptor.start)(&context)).collect();
        context.informers.start();
        for controller in running {
            let informers = context.informers.clone();
            task::spawn(tracing::Span::none(), async move {
                if informers.wait_for_sync().await.is_ok() {
                    controller.await;
                }
            });
        }
    }

    pub(crate) fn stop(&self) {
        self.process.cancel();
    }

    /// Lets everything happen that happens without time passing. A crashed process is replaced by a new one.
    pub(crate) async fn settle(&mut self) {
        loop {
            self.api.settle().await;
            if self.dead.as_ref().is_some_and(CancellationToken::is_cancelled) {
                self.dead = None;
                self.stop();
                self.start();
            } else if !self.nodes || !self.run_pods() {
                return;
            }
        }
    }

    /// Lets time pass, stopping wherever something waits for a moment.
    pub(crate) async fn run_for(&mut self, duration: Duration) {
        let end = self.clock.monotonic() + duration;
        loop {
            self.settle().await;
            let now = self.clock.monotonic();
            let next = self.clock.next_wake().unwrap_or(end).clamp(now, end);
            if now >= end {
                return;
            }
            self.clock.advance(next.saturating_sub(now).max(Duration::from_nanos(1)));
        }
    }

    /// Lets time pass in which nothing may be asked of the API: what is settled costs nothing.
    pub(crate) async fn stays_idle(&mut self, duration: Duration) {
        self.api.take_actions();
        self.run_for(duration).await;
        let actions = self.api.take_actions();
        assert!(actions.is_empty(), "{actions:?}");
    }

    pub(crate) fn now(&self) -> Timestamp {
        whole_seconds(self.clock.now())
    }

    /// Binds and runs pending pods, ends terminating ones. Whether there was anything to do.
    fn run_pods(&self) -> bool {
        let mut changed = false;
        for pod in self.api.list::<Pod>("") {
            let phase = crate::common::pods::phase(&pod);
            let (namespace, name) = (
                pod.metadata.namespace.as_deref().unwrap_or_default(),
                pod.metadata.name.as_deref().unwrap_or_default(),
            );
            if pod.metadata.deletion_timestamp.is_some() {
                if pod.metadata.finalizers.iter().flatten().next().is_none() {
                    self.api.remove::<Pod>(namespace, name);
                    changed = true;
                } else if !crate::common::pods::is_terminal(&pod) {
                    self.api.edit::<Pod>(namespace, name, |pod| end_pod(pod, "Failed", 137, self.now()));
                    changed = true;
                }
            } else if let ("Running", Some((phase, exit_code))) = (phase, (self.ending)(&pod)) {
                self.api.edit::<Pod>(namespace, name, |pod| end_pod(pod, phase, exit_code, self.now()));
                changed = true;
            } else if matches!(phase, "" | "Pending") {
                self.api.edit::<Pod>(namespace, name, |pod| {
                    let node = crate::daemonset::target_node(pod).unwrap_or("node-1").to_owned();
                    run_pod(pod, &node, self.now());
                });
                changed = true;
            }
        }
        changed
    }
}

/// Makes a pod what it is when all its containers run and are ready.
pub(crate) fn run_pod(pod: &mut Pod, node: &str, now: Timestamp) {
    pod.spec.get_or_insert_default().node_name.get_or_insert_with(|| node.to_owned());
    let status = pod.status.get_or_insert_default();
    status.phase = Some("Running".to_owned());
    set_pod_condition(pod, "PodScheduled", "True", now);
    set_pod_condition(pod, "Ready", "True", now);
}

/// Makes a pod what it is when its one container has ended.
pub(crate) fn end_pod(pod: &mut Pod, phase: &str, exit_code: i32, now: Timestamp) {
    let terminated = ContainerStateTerminated { exit_code, finished_at: Some(Time(now)), ..Default::default() };
    let state = ContainerState { terminated: Some(terminated), ..Default::default() };
    let container = ContainerStatus { name: "main".to_owned(), state: Some(state), ..Default::default() };
    let status = pod.status.get_or_insert_default();
    status.phase = Some(phase.to_owned());
    status.container_statuses = Some(vec![container]);
    set_pod_condition(pod, "Ready", "False", now);
}

pub(crate) fn set_pod_condition(pod: &mut Pod, condition_type: &str, value: &str, now: Timestamp) {
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != condition_type);
    conditions.push(PodCondition {
        type_: condition_type.to_owned(),
        status: value.to_owned(),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    });
}

/// Runs a scenario undisturbed, then once more for each of its writes with a crash right after it, and compares
/// what is left. `world` makes the objects and settings, `drive` lets things happen, `outcome` describes the end.
pub(crate) async fn survives_any_crash<D: AsyncFn(&mut World)>(
    world: impl Fn() -> World,
    drive: D,
    outcome: impl Fn(&World) -> String,
) {
    let mut undisturbed = world();
    undisturbed.start();
    drive(&mut undisturbed).await;
    undisturbed.stop();
    let expected = outcome(&undisturbed);
    for writes in 1..CRASHES_MAX {
        let mut crashing = world();
        let (transport, dead) = crashing.api.connect_until_write(writes);
        crashing.dead = Some(dead.clone());
        crashing.start_with(transport);
        drive(&mut crashing).await;
        crashing.stop();
        assert_eq!(outcome(&crashing), expected, "after a crash with write {writes}");
        if !dead.is_cancelled() {
            return;
        }
    }
    panic!("the controllers still wrote after {CRASHES_MAX} writes");
}

pub(crate) fn metadata(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        ..ObjectMeta::default()
    }
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A template with one label `app` and one container.
pub(crate) fn template(app: &str, image: &str) -> PodTemplateSpec {
    let container = rkube_api::k8s::core::v1::Container {
        name: "main".to_owned(),
        image: Some(image.to_owned()),
        ..Default::default()
    };
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(&[("app", app)])), ..ObjectMeta::default() }),
        spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
    }
}

/// The events of the namespace, `type reason: message`, in order of name, repeats counted.
pub(crate) fn events(world: &World, namespace: &str) -> String {
    let mut events = world.api.list::<rkube_api::k8s::core::v1::Event>(namespace);
    events.sort_by_key(|event| event.first_timestamp.as_ref().map(|time| time.0));
    let lines = events.iter().map(|event| {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        format!("{} {}: {}", text(&event.type_), text(&event.reason), text(&event.message))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Names of all objects of a kind, in order.
pub(crate) fn names<K: Kind>(world: &World, namespace: &str) -> Vec<String> {
    world.api.list::<K>(namespace).iter().filter_map(|object| object.metadata().name.clone()).collect()
}
