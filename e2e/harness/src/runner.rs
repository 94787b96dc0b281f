//! Runs what was chosen and reports: one line per scenario, for a failure what a person would look at first.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use futures_util::{StreamExt, stream};
use rkube_apimachinery::clock::{Clock, SystemClock};
use tokio::process::Command;

use crate::cluster::{self, Cluster, Options};
use crate::course::{STEPS, Step};
use crate::scenarios::{SCENARIOS, Scenario};
use crate::spec::{Datastore, Spec};
use crate::world::World;

/// Steps of the course at a time. They mostly wait, and two processors are enough for this many.
const STEPS_AT_ONCE: usize = 3;
const LOG_LINES: usize = 40;

/// What a run works with.
pub(crate) struct Settings {
    pub(crate) folder: PathBuf,
    pub(crate) binary: PathBuf,
    pub(crate) images: PathBuf,
    /// Leave the clusters of what failed, to look at.
    pub(crate) keep: bool,
}

/// A kind of cluster that scenarios run on.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) servers: usize,
    pub(crate) datastore: Datastore,
}

impl Shape {
    fn name(&self) -> String {
        let store = match self.datastore {
            Datastore::Embedded => "embedded",
            Datastore::Etcd => "etcd",
        };
        format!("{}-node-{store}", self.nodes)
    }
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    /// `2:etcd`
    fn from_str(text: &str) -> Result<Self> {
        let (nodes, datastore) = text.split_once(':').context("NODES:DATASTORE")?;
        let datastore = Datastore::from_str(datastore, false).map_err(anyhow::Error::msg)?;
        Ok(Self { nodes: nodes.parse().context("NODES is a number")?, servers: 1, datastore })
    }
}

/// One name and how it went.
struct Outcome {
    name: String,
    seconds: f64,
    failure: Option<String>,
}

/// Runs the course on each shape. Returns whether all went well.
#[allow(clippy::print_stdout, reason = "the report is what a run is for")]
pub(crate) async fn course(settings: &Settings, shapes: &[Shape], chosen: impl Fn(&Step) -> bool) -> Result<bool> {
    let clock = SystemClock::new();
    let mut outcomes = Vec::new();
    for shape in shapes {
        println!("-- course on {}", shape.name());
        let steps: Vec<&Step> = STEPS.iter().filter(|step| chosen(step)).collect();
        outcomes.extend(on_cluster(settings, shape, &steps, &clock).await?);
    }
    summary(&outcomes)
}

/// Runs scenarios, each on a cluster of its own. Returns whether all went well.
#[allow(clippy::print_stdout, reason = "the report is what a run is for")]
pub(crate) async fn scenarios(settings: &Settings, chosen: impl Fn(&Scenario) -> bool) -> Result<bool> {
    let clock = SystemClock::new();
    let mut outcomes = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| chosen(scenario)) {
        let folder = settings.folder.join(scenario.name);
        cluster::down(&folder).await?;
        let shape = &scenario.shape;
        let spec = Spec::new(&folder, shape.nodes, shape.servers, shape.datastore)?;
        let images = choose_images(settings, scenario.name, &["busybox"])?;
        let mut cluster = Cluster::up(spec, &Options { binary: &settings.binary, images: Some(&images) }).await?;
        let began = clock.monotonic();
        let failure = match (scenario.run)(&mut cluster).await {
            Ok(()) => None,
            Err(error) => Some(report(&cluster, "default", &error).await),
        };
        let seconds = (clock.monotonic() - began).as_secs_f64();
        let word = if failure.is_some() { "FAILED" } else { "ok" };
        println!("   {seconds:5.1} s  {word:6}  {}: {}", scenario.name, scenario.about);
        if let Some(failure) = &failure {
            println!("\n== {} after {seconds:.1} s ==\n{failure}", scenario.name);
        }
        if failure.is_none() || !settings.keep {
            cluster::down(&folder).await?;
        }
        outcomes.push(Outcome { name: scenario.name.to_owned(), seconds, failure });
    }
    summary(&outcomes)
}

#[allow(clippy::print_stdout, reason = "the report is what a run is for")]
fn summary(outcomes: &[Outcome]) -> Result<bool> {
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    let passed = outcomes.len() - failed;
    println!("\n{passed} passed, {failed} failed");
    ensure!(!outcomes.is_empty(), "nothing was chosen");
    Ok(failed == 0)
}

