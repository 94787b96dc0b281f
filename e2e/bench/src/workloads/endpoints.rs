//! `endpoints`: a pod becomes ready; until a connection through its Service succeeds, and the parts of that time.
//!
//! The program plays the pods: their addresses are its own, where it listens. So it runs on a node of the cluster, in that
//! node's network namespace, where the node's rules lead a connection to a cluster IP back to it.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rkube_api::StoredObject;
use rkube_api::k8s::core::v1::Service;
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::task;
use rkube_client::ListParams;
use rkube_client::client::resource_of;
use rkube_client::reflector::{self, Scope, Sink};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug_span;

use super::{Bench, Playground, check_positive, required};
use crate::cluster::Target;
use crate::nodes::{STRATEGIC, Shape};
use crate::report::Report;
use crate::stats::Histogram;
use crate::track::Tracker;

const TIMEOUT: Duration = Duration::from_secs(60);
/// A packet that is neither refused nor answered is sent again by the kernel only after a second.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(200);
/// Between two tries to connect; the precision of the figures, which are never too small.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);
const PORT: u16 = 80;

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    shape: Shape,
    /// Pods that become ready, one after the other, each alone behind a Service
    #[arg(long, default_value_t = 200, value_name = "N")]
    count: u64,
    /// Address of this machine that the pods get; by default the one it reaches cluster IPs from
    #[arg(long, value_name = "IP")]
    address: Option<Ipv4Addr>,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        check_positive("--count", self.count)?;
        self.shape.check(1)
    }
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let playground = Playground { nodes: 1, shape: fitting(&options.shape, options.count)? };
    let work = async |namespace: &str| {
        let address = match options.address {
            Some(address) => address,
            None => own_address(bench).await?,
        };
        let listener = TcpListener::bind((address, 0)).await.with_context(|| format!("listening at {address}"))?;
        let port = listener.local_addr().context("listening")?.port();
        ensure!(!address.is_loopback(), "no endpoint is at {address}: name another with --address");
        let _accepting = accept(listener);
        let services = prepare(options.count, bench, &playground, namespace, port).await?;
        // The rules of all Services are there before anything is measured: they refuse.
        for service in &services {
            until(*service, bench.clock(), false).await?;
        }
        let slices = Slices::watch(bench, namespace);
        bench.measured(ready_one_by_one(bench, namespace, address, &services, &slices)).await
    };
    let (found, used) = playground.play_with(bench, None, work).await?;
    let mut report = bench.report("endpoints");
    report
        .parameter("count", options.count)
        .latencies("ready to slice seen", &found.slice)
        .latencies("ready to connected", &found.connected)
        .latencies("status write", &found.write)
        .usage(used, options.count);
    Ok(report)
}

/// Room for all pods on the one node.
fn fitting(shape: &Shape, count: u64) -> Result<Shape> {
    let pods = u32::try_from(count).context("--count")?.max(shape.node_pods);
    Ok(Shape { node_pods: pods, ..shape.clone() })
}

fn name(number: u64) -> String {
    format!("s-{number:06}")
}

/// Makes the Services and their pods, which are bound and say nothing yet. Returns where the Services are.
async fn prepare(
    count: u64,
    bench: &Bench,
    playground: &Playground,
    namespace: &str,
    target: u16,
) -> Result<Vec<SocketAddr>> {
    let progress = bench.progress("pods bound");
    let tracker = Tracker::start(&bench.cluster, namespace, "", progress.ticker());
    let service = move |number| {
        let name = name(number);
        let spec = json!({"selector": {"app": name}, "ports": [{"port": PORT, "targetPort": target}]});
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}).to_string()
    };
    let spec = playground.pod_spec("1m");
    let pod = move |number| {
        let name = name(number);
        let metadata = json!({"name": name, "labels": {"app": name}});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}).to_string()
    };
    let path = format!("/api/v1/namespaces/{namespace}");
    bench.prepare("Services created", count, &format!("{path}/services"), service).await?;
    bench.prepare("pods created", count, &format!("{path}/pods"), pod).await?;
    let all = usize::try_from(count).unwrap_or(usize::MAX);
    tracker.wait("binding the pods", TIMEOUT, |counts| counts.bound == all).await?;

    let list = bench.cluster.client(0).namespaced::<Service>(namespace).list(&ListParams::default()).await?;
    let mut found: BTreeMap<String, SocketAddr> = BTreeMap::new();
    for service in list.items {
        let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
        let address = address.and_then(|text| text.parse::<Ipv4Addr>().ok());
        let address = required(address, "IPv4 cluster IP")?;
        found.insert(service.metadata.name.clone().unwrap_or_default(), (address, PORT).into());
    }
    ensure!(found.len() == all, "{} of {count} Services are there", found.len());
    Ok(found.into_values().collect())
}

/// Where this machine sends from on the way to Services.
async fn own_address(bench: &Bench) -> Result<Ipv4Addr> {
    let service = bench.cluster.client(0).namespaced::<Service>("default").get("kubernetes").await;
    let spec = service.context("looking for the Service kubernetes")?.spec;
    let service = required(spec.and_then(|spec| spec.cluster_ip), "cluster IP")?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("opening a socket")?;
    // Nothing is sent by that.
    socket
        .connect((service.as_str(), PORT))
        .context("this machine has no way to Services: run it on a node of the cluster")?;
    match socket.local_addr().context("opening a socket")? {
        SocketAddr::V4(address) => Ok(*address.ip()),
        SocketAddr::V6(address) => bail!("{address} is no IPv4 address"),
    }
}

