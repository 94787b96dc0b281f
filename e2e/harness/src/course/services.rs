//! Reaching pods, and looking into them.

use anyhow::{Context, Result, bail, ensure};
use rkube_api::k8s::core::v1::Pod;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::manifest::{PodManifest, service};
use crate::world::{LIMIT, World};

const WEB: &str = r#"
containers:
- name: web
  image: busybox:1.35
  command: [sh, -c, "hostname > /tmp/index.html; echo serving; exec httpd -f -vv -p 8080 -h /tmp"]
  ports: [{name: http, containerPort: 8080}]
  readinessProbe: {tcpSocket: {port: http}, periodSeconds: 1}
"#;

async fn start(world: &World<'_>) -> Result<Vec<String>> {
    let manifests = [
        PodManifest::new("web", WEB).deployment("replicas: 2"),
        service("web", "web", "ports: [{port: 80, targetPort: http}]"),
        service("pods", "web", "clusterIP: None\nports: [{port: 8080}]"),
        PodManifest::sleeping("client").alone(),
    ];
    world.apply(&manifests.concat()).await?;
    world.pods("app=client", 1).await?;
    world.pods("app=web", 2).await
}

/// Short and long names, from another namespace, the addresses of a headless Service, and names that do not exist.
pub(super) async fn names(world: &World<'_>) -> Result<()> {
    let pods = start(world).await?;
    let namespace = &world.namespace;
    for name in ["web".to_owned(), format!("web.{namespace}"), format!("web.{namespace}.svc.cluster.local")] {
        world.page_from_pod("client", &format!("http://{name}/"), "web-").await?;
    }
    // Both pods answer, each with its own name, at the addresses the headless name has.
    for pod in &pods {
        let address = world.get::<Pod>(pod).await?["status"]["podIP"].as_str().context("an address")?.to_owned();
        world.page_from_pod("client", &format!("http://{address}:8080/"), pod).await?;
        let name = format!("pods.{namespace}.svc.cluster.local");
        let what = format!("the address {address} for {name}");
        world.asks_until("client", &what, &["nslookup", "-type=a", &name], |said| said.contains(&address)).await?;
    }
    let missing = world.kubectl_fails("exec client -- nslookup missing.default.svc.cluster.local").await?;
    ensure!(missing.contains("exit code 1"), "a name that does not exist: {missing}");
    world.kubectl("exec client -- nslookup kubernetes.default.svc.cluster.local").await?;
    Ok(())
}

/// Every node serves the port, wherever the pods are, also when only one pod is left.
pub(super) async fn node_port(world: &World<'_>) -> Result<()> {
    start(world).await?;
    world.kubectl("expose deployment web --name=outside --type=NodePort --port=80 --target-port=8080").await?;
    let port = world.node_port("outside").await?;
    world.kubectl("scale deployment web --replicas=1").await?;
    let pods = world.pods("app=web", 1).await?;
    let pod = pods.first().context("a pod")?;
    for node in world.cluster.nodes() {
        let url = format!("http://{}:{port}/", world.cluster.spec.node_address(node.number));
        world.page(&url, |page| page.contains(pod.as_str())).await?;
        // A pod on the same node and on another reach it too.
        world.page_from_pod("client", &url, pod).await?;
    }
    Ok(())
}

/// What students look with when something is wrong.
pub(super) async fn looking(world: &World<'_>) -> Result<()> {
    let pods = start(world).await?;
    let pod = pods.first().context("a pod")?;
    let log = world.kubectl(&format!("logs {pod}")).await?;
    ensure!(log.starts_with("serving\n"), "the log is {log:?}");
    let all = world.kubectl("logs -l app=web --prefix").await?;
    ensure!(pods.iter().all(|pod| all.contains(pod.as_str())), "logs of all: {all}");
    let said = world.kubectl(&format!("exec {pod} -- hostname")).await?;
    ensure!(said.trim() == pod, "hostname says {said}");
    let failed = world.kubectl_fails(&format!("exec {pod} -- sh -c false")).await?;
    ensure!(failed.contains("exit code 1"), "a command that fails: {failed}");
    let described = world.kubectl(&format!("describe pod {pod}")).await?;
    for word in ["Scheduled", "Started", "node", "busybox:1.35"] {
        ensure!(described.contains(word), "describe shows no {word}: {described}");
    }

    let mut forward = world.kubectl_stream(&format!("port-forward {pod} :8080"))?;
    let mut lines = BufReader::new(forward.stdout.take().context("kubectl prints")?).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.context("port-forward said nothing")??;
    let line = line.context("port-forward ended")?;
    let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next());
    let url = format!("http://{}/", address.with_context(|| format!("port-forward said {line}"))?);
    world.page(&url, |page| page.contains(pod.as_str())).await?;
    forward.kill().await?;

    let mut follow = world.kubectl_stream(&format!("logs -f {pod}"))?;
    let mut lines = BufReader::new(follow.stdout.take().context("kubectl prints")?).lines();
    let mut followed = async |wanted: &str| {
        let seen = async {
            while let Some(line) = lines.next_line().await? {
                if line.contains(wanted) {
                    return Ok(());
                }
            }
            bail!("the log ended")
        };
        let seen = tokio::time::timeout(LIMIT, seen).await;
        seen.with_context(|| format!("the followed log did not show {wanted}"))?
    };
    // What was there shows that it is followed; what comes then is told at once.
    followed("serving").await?;
    world.kubectl(&format!("exec {pod} -- wget -q -O /dev/null http://127.0.0.1:8080/index.html")).await?;
    followed("url:/index.html").await?;
    follow.kill().await?;
    Ok(())
}
