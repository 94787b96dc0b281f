//! The lifecycle of every long-lived part of the process, and the runner that starts and stops them.
//!
//! Invariant: a component starts after everything it depends on is ready, and stops before any of it does.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

/// How long a component may take to stop before the process leaves it behind.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

pub type ComponentError = Box<dyn std::error::Error + Send + Sync>;

/// A part of the rkube process that runs until shutdown.
///
/// ```text
/// Created ──run──► Starting ──ready()──► Running ──shutdown──► Stopped
///                     └────────── Err ──────┴──► the whole process stops
/// ```
///
/// # Guarantees
/// `run` is called once, after every component in `depends_on` has called `ready`.
/// # Assumptions
/// `run` returns within `stop_timeout` of `shutdown` and leaves no task behind.
pub trait Component: Send + 'static {
    fn name(&self) -> &'static str;
    fn depends_on(&self) -> &'static [&'static str];
    fn stop_timeout(&self) -> Duration {
        STOP_TIMEOUT
    }
    fn run(self: Box<Self>, ready: Ready, shutdown: Shutdown) -> BoxFuture<'static, Result<(), ComponentError>>;
}

/// Says that a component does its work. Dropping it unsaid means it never will.
pub struct Ready(watch::Sender<bool>);

impl Ready {
    pub fn ready(self) {
        self.0.send_replace(true);
    }
}

/// Resolves when the component is to stop.
#[derive(Clone)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}

/// A component from a function, for those that have no state of their own.
pub struct FnComponent<F> {
    name: &'static str,
    depends_on: &'static [&'static str],
    run: F,
}

/// A component that may take so much longer than others to stop.
pub struct Patient {
    pub component: Box<dyn Component>,
    pub extra: Duration,
}

impl Component for Patient {
    fn name(&self) -> &'static str {
        self.component.name()
    }

    fn depends_on(&self) -> &'static [&'static str] {
        self.component.depends_on()
    }

    fn stop_timeout(&self) -> Duration {
        self.component.stop_timeout() + self.extra
    }

    fn run(self: Box<Self>, ready: Ready, shutdown: Shutdown) -> BoxFuture<'static, Result<(), ComponentError>> {
        self.component.run(ready, shutdown)
    }
}

/// Makes a component of `run`.
pub fn component<F, R>(name: &'static str, depends_on: &'static [&'static str], run: F) -> Box<dyn Component>
where
    F: FnOnce(Ready, Shutdown) -> R + Send + 'static,
    R: Future<Output = Result<(), ComponentError>> + Send + 'static,
{
    Box::new(FnComponent { name, depends_on, run })
}

impl<F, R> Component for FnComponent<F>
where
    F: FnOnce(Ready, Shutdown) -> R + Send + 'static,
    R: Future<Output = Result<(), ComponentError>> + Send + 'static,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn depends_on(&self) -> &'static [&'static str] {
        self.depends_on
    }

    fn run(self: Box<Self>, ready: Ready, shutdown: Shutdown) -> BoxFuture<'static, Result<(), ComponentError>> {
        Box::pin((self.run)(ready, shutdown))
    }
}

