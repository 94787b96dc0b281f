//! `restart`: starts a server by a command, kills it with SIGKILL and starts it again; time until `/readyz` says so and
//! until the first consistent list has come in full.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use http::Method;
use rkube_apimachinery::clock::SharedClock;
use tokio::process::{Child, Command};

use super::{Bench, check_positive, check_size, config_map, list};
use crate::arguments::Output;
use crate::cluster::{Cluster, Target, interruptible};
use crate::process::Usage;
use crate::progress::say;
use crate::report::{Report, mib};
use crate::stats::median;

const READY_TIMEOUT: Duration = Duration::from_secs(300);
/// Between two tries to reach a server that is starting; the precision of the figures.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Times to kill and restart
    #[arg(long, default_value_t = 5, value_name = "N")]
    repeat: u64,
    /// ConfigMaps to create before, so that there is something to restart with
    #[arg(long, default_value_t = 0, value_name = "N")]
    objects: u64,
    /// Bytes of each ConfigMap as JSON
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    size: usize,
    /// The command that runs the server in the foreground
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        check_positive("--repeat", self.repeat)?;
        check_size(self.size)
    }
}

pub(crate) async fn run(options: &Options, output: &Output, clock: SharedClock) -> Result<Report> {
    let first = interruptible(start(&options.command, &options.target, &clock)).await?;
    say(&format!("started, ready after {:.0} ms", millis(first.ready)));
    let bench = Bench::connect(&options.target, &Output { pids: Vec::new(), ..output.clone() }).await?;
    let mut server = first.server;
    let rounds = bench.cluster.in_namespace(async |namespace| restarts(options, &bench, namespace, &mut server).await);
    let rounds = rounds.await;
    server.kill().await.context("killing the server")?;
    let Rounds { ready, listed, memory } = rounds?;
    let mut report = bench.report("restart");
    report
        .parameter("objects", options.objects)
        .parameter("size", options.size)
        .parameter("repeat", options.repeat)
        .millis("first start to ready", first.ready)
        .figure("restart to ready, median", median(&ready), "ms")
        .figure("restart to ready, worst", worst(&ready), "ms")
        .figure("restart to first list, median", median(&listed), "ms")
        .figure("restart to first list, worst", worst(&listed), "ms")
        .figure("server memory after, median", median(&memory), "MiB");
    Ok(report)
}

/// One value per restart: milliseconds, and MiB.
#[derive(Default)]
struct Rounds {
    ready: Vec<f64>,
    listed: Vec<f64>,
    memory: Vec<f64>,
}

/// Kills and restarts; `server` is always the one that runs.
async fn restarts(options: &Options, bench: &Bench, namespace: &str, server: &mut Child) -> Result<Rounds> {
    let Options { target, repeat, objects, size, .. } = options;
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    if *objects > 0 {
        let bytes = *size;
        bench.prepare("created", *objects, &path, move |index| config_map(&format!("c-{index:09}"), bytes)).await?;
    }
    let mut rounds = Rounds::default();
    for round in 1..=*repeat {
        server.kill().await.context("killing the server")?;
        let again = start(&options.command, target, bench.clock()).await?;
        let cluster = Cluster::new(target, bench.clock().clone())?;
        *server = again.server;
        list::list(cluster.connection(0), &path, || ()).await.context("the first list")?;
        let listed = bench.clock().monotonic().saturating_sub(again.began);
        say(&format!(
            "restart {round}: ready after {:.0} ms, listed after {:.0} ms",
            millis(again.ready),
            millis(listed)
        ));
        rounds.ready.push(millis(again.ready));
        rounds.listed.push(millis(listed));
        if let Some(pid) = server.id() {
            rounds.memory.push(mib(Usage::read(&[pid])?.memory));
        }
    }
    Ok(rounds)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// A server that said it is ready.
pub(super) struct Started {
    pub(super) server: Child,
    /// When it was started, by the monotonic clock, and how long it took from there.
    pub(super) began: Duration,
    pub(super) ready: Duration,
}

/// Runs the command and waits until the server says that it is ready. Its output goes where ours goes.
pub(super) async fn start(command: &[String], target: &Target, clock: &SharedClock) -> Result<Started> {
    let [program, arguments @ ..] = command else { bail!("no command") };
    let began = clock.monotonic();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let mut server = command.spawn().with_context(|| format!("starting {program}"))?;
    let ready = async {
        // The kubeconfig may come into being with the server, so each try reads it anew.
        while !is_ready(target, clock).await {
            clock.sleep(RETRY_INTERVAL).await;
        }
    };
    tokio::select! {
        () = ready => {}
        status = server.wait() => bail!("{program} ended before it was ready: {}", status.context("waiting for the server")?),
        () = clock.sleep(READY_TIMEOUT) => bail!("the server was not ready after {} s", READY_TIMEOUT.as_secs()),
    }
    let ready = clock.monotonic().saturating_sub(began);
    Ok(Started { server, began, ready })
}

async fn is_ready(target: &Target, clock: &SharedClock) -> bool {
    let target = Target { connections: 1, ..target.clone() };
    let Ok(cluster) = Cluster::new(&target, clock.clone()) else { return false };
    cluster.connection(0).send(Method::GET, "/readyz", Bytes::new()).await.is_ok()
}
