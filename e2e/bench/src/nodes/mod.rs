//! Nodes without machines: they renew their leases, report their status, and say of the pods bound to them what rules
//! tell them to. To the server they look like kubelets, and cost a fraction.
//!
//! One watch serves all nodes; heartbeats are spread over the lease's renewal interval so that they come as a trickle.
//!
//! Behaves as `pkg/kubemark` with `pkg/kubelet/{kubelet_node_status,status}`, v1.36, as far as the API can see.
//! Invariant: only pods whose `spec.nodeName` is one of these nodes are touched.

mod heartbeat;
mod pods;
pub(crate) mod rules;
mod settle;
mod status;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use futures_util::StreamExt;
use http::Method;
use rkube_apimachinery::task;
use rkube_client::transport::ClientError;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug_span;

use crate::cluster::Cluster;
use crate::progress::Ticker;
use rules::{Rule, Rules};
pub(crate) use status::STRATEGIC;

/// Requests in flight while nodes are made and removed.
const PREPARE_CONCURRENCY: usize = 64;
const NODES_MAX: usize = 100_000;

/// What the nodes are like.
#[derive(Args, Clone, Debug)]
pub(crate) struct Shape {
    /// Names are this and a number
    #[arg(long, default_value = "fake", value_name = "PREFIX")]
    pub(crate) node_prefix: String,
    /// CPUs of each node
    #[arg(long, default_value = "32", value_name = "QUANTITY")]
    pub(crate) node_cpu: String,
    /// Memory of each node
    #[arg(long, default_value = "256Gi", value_name = "QUANTITY")]
    pub(crate) node_memory: String,
    /// Pods each node takes
    #[arg(long, default_value_t = 110, value_name = "N")]
    pub(crate) node_pods: u32,
    /// Zones the nodes are spread over
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) zones: usize,
    /// Seconds between renewals of a lease
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub(crate) lease_interval: u64,
}

impl Shape {
    pub(crate) fn check(&self, count: usize) -> Result<()> {
        ensure!((1..=NODES_MAX).contains(&count), "{count} nodes are not in 1..={NODES_MAX}");
        ensure!(self.zones > 0, "--zones 0 leaves no zone for a node");
        ensure!(
            (1..=40).contains(&self.lease_interval),
            "--lease-interval {} is not in 1..=40 seconds",
            self.lease_interval
        );
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let starts = self.node_prefix.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        ensure!(
            starts && self.node_prefix.bytes().all(is_name),
            "--node-prefix {:?} cannot begin a node's name",
            self.node_prefix
        );
        Ok(())
    }

    pub(crate) fn name(&self, index: usize) -> String {
        format!("{}-{index:05}", self.node_prefix)
    }

    /// The number of the node called `name`, if it is one of `count`.
    fn index(&self, name: &str, count: usize) -> Option<usize> {
        let digits = name.strip_prefix(self.node_prefix.as_str())?.strip_prefix('-')?;
        let index = digits.parse().ok().filter(|index| *index < count)?;
        (self.name(index) == name).then_some(index)
    }

    fn object(&self, index: usize, now: &str) -> Value {
        let name = self.name(index);
        let zone = format!("zone-{}", index % self.zones);
        let resources = json!({"cpu": self.node_cpu, "memory": self.node_memory, "pods": self.node_pods.to_string()});
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": zone,
                "type": "rkube-bench",
            }},
            "status": status::node(index, &resources, now),
        })
    }
}

/// What the nodes do with pods.
#[derive(Args, Clone, Debug)]
pub(crate) struct Behaviour {
    /// What becomes of pods: SELECTOR=>Running|Succeeded|Failed[@SECONDS]; may be repeated, the first that matches counts.
    /// A pod's annotation `bench.rkube.dev/outcome: Failed@5` comes before every rule
    #[arg(long = "rule", value_name = "RULE")]
    pub(crate) rules: Vec<Rule>,
    /// Seconds until pods succeed that no rule matches and that do not restart always
    #[arg(long, default_value_t = 1, value_name = "SECONDS")]
    pub(crate) complete_after: u64,
    /// Seconds from the request to delete a pod until it is gone, at most its grace period
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub(crate) stop_after: u64,
    /// Reports in flight
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub(crate) reporters: usize,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { rules: Vec::new(), complete_after: 1, stop_after: 0, reporters: 32 }
    }
}