/// Why the process stopped without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("component {name} depends on {missing}, which comes later or does not exist")]
    Order { name: &'static str, missing: &'static str },
    #[error("{name} stopped")]
    Failed {
        name: &'static str,
        #[source]
        source: ComponentError,
    },
    #[error("{name} ended without being asked to")]
    Ended { name: &'static str },
    #[error("{name} panicked: {message}")]
    Panicked { name: &'static str, message: String },
}

/// Runs components until `stop` resolves or one of them fails, then stops them in reverse order.
///
/// `on_ready` is called once when all are ready.
pub async fn supervise(
    components: Vec<Box<dyn Component>>,
    clock: SharedClock,
    stop: impl Future<Output = ()> + Send,
    on_ready: impl FnOnce() + Send,
) -> Result<(), SupervisorError> {
    check_order(&components)?;
    let mut running = Vec::with_capacity(components.len());
    let mut exits = FuturesUnordered::new();
    let mut readiness: BTreeMap<&'static str, watch::Receiver<bool>> = BTreeMap::new();

    for component in components {
        let name = component.name();
        let stop_timeout = component.stop_timeout();
        let (ready, is_ready) = watch::channel(false);
        let needs: Vec<_> = component.depends_on().iter().filter_map(|name| readiness.get(name).cloned()).collect();
        readiness.insert(name, is_ready);
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let span = info_span!("component", component = name);
        let handle = task::spawn(span.clone(), async move {
            for mut need in needs {
                // A dependency that will never be ready has failed, and is to be named for it: this one ends after it.
                if need.wait_for(|ready| *ready).await.is_err() {
                    token.cancelled().await;
                    return Ok(());
                }
            }
            component.run(Ready(ready), Shutdown(token)).instrument(span).await
        });
        let abort = handle.abort_handle();
        let (stopped, is_stopped) = watch::channel(false);
        exits.push(async move {
            let exit = handle.await;
            stopped.send_replace(true);
            (name, exit)
        });
        running.push((name, stop_timeout, shutdown, is_stopped, abort));
    }

    let everyone_ready = async {
        for is_ready in readiness.values_mut() {
            if is_ready.wait_for(|ready| *ready).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::pin!(everyone_ready, stop);
    let mut on_ready = Some(on_ready);
    let outcome = loop {
        tokio::select! {
            () = &mut stop => break Ok(()),
            () = &mut everyone_ready, if on_ready.is_some() => {
                if let Some(notify) = on_ready.take() {
                    notify();
                }
            }
            Some((name, exit)) = exits.next() => break Err(failure(name, exit)),
        }
    };
    if let Err(error) = &outcome {
        error!(error = %chain(error), "Stopping because a component failed");
    }

    // The exits must be polled for the components to be seen stopping.
    let drain = async { while exits.next().await.is_some() {} };
    let stop_all = async {
        for (name, stop_timeout, shutdown, mut is_stopped, abort) in running.into_iter().rev() {
            shutdown.cancel();
            tokio::select! {
                _ = is_stopped.wait_for(|stopped| *stopped) => {}
                () = clock.sleep(stop_timeout) => {
                    warn!(component = name, "Left a component behind that did not stop in time");
                    abort.abort();
                }
            }
        }
    };
    tokio::join!(drain, stop_all);
    info!("Stopped");
    outcome
}

fn failure(name: &'static str, exit: Result<Result<(), ComponentError>, tokio::task::JoinError>) -> SupervisorError {
    match exit {
        Ok(Ok(())) => SupervisorError::Ended { name },
        Ok(Err(source)) => SupervisorError::Failed { name, source },
        Err(error) => SupervisorError::Panicked { name, message: error.to_string() },
    }
}

/// A component can only depend on ones before it, so the list is the start order.
fn check_order(components: &[Box<dyn Component>]) -> Result<(), SupervisorError> {
    for (index, component) in components.iter().enumerate() {
        let earlier = &components[..index];
        for &missing in component.depends_on() {
            if !earlier.iter().any(|other| other.name() == missing) {
                return Err(SupervisorError::Order { name: component.name(), missing });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use rkube_apimachinery::clock::SystemClock;
    use tokio::sync::oneshot;

    use super::*;

    type Log = Arc<Mutex<Vec<String>>>;

    fn recorder(name: &'static str, depends_on: &'static [&'static str], log: &Log) -> Box<dyn Component> {
        let log = Arc::clone(log);
        component(name, depends_on, move |ready, shutdown| async move {
            log.lock().unwrap().push(format!("start {name}"));
            ready.ready();
            shutdown.requested().await;
            log.lock().unwrap().push(format!("stop {name}"));
            Ok(())
        })
    }

    #[tokio::test]
    async fn starts_in_order_and_stops_in_reverse() {
        let log = Log::default();
        let parts =
            vec![recorder("store", &[], &log), recorder("api", &["store"], &log), recorder("node", &["api"], &log)];
        let (stop, stopped) = oneshot::channel::<()>();
        let stop_when_ready = move || stop.send(()).unwrap();
        supervise(parts, SystemClock::shared(), async { stopped.await.unwrap() }, stop_when_ready).await.unwrap();
        let expected = ["start store", "start api", "start node", "stop node", "stop api", "stop store"];
        assert_eq!(*log.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn a_failure_stops_the_others_and_is_reported() {
        let log = Log::default();
        let failing = component("api", &["store"], |_, _| async { Err("port 6443 is in use".into()) });
        let parts = vec![recorder("store", &[], &log), failing];
        // Which of them ends first is up to the runtime; only one of them has failed.
        let waiting = ["scheduler", "controllers"].map(|name| recorder(name, &["api"], &log));
        let parts = parts.into_iter().chain(waiting).collect();
        let error = supervise(parts, SystemClock::shared(), std::future::pending(), || {}).await.unwrap_err();
        assert_eq!(chain(&error).to_string(), "api stopped: port 6443 is in use");
        assert_eq!(log.lock().unwrap().last().unwrap(), "stop store");
    }

    #[tokio::test]
    async fn a_dependency_on_a_later_component_is_refused() {
        let log = Log::default();
        let parts = vec![recorder("api", &["store"], &log), recorder("store", &[], &log)];
        let error = supervise(parts, SystemClock::shared(), std::future::pending(), || {}).await.unwrap_err();
        assert_eq!(error.to_string(), "component api depends on store, which comes later or does not exist");
    }
}
