//! `idle-watches`: what a watch costs the server while nothing happens. Opens many on an empty namespace and compares the
//! server's memory before and after.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rkube_http::body::Body;

use super::{Bench, check_positive};
use crate::cluster::Target;
use crate::report::{Report, mib};

/// Watches that are opened at once.
const OPEN_CONCURRENCY: usize = 64;

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// Watches to open
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    watches: usize,
    /// Watches that share a connection; `--connections` is not looked at
    #[arg(long, default_value_t = 100, value_name = "N")]
    per_connection: usize,
    /// Seconds that all are open before and while memory and CPU are looked at
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    settle: u64,
}

impl Options {
    pub(crate) fn check(&self, pids: &[u32]) -> Result<()> {
        ensure!(!pids.is_empty(), "idle-watches measures the server's memory: name its processes with --pid");
        check_positive("--watches", self.watches as u64)?;
        check_positive("--per-connection", self.per_connection as u64)
    }

    pub(crate) fn target(&self) -> Target {
        Target { connections: self.watches.div_ceil(self.per_connection), ..self.target.clone() }
    }
}

/// `before` is the server's memory before any of the connections was there.
pub(crate) async fn run(options: &Options, bench: &Bench, before: u64) -> Result<Report> {
    let Options { watches, per_connection, settle, .. } = options;
    let settle = Duration::from_secs(*settle);
    let work = async |namespace: &str| {
        let url = format!("/api/v1/namespaces/{namespace}/configmaps?watch=true&allowWatchBookmarks=true");
        let progress = bench.progress("open");
        let ticker = progress.ticker();
        let open = async |index: usize| {
            let answer =
                bench.cluster.connection(index / per_connection).open(&url).await.context("opening a watch")?;
            ensure!(answer.status().is_success(), "opening a watch: {}", answer.status());
            ticker.done();
            Ok(answer.into_body())
        };
        let open: Vec<Body> =
            stream::iter(0..*watches).map(open).buffer_unordered(OPEN_CONCURRENCY).try_collect().await?;
        bench.clock().sleep(settle).await;
        let (open, used) = bench
            .measured(async {
                bench.clock().sleep(settle).await;
                Ok(open)
            })
            .await?;
        drop(open);
        used.context("no process was measured")
    };
    let used = bench.cluster.in_namespace(work).await?;
    let mut report = bench.report("idle-watches");
    report
        .parameter("watches", *watches)
        .parameter("per connection", *per_connection)
        .figure("server memory before", mib(before), "MiB")
        .figure("server memory with watches", mib(used.memory), "MiB")
        .figure("memory per watch", used.memory.saturating_sub(before) as f64 / 1024.0 / *watches as f64, "KiB")
        .figure("CPU", used.cpu.as_secs_f64() / settle.as_secs_f64() * 100.0, "% of a core");
    Ok(report)
}
