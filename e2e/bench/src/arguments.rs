//! The command line: one subcommand per workload, and what they share.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::workloads::{
    create, deploy, endpoints, fake_nodes, first_pod, get, idle, idle_watches, informers, job, list, namespace, pods,
    restart, schedule, stored, watch,
};

/// Measures any Kubernetes API server, and plays nodes for it.
#[derive(Debug, Parser)]
#[command(name = "rkube-bench", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) workload: Workload,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What every workload says, and where.
#[derive(Args, Clone, Debug)]
pub(crate) struct Output {
    /// Also write the result as JSON
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) json: Option<PathBuf>,
    /// No progress lines
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
    /// A process of the server, to measure its memory and CPU; may be repeated
    #[arg(long = "pid", value_name = "PID", global = true)]
    pub(crate) pids: Vec<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Workload {
    /// Create ConfigMaps
    Create(create::Options),
    /// Read ConfigMaps one at a time
    Get(get::Options),
    /// List many objects at once, consistently
    List(list::Options),
    /// Update objects that many watchers watch
    Watch(watch::Options),
    /// Start many informers on large Secrets at once
    Informers(informers::Options),
    /// Store many objects: the server's memory for each
    Stored(stored::Options),
    /// Open many watches of nothing: the server's memory for each
    IdleWatches(idle_watches::Options),
    /// Play nodes until interrupted: heartbeats, and pods that run as told
    FakeNodes(fake_nodes::Options),
    /// Scale a Deployment up and down on fake nodes
    Deploy(deploy::Options),
    /// Make pods ready, one after the other: until their Services lead to them. Run it on a node
    Endpoints(endpoints::Options),
    /// Run a Job on fake nodes
    Job(job::Options),
    /// Delete a namespace full of objects
    Namespace(namespace::Options),
    /// Schedule pods of one of upstream's shapes on fake nodes
    Schedule(schedule::Options),
    /// Kill and restart a server: time until it is ready and until it answers a consistent list
    Restart(restart::Options),
    /// Start a server with its node: time until the node is Ready and until its first pod runs
    FirstPod(first_pod::Options),
    /// Run pods on a real node: one after the other, then many at once
    Pods(pods::Options),
    /// What processes use while nothing happens
    Idle(idle::Options),
}

impl Arguments {
    /// Finds what clap cannot: values that make no sense together.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.workload {
            Workload::Create(options) => options.check(),
            Workload::Get(options) => options.check(),
            Workload::List(options) => options.check(),
            Workload::Watch(options) => options.check(),
            Workload::Informers(options) => options.check(),
            Workload::Stored(options) => options.check(&self.output.pids),
            Workload::IdleWatches(options) => options.check(&self.output.pids),
            Workload::FakeNodes(options) => options.check(),
            Workload::Deploy(options) => options.check(),
            Workload::Endpoints(options) => options.check(),
            Workload::Job(options) => options.check(),
            Workload::Namespace(options) => options.check(),
            Workload::Schedule(options) => options.check(),
            Workload::Restart(options) => options.check(),
            Workload::FirstPod(_) => Ok(()),
            Workload::Pods(options) => options.check(),
            Workload::Idle(options) => options.check(&self.output.pids),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_arguments_are_named() {
        let check = |line: &str| match Arguments::try_parse_from(line.split(' ')) {
            Ok(arguments) => arguments.check().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string().lines().next().unwrap_or_default().to_owned()),
        };
        let message = |line: &str| check(line).unwrap_err();
        check("rkube-bench create --kubeconfig f --count 5 --json out").unwrap();
        check("rkube-bench idle --pid 1 --pid 2").unwrap();
        assert_eq!(message("rkube-bench idle"), "idle measures processes: name them with --pid");
        assert_eq!(
            message("rkube-bench create --kubeconfig f --size 5000000"),
            "--size 5000000 is not in 1..=1000000 bytes"
        );
        assert_eq!(
            message("rkube-bench create --kubeconfig f --count 5 --duration 5"),
            "error: the argument '--count <N>' cannot be used with '--duration <SECONDS>'"
        );
        assert_eq!(message("rkube-bench create"), "error: the following required arguments were not provided:");
        assert_eq!(message("rkube-bench watch --kubeconfig f --watchers 0"), "--watchers 0 would measure nothing");
        assert_eq!(
            message("rkube-bench restart --kubeconfig f --repeat 0 -- rkube server"),
            "--repeat 0 would measure nothing"
        );
        assert_eq!(
            message("rkube-bench schedule --kubeconfig f --shape anti-affinity --nodes 10 --pods 10"),
            "12 pods that keep apart do not fit on 10 nodes"
        );
        assert_eq!(
            message("rkube-bench list --kubeconfig f --resource leases"),
            "error: invalid value 'leases' for '--resource <RESOURCE>'"
        );
    }
}
