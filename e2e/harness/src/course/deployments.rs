//! Deployments: deploy, scale, roll out, roll back.

use anyhow::{Context, Result, ensure};
use rkube_api::k8s::apps::v1::Deployment;
use rkube_api::k8s::core::v1::Pod;
use rkube_api::k8s::discovery::v1::EndpointSlice;

use crate::api::condition;
use crate::manifest::PodManifest;
use crate::world::{World, count};

const PAGE: &str = r#"
---
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data:
  index.html: <h1>Hello, class</h1>
"#;

const NGINX: &str = r#"
containers:
- name: nginx
  image: nginx:1.22
  ports: [{containerPort: 80}]
  readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
  volumeMounts: [{name: page, mountPath: /usr/share/nginx/html}]
volumes:
- {name: page, configMap: {name: page}}
"#;

/// The page of a ConfigMap is what the Service's address serves, from a pod and through a node.
pub(super) async fn page(world: &World<'_>) -> Result<()> {
    world.apply(&(PAGE.to_owned() + &PodManifest::new("web", NGINX).deployment("replicas: 2"))).await?;
    world.kubectl("expose deployment web --type=NodePort --port=80").await?;
    let told = world.kubectl("rollout status deployment/web --timeout=240s").await?;
    ensure!(told.contains("successfully rolled out"), "rollout status said {told}");
    let port = world.node_port("web").await?;
    for node in world.cluster.nodes() {
        let url = format!("http://{}:{port}/", world.cluster.spec.node_address(node.number));
        world.page(&url, |page| page.contains("Hello, class")).await?;
    }
    let pods = world.pods("app=web", 2).await?;
    let pod = pods.first().context("a pod")?;
    world.page_from_pod(pod, "http://web/", "Hello, class").await
}

/// What a student types to see four pods, then one.
pub(super) async fn scale(world: &World<'_>) -> Result<()> {
    world.kubectl("create deployment web --image=nginx:1.22 --port=80").await?;
    world.kubectl("expose deployment web").await?;
    for replicas in [4, 1, 0, 2] {
        world.kubectl(&format!("scale deployment web --replicas={replicas}")).await?;
        world.pods("app=web", replicas).await?;
        world
            .wait::<EndpointSlice, _>("as many endpoints", "kubernetes.io/service-name=web", |slices| {
                let ready =
                    slices.values().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
                let ready = ready.filter(|endpoint| endpoint["conditions"]["ready"] == true).count();
                if ready == replicas { Ok(()) } else { Err(format!("{ready} endpoints")) }
            })
            .await?;
        let shown = world.kubectl("get deployment web --no-headers").await?;
        ensure!(shown.contains(&format!("{replicas}/{replicas}")), "kubectl get deployment showed {shown}");
    }
    Ok(())
}

/// Change causes in the history, the next release served, the first one after `undo`, and a release whose image
/// does not exist, which takes no pod away.
pub(super) async fn rollout(world: &World<'_>) -> Result<()> {
    world.kubectl("create deployment web --image=nginx:1.22 --replicas=2").await?;
    world.kubectl("expose deployment web --type=NodePort --port=80").await?;
    note(world, "first release").await?;
    rolled_out(world).await?;
    let url = format!("http://{}:{}/", world.cluster.spec.node_address(1), world.node_port("web").await?);
    world.page(&url, |page| page.contains("Welcome to nginx!")).await?;

    world.kubectl("set image deployment/web nginx=nginx:1.23").await?;
    note(world, "release 1.23").await?;
    rolled_out(world).await?;
    world.page(&url, |page| page.contains("nginx 1.23")).await?;

    let history = world.kubectl("rollout history deployment/web").await?;
    ensure!(history.contains("first release") && history.contains("release 1.23"), "history: {history}");
    world.kubectl("rollout undo deployment/web").await?;
    rolled_out(world).await?;
    world.page(&url, |page| page.contains("Welcome to nginx!")).await?;
    let history = world.kubectl("rollout history deployment/web").await?;
    ensure!(history.contains("first release") && !history.contains("\n1 "), "revision 1 became 3: {history}");

    world.kubectl("set image deployment/web nginx=nginx:none").await?;
    world
        .wait::<Pod, _>("a pod without its image", "app=web", |pods| {
            let waiting = |pod: &serde_json::Value| {
                let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
                reason == "ErrImagePull" || reason == "ImagePullBackOff"
            };
            let serving = count(pods, |pod| condition(pod, "Ready") == "True");
            if count(pods, waiting) == 1 && serving == 2 {
                return Ok(());
            }
            Err(format!("{} pods, {serving} Ready, {} wait for an image", pods.len(), count(pods, waiting)))
        })
        .await?;
    world.page(&url, |page| page.contains("Welcome to nginx!")).await?;
    world.kubectl("rollout undo deployment/web").await?;
    rolled_out(world).await?;
    world.pods("app=web", 2).await.map(drop)
}

async fn note(world: &World<'_>, cause: &str) -> Result<()> {
    let cause = format!("kubernetes.io/change-cause={cause}");
    world.kubectl_args(&["annotate", "deployment", "web", "--overwrite", &cause]).await.map(drop)
}

/// `rollout status` answers for the generation the controller has seen, so this waits for the newest.
async fn rolled_out(world: &World<'_>) -> Result<()> {
    world.kubectl("rollout status deployment/web --timeout=240s").await?;
    world
        .wait_one::<Deployment, _>("web", "with all replicas updated and available", |deployment| {
            let (spec, status) = (&deployment["spec"]["replicas"], &deployment["status"]);
            let done = status["observedGeneration"] == deployment["metadata"]["generation"]
                && &status["updatedReplicas"] == spec
                && &status["availableReplicas"] == spec
                && &status["replicas"] == spec;
            if done { Ok(()) } else { Err(status.to_string()) }
        })
        .await
}
