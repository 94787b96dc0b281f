//! The worker: what `rkube agent` runs.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::Uri;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::SystemRandom;
use rkube_pki::files;
use rkube_pki::join_token::JoinToken;
use tokio::net::TcpListener;

use crate::balancer::Balancer;
use crate::component::{ComponentError, Shutdown, component, supervise};
use crate::config::{AgentConfig, Paths};
use crate::fitness;
use crate::join::Joiner;
use crate::node::{self, Trust};
use crate::notify;

/// The servers the cluster had when it was asked last.
const SERVERS_FILE: &str = "servers.json";
const HTTPS_PORT: u16 = 443;

#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("--join {0} is not a URL")]
    Url(String),
    #[error("{address} is in use or cannot be listened on: stop what listens there, or use --lb-server-port")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// Joins the cluster and runs a worker until `stop` resolves.
pub async fn run(
    config: AgentConfig,
    clock: SharedClock,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ComponentError> {
    fitness::require(Some(&config.node))?;
    let folder = Paths::new(&config.data_dir).agent();
    files::create_folder(&folder)?;
    let token = JoinToken::parse(config.token.reveal())?;
    let server = host_and_port(&config.join).ok_or_else(|| AgentError::Url(config.join.clone()))?;
    let balancer = Balancer::open(&folder.join(SERVERS_FILE), &server, clock.clone());
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, config.lb_server_port));
    let listener = TcpListener::bind(local).await.map_err(|source| AgentError::Listen { address: local, source })?;
    let joiner = Joiner {
        url: config.join.clone(),
        servers: balancer.servers(),
        member_url: format!("https://{local}"),
        token,
        node_name: config.node.node_name.clone(),
        folder: folder.clone(),
        clock: clock.clone(),
        random: Arc::new(SystemRandom),
    };
    let joined = joiner.join().await?;
    if joined.is_from_kept {
        // What needs the server waits for it; the rest is done. A service manager is not to wait, too.
        notify::notify(notify::READY);
    } else {
        tracing::info!(server = config.join, node = config.node.node_name, "Joined the cluster");
    }
    let trust = Trust { authority: joined.authority, serving: None };
    let renewal = component("certificates", &[], async |ready, shutdown: Shutdown| {
        ready.ready();
        tokio::select! {
            () = joined.renewal.run() => {}
            () = shutdown.requested() => {}
        }
        Ok(())
    });
    let mut components = vec![balancer.component(listener, joined.client.clone()), renewal];
    components.extend(node::components(&config.node, folder, &joined.facts, &joined.client, &clock, trust, &[])?);
    supervise(components, clock, stop, || {
        tracing::info!("Ready");
        notify::notify(notify::READY);
    })
    .await?;
    Ok(())
}

/// Of a URL.
fn host_and_port(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(format!("{}:{}", uri.host()?, uri.port_u16().unwrap_or(HTTPS_PORT)))
}
