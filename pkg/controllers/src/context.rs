//! What every controller is given, and the row that describes it.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_apimachinery::clock::SharedClock;
use rkube_client::{Client, EventRecorder, InformerFactory, Reconciler, Runner, WorkQueue};
use tokio_util::sync::CancellationToken;

use crate::config::ControllerConfig;

/// Makes the client by which a service account of `kube-system` acts.
pub type AsAccount = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// The world as controllers see it: the API by client and caches, events, time, and settings.
#[derive(Clone)]
pub struct ControllerContext {
    /// Fills the caches, and acts for what is no single controller.
    pub client: Client,
    /// Each controller acts as itself, and may do what its role allows. `None`: all act as `client`.
    pub as_account: Option<AsAccount>,
    pub informers: InformerFactory,
    pub recorder: EventRecorder,
    pub config: Arc<ControllerConfig>,
    /// Ends every controller.
    pub shutdown: CancellationToken,
}

/// A controller that is set up; polling it works until shutdown. It is polled when all caches have synced.
pub type Running = BoxFuture<'static, ()>;

/// One controller in the table.
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// Canonical, as in `--controllers`, logs, metrics and the service account.
    pub name: &'static str,
    /// Names from before they were made uniform, accepted in settings.
    pub alias: &'static str,
    pub enabled_by_default: bool,
    /// Asks for informers, adds handlers, and returns what is to be run.
    pub start: fn(&ControllerContext) -> Running,
}

impl ControllerContext {
    pub fn clock(&self) -> &SharedClock {
        self.client.clock()
    }

    /// A client that acts as the controller and names it in its user agent, after the component it is part of.
    pub fn client_for(&self, name: &str) -> Client {
        let client = match (&self.as_account, service_account(name)) {
            (Some(as_account), Some(account)) => as_account(account),
            _ => self.client.clone(),
        };
        client.acting_as(name)
    }

    pub fn queue<T: rkube_client::workqueue::Item>(&self, name: &'static str) -> WorkQueue<T> {
        WorkQueue::new(name, Arc::clone(self.clock()))
    }

    /// The usual controller: one queue, several workers, one reconciler.
    pub fn run<T: rkube_client::workqueue::Item>(
        &self,
        name: &'static str,
        queue: &WorkQueue<T>,
        reconciler: &Arc<impl Reconciler<T>>,
        workers: usize,
    ) -> Running {
        let runner = Runner::new(name, queue.clone(), Arc::clone(reconciler)).workers(workers);
        Box::pin(runner.run(self.shutdown.clone()))
    }
}

/// The service account of a controller: upstream's names from before controllers' own were made uniform, which
/// roles are bound to. `None` for the one that makes the tokens of service accounts; it is the manager itself.
///
/// Behaves as the names given to client builders in cmd/kube-controller-manager/app, v1.36.
fn service_account(controller: &str) -> Option<&str> {
    Some(match controller {
        "serviceaccount-token-controller" => return None,
        "bootstrap-signer-controller" => "bootstrap-signer",
        "certificatesigningrequest-approving-controller"
        | "certificatesigningrequest-cleaner-controller"
        | "certificatesigningrequest-signing-controller" => "certificate-controller",
        "daemonset-controller" => "daemon-set-controller",
        "endpoints-controller" => "endpoint-controller",
        "endpointslice-mirroring-controller" => "endpointslicemirroring-controller",
        "garbage-collector-controller" => "generic-garbage-collector",
        "horizontal-pod-autoscaler-controller" => "horizontal-pod-autoscaler",
        "legacy-serviceaccount-token-cleaner-controller" => "legacy-service-account-token-cleaner",
        "node-ipam-controller" | "node-lifecycle-controller" | "taint-eviction-controller" => "node-controller",
        "persistentvolume-binder-controller" => "persistent-volume-binder",
        "persistentvolume-expander-controller" => "expand-controller",
        "persistentvolume-protection-controller" => "pv-protection-controller",
        "persistentvolumeclaim-protection-controller" => "pvc-protection-controller",
        "pod-garbage-collector-controller" => "pod-garbage-collector",
        "replicationcontroller-controller" => "replication-controller",
        "resourceclaim-controller" => "resource-claim-controller",
        "root-ca-certificate-publisher-controller" => "root-ca-cert-publisher",
        "service-cidr-controller" => "service-cidrs-controller",
        // Load balancer addresses are a cloud provider's business upstream.
        "service-lb-controller" => "service-controller",
        "serviceaccount-controller" => "service-account-controller",
        "token-cleaner-controller" => "token-cleaner",
        same => same,
    })
}

impl Descriptor {
    pub(crate) const fn new(name: &'static str, alias: &'static str, start: fn(&ControllerContext) -> Running) -> Self {
        Self { name, alias, enabled_by_default: true, start }
    }

    /// Only runs where it is named.
    pub(crate) const fn off_by_default(mut self) -> Self {
        self.enabled_by_default = false;
        self
    }

    /// Whether settings like `*,-job-controller` leave this controller on. Later entries do not override
    /// earlier ones: a name beats the star.
    pub fn is_enabled(&self, wanted: &BTreeSet<String>) -> bool {
        let named = |prefix: &str| {
            wanted.contains(&format!("{prefix}{}", self.name)) || wanted.contains(&format!("{prefix}{}", self.alias))
        };
        if named("-") {
            return false;
        }
        named("") || (self.enabled_by_default && (wanted.is_empty() || wanted.contains("*")))
    }
}
