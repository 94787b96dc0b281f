//! `informers`: a storm. Many clients ask for the same large Secrets at once, as after a restart; how long that takes and
//! how much memory the server needs for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use futures_util::StreamExt;
use memchr::memmem;
use rkube_apimachinery::task;
use serde_json::json;
use tracing::debug_span;

use super::{Bench, check_positive, check_size};
use crate::cluster::{Connection, Target};
use crate::process;
use crate::progress::Ticker;
use crate::report::{Report, mib};
use crate::stats::Histogram;

/// Between two looks at the server's memory.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// How the server says that the initial events are over.
const END: &[u8] = b"k8s.io/initial-events-end";
/// The end of a chunk that may hold the beginning of `END`.
const OVERLAP: usize = END.len() - 1;

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Informers that start at once
    #[arg(long, default_value_t = 64, value_name = "N")]
    clients: usize,
    /// Secrets each of them reads
    #[arg(long, default_value_t = 400, value_name = "N")]
    objects: u64,
    /// Bytes of each Secret's data
    #[arg(long, default_value_t = 700_000, value_name = "BYTES")]
    size: usize,
    /// Use LIST, for servers older than 1.34, instead of a watch with initial events
    #[arg(long)]
    list: bool,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        check_positive("--clients", self.clients as u64)?;
        check_positive("--objects", self.objects)?;
        check_size(self.size)
    }
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let Options { clients, objects, size, list, .. } = options;
    let work = async |namespace: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/secrets");
        let data = STANDARD.encode(vec![b'x'; *size]);
        let body = move |index| {
            let name = format!("s-{index:06}");
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": {"blob": data}})
                .to_string()
        };
        bench.prepare("created", *objects, &path, body).await?;
        let url = if *list {
            path
        } else {
            format!(
                "{path}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
            )
        };
        bench.measured(storm(options, bench, &url)).await
    };
    let (storm, used) = bench.cluster.in_namespace(work).await?;
    let mut report = bench.report("informers");
    report
        .parameter("clients", *clients)
        .parameter("objects", *objects)
        .parameter("size", *size)
        .parameter("by", if *list { "list" } else { "watch" })
        .latencies("synced", &storm.synced)
        .figure("received", mib(storm.received) / storm.elapsed.as_secs_f64(), "MiB/s");
    if !bench.pids.is_empty() {
        report.figure("server memory before", mib(storm.memory_before), "MiB").figure(
            "server memory extra",
            mib(storm.memory_peak.saturating_sub(storm.memory_before)),
            "MiB",
        );
    }
    report.usage(used, *clients as u64);
    Ok(report)
}

struct Storm {
    synced: Histogram,
    received: u64,
    elapsed: Duration,
    memory_before: u64,
    memory_peak: u64,
}

async fn storm(options: &Options, bench: &Bench, url: &str) -> Result<Storm> {
    let clock = bench.clock();
    let progress = bench.progress("MiB received");
    let memory_before = process::memory(&bench.pids)?;
    let peak = Arc::new(AtomicU64::new(memory_before));
    let over = Arc::new(AtomicBool::new(false));
    let sampler = {
        let (clock, pids, peak, over) = (clock.clone(), bench.pids.clone(), Arc::clone(&peak), Arc::clone(&over));
        task::spawn(debug_span!("sampler"), async move {
            while !over.load(Ordering::Relaxed) && !pids.is_empty() {
                peak.fetch_max(process::memory(&pids)?, Ordering::Relaxed);
                clock.sleep(SAMPLE_INTERVAL).await;
            }
            anyhow::Ok(())
        })
    };
    let start = clock.monotonic();
    let informers: Vec<_> = (0..options.clients)
        .map(|index| {
            let (connection, url, ticker) =
                (bench.cluster.connection(index).clone(), url.to_owned(), progress.ticker());
            task::spawn(debug_span!("informer", index), sync(connection, url, options.list, ticker, clock.clone()))
        })
        .collect();
    let (mut synced, mut received) = (Histogram::default(), 0);
    for informer in informers {
        let (at, bytes) = informer.await.context("waiting for an informer")??;
        synced.record(at.saturating_sub(start));
        received += bytes;
    }
    let elapsed = clock.monotonic().saturating_sub(start);
    over.store(true, Ordering::Relaxed);
    sampler.await.context("waiting for the sampler")??;
    Ok(Storm { synced, received, elapsed, memory_before, memory_peak: peak.load(Ordering::Relaxed) })
}

/// Reads until everything there was has come: when that was, and how many bytes.
async fn sync(
    connection: Connection,
    url: String,
    list: bool,
    ticker: Ticker,
    clock: rkube_apimachinery::clock::SharedClock,
) -> Result<(Duration, u64)> {
    let response = connection.open(&url).await.context("starting an informer")?;
    ensure!(response.status().is_success(), "starting an informer: {}", response.status());
    let mut chunks = response.into_body().into_stream();
    let finder = memmem::Finder::new(END);
    let (mut tail, mut received, mut reported) = (Vec::new(), 0u64, 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| anyhow::anyhow!("{error}")).context("reading initial events")?;
        received += chunk.len() as u64;
        ticker.add((received >> 20) - reported);
        reported = received >> 20;
        if !list {
            tail.extend_from_slice(chunk.get(..OVERLAP).unwrap_or(&chunk));
            if finder.find(&tail).is_some() || finder.find(&chunk).is_some() {
                return Ok((clock.monotonic(), received));
            }
            tail.extend_from_slice(&chunk);
            tail.drain(..tail.len().saturating_sub(OVERLAP));
        }
    }
    ensure!(list, "the server ended the watch before the initial events were over");
    Ok((clock.monotonic(), received))
}
