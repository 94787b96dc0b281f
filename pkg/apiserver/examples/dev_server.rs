//! An API server in memory for trying clients on: `cargo run --example dev_server -- 127.0.0.1:24001 admin.kubeconfig`.

#[allow(dead_code, reason = "shared with the integration tests, which use more of it")]
#[path = "../tests/it/server.rs"]
mod server;

use std::sync::Arc;

use rkube_storage::memory::MemoryStorage;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:24001".to_owned());
    let path = arguments.next().unwrap_or_else(|| "admin.kubeconfig".to_owned());
    let address = address.parse().map_err(std::io::Error::other)?;
    let server = server::Server::start_at(address, Arc::new(MemoryStorage::new())).await;
    std::fs::write(&path, server.kubeconfig())?;
    tracing::info!(address = %server.address, kubeconfig = path, "Serving");
    tokio::signal::ctrl_c().await?;
    server.stop().await;
    Ok(())
}
