//! Closed-loop load: workers that each have one operation in flight until a count or a time is reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use rkube_client::transport::ClientError;
use tracing::debug_span;

use crate::progress::Progress;
use crate::report::Report;
use crate::stats::Histogram;

/// How much load, and for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct Plan {
    /// Operations in flight
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub(crate) concurrency: usize,
    /// Operations in all
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    pub(crate) count: Option<u64>,
    /// Seconds to run; 10 if no count is given either
    #[arg(long, value_name = "SECONDS")]
    pub(crate) duration: Option<u64>,
}

impl Plan {
    pub(crate) fn check(&self) -> Result<()> {
        ensure!((1..=100_000).contains(&self.concurrency), "--concurrency {} is not in 1..=100000", self.concurrency);
        ensure!(self.count != Some(0), "--count 0 would measure nothing");
        ensure!(self.duration != Some(0), "--duration 0 would measure nothing");
        Ok(())
    }

    fn duration(&self) -> Option<Duration> {
        match (self.count, self.duration) {
            (Some(_), _) => None,
            (None, seconds) => Some(Duration::from_secs(seconds.unwrap_or(10))),
        }
    }
}

/// Failed operations by kind, with one full text as an example of each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Errors {
    pub(crate) counts: BTreeMap<String, u64>,
    examples: BTreeMap<String, String>,
}

impl Errors {
    pub(crate) fn record(&mut self, error: &ClientError) {
        self.record_kind(kind(error), || chain(error).to_string());
    }

    pub(crate) fn record_kind(&mut self, kind: String, example: impl FnOnce() -> String) {
        self.examples.entry(kind.clone()).or_insert_with(example);
        *self.counts.entry(kind).or_default() += 1;
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (kind, count) in other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        for (kind, example) in other.examples {
            self.examples.entry(kind).or_insert(example);
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// An error when there is at least one and nothing succeeded, with what was said.
    pub(crate) fn fail_if_nothing(&self, succeeded: u64, what: &str) -> Result<()> {
        match self.examples.values().next() {
            Some(example) if succeeded == 0 => bail!("every {what} failed: {example}"),
            _ => Ok(()),
        }
    }
}

/// `409 AlreadyExists`, `no answer`: what errors are counted by.
fn kind(error: &ClientError) -> String {
    match error {
        ClientError::Api(status) => format!("{} {}", status.code(), status.status().reason),
        ClientError::Unreachable { .. } => "no answer".to_owned(),
        ClientError::Request { .. } => "request not valid".to_owned(),
        ClientError::Decode { .. } => "answer not understood".to_owned(),
    }
}

/// What a closed loop did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Of the operations that succeeded.
    pub(crate) latencies: Histogram,
    pub(crate) errors: Errors,
    pub(crate) elapsed: Duration,
}

impl Outcome {
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.count() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(crate) fn into_report(self, report: &mut Report) {
        report
            .figure("throughput", self.rate(), "/s")
            .figure("operations", self.latencies.count() as f64, "")
            .figure("elapsed", self.elapsed.as_secs_f64(), "s")
            .latencies("latency", &self.latencies)
            .errors(&self.errors.counts);
    }
}

/// Runs `operation(worker, index)` by `plan`. Indexes count from 0; each is used once.
pub(crate) async fn run<F, O>(plan: &Plan, clock: &SharedClock, progress: &Progress, operation: F) -> Result<Outcome>
where
    F: Fn(usize, u64) -> O + Send + Sync + 'static,
    O: Future<Output = Result<(), ClientError>> + Send,
{
    let operation = Arc::new(operation);
    let next = Arc::new(AtomicU64::new(0));
    let count = plan.count.unwrap_or(u64::MAX);
    let start = clock.monotonic();
    let end = plan.duration().map(|duration| start + duration);
    let workers: Vec<_> = (0..plan.concurrency)
        .map(|worker| {
            let (operation, next, clock, ticker) =
                (Arc::clone(&operation), Arc::clone(&next), clock.clone(), progress.ticker());
            task::spawn(debug_span!("worker", worker), async move {
                let mut outcome = Outcome::default();
                loop {
                    let began = clock.monotonic();
                    if end.is_some_and(|end| began >= end) {
                        break;
                    }
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    match operation(worker, index).await {
                        Ok(()) => {
                            outcome.latencies.record(clock.monotonic().saturating_sub(began));
                            ticker.done();
                        }
                        Err(error) => {
                            outcome.errors.record(&error);
                            ticker.failed();
                        }
                    }
                }
                outcome
            })
        })
        .collect();
    let mut all = Outcome::default();
    for worker in workers {
        let one = worker.await.context("waiting for a worker")?;
        all.latencies.merge(&one.latencies);
        all.errors.merge(one.errors);
    }
    all.elapsed = clock.monotonic().saturating_sub(start);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use rkube_apimachinery::clock::SystemClock;
    use rkube_apimachinery::status::{ApiStatus, Reason};

    use super::*;

    #[tokio::test]
    async fn every_index_is_used_once_and_failures_are_counted_by_kind() {
        let plan = Plan { concurrency: 7, count: Some(1_000), duration: None };
        let seen = Arc::new(AtomicU64::new(0));
        let sum = Arc::clone(&seen);
        let (clock, progress) = (SystemClock::shared(), Progress::silent());
        let outcome = run(&plan, &clock, &progress, move |_, index| {
            sum.fetch_add(index, Ordering::Relaxed);
            async move { if index % 10 == 0 { Err(ApiStatus::failure(Reason::Conflict, "no").into()) } else { Ok(()) } }
        });
        let outcome = outcome.await.unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), 999 * 1_000 / 2);
        assert_eq!(outcome.latencies.count(), 900);
        assert_eq!(outcome.errors.counts, BTreeMap::from([("409 Conflict".to_owned(), 100)]));
        outcome.errors.fail_if_nothing(900, "write").unwrap();
        assert_eq!(outcome.errors.fail_if_nothing(0, "write").unwrap_err().to_string(), "every write failed: no");
    }

    #[test]
    fn a_plan_that_measures_nothing_is_refused() {
        let plan =
            |concurrency, count, duration| Plan { concurrency, count, duration }.check().map_err(|e| e.to_string());
        assert_eq!(plan(1, None, None), Ok(()));
        assert_eq!(plan(0, None, None), Err("--concurrency 0 is not in 1..=100000".to_owned()));
        assert_eq!(plan(1, Some(0), None), Err("--count 0 would measure nothing".to_owned()));
        assert_eq!(plan(1, None, Some(0)), Err("--duration 0 would measure nothing".to_owned()));
    }
}
