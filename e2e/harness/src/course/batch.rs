//! Work that ends, work on time, work on every node.

use anyhow::{Result, ensure};
use rkube_api::k8s::apps::v1::DaemonSet;
use rkube_api::k8s::batch::v1::{CronJob, Job};
use rkube_api::k8s::core::v1::Pod;

use crate::api::condition;
use crate::manifest::PodManifest;
use crate::world::World;

/// A Job with three completions, two at a time, and one whose pod fails until its limit.
pub(super) async fn jobs(world: &World<'_>) -> Result<()> {
    world
        .apply(
            r#"
apiVersion: batch/v1
kind: Job
metadata: {name: count}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: count, image: "busybox:1.35", command: [sh, -c, "echo one two three"]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: broken}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: broken, image: "busybox:1.35", command: [sh, -c, "exit 3"]}
"#,
        )
        .await?;
    finished(world, "count", "Complete").await?;
    finished(world, "broken", "Failed").await?;
    let shown = world.kubectl("get job count --no-headers").await?;
    ensure!(shown.contains("3/3"), "kubectl get job showed {shown}");
    let logs = world.kubectl("logs -l job-name=count").await?;
    ensure!(logs.lines().filter(|line| *line == "one two three").count() == 3, "the logs are {logs:?}");
    let described = world.kubectl("describe job broken").await?;
    ensure!(described.contains("BackoffLimitExceeded"), "describe job: {described}");
    world.kubectl("delete job count").await?;
    world.pods("job-name=count", 0).await.map(drop)
}

async fn finished(world: &World<'_>, job: &str, how: &str) -> Result<()> {
    world
        .wait_one::<Job, _>(job, how, |job| match condition(job, how) {
            "True" => Ok(()),
            _ => Err(job["status"].to_string()),
        })
        .await
}

/// A CronJob that is due every minute but suspended, a Job made from it by hand, and one that comes on time.
pub(super) async fn cron(world: &World<'_>) -> Result<()> {
    world
        .kubectl_args(&["create", "cronjob", "tick", "--image=busybox:1.35", "--schedule=* * * * *", "--", "date"])
        .await?;
    world.kubectl("create job by-hand --from=cronjob/tick").await?;
    finished(world, "by-hand", "Complete").await?;
    let name = world
        .wait_one::<CronJob, _>("tick", "run on time", |cron| match cron["status"]["lastScheduleTime"].as_str() {
            Some(time) => Ok(time.to_owned()),
            None => Err(cron["status"].to_string()),
        })
        .await?;
    ensure!(name.ends_with(":00Z"), "it was due at {name}");
    world
        .wait::<Job, _>("the Job on time complete", "", |jobs| {
            let of_cron = |job: &&serde_json::Value| job["metadata"]["ownerReferences"][0]["name"] == "tick";
            match jobs.values().filter(of_cron).any(|job| condition(job, "Complete") == "True") {
                true => Ok(()),
                false => Err(format!("{} jobs", jobs.len())),
            }
        })
        .await?;
    world.kubectl_args(&["patch", "cronjob", "tick", "-p", r#"{"spec":{"suspend":true}}"#]).await?;
    let shown = world.kubectl("get cronjob tick --no-headers").await?;
    ensure!(shown.contains("True"), "kubectl get cronjob showed {shown}");
    Ok(())
}

fn agent() -> String {
    PodManifest::sleeping("agent").daemon_set()
}

/// One pod on every node, then only where a label is.
pub(super) async fn daemons(world: &World<'_>) -> Result<()> {
    let nodes = world.cluster.spec.nodes;
    let last = world.cluster.spec.node_name(nodes);
    world.kubectl(&format!("label node {last} lab={}", world.namespace)).await?;
    world.apply(&agent()).await?;
    world.pods("app=agent", nodes).await?;
    settled(world, nodes).await?;
    // Only where the label is.
    world
        .kubectl_args(&[
            "patch",
            "daemonset",
            "agent",
            "-p",
            &format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"lab":"{}"}}}}}}}}}}"#, world.namespace),
        ])
        .await?;
    world.pods("app=agent", 1).await?;
    settled(world, 1).await?;
    world.kubectl(&format!("label node {last} lab-")).await?;
    world.pods("app=agent", 0).await.map(drop)
}

