//! What happens to machines and processes: lost and back, killed under load, led by another, joined and left,
//! upgraded. Each has a cluster of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::LocalBoxFuture;
use rkube_api::k8s::coordination::v1::Lease;
use rkube_api::k8s::core::v1::{ConfigMap, Node, Pod};
use rkube_client::{DeleteOptions, ListParams};
use serde_json::{Value, json};

use crate::api::{self, condition};
use crate::bench;
use crate::cluster::{self, Cluster};
use crate::fabric;
use crate::machines;
use crate::manifest::{PodManifest, service};
use crate::network;
use crate::runner::Shape;
use crate::spec::Datastore;
use crate::world::{LIMIT, World, count};

/// A node says that it lives every 10 s; by default 50 s of silence would be waited for.
const IMPATIENT: &[&str] = &[
    "--kube-controller-manager-arg=node-monitor-grace-period=20s",
    "--kube-controller-manager-arg=node-monitor-period=1s",
];
const NOT_READY_LIMIT: Duration = Duration::from_secs(60);
const KILLS: usize = 5;
/// Writes between two kills.
const WRITES: usize = 60;

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) shape: Shape,
    pub(crate) server_arguments: &'static [&'static str],
    pub(crate) run: for<'a> fn(&'a mut Cluster) -> LocalBoxFuture<'a, Result<()>>,
}

const fn embedded(nodes: usize) -> Shape {
    Shape { nodes, servers: 1, datastore: Datastore::Embedded }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "kill",
        about: "the server killed under load: no acknowledged write is lost, no container restarts",
        shape: embedded(2),
        server_arguments: &[],
        run: |cluster| Box::pin(kill(cluster)),
    },
    Scenario {
        name: "loss",
        about: "a node cut off and back, without power and back; what may not wait moves",
        shape: embedded(2),
        server_arguments: IMPATIENT,
        run: |cluster| Box::pin(loss(cluster)),
    },
    Scenario {
        name: "crash",
        about: "rkube and the runtime killed while pods start and end: nothing restarts, nothing is left",
        shape: embedded(1),
        server_arguments: &[],
        run: |cluster| Box::pin(machines::crash(cluster)),
    },
    Scenario {
        name: "reboot",
        about: "a node starts without its server and runs its pods; the server finds them",
        shape: embedded(2),
        server_arguments: &[],
        run: |cluster| Box::pin(machines::reboot(cluster)),
    },
    Scenario {
        name: "join",
        about: "a node joins, leaves and comes back under its name",
        shape: embedded(1),
        server_arguments: &[],
        run: |cluster| Box::pin(join(cluster)),
    },
    Scenario {
        name: "upgrade",
        about: "the program replaced under running pods",
        shape: embedded(2),
        server_arguments: &[],
        run: |cluster| Box::pin(upgrade(cluster)),
    },
    Scenario {
        name: "network",
        about: "packets on three nodes: pods, Services, policies, names, killed agents, another CNI plugin",
        shape: embedded(3),
        server_arguments: &[],
        run: |cluster| Box::pin(network::packets(cluster)),
    },
    Scenario {
        name: "bench",
        about: "every workload of rkube-bench, small",
        shape: embedded(1),
        server_arguments: &[],
        run: |cluster| Box::pin(bench::workloads(cluster)),
    },
    Scenario {
        name: "leader",
        about: "two servers on etcd; the one that leads is killed",
        shape: Shape { nodes: 3, servers: 2, datastore: Datastore::Etcd },
        server_arguments: &[],
        run: |cluster| Box::pin(leader(cluster)),
    },
];

/// A pod on every node that says when it was started.
const WEB: &str = r#"
containers:
- name: web
  image: busybox:1.35
  command: [sh, -c, "hostname > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
  readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
"#;

pub(crate) async fn start(cluster: &Cluster) -> Result<World<'_>> {
    let world = World::new(cluster, "default")?;
    let reached = service("web", "web", "type: NodePort\nports: [{port: 80, targetPort: 8080}]");
    world.apply(&(PodManifest::new("web", WEB).daemon_set() + &reached)).await?;
    world.pods("app=web", cluster.spec.nodes).await?;
    Ok(world)
}

