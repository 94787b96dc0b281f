//! The `kubernetes` Service: how pods find the API servers.
//!
//! Every server runs it beside its API, whoever leads. It makes the Service, and keeps its Endpoints and
//! EndpointSlice at the addresses of all servers that live.
//!
//! Watches  v1 Service and Endpoints, discovery.k8s.io/v1 EndpointSlice `default/kubernetes`; Lease `kube-system/apiserver-*`
//! Writes   all of them
//! Behaves as  pkg/controlplane/controller/{kubernetesservice,apiserverleasegc}, pkg/controlplane/reconcilers/lease.go,
//!             v1.36
//!
//! Invariant: a server's address is listed while its lease is seen to change, and its own always. The lease of
//! another is judged by how long it was seen unchanged on this machine's own clock: clocks are never compared.
//!
//! // Differs from upstream: the leases are the identity leases of the API servers, not hidden keys of the datastore;
//! and a server whose datastore nobody shares writes none, nor takes itself off the list for a restart.

mod endpoints;
mod leases;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::k8s::coordination::v1::Lease;
use rkube_api::k8s::core::v1::{Endpoints, Service};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::chain::chain;
use rkube_client::{Client, Lister, Reconciler, Requeue, Runner, SyncError, WorkQueue};
use tracing::warn;

use crate::context::{ControllerContext, Descriptor, Running};
use leases::Observed;

const NAME: &str = "kubernetes-service-controller";
const NAMESPACE: &str = "default";
const SERVICE: &str = "kubernetes";
/// How often a server says that it lives, and for how long that is believed.
const INTERVAL: Duration = Duration::from_secs(10);
const LEASE_TIME: Duration = Duration::from_secs(15);
/// How long a server that stops tries to take itself off the list.
const FAREWELL_TIMEOUT: Duration = INTERVAL.saturating_mul(2);

pub(crate) const KUBERNETES_SERVICE: Descriptor = Descriptor::new(NAME, NAME, start);

/// What an API server is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiServer {
    pub service_ip: IpAddr,
    pub https_port: u16,
    /// What others reach it by; `None` for one that only this machine can reach.
    pub address: Option<IpAddr>,
    /// Whether other servers may use the same datastore.
    pub shares_datastore: bool,
}

/// Makes the Service and, for a server that is alone, where it leads. For the first moments of a server, before
/// anything watches; the controller takes over from there.
pub async fn seed(client: &Client, api_server: &ApiServer) -> Result<(), SyncError> {
    endpoints::ensure_service(client, api_server).await?;
    match api_server.address {
        Some(address) if !api_server.shares_datastore => {
            endpoints::reconcile(client, &[address], api_server.https_port, true).await
        }
        _ => Ok(()),
    }
}

struct KubernetesService {
    client: Client,
    api_server: ApiServer,
    leases: Lister<Lease>,
    observed: Mutex<Observed>,
}

fn start(context: &ControllerContext) -> Running {
    let Some(api_server) = context.config.api_server.clone() else {
        return Box::pin(std::future::ready(()));
    };
    let only = format!("metadata.name={SERVICE}");
    let queue: WorkQueue<()> = context.queue("kubernetes_service");
    let wake = |queue: &WorkQueue<()>| {
        let queue = queue.clone();
        move |_: &_| queue.add(())
    };
    context.informers.scoped::<Service>(NAMESPACE, "", &only).core().add_handler(wake(&queue));
    context.informers.scoped::<Endpoints>(NAMESPACE, "", &only).core().add_handler(wake(&queue));
    context.informers.scoped::<EndpointSlice>(NAMESPACE, "", &only).core().add_handler(wake(&queue));
    let leases = context.informers.scoped::<Lease>(leases::NAMESPACE, leases::SELECTOR, "");
    leases.core().add_handler(wake(&queue));
    queue.add(());
    let controller = Arc::new(KubernetesService {
        client: context.client_for(NAME),
        api_server,
        leases: leases.lister(),
        observed: Mutex::default(),
    });
    let runner = Runner::new(NAME, queue, Arc::clone(&controller)).workers(1);
    let stop = context.shutdown.clone();
    Box::pin(async move {
        runner.run(stop).await;
        controller.farewell().await;
    })
}

impl KubernetesService {
    /// The addresses of the servers that live, and the leases of those that do not.
    fn masters(&self) -> (Vec<IpAddr>, Vec<Arc<Lease>>) {
        let now = self.client.clock().monotonic();
        let (living, dead) = self.observed.lock().judge(self.leases.list_all(leases::NAMESPACE), now);
        let mut masters: Vec<IpAddr> = living.iter().filter_map(|lease| leases::address_of(lease)).collect();
        masters.extend(self.api_server.address);
        masters.sort_by_key(IpAddr::to_string);
        masters.dedup();
        (masters, dead)
    }

    /// Says that this server lives, if it is time to.
    async fn renew(&self, address: IpAddr) -> Result<(), SyncError> {
        let now = self.client.clock().monotonic();
        if self.observed.lock().renewed.is_some_and(|at| now.saturating_sub(at) < INTERVAL) {
            return Ok(());
        }
        leases::renew(&self.client, address, self.api_server.https_port).await?;
        self.observed.lock().renewed = Some(now);
        Ok(())
    }

    async fn farewell(&self) {
        let Some(address) = self.api_server.address.filter(|_| self.api_server.shares_datastore) else { return };
        let removal = async {
            leases::remove(&self.client, address, self.api_server.https_port).await?;
            let (mut masters, _) = self.masters();
            masters.retain(|master| *master != address);
            endpoints::reconcile(&self.client, &masters, self.api_server.https_port, false).await
        };
        let outcome = tokio::select! {
            outcome = removal => outcome,
            () = self.client.clock().sleep(FAREWELL_TIMEOUT) => Err(SyncError::other("the datastore does not answer")),
        };
        if let Err(error) = outcome {
            warn!(error = %chain(&error), "Could not take this server off the kubernetes Service; its lease will end");
        }
    }
}

impl Reconciler<()> for KubernetesService {
    async fn sync(&self, (): &()) -> Result<Requeue, SyncError> {
        endpoints::ensure_service(&self.client, &self.api_server).await?;
        let Some(address) = self.api_server.address else { return Ok(Requeue::Never) };
        // Ports are every server's own: of several, none corrects those of the others.
        let port = self.api_server.https_port;
        if !self.api_server.shares_datastore {
            endpoints::reconcile(&self.client, &[address], port, true).await?;
            return Ok(Requeue::Never);
        }
        self.renew(address).await?;
        let is_first = !std::mem::replace(&mut self.observed.lock().has_written_ports, true);
        let (masters, dead) = self.masters();
        endpoints::reconcile(&self.client, &masters, port, is_first).await?;
        for lease in dead {
            leases::collect(&self.client, &lease).await?;
        }
        Ok(Requeue::After(INTERVAL / 2))
    }
}