/// Running nodes.
pub(crate) struct FakeNodes {
    cluster: Cluster,
    shape: Shape,
    count: usize,
    /// Cancelled when every node has a lease.
    leased: CancellationToken,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl FakeNodes {
    /// Registers `count` nodes, takes over those that exist, and keeps them alive. Pods are looked after if `behaviour` says
    /// how. `reports` counts what is said of pods.
    pub(crate) async fn start(
        cluster: &Cluster,
        shape: &Shape,
        count: usize,
        behaviour: Option<&Behaviour>,
        reports: Ticker,
    ) -> Result<Self> {
        let shutdown = CancellationToken::new();
        let mut nodes = Self {
            cluster: cluster.clone(),
            shape: shape.clone(),
            count,
            leased: CancellationToken::new(),
            shutdown: shutdown.clone(),
            tasks: JoinSet::new(),
        };
        nodes.each(|index| nodes.register(index)).await.context("registering nodes")?;
        let heartbeats = heartbeat::run(cluster.clone(), shape.clone(), count, nodes.leased.clone(), shutdown.clone());
        nodes.tasks.spawn_named(heartbeats);
        if let Some(behaviour) = behaviour {
            let rules = Rules::new(behaviour.rules.clone(), Duration::from_secs(behaviour.complete_after));
            let stop_after = Duration::from_secs(behaviour.stop_after);
            let agent = pods::Agent::new(cluster.clone(), shape.clone(), count, rules, stop_after, reports);
            nodes.tasks.spawn_named(Arc::new(agent).run(behaviour.reporters, shutdown));
        }
        Ok(nodes)
    }

    /// Waits until the server's controllers have done what new nodes make them do, so that a measurement does not hold it.
    pub(crate) async fn settled(&self) -> Result<()> {
        settle::wait(&self.cluster, &self.leased).await
    }

    async fn register(&self, index: usize) -> Result<(), ClientError> {
        let now = format!("{:.0}", self.cluster.clock.now());
        let node = self.shape.object(index, &now);
        let connection = self.cluster.connection(index);
        match connection.send(Method::POST, "/api/v1/nodes", node.to_string()).await {
            Err(error) if error.is_already_exists() => {
                let path = format!("/api/v1/nodes/{}/status", self.shape.name(index));
                let status = json!({"status": node["status"]}).to_string();
                connection.patch(&path, status::STRATEGIC, status).await
            }
            result => result.map(drop),
        }
    }

    /// Stops the nodes and removes them.
    pub(crate) async fn stop(mut self, keep: bool) -> Result<()> {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
        if keep {
            return Ok(());
        }
        let remove = async |index: usize| {
            let (connection, name) = (self.cluster.connection(index), self.shape.name(index));
            let removed = connection.send(Method::DELETE, &format!("/api/v1/nodes/{name}"), "").await;
            match removed {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
            let lease = heartbeat::path(&name);
            match connection.send(Method::DELETE, &lease, "").await {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(()),
            }
        };
        self.each(remove).await.context("removing nodes")
    }

    /// Does `step` for every node, many at once; fails with the first failure.
    async fn each<F: Future<Output = Result<(), ClientError>>>(&self, step: impl Fn(usize) -> F) -> Result<()> {
        let mut steps = futures_util::stream::iter((0..self.count).map(step)).buffer_unordered(PREPARE_CONCURRENCY);
        while let Some(result) = steps.next().await {
            result?;
        }
        Ok(())
    }

    /// Waits until a task ends, which none does by itself.
    pub(crate) async fn failed(&mut self) -> Result<()> {
        match self.tasks.join_next().await {
            Some(Err(error)) => Err(error).context("a node's task ended"),
            Some(Ok(())) => bail!("a node's task ended"),
            None => std::future::pending().await,
        }
    }
}

trait SpawnNamed {
    fn spawn_named(&mut self, future: impl Future<Output = ()> + Send + 'static);
}

impl SpawnNamed for JoinSet<()> {
    fn spawn_named(&mut self, future: impl Future<Output = ()> + Send + 'static) {
        let task = task::spawn(debug_span!("fake-nodes"), future);
        // The set ends its tasks when it is dropped; this one ends by the shutdown token.
        self.spawn(async move {
            // A panic was printed where it happened.
            let _ = task.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        shape: Shape,
    }

    fn shape(arguments: &[&str]) -> Shape {
        Line::parse_from(std::iter::once(&"x").chain(arguments)).shape
    }

    #[test]
    fn only_our_own_nodes_are_recognized() {
        let shape = shape(&[]);
        assert_eq!(shape.index("fake-00007", 10), Some(7));
        for foreign in ["fake-00010", "fake-7", "fake-x", "node-00001", "fake-+0001", ""] {
            assert_eq!(shape.index(foreign, 10), None, "{foreign}");
        }
    }

    #[test]
    fn impossible_nodes_are_refused() {
        let message = |arguments: &[&str], count| shape(arguments).check(count).unwrap_err().to_string();
        shape(&[]).check(1).unwrap();
        assert_eq!(message(&[], 0), "0 nodes are not in 1..=100000");
        assert_eq!(message(&["--zones", "0"], 1), "--zones 0 leaves no zone for a node");
        assert_eq!(message(&["--lease-interval", "60"], 1), "--lease-interval 60 is not in 1..=40 seconds");
        assert_eq!(message(&["--node-prefix", "A_"], 1), "--node-prefix \"A_\" cannot begin a node's name");
    }
}
