//! `watch`: fan-out. Updates at a steady rate, each seen by every watcher; how late, and whether any was lost.
//!
//! Every update carries its number. The writer notes when it sent each and when the answer came; a watcher looks the number
//! up and so needs to decode nothing else. Watchers stop at the last number, which comes after every answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use futures_util::StreamExt;
use memchr::{memchr, memmem};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use serde_json::json;
use tokio::sync::Barrier;
use tracing::debug_span;

use super::{Bench, check_positive, check_size, config_map};
use crate::cluster::{Cluster, Connection, Target};
use crate::load::{self, Plan};
use crate::progress::Ticker;
use crate::report::Report;
use crate::stats::Histogram;

/// How long watchers may lag behind the last answer before what they lack counts as lost.
const LAG_MAX: Duration = Duration::from_secs(30);
const MERGE_PATCH: &str = "application/merge-patch+json";
const NUMBER: &[u8] = b"\"number\":\"";
/// The update that ends the run.
const LAST: u64 = u64::MAX;

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Watchers of the same objects
    #[arg(long, default_value_t = 500, value_name = "N")]
    watchers: usize,
    /// Updates a second; 0 for as many as the writers get through
    #[arg(long, default_value_t = 1000, value_name = "N")]
    rate: u64,
    /// Seconds of updates
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    duration: u64,
    /// ConfigMaps that are updated in turn
    #[arg(long, default_value_t = 100, value_name = "N")]
    objects: u64,
    /// Updates in flight
    #[arg(long, default_value_t = 32, value_name = "N")]
    writers: usize,
    /// Bytes of each ConfigMap as JSON
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    size: usize,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        check_positive("--watchers", self.watchers as u64)?;
        check_positive("--duration", self.duration)?;
        check_positive("--objects", self.objects)?;
        check_positive("--writers", self.writers as u64)?;
        ensure!(self.rate <= 100_000, "--rate {} is more than 100000 a second", self.rate);
        check_size(self.size)
    }

    /// Room for the times of so many updates.
    fn updates_max(&self) -> u64 {
        let rate = if self.rate == 0 { 100_000 } else { self.rate };
        rate * self.duration
    }
}

/// When each update was sent and answered, in nanoseconds; 0 for not yet.
struct Times {
    sent: Box<[AtomicU64]>,
    answered: Box<[AtomicU64]>,
}

impl Times {
    fn new(count: u64) -> Self {
        let zeros = || (0..count).map(|_| AtomicU64::new(0)).collect();
        Self { sent: zeros(), answered: zeros() }
    }
}

fn note(times: &[AtomicU64], number: u64, now: Duration) {
    if let Some(time) = times.get(number as usize) {
        time.store(now.as_nanos() as u64, Ordering::Release);
    }
}

/// What one watcher saw.
#[derive(Default)]
struct Seen {
    events: u64,
    since_sent: Histogram,
    since_answered: Histogram,
    /// Why it ended before the last update.
    broken: Option<String>,
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let Options { watchers, rate, duration, objects, writers, size, .. } = options;
    let work = async |namespace: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let bytes = *size;
        bench.prepare("created", *objects, &path, move |index| config_map(&format!("c-{index:09}"), bytes)).await?;
        bench.measured(fan_out(options, bench, &path)).await
    };
    let ((outcome, seen), used) = bench.cluster.in_namespace(work).await?;
    let updates = outcome.latencies.count();
    outcome.errors.fail_if_nothing(updates, "update")?;
    let (mut sent, mut answered, mut events, mut errors) =
        (Histogram::default(), Histogram::default(), 0, outcome.errors);
    for one in &seen {
        events += one.events;
        sent.merge(&one.since_sent);
        answered.merge(&one.since_answered);
        if let Some(reason) = &one.broken {
            errors.record_kind(format!("watch ended: {reason}"), || reason.clone());
        }
    }
    let expected = updates * *watchers as u64;
    let mut report = bench.report("watch");
    report
        .parameter("watchers", *watchers)
        .parameter("rate", *rate)
        .parameter("seconds", *duration)
        .parameter("writers", *writers)
        .parameter("size", *size)
        .figure("events", events as f64 / outcome.elapsed.as_secs_f64(), "/s")
        .figure("updates", updates as f64 / outcome.elapsed.as_secs_f64(), "/s")
        .figure("events lost", expected.saturating_sub(events) as f64, "")
        .latencies("sent to watcher", &sent)
        .latencies("answered to watcher", &answered)
        .latencies("update", &outcome.latencies)
        .errors(&errors.counts)
        .usage(used, events);
    Ok(report)
}

