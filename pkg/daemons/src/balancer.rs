//! A worker's way to the servers of its cluster: a local port, behind which is whichever of them answers.
//!
//! Inputs: the server named by `--join`, the list kept from an earlier start, the EndpointSlice `default/kubernetes`.
//! Outputs: `127.0.0.1:<lb-server-port>`, the kept list.
//! Behaves as the load balancer of k3s' agents: connections go to one server for as long as it answers.
//!
//! Invariant: bytes pass unread; TLS is between the worker's parts and the server.
//! Invariant: the server named by `--join` stays on the list: it may be an address that the servers do not know of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::k8s::discovery::v1::{Endpoint, EndpointSlice};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use rkube_client::{Client, InformerFactory};
use rkube_pki::files;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, debug_span, info, warn};

use crate::component::{Component, component};

/// A server that is there answers a local network at once, and another continent within this.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// A worker's parts share a few connections; more than this is an accident, and waits.
const CONNECTIONS_MAX: usize = 256;
/// A cluster has few servers; what is listed beyond is not used.
const SERVERS_MAX: usize = 32;
/// After an accept failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const NAMESPACE: &str = "default";
const SERVICE: &str = "kubernetes";

pub(crate) struct Balancer {
    file: PathBuf,
    /// `host:port` of `--join`.
    join: String,
    clock: SharedClock,
    servers: Mutex<Servers>,
}

struct Servers {
    /// As `host:port`, that of `--join` first.
    list: Vec<String>,
    /// The one that answered last.
    current: String,
    /// Ends the connections to a server that is no longer listed.
    ends: BTreeMap<String, CancellationToken>,
}

impl Balancer {
    /// Reads the list that is kept in `file`. One that cannot be read is as none: the cluster tells it again.
    pub(crate) fn open(file: &Path, join: &str, clock: SharedClock) -> Arc<Self> {
        let kept = files::read(file).ok().flatten().and_then(|text| serde_json::from_str::<Vec<String>>(&text).ok());
        let servers = Servers { list: vec![join.to_owned()], current: join.to_owned(), ends: BTreeMap::new() };
        let balancer = Self { file: file.to_owned(), join: join.to_owned(), clock, servers: Mutex::new(servers) };
        balancer.servers.lock().list = balancer.listed(kept.unwrap_or_default());
        Arc::new(balancer)
    }

    /// All servers, that of `--join` first.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.servers.lock().list.clone()
    }

    fn listed(&self, servers: Vec<String>) -> Vec<String> {
        let mut list = vec![self.join.clone()];
        for server in servers {
            if !list.contains(&server) && list.len() < SERVERS_MAX {
                list.push(server);
            }
        }
        list
    }

    /// Takes the list the cluster has. Connections to servers that have left are ended, so that what goes over them
    /// comes again elsewhere.
    fn learn(&self, servers: Vec<String>) {
        let list = self.listed(servers);
        let mut state = self.servers.lock();
        if state.list == list {
            return;
        }
        info!(servers = list.join(","), "The cluster's servers changed");
        state.ends.retain(|server, end| {
            let stays = list.contains(server);
            if !stays {
                end.cancel();
            }
            stays
        });
        state.list = list.clone();
        drop(state);
        let text = serde_json::json!(list).to_string();
        if let Err(error) = files::write(&self.file, text.as_bytes(), files::PRIVATE) {
            warn!(error = %chain(&error), "Could not keep the list of servers");
        }
    }

    /// The servers in the order they are tried.
    fn order(&self) -> Vec<String> {
        let state = self.servers.lock();
        let mut order = state.list.clone();
        if let Some(at) = order.iter().position(|server| *server == state.current) {
            order.rotate_left(at);
        }
        order
    }

    /// Connects to the first server that answers.
    async fn dial(&self) -> Option<(TcpStream, CancellationToken)> {
        for server in self.order() {
            let outcome = tokio::select! {
                outcome = TcpStream::connect(&server) => outcome.map_err(|error| error.to_string()),
                () = self.clock.sleep(DIAL_TIMEOUT) => Err("no answer".to_owned()),
            };
            match outcome {
                Ok(stream) => {
                    let mut state = self.servers.lock();
                    if state.current != server {
                        info!(server, "Using another server");
                        state.current.clone_from(&server);
                    }
                    let end = state.ends.entry(server).or_default().clone();
                    return Some((stream, end));
                }
                Err(error) => debug!(server, error, "A server does not answer"),
            }
        }
        None
    }

    /// Passes one connection on. Without a server it is closed, and whoever made it tries again.
    async fn pass(&self, mut near: TcpStream) {
        let Some((mut far, end)) = self.dial().await else { return };
        // Small requests and watch events go out at once; a failure here only costs latency.
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        tokio::select! {
            outcome = tokio::io::copy_bidirectional(&mut near, &mut far) => {
                if let Err(error) = outcome {
                    debug!(error = %chain(&error), "A connection to a server ended");
                }
            }
            () = end.cancelled() => {}
        }
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        loop {
            let accept = async { (Arc::clone(&places).acquire_owned().await, listener.accept().await) };
            let (place, accepted) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept => accepted,
            };
            match accepted {
                Ok((near, remote)) => {
                    let (this, stop) = (Arc::clone(&self), stop.clone());
                    let pass = async move {
                        let _place = place;
                        tokio::select! {
                            () = this.pass(near) => {}
                            () = stop.cancelled() => {}
                        }
                    };
                    task::spawn(
                        debug_span!("connection", component = "load-balancer", %remote),
                        connections.track_future(pass),
                    );
                }
                Err(error) => {
                    debug!(error = %chain(&error), "Accepting a connection failed");
                    self.clock.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        connections.close();
        connections.wait().await;
    }

    /// Serves `listener`, and follows the cluster's list of its servers.
    pub(crate) fn component(self: Arc<Self>, listener: TcpListener, client: Client) -> Box<dyn Component> {
        component("load-balancer", &[], move |ready, shutdown| async move {
            let informers = InformerFactory::new(client, shutdown.token());
            let slices = informers.scoped::<EndpointSlice>(NAMESPACE, "", &format!("metadata.name={SERVICE}"));
            let learner = Arc::clone(&self);
            slices.core().add_handler(move |delta| {
                let servers =
                    delta.object().typed::<EndpointSlice>().map(|slice| addresses(&slice)).unwrap_or_default();
                if !servers.is_empty() {
                    learner.learn(servers);
                }
            });
            informers.start();
            ready.ready();
            self.serve(listener, shutdown.token()).await;
            Ok(())
        })
    }
}

/// Where the servers in an EndpointSlice are, as `host:port`.
fn addresses(slice: &EndpointSlice) -> Vec<String> {
    let https = |name: Option<&String>| name.is_none_or(|name| name == "https");
    let ports = slice.ports.iter().flatten().filter(|port| https(port.name.as_ref()));
    let Some(port) = ports.filter_map(|port| port.port).next() else { return Vec::new() };
    let is_ready =
        |endpoint: &&Endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false);
    let of = |address: &String| {
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    };
    slice.endpoints.iter().flatten().filter(is_ready).flat_map(|endpoint| endpoint.addresses.iter().map(of)).collect()
}

