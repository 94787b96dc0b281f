//! `fake-nodes`: plays nodes until it is interrupted.

use anyhow::{Context, Result};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

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
    // Before there is anything to remove: a signal that comes early ends the nodes, too.
    let listen = |kind| signal(kind).context("listening for signals");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let progress = bench.progress("pod reports");
    let mut nodes = FakeNodes::start(&bench.cluster, shape, *count, Some(behaviour), progress.ticker()).await?;
    say(&format!("{count} nodes from {} are ready; Ctrl-C ends and removes them", shape.name(0)));
    tokio::select! {
        result = nodes.failed() => result?,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    nodes.stop(target.keep).await
}
