//! The workloads, and what they share: the connections, the server's processes, objects of a given size.

pub(crate) mod create;
pub(crate) mod deploy;
pub(crate) mod endpoints;
pub(crate) mod fake_nodes;
pub(crate) mod first_pod;
pub(crate) mod get;
pub(crate) mod idle;
pub(crate) mod idle_watches;
pub(crate) mod informers;
pub(crate) mod job;
pub(crate) mod list;
pub(crate) mod namespace;
pub(crate) mod pods;
pub(crate) mod restart;
pub(crate) mod schedule;
pub(crate) mod stored;
pub(crate) mod watch;

use anyhow::{Context, Result, ensure};
use clap::Args;
use http::Method;
use rkube_apimachinery::clock::{SharedClock, SystemClock};
use serde_json::{Value, json};

use crate::arguments::{Arguments, Output, Workload};
use crate::cluster::{Cluster, Target, interruptible};
use crate::load::{self, Plan};
use crate::nodes::{Behaviour, FakeNodes, Shape};
use crate::process::{self, Usage};
use crate::progress::{Progress, Ticker};
use crate::report::Report;

/// Leaves room for the rest of the object under the 1.5 MiB that storage takes.
const SIZE_MAX: usize = 1_000_000;
/// How many requests prepare objects at once.
const PREPARE_CONCURRENCY: usize = 64;

/// Runs one workload; `None` for one that has nothing to report.
pub(crate) async fn run(arguments: Arguments) -> Result<Option<Report>> {
    let output = arguments.output;
    let report = match arguments.workload {
        Workload::Create(options) => create::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::Get(options) => get::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::List(options) => list::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::Watch(options) => watch::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::Informers(options) => {
            informers::run(&options, &Bench::connect(&options.target, &output).await?).await
        }
        Workload::Stored(options) => stored::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::IdleWatches(options) => {
            // Connections are part of what watches cost, so memory is looked at before there are any.
            let before = process::memory(&output.pids)?;
            idle_watches::run(&options, &Bench::connect(&options.target(), &output).await?, before).await
        }
        Workload::Deploy(options) => deploy::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::Endpoints(options) => {
            endpoints::run(&options, &Bench::connect(&options.target, &output).await?).await
        }
        Workload::Job(options) => job::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::Namespace(options) => {
            namespace::run(&options, &Bench::connect(&options.target, &output).await?).await
        }
        Workload::Schedule(options) => schedule::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::FakeNodes(options) => {
            fake_nodes::run(&options, &Bench::connect(&options.target, &output).await?).await?;
            return Ok(None);
        }
        Workload::Restart(options) => restart::run(&options, &output, SystemClock::shared()).await,
        Workload::FirstPod(options) => first_pod::run(&options, &output, SystemClock::shared()).await,
        Workload::Pods(options) => pods::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::Idle(options) => idle::run(&options, &output, &SystemClock::shared()).await,
    };
    report.map(Some)
}

/// A server, warmed up, and what is known of it.
pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    version: String,
    pub(crate) pids: Vec<u32>,
    quiet: bool,
}

impl Bench {
    pub(crate) async fn connect(target: &Target, output: &Output) -> Result<Self> {
        let cluster = Cluster::new(target, SystemClock::shared())?;
        // A process that cannot be read is better found before the work than after it.
        Usage::read(&output.pids)?;
        let version = cluster.warm_up().await?;
        Ok(Self { cluster, version, pids: output.pids.clone(), quiet: output.quiet })
    }

    pub(crate) fn clock(&self) -> &SharedClock {
        &self.cluster.clock
    }

    pub(crate) fn progress(&self, what: &'static str) -> Progress {
        Progress::start(what, &self.cluster.clock, self.quiet)
    }

    pub(crate) fn report(&self, workload: &'static str) -> Report {
        let mut report = Report::new(workload);
        report.server = self.version.clone();
        report.parameter("connections", self.cluster.connections());
        report
    }

