//! A kubelet by itself, for trying it against a runtime:
//! `standalone <folder> <containerd socket> <node name> [<API server's URL> <its PKI folder> <node IP> <port>]`.
//!
//! Static pods come from `<folder>/pods`, images from `<folder>/images`. Without an API server the
//! in-memory one of the client's tests stands in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rkube_apimachinery::clock::{Clock, SharedClock, SystemClock};
use rkube_client::Client;
use rkube_client::fake::FakeApi;
use rkube_client::transport::SharedTransport;
use rkube_cri::Remote;
use rkube_http::client::HttpClient;
use rkube_http::connect::Connector;
use rkube_http::listener::Listener;
use rkube_http::tls::{self, ClientVerifier};
use rkube_http::transport::RemoteTransport;
use rkube_kubelet::server::KubeletServer;
use rkube_kubelet::server::auth::Webhook;
use rkube_kubelet::volumes::mounter::KernelMounter;
use rkube_kubelet::{Dependencies, Kubelet, KubeletConfig};
use rkube_pki::Leaf;
use rkube_pki::tree::Tree;
use tokio_util::sync::CancellationToken;

#[tokio::main]
#[allow(clippy::print_stdout, reason = "an example that talks to its user")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: standalone <folder> <containerd socket> <node name>");
    let (folder, socket, name) = (PathBuf::from(next()?), next()?, next()?);
    let clock = SystemClock::shared();
    let random = Arc::new(rkube_apimachinery::random::SystemRandom);
    let remote = match next() {
        Ok(url) => Some((url, PathBuf::from(next()?), next()?, next()?.parse::<u16>()?)),
        Err(_) => None,
    };
    let tree = remote.as_ref().map(|(_, pki, ..)| Tree::open(pki, clock.now())).transpose()?;
    let transport = match (&remote, &tree) {
        (Some((url, ..)), Some(tree)) => connect(url, tree, &name, &*clock)?,
        _ => FakeApi::new(clock.clone()).connect(),
    };
    let client = Client::new(transport, clock.clone(), random);
    let runtime = Remote::new(&socket)?;
    let ip = remote.as_ref().map_or("127.0.0.1", |(_, _, ip, _)| ip);
    let mut config = KubeletConfig::new(&name, vec![ip.to_owned()], "v1.36.2");
    config.port = remote.as_ref().map_or(config.port, |(.., port)| *port);
    config.root_dir = folder.join("kubelet");
    config.logs_root = folder.join("log/pods");
    config.container_logs_root = folder.join("log/containers");
    config.manifests_dir = Some(folder.join("pods"));
    config.images_dir = Some(folder.join("images"));
    config.cgroup_root = format!("/{name}");
    // A developer's disk may be fuller than a node's.
    config.eviction = rkube_kubelet::eviction::Thresholds::none();
    let importer = Some(runtime.containerd());
    let runtime = Arc::new(runtime);
    let (node_ip, port) = (ip.to_owned(), config.port);
    let dependencies = Dependencies {
        client: client.clone(),
        clock: clock.clone(),
        runtime: runtime.clone(),
        images: runtime,
        mounter: Arc::new(KernelMounter),
        importer,
        machine_stops: Arc::new(|| Box::pin(std::future::ready(false))),
    };
    let shutdown = CancellationToken::new();
    let kubelet = Kubelet::new(config, dependencies, shutdown.clone());
    if let Some(tree) = &tree {
        serve(&kubelet, tree, client, &name, &node_ip, port, clock, shutdown.clone()).await?;
    }
    let running = rkube_apimachinery::task::spawn(tracing::info_span!("kubelet"), kubelet.run(|| println!("ready")));
    tokio::signal::ctrl_c().await?;
    shutdown.cancel();
    running.await??;
    Ok(())
}

fn connect(
    url: &str,
    tree: &Tree,
    name: &str,
    clock: &dyn Clock,
) -> Result<SharedTransport, Box<dyn std::error::Error>> {
    let leaf = Leaf::client(&format!("system:node:{name}"), &["system:nodes"]);
    let pair = tree.cluster.issue(&leaf, clock.now())?;
    let roots = tls::roots(&authority(tree)?)?;
    let config = tls::client_config(roots, Some((pair.chain()?, pair.key()?)))?;
    let connector = Connector::new(Some(Arc::new(ArcSwap::from_pointee(config))));
    let http = HttpClient::new(&url.parse()?, connector)?;
    Ok(Arc::new(RemoteTransport::new(http, http::HeaderValue::from_static("kubelet"))))
}

fn authority(tree: &Tree) -> Result<Vec<rustls_pki_types::CertificateDer<'static>>, Box<dyn std::error::Error>> {
    Ok(rkube_pki::authority::certificates(tree.cluster.certificate_pem(), "the cluster's authority")?)
}

#[allow(clippy::too_many_arguments, reason = "an example")]
async fn serve(
    kubelet: &Kubelet,
    tree: &Tree,
    client: Client,
    name: &str,
    ip: &str,
    port: u16,
    clock: SharedClock,
    shutdown: CancellationToken,
) -> Result<(), Box<dyn std::error::Error>> {
    let roots = tls::roots(&authority(tree)?)?;
    let leaf = Leaf::server(&format!("system:node:{name}"), vec![name.to_owned()], vec![ip.parse()?]);
    let pair = tree.cluster.issue(&leaf, clock.now())?;
    let config = tls::server_config(pair.chain()?, pair.key()?, &roots)?;
    let access = Webhook::new(client, clock.clone(), name, ClientVerifier::new(roots)?);
    let server = KubeletServer::new(kubelet.inner(), Arc::new(access));
    let socket = tokio::net::TcpListener::bind((ip, port)).await?;
    let listener = Listener::new("kubelet", socket, Some(Arc::new(ArcSwap::from_pointee(config))), clock);
    let serving = async move { listener.serve(Arc::new(server), shutdown, Duration::from_secs(1)).await };
    rkube_apimachinery::task::spawn(tracing::info_span!("kubelet-server"), serving);
    Ok(())
}
