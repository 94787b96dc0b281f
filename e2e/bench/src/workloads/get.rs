//! `get`: single ConfigMaps, at random, as a cached read where the server has a cache.

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use http::Method;

use super::{Bench, check_positive, check_size, config_map};
use crate::cluster::Target;
use crate::load::{self, Plan};
use crate::report::Report;

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    plan: Plan,
    /// Bytes of each ConfigMap as JSON
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    size: usize,
    /// ConfigMaps to read from
    #[arg(long, default_value_t = 1000, value_name = "N")]
    objects: u64,
    /// `resourceVersion` of each read: empty for a consistent one, 0 for whatever a cache has
    #[arg(long, default_value = "", value_name = "VERSION")]
    resource_version: String,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        self.plan.check()?;
        check_positive("--objects", self.objects)?;
        check_size(self.size)
    }
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let Options { plan, size, objects, resource_version, .. } = options;
    let work = async |namespace: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let bytes = *size;
        bench.prepare("created", *objects, &path, move |index| config_map(&format!("c-{index:09}"), bytes)).await?;
        let query =
            if resource_version.is_empty() { String::new() } else { format!("?resourceVersion={resource_version}") };
        let (cluster, objects) = (bench.cluster.clone(), *objects);
        let progress = bench.progress("read");
        let reading = load::run(plan, bench.clock(), &progress, move |worker, _| {
            let index = cluster.random_below(objects);
            let (connection, path) = (cluster.connection(worker).clone(), format!("{path}/c-{index:09}{query}"));
            async move { connection.send(Method::GET, &path, Bytes::new()).await.map(drop) }
        });
        bench.measured(reading).await
    };
    let (outcome, used) = bench.cluster.in_namespace(work).await?;
    let read = outcome.latencies.count();
    outcome.errors.fail_if_nothing(read, "read")?;
    let mut report = bench.report("get");
    report.parameter("concurrency", plan.concurrency).parameter("size", *size).parameter("objects", *objects);
    outcome.into_report(&mut report);
    report.usage(used, read);
    Ok(report)
}
