//! Manifests that the server deploys by itself.

use std::fs;

use anyhow::{Result, ensure};
use rkube_api::k8s::core::v1::ConfigMap;

use crate::world::World;

/// A file in the manifests folder is applied, applied again when it changes, and taken away with its objects.
pub(super) async fn addons(world: &World<'_>) -> Result<()> {
    let namespace = &world.namespace;
    let path = world.cluster.node(1).data_dir().join(format!("server/manifests/{namespace}.yaml"));
    let write = |colour: &str| {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: addon, namespace: {namespace}}}\ndata: {{colour: {colour}}}\n"
        );
        fs::write(&path, text)
    };
    for colour in ["blue", "green"] {
        write(colour)?;
        world
            .wait_one::<ConfigMap, _>("addon", "applied", |found| match found["data"]["colour"] == colour {
                true => Ok(()),
                false => Err(found["data"].to_string()),
            })
            .await?;
    }
    let events = world.kubectl("get events --namespace kube-system").await?;
    ensure!(events.contains("AppliedManifest"), "no event says so: {events}");
    fs::remove_file(&path)?;
    world.gone::<ConfigMap>("addon").await
}
