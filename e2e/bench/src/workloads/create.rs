//! `create`: ConfigMaps of one size, as many in flight as asked for.

use anyhow::Result;
use clap::Args;
use http::Method;

use super::{Bench, check_size, config_map};
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
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        self.plan.check()?;
        check_size(self.size)
    }
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let Options { plan, size, .. } = options;
    let work = async |namespace: &str| {
        let (cluster, size) = (bench.cluster.clone(), *size);
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let progress = bench.progress("created");
        let creating = load::run(plan, bench.clock(), &progress, move |worker, index| {
            let (connection, path) = (cluster.connection(worker).clone(), path.clone());
            let body = config_map(&format!("c-{index:09}"), size);
            async move { connection.send(Method::POST, &path, body).await.map(drop) }
        });
        bench.measured(creating).await
    };
    let (outcome, used) = bench.cluster.in_namespace(work).await?;
    let created = outcome.latencies.count();
    outcome.errors.fail_if_nothing(created, "create")?;
    let mut report = bench.report("create");
    report.parameter("concurrency", plan.concurrency).parameter("size", *size);
    outcome.into_report(&mut report);
    report.usage(used, created);
    Ok(report)
}
