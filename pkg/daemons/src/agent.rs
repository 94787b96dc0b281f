//! The worker: what `rkube agent` runs.

use std::future::Future;
use std::sync::Arc;

use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::SystemRandom;
use rkube_pki::files;
use rkube_pki::join_token::JoinToken;

use crate::component::{ComponentError, Shutdown, component, supervise};
use crate::config::{AgentConfig, Paths};
use crate::fitness;
use crate::join::Joiner;
use crate::node::{self, Trust};
use crate::notify;

/// Joins the cluster and runs a worker until `stop` resolves.
pub async fn run(
    config: AgentConfig,
    clock: SharedClock,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ComponentError> {
    fitness::require(Some(&config.node))?;
    let folder = Paths::new(&config.data_dir).agent();
    files::create_folder(&folder)?;
    let joiner = Joiner {
        url: config.join.clone(),
        token: JoinToken::parse(config.token.reveal())?,
        node_name: config.node.node_name.clone(),
        folder: folder.clone(),
        clock: clock.clone(),
        random: Arc::new(SystemRandom),
    };
    let joined = joiner.join().await?;
    tracing::info!(server = config.join, node = config.node.node_name, "Joined the cluster");
    let trust = Trust { authority: joined.authority, serving: None };
    let renewal = component("certificates", &[], async |ready, shutdown: Shutdown| {
        ready.ready();
        tokio::select! {
            () = joined.renewal.run() => {}
            () = shutdown.requested() => {}
        }
        Ok(())
    });
    let mut components = vec![renewal];
    components.extend(node::components(&config.node, folder, &joined.facts, &joined.client, &clock, trust, &[])?);
    supervise(components, clock, stop, || {
        tracing::info!("Ready");
        notify::notify(notify::READY);
    })
    .await?;
    Ok(())
}