/// Starts the watchers, then the updates; `elapsed` of the outcome lasts until the last watcher has seen the last one.
async fn fan_out(options: &Options, bench: &Bench, path: &str) -> Result<(load::Outcome, Vec<Seen>)> {
    let (cluster, clock) = (&bench.cluster, bench.clock());
    let times = Arc::new(Times::new(options.updates_max()));
    let ready = Arc::new(Barrier::new(options.watchers + 1));
    let from = version(cluster, path).await?;
    let progress = bench.progress("events seen");
    let url = format!("{path}?watch=true&resourceVersion={from}&timeoutSeconds=3600");
    let watchers: Vec<_> = (0..options.watchers)
        .map(|index| {
            let (connection, url, times, ready, clock, ticker) = (
                cluster.connection(index).clone(),
                url.clone(),
                Arc::clone(&times),
                Arc::clone(&ready),
                clock.clone(),
                progress.ticker(),
            );
            task::spawn(debug_span!("watcher", index), async move {
                let mut seen = Seen::default();
                if let Err(error) = follow(&connection, &url, &times, &ready, &clock, &ticker, &mut seen).await {
                    seen.broken = Some(format!("{error:#}"));
                }
                seen
            })
        })
        .collect();
    ready.wait().await;
    let start = clock.monotonic();
    let mut outcome = update(options, cluster, clock, path, &times).await?;
    let last = json!({"data": {"number": LAST.to_string()}}).to_string();
    cluster.connection(0).patch(&format!("{path}/c-{:09}", 0), MERGE_PATCH, last).await.context("the last update")?;
    let deadline = clock.sleep(LAG_MAX);
    let mut seen = Vec::with_capacity(watchers.len());
    tokio::pin!(deadline);
    for mut watcher in watchers {
        tokio::select! {
            result = &mut watcher => seen.push(result.context("waiting for a watcher")?),
            () = &mut deadline => {
                bail!("watchers were more than {} s behind", LAG_MAX.as_secs());
            }
        }
    }
    outcome.elapsed = clock.monotonic().saturating_sub(start);
    Ok((outcome, seen))
}

/// Updates at the rate asked for. A late writer catches up, so that a slow server does not lower the load.
async fn update(
    options: &Options,
    cluster: &Cluster,
    clock: &SharedClock,
    path: &str,
    times: &Arc<Times>,
) -> Result<load::Outcome> {
    let Options { rate, objects, writers, duration, .. } = options;
    let by_time = Plan { concurrency: *writers, count: None, duration: Some(*duration) };
    let by_count = Plan { concurrency: *writers, count: Some(rate * duration), duration: None };
    let plan = if *rate == 0 { by_time } else { by_count };
    let (cluster, clock, path, times) = (cluster.clone(), clock.clone(), path.to_owned(), Arc::clone(times));
    let (rate, objects, start) = (*rate, *objects, clock.monotonic());
    let now = clock.clone();
    load::run(&plan, &now, &crate::progress::Progress::start("updates", &now, true), move |worker, number| {
        let (connection, clock, times) = (cluster.connection(worker).clone(), clock.clone(), Arc::clone(&times));
        let path = format!("{path}/c-{:09}", number % objects);
        let body = json!({"data": {"number": number.to_string()}}).to_string();
        async move {
            if let Some(offset) = (number * 1_000_000_000).checked_div(rate) {
                let early = (start + Duration::from_nanos(offset)).saturating_sub(clock.monotonic());
                if !early.is_zero() {
                    clock.sleep(early).await;
                }
            }
            note(&times.sent, number, clock.monotonic());
            connection.patch(&path, MERGE_PATCH, body).await?;
            note(&times.answered, number, clock.monotonic());
            Ok(())
        }
    })
    .await
}

