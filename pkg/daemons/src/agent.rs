//! The worker: what `rkube agent` runs.

use std::future::Future;

use rkube_apimachinery::clock::SharedClock;

use crate::component::{ComponentError, supervise};
use crate::config::AgentConfig;
use crate::notify;

/// Runs a worker until `stop` resolves.
pub async fn run(
    _config: AgentConfig,
    clock: SharedClock,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ComponentError> {
    supervise(Vec::new(), clock, stop, || notify::notify(notify::READY)).await?;
    Ok(())
}