/// A DaemonSet leaves a tainted node out until its pods tolerate the taint; a pod that may run there only stays
/// Pending and says why; `NoExecute` takes away what runs, at once or when the tolerated time is over.
pub(super) async fn taints(world: &World<'_>) -> Result<()> {
    let nodes = world.cluster.spec.nodes;
    let last = world.cluster.spec.node_name(nodes);
    let outcome = on_tainted_node(world, nodes, &last).await;
    // The steps after this one need the node, whatever happened.
    let freed = world.kubectl(&format!("taint node {last} lab-")).await;
    outcome?;
    freed.map(drop)
}

async fn on_tainted_node(world: &World<'_>, nodes: usize, last: &str) -> Result<()> {
    world.kubectl(&format!("taint node {last} lab=closed:NoSchedule")).await?;
    world.apply(&agent()).await?;
    settled(world, nodes - 1).await?;
    world.pods("app=agent", nodes - 1).await?;
    world.apply(&visitor(last, "visitor", "[]")).await?;
    world
        .wait_one::<Pod, _>("visitor", "not scheduled", |pod| {
            let conditions = pod["status"]["conditions"].to_string();
            if conditions.contains("untolerated taint") { Ok(()) } else { Err(conditions) }
        })
        .await?;
    let shown = world.kubectl("get pod visitor --no-headers").await?;
    ensure!(shown.contains("Pending"), "kubectl get pod showed {shown}");

    tolerate(world, r#"{"key": "lab", "operator": "Exists", "effect": "NoSchedule"}"#).await?;
    world.pods("app=agent", nodes).await?;
    settled(world, nodes).await?;
    world.kubectl(&format!("taint node {last} lab-")).await?;
    world.pod("visitor").await?;

    // The daemon tolerates the other effect only, the first visitor nothing and the second one a while.
    world
        .apply(&visitor(last, "guest", "[{key: lab, operator: Exists, effect: NoExecute, tolerationSeconds: 5}]"))
        .await?;
    world.pod("guest").await?;
    world.kubectl(&format!("taint node {last} lab=now:NoExecute")).await?;
    settled(world, nodes - 1).await?;
    world.pods("app=agent", nodes - 1).await?;
    for pod in ["visitor", "guest"] {
        world.kubectl(&format!("wait --for=delete pod/{pod} --timeout=240s")).await?;
    }
    let events = world.kubectl("get events").await?;
    ensure!(events.contains("TaintManagerEviction"), "no event says so: {events}");
    tolerate(world, r#"{"key": "lab", "operator": "Exists"}"#).await?;
    world.pods("app=agent", nodes).await?;
    settled(world, nodes).await
}

/// A pod for one node.
fn visitor(node: &str, name: &str, tolerations: &str) -> String {
    let more = format!("nodeSelector: {{kubernetes.io/hostname: {node}}}\ntolerations: {tolerations}");
    PodManifest::sleeping(name).with(&more).alone()
}

async fn tolerate(world: &World<'_>, toleration: &str) -> Result<()> {
    let patch = format!(r#"{{"spec": {{"template": {{"spec": {{"tolerations": [{toleration}]}}}}}}}}"#);
    world.kubectl_args(&["patch", "daemonset", "agent", "-p", &patch]).await.map(drop)
}

async fn settled(world: &World<'_>, wanted: usize) -> Result<()> {
    world
        .wait_one::<DaemonSet, _>("agent", "settled", |set| {
            let status = &set["status"];
            let is_settled = status["observedGeneration"] == set["metadata"]["generation"]
                && status["desiredNumberScheduled"] == wanted
                && status["numberReady"] == wanted;
            if is_settled { Ok(()) } else { Err(status.to_string()) }
        })
        .await
}