/// Which container each pod runs, and how often it was restarted.
pub(crate) async fn containers(world: &World<'_>) -> Result<BTreeMap<String, (String, u64)>> {
    world
        .wait::<Pod, _>("the pods Ready", "app=web", |pods| {
            let of = |pod: &Value| {
                let status = &pod["status"]["containerStatuses"][0];
                let id = status["containerID"].as_str().unwrap_or_default().to_owned();
                let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                (name, (id, status["restartCount"].as_u64().unwrap_or_default()))
            };
            if pods.values().all(|pod| condition(pod, "Ready") == "True") {
                return Ok(pods.values().map(of).collect());
            }
            Err(format!("{} pods", pods.len()))
        })
        .await
}

/// Waits for one node's Ready condition.
async fn node_is(cluster: &Cluster, name: &str, wanted: &str, limit: Duration) -> Result<()> {
    let api = cluster.client()?.all::<Node>();
    let params = ListParams::fields(format!("metadata.name={name}"));
    api::wait(api.dynamic(), &params, limit, &format!("node {name} Ready={wanted}"), |nodes| {
        let found = nodes.values().next().map(|node| condition(node, "Ready").to_owned()).unwrap_or_default();
        if found == wanted { Ok(()) } else { Err(format!("Ready={found}")) }
    })
    .await
}

async fn kill(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let world = start(cluster).await?;
    let before = containers(&world).await?;
    let server = cluster.node(1);
    let api = world.client.namespaced::<ConfigMap>("default");
    let mut acknowledged = Vec::new();
    for round in 0..KILLS {
        let writing = async {
            for number in 0.. {
                let name = format!("load-{round}-{number}");
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"round": round.to_string()}});
                match api.dynamic().create(&object).await {
                    Ok(_) => acknowledged.push(name),
                    Err(_) => break,
                }
            }
        };
        // The kill comes in the middle of a write: when enough were acknowledged, without waiting for the next.
        let killing = async {
            let params = ListParams::default();
            let what = "writes under way";
            api::wait(api.dynamic(), &params, LIMIT, what, |found| {
                let prefix = format!("default/load-{round}-");
                let written = found.keys().filter(|key| key.starts_with(&prefix)).count();
                if written >= WRITES { Ok(()) } else { Err(format!("{written} written")) }
            })
            .await?;
            server.kill().await
        };
        let (_, killed) = tokio::join!(writing, killing);
        killed?;
        cluster.start_node(&server).await?;
    }
    cluster.nodes_ready(cluster.spec.nodes).await?;
    let found = api.list(&ListParams::default()).await?;
    let names: std::collections::BTreeSet<_> = found.items.iter().filter_map(|one| one.metadata.name.clone()).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !names.contains(*name)).collect();
    ensure!(lost.is_empty(), "of {} acknowledged writes these are lost: {lost:?}", acknowledged.len());
    // The last write of a round may be stored and its answer killed.
    ensure!(acknowledged.len() >= KILLS * (WRITES - 1), "only {} writes", acknowledged.len());
    let after = containers(&world).await?;
    ensure!(after == before, "containers changed from {before:?} to {after:?}");
    Ok(())
}

/// A pod that begins on node2, and does not stay on a node that is silent.
const HASTY: &str = r#"
affinity:
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node2]}]}
tolerations:
- {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
- {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
"#;

async fn loss(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let world = start(cluster).await?;
    let before = containers(&world).await?;
    let url = format!("http://{}:{}/", cluster.spec.node_address(1), world.node_port("web").await?);
    world.apply(&PodManifest::sleeping("hasty").with(HASTY).deployment("")).await?;
    world.pods("app=hasty", 1).await?;

    fabric::set_link(&cluster.spec, 2, false).await?;
    node_is(cluster, "node2", "Unknown", NOT_READY_LIMIT).await?;
    world
        .wait::<Pod, _>("the hasty pod Ready elsewhere", "app=hasty", |pods| {
            let there = count(pods, |pod| pod["spec"]["nodeName"] == "node1" && condition(pod, "Ready") == "True");
            if there == 1 { Ok(()) } else { Err(format!("{} pods, {there} Ready on node1", pods.len())) }
        })
        .await?;
    world.page(&url, |page| page.contains("web-")).await?;
    fabric::set_link(&cluster.spec, 2, true).await?;
    node_is(cluster, "node2", "True", LIMIT).await?;
    // The node learns that its pod was given up, and ends it.
    world.pods("app=hasty", 1).await?;
    let after = containers(&world).await?;
    ensure!(after == before, "a network that was away restarts nothing: {before:?} became {after:?}");

    let node = cluster.node(2);
    node.power_off().await?;
    node_is(cluster, "node2", "Unknown", NOT_READY_LIMIT).await?;
    cluster.start_node(&node).await?;
    node_is(cluster, "node2", "True", LIMIT).await?;
    world
        .wait::<Pod, _>("the pods as before, the lost one restarted", "app=web", |pods| {
            let restarts: Vec<_> =
                pods.values().map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].clone()).collect();
            let names: Vec<_> = pods.values().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
            let ready = pods.values().all(|pod| condition(pod, "Ready") == "True");
            if ready && names.iter().all(|name| before.contains_key(*name)) && restarts.iter().any(|count| *count == 1)
            {
                return Ok(());
            }
            Err(format!("{names:?}, Ready {ready}, restarts {restarts:?}"))
        })
        .await
}

