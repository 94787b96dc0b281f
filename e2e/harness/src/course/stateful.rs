//! Pods with names that stay.

use anyhow::{Result, ensure};
use rkube_api::k8s::core::v1::Pod;

use crate::world::{World, ready_pods};

const REDIS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: redis}
spec:
  clusterIP: None
  selector: {app: redis}
  ports: [{port: 6379}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: redis}
spec:
  serviceName: redis
  replicas: 2
  selector: {matchLabels: {app: redis}}
  template:
    metadata: {labels: {app: redis}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: redis
        image: redis:7
        ports: [{containerPort: 6379}]
        readinessProbe: {exec: {command: [redis-cli, ping]}, periodSeconds: 1}
"#;

/// redis-0 starts before redis-1, each is reached by its name, and a deleted one comes back under it.
pub(super) async fn redis(world: &World<'_>) -> Result<()> {
    world.apply(REDIS).await?;
    let pods = world.wait::<Pod, _>("two pods Ready", "app=redis", ready_pods(2)).await?;
    ensure!(pods == ["redis-0", "redis-1"], "the pods are {pods:?}");
    let (first, second) = (world.get::<Pod>("redis-0").await?, world.get::<Pod>("redis-1").await?);
    let created =
        |pod: &serde_json::Value| pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    ensure!(created(&first) <= created(&second), "redis-0 is the first");

    reachable(world).await?;
    world.kubectl("exec redis-0 -- redis-cli -h redis-1.redis set colour blue").await?;
    let value = world.kubectl("exec redis-1 -- redis-cli get colour").await?;
    ensure!(value.trim() == "blue", "redis-1 holds {value}");

    world.kubectl("delete pod redis-0").await?;
    world
        .wait_one::<Pod, _>("redis-0", "back under its name", |pod| {
            let is_new = pod["metadata"]["uid"] != first["metadata"]["uid"];
            let is_ready = crate::api::condition(pod, "Ready") == "True";
            if is_new && is_ready { Ok(()) } else { Err(format!("new {is_new}, Ready {is_ready}")) }
        })
        .await?;
    reachable(world).await?;

    world.kubectl("scale statefulset redis --replicas=1").await?;
    let pods = world.wait::<Pod, _>("one pod Ready", "app=redis", ready_pods(1)).await?;
    ensure!(pods == ["redis-0"], "the last one goes first, {pods:?} stayed");
    Ok(())
}

/// Names of pods reach the DNS of every node, which no event announces.
async fn reachable(world: &World<'_>) -> Result<()> {
    for (from, to) in [("redis-0", "redis-1"), ("redis-1", "redis-0")] {
        let ask = format!("until redis-cli -h {to}.redis ping | grep -q PONG; do sleep 0.2; done");
        world.kubectl_args(&["exec", from, "--", "timeout", "60", "sh", "-c", &ask]).await?;
    }
    Ok(())
}
