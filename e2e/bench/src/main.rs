//! rkube-bench: measures any Kubernetes API server, and plays nodes for it.
//!
//! Input: a kubeconfig and a workload. Output: progress on standard error, a table on standard output, JSON on request.
//! Exit codes: 0 when the workload was measured, 1 when it could not be, 2 for wrong arguments.

mod arguments;
mod cluster;
mod kubeconfig;
mod load;
mod nodes;
mod process;
mod progress;
mod report;
mod stats;
mod track;
mod workloads;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use arguments::Arguments;
use clap::Parser;
use progress::say;

/// The load generator shares its machine with the server: what it saves is the server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WRONG_ARGUMENTS: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = arguments.check() {
        say(&format!("rkube-bench: {error:#}"));
        return ExitCode::from(WRONG_ARGUMENTS);
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("rkube-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let json = arguments.output.json.clone();
    let Some(report) = runtime.block_on(workloads::run(arguments))? else { return Ok(()) };
    std::io::stdout().write_all(report.table().as_bytes()).context("writing the table")?;
    match json {
        Some(path) => std::fs::write(&path, report.json()).with_context(|| format!("writing {}", path.display())),
        None => Ok(()),
    }
}
