//! What a node does on its own: it starts without its server, and it and its runtime are killed at any moment.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rkube_api::k8s::core::v1::Pod;
use serde_json::Value;

use crate::api::{self, condition};
use crate::cluster::Cluster;
use crate::node::Node;
use crate::scenarios::containers;
use crate::world::{LIMIT, World, count};

/// A pod for node2 that needs what the server has: configuration as files and as variables, a Service, a token.
const LOCAL: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: local}
data: {word: kept}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: local}
spec:
  selector: {matchLabels: {app: local}}
  template:
    metadata: {labels: {app: local}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node2}
      terminationGracePeriodSeconds: 1
      containers:
      - name: local
        image: busybox:1.35
        command: [sh, -c, 'echo "$WORD $KUBERNETES_SERVICE_PORT $(cat /config/word)" > /tmp/said; exec sleep 36000']
        env: [{name: WORD, valueFrom: {configMapKeyRef: {name: local, key: word}}}]
        volumeMounts: [{name: config, mountPath: /config}]
      volumes: [{name: config, configMap: {name: local}}]
"#;
const SAID: &str = "kept 443 kept";

/// Containers of a name that run on a node, as its runtime says.
async fn running(node: &Node, container: &str) -> Result<BTreeSet<String>> {
    let filter = format!("labels.\"io.kubernetes.container.name\"=={container}");
    let known = node.run(&["ctr", "-n", "k8s.io", "containers", "ls", "-q", &filter]).await?;
    let known: BTreeSet<&str> = known.lines().collect();
    let tasks = node.run(&["ctr", "-n", "k8s.io", "tasks", "ls"]).await?;
    let running = tasks.lines().filter(|line| line.ends_with("RUNNING")).filter_map(|line| line.split(' ').next());
    Ok(running.filter(|id| known.contains(id)).map(str::to_owned).collect())
}

/// Waits until exactly one container of the name runs on the node.
async fn one_runs(node: &Node, container: &str) -> Result<String> {
    api::retry(LIMIT, &format!("a container {container} that runs on {}", node.name()), async || {
        let found = running(node, container).await.map_err(|error| format!("{error:#}"))?;
        match found.len() {
            1 => Ok(found.into_iter().next().unwrap_or_default()),
            other => Err(format!("{other} containers run")),
        }
    })
    .await
}

