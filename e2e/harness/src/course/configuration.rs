//! What a container is told, and what it is asked.

use anyhow::{Result, ensure};
use rkube_api::k8s::core::v1::{Pod, Service};
use rkube_api::k8s::discovery::v1::EndpointSlice;

use crate::api::condition;
use crate::manifest::{PodManifest, service};
use crate::world::World;

const APP: &str = r#"
containers:
- name: app
  image: busybox:1.35
  command: [sh, -c, "env; sleep 3600"]
  envFrom: [{configMapRef: {name: settings}}]
  env:
  - {name: WHO, valueFrom: {secretKeyRef: {name: login, key: user}}}
  - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  volumeMounts:
  - {name: settings, mountPath: /etc/settings}
  - {name: login, mountPath: /etc/login, readOnly: true}
volumes:
- {name: settings, configMap: {name: settings}}
- {name: login, secret: {secretName: login, defaultMode: 0400}}
"#;

/// Environment and files from a ConfigMap and a Secret; a changed ConfigMap reaches the file, not the environment.
pub(super) async fn environment(world: &World<'_>) -> Result<()> {
    world.kubectl("create configmap settings --from-literal=COLOUR=blue --from-literal=size=7").await?;
    world.kubectl("create secret generic login --from-literal=user=ann --from-literal=password=s3cret").await?;
    world.apply(&PodManifest::new("app", APP).alone()).await?;
    let pod = world.pod("app").await?;
    let log = world.kubectl("logs app").await?;
    for line in ["COLOUR=blue", "size=7", "WHO=ann", "NODE=node"] {
        ensure!(log.lines().any(|found| found.starts_with(line)), "the environment has no {line}: {log}");
    }
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    ensure!(log.lines().any(|found| found == format!("ADDRESS={address}")), "not its address: {log}");
    let files = "cat /etc/settings/COLOUR; echo; cat /etc/login/password; echo; stat -L -c %a /etc/login/user";
    let said = world.shell("app", files).await?;
    ensure!(said == "blue\ns3cret\n400\n", "the files hold {said:?}");

    world.kubectl_args(&["patch", "configmap", "settings", "-p", r#"{"data":{"COLOUR":"green"}}"#]).await?;
    world.volume_holds("app", "kubernetes.io~configmap/settings", "COLOUR", "green").await?;
    let said = world.shell("app", "cat /etc/settings/COLOUR; echo; echo $COLOUR").await?;
    ensure!(said == "green\nblue\n", "the file follows, the environment of a running container stays: {said:?}");
    Ok(())
}

const PROBED: &str = r#"
containers:
- name: app
  image: busybox:1.35
  command: [sh, -c, "touch /tmp/ready /tmp/alive; sleep 2; touch /tmp/started; sleep 3600"]
  startupProbe: {exec: {command: [cat, /tmp/started]}, periodSeconds: 1, failureThreshold: 60}
  readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}
  livenessProbe: {exec: {command: [cat, /tmp/alive]}, periodSeconds: 1, failureThreshold: 2}
"#;

/// Readiness takes a pod out of its Service and back, liveness restarts its container, a startup probe holds both back.
pub(super) async fn probes(world: &World<'_>) -> Result<()> {
    let manifests = [PodManifest::new("probed", PROBED).alone(), service("probed", "probed", "ports: [{port: 80}]")];
    world.apply(&manifests.concat()).await?;
    world.pod("probed").await?;
    let address = world.get::<Service>("probed").await?["spec"]["clusterIP"].clone();
    ensure!(address.as_str().is_some_and(|address| !address.is_empty()), "the Service has an address");
    endpoints(world, true).await?;

    world.kubectl("exec probed -- rm /tmp/ready").await?;
    endpoints(world, false).await?;
    let events = world.kubectl("describe pod probed").await?;
    ensure!(events.contains("Readiness probe failed"), "describe shows no failed probe: {events}");
    world.kubectl("exec probed -- touch /tmp/ready").await?;
    endpoints(world, true).await?;

    world.kubectl("exec probed -- rm /tmp/alive").await?;
    world
        .wait_one::<Pod, _>("probed", "restarted and Ready again", |pod| {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            if restarts == 1 && condition(pod, "Ready") == "True" {
                Ok(())
            } else {
                Err(format!("restarts {restarts}"))
            }
        })
        .await?;
    let shown = world.kubectl("get pod probed --no-headers").await?;
    ensure!(shown.contains("1/1") && shown.contains("Running"), "kubectl get pod showed {shown}");
    Ok(())
}

async fn endpoints(world: &World<'_>, is_ready: bool) -> Result<()> {
    world
        .wait::<EndpointSlice, _>("the Service's endpoints", "kubernetes.io/service-name=probed", |slices| {
            let endpoint = slices.values().next().map(|slice| slice["endpoints"][0]["conditions"]["ready"].clone());
            if endpoint.as_ref().is_some_and(|ready| *ready == is_ready) {
                Ok(())
            } else {
                Err(format!("{endpoint:?}"))
            }
        })
        .await
}