async fn version(cluster: &Cluster, path: &str) -> Result<String> {
    let answer = cluster.connection(0).send(http::Method::GET, &format!("{path}?limit=1"), "").await?;
    let list: serde_json::Value = serde_json::from_slice(answer.body()).context("reading a list")?;
    super::required(list["metadata"]["resourceVersion"].as_str().map(str::to_owned), "resourceVersion")
}

/// Reads one watch until the last update.
async fn follow(
    connection: &Connection,
    url: &str,
    times: &Times,
    ready: &Barrier,
    clock: &SharedClock,
    ticker: &Ticker,
    seen: &mut Seen,
) -> Result<()> {
    let response = connection.open(url).await;
    // The others wait for this one, whether it works or not.
    ready.wait().await;
    let response = response.context("opening")?;
    ensure!(response.status().is_success(), "opening: {}", response.status());
    let mut chunks = response.into_body().into_stream();
    let finder = memmem::Finder::new(NUMBER);
    let mut lines = Lines::default();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| anyhow::anyhow!("{error}")).context("reading")?;
        let now = clock.monotonic();
        let before = seen.events;
        let mut last = false;
        lines.split(&chunk, |line| match number(&finder, line) {
            Some(LAST) => last = true,
            Some(number) => {
                seen.events += 1;
                let index = number as usize;
                let since = |at: &[AtomicU64]| {
                    let at = at.get(index).map_or(0, |at| at.load(Ordering::Acquire));
                    // Not answered yet: the watcher was faster than the answer.
                    if at == 0 { Duration::ZERO } else { now.saturating_sub(Duration::from_nanos(at)) }
                };
                seen.since_sent.record(since(&times.sent));
                seen.since_answered.record(since(&times.answered));
            }
            None => {}
        });
        ticker.add(seen.events - before);
        if last {
            return Ok(());
        }
    }
    bail!("closed by the server")
}

/// The update's number in an event of the watch.
fn number(finder: &memmem::Finder<'_>, line: &[u8]) -> Option<u64> {
    let start = finder.find(line)? + NUMBER.len();
    let digits = line.get(start..)?.split(|byte| *byte == b'"').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Puts lines together that chunks tore apart.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn split(&mut self, mut chunk: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(end) = memchr(b'\n', chunk) {
            let (line, rest) = chunk.split_at(end + 1);
            if self.partial.is_empty() {
                each(line);
            } else {
                self.partial.extend_from_slice(line);
                each(&self.partial);
                self.partial.clear();
            }
            chunk = rest;
        }
        self.partial.extend_from_slice(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_lines_are_put_together() {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for chunk in ["a\nb", "c", "d\n\ne", "\n"] {
            lines.split(chunk.as_bytes(), |line| out.push(String::from_utf8(line.to_vec()).unwrap()));
        }
        assert_eq!(out, ["a\n", "bcd\n", "\n", "e\n"]);
    }

    #[test]
    fn numbers_are_found_in_events() {
        let finder = memmem::Finder::new(NUMBER);
        assert_eq!(number(&finder, br#"{"object":{"data":{"number":"42","payload":""}}}"#), Some(42));
        assert_eq!(number(&finder, br#"{"object":{"data":{"payload":""}}}"#), None);
        assert_eq!(number(&finder, br#"{"number":"x"}"#), None);
    }
}
