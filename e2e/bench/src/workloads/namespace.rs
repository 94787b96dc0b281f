//! `namespace`: many objects made, then their namespace deleted; time until it is gone.

use anyhow::{Context, Result};
use clap::Args;
use http::Method;
use serde_json::json;

use super::{Bench, check_positive, check_size, config_map};
use crate::cluster::{Target, interruptible};
use crate::report::Report;

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    /// ConfigMaps to delete with the namespace
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    objects: u64,
    /// Bytes of each ConfigMap as JSON
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    size: usize,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        check_positive("--objects", self.objects)?;
        check_size(self.size)
    }
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let Options { objects, size, .. } = options;
    let name = bench.cluster.random_name("rkube-bench");
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).to_string();
    let made = bench.cluster.connection(0).send(Method::POST, "/api/v1/namespaces", body).await;
    made.with_context(|| format!("creating namespace {name}"))?;
    let (path, bytes) = (format!("/api/v1/namespaces/{name}/configmaps"), *size);
    let body = move |index| config_map(&format!("c-{index:09}"), bytes);
    let prepared = interruptible(bench.prepare("created", *objects, &path, body)).await;
    let removed = bench.measured(async {
        let start = bench.clock().monotonic();
        bench.cluster.remove_namespace(&name).await?;
        Ok(bench.clock().monotonic().saturating_sub(start))
    });
    let (took, used) = removed.await?;
    prepared?;
    let mut report = bench.report("namespace");
    report
        .parameter("objects", *objects)
        .parameter("size", *size)
        .millis("namespace gone", took)
        .figure("throughput", *objects as f64 / took.as_secs_f64(), "objects/s")
        .usage(used, *objects);
    Ok(report)
}
