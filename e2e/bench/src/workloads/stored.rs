//! `stored`: what an object costs the server while it is only there. Creates many, and compares the server's memory before
//! and after with what the objects are as JSON.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use http::Method;

use super::list::{Resource, prepare};
use super::{Bench, check_positive, check_size};
use crate::cluster::Target;
use crate::process;
use crate::report::{Report, mib};

/// Objects whose JSON is looked at to know how large one is as the server has it.
const SAMPLE: u64 = 100;

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    /// What to store
    #[arg(long, value_enum, default_value = "pods")]
    resource: Resource,
    /// Objects to store
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    objects: u64,
    /// Bytes of each object as JSON
    #[arg(long, default_value_t = 6500, value_name = "BYTES")]
    size: usize,
    /// Seconds between the last create and the look at the server's memory
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    settle: u64,
}

impl Options {
    pub(crate) fn check(&self, pids: &[u32]) -> Result<()> {
        ensure!(!pids.is_empty(), "stored measures the server's memory: name its processes with --pid");
        check_positive("--objects", self.objects)?;
        check_size(self.size)
    }
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let Options { resource, objects, size, settle, .. } = options;
    let before = process::memory(&bench.pids)?;
    let work = async |namespace: &str| {
        let storing = async {
            let path = prepare(bench, *resource, namespace, *objects, *size).await?;
            bench.clock().sleep(Duration::from_secs(*settle)).await;
            Ok(path)
        };
        let (path, used) = bench.measured(storing).await?;
        let sampled = SAMPLE.min(*objects);
        let url = format!("{path}?limit={sampled}");
        let answer = bench.cluster.connection(0).send(Method::GET, &url, "").await.context("listing a sample")?;
        Ok((used, answer.body().len() as u64 / sampled))
    };
    let (used, json) = bench.cluster.in_namespace(work).await?;
    let after = used.as_ref().map_or(0, |used| used.memory);
    let each = after.saturating_sub(before) as f64 / *objects as f64;
    let mut report = bench.report("stored");
    report
        .parameter("objects", *objects)
        .parameter("size", *size)
        .parameter("resource", format!("{resource:?}").to_lowercase())
        .figure("server memory before", mib(before), "MiB")
        .figure("server memory after", mib(after), "MiB")
        .figure("memory per object", each, "B")
        .figure("JSON per object", json as f64, "B")
        .figure("memory per byte of JSON", each / json as f64, "B")
        .usage(used, *objects);
    Ok(report)
}
