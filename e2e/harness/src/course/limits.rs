//! Bounds of a namespace.

use anyhow::{Result, ensure};
use rkube_api::k8s::core::v1::{Pod, ResourceQuota};

use crate::manifest::PodManifest;
use crate::world::World;

fn pod(name: &str, resources: &str) -> String {
    let container =
        format!(r#"containers: [{{name: app, image: "busybox:1.35", command: [sleep, "3600"]{resources}}}]"#);
    PodManifest::new(name, &container).alone()
}

/// A pod without requests gets the namespace's defaults, one over the bounds is refused, and a quota counts.
pub(super) async fn limits(world: &World<'_>) -> Result<()> {
    world
        .apply(
            r#"
apiVersion: v1
kind: LimitRange
metadata: {name: sizes}
spec:
  limits:
  - type: Container
    default: {cpu: 200m, memory: 64Mi}
    defaultRequest: {cpu: 50m, memory: 32Mi}
    max: {cpu: 500m, memory: 128Mi}
"#,
        )
        .await?;
    world.apply(&pod("small", "")).await?;
    let resources = world.get::<Pod>("small").await?["spec"]["containers"][0]["resources"].clone();
    let wanted = serde_json::json!({
        "limits": {"cpu": "200m", "memory": "64Mi"}, "requests": {"cpu": "50m", "memory": "32Mi"}
    });
    ensure!(resources == wanted, "the pod has {resources}");
    let Err(refusal) = world.apply(&pod("large", ", resources: {limits: {memory: 1Gi}}")).await else {
        anyhow::bail!("a pod over the bounds was accepted");
    };
    let refusal = format!("{refusal:#}");
    ensure!(refusal.contains("maximum memory usage per Container is 128Mi, but limit is 1Gi"), "said {refusal}");

    world.kubectl("create quota few --hard=pods=2,requests.cpu=1").await?;
    used(world, "1").await?;
    world.apply(&pod("second", "")).await?;
    used(world, "2").await?;
    let Err(refusal) = world.apply(&pod("third", "")).await else {
        anyhow::bail!("a pod over the quota was accepted");
    };
    let refusal = format!("{refusal:#}");
    ensure!(
        refusal.contains("exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2"),
        "said {refusal}"
    );
    world.kubectl("delete pod second").await?;
    used(world, "1").await?;
    world.apply(&pod("third", "")).await
}

async fn used(world: &World<'_>, pods: &str) -> Result<()> {
    world
        .wait_one::<ResourceQuota, _>("few", "with its use counted", |quota| {
            let status = &quota["status"];
            if status["used"]["pods"] == pods && status["hard"]["pods"] == "2" {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .await
}
