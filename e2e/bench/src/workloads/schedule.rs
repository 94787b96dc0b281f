//! `schedule`: pods of one shape on fake nodes; how fast they are bound, durably and through the API.
//!
//! Shapes and sizes are those of upstream's `test/integration/scheduler_perf`, v1.36: nodes of 4 CPUs, 32 GiB and 110 pods;
//! pods that ask for 100m and 500Mi. Throughput counts from the first create to the last binding seen by a watch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use http::Method;
use parking_lot::Mutex;
use rkube_client::transport::ClientError;
use serde_json::{Value, json};

use super::{Bench, Playground, check_positive};
use crate::cluster::{Cluster, Target};
use crate::load::{self, Plan};
use crate::nodes::Shape;
use crate::process::Usage;
use crate::progress::say;
use crate::report::Report;
use crate::stats::Histogram;
use crate::track::{Counts, Tracker};

const TIMEOUT: Duration = Duration::from_secs(1800);
const HIGH_PRIORITY: i32 = 10;
/// What is measured has this label; what is there before and beside it has not.
const MEASURED: &str = "bench=measured";
const UNFIT: &str = "bench=unfit";

const NODES: &str = "/api/v1/nodes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Load {
    /// Nothing but resources
    Basic,
    /// One pod of a color per node
    AntiAffinity,
    /// Pods of a color in one zone
    Affinity,
    /// Over three zones with a skew of at most 5
    Spreading,
    /// Nodes full of pods of lower priority
    Preemption,
    /// A node, a Service and a pod too large come and go every second
    Churn,
    /// Five pods a second that fit nowhere
    Unschedulable,
    /// As many pods again whose gates stay closed
    Gated,
}

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Kind of load
    #[arg(long, value_enum)]
    shape: Load,
    /// Fake nodes to play
    #[arg(long, default_value_t = 5000, value_name = "N")]
    nodes: usize,
    /// Pods to schedule
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pods: u64,
    /// Pods that are bound before; as upstream's for that shape if not given
    #[arg(long, value_name = "N")]
    init_pods: Option<u64>,
    /// Pods that fit nowhere, all refused and waiting before the measured ones come
    #[arg(long, default_value_t = 0, value_name = "N")]
    unfit_pods: u64,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        check_positive("--pods", self.pods)?;
        self.playground().check()?;
        let nodes = self.nodes as u64;
        if self.shape == Load::AntiAffinity {
            let pods = self.pods + self.init_pods();
            ensure!(pods <= nodes, "{pods} pods that keep apart do not fit on {nodes} nodes");
        }
        if self.shape == Load::Preemption {
            ensure!(self.pods <= nodes, "{} pods of 3 CPUs do not fit on {nodes} nodes", self.pods);
        }
        Ok(())
    }

    fn init_pods(&self) -> u64 {
        let nodes = self.nodes as u64;
        self.init_pods.unwrap_or(match self.shape {
            Load::AntiAffinity | Load::Basic => nodes / 5,
            Load::Affinity | Load::Spreading => nodes,
            Load::Preemption => nodes * 4,
            Load::Unschedulable => nodes / 50,
            Load::Churn => 0,
            Load::Gated => self.pods,
        })
    }

    fn playground(&self) -> Playground {
        let zones = if self.shape == Load::Affinity { 1 } else { 3 };
        let shape = Shape {
            node_prefix: "perf".to_owned(),
            node_cpu: "4".to_owned(),
            node_memory: "32Gi".to_owned(),
            node_pods: 110,
            zones,
            lease_interval: 10,
        };
        Playground { nodes: self.nodes, shape }
    }
}

/// A pod of `shape`; `before` for those that are there when the measured ones come.
fn pod(shape: Load, before: bool, class: &str) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "pod-", "labels": {"app": "perf"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "pause", "image": "registry.example/none:1",
                "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}},
            }],
        },
    });
    let apart = |color: &str, topology: &str| {
        json!({"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"color": color}}, "topologyKey": topology},
        ]})
    };
    let cpu = |pod: &mut Value, cpu: &str| pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = cpu.into();
    match (shape, before) {
        (Load::AntiAffinity, _) => {
            pod["metadata"]["labels"]["color"] = "green".into();
            pod["spec"]["affinity"]["podAntiAffinity"] = apart("green", "kubernetes.io/hostname");
        }
        (Load::Affinity, _) => {
            pod["metadata"]["labels"]["color"] = "blue".into();
            pod["spec"]["affinity"]["podAffinity"] = apart("blue", "topology.kubernetes.io/zone");
        }
        (Load::Spreading, false) => {
            pod["metadata"]["labels"]["color"] = "blue".into();
            pod["spec"]["topologySpreadConstraints"] = json!([{
                "maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"color": "blue"}},
            }]);
        }
        (Load::Preemption, true) => cpu(&mut pod, "900m"),
        (Load::Preemption, false) => {
            cpu(&mut pod, "3000m");
            pod["spec"]["priorityClassName"] = class.into();
        }
        (Load::Gated, true) => pod["spec"]["schedulingGates"] = json!([{"name": "bench.rkube.dev/closed"}]),
        _ => {}
    }
    if !before {
        pod["metadata"]["labels"]["bench"] = "measured".into();
    }
    pod
}

