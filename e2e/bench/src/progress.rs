//! One line a second on standard error while a run lasts: how far it is, how fast, what failed.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use tokio::task::JoinHandle;
use tracing::debug_span;

const INTERVAL: Duration = Duration::from_secs(1);

/// Counts what is done; several workers share one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticker(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
}

impl Ticker {
    pub(crate) fn done(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.done.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.0.failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Prints until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    ticker: Ticker,
    printer: Option<JoinHandle<()>>,
}

impl Progress {
    /// Counts `what`; prints nothing when `quiet`.
    pub(crate) fn start(what: &'static str, clock: &SharedClock, quiet: bool) -> Self {
        let ticker = Ticker::default();
        let printer = (!quiet).then(|| {
            let (counts, clock) = (ticker.clone(), clock.clone());
            task::spawn(debug_span!("progress"), async move {
                let (mut before, mut seconds) = (0, 0);
                loop {
                    clock.sleep(INTERVAL).await;
                    seconds += INTERVAL.as_secs();
                    let done = counts.0.done.load(Ordering::Relaxed);
                    let failed = counts.0.failed.load(Ordering::Relaxed);
                    let failed = if failed == 0 { String::new() } else { format!(", {failed} failed") };
                    say(&format!("{seconds:>4} s  {done} {what}, {}/s{failed}", done - before));
                    before = done;
                }
            })
        });
        Self { ticker, printer }
    }

    #[cfg(test)]
    pub(crate) fn silent() -> Self {
        Self { ticker: Ticker::default(), printer: None }
    }

    pub(crate) fn ticker(&self) -> Ticker {
        self.ticker.clone()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(printer) = &self.printer {
            printer.abort();
        }
    }
}

/// A line on standard error. Nobody may be reading it, which is no reason to stop.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