/// Takes connections and ends them, until the guard is dropped.
fn accept(listener: TcpListener) -> DropGuard {
    let stop = CancellationToken::new();
    let ended = stop.clone();
    task::spawn(debug_span!("pods"), async move {
        let accepting = async { while listener.accept().await.is_ok() {} };
        tokio::select! {
            () = accepting => {}
            () = ended.cancelled() => {}
        }
    });
    stop.drop_guard()
}

/// One attempt: whether it connected, `None` when nobody answered.
async fn attempt(service: SocketAddr, clock: &SharedClock) -> Result<Option<bool>> {
    tokio::select! {
        outcome = TcpStream::connect(service) => match outcome {
            Ok(_) => Ok(Some(true)),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Some(false)),
            Err(error) => Err(error).with_context(|| format!("connecting to {service}")),
        },
        () = clock.sleep(ATTEMPT_TIMEOUT) => Ok(None),
    }
}

/// Tries until an attempt has the outcome; returns when that was.
async fn until(service: SocketAddr, clock: &SharedClock, connected: bool) -> Result<Duration> {
    let deadline = clock.monotonic() + TIMEOUT;
    loop {
        let outcome = attempt(service, clock).await?;
        let now = clock.monotonic();
        if outcome == Some(connected) {
            return Ok(now);
        }
        let last = match outcome {
            Some(true) => "connected",
            Some(false) => "refused",
            None => "not answered: is this a node of the cluster?",
        };
        ensure!(now < deadline, "connections to {service} were {last} for {} s", TIMEOUT.as_secs());
        clock.sleep(RETRY_INTERVAL).await;
    }
}

#[derive(Default)]
struct Found {
    write: Histogram,
    slice: Histogram,
    connected: Histogram,
}

async fn ready_one_by_one(
    bench: &Bench,
    namespace: &str,
    address: Ipv4Addr,
    services: &[SocketAddr],
    slices: &Slices,
) -> Result<Found> {
    let clock = bench.clock();
    let progress = bench.progress("ready");
    let (ticker, mut found) = (progress.ticker(), Found::default());
    for (number, service) in (0..).zip(services) {
        let name = name(number);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
        let at = format!("{:.0}", clock.now());
        let status = json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}],
        }});
        let began = clock.monotonic();
        let write = async {
            bench.cluster.connection(0).patch(&path, STRATEGIC, status.to_string()).await.context("saying Ready")?;
            Ok(clock.monotonic())
        };
        let (written, connected) = tokio::try_join!(write, until(*service, clock, true))?;
        let seen = slices.ready(&name, clock).await?;
        found.write.record(written.saturating_sub(began));
        // Both may be faster than the answer.
        found.slice.record(seen.saturating_sub(written));
        found.connected.record(connected.saturating_sub(written));
        ticker.done();
    }
    Ok(found)
}

/// When the slice of each Service first had a ready endpoint.
struct Slices {
    seen: watch::Receiver<HashMap<String, Duration>>,
    _stop: DropGuard,
}

struct Sighting {
    seen: watch::Sender<HashMap<String, Duration>>,
    clock: SharedClock,
}

impl Slices {
    fn watch(bench: &Bench, namespace: &str) -> Self {
        let stop = CancellationToken::new();
        let (sender, seen) = watch::channel(HashMap::new());
        let sink: Arc<dyn Sink> = Arc::new(Sighting { seen: sender, clock: bench.clock().clone() });
        let scope = Scope {
            resource: resource_of::<EndpointSlice>(),
            namespace: namespace.to_owned(),
            label_selector: String::new(),
            field_selector: String::new(),
        };
        let watching = reflector::run(bench.cluster.client(1), scope, sink, stop.clone());
        task::spawn(debug_span!("slices"), watching);
        Self { seen, _stop: stop.drop_guard() }
    }

    async fn ready(&self, service: &str, clock: &SharedClock) -> Result<Duration> {
        let mut seen = self.seen.clone();
        tokio::select! {
            seen = seen.wait_for(|seen| seen.contains_key(service)) => {
                let seen = seen.context("the watch of EndpointSlices ended")?;
                Ok(seen.get(service).copied().unwrap_or_default())
            }
            () = clock.sleep(TIMEOUT) => {
                bail!("no EndpointSlice of {service} had a ready endpoint after {} s", TIMEOUT.as_secs())
            }
        }
    }
}

impl Sighting {
    fn see(&self, object: &StoredObject) {
        let slice: Value = serde_json::from_slice(&object.json).unwrap_or_default();
        let endpoints = slice["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
        let service = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str().unwrap_or_default();
        if endpoints.iter().any(|endpoint| endpoint["conditions"]["ready"] == true) {
            let now = self.clock.monotonic();
            self.seen.send_modify(|seen| {
                seen.entry(service.to_owned()).or_insert(now);
            });
        }
    }
}

impl Sink for Sighting {
    fn replace(&self, objects: BTreeMap<ObjectKey, Arc<StoredObject>>) {
        objects.values().for_each(|object| self.see(object));
    }

    fn upsert(&self, object: Arc<StoredObject>) {
        self.see(&object);
    }

    fn remove(&self, _last: Arc<StoredObject>) {}
}
