//! rkube-e2e: clusters of real processes on one machine, and the scenarios that run on them.
//!
//! Exit codes: 0 when done, 1 after a failure, 2 for wrong arguments.

mod api;
mod bench;
mod cgroups;
mod cluster;
mod course;
mod fabric;
mod files;
mod launch;
mod machines;
mod manifest;
mod network;
mod node;
mod process;
mod runner;
mod scenarios;
mod service;
mod spec;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use cluster::{Cluster, Options};
use course::{STEPS, Step};
use node::Node;
use runner::{Plan, Settings, Shape};
use scenarios::{SCENARIOS, Scenario};
use spec::{Datastore, Spec};

#[derive(Parser)]
#[command(name = "rkube-e2e", about = "Clusters of real processes on one machine, and scenarios that run on them")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a cluster and waits until its nodes are Ready; completes one that is there
    Up {
        #[arg(long, default_value_t = 1)]
        nodes: usize,
        /// Folder for everything the cluster keeps; admin.yaml is its kubeconfig, logs its logs
        #[arg(long)]
        dir: PathBuf,
        #[arg(long, value_enum, default_value_t = Datastore::Embedded)]
        datastore: Datastore,
        /// How many of the nodes are servers
        #[arg(long, default_value_t = 1)]
        servers: usize,
        /// Folder of image archives (docker save) that every node gets
        #[arg(long)]
        images: Option<PathBuf>,
        #[command(flatten)]
        arguments: spec::Arguments,
        /// The rkube program
        #[arg(long, env = "RKUBE_BINARY")]
        binary: PathBuf,
    },
    /// Removes a cluster, also one that is half there
    Down {
        #[arg(long)]
        dir: PathBuf,
    },
    /// Runs a command on a node: `exec --dir D node1 -- ctr -n k8s.io images ls`
    Exec {
        #[arg(long)]
        dir: PathBuf,
        node: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Runs the whole course and every scenario
    All {
        #[command(flatten)]
        clusters: Clusters,
        #[command(flatten)]
        common: Common,
    },
    /// Runs scenarios of faults, each on a cluster of its own
    Scenarios {
        /// Scenarios to run; all if none are named
        #[arg(value_parser = names(&SCENARIOS.iter().map(|scenario| scenario.name).collect::<Vec<_>>()))]
        names: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Runs the course on new clusters
    Course {
        /// Steps to run; all if none are named
        #[arg(value_parser = names(&STEPS.iter().map(|step| step.name).collect::<Vec<_>>()))]
        steps: Vec<String>,
        #[command(flatten)]
        clusters: Clusters,
        #[command(flatten)]
        common: Common,
    },
    /// Does something to a node that happens to machines: `fault --dir D node2 power-off`
    Fault {
        #[arg(long)]
        dir: PathBuf,
        node: String,
        #[arg(value_enum)]
        fault: Fault,
    },
    /// What the nodes run
    #[command(hide = true)]
    Inner {
        #[command(subcommand)]
        inner: launch::Inner,
    },
}

#[derive(Args)]
struct Common {
    /// Folder for the clusters
    #[arg(long, default_value = "/tmp/rkube-e2e")]
    dir: PathBuf,
    /// Folder of the images that e2e/images/build makes
    #[arg(long)]
    images: PathBuf,
    #[arg(long, env = "RKUBE_BINARY")]
    binary: PathBuf,
    /// Leave a cluster that something failed on
    #[arg(long)]
    keep: bool,
    /// How often to run it, whatever fails
    #[arg(long, default_value_t = 1, value_name = "N")]
    repeat: usize,
}

#[derive(Args)]
struct Clusters {
    /// A cluster to run the course on, as NODES:DATASTORE; may be repeated
    #[arg(long = "cluster", default_values = ["1:embedded", "2:etcd"], value_name = "NODES:DATASTORE")]
    shapes: Vec<Shape>,
}

impl Common {
    fn settings(&self) -> Result<Settings> {
        std::fs::create_dir_all(&self.dir).with_context(|| format!("creating {}", self.dir.display()))?;
        Ok(Settings {
            folder: self.dir.canonicalize()?,
            binary: self.binary.canonicalize().context("RKUBE_BINARY")?,
            images: self.images.canonicalize().context("--images")?,
            keep: self.keep,
            repeat: self.repeat,
        })
    }

    /// Runs what was chosen; the exit code says whether all of it went well.
    async fn run(&self, plan: &Plan<'_>) -> Result<ExitCode> {
        Ok(if runner::run(&self.settings()?, plan).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Fault {
    /// rkube is stopped as a service manager does; pods go on
    Stop,
    /// rkube is killed; pods go on
    Kill,
    /// Everything on the node ends at once; its disk stays
    PowerOff,
    /// The node's network cable is pulled
    Cut,
    /// The cable is put back
    Mend,
    /// What does not run is started: the machine, the runtime, rkube
    Start,
}

impl Fault {
    async fn happen(self, cluster: &Cluster, node: &Node) -> Result<()> {
        match self {
            Self::Stop => node.stop().await,
            Self::Kill => node.kill().await,
            Self::PowerOff => node.power_off().await,
            Self::Cut => fabric::set_link(&cluster.spec, node.number, false).await,
            Self::Mend => fabric::set_link(&cluster.spec, node.number, true).await,
            Self::Start => cluster.start_node(node).await,
        }
    }
}

/// One of these, so that a wrong name is answered with the right ones.
fn names(known: &[&'static str]) -> PossibleValuesParser {
    known.into()
}

#[allow(clippy::print_stderr, reason = "the last word of a command that failed")]
fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        // Before any thread exists.
        Command::Inner { inner } => launch::run(&inner),
        command => run(command),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("rkube-e2e: {error:#}");
        ExitCode::FAILURE
    })
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "tells the user what to do next")]
async fn run(command: Command) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("a node needs root; run it with sudo");
    }
    match command {
        Command::Up { nodes, dir, datastore, servers, images, arguments, binary } => {
            let spec = Spec { arguments, ..Spec::new(&dir, nodes, servers, datastore)? };
            let images = images.map(|images| images.canonicalize().context("--images")).transpose()?;
            let options =
                Options { binary: &binary.canonicalize().context("RKUBE_BINARY")?, images: images.as_deref() };
            let cluster = Cluster::up(spec, &options).await?;
            println!("export KUBECONFIG={}", cluster.spec.kubeconfig().display());
        }
        Command::Down { dir } => cluster::down(&dir).await?,
        Command::Exec { dir, node, command } => {
            let code = Cluster::open(&dir)?.named(&node)?.attach(&command).await?;
            return Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from));
        }
        Command::All { clusters, common } => {
            let plan =
                Plan { shapes: &clusters.shapes, steps: STEPS.iter().collect(), scenarios: SCENARIOS.iter().collect() };
            return common.run(&plan).await;
        }
        Command::Scenarios { names, common } => {
            let is_chosen = |scenario: &&Scenario| names.is_empty() || names.iter().any(|name| name == scenario.name);
            let scenarios = SCENARIOS.iter().filter(is_chosen).collect();
            return common.run(&Plan { shapes: &[], steps: Vec::new(), scenarios }).await;
        }
        Command::Course { steps, clusters, common } => {
            let is_chosen = |step: &&Step| steps.is_empty() || steps.iter().any(|name| name == step.name);
            let steps = STEPS.iter().filter(is_chosen).collect();
            return common.run(&Plan { shapes: &clusters.shapes, steps, scenarios: Vec::new() }).await;
        }
        Command::Fault { dir, node, fault } => {
            let cluster = Cluster::open(&dir)?;
            fault.happen(&cluster, &cluster.named(&node)?).await?;
        }
        Command::Inner { inner } => return launch::run(&inner),
    }
    Ok(ExitCode::SUCCESS)
}
