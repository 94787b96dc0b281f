//! Leases renewed in time, and once in a while a status that says the same again.
//!
//! Behaves as `k8s.io/component-helpers/apimachinery/lease/controller.go` and `nodeStatusReportFrequency`, v1.36: a renewal
//! is an update of the version last seen; after a conflict the lease is read again.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Method;
use rkube_apimachinery::clock::SharedClock;
use rkube_client::transport::ClientError;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Shape, status};
use crate::cluster::Cluster;
use crate::progress::say;

/// Renewals in flight. A server that is slower than this allows gets them later, not all at once.
const IN_FLIGHT: usize = 32;
/// An unchanged status is sent so often, as kubelets do.
const STATUS_PERIOD: Duration = Duration::from_secs(300);
/// As kubelets: a node is given up four renewals after its last.
const RENEWALS_PER_DURATION: u64 = 4;

pub(super) fn path(name: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}")
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    metadata: AnswerMetadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AnswerMetadata {
    resource_version: String,
}

/// One node's lease.
#[derive(Clone)]
struct Lease {
    index: usize,
    name: String,
    /// Empty until the lease was seen.
    version: String,
    /// Whether it was ever written by us.
    held: bool,
    status_sent: Duration,
}

/// Renews the leases of `count` nodes, each once per interval, evenly spread. `all_held` is cancelled when each has one.
pub(super) async fn run(
    cluster: Cluster,
    shape: Shape,
    count: usize,
    all_held: CancellationToken,
    shutdown: CancellationToken,
) {
    let clock = cluster.clock.clone();
    let interval = Duration::from_secs(shape.lease_interval);
    let start = clock.monotonic();
    let lease =
        |index| Lease { index, name: shape.name(index), version: String::new(), held: false, status_sent: start };
    let mut missing = count;
    let mut leases: Vec<Option<Lease>> = (0..count).map(|index| Some(lease(index))).collect();
    let mut in_flight = FuturesUnordered::new();
    let mut reported = Duration::ZERO;
    // The first round is as fast as the server allows: nodes without a lease are not trusted for long.
    let mut slot: u64 = 0;
    loop {
        let (round, index) = (slot / count as u64, (slot % count as u64) as usize);
        let offset = interval.as_nanos() as u64 * index as u64 / count as u64;
        let due = start + interval * u32::try_from(round).unwrap_or(u32::MAX) + Duration::from_nanos(offset);
        let wait = if round == 0 { Duration::ZERO } else { due.saturating_sub(clock.monotonic()) };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some((lease, result)) = in_flight.next() => {
                let (mut lease, result): (Lease, Result<(), ClientError>) = (lease, result);
                let index = lease.index;
                if result.is_ok() && !std::mem::replace(&mut lease.held, true) {
                    missing -= 1;
                    if missing == 0 {
                        all_held.cancel();
                    }
                }
                leases[index] = Some(lease);
                if let Err(error) = result {
                    let now = clock.monotonic();
                    // One line a second says that something is wrong; five thousand would not say more.
                    if now.saturating_sub(reported) > Duration::from_secs(1) {
                        reported = now;
                        say(&format!("lease of node {} not renewed: {}", shape.name(index), rkube_apimachinery::chain::chain(&error)));
                    }
                }
            }
            () = sleep(&clock, wait), if in_flight.len() < IN_FLIGHT => {
                slot += 1;
                // Still on its way from the last round: this one is left out.
                if let Some(lease) = leases[index].take() {
                    in_flight.push(renew(&cluster, lease, shape.lease_interval));
                }
            }
        }
    }
}

async fn sleep(clock: &SharedClock, duration: Duration) {
    if !duration.is_zero() {
        clock.sleep(duration).await;
    }
}

async fn renew(cluster: &Cluster, mut lease: Lease, interval: u64) -> (Lease, Result<(), ClientError>) {
    let result = try_renew(cluster, &mut lease, interval).await;
    if result.is_err() {
        lease.version.clear();
    }
    (lease, result)
}

async fn try_renew(cluster: &Cluster, lease: &mut Lease, interval: u64) -> Result<(), ClientError> {
    let connection = cluster.connection(lease.index);
    let path = path(&lease.name);
    if lease.version.is_empty() {
        match connection.send(Method::GET, &path, "").await {
            Ok(answer) => lease.version = version(answer.body()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let mut object = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": lease.name, "namespace": "kube-node-lease"},
        "spec": {
            "holderIdentity": lease.name,
            "leaseDurationSeconds": interval * RENEWALS_PER_DURATION,
            "renewTime": format!("{:.6}", cluster.clock.now()),
        },
    });
    let (method, path) = if lease.version.is_empty() {
        (Method::POST, path.rsplit_once('/').map_or("", |(collection, _)| collection))
    } else {
        object["metadata"]["resourceVersion"] = lease.version.as_str().into();
        (Method::PUT, path.as_str())
    };
    let answer = connection.send(method, path, object.to_string()).await?;
    lease.version = version(answer.body());
    let now = cluster.clock.monotonic();
    if now.saturating_sub(lease.status_sent) >= STATUS_PERIOD {
        lease.status_sent = now;
        let body = status::node_heartbeat(&format!("{:.0}", cluster.clock.now())).to_string();
        connection.patch(&format!("/api/v1/nodes/{}/status", lease.name), status::STRATEGIC, body).await?;
    }
    Ok(())
}

/// Empty if the answer has none, which makes the next renewal read the lease.
fn version(answer: &[u8]) -> String {
    serde_json::from_slice::<Answer>(answer).unwrap_or_default().metadata.resource_version
}