async fn join(cluster: &mut Cluster) -> Result<()> {
    start(cluster).await?;
    cluster.grow().await?;
    let world = World::new(cluster, "default")?;
    world.pods("app=web", 2).await?;
    let url = format!("http://{}:{}/", cluster.spec.node_address(2), world.node_port("web").await?);
    world.page(&url, |page| page.contains("web-")).await?;

    // It leaves: drained, stopped, deleted.
    let node = cluster.node(2);
    world.kubectl("drain node2 --ignore-daemonsets --delete-emptydir-data --timeout=60s").await?;
    node.power_off().await?;
    world.client.all::<Node>().delete("node2", &DeleteOptions::default()).await?;
    world.pods("app=web", 1).await?;

    // Its machine comes back under the same name.
    cluster.start_node(&node).await?;
    cluster.nodes_ready(2).await?;
    world.pods("app=web", 2).await.map(drop)
}

async fn upgrade(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let world = start(cluster).await?;
    let before = containers(&world).await?;
    let url = format!("http://{}:{}/", cluster.spec.node_address(2), world.node_port("web").await?);
    // Another file with the same program, in place, as a package manager does it.
    let next = cluster.spec.folder.join("nodes/next");
    std::fs::copy(cluster.spec.binary(), &next)?;
    cluster::install(&next, &cluster.spec.binary())?;
    for node in cluster.nodes() {
        node.stop().await?;
        // What runs goes on without rkube.
        world.page(&url, |page| page.contains("web-")).await?;
        cluster.start_node(&node).await?;
    }
    cluster.nodes_ready(cluster.spec.nodes).await?;
    let after = containers(&world).await?;
    ensure!(after == before, "containers changed from {before:?} to {after:?}");
    world.page(&url, |page| page.contains("web-")).await.map(drop)
}

async fn leader(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let world = start(cluster).await?;
    let holder = async |of: usize| {
        let leases = cluster.client_of(of)?.namespaced::<Lease>("kube-system");
        let lease = leases.get("kube-controller-manager").await?;
        let identity = lease.spec.and_then(|spec| spec.holder_identity).context("somebody leads")?;
        let node = cluster.nodes().take(2).find(|node| identity.starts_with(&node.name()));
        node.with_context(|| format!("{identity} is no server"))
    };
    let leading = holder(1).await?;
    let other = cluster.node(3 - leading.number);
    leading.kill().await?;
    // Through the server that is left, as a load balancer would.
    let survivor = World::through(cluster, other.number, "default")?;
    let leases = survivor.client.namespaced::<Lease>("kube-system");
    let params = ListParams::fields("metadata.name=kube-controller-manager");
    api::wait(leases.dynamic(), &params, LIMIT, "the other server leading", |found| {
        let identity = found.values().next().map(|lease| lease["spec"]["holderIdentity"].clone()).unwrap_or_default();
        match identity.as_str().is_some_and(|identity| identity.starts_with(&other.name())) {
            true => Ok(()),
            false => Err(identity.to_string()),
        }
    })
    .await?;
    let after = PodManifest::sleeping("after").with("nodeSelector: {kubernetes.io/hostname: node3}");
    survivor.apply(&after.deployment("replicas: 2")).await?;
    // Whether its node follows depends on which server it joined.
    let bound = survivor.wait::<Pod, _>("pods made and bound under the new leader", "app=after", |pods| {
        let bound = pods.values().filter(|pod| pod["spec"]["nodeName"] == "node3").count();
        if bound == 2 { Ok(()) } else { Err(format!("{bound} of {} pods bound", pods.len())) }
    });
    bound.await?;
    cluster.start_node(&leading).await?;
    cluster.nodes_ready(cluster.spec.nodes).await?;
    world.pods("app=after", 2).await?;
    if holder(other.number).await?.number == leading.number {
        bail!("the server that came back took the lead from one that had it");
    }
    Ok(())
}
