//! Every workload of rkube-bench, small, against a real server: it ends well, counts no error and reports figures.
//!
//! The program runs on the node, as its processes are the ones to measure.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rkube_api::k8s::core::v1::{Namespace, Node as NodeKind, Pod};
use rkube_client::ListParams;
use serde_json::Value;

use crate::api;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::process;
use crate::service::Service;
use crate::world::{LIMIT, World};

/// A workload and a figure that its report has.
const WORKLOADS: &[(&str, &str)] = &[
    ("create --count 60 --concurrency 8", "throughput"),
    ("get --objects 20 --count 200 --concurrency 8", "throughput"),
    ("list --objects 40 --repeat 2", "last byte p50"),
    ("watch --watchers 20 --rate 50 --duration 1 --objects 10", "events"),
    ("informers --clients 4 --objects 5 --size 20000", "synced"),
    ("deploy --nodes 5 --replicas 20", "0 to all running"),
    ("job --nodes 5 --completions 20", "complete"),
    ("endpoints --count 20", "ready to connected p50"),
    ("namespace --objects 60", "namespace gone"),
    ("schedule --shape basic --nodes 10 --pods 20", "throughput"),
    ("schedule --shape anti-affinity --nodes 10 --pods 5", "throughput"),
    ("schedule --shape affinity --nodes 10 --pods 10", "throughput"),
    ("schedule --shape spreading --nodes 10 --pods 10", "throughput"),
    ("schedule --shape preemption --nodes 4 --pods 4", "throughput"),
    ("schedule --shape churn --nodes 10 --pods 20", "throughput"),
    ("schedule --shape unschedulable --nodes 10 --pods 20", "throughput"),
    ("schedule --shape gated --nodes 10 --pods 20", "throughput"),
];

pub(crate) async fn workloads(cluster: &Cluster) -> Result<()> {
    let world = World::new(cluster, "default")?;
    // Pods without an image are for the fake nodes.
    world.kubectl("cordon node1").await?;
    let node = cluster.node(1);
    let server = node.rkube().pid().context("rkube runs")?;
    let bench = Bench { node: &node, server };
    for (workload, figure) in WORKLOADS {
        bench.run(workload, &["--kubeconfig", &node.kubeconfig().display().to_string()], figure).await?;
    }
    bench.run("idle --duration 1", &[], "memory (PSS)").await?;
    // This one is for the real node.
    world.kubectl("uncordon node1").await?;
    let pods = "pods --node node1 --count 2 --burst 3";
    bench.run(pods, &["--kubeconfig", &node.kubeconfig().display().to_string()], "beyond the runtime").await?;
    restarts(&bench).await?;
    fake_nodes(cluster, &node).await?;
    // What a run makes is gone when it has ended.
    let namespaces = world.client.all::<Namespace>().list(&ListParams::default()).await?;
    let names: Vec<String> = namespaces.items.iter().filter_map(|one| one.metadata.name.clone()).collect();
    ensure!(names == ["default", "kube-node-lease", "kube-public", "kube-system"], "left are {names:?}");
    let nodes = world.client.all::<NodeKind>().list(&ListParams::default()).await?;
    ensure!(nodes.items.len() == 1, "{} nodes are left", nodes.items.len());
    let pods = world.client.all::<Pod>().list(&ListParams::default()).await?;
    ensure!(pods.items.is_empty(), "{} pods are left", pods.items.len());
    Ok(())
}

struct Bench<'a> {
    node: &'a Node,
    /// The number of the server's process on the host.
    server: i32,
}

impl Bench<'_> {
    /// Runs one workload on the node and looks at its report.
    async fn run(&self, workload: &str, more: &[&str], figure: &str) -> Result<()> {
        let json = self.node.spec.folder.join("nodes/bench.json");
        let pid = pid_on_node(self.server)?;
        let (program, report) = (program()?, json.display().to_string());
        let mut command = vec![program.as_str()];
        command.extend(workload.split(' '));
        command.extend(["--quiet", "--pid", &pid, "--json", &report]);
        command.extend(more);
        let table = self.node.run(&command).await.with_context(|| workload.to_owned())?;
        let report: Value = serde_json::from_slice(&std::fs::read(&json)?).context("the report as JSON")?;
        std::fs::remove_file(&json)?;
        ensure!(report["errors"] == serde_json::json!({}), "{workload}: {}", report["errors"]);
        let figures = report["figures"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found = figures.iter().find(|one| one["name"].as_str().is_some_and(|name| name.starts_with(figure)));
        let value = found.and_then(|one| one["value"].as_f64());
        ensure!(value.is_some_and(|value| value > 0.0), "{workload}: no figure {figure:?} in\n{table}");
        ensure!(table.starts_with(workload.split(' ').next().unwrap_or_default()), "{workload}: the table is\n{table}");
        Ok(())
    }
}

/// A server of its own, on a port of its own on the node.
async fn restarts(bench: &Bench<'_>) -> Result<()> {
    let folder = bench.node.spec.folder.join("nodes/bench");
    let path = |name: &str| folder.join(name).display().to_string();
    let rkube = bench.node.spec.binary().display().to_string();
    let (data, kubeconfig) = (path("data"), path("admin.yaml"));
    let server = [
        "--kubeconfig",
        &kubeconfig,
        "--",
        &rkube,
        "server",
        "--disable-agent",
        "--https-listen-port=7443",
        "--data-dir",
        &data,
        "--write-kubeconfig",
        &kubeconfig,
    ];
    bench.run("restart --repeat 2 --objects 20", &server, "restart to ready").await
}

/// Nodes that are played until the program is told to end, and go with it.
async fn fake_nodes(cluster: &Cluster, node: &Node) -> Result<()> {
    let program = Service { name: "fake-nodes", ..node.rkube() };
    let kubeconfig = node.kubeconfig().display().to_string();
    let words = ["fake-nodes", "--count", "3", "--quiet", "--kubeconfig", &kubeconfig];
    let command: Vec<String> = std::iter::once(self::program()?).chain(words.map(str::to_owned)).collect();
    let pid = program.launch(&command, false, None).await?;
    let nodes = cluster.client()?.all::<NodeKind>();
    let count = |wanted: usize| {
        let nodes = nodes.clone();
        async move {
            let what = format!("{wanted} nodes Ready");
            api::wait(nodes.dynamic(), &ListParams::default(), LIMIT, &what, |found| {
                let ready = found.values().filter(|node| api::condition(node, "Ready") == "True").count();
                if (ready, found.len()) == (wanted, wanted) {
                    Ok(())
                } else {
                    Err(format!("{ready} of {}", found.len()))
                }
            })
            .await
        }
    };
    count(4).await?;
    process::end(pid, Signal::SIGTERM, LIMIT).await?;
    count(1).await
}

/// The program that is built beside this one.
fn program() -> Result<String> {
    let path = std::env::current_exe()?.with_file_name("rkube-bench");
    ensure!(path.exists(), "{} is missing: cargo build -p rkube-bench", path.display());
    Ok(path.display().to_string())
}

/// The number a process has on its node.
fn pid_on_node(pid: i32) -> Result<String> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("the kernel says NSpid")?;
    Ok(line.split_whitespace().next_back().unwrap_or_default().to_owned())
}
