//! `job`: a Job of N completions on fake nodes, whose pods succeed at once.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_util::StreamExt;
use http::Method;
use rkube_api::k8s::batch::v1::Job;
use rkube_client::ListParams;
use rkube_client::transport::WatchEvent;
use serde_json::{Value, json};

use super::{Bench, Playground, check_positive};
use crate::cluster::Target;
use crate::nodes::rules::ANNOTATION;
use crate::report::Report;

const TIMEOUT: Duration = Duration::from_secs(900);

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    playground: Playground,
    /// Pods that must succeed
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    completions: u64,
    /// Pods at once; all if not given
    #[arg(long, value_name = "N")]
    parallelism: Option<u64>,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        check_positive("--completions", self.completions)?;
        check_positive("--parallelism", self.parallelism.unwrap_or(1))?;
        self.playground.check()
    }
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let Options { playground, completions, parallelism, .. } = options;
    let parallelism = parallelism.unwrap_or(*completions);
    let work = async |namespace: &str| {
        let mut spec = playground.pod_spec("10m");
        spec["restartPolicy"] = "Never".into();
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "work"},
            "spec": {
                "completions": completions, "parallelism": parallelism,
                "template": {"metadata": {"annotations": {ANNOTATION: "Succeeded"}}, "spec": spec},
            },
        });
        let path = format!("/apis/batch/v1/namespaces/{namespace}/jobs");
        bench
            .measured(async {
                let start = bench.clock().monotonic();
                let made = bench.cluster.connection(0).send(Method::POST, &path, job.to_string()).await;
                let made: Value = serde_json::from_slice(made.context("creating a Job")?.body())?;
                complete(bench, namespace, made["metadata"]["resourceVersion"].as_str().unwrap_or_default()).await?;
                Ok(bench.clock().monotonic().saturating_sub(start))
            })
            .await
    };
    let (took, used) = playground.play(bench, work).await?;
    let mut report = bench.report("job");
    report
        .parameter("completions", *completions)
        .parameter("parallelism", parallelism)
        .parameter("nodes", playground.nodes)
        .millis("complete", took)
        .figure("throughput", *completions as f64 / took.as_secs_f64(), "pods/s")
        .usage(used, *completions);
    Ok(report)
}

/// Waits for the Job's `Complete` condition.
async fn complete(bench: &Bench, namespace: &str, from: &str) -> Result<()> {
    let progress = bench.progress("succeeded");
    let (ticker, mut before) = (progress.ticker(), 0);
    let params = ListParams { resource_version: from.to_owned(), ..ListParams::default() };
    let jobs = bench.cluster.client(0).namespaced::<Job>(namespace);
    let seconds = u32::try_from(TIMEOUT.as_secs()).unwrap_or(u32::MAX);
    let mut changes = jobs.dynamic().watch(&params, seconds).await.context("watching the Job")?;
    let mut last = Value::Null;
    while let Some(event) = changes.next().await {
        let WatchEvent::Modified(object) = event.context("watching the Job")? else { continue };
        last = object.value().context("reading the Job")?["status"].take();
        let succeeded = last["succeeded"].as_u64().unwrap_or(0);
        ticker.add(succeeded.saturating_sub(before));
        before = succeeded;
        let has = |kind: &str| {
            let conditions = last["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            conditions.iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
        };
        if has("Complete") {
            return Ok(());
        }
        if has("Failed") {
            bail!("the Job failed: {last}");
        }
    }
    bail!("the Job was not complete after {} s: {last}", TIMEOUT.as_secs())
}
