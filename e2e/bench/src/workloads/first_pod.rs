//! `first-pod`: starts a server with its node by a command; time until it is ready, until its node is, and until a pod
//! that is created as soon as that can be runs.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_util::StreamExt;
use http::Method;
use rkube_api::k8s::core::v1::Node;
use rkube_apimachinery::clock::SharedClock;
use rkube_client::ListParams;
use rkube_client::transport::WatchEvent;
use serde_json::Value;

use super::Bench;
use super::pods::{Template, runtime_time};
use super::restart::start;
use crate::arguments::Output;
use crate::cluster::{Cluster, Target, interruptible};
use crate::progress::Ticker;
use crate::report::Report;
use crate::track::Tracker;

const TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    template: Template,
    /// The name its node will have
    #[arg(long, value_name = "NAME")]
    node: String,
    /// The command that runs the server with its node in the foreground
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn run(options: &Options, output: &Output, clock: SharedClock) -> Result<Report> {
    let mut started = interruptible(start(&options.command, &options.target, &clock)).await?;
    let measured = measure(options, output, &clock, started.began).await;
    started.server.kill().await.context("killing the server")?;
    let Measured { bench, node_ready, running, runtime } = measured?;
    let mut report = bench.report("first-pod");
    report
        .parameter("node", options.node.as_str())
        .millis("ready", started.ready)
        .millis("node Ready", node_ready)
        .millis("first pod Running", running)
        .millis("of that the runtime", runtime)
        .millis("beyond the runtime", running.saturating_sub(runtime));
    Ok(report)
}

/// Durations since the server was started, and what the runtime took for the pod.
struct Measured {
    bench: Bench,
    node_ready: Duration,
    running: Duration,
    runtime: Duration,
}

async fn measure(options: &Options, output: &Output, clock: &SharedClock, began: Duration) -> Result<Measured> {
    let bench = Bench::connect(&options.target, &Output { pids: Vec::new(), ..output.clone() }).await?;
    // By the clock that `began` is of: each counts from its own beginning.
    let since = || clock.monotonic().saturating_sub(began);
    let work = async |namespace: &str| {
        let node = async {
            node_ready(&bench.cluster, &options.node).await?;
            Ok::<_, anyhow::Error>(since())
        };
        let pod = async {
            bench.cluster.ready_for_pods(namespace).await?;
            let tracker = Tracker::start(&bench.cluster, namespace, "", Ticker::default());
            let path = format!("/api/v1/namespaces/{namespace}/pods");
            let body = options.template.pod("first", &options.node);
            bench.cluster.connection(0).send(Method::POST, &path, body).await.context("creating the pod")?;
            tracker.wait("running the pod", TIMEOUT, |counts| counts.running == 1).await?;
            Ok(since())
        };
        let (node_ready, running) = tokio::try_join!(node, pod)?;
        // Its kubelet is as old as the pod, and there is no other.
        let runtime = runtime_time(&bench.cluster, &options.node).await?;
        Ok((node_ready, running, runtime))
    };
    let (node_ready, running, runtime) = bench.cluster.in_namespace(work).await?;
    Ok(Measured { node_ready, running, runtime, bench })
}

/// Waits until the node is there and Ready.
async fn node_ready(cluster: &Cluster, name: &str) -> Result<()> {
    let is_ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let nodes = cluster.client(0).all::<Node>();
    let mut params = ListParams::fields(format!("metadata.name={name}"));
    let list = nodes.dynamic().list(&params).await.context("looking for the node")?;
    for node in &list.items {
        if is_ready(&node.value().context("reading the node")?) {
            return Ok(());
        }
    }
    params.resource_version = list.resource_version;
    let seconds = u32::try_from(TIMEOUT.as_secs()).unwrap_or(u32::MAX);
    let mut changes = nodes.dynamic().watch(&params, seconds).await.context("watching the node")?;
    while let Some(event) = changes.next().await {
        if let WatchEvent::Added(node) | WatchEvent::Modified(node) = event.context("watching the node")?
            && is_ready(&node.value().context("reading the node")?)
        {
            return Ok(());
        }
    }
    bail!("node {name} was not Ready after {} s", TIMEOUT.as_secs())
}
