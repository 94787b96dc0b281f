//! The control plane: what `rkube server` runs, in the order it starts.

mod bootstrap;
mod certificates;
mod control_plane;
mod datastore;
mod managers;
mod manifests;
mod role;
mod seed;
mod tokens;

use std::future::Future;

use rkube_apimachinery::clock::SharedClock;

use crate::component::{ComponentError, supervise};
use crate::config::ServerConfig;
use crate::notify;

/// Runs a server until `stop` resolves.
pub async fn run(
    config: ServerConfig,
    clock: SharedClock,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ComponentError> {
    let kubeconfig = config.write_kubeconfig.display().to_string();
    tracing::info!(version = crate::version::BUILD, data_dir = %config.data_dir.display(), "Starting the server");
    let server = control_plane::ControlPlane::open(config, clock.clone()).await?;
    supervise(server.components()?, clock, stop, || {
        tracing::info!(kubeconfig, "Ready");
        notify::notify(notify::READY);
    })
    .await?;
    Ok(())
}
