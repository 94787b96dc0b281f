//! What every controller is given, and the row that describes it.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_apimachinery::clock::SharedClock;
use rkube_client::{Client, EventRecorder, InformerFactory, Reconciler, Runner, WorkQueue};
use tokio_util::sync::CancellationToken;

use crate::config::ControllerConfig;

/// The world as controllers see it: the API by client and caches, events, time, and settings.
#[derive(Clone)]
pub struct ControllerContext {
    pub client: Client,
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

    /// A client that names the controller in its user agent.
    pub fn client_for(&self, name: &str) -> Client {
        self.client.with_user_agent(&format!("rkube/{name}"))
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
