//! Runs controllers: workers, back-off, panic guard, spans. Written once for all of them.
//!
//! Behaves as the worker loops of `pkg/controller/*`, v1.36.

use std::any::Any;
use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::task;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info_span, warn};

use crate::transport::ClientError;
use crate::workqueue::{Item, WorkQueue};

/// When to look at a key again although nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    Never,
    After(Duration),
}

impl Requeue {
    pub fn after(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Never, Self::After)
    }

    /// The earlier of two.
    #[must_use]
    pub fn or_sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Never, other) => other,
            (one, Self::Never) => one,
            (Self::After(one), Self::After(other)) => Self::After(one.min(other)),
        }
    }
}

/// Why a sync did not finish. The key comes back after its back-off.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{action}")]
    During {
        action: Cow<'static, str>,
        #[source]
        source: ClientError,
    },
    #[error("{0}")]
    Other(Cow<'static, str>),
    /// Several independent steps failed; the first is the source.
    #[error("{count} steps failed")]
    Several {
        count: usize,
        #[source]
        first: Box<SyncError>,
    },
}

impl SyncError {
    pub fn other(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Other(text.into())
    }

    pub fn during(action: impl Into<Cow<'static, str>>) -> impl FnOnce(ClientError) -> Self {
        let action = action.into();
        move |source| Self::During { action, source }
    }

    /// `Ok` for none, the error itself for one.
    pub fn all(errors: Vec<Self>) -> Result<(), Self> {
        let count = errors.len();
        match errors.into_iter().next() {
            None => Ok(()),
            Some(only) if count == 1 => Err(only),
            Some(first) => Err(Self::Several { count, first: Box::new(first) }),
        }
    }

    /// The API's answer behind this error, if there is one.
    pub fn client_error(&self) -> Option<&ClientError> {
        match self {
            Self::Client(source) | Self::During { source, .. } => Some(source),
            Self::Several { first, .. } => first.client_error(),
            Self::Other(_) => None,
        }
    }

    pub fn is_conflict(&self) -> bool {
        self.client_error().is_some_and(ClientError::is_conflict)
    }

    pub fn is_not_found(&self) -> bool {
        self.client_error().is_some_and(ClientError::is_not_found)
    }
}

/// The work of one controller.
///
/// # Guarantees
/// The runner never calls `sync` twice at once for one key, and calls it again after an error.
/// # Assumptions
/// `sync` reads caches and the clock, never the event that queued the key; it may be dropped at any await.
pub trait Reconciler<T: Item = ObjectKey>: Send + Sync + 'static {
    fn sync(&self, key: &T) -> impl Future<Output = Result<Requeue, SyncError>> + Send;
}

/// [`Reconciler`] without its future's type, so that the loop below is compiled once per key type.
trait Erased<T>: Send + Sync {
    fn sync<'a>(&'a self, key: &'a T) -> BoxFuture<'a, Result<Requeue, SyncError>>;
}

impl<T: Item, R: Reconciler<T>> Erased<T> for R {
    fn sync<'a>(&'a self, key: &'a T) -> BoxFuture<'a, Result<Requeue, SyncError>> {
        Box::pin(Reconciler::sync(self, key))
    }
}

/// A queue and who works on it.
pub struct Runner<T: Item = ObjectKey> {
    name: &'static str,
    queue: WorkQueue<T>,
    reconciler: Arc<dyn Erased<T>>,
    workers: usize,
    retries_max: Option<u32>,
}

impl<T: Item> Runner<T> {
    pub fn new(name: &'static str, queue: WorkQueue<T>, reconciler: Arc<impl Reconciler<T>>) -> Self {
        Self { name, queue, reconciler, workers: 5, retries_max: None }
    }

    /// How many keys are worked on at once.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// After how many failures in a row a key is dropped until its next event. Without a limit by default.
    #[must_use]
    pub fn retries_max(mut self, retries: u32) -> Self {
        self.retries_max = Some(retries);
        self
    }

    /// Works until `shutdown`; keys in progress are dropped at their next await, which is as safe as a crash.
    /// Call it when the informers behind the reconciler have synced.
    pub async fn run(self, shutdown: CancellationToken) {
        let shared = Arc::new(self);
        let mut workers = Vec::with_capacity(shared.workers);
        for worker in 0..shared.workers {
            let runner = Arc::clone(&shared);
            let stop = shutdown.clone();
            let span = info_span!("controller", component = shared.name, worker);
            workers.push(task::spawn(span, async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = runner.work() => {}
                }
            }));
        }
        shutdown.cancelled().await;
        shared.queue.shut_down();
        for worker in workers {
            if worker.await.is_err() {
                error!(component = shared.name, "Worker ended abnormally");
            }
        }
    }

    async fn work(&self) {
        while let Some(key) = self.queue.get().await {
            let span = info_span!("sync", key = ?key);
            let outcome = AssertUnwindSafe(self.reconciler.sync(&key)).catch_unwind().instrument(span).await;
            self.settle(&key, outcome);
            self.queue.done(&key);
        }
    }

    fn settle(&self, key: &T, outcome: Result<Result<Requeue, SyncError>, Box<dyn Any + Send>>) {
        match outcome {
            Ok(Ok(Requeue::Never)) => self.queue.forget(key),
            Ok(Ok(Requeue::After(delay))) => {
                self.queue.forget(key);
                self.queue.add_after(key.clone(), delay);
            }
            Ok(Err(error)) => {
                if self.retries_max.is_some_and(|limit| self.queue.num_requeues(key) >= limit) {
                    warn!(component = self.name, key = ?key, error = %chain(&error), "Dropped key out of the queue");
                    return self.queue.forget(key);
                }
                // Losing a race is how optimistic concurrency works, and no news.
                if error.is_conflict() {
                    debug!(component = self.name, key = ?key, error = %chain(&error), "Sync lost a race, retrying");
                } else {
                    warn!(component = self.name, key = ?key, error = %chain(&error), "Sync failed, retrying");
                }
                self.queue.add_rate_limited(key.clone());
            }
            Err(panic) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .copied()
                    .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                    .unwrap_or("unknown");
                error!(component = self.name, key = ?key, panic = text, "Sync panicked, retrying");
                self.queue.add_rate_limited(key.clone());
            }
        }
    }
}