    /// What the server's processes used while `work` ran; `None` when none were named.
    pub(crate) async fn measured<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, Option<Usage>)> {
        let before = Usage::read(&self.pids)?;
        let value = work.await?;
        let used = Usage::read(&self.pids)?.since(&before);
        Ok((value, (!self.pids.is_empty()).then_some(used)))
    }

    /// Creates `count` objects, `body(index)` each, as fast as that goes. Any failure is one of the whole run.
    pub(crate) async fn prepare<F>(&self, what: &'static str, count: u64, path: &str, body: F) -> Result<()>
    where
        F: Fn(u64) -> String + Send + Sync + 'static,
    {
        let (cluster, path) = (self.cluster.clone(), path.to_owned());
        let plan = Plan { concurrency: PREPARE_CONCURRENCY, count: Some(count), duration: None };
        let body = std::sync::Arc::new(body);
        let progress = self.progress(what);
        let outcome = load::run(&plan, self.clock(), &progress, move |worker, index| {
            let (connection, path, body) = (cluster.connection(worker).clone(), path.clone(), body(index));
            async move { connection.send(Method::POST, &path, body).await.map(drop) }
        });
        let errors = outcome.await?.errors;
        errors.fail_if_nothing(0, what)?;
        ensure!(errors.total() == 0, "{} of {count} {what} were not created", errors.total());
        Ok(())
    }
}

/// Fake nodes for a workload that needs some, and pods that run only there.
#[derive(Args, Clone, Debug)]
pub(crate) struct Playground {
    /// Fake nodes to play; 0 when `rkube-bench fake-nodes` runs already
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub(crate) nodes: usize,
    #[command(flatten)]
    pub(crate) shape: Shape,
}

impl Playground {
    pub(crate) fn check(&self) -> Result<()> {
        if self.nodes == 0 { Ok(()) } else { self.shape.check(self.nodes) }
    }

    /// The spec of a pod with one container, for fake nodes only.
    pub(crate) fn pod_spec(&self, cpu: &str) -> Value {
        json!({
            "nodeSelector": {"type": "rkube-bench"},
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": "registry.example/none:1", "resources": {"requests": {"cpu": cpu}},
            }],
        })
    }

    /// Runs `work` in a namespace of its own while the nodes live.
    pub(crate) async fn play<T>(&self, bench: &Bench, work: impl AsyncFnOnce(&str) -> Result<T>) -> Result<T> {
        self.play_with(bench, Some(&Behaviour::default()), work).await
    }

    /// As `play`; nodes without behaviour leave pods alone.
    pub(crate) async fn play_with<T>(
        &self,
        bench: &Bench,
        behaviour: Option<&Behaviour>,
        work: impl AsyncFnOnce(&str) -> Result<T>,
    ) -> Result<T> {
        let work = async |namespace: &str| {
            bench.cluster.ready_for_pods(namespace).await?;
            work(namespace).await
        };
        if self.nodes == 0 {
            return bench.cluster.in_namespace(work).await;
        }
        // Names of this run's own: somebody may be playing nodes already.
        let shape = Shape { node_prefix: bench.cluster.random_name(&self.shape.node_prefix), ..self.shape.clone() };
        let nodes = FakeNodes::start(&bench.cluster, &shape, self.nodes, behaviour, Ticker::default());
        let nodes = interruptible(nodes).await?;
        let work = async |namespace: &str| {
            nodes.settled().await?;
            work(namespace).await
        };
        let result = bench.cluster.in_namespace(work).await;
        let stopped = nodes.stop(bench.cluster.keeps()).await;
        let value = result?;
        stopped?;
        Ok(value)
    }
}

/// A ConfigMap of `size` bytes as JSON.
pub(crate) fn config_map(name: &str, size: usize) -> String {
    sized(
        size,
        |filler| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"payload": filler}}),
    )
}

/// What `make` gives with so much filler that its JSON has `size` bytes, or without any where that is larger.
pub(crate) fn sized(size: usize, make: impl Fn(String) -> serde_json::Value) -> String {
    let bare = make(String::new()).to_string();
    let missing = size.saturating_sub(bare.len());
    make("x".repeat(missing)).to_string()
}

pub(crate) fn check_size(size: usize) -> Result<()> {
    ensure!((1..=SIZE_MAX).contains(&size), "--size {size} is not in 1..={SIZE_MAX} bytes");
    Ok(())
}

pub(crate) fn check_positive(flag: &str, value: u64) -> Result<()> {
    ensure!(value > 0, "{flag} 0 would measure nothing");
    Ok(())
}

/// The text of a number that must be there for the run to make sense.
pub(crate) fn required<T>(value: Option<T>, what: &str) -> Result<T> {
    value.with_context(|| format!("the server's answer has no {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_the_size_asked_for() {
        assert_eq!(config_map("a", 1024).len(), 1024);
        assert!(config_map("a", 1).contains("\"payload\":\"\""));
    }
}
