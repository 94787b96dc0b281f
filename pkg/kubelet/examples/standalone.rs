//! A kubelet by itself, for trying it against a runtime: `standalone <folder> <containerd socket> <node name>`.
//!
//! Static pods come from `<folder>/pods`, images from `<folder>/images`. There is no API server: the
//! in-memory one of the client's tests stands in.

use std::path::PathBuf;
use std::sync::Arc;

use rkube_apimachinery::clock::SystemClock;
use rkube_client::Client;
use rkube_client::fake::FakeApi;
use rkube_cri::Remote;
use rkube_kubelet::volumes::mounter::KernelMounter;
use rkube_kubelet::{Dependencies, Kubelet, KubeletConfig};
use tokio_util::sync::CancellationToken;

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example that talks to its user")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: standalone <folder> <containerd socket> <node name>");
    let (folder, socket, name) = (PathBuf::from(next()?), next()?, next()?);
    let clock = SystemClock::shared();
    let api = FakeApi::new(clock.clone());
    let client = Client::new(api.connect(), clock.clone(), Arc::new(rkube_apimachinery::random::SystemRandom));
    let runtime = Remote::new(&socket)?;
    let mut config = KubeletConfig::new(&name, vec!["127.0.0.1".to_owned()], "v1.36.2");
    config.root_dir = folder.join("kubelet");
    config.logs_root = folder.join("log/pods");
    config.container_logs_root = folder.join("log/containers");
    config.manifests_dir = Some(folder.join("pods"));
    config.images_dir = Some(folder.join("images"));
    config.cgroup_root = format!("/{name}");
    let importer = Some(runtime.containerd());
    let runtime = Arc::new(runtime);
    let dependencies = Dependencies {
        client,
        clock,
        runtime: runtime.clone(),
        images: runtime,
        mounter: Arc::new(KernelMounter),
        importer,
    };
    let shutdown = CancellationToken::new();
    let kubelet = Kubelet::new(config, dependencies, shutdown.clone());
    let running = rkube_apimachinery::task::spawn(tracing::info_span!("kubelet"), kubelet.run(|| println!("ready")));
    tokio::signal::ctrl_c().await?;
    shutdown.cancel();
    running.await??;
    Ok(())
}