#[cfg(test)]
mod tests {
    use rkube_apimachinery::clock::SystemClock;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Says its name to whoever connects, and then what it hears.
    async fn server(name: &'static str) -> (String, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let end = stop.clone();
        let serving = task::spawn(tracing::Span::none(), async move {
            loop {
                let (mut stream, _) = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap(),
                    () = end.cancelled() => return,
                };
                task::spawn(tracing::Span::none(), async move {
                    stream.write_all(name.as_bytes()).await.unwrap();
                    let (mut reader, mut writer) = stream.split();
                    // The other side may be gone.
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        (address, stop, serving)
    }

    async fn connect(port: u16) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut name = [0; 3];
        let told = stream.read_exact(&mut name).await.map(|_| String::from_utf8_lossy(&name).into_owned());
        (stream, told.unwrap_or_default())
    }

    #[tokio::test]
    async fn connections_go_where_a_server_answers() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("servers.json");
        let (one, stop_one, serving_one) = server("one").await;
        let (two, stop_two, _) = server("two").await;
        let balancer = Balancer::open(&file, &one, SystemClock::shared());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let serving = task::spawn(tracing::Span::none(), Arc::clone(&balancer).serve(listener, stop.clone()));

        balancer.learn(vec![two.clone(), one.clone()]);
        assert_eq!(balancer.servers(), [one.clone(), two.clone()]);
        let (mut first, name) = connect(port).await;
        assert_eq!(name, "one");
        first.write_all(b"hello").await.unwrap();
        let mut echo = [0; 5];
        first.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"hello");
        stop_one.cancel();
        serving_one.await.unwrap();
        let (mut second, name) = connect(port).await;
        assert_eq!(name, "two");
        // A server that leaves takes its connections along; the list is kept for the next start.
        balancer.learn(vec![one.clone()]);
        assert_eq!(second.read(&mut echo).await.unwrap_or(0), 0);
        assert_eq!(connect(port).await.1, "", "nobody answers");
        balancer.learn(vec![two.clone()]);
        assert_eq!(connect(port).await.1, "two");
        assert_eq!(Balancer::open(&file, &one, SystemClock::shared()).servers(), [one.clone(), two]);
        std::fs::write(&file, "garbage").unwrap();
        assert_eq!(Balancer::open(&file, &one, SystemClock::shared()).servers(), [one]);
        stop.cancel();
        serving.await.unwrap();
        stop_two.cancel();
    }

    #[test]
    fn a_slice_tells_where_the_servers_are() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {}, "addressType": "IPv4",
            "endpoints": [
                { "addresses": ["192.0.2.1"] },
                { "addresses": ["192.0.2.2"], "conditions": { "ready": false } },
                { "addresses": ["2001:db8::1"], "conditions": { "ready": true } },
            ],
            "ports": [{ "name": "metrics", "port": 1 }, { "name": "https", "port": 6443 }],
        }))
        .unwrap();
        assert_eq!(addresses(&slice), ["192.0.2.1:6443", "[2001:db8::1]:6443"]);
    }
}
