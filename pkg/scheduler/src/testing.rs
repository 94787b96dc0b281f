//! A cluster in one thread for tests of the whole scheduler: the in-memory API, a fake clock, schedulers that can
//! crash after any write.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Node, Pod};
use rkube_apimachinery::clock::{Clock, FakeClock};
use rkube_apimachinery::random::SeededRandom;
use rkube_apimachinery::task;
use rkube_client::fake::FakeApi;
use rkube_client::{Client, EventRecorder, InformerFactory, SharedTransport};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::config::SchedulerConfig;
use crate::context::SchedulerContext;

pub(crate) struct World {
    pub(crate) clock: FakeClock,
    pub(crate) api: FakeApi,
    pub(crate) config: SchedulerConfig,
    process: CancellationToken,
    next_uid: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = FakeClock::new("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
        let api = FakeApi::new(clock.shared());
        Self { clock, api, config: SchedulerConfig::default(), process: CancellationToken::new(), next_uid: 0 }
    }

    pub(crate) fn start(&mut self) {
        self.start_with(self.api.connect());
    }

    /// Starts a scheduler as a fresh process, with no memory.
    pub(crate) fn start_with(&mut self, transport: SharedTransport) {
        self.process = CancellationToken::new();
        let client = Client::new(transport, self.clock.shared(), SeededRandom::shared(1));
        // Events go their own way: they are no part of the state that crashes must not lose.
        let events = Client::new(self.api.connect(), self.clock.shared(), SeededRandom::shared(2));
        let context = SchedulerContext {
            informers: InformerFactory::new(client.clone(), self.process.clone()),
            recorder: EventRecorder::start(events, "default-scheduler", self.process.clone()),
            clock: self.clock.shared(),
            random: SeededRandom::shared(3),
            config: Arc::new(self.config.clone()),
            shutdown: self.process.clone(),
            client,
        };
        task::spawn(tracing::Span::none(), crate::run(context, || ()));
    }

    pub(crate) fn stop(&self) {
        self.process.cancel();
    }

    pub(crate) async fn settle(&self) {
        self.api.settle().await;
    }

    pub(crate) async fn run_for(&self, duration: Duration) {
        let end = self.clock.monotonic() + duration;
        loop {
            self.settle().await;
            let now = self.clock.monotonic();
            if now >= end {
                return;
            }
            let next = self.clock.next_wake().unwrap_or(end).clamp(now, end);
            self.clock.advance(next.saturating_sub(now).max(Duration::from_nanos(1)));
        }
    }

    pub(crate) fn node(&self, name: &str, cpu: &str, change: impl FnOnce(&mut Value)) {
        let mut value = node(name, cpu);
        change(&mut value);
        self.api.put(&Node::from_value(value).expect("a node"));
    }

    /// Puts a pending pod into the namespace `default`.
    pub(crate) fn pod(&mut self, name: &str, cpu: &str, change: impl FnOnce(&mut Value)) {
        self.next_uid += 1;
        let mut value = pod(name, cpu);
        value["metadata"]["uid"] = format!("uid-{}", self.next_uid).into();
        change(&mut value);
        self.api.put(&Pod::from_value(value).expect("a pod"));
    }

    pub(crate) fn node_of(&self, pod: &str) -> Option<String> {
        let pod = self.api.get::<Pod>("default", pod)?;
        crate::model::pod::node_name(&pod).map(str::to_owned)
    }

    /// The reason and message of the pod's PodScheduled condition.
    pub(crate) fn why(&self, pod: &str) -> String {
        let pod = self.api.get::<Pod>("default", pod);
        let conditions = pod.as_ref().and_then(|pod| pod.status.as_ref()?.conditions.clone());
        let condition = conditions.into_iter().flatten().find(|condition| condition.type_ == "PodScheduled");
        condition.map_or_else(String::new, |condition| {
            format!("{}: {}", condition.reason.unwrap_or_default(), condition.message.unwrap_or_default())
        })
    }

    /// Type, reason and message of all events, by reason and message.
    pub(crate) fn events(&self) -> String {
        let mut lines: Vec<String> = self
            .api
            .list_values("", "events")
            .iter()
            .map(|event| {
                let text = |name: &str| event[name].as_str().unwrap_or_default();
                format!("{} {}: {}", text("type"), text("reason"), text("message"))
            })
            .collect();
        lines.sort();
        lines.dedup();
        lines.join("\n")
    }
}

pub(crate) fn node(name: &str, cpu: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": cpu, "memory": "32Gi", "pods": "110"}},
    })
}

pub(crate) fn pod(name: &str, cpu: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {}},
        "spec": {
            "schedulerName": "default-scheduler", "priority": 0,
            "containers": [{"name": "c", "image": "image", "resources": {"requests": {"cpu": cpu, "memory": "100Mi"}}}],
        },
        "status": {"phase": "Pending"},
    })
}