/// A pod of high priority that no node has room for.
fn large_pod(class: &str) -> Value {
    let mut large = pod(Load::Basic, true, class);
    large["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "9".into();
    large["spec"]["priorityClassName"] = class.into();
    large
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let class = bench.cluster.random_name("bench-high");
    let connection = bench.cluster.connection(0);
    let body = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": class}, "value": HIGH_PRIORITY,
    });
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    connection.send(Method::POST, classes, body.to_string()).await.context("creating a PriorityClass")?;
    let work = async |namespace: &str| {
        let measured = measure(options, bench, namespace, &class).await;
        if options.shape == Load::Churn {
            // The rest goes with its namespace.
            let gone = connection.send(Method::DELETE, &format!("{NODES}/{}", churned_node(namespace)), "").await;
            gone.map(drop).or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) })?;
        }
        measured
    };
    let result = options.playground().play_with(bench, None, work).await;
    let removed = connection.send(Method::DELETE, &format!("{classes}/{class}"), "").await;
    let measured = result?;
    removed.context("deleting the PriorityClass")?;
    let mut report = bench.report("schedule");
    report
        .parameter(
            "shape",
            options.shape.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned()),
        )
        .parameter("nodes", options.nodes)
        .parameter("pods", options.pods)
        .parameter("pods before", options.init_pods())
        .parameter("unfit pods", options.unfit_pods)
        .figure("throughput", options.pods as f64 / measured.elapsed.as_secs_f64(), "pods/s")
        .figure("creates", options.pods as f64 / measured.creating.as_secs_f64(), "pods/s")
        .figure("elapsed", measured.elapsed.as_secs_f64(), "s")
        .latencies("created to bound", &measured.latencies)
        .usage(measured.used, options.pods)
        .figure("client CPU per operation", measured.own_cpu.as_secs_f64() * 1e6 / options.pods as f64, "µs");
    if let Some(refusing) = measured.refusing {
        report.figure("refusals", options.unfit_pods as f64 / refusing.as_secs_f64(), "pods/s");
    }
    Ok(report)
}

struct Measured {
    elapsed: Duration,
    creating: Duration,
    /// From the first create of those that fit nowhere until the last was told.
    refusing: Option<Duration>,
    latencies: Histogram,
    used: Option<Usage>,
    own_cpu: Duration,
}

async fn measure(options: &Options, bench: &Bench, namespace: &str, class: &str) -> Result<Measured> {
    let Options { shape, pods, .. } = *options;
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let init = options.init_pods();
    if init > 0 {
        let tracker = Tracker::start(&bench.cluster, namespace, "", bench.progress("bound before").ticker());
        let body = pod(shape, true, class).to_string();
        bench.prepare("created", init, &path, move |_| body.clone()).await?;
        let bound = if shape == Load::Gated { 0 } else { init as usize };
        tracker.wait("preparing", TIMEOUT, |counts| counts.present >= init as usize && counts.bound >= bound).await?;
    }
    let refusing = if options.unfit_pods > 0 { Some(refuse(options, bench, namespace, class).await?) } else { None };
    say("prepared");
    let progress = bench.progress("bound");
    let tracker = Tracker::start(&bench.cluster, namespace, MEASURED, progress.ticker());
    let created = Arc::new(Mutex::new(HashMap::with_capacity(pods as usize)));
    let start = bench.clock().monotonic();
    let measuring = async {
        create(bench, &path, pods, &pod(shape, false, class), &created).await?;
        let creating = bench.clock().monotonic().saturating_sub(start);
        tracker.wait("scheduling", TIMEOUT, |counts| counts.bound >= pods as usize).await?;
        Ok(creating)
    };
    let beside = beside(shape, &bench.cluster, namespace, class);
    let own_before = Usage::own_cpu()?;
    let measured = bench.measured(async {
        tokio::select! {
            result = measuring => result,
            error = beside => Err(error).context("changing the cluster beside the pods"),
        }
    });
    let (creating, used) = measured.await?;
    let own_cpu = Usage::own_cpu()?.saturating_sub(own_before);
    let (bound, created) = (tracker.bound_at(), created.lock());
    let mut latencies = Histogram::default();
    for (name, at) in &bound {
        if let Some(created) = created.get(name) {
            latencies.record(at.saturating_sub(*created));
        }
    }
    let elapsed = bound.values().max().copied().unwrap_or_default().saturating_sub(start);
    Ok(Measured { elapsed, creating, refusing, latencies, used, own_cpu })
}

