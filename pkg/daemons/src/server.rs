//! The control plane: what `rkube server` runs.

use std::future::Future;

use rkube_apimachinery::clock::SharedClock;

use crate::component::{Component, ComponentError, supervise};
use crate::config::ServerConfig;
use crate::notify;

/// Runs a server until `stop` resolves.
pub async fn run(
    config: ServerConfig,
    clock: SharedClock,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ComponentError> {
    let components = components(&config);
    supervise(components, clock, stop, || notify::notify(notify::READY)).await?;
    Ok(())
}

fn components(_config: &ServerConfig) -> Vec<Box<dyn Component>> {
    Vec::new()
}
