//! Processes by number: whether they live, where they run, and waiting for their end without polling.
//!
//! Invariant: a process is only signalled when it is in one of this cluster's network namespaces. A number
//! in a file may have been given to another process since.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Resolves when the process has ended. `None` if it has already.
pub(crate) struct Exit(Option<AsyncFd<OwnedFd>>);

impl Exit {
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let Some(number) = rustix::process::Pid::from_raw(pid) else { return Ok(Self(None)) };
        match pidfd_open(number, PidfdFlags::NONBLOCK) {
            Ok(handle) => Ok(Self(Some(followed(handle)?))),
            Err(rustix::io::Errno::SRCH) => Ok(Self(None)),
            Err(error) => Err(error).with_context(|| format!("following process {pid}")),
        }
    }

    pub(crate) async fn wait(&self) -> Result<()> {
        if let Some(handle) = &self.0 {
            handle.readable().await?.retain_ready();
        }
        Ok(())
    }
}

/// A handle of the kernel that becomes readable when something has happened.
#[allow(deprecated, reason = "an OwnedFd cannot be misused as the deprecation fears; the replacement is unsafe")]
pub(crate) fn followed(handle: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(handle, Interest::READABLE)
}

/// The network namespace a process runs in; `None` when there is no such process.
fn network_of(pid: i32) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino())
}

fn network_named(name: &str) -> Option<u64> {
    Some(fs::metadata(Path::new("/run/netns").join(name)).ok()?.ino())
}

/// Whether the process lives and is the one that was started in this network namespace.
pub(crate) fn runs_in(pid: i32, netns: &str) -> bool {
    network_named(netns).is_some_and(|network| network_of(pid) == Some(network))
}

/// Every process whose network is the named namespace.
pub(crate) fn all_in(netns: &str) -> Result<Vec<i32>> {
    let Some(network) = network_named(netns) else { return Ok(Vec::new()) };
    let entries = fs::read_dir("/proc").context("listing processes")?;
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(|&pid| network_of(pid) == Some(network)).collect())
}

/// Sends a signal. A process that is gone is no error.
pub(crate) fn signal(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("sending {signal} to process {pid}")),
    }
}

/// Sends a signal and waits for the end.
pub(crate) async fn end(pid: i32, with: Signal, limit: Duration) -> Result<()> {
    let exit = Exit::of(pid)?;
    signal(pid, with)?;
    match tokio::time::timeout(limit, exit.wait()).await {
        Ok(ended) => ended,
        Err(_) => bail!("process {pid} did not end within {} s of {with}", limit.as_secs()),
    }
}
