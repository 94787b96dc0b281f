//! `fake-nodes`: plays nodes until it is interrupted.

use anyhow::{Context, Result};
use clap::Args;

use super::Bench;
use crate::cluster::Target;
use crate::nodes::{Behaviour, FakeNodes, Shape};
use crate::progress::say;

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Nodes to play
    #[arg(long, value_name = "N")]
    count: usize,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    behaviour: Behaviour,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        self.shape.check(self.count)
    }
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<()> {
    let Options { target, count, shape, behaviour } = options;
    let progress = bench.progress("pod reports");
    let mut nodes = FakeNodes::start(&bench.cluster, shape, *count, Some(behaviour), progress.ticker()).await?;
    say(&format!("{count} nodes from {} are ready; Ctrl-C ends and removes them", shape.name(0)));
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).context("listening for signals")?;
    tokio::select! {
        result = nodes.failed() => result?,
        result = tokio::signal::ctrl_c() => result.context("listening for signals")?,
        _ = terminate.recv() => {}
    }
    nodes.stop(target.keep).await
}
