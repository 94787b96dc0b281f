//! `deploy`: a Deployment from nothing to N running pods on fake nodes, and back.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use http::Method;
use serde_json::json;

use super::{Bench, Playground, check_positive};
use crate::cluster::Target;
use crate::report::Report;
use crate::track::Tracker;

const TIMEOUT: Duration = Duration::from_secs(600);
const MERGE_PATCH: &str = "application/merge-patch+json";

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    playground: Playground,
    /// Pods to run
    #[arg(long, default_value_t = 500, value_name = "N")]
    replicas: usize,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        check_positive("--replicas", self.replicas as u64)?;
        self.playground.check()
    }
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let Options { playground, replicas, .. } = options;
    let work = async |namespace: &str| {
        let clock = bench.clock();
        let connection = bench.cluster.connection(0);
        let deployments = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": playground.pod_spec("10m")},
            },
        });
        connection.send(Method::POST, &deployments, deployment.to_string()).await.context("creating a Deployment")?;
        let progress = bench.progress("pods bound");
        let tracker = Tracker::start(&bench.cluster, namespace, "", progress.ticker());
        let scale = async |replicas: usize| {
            let body = json!({"spec": {"replicas": replicas}}).to_string();
            let path = format!("{deployments}/web/scale");
            connection.patch(&path, MERGE_PATCH, body).await.context("scaling the Deployment")?;
            let what = format!("running {replicas} replicas");
            tracker.wait(&what, TIMEOUT, |counts| counts.running == replicas && counts.present == replicas).await
        };
        bench
            .measured(async {
                let start = clock.monotonic();
                scale(*replicas).await?;
                let up = clock.monotonic();
                scale(0).await?;
                Ok((up.saturating_sub(start), clock.monotonic().saturating_sub(up)))
            })
            .await
    };
    let ((up, down), used) = playground.play(bench, work).await?;
    let mut report = bench.report("deploy");
    report
        .parameter("replicas", *replicas)
        .parameter("nodes", playground.nodes)
        .millis("0 to all running", up)
        .millis("all to 0", down)
        .usage(used, *replicas as u64);
    Ok(report)
}