#[allow(clippy::print_stdout, reason = "the report is what a run is for")]
async fn on_cluster(settings: &Settings, shape: &Shape, steps: &[&Step], clock: &SystemClock) -> Result<Vec<Outcome>> {
    let folder = settings.folder.join(shape.name());
    cluster::down(&folder).await?;
    let spec = Spec::new(&folder, shape.nodes, shape.servers, shape.datastore)?;
    let names: BTreeSet<&str> = steps.iter().flat_map(|step| step.images).copied().collect();
    let images = choose_images(settings, &shape.name(), &names.into_iter().collect::<Vec<_>>())?;
    let began = clock.monotonic();
    let cluster = Cluster::up(spec, &Options { binary: &settings.binary, images: Some(&images) }).await?;
    println!("   {:5.1} s  cluster up", (clock.monotonic() - began).as_secs_f64());
    let outcomes: Vec<Outcome> = stream::iter(steps)
        .map(async |step| {
            let began = clock.monotonic();
            let outcome = run_step(&cluster, step).await;
            let failure = match outcome {
                Ok(()) => None,
                Err(error) => Some(report(&cluster, &namespace_of(step), &error).await),
            };
            let seconds = (clock.monotonic() - began).as_secs_f64();
            let word = if failure.is_some() { "FAILED" } else { "ok" };
            println!("   {seconds:5.1} s  {word:6}  {}: {}", step.name, step.about);
            Outcome { name: format!("{}/{}", shape.name(), step.name), seconds, failure }
        })
        .buffer_unordered(STEPS_AT_ONCE)
        .collect()
        .await;
    let mut is_good = true;
    for outcome in &outcomes {
        if let Some(failure) = &outcome.failure {
            is_good = false;
            println!("\n== {} after {:.1} s ==\n{failure}", outcome.name, outcome.seconds);
        }
    }
    if is_good || !settings.keep {
        cluster::down(&folder).await?;
    } else {
        println!("The cluster is left: KUBECONFIG={}", cluster.spec.kubeconfig().display());
    }
    Ok(outcomes)
}

/// A folder with the images that are needed: importing is most of what a start takes.
fn choose_images(settings: &Settings, cluster: &str, names: &[&str]) -> Result<PathBuf> {
    let folder = settings.folder.join(format!("{cluster}-images"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    for name in names {
        let archive = settings.images.join(format!("{name}.tar"));
        ensure!(archive.exists(), "{} is missing; e2e/images/build makes it", archive.display());
        std::os::unix::fs::symlink(&archive, folder.join(format!("{name}.tar")))?;
    }
    Ok(folder)
}

fn namespace_of(step: &Step) -> String {
    format!("course-{}", step.name)
}

async fn run_step(cluster: &Cluster, step: &Step) -> Result<()> {
    let namespace = namespace_of(step);
    let world = World::new(cluster, &namespace)?;
    world.kubectl(&format!("create namespace {namespace}")).await?;
    // Its service account comes a moment later, and pods are refused until then.
    world
        .wait_one::<rkube_api::k8s::core::v1::ServiceAccount, _>("default", "made", |_| Ok(()))
        .await
        .context("a new namespace")?;
    (step.run)(&world).await?;
    world.kubectl(&format!("delete namespace {namespace} --timeout=240s")).await.map(drop)
}

/// The error, and what a person would look at next: objects, events, logs of pods and of the parts of the cluster.
async fn report(cluster: &Cluster, namespace: &str, error: &anyhow::Error) -> String {
    let mut text = format!("{error:#}\n");
    let kubeconfig = cluster.spec.kubeconfig();
    for words in [
        &[
            "get",
            "nodes,pods,services,endpointslices,deployments,replicasets,statefulsets,daemonsets,jobs,cronjobs,pvc",
            "-o",
            "wide",
        ] as &[&str],
        &["get", "events", "--sort-by=.lastTimestamp"],
        &["describe", "pods"],
    ] {
        let output = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["--request-timeout=20s", "--namespace", namespace])
            .args(words)
            .output()
            .await;
        let _ = writeln!(text, "--- kubectl {}", words.join(" "));
        match output {
            Ok(output) => {
                text += &String::from_utf8_lossy(&output.stdout);
                text += &String::from_utf8_lossy(&output.stderr);
            }
            Err(error) => drop(writeln!(text, "{error}")),
        }
    }
    let logs = fs::read_dir(cluster.spec.logs()).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut logs: Vec<PathBuf> = logs.collect();
    logs.sort();
    for log in logs {
        let _ = writeln!(text, "--- {}", log.display());
        text += &tail(&log);
    }
    text
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    for line in lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default() {
        let _ = writeln!(out, "{line}");
    }
    out
}
