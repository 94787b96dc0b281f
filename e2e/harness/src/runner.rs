//! Runs what was chosen and reports: one line per step and scenario, for a failure what a person would look at first.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use futures_util::{StreamExt, stream};
use rkube_apimachinery::clock::{Clock, SystemClock};
use tokio::process::Command;

use crate::cluster::{self, Cluster, Options};
use crate::course::Step;
use crate::scenarios::Scenario;
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
    pub(crate) repeat: usize,
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

#[allow(clippy::print_stdout, reason = "the report is what a run is for")]
impl Outcome {
    fn failed(&self) -> Option<&str> {
        self.failure.is_some().then_some(self.name.as_str())
    }

    /// One line at once.
    fn tell(&self, name: &str, about: &str) {
        let word = if self.failure.is_some() { "FAILED" } else { "ok" };
        println!("   {:5.1} s  {word:6}  {name}: {about}", self.seconds);
    }

    /// What a person would look at, when everything else is done.
    fn tell_failure(&self) {
        if let Some(failure) = &self.failure {
            println!("\n== {} after {:.1} s ==\n{failure}", self.name, self.seconds);
        }
    }
}

/// What is to be run: the steps of the course on each kind of cluster, then the scenarios.
pub(crate) struct Plan<'a> {
    pub(crate) shapes: &'a [Shape],
    pub(crate) steps: Vec<&'static Step>,
    pub(crate) scenarios: Vec<&'static Scenario>,
}

/// Runs it as often as asked. Returns whether all went well.
#[allow(clippy::print_stdout, reason = "the report is what a run is for")]
pub(crate) async fn run(settings: &Settings, plan: &Plan<'_>) -> Result<bool> {
    let clock = SystemClock::new();
    let mut outcomes = Vec::new();
    for round in 1..=settings.repeat {
        let began = clock.monotonic();
        let before = outcomes.len();
        for shape in plan.shapes {
            println!("-- course on {}", shape.name());
            outcomes.extend(course(settings, shape, &plan.steps, &clock).await?);
        }
        for scenario in &plan.scenarios {
            outcomes.push(run_scenario(settings, scenario, &clock).await?);
        }
        let failed: Vec<&str> = outcomes.iter().skip(before).filter_map(Outcome::failed).collect();
        let seconds = (clock.monotonic() - began).as_secs_f64();
        let passed = outcomes.len() - before - failed.len();
        println!(
            "\n== round {round} of {}: {passed} passed, {} failed, {seconds:.0} s ==",
            settings.repeat,
            failed.len()
        );
        for name in failed {
            println!("   FAILED {name}");
        }
    }
    ensure!(!outcomes.is_empty(), "nothing was chosen");
    Ok(outcomes.iter().all(|outcome| outcome.failed().is_none()))
}

/// Runs one scenario on a cluster of its own.
async fn run_scenario(settings: &Settings, scenario: &Scenario, clock: &SystemClock) -> Result<Outcome> {
    let folder = settings.folder.join(scenario.name);
    cluster::down(&folder).await?;
    let shape = &scenario.shape;
    let mut spec = Spec::new(&folder, shape.nodes, shape.servers, shape.datastore)?;
    spec.arguments.server = scenario.server_arguments.iter().map(|&argument| argument.to_owned()).collect();
    let images = choose_images(settings, scenario.name, &["busybox"])?;
    let began = clock.monotonic();
    let failure = match Cluster::up(spec, &Options { binary: &settings.binary, images: Some(&images) }).await {
        Ok(mut cluster) => match (scenario.run)(&mut cluster).await {
            Ok(()) => None,
            Err(error) => Some(report(&cluster, "default", &error).await),
        },
        Err(error) => Some(format!("{error:#}\n")),
    };
    let outcome = Outcome { name: scenario.name.to_owned(), seconds: since(clock, began), failure };
    outcome.tell(scenario.name, scenario.about);
    outcome.tell_failure();
    if outcome.failure.is_none() || !settings.keep {
        cluster::down(&folder).await?;
    }
    Ok(outcome)
}

/// Runs steps of the course on a new cluster: those that may share it first, then one after the other those that
/// change it.
#[allow(clippy::print_stdout, reason = "the report is what a run is for")]
async fn course(settings: &Settings, shape: &Shape, steps: &[&Step], clock: &SystemClock) -> Result<Vec<Outcome>> {
    let (steps, left_out): (Vec<&Step>, Vec<&Step>) = steps.iter().partition(|step| step.program.is_none_or(is_there));
    for step in left_out {
        println!(
            "   LEFT OUT  {}: {} is not installed; hack/install-deps test does it",
            step.name,
            step.program.unwrap_or_default()
        );
    }
    let folder = settings.folder.join(shape.name());
    cluster::down(&folder).await?;
    let spec = Spec::new(&folder, shape.nodes, shape.servers, shape.datastore)?;
    let names: BTreeSet<&str> = steps.iter().flat_map(|step| step.images).copied().collect();
    let images = choose_images(settings, &shape.name(), &names.into_iter().collect::<Vec<_>>())?;
    let began = clock.monotonic();
    let cluster = match Cluster::up(spec, &Options { binary: &settings.binary, images: Some(&images) }).await {
        Ok(cluster) => cluster,
        Err(error) => {
            let name = format!("{}/up", shape.name());
            let outcome = Outcome { name, seconds: since(clock, began), failure: Some(format!("{error:#}\n")) };
            outcome.tell_failure();
            return Ok(vec![outcome]);
        }
    };
    println!("   {:5.1} s  cluster up", since(clock, began));
    let one = async |step: &&Step| {
        let began = clock.monotonic();
        let failure = match run_step(&cluster, step).await {
            Ok(()) => None,
            Err(error) => Some(report(&cluster, &namespace_of(step), &error).await),
        };
        let name = format!("{}/{}", shape.name(), step.name);
        let outcome = Outcome { name, seconds: since(clock, began), failure };
        outcome.tell(step.name, step.about);
        outcome
    };
    let (alone, beside): (Vec<&Step>, Vec<&Step>) = steps.iter().partition(|step| step.is_alone);
    let mut outcomes: Vec<Outcome> = stream::iter(&beside).map(one).buffer_unordered(STEPS_AT_ONCE).collect().await;
    for step in &alone {
        outcomes.push(one(step).await);
    }
    outcomes.iter().for_each(Outcome::tell_failure);
    if settings.keep && outcomes.iter().any(|outcome| outcome.failure.is_some()) {
        println!("The cluster is left: KUBECONFIG={}", cluster.spec.kubeconfig().display());
    } else {
        cluster::down(&folder).await?;
    }
    Ok(outcomes)
}

/// Whether a program is on the path.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn since(clock: &SystemClock, began: Duration) -> f64 {
    (clock.monotonic() - began).as_secs_f64()
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
