//! Pods with names and volumes that stay.

use anyhow::{Result, ensure};
use rkube_api::k8s::core::v1::{PersistentVolumeClaim, Pod};

use super::storage::{Volume, forget_volume};
use crate::api::condition;
use crate::manifest::{PodManifest, service};
use crate::world::World;

const REDIS: &str = r#"
containers:
- name: redis
  image: redis:7
  args: [redis-server, --bind, 0.0.0.0, --protected-mode, "no", --dir, /data, --appendonly, "yes"]
  ports: [{containerPort: 6379}]
  readinessProbe: {exec: {command: [redis-cli, ping]}, periodSeconds: 1}
  volumeMounts: [{name: data, mountPath: /data}]
"#;

const STATEFUL: &str = r#"
serviceName: redis
replicas: 2
volumeClaimTemplates:
- metadata: {name: data}
  spec:
    storageClassName: CLASS
    accessModes: [ReadWriteOnce]
    resources: {requests: {storage: 100Mi}}
"#;

/// redis-0 starts before redis-1, each has a claim of its own and is reached by its name, and one that was deleted,
/// or scaled away and back, has its name and its data again.
pub(super) async fn redis(world: &World<'_>) -> Result<()> {
    // One on the first node and one on the last, so that data and pod meet across nodes.
    let volumes = [(1, "first"), (world.cluster.spec.nodes, "last")].map(|(node, name)| Volume { node, name });
    for volume in &volumes {
        world.apply(&volume.manifest(world)).await?;
    }
    let set = STATEFUL.replace("CLASS", &world.namespace);
    let manifests = [
        service("redis", "redis", "clusterIP: None\nports: [{port: 6379}]"),
        PodManifest::new("redis", REDIS).grace_seconds(5).stateful_set(&set),
    ];
    world.apply(&manifests.concat()).await?;
    let pods = world.pods("app=redis", 2).await?;
    ensure!(pods == ["redis-0", "redis-1"], "the pods are {pods:?}");
    let (first, second) = (world.get::<Pod>("redis-0").await?, world.get::<Pod>("redis-1").await?);
    let created =
        |pod: &serde_json::Value| pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    ensure!(created(&first) <= created(&second), "redis-0 is the first");
    let shown = world.kubectl("get pvc --no-headers").await?;
    for claim in ["data-redis-0", "data-redis-1"] {
        let is_bound = |line: &str| line.starts_with(claim) && line.contains("Bound");
        ensure!(shown.lines().any(is_bound), "{claim} is not bound: {shown}");
    }
    let said = world.kubectl("exec redis-1 -- hostname").await?;
    ensure!(said.trim() == "redis-1", "its host name is {said}");

    reachable(world).await?;
    world.kubectl("exec redis-0 -- redis-cli -h redis-1.redis set colour blue").await?;
    world.kubectl("exec redis-1 -- redis-cli -h redis-0.redis set colour red").await?;
    holds(world, "redis-1", "blue").await?;

    world.kubectl("delete pod redis-0").await?;
    world
        .wait_one::<Pod, _>("redis-0", "back under its name", |pod| {
            let is_new = pod["metadata"]["uid"] != first["metadata"]["uid"];
            let is_ready = condition(pod, "Ready") == "True";
            if is_new && is_ready { Ok(()) } else { Err(format!("new {is_new}, Ready {is_ready}")) }
        })
        .await?;
    holds(world, "redis-0", "red").await?;
    reachable(world).await?;

    world.kubectl("scale statefulset redis --replicas=1").await?;
    let pods = world.pods("app=redis", 1).await?;
    ensure!(pods == ["redis-0"], "the last one goes first, {pods:?} stayed");
    world.kubectl("scale statefulset redis --replicas=2").await?;
    world.pods("app=redis", 2).await?;
    holds(world, "redis-1", "blue").await?;

    // Claims outlive the StatefulSet: nobody loses data by mistake.
    world.kubectl("delete statefulset redis").await?;
    world.pods("app=redis", 0).await?;
    world
        .wait::<PersistentVolumeClaim, _>("both claims still bound", "", |claims| {
            let phases: Vec<String> = claims.values().map(|claim| claim["status"]["phase"].to_string()).collect();
            if phases == [r#""Bound""#, r#""Bound""#] { Ok(()) } else { Err(phases.join(" ")) }
        })
        .await?;
    world.kubectl("delete pvc data-redis-0 data-redis-1").await?;
    for volume in &volumes {
        forget_volume(world, volume.name).await?;
    }
    Ok(())
}

async fn holds(world: &World<'_>, pod: &str, colour: &str) -> Result<()> {
    let value = world.kubectl(&format!("exec {pod} -- redis-cli get colour")).await?;
    ensure!(value.trim() == colour, "{pod} holds {value}");
    Ok(())
}

async fn reachable(world: &World<'_>) -> Result<()> {
    for (from, to) in [("redis-0", "redis-1"), ("redis-1", "redis-0")] {
        let ask = ["timeout", "5", "redis-cli", "-h", &format!("{to}.redis"), "ping"];
        world.asks_until(from, &format!("an answer of {to}.redis"), &ask, |said| said.contains("PONG")).await?;
    }
    Ok(())
}
