//! The workloads, and what they share: the connections, the server's processes, objects of a given size.

pub(crate) mod create;
pub(crate) mod get;
pub(crate) mod idle;
pub(crate) mod informers;
pub(crate) mod list;
pub(crate) mod restart;
pub(crate) mod watch;

use anyhow::{Context, Result, ensure};
use http::Method;
use rkube_apimachinery::clock::{SharedClock, SystemClock};
use serde_json::json;

use crate::arguments::{Arguments, Output, Workload};
use crate::cluster::{Cluster, Target};
use crate::load::{self, Plan};
use crate::process::Usage;
use crate::progress::Progress;
use crate::report::Report;

/// Leaves room for the rest of the object under the 1.5 MiB that storage takes.
const SIZE_MAX: usize = 1_000_000;
/// How many requests prepare objects at once.
const PREPARE_CONCURRENCY: usize = 64;

/// Runs one workload; `None` for one that has nothing to report.
pub(crate) async fn run(arguments: Arguments) -> Result<Option<Report>> {
    let output = arguments.output;
    let report = match arguments.workload {
        Workload::Create(options) => create::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::Get(options) => get::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::List(options) => list::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::Watch(options) => watch::run(&options, &Bench::connect(&options.target, &output).await?).await,
        Workload::Informers(options) => {
            informers::run(&options, &Bench::connect(&options.target, &output).await?).await
        }
        Workload::Restart(options) => restart::run(&options, &output, SystemClock::shared()).await,
        Workload::Idle(options) => idle::run(&options, &output, &SystemClock::shared()).await,
    };
    report.map(Some)
}

/// A server, warmed up, and what is known of it.
pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    version: String,
    pub(crate) pids: Vec<u32>,
    quiet: bool,
}

impl Bench {
    pub(crate) async fn connect(target: &Target, output: &Output) -> Result<Self> {
        let cluster = Cluster::new(target, SystemClock::shared())?;
        // A process that cannot be read is better found before the work than after it.
        Usage::read(&output.pids)?;
        let version = cluster.warm_up().await?;
        Ok(Self { cluster, version, pids: output.pids.clone(), quiet: output.quiet })
    }

    pub(crate) fn clock(&self) -> &SharedClock {
        &self.cluster.clock
    }

    pub(crate) fn progress(&self, what: &'static str) -> Progress {
        Progress::start(what, &self.cluster.clock, self.quiet)
    }

    pub(crate) fn report(&self, workload: &'static str) -> Report {
        let mut report = Report::new(workload);
        report.server = self.version.clone();
        report.parameter("connections", self.cluster.connections());
        report
    }

    /// What the server's processes used while `work` ran; `None` when none were named.
    pub(crate) async fn measured<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, Option<Usage>)> {
        let before = Usage::read(&self.pids)?;
        let value = work.await?;
        let used = Usage::read(&self.pids)?.since(&before);
        Ok((value, (!self.pids.is_empty()).then_some(used)))
    }

    /// Creates `count` objects, `body(index)` each, as fast as that goes. Any failure is one of the whole run.
    pub(crate) async fn prepare<F>(&self, what: &'static str, count: u64, path: &str, body: F) -> Result<()>
    where
        F: Fn(u64) -> String + Send + Sync + 'static,
    {
        let (cluster, path) = (self.cluster.clone(), path.to_owned());
        let plan = Plan { concurrency: PREPARE_CONCURRENCY, count: Some(count), duration: None };
        let body = std::sync::Arc::new(body);
        let progress = self.progress(what);
        let outcome = load::run(&plan, self.clock(), &progress, move |worker, index| {
            let (connection, path, body) = (cluster.connection(worker).clone(), path.clone(), body(index));
            async move { connection.send(Method::POST, &path, body).await.map(drop) }
        });
        let errors = outcome.await?.errors;
        errors.fail_if_nothing(0, what)?;
        ensure!(errors.total() == 0, "{} of {count} {what} were not created", errors.total());
        Ok(())
    }
}

/// A ConfigMap of `size` bytes as JSON.
pub(crate) fn config_map(name: &str, size: usize) -> String {
    sized(
        size,
        |filler| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"payload": filler}}),
    )
}

/// What `make` gives with so much filler that its JSON has `size` bytes, or without any where that is larger.
pub(crate) fn sized(size: usize, make: impl Fn(String) -> serde_json::Value) -> String {
    let bare = make(String::new()).to_string();
    let missing = size.saturating_sub(bare.len());
    make("x".repeat(missing)).to_string()
}

pub(crate) fn check_size(size: usize) -> Result<()> {
    ensure!((1..=SIZE_MAX).contains(&size), "--size {size} is not in 1..={SIZE_MAX} bytes");
    Ok(())
}

pub(crate) fn check_positive(flag: &str, value: u64) -> Result<()> {
    ensure!(value > 0, "{flag} 0 would measure nothing");
    Ok(())
}

/// The text of a number that must be there for the run to make sense.
pub(crate) fn required<T>(value: Option<T>, what: &str) -> Result<T> {
    value.with_context(|| format!("the server's answer has no {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_the_size_asked_for() {
        assert_eq!(config_map("a", 1024).len(), 1024);
        assert!(config_map("a", 1).contains("\"payload\":\"\""));
    }
}
