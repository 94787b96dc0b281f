//! `list`: all of many objects in one answer; time to the first and to the last byte. The body is read, not decoded.

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use serde_json::json;

use super::{Bench, check_positive, check_size, config_map, sized};
use crate::cluster::{Connection, Target};
use crate::report::{Report, mib};
use crate::stats::Histogram;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Resource {
    /// Never scheduled: their scheduler does not exist
    Pods,
    #[value(name = "configmaps")]
    ConfigMaps,
}

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) target: Target,
    /// What to list
    #[arg(long, value_enum, default_value = "pods")]
    resource: Resource,
    /// Objects to list
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    objects: u64,
    /// Bytes of each object as JSON
    #[arg(long, default_value_t = 6500, value_name = "BYTES")]
    size: usize,
    /// Lists, one after another
    #[arg(long, default_value_t = 20, value_name = "N")]
    repeat: u64,
    /// `resourceVersion` of each list: empty for a consistent one, 0 for whatever a cache has
    #[arg(long, default_value = "", value_name = "VERSION")]
    resource_version: String,
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        check_positive("--objects", self.objects)?;
        check_positive("--repeat", self.repeat)?;
        check_size(self.size)
    }
}

pub(crate) async fn run(options: &Options, bench: &Bench) -> Result<Report> {
    let Options { resource, objects, size, repeat, resource_version, .. } = options;
    let work = async |namespace: &str| {
        let path = prepare(bench, *resource, namespace, *objects, *size).await?;
        let url = format!("{path}?resourceVersion={resource_version}");
        let progress = bench.progress("listed");
        let ticker = progress.ticker();
        let (mut first, mut last, mut length) = (Histogram::default(), Histogram::default(), 0);
        let listing = async {
            for _ in 0..*repeat {
                let start = bench.clock().monotonic();
                let (first_byte, got) = list(bench.cluster.connection(0), &url, || bench.clock().monotonic()).await?;
                first.record(first_byte.saturating_sub(start));
                last.record(bench.clock().monotonic().saturating_sub(start));
                length = got;
                ticker.done();
            }
            Ok(())
        };
        let ((), used) = bench.measured(listing).await?;
        Ok((first, last, length, used))
    };
    let (first, last, length, used) = bench.cluster.in_namespace(work).await?;
    let mut report = bench.report("list");
    report
        .parameter("objects", *objects)
        .parameter("size", *size)
        .parameter("resource", format!("{resource:?}").to_lowercase())
        .figure("answer", mib(length), "MiB")
        .latencies("first byte", &first)
        .latencies("last byte", &last)
        .usage(used, *repeat);
    Ok(report)
}

/// Creates objects; the path of their collection.
pub(crate) async fn prepare(
    bench: &Bench,
    resource: Resource,
    namespace: &str,
    objects: u64,
    size: usize,
) -> Result<String> {
    let path = format!("/api/v1/namespaces/{namespace}");
    let path = match resource {
        Resource::Pods => format!("{path}/pods"),
        Resource::ConfigMaps => format!("{path}/configmaps"),
    };
    let is_pod = resource == Resource::Pods;
    if is_pod {
        bench.cluster.ready_for_pods(namespace).await?;
    }
    let body = move |index| {
        let name = format!("o-{index:09}");
        if is_pod { pod(&name, size) } else { config_map(&name, size) }
    };
    bench.prepare("created", objects, &path, body).await?;
    Ok(path)
}

/// One list: when its first byte came, and how many there were.
pub(crate) async fn list<T>(connection: &Connection, url: &str, now: impl Fn() -> T) -> Result<(T, u64)> {
    let response = connection.open(url).await.with_context(|| format!("listing {url}"))?;
    ensure!(response.status().is_success(), "listing {url}: {}", response.status());
    let mut chunks = response.into_body().into_stream();
    let (mut first, mut length) = (None, 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| anyhow::anyhow!("{error}")).with_context(|| format!("reading {url}"))?;
        first.get_or_insert_with(&now);
        length += chunk.len() as u64;
    }
    Ok((first.with_context(|| format!("the list {url} is empty"))?, length))
}

fn pod(name: &str, size: usize) -> String {
    sized(size, |filler| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "list"}, "annotations": {"filler": filler}},
            "spec": {
                "schedulerName": "none",
                "containers": [{"name": "c", "image": "registry.example/none:1"}],
            },
        })
    })
}