/// A worker loses its power and comes back while its server is away: its pods run again from what it knows. When the
/// server is back, it finds them, and nothing is started twice.
pub(crate) async fn reboot(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let world = crate::scenarios::start(cluster).await?;
    world.apply(LOCAL).await?;
    world.pods("app=local", 1).await?;
    let before = containers(&world).await?;
    let (server, node) = (cluster.node(1), cluster.node(2));

    server.stop().await?;
    node.power_off().await?;
    cluster.start_node(&node).await?;
    let web = one_runs(&node, "web").await?;
    let local = one_runs(&node, "local").await?;
    api::retry(LIMIT, "what the pod was told", async || {
        let exec = ["ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", "look", &local, "cat", "/tmp/said"];
        match node.run(&exec).await {
            Ok(said) if said.trim() == SAID => Ok(()),
            Ok(said) => Err(said),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await?;

    cluster.start_node(&server).await?;
    cluster.nodes_ready(cluster.spec.nodes).await?;
    let told = world
        .wait::<Pod, _>("the pods of node2 as they run", "app in (web, local)", |pods| {
            let of_node = || pods.values().filter(|pod| pod["spec"]["nodeName"] == "node2");
            let all = count(pods, |pod| condition(pod, "Ready") == "True");
            let mut told = String::new();
            for pod in of_node() {
                let status = &pod["status"]["containerStatuses"][0];
                let id = status["containerID"].as_str().unwrap_or_default();
                let id = id.strip_prefix("containerd://").unwrap_or(id);
                let _ =
                    write!(told, "{}={id}/{} ", status["name"].as_str().unwrap_or_default(), status["restartCount"]);
            }
            let expected = [format!("web={web}/1 "), format!("local={local}/1 ")];
            if (all, pods.len()) == (3, 3) && expected.iter().all(|one| told.contains(one)) {
                return Ok(told);
            }
            Err(format!("{} pods, {all} Ready, on node2 {told}", pods.len()))
        })
        .await?;
    let after = containers(&world).await?;
    ensure!(before.keys().eq(after.keys()), "pods changed from {before:?} to {after:?}");
    for (name, id) in [("web", &web), ("local", &local)] {
        let running = running(&node, name).await?;
        ensure!(running.iter().eq([id]), "{running:?} run where {told} was told");
    }
    // The token that the pod started without has come.
    let pod = world.pods("app=local", 1).await?.pop().context("the pod")?;
    let token = ["test", "-s", "/var/run/secrets/kubernetes.io/serviceaccount/token"];
    world.asks_until(&pod, "a token", &token, |_| true).await
}

/// Pods that hold some of everything.
const CROWD: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: crowd}
data: {word: kept}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: crowd}
spec:
  replicas: 6
  selector: {matchLabels: {app: crowd}}
  template:
    metadata: {labels: {app: crowd}}
    spec:
      terminationGracePeriodSeconds: 1
      initContainers:
      - {name: first, image: "busybox:1.35", command: ["true"]}
      containers:
      - name: crowd
        image: busybox:1.35
        command: [sleep, "36000"]
        resources: {limits: {cpu: 20m, memory: 32Mi}}
        volumeMounts:
        - {name: config, mountPath: /config/word, subPath: word}
        - {name: memory, mountPath: /memory}
      volumes:
      - {name: config, configMap: {name: crowd}}
      - {name: memory, emptyDir: {medium: Memory}}
"#;
const CROWD_SIZE: usize = 6;

/// Everything that pods leave on a node, one line each.
async fn inventory(node: &Node) -> Result<BTreeSet<String>> {
    const SCRIPT: &str = r#"
ctr -n k8s.io containers ls -q | sed 's/^/container /'
ctr -n k8s.io tasks ls -q | sed 's/^/task /'
ls /run/netns | sed 's/^/netns /'
ip -o link | awk -F': ' '{sub(/@.*/, "", $2); print "link " $2}'
awk '{print "mount " $2}' /proc/self/mounts | grep -E 'kubelet|containerd|netns'
find "$DISK/kubelet/pods" "$DISK/kubelet/pod-resources" "$DISK/kubelet/pod-checkpoints" "$DISK/pods" -maxdepth 1 | sed 's/^/file /'
find /sys/fs/cgroup -type d -path "*$GROUP*" -path '*kubepods*' | sed 's/^/cgroup /'
"#;
    let disk = node.data_dir().with_file_name("disk").display().to_string();
    let group = format!("{}/{}", node.spec.prefix(), node.name());
    let script = format!("DISK='{disk}'; GROUP='{group}'\n{SCRIPT}");
    let text = node.run(&["sh", "-c", &script]).await?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// When rkube or the runtime is killed: how many of the pods were seen in the state.
async fn seen(world: &World<'_>, wanted: usize, is: fn(&Value) -> bool) -> Result<()> {
    world
        .wait::<Pod, _>("pods on their way", "app=crowd", |pods| {
            let found = count(pods, is);
            if found >= wanted { Ok(()) } else { Err(format!("{found} of {wanted}")) }
        })
        .await
}

/// Pods come and go while rkube or the runtime is killed in the middle. Nothing restarts, and what they leave is nothing.
pub(crate) async fn crash(cluster: &mut Cluster) -> Result<()> {
    let cluster = &*cluster;
    let world = crate::scenarios::start(cluster).await?;
    let node = cluster.node(1);
    let before = containers(&world).await?;
    // Once, so that what stays for all pods is there.
    world.apply(CROWD).await?;
    world.pods("app=crowd", CROWD_SIZE).await?;
    world.kubectl("delete deployment crowd").await?;
    world.pods("app=crowd", 0).await?;
    let empty = settled(&node, None).await?;

    let started = |pod: &Value| pod["status"]["phase"] == "Running";
    let leaving = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
    for (round, wanted) in [1, 3, CROWD_SIZE].into_iter().enumerate() {
        let kill = async |what: &str| match round {
            // The runtime too, in one of the rounds.
            1 => {
                node.containerd().stop(Signal::SIGKILL, LIMIT).await?;
                node.kill().await?;
                cluster.start_node(&node).await.with_context(|| format!("{what}, round {round}"))
            }
            _ => {
                node.kill().await?;
                cluster.start_node(&node).await.with_context(|| format!("{what}, round {round}"))
            }
        };
        world.apply(CROWD).await?;
        seen(&world, wanted, started).await?;
        let ran = running(&node, "crowd").await?;
        kill("while pods start").await?;
        world.pods("app=crowd", CROWD_SIZE).await?;
        let runs = running(&node, "crowd").await?;
        ensure!(ran.is_subset(&runs) && runs.len() == CROWD_SIZE, "round {round}: {ran:?} became {runs:?}");
        world.kubectl("delete deployment crowd --wait=false").await?;
        seen(&world, wanted, leaving).await?;
        kill("while pods end").await?;
        world.pods("app=crowd", 0).await?;
        settled(&node, Some(&empty)).await?;
    }
    let after = containers(&world).await?;
    ensure!(after == before, "containers changed from {before:?} to {after:?}");
    Ok(())
}

/// The inventory once nothing of a pod that was deleted is in it: garbage is collected after its pods are gone. What it
/// is compared with is the first one.
async fn settled(node: &Node, expected: Option<&BTreeSet<String>>) -> Result<BTreeSet<String>> {
    api::retry(LIMIT, "nothing of the pods that are gone", async || {
        let found = inventory(node).await.map_err(|error| format!("{error:#}"))?;
        let Some(expected) = expected else {
            // One pod is left: its sandbox and its container.
            let tasks = found.iter().filter(|line| line.starts_with("task ")).count();
            let rest = found.iter().filter(|line| line.starts_with("container ")).count();
            let folders =
                found.iter().filter(|line| line.starts_with("file ") && line.contains("/kubelet/pods/")).count();
            let ends = (tasks, rest, folders) == (2, 2, 1);
            return if ends { Ok(found) } else { Err(format!("{tasks} tasks, {rest} containers, {folders} folders")) };
        };
        let more: Vec<_> = found.difference(expected).collect();
        let less: Vec<_> = expected.difference(&found).collect();
        if more.is_empty() && less.is_empty() { Ok(found) } else { Err(format!("left {more:?}, lost {less:?}")) }
    })
    .await
}
