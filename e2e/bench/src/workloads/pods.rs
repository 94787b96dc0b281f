//! `pods`: pods on a real node. First one after the other: from the create to Running as a watch sees it, and how much of
//! that is the container runtime's. Then many at once.
//!
//! What the runtime took is what the node's kubelet says (`kubelet_runtime_operations_duration_seconds`), read before and
//! after each pod: that of a sandbox and of a container created and started.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use http::Method;
use serde_json::json;

use super::{Bench, check_positive};
use crate::cluster::{Cluster, Target};
use crate::report::Report;
use crate::stats::Histogram;
use crate::track::Tracker;

const TIMEOUT: Duration = Duration::from_secs(600);
/// Operations of the runtime that a pod cannot do without.
const OPERATIONS: [&str; 3] = ["run_podsandbox", "create_container", "start_container"];

/// The pods of a workload.
#[derive(Args, Clone, Debug)]
pub(super) struct Template {
    /// Image of the pods' container; it must be on the node, and run without arguments until it is told to end
    #[arg(long, default_value = "rkube.local/pause:1", value_name = "IMAGE")]
    image: String,
}

impl Template {
    /// A pod for one node, by way of the scheduler.
    pub(super) fn pod(&self, name: &str, node: &str) -> String {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": node},
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": self.image, "imagePullPolicy": "IfNotPresent"}],
            },
        })
        .to_string()
    }
}

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    template: Template,
    /// The node to run them on
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Pods to run one after the other
    #[arg(long, default_value_t = 30, value_name = "N")]
    count: u64,
    /// Pods to run at once; the node must have room for them
    #[arg(long, default_value_t = 50, value_name = "N")]
    burst: usize,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        check_positive("--count", self.count)?;
        check_positive("--burst", self.burst as u64)
    }
}

/// What running pods one after the other took.
#[derive(Default)]
struct Sequence {
    whole: Histogram,
    runtime: Histogram,
    beyond: Histogram,
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let Options { template, node, count, burst, .. } = options;
    let one_by_one = async |namespace: &str| {
        bench.cluster.ready_for_pods(namespace).await?;
        bench.measured(sequence(options, bench, namespace)).await
    };
    let (sequence, used) = bench.cluster.in_namespace(one_by_one).await?;
    let at_once = async |namespace: &str| {
        bench.cluster.ready_for_pods(namespace).await?;
        let tracker = Tracker::start(&bench.cluster, namespace, "", bench.progress("pods bound").ticker());
        let before = runtime_time(&bench.cluster, node).await?;
        let (template, node) = (template.clone(), node.clone());
        let body = move |index| template.pod(&format!("p-{index:05}"), &node);
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let start = bench.clock().monotonic();
        bench.prepare("pods created", *burst as u64, &path, body).await?;
        tracker.wait("running all pods", TIMEOUT, |counts| counts.running == *burst).await?;
        let took = bench.clock().monotonic().saturating_sub(start);
        let runtime = runtime_time(&bench.cluster, &options.node).await?.saturating_sub(before);
        Ok((took, runtime))
    };
    let (took, runtime) = bench.cluster.in_namespace(at_once).await?;
    let mut report = bench.report("pods");
    report
        .parameter("node", node.as_str())
        .parameter("count", *count)
        .parameter("burst", *burst)
        .latencies("create to Running", &sequence.whole)
        .latencies("of that the runtime", &sequence.runtime)
        .latencies("beyond the runtime", &sequence.beyond)
        .usage(used, *count)
        .millis("burst, all Running", took)
        .figure("burst, rate", *burst as f64 / took.as_secs_f64(), "pods/s")
        .millis("burst, runtime's calls per pod", runtime / u32::try_from(*burst).unwrap_or(u32::MAX));
    Ok(report)
}

async fn sequence(options: &Options, bench: &Bench, namespace: &str) -> Result<Sequence> {
    let progress = bench.progress("pods run");
    let ticker = progress.ticker();
    let tracker = Tracker::start(&bench.cluster, namespace, "", ticker);
    let (clock, connection) = (bench.clock(), bench.cluster.connection(0));
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let mut sequence = Sequence::default();
    for index in 0..options.count {
        let name = format!("p-{index:05}");
        let body = options.template.pod(&name, &options.node);
        let before = runtime_time(&bench.cluster, &options.node).await?;
        let start = clock.monotonic();
        connection.send(Method::POST, &path, body).await.context("creating a pod")?;
        tracker.wait("running a pod", TIMEOUT, |counts| counts.running == 1).await?;
        let whole = clock.monotonic().saturating_sub(start);
        let runtime = runtime_time(&bench.cluster, &options.node).await?.saturating_sub(before);
        sequence.whole.record(whole);
        sequence.runtime.record(runtime);
        sequence.beyond.record(whole.saturating_sub(runtime));
        connection.send(Method::DELETE, &format!("{path}/{name}"), Bytes::new()).await.context("deleting a pod")?;
        tracker.wait("removing a pod", TIMEOUT, |counts| counts.present == 0).await?;
    }
    Ok(sequence)
}

/// How long the node's runtime has worked on pods that start, since its kubelet started.
pub(super) async fn runtime_time(cluster: &Cluster, node: &str) -> Result<Duration> {
    let path = format!("/api/v1/nodes/{node}/proxy/metrics");
    let answer = cluster.connection(0).send(Method::GET, &path, Bytes::new()).await;
    let answer = answer.with_context(|| format!("reading the metrics of node {node}"))?;
    sum(&String::from_utf8_lossy(answer.body()))
}

fn sum(metrics: &str) -> Result<Duration> {
    const NAME: &str = "kubelet_runtime_operations_duration_seconds";
    ensure!(metrics.contains(NAME), "the node's kubelet does not tell {NAME}");
    let prefix = format!("{NAME}_sum{{operation_type=\"");
    let sums = metrics.lines().filter_map(|line| line.strip_prefix(&prefix)?.split_once("\"} "));
    let of_pods = sums.filter(|(operation, _)| OPERATIONS.contains(operation));
    let seconds: f64 = of_pods.filter_map(|(_, value)| value.trim().parse::<f64>().ok()).sum();
    Duration::try_from_secs_f64(seconds).context("a sum of seconds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runtime_took_is_read_from_metrics() {
        let line = |operation: &str, what: &str, value: &str| {
            format!("kubelet_runtime_operations_duration_seconds_{what}{{operation_type=\"{operation}\"}} {value}\n")
        };
        let metrics = [
            line("run_podsandbox", "sum", "0.25"),
            line("run_podsandbox", "count", "7"),
            line("create_container", "sum", "0.5"),
            line("podsandbox_status", "sum", "9"),
        ];
        assert_eq!(sum(&metrics.concat()).unwrap(), Duration::from_millis(750));
        assert!(sum("go_goroutines 1").is_err());
    }
}
