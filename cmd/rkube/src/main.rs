//! The rkube binary: flags, configuration, logging, signals, exit codes.
//!
//! Exit codes: 0 after a requested stop, 1 after a failure, 2 for wrong flags or settings.

mod admin;
mod arguments;
mod config;
mod logging;
mod settings;
mod values;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use admin::CommandError;
use clap::ArgMatches;
use logging::LevelHandle;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SystemClock;
use settings::Roles;
use tokio::signal::unix::{SignalKind, signal};
use values::{SettingsError, Values};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WRONG_SETTINGS: u8 = 2;
/// Decoders go as deep as the input they accept, which unoptimized takes more than the two megabytes that are usual.
/// Only what is used is memory.
const STACK_BYTES: usize = 8 * 1024 * 1024;

fn main() -> ExitCode {
    if let Some(name) = std::env::args_os().next().filter(|name| rkube_daemons::cni::is_plugin(name)) {
        let status = rkube_daemons::cni::main(&name, |variable| std::env::var(variable).ok());
        return u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from);
    }
    let matches = arguments::command().get_matches();
    match matches.subcommand() {
        Some(("server", flags)) => run(Roles::Server, flags),
        Some(("agent", flags)) => run(Roles::Agent, flags),
        Some(("completion", flags)) => completion(flags),
        Some(("reference", _)) => print(&arguments::reference()),
        Some((name, flags)) => administer(name, flags),
        None => ExitCode::from(WRONG_SETTINGS),
    }
}

fn administer(name: &str, flags: &ArgMatches) -> ExitCode {
    match admin::run(name, flags) {
        None => ExitCode::from(WRONG_SETTINGS),
        Some(Ok(said)) => {
            let printed = print(&said.text);
            if said.is_well { printed } else { ExitCode::FAILURE }
        }
        Some(Err(CommandError::Settings(error))) => wrong_settings(&error),
        Some(Err(error)) => failed(&error),
    }
}

fn run(role: Roles, flags: &ArgMatches) -> ExitCode {
    let environment: BTreeMap<_, _> = std::env::vars_os().collect();
    let values = match Values::collect(role, flags, &environment) {
        Ok(values) => values,
        Err(error) => return wrong_settings(&error),
    };
    let (levels, start) = match logging::start(&values).and_then(|levels| Ok((levels, start(role, &values)?))) {
        Ok(both) => both,
        Err(error) => return wrong_settings(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK_BYTES).enable_all().build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let running = async {
        tokio::select! {
            outcome = start() => outcome,
            error = follow_levels(role, flags, &levels) => Err(error.into()),
        }
    };
    match runtime.block_on(running) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref()),
    }
}

type RunError = Box<dyn std::error::Error + Send + Sync>;
type Start = Box<dyn FnOnce() -> std::pin::Pin<Box<dyn Future<Output = Result<(), RunError>>>>>;

/// Checks the configuration and returns what runs it.
fn start(role: Roles, values: &Values) -> Result<Start, SettingsError> {
    let clock = SystemClock::shared();
    match role {
        Roles::Agent => {
            let config = config::agent(values)?;
            Ok(Box::new(move || Box::pin(async move { rkube_daemons::agent::run(config, clock, stop()?).await })))
        }
        Roles::Server | Roles::Both => {
            let config = config::server(values)?;
            Ok(Box::new(move || Box::pin(async move { rkube_daemons::server::run(config, clock, stop()?).await })))
        }
    }
}

/// At each SIGHUP, reads the settings again and sets the log levels they have now. Nothing else of them counts
/// before the next start. Ends only if the signal cannot be waited for.
async fn follow_levels(role: Roles, flags: &ArgMatches, levels: &LevelHandle) -> std::io::Error {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return error,
    };
    while hangup.recv().await.is_some() {
        let environment: BTreeMap<_, _> = std::env::vars_os().collect();
        let changed = Values::collect(role, flags, &environment).and_then(|values| logging::change(levels, &values));
        match changed {
            Ok(()) => tracing::info!("Set the log levels"),
            Err(error) => tracing::warn!(error = %chain(&error), "The log levels stay as they are"),
        }
    }
    ErrorKind::BrokenPipe.into()
}

/// Resolves at the first SIGTERM or SIGINT. A second one ends the process at once, as the default does.
fn stop() -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("Stopping");
        rkube_daemons::notify::notify(rkube_daemons::notify::STOPPING);
    })
}

fn completion(flags: &ArgMatches) -> ExitCode {
    let Some(shell) = flags.get_one::<clap_complete::Shell>("shell") else { return ExitCode::from(WRONG_SETTINGS) };
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut arguments::command(), "rkube", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// A reader that closed the pipe has read enough.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => failed(&error),
        _ => ExitCode::SUCCESS,
    }
}

#[allow(clippy::print_stderr, reason = "the last word of a process that could not start")]
fn wrong_settings(error: &SettingsError) -> ExitCode {
    eprintln!("rkube: {}", chain(error));
    ExitCode::from(WRONG_SETTINGS)
}

#[allow(clippy::print_stderr, reason = "the last word of a process that failed")]
fn failed(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    match remedy(error) {
        Some(remedy) => eprintln!("rkube: {}; {remedy}", chain(error)),
        None => eprintln!("rkube: {}", chain(error)),
    }
    ExitCode::FAILURE
}

/// What helps against a cause that any file can have.
fn remedy(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>()).find_map(|cause| match cause.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some("free space there, or choose a folder elsewhere"),
        ErrorKind::ReadOnlyFilesystem => Some("mount it for writing, or choose a folder elsewhere"),
        _ => None,
    })
}
