//! The leases by which servers of one datastore know of one another.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::coordination::v1::{Lease, LeaseSpec};
use rkube_api::meta::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use rkube_client::owner::uid_of;
use rkube_client::{Client, DeleteOptions, SyncError};
use sha2::{Digest, Sha256};
use tracing::info;

use super::LEASE_TIME;

pub(super) const NAMESPACE: &str = "kube-system";
pub(super) const SELECTOR: &str = "apiserver.kubernetes.io/identity=kube-apiserver";
const LABEL: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");
const ADDRESS_ANNOTATION: &str = "rkube.io/advertise-address";

/// What this process saw of leases, and did.
#[derive(Default)]
pub(super) struct Observed {
    /// By name: the version, and since when it is the same.
    seen: HashMap<String, (Option<String>, Duration)>,
    pub(super) renewed: Option<Duration>,
    pub(super) has_written_ports: bool,
}

impl Observed {
    /// Those that changed lately, and those that did not. A lease seen for the first time gets its whole time.
    pub(super) fn judge(&mut self, leases: Vec<Arc<Lease>>, now: Duration) -> (Vec<Arc<Lease>>, Vec<Arc<Lease>>) {
        let mut seen = HashMap::new();
        let (living, dead) = leases.into_iter().partition(|lease| {
            let name = lease.metadata.name.clone().unwrap_or_default();
            let version = lease.metadata.resource_version.clone();
            let since = match self.seen.remove(&name) {
                Some((known, since)) if known == version => since,
                _ => now,
            };
            seen.insert(name, (version, since));
            now.saturating_sub(since) < LEASE_TIME
        });
        self.seen = seen;
        (living, dead)
    }
}

pub(super) fn address_of(lease: &Lease) -> Option<IpAddr> {
    lease.metadata.annotations.as_ref()?.get(ADDRESS_ANNOTATION)?.parse().ok()
}

/// One per address and port: a server that comes back finds its own.
fn name_of(address: IpAddr, port: u16) -> String {
    let digest = Sha256::digest(SocketAddr::new(address, port).to_string());
    let hex: String = digest.iter().take(13).map(|byte| format!("{byte:02x}")).collect();
    format!("apiserver-{hex}")
}

pub(super) async fn renew(client: &Client, address: IpAddr, port: u16) -> Result<(), SyncError> {
    let api = client.namespaced::<Lease>(NAMESPACE);
    let name = name_of(address, port);
    let renewing = SyncError::during("renewing the lease of this server");
    let mut lease = match api.get(&name).await {
        Ok(lease) => lease,
        Err(error) if error.is_not_found() => {
            Lease { metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() }, spec: None }
        }
        Err(error) => return Err(renewing(error)),
    };
    let metadata = &mut lease.metadata;
    metadata.labels.get_or_insert_default().insert(LABEL.0.to_owned(), LABEL.1.to_owned());
    let annotations: &mut BTreeMap<_, _> = metadata.annotations.get_or_insert_default();
    annotations.insert(ADDRESS_ANNOTATION.to_owned(), address.to_string());
    let is_new = metadata.resource_version.is_none();
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(name),
        lease_duration_seconds: i32::try_from(LEASE_TIME.as_secs()).ok(),
        renew_time: Some(MicroTime(client.clock().now())),
        ..lease.spec.unwrap_or_default()
    });
    let written = if is_new { api.create(&lease).await } else { api.update(&lease).await };
    written.map(drop).map_err(renewing)
}

pub(super) async fn remove(client: &Client, address: IpAddr, port: u16) -> Result<(), SyncError> {
    let api = client.namespaced::<Lease>(NAMESPACE);
    match api.delete(&name_of(address, port), &DeleteOptions::default()).await {
        Err(error) if !error.is_not_found() => Err(SyncError::during("removing the lease of this server")(error)),
        _ => Ok(()),
    }
}

/// Deletes the lease of a server that is gone, unless it has just come back.
pub(super) async fn collect(client: &Client, lease: &Lease) -> Result<(), SyncError> {
    let name = lease.metadata.name.as_deref().unwrap_or_default();
    let version = lease.metadata.resource_version.as_deref().unwrap_or_default();
    let options = DeleteOptions::uid(uid_of(lease)).resource_version(version);
    match client.namespaced::<Lease>(NAMESPACE).delete(name, &options).await {
        Err(error) if !(error.is_not_found() || error.is_conflict()) => {
            Err(SyncError::during("deleting the lease of a server that is gone")(error))
        }
        _ => {
            info!(lease = name, "Deleted the lease of an API server that is gone");
            Ok(())
        }
    }
}