/// Creates the pods that fit nowhere and waits until each was told so.
async fn refuse(options: &Options, bench: &Bench, namespace: &str, class: &str) -> Result<Duration> {
    let tracker = Tracker::start(&bench.cluster, namespace, UNFIT, bench.progress("bound of the unfit").ticker());
    let mut pod = large_pod(class);
    pod["metadata"]["labels"]["bench"] = "unfit".into();
    let (body, path) = (pod.to_string(), format!("/api/v1/namespaces/{namespace}/pods"));
    let start = bench.clock().monotonic();
    bench.prepare("unfit created", options.unfit_pods, &path, move |_| body.clone()).await?;
    let refused = |counts: &Counts| counts.refused >= options.unfit_pods as usize;
    tracker.wait("refusing", TIMEOUT, refused).await?;
    Ok(bench.clock().monotonic().saturating_sub(start))
}

/// Creates the measured pods and notes when the answer for each came.
async fn create(
    bench: &Bench,
    path: &str,
    count: u64,
    pod: &Value,
    created: &Arc<Mutex<HashMap<String, Duration>>>,
) -> Result<()> {
    let plan = Plan { concurrency: super::PREPARE_CONCURRENCY, count: Some(count), duration: None };
    let (cluster, path, pod, created) = (bench.cluster.clone(), path.to_owned(), pod.clone(), Arc::clone(created));
    let progress = crate::progress::Progress::start("created", bench.clock(), true);
    let outcome = load::run(&plan, bench.clock(), &progress, move |worker, index| {
        let (connection, path, created, clock) =
            (cluster.connection(worker).clone(), path.clone(), Arc::clone(&created), cluster.clock.clone());
        let mut pod = pod.clone();
        let name = format!("measured-{index:06}");
        pod["metadata"]["name"] = name.as_str().into();
        async move {
            connection.send(Method::POST, &path, pod.to_string()).await?;
            created.lock().insert(name, clock.monotonic());
            Ok(())
        }
    });
    let errors = outcome.await?.errors;
    errors.fail_if_nothing(0, "create")
}

/// What happens to the cluster while pods are scheduled; ends only by a failure.
async fn beside(shape: Load, cluster: &Cluster, namespace: &str, class: &str) -> ClientError {
    let result = match shape {
        Load::Churn => churn(cluster, namespace, class).await,
        Load::Unschedulable => add_large_pods(cluster, namespace, class).await,
        _ => std::future::pending().await,
    };
    match result {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

async fn add_large_pods(
    cluster: &Cluster,
    namespace: &str,
    class: &str,
) -> Result<std::convert::Infallible, ClientError> {
    let (path, body) = (format!("/api/v1/namespaces/{namespace}/pods"), large_pod(class).to_string());
    loop {
        cluster.connection(0).send(Method::POST, &path, body.clone()).await?;
        cluster.clock.sleep(Duration::from_millis(200)).await;
    }
}

fn churned_node(namespace: &str) -> String {
    format!("{namespace}-churn")
}

async fn churn(cluster: &Cluster, namespace: &str, class: &str) -> Result<std::convert::Infallible, ClientError> {
    let connection = cluster.connection(0);
    let named = |mut object: Value| {
        object["metadata"]["name"] = "churn".into();
        object
    };
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": churned_node(namespace)},
        "status": {"capacity": {"pods": "110", "cpu": "4", "memory": "32Gi"}},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {},
        "spec": {"selector": {"app": "churn"}, "ports": [{"port": 80}]},
    });
    let namespaced = format!("/api/v1/namespaces/{namespace}");
    let objects = [
        (NODES.to_owned(), node),
        (format!("{namespaced}/pods"), named(large_pod(class))),
        (format!("{namespaced}/services"), named(service)),
    ];
    loop {
        for (path, object) in &objects {
            connection.send(Method::POST, path, object.to_string()).await?;
        }
        cluster.clock.sleep(Duration::from_secs(1)).await;
        for (path, object) in &objects {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            connection.send(Method::DELETE, &format!("{path}/{name}"), "").await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_its_own_measured_pods() {
        let mut seen = Vec::new();
        for shape in [Load::Basic, Load::AntiAffinity, Load::Affinity, Load::Spreading, Load::Preemption] {
            let (measured, before) = (pod(shape, false, "high"), pod(shape, true, "high"));
            assert_eq!(measured["metadata"]["labels"]["bench"], "measured");
            assert!(before["metadata"]["labels"].get("bench").is_none());
            assert!(!seen.contains(&measured), "{shape:?}");
            seen.push(measured);
        }
        assert!(pod(Load::Gated, false, "").pointer("/spec/schedulingGates").is_none());
    }
}
